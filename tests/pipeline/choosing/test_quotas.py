"""Quotas and caps in runs: what is chosen, what is refused before any work, and what another quota reuses."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from builders import word_rows, write_jsonl, write_rows
from nncift import Selection, select
from nncift.cli import main
from nncift.data.pool import load_pool
from nncift.errors import ConfigError, DataError
from nncift.pipeline.choosing.quotas import read_groups
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.plan import plan
from nncift.report.terminal import summary_text

BM25 = {"influence": "bm25", "budget": 12}


def tasks(n: int = 60) -> list[dict]:
    """Half of the rows are of task b, the others of a and c."""
    return [row | {"task": "ababcbabcb"[k % 10]} for k, row in enumerate(word_rows(n))]


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("quotas") / "pool.jsonl", tasks())


def counts(selection: Selection, column: str = "task") -> dict:
    return dict(Counter(selection.dataset[column]))


def test_a_run_fills_quotas_and_reports_them(pool, tmp_path: Path):
    there = Counter(row["task"] for row in tasks())
    equal = select(pool, quota="task=equal", output=tmp_path / "equal", **BM25)
    assert counts(equal) == {"a": 4, "b": 4, "c": 4}
    text = summary_text(tmp_path / "equal")
    assert f"  task c: 4 of {there['c']} (quota 4)" in text
    page = (tmp_path / "equal/report.html").read_text(encoding="utf-8")
    assert "Quotas and caps" in page
    assert "quota 4" in page
    assert Selection.load(tmp_path / "equal").groups == equal.groups
    assert json.loads((tmp_path / "equal/config.json").read_text())["quota"] == {"task": "equal"}
    again = select(pool, quota={"task": "equal"}, output=tmp_path / "equal", **BM25)  # the same run
    assert again.indices.tolist() == equal.indices.tolist()
    known = {"known": write_rows(tmp_path / "known.jsonl", word_rows(9, 300)), "cap": {"task": {"a": 0.25}}}
    limited = select(pool, quota={"task": {"c": 0.5, "a": "2+"}}, output=tmp_path / "l", **known, **BM25)
    assert counts(limited)["c"] == 6
    assert 2 <= counts(limited)["a"] <= 3
    assert "  task a: " in (text := summary_text(tmp_path / "l"))
    assert "(at least 2, at most 3)" in text


def test_quotas_that_the_choice_meets_anyway_change_nothing(pool, tmp_path: Path):
    plain = select(pool, output=tmp_path / "plain", **BM25)
    quota = {"task": counts(plain)}
    same = select(pool, quota=quota, output=tmp_path / "same", **BM25)
    assert (same.indices.tolist(), same.gains.tolist()) == (plain.indices.tolist(), plain.gains.tolist())


def test_sources_of_a_mixture_and_another_column(tmp_path: Path):
    first, second = write_rows(tmp_path / "a.jsonl", tasks()), write_rows(tmp_path / "b.jsonl", word_rows(30, 100))
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(yaml.safe_dump([{"name": "web", "path": first}, {"name": "book", "path": second}]))
    run = tmp_path / "run"
    selection = select(str(mixture), quota="source=book:0.5", cap="task=a:1", output=run, **BM25)
    assert counts(selection, "nncift_source") == {"book": 6, "web": 6}
    assert counts(selection)["a"] <= 1
    text = summary_text(run)
    assert "task (none): 6 of 30" in text
    rows = load_pool(str(mixture))
    assert read_groups(rows, "source").values == ("web", "book")
    assert read_groups(rows, "task").values[-1] is None


def test_a_verified_choice_and_a_token_budget(pool, small_encoder, tiny_model, tmp_path: Path):
    options = {"influence": "builders:EstimatedCosine", "encoder": small_encoder, "model": tiny_model, "device": "cpu"}
    target = write_rows(tmp_path / "target.jsonl", word_rows(8, 200))
    first = {"target": target, "labels": 100, "budget": 9, "verify": 2, "quota": "task=equal", **options}
    assert counts(select(pool, output=tmp_path / "one", **first)) == {"a": 3, "b": 3, "c": 3}
    free = select(pool, from_run=tmp_path / "one", quota="none", verify=None, output=tmp_path / "free")
    assert free.groups is None
    other = select(
        pool, from_run=tmp_path / "one", quota="task=c:0.5", budget=8, cap="task=0.5", output=tmp_path / "two"
    )
    assert counts(other)["c"] == 4
    taken = json.loads((tmp_path / "two/taken.json").read_text())["notes"]
    assert "pairs taken" in taken["labels"]
    assert taken["network"] == "network and fidelity: taken"
    tokens = select(
        pool, quota="task=equal", output=tmp_path / "three", **BM25 | {"budget": "240tok", "model": tiny_model}
    )
    assert tokens.groups is not None
    assert all(70 < group.tokens <= group.most == 80 for group in tokens.groups)
    assert "tokens (quota 80)" in summary_text(tmp_path / "three")
    with pytest.raises(ConfigError, match="gives 'a' 8 tokens, and the shortest sample there has "):
        select(pool, quota="task=equal", output=tmp_path / "few", **BM25 | {"budget": "24tok", "model": tiny_model})
    assert not (tmp_path / "few/vectors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quota": "tsk=equal"}, "the pool has no column 'tsk' for `quota` or `cap`: did you mean 'task'"),
        ({"quota": "task=d:0.5"}, "`quota` names 'd', which is no value of task"),
        ({"quota": "task=c:1.0", "budget": 30}, "`quota` task=c:1.0 is 30 samples, and the pool has"),
        ({"cap": "task=0.2"}, "within `cap` at most 6 samples can be selected, and `budget` is 12"),
    ],
)
def test_refused_before_any_work(pool, tmp_path: Path, options, message):
    options = {**BM25, "output": tmp_path / "run", **options}
    with pytest.raises(ConfigError, match=message):
        select(pool, **options)
    assert not (tmp_path / "run/vectors").exists()
    with pytest.raises(ConfigError, match=message):
        plan(make_config(pool, **{**options, "output": tmp_path / "dry"}))


def test_a_column_of_lists_names_the_row(tmp_path: Path):
    rows = [row | {"tags": "x" if k < 3 else ["x"]} for k, row in enumerate(word_rows(20))]
    with pytest.raises(DataError, match=r"row 4.*tags.*one value in a row"):
        select(write_jsonl(tmp_path / "pool.jsonl", rows), cap="tags=0.5", output=tmp_path / "run", **BM25)


def test_a_dry_run_that_reads_a_part_refuses_no_unseen_value(pool, monkeypatch, tmp_path: Path):
    monkeypatch.setattr("nncift.pipeline.plan.READ", 5)
    plan(make_config(pool, cap="task=c:0.1", output=tmp_path / "dry", **BM25))


def test_on_the_command_line_and_in_a_file_of_options(pool, tmp_path: Path, capsys):
    options = ["select", pool, "--budget", "12", "--influence", "bm25", "--quiet"]
    file = tmp_path / "options.yaml"
    file.write_text("quota:\n  task: {c: 0.5}\ncap:\n  task: 0.5\n")
    given = ["--quota", "task=c:0.5", "--cap", "task=0.5"]
    for arguments in (
        ["--output", str(tmp_path / "a"), *given],
        ["--output", str(tmp_path / "b"), "--config", str(file)],
    ):
        with pytest.raises(SystemExit, match="0"):
            main([*options, *arguments])
    a, b = (Selection.load(tmp_path / name) for name in "ab")
    assert a.indices.tolist() == b.indices.tolist()
    assert counts(a)["c"] == 6
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main([*options, "--output", str(tmp_path / "c"), "--quota", "task=fair"])
    assert "--quota task=fair is no rule" in capsys.readouterr().err
