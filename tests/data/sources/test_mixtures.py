"""Several sources as one pool."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import nncift
from builders import write_jsonl, write_text
from nncift.cli import main
from nncift.config import Config
from nncift.data.pool import load_pool, read_pool
from nncift.errors import ConfigError, DataError, RunError
from nncift.pipeline.configuration.configure import make_config
from nncift.selection.selection import Selection


@pytest.fixture
def data(tmp_path):
    for name in ("math", "chat"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {i}", "response": "r"} for i in range(40)])
    (tmp_path / "split").mkdir()
    for name in ("train", "test"):
        write_jsonl(tmp_path / "split" / f"{name}.jsonl", [{"prompt": name, "response": "r"}])
    return tmp_path


MIXTURE = """
- {name: numbers, path: math.jsonl, weight: 0.25}
- {name: talk, path: chat.jsonl, cap: 7}
- {name: rest, path: split, split: train}
"""


def test_a_mixture(data):
    path = write_text(data / "mix.yaml", MIXTURE)
    pool, facts = read_pool(path, folder=data / "pool")
    names = pool["source"][:]
    assert {name: names.count(name) for name in dict.fromkeys(names)} == {"numbers": 10, "talk": 7, "rest": 1}
    assert pool["prompt"][-1] == "train"
    assert facts.read == 18
    assert read_pool(path, folder=data / "pool")[0].to_list() == pool.to_list()
    assert nncift.load_pool(path)["id"][:] == pool["id"][:]
    assert nncift.load_pool(path, seed=1)["id"][:] != pool["id"][:]
    write_text(path, MIXTURE.replace("cap: 7", "cap: 99").replace("0.25", "1"))
    assert len(nncift.load_pool(path)) == 81
    with pytest.raises(RunError, match=r"mix.yaml has changed"):
        read_pool(path, folder=data / "pool")


def test_a_draw_depends_on_no_other_source(data):
    alone = nncift.load_pool(write_text(data / "one.yaml", "- {name: talk, path: chat.jsonl, cap: 7}"))
    both = nncift.load_pool(write_text(data / "mix.yaml", MIXTURE))
    talk = [row["prompt"] for row in both if row["source"] == "talk"]
    assert alone["prompt"][:] == talk


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "a mixture is a list of sources"),
        ("", "a mixture is a list of sources"),
        ("- [", "not valid YAML"),
        ("- !!python/object/apply:os.system ['x']", "not valid YAML"),
        ("- 5", "row 1: a number, not a source"),
        (
            "- {name: a, path: math.jsonl, wieght: 1}",
            "'wieght': there is no such key: known are name, path",
        ),
        ("- {1: a}", "field '1': there is no such key"),
        ("- {name: a}", "field 'path': missing"),
        ("- {name: 5, path: math.jsonl}", "field 'name': a number, not text"),
        ("- {name: a, path: math.jsonl, weight: 1.5}", "1.5 is not a share"),
        ("- {name: a, path: math.jsonl, weight: true}", "True is not a share"),
        ("- {name: a, path: math.jsonl, cap: 0}", "0 is not a number of rows"),
        ("- {name: a, path: math.jsonl, cap: 3, weight: 0.1}", "both given"),
        ("- {name: a, path: none.jsonl}", "{data}/none.jsonl: no such file"),
        ("- {name: a, path: math.jsonl}\n- {name: a, path: chat.jsonl}", "row 2: two sources are called 'a'"),
        ("- {name: a, path: mix.yaml}", "a mixture in a mixture"),
        ("- {name: a, path: split}", "{data}/split: it has several splits"),
    ],
)
def test_bad_mixtures(data, text, message):
    with pytest.raises(DataError, match=message.replace("{data}", str(data))):
        nncift.load_pool(write_text(data / "mix.yaml", text))


def test_no_split_for_a_mixture(data):
    with pytest.raises(DataError, match="names the split of each"):
        nncift.load_pool(write_text(data / "mix.yaml", MIXTURE), split="train")


def test_several_paths(data):
    paths = [data / "math.jsonl", str(data / "chat.jsonl")]
    pool, facts = read_pool(paths, folder=data / "pool")
    assert pool["source"][39:41] == [str(path) for path in paths]
    assert facts.source == f"{paths[0]}, {paths[1]}"
    assert nncift.load_pool(paths[:1])["source"][0] is None
    with pytest.raises(DataError, match="given twice"):
        nncift.load_pool([paths[0], paths[0]])
    stat = paths[0].stat()
    paths[0].write_bytes(paths[0].read_bytes().replace(b"math 1", b"math X"))
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(RunError, match=f"{paths[0]} has changed"):
        read_pool(paths, folder=data / "pool")


def test_several_pools_of_a_run(data, monkeypatch, capsys):
    monkeypatch.chdir(data)
    assert make_config(["math.jsonl", Path("chat.jsonl")]).pool == ("math.jsonl", "chat.jsonl")
    with pytest.raises(SystemExit):
        main(["select", "math.jsonl", "none.jsonl", "--influence", "bm25", "--features", "x.npy", "--quiet"])
    assert "none.jsonl: no such file" in capsys.readouterr().err


def test_the_source_of_each_row_is_in_the_subset(data, monkeypatch):
    monkeypatch.chdir(data)
    pool = load_pool(["math.jsonl", "chat.jsonl"])
    selection = Selection(np.array([len(pool) - 1, 0]), np.ones(2), 1.0).with_pool(pool)
    selection.save("run")
    assert [row["nncift_source"] for row in selection.dataset] == ["chat.jsonl", "math.jsonl"]
    assert [json.loads(line)["nncift_source"] for line in Path("run/subset.jsonl").read_text().splitlines()] == [
        "chat.jsonl",
        "math.jsonl",
    ]
    sources = pool["source"][:]
    assert selection.by_source() == {name: (1, sources.count(name)) for name in ("math.jsonl", "chat.jsonl")}


def test_pools_in_the_config():
    assert Config("a.jsonl") == Config(("a.jsonl",))
    assert Config("a.jsonl").identity()["pool"] == "a.jsonl"
    assert str(Config(("x/a.jsonl", "b.csv.gz")).folder) == "runs/a-b"
    assert str(Config(tuple(f"p{i}.jsonl" for i in range(9))).folder) == "runs/p0-p1-p2-6-more"
    assert Config("a", max_row_bytes="64MiB").max_row_bytes == 64 << 20
    for pool in ((), ("a", ""), os.fsdecode(b"\xff.jsonl")):
        with pytest.raises(ConfigError, match="`pool`"):
            Config(pool)
