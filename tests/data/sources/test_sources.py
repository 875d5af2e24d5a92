"""Sources: folders, saved datasets, data in memory and the hub."""

import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest

from builders import write_text
from nncift.data.pool import load_pool
from nncift.data.sources.sources import open_source
from nncift.errors import DataError, RunError


def rows_of(source, **options):
    return list(open_source(source, **options).rows())


def test_folder_of_files(tmp_path):
    texts = {"b/c.csv": "prompt\nfrom csv", "z.json.gz": '[{"prompt": "from z"}]'}
    for name in (*texts, "a.jsonl", ".hidden/x.jsonl", "notes.txt", "dataset_info.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_text(tmp_path / name, texts.get(name, '{"prompt": "from a"}'))
    rows = rows_of(str(tmp_path))
    assert [row.values["prompt"] for row in rows] == ["from a", "from csv", "from z"]
    assert [row.file for row in rows] == [str(tmp_path / name) for name in ("a.jsonl", "b/c.csv", "z.json.gz")]
    assert [row.number for row in rows] == [1, 1, 1]


def test_saved_datasets(tmp_path):
    dataset = datasets.Dataset.from_list([{"prompt": "p", "n": 1}, {"prompt": "q", "n": None}])
    dataset.select([1, 0]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, test=dataset.select([1])).save_to_disk(tmp_path / "two")
    datasets.DatasetDict(only=dataset).save_to_disk(tmp_path / "three")
    expected = [{"prompt": "q", "n": None}, {"prompt": "p", "n": 1}]
    assert [row.values for row in rows_of(tmp_path / "one")] == expected
    with pytest.raises(DataError, match="no split 'train': leave `split` out: the data have no splits"):
        rows_of(tmp_path / "one", split="train")
    named = datasets.Dataset.from_list([{"prompt": "q"}], split="validation")
    assert len(rows_of(named, split="validation")) == 1
    assert [row.values for row in rows_of(tmp_path / "two", split="test")] == expected[:1]
    assert [row.values for row in rows_of(tmp_path / "two", prefer="test")] == expected[:1]
    assert len(rows_of(tmp_path / "three")) == 2
    assert len(rows_of(datasets.load_from_disk(tmp_path / "two"), split="test")) == 1
    with pytest.raises(DataError, match="several splits: choose one with `split`: train, test"):
        rows_of(tmp_path / "two")
    with pytest.raises(DataError, match="no split 'valid': choose one with `split`: train, test"):
        rows_of(tmp_path / "two", split="valid")
    for broken in ("{}", "[]", '"x"', "[" * 99_999):
        (tmp_path / "one" / "state.json").write_text(broken)
        with pytest.raises(DataError, match="cannot load this saved dataset"):
            rows_of(tmp_path / "one")


def test_tables_and_iterables_in_memory(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [{"prompt": "p", "response": "r", "n": 1}, {"prompt": "q", "response": "s", "n": None}]
    table = datasets.Dataset.from_list(rows).data.table
    for source in (pandas.DataFrame(rows), table, table.to_batches()[0], iter(rows), (row for row in rows)):
        assert [row.values | {"n": None} for row in rows_of(source)] == [row | {"n": None} for row in rows]
    mixed = pandas.DataFrame([{"prompt": "p", "x": {"a": 1}}, {"prompt": None, "x": [1]}])
    assert [row.values for row in rows_of(mixed)] == [{"prompt": "p", "x": {"a": 1}}, {"prompt": None, "x": [1]}]
    with pytest.raises(DataError, match="two columns have this name"):
        rows_of(pandas.DataFrame([[1, 2]], columns=["a", "a"]))
    for _ in range(2):
        assert len(load_pool((row for row in rows), folder=tmp_path / "pool")) == 2
    with pytest.raises(RunError, match="<dataset> has changed"):
        load_pool((row | {"n": 2} for row in rows), folder=tmp_path / "pool")


@pytest.mark.parametrize("source", [5, None, "", 1.5, True, b"x", object(), {"prompt": ["a"]}, {}, datasets])
def test_what_is_no_source_is_one_line(source):
    with pytest.raises(DataError, match="give a"):
        load_pool(source)


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"\xff.jsonl")
    (tmp_path / name).write_text('{"prompt": "p", "response": "r"}')
    for source in (tmp_path / name, str(tmp_path / name), tmp_path):
        with pytest.raises(DataError, match="not UTF-8"):
            load_pool(source)


def test_data_in_memory():
    dataset = datasets.Dataset.from_list([{"prompt": "p"}, {"prompt": "q"}])
    assert [row.values["prompt"] for row in rows_of(dataset.select([1, 0]))] == ["q", "p"]
    assert [row.values["prompt"] for row in rows_of(dataset.to_iterable_dataset())] == ["p", "q"]
    rows = rows_of([{"a": np.float32("nan"), "b": np.arange(2), "c": (1, {"d"})}, 3, {(1,): 2}])
    assert json.loads(rows[0].text) == {"a": None, "b": [0, 1], "c": [1, "{'d'}"]}
    assert [row.reason for row in rows[1:]] == [
        "a number, not an object",
        "cannot be written as JSON (keys must be str, int, float, bool or None, not tuple)",
    ]
    assert {row.file for row in rows} == {"<dataset>"}


def test_json_typed_columns_of_a_dataset_are_parsed():
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ["b"]}], "deep": {"x": 1}}]
    deep = {"x": datasets.Json(), "y": datasets.Value("string")}
    features = datasets.Features(messages=datasets.List(datasets.Json()), deep=deep)
    dataset = datasets.Dataset.from_list(rows, features=features)
    assert [row.values for row in rows_of(dataset)] == [rows[0] | {"deep": {"x": 1, "y": None}}]


@pytest.mark.parametrize(
    "name", ["nowhere.jsonl", "data/pool.parquet.gz", "./pool", "/no/where", "~/nowhere", "org/pool.json"]
)
def test_missing_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file or folder: check the path") as caught:
        open_source(name)
    assert caught.value.file == name


def test_neither_a_path_nor_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("alpaca", "csv", "a/b/c", "org/name with space"):
        with pytest.raises(DataError, match="nor a hub id"):
            open_source(name)
    with pytest.raises(DataError, match="no such file"):
        open_source(Path("org/name"))
    with pytest.raises(DataError, match=r"unknown format: known are \.jsonl"):
        rows_of(write_text(tmp_path / "a.txt", "x"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data in this folder"):
        open_source(tmp_path / "empty")


def test_a_folder_named_like_a_hub_id_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "pool").mkdir(parents=True)
    write_text(tmp_path / "org" / "pool" / "a.jsonl", '{"prompt": "p"}')
    assert [row.file for row in rows_of("org/pool")] == ["org/pool/a.jsonl"]


def test_stamps_detect_changes(tmp_path):
    path = write_text(tmp_path / "a.jsonl", '{"a": 1}')
    before = open_source(path).stamps
    assert before == open_source(path).stamps
    write_text(path, '{"a": 12}')
    assert before != open_source(path).stamps
    rows = [{"a": i} for i in range(3000)]
    dataset = datasets.Dataset.from_list(rows)
    assert open_source(rows).stamps == open_source(dataset).stamps == open_source(list(rows)).stamps
    assert open_source(rows).stamps != open_source(rows[:-1]).stamps
    assert open_source(rows).stamps != open_source([{"a": -1}, *rows[1:]]).stamps


# --- the hub, without a network ------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache of the hub dataset "org/pool" with two splits, in the layout of `datasets`."""
    cache, files = tmp_path / "cache", {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    for split, path in files.items():
        write_text(Path(path), json.dumps({"prompt": split, "response": "r"}))
    datasets.load_dataset("json", data_files=files, cache_dir=str(cache))
    [made] = (cache / "json").glob("*/*/*/")
    target = cache / "org___pool" / "main" / "0.0.0" / made.name
    target.parent.mkdir(parents=True)
    made.rename(target)
    info = json.loads((target / "dataset_info.json").read_text())
    info |= {"builder_name": "json", "dataset_name": "pool", "config_name": "main"}
    (target / "dataset_info.json").write_text(json.dumps(info))
    for file in target.glob("json-*.arrow"):
        file.rename(target / file.name.replace("json-", "pool-"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_hub_id_from_the_cache(hub_cache):
    assert [(row.values["prompt"], row.file) for row in rows_of("org/pool", split="test")] == [("test", "org/pool")]
    assert [row.values["prompt"] for row in rows_of("org/pool:main", split="train")] == ["train"]
    assert [row.values["prompt"] for row in rows_of("org/pool", prefer="test")] == ["test"]
    with pytest.raises(DataError, match="several splits: choose one with `split`: train, test"):
        rows_of("org/pool")
    for name, split in (("org/pool", "valid"), ("org/pool:other", None)):
        with pytest.raises(DataError, match="cannot load it from the hub"):
            rows_of(name, split=split)


def test_the_hub_is_not_accessed_before_reading():
    assert open_source("org/no-such-pool", split="train").stamps == [{"file": "org/no-such-pool", "split": "train"}]


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'org/x' is a gated dataset on the Hub."), "hf auth login"),
        (ValueError("Config name is missing.\nPick one of the available configs: ['main']"), "org/name:config"),
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "check the name"),
        (ConnectionError("Couldn't reach 'org/x' on the Hub"), "check the network"),
        (datasets.exceptions.DatasetGenerationError(), "check the name"),
    ],
)
def test_a_hub_failure_is_one_line(monkeypatch, error, fix):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=fix) as caught:
        rows_of("org/x")
    assert str(error).partition("\n")[0] in str(caught.value)
    assert str(caught.value).startswith("org/x: cannot load it from the hub")


def test_no_network_is_one_line(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"org/none: cannot load it from the hub \(Couldn't reach.*check the network"):
        rows_of("org/none")


def test_a_path_longer_than_a_file_system_allows(tmp_path):
    with pytest.raises(DataError, match="longer than a file system allows"):
        load_pool("a" * 5000)
    (tmp_path / "mix.yaml").write_text(f"- {{name: a, path: {'b' * 5000}.jsonl}}\n")
    with pytest.raises(DataError, match="longer than a file system allows"):
        load_pool(tmp_path / "mix.yaml")
