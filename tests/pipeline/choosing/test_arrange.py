"""Difficulty, phases, order and weights of a run's subset: computed and written, resumed, refused and reused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

import nncift
import nncift.pipeline.plan as planning
from builders import word_rows, write_rows
from nncift.config import Config
from nncift.data.pool import load_pool
from nncift.errors import ConfigError, DataError
from nncift.influence.base import InfluenceFunction, Traits
from nncift.influence.ifd import IFD
from nncift.labels.pairs import LabelledPairs
from nncift.pipeline.configuration.configure import make_config
from nncift.report.terminal import summary_text
from nncift.selection.arrangement import arranged, gain_weights
from nncift.selection.selection import Selection
from pipeline_runs import stopped_at

ENDS = ("selection.parquet", "subset.jsonl")


class Wordiness(InfluenceFunction):
    """Letters of prompt and response; keeps the samples that it was asked for."""

    name = "wordiness"
    traits = Traits(pointwise=True)
    asked: list[str] = []  # noqa: RUF012 (of all objects: each run makes one)

    def __call__(self, pool_rows, target_rows):
        self.asked.extend(pool_rows["id"])
        lengths = np.array([len(text) for text in pool_rows["prompt"]], np.float32)
        return np.repeat(lengths[:, None], len(target_rows), axis=1)


OWN = f"{__name__}:Wordiness"


@pytest.fixture
def asked() -> list[str]:
    Wordiness.asked.clear()
    return Wordiness.asked


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    """A pool with scores, features of it, and a cheap influence function."""
    folder, rows = tmp_path_factory.mktemp("files"), word_rows(60)
    features = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    np.save(folder / "p.npy", features)
    scored = [{**row, "score": random.Random(i).randint(1, 5)} for i, row in enumerate(rows)]
    pool = write_rows(folder / "pool.jsonl", scored)
    return {
        "pool": pool,
        "features": str(folder / "p.npy"),
        "influence": "builders:EstimatedBM25",
        "labels": 150,
        "budget": 11,
    }


@pytest.fixture(scope="module")
def plain(options, tmp_path_factory) -> Selection:
    return nncift.select(**options, output=tmp_path_factory.mktemp("plain") / "run")


def subset(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "subset.jsonl").read_text().splitlines()]


def test_phases_by_a_column(options, plain, tmp_path: Path):
    run = tmp_path / "run"
    selection = nncift.select(**options, output=run, phases=3, difficulty="score", weights=True)
    scores = np.array([json.loads(line)["score"] for line in Path(options["pool"]).read_text().splitlines()])
    expected = arranged(plain, difficulty=scores[plain.indices], phases=3, weights=True)
    for name in ("indices", "ranks", "gains", "weights", "difficulty", "phase"):
        np.testing.assert_array_equal(getattr(selection, name), getattr(expected, name))
    rows = subset(run)
    assert [row["nncift_phase"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 3
    assert [row["nncift_difficulty"] for row in rows] == [row["score"] for row in rows]
    assert [row["nncift_weight"] for row in rows] == gain_weights(plain.gains)[selection.ranks - 1].tolist()
    assert sorted(row["nncift_rank"] for row in rows) == list(range(1, 12))
    loaded = Selection.load(run)
    assert loaded.dataset["id"][:] == [row["id"] for row in rows]
    assert [len(phase) for phase in loaded.phases] == [4, 4, 3]
    assert "Arranged: 3 phases from easy to hard by score (4 at 1 to " in summary_text(run)
    assert "effective sample size" in summary_text(run)
    page = (run / "report.html").read_text()
    assert "arranged: 3 phases from easy to hard by score" in page
    assert "best first" not in page
    stages = json.loads((run / "costs.json").read_text())["stages"]
    assert stages["difficulty"]["seconds"] > 0
    assert stages["difficulty"]["forward_tokens"] == 0


def test_without_options_the_subset_is_as_selected(options, plain, tmp_path: Path):
    run = tmp_path / "run"
    weighted = nncift.select(**options, output=run, weights=True)
    assert weighted.indices.tolist() == plain.indices.tolist()
    assert plain.weights is plain.difficulty is plain.phase is None
    assert not (run / "difficulty").exists()
    assert "Arranged: weights" in summary_text(run)
    scored = nncift.select(**options, output=tmp_path / "scored", difficulty="score")
    assert scored.indices.tolist() == plain.indices.tolist()
    assert "best first, difficulty by score 1 to" in summary_text(tmp_path / "scored")


def test_by_default_phases_go_by_ifd_of_the_selected_samples_alone(options, plain, tiny_model, tmp_path: Path):
    run, options = tmp_path / "run", {**options, "model": tiny_model, "device": "cpu"}
    selection = nncift.select(**options, output=run, phases=2)
    function, chosen = IFD(tiny_model, device="cpu"), load_pool(options["pool"]).select(plain.indices)
    expected = function(chosen, chosen.select([0]))[:, 0]
    by_row = dict(zip(plain.indices.tolist(), expected, strict=True))
    np.testing.assert_allclose(selection.difficulty, [by_row[i] for i in selection.indices], rtol=1e-4)
    assert selection.difficulty[selection.phase == 1].max() <= selection.difficulty[selection.phase == 2].min()
    tokens = json.loads((run / "costs.json").read_text())["stages"]["difficulty"]["forward_tokens"]
    assert tokens == function.tokens(chosen, chosen.select([0]))
    assert json.loads((run / "config.json").read_text())["difficulty"] == "ifd"
    planned = planning.plan(make_config(**options, phases=2, output=tmp_path / "planned"))
    assert planned.difficulty_tokens == pytest.approx(tokens, rel=0.3)
    assert planned.seconds["difficulty"] > 0
    assert planned.tokens is None  # of exact influence, which bm25 has none of
    assert f"Difficulty of the selected samples: about {planned.difficulty_tokens:,} LLM tokens" in str(planned)


def test_killed_in_the_stage_it_ends_with_the_same_bytes(options, asked, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nncift.labels.collect.BLOCK_PAIRS", 4)
    given = {**options, "phases": 3, "difficulty": OWN, "order": "curriculum", "weights": True}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    nncift.select(**given, output=whole)
    assert len(asked) == 11
    asked.clear()
    stops = [(name, when) for name in ("plan.json", "block-000001.parquet", "labels.parquet") for when in (0, 1)]
    stops = [(f"difficulty/{name}", when) for name, when in stops]
    for stop, after in (*stops, ("selection.parquet", 1), ("subset.jsonl", 0)):
        with stopped_at(killed / stop, after=bool(after)):
            nncift.select(**given, output=killed)
    nncift.select(**given, output=killed)
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert {path.relative_to(killed) for path in killed.rglob("*") if path.is_file()} == set(files)
    for name in (*ENDS, "difficulty/plan.json", "difficulty/labels.parquet"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert len(asked) <= 11 + 4  # the block that was killed before it was written is measured twice
    asked.clear()
    nncift.select(**given, output=killed)
    (killed / "subset.jsonl").unlink()
    nncift.select(**given, output=killed)
    assert (killed / "subset.jsonl").read_bytes() == (whole / "subset.jsonl").read_bytes()
    assert not asked


def test_choosing_again_costs_the_difficulty_alone_and_only_of_new_samples(options, asked, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    nncift.select(**options, output=first)
    nncift.select(options["pool"], from_run=first, phases=2, difficulty=OWN, output=second)
    assert len(asked) == 11
    stages = json.loads((second / "costs.json").read_text())["stages"]
    assert stages["difficulty"]["seconds"] > 0
    asked.clear()
    third = nncift.select(options["pool"], from_run=second, budget=15, output=tmp_path / "third")
    assert len(asked) == 4
    assert [len(phase) for phase in third.phases] == [8, 7]  # the option is taken over
    assert "difficulty: 11 values of its subset taken" in summary_text(tmp_path / "third")
    whole = nncift.select(**{**options, "budget": 15}, phases=2, difficulty=OWN, output=tmp_path / "whole")
    assert whole.indices.tolist() == third.indices.tolist()
    assert (tmp_path / "whole/subset.jsonl").read_bytes() == (tmp_path / "third/subset.jsonl").read_bytes()
    asked.clear()
    nncift.select(options["pool"], from_run=second, difficulty="score", output=tmp_path / "other")
    assert not LabelledPairs.load(tmp_path / "other/difficulty/labels.parquet").influence.max() > 5


def test_a_verified_subset_within_tokens_from_several_sources(options, tiny_model, tmp_path: Path):
    lines = Path(options["pool"]).read_text().splitlines(keepends=True)
    pools = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path, part in zip(pools, (lines[:30], lines[30:]), strict=True):
        path.write_text("".join(part))
    given = {**options, "pool": [str(path) for path in pools], "budget": "90tok", "model": tiny_model, "verify": 2}
    given |= {"influence": OWN, "labels": 20}
    plain = nncift.select(**given, output=tmp_path / "plain")
    selection = nncift.select(**given, output=tmp_path / "run", phases=2, difficulty="score", order="curriculum")
    assert sorted(selection.indices) == sorted(plain.indices)
    assert selection.by_source() == plain.by_source()
    assert np.all(np.diff(selection.difficulty) >= 0)
    assert selection.indices[np.argsort(selection.ranks)].tolist() == plain.indices.tolist()
    assert {row["nncift_source"] for row in subset(tmp_path / "run")} <= {"one.jsonl", "two.jsonl", *given["pool"]}
    few = nncift.select(**given, output=tmp_path / "few", phases=1000, difficulty="score")
    assert [len(phase) for phase in few.phases] == [1] * len(few)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"difficulty": "scor"}, r"row 1, field 'scor': `difficulty` names no such column: did you mean 'score'\?"),
        ({"difficulty": "bm25"}, "`difficulty` bm25 gives values that depend on the target: give one of .*perplexity"),
        ({"difficulty": "lossval"}, "lossval gives values that depend on all samples together"),
        ({"difficulty": "response"}, "row 1, field 'response': the difficulty is not a number"),
        ({"difficulty": "score", "phases": 12}, "`phases` 12 is more than the 11 selected samples"),
        ({"difficulty": "os:path"}, "os:path is neither a class nor a factory"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(given, message, options, tmp_path: Path):
    with pytest.raises((ConfigError, DataError), match=message):
        nncift.select(**options, output=tmp_path / "run", **given)
    assert not (tmp_path / "run/labels").exists()


@pytest.mark.parametrize("given", [{"phases": 1}, {"order": "random"}, {"difficulty": ""}, {"weights": "yes"}])
def test_values_that_are_none_of_the_options(given):
    with pytest.raises(ConfigError, match=f"`{next(iter(given))}` is"):
        Config("pool.jsonl", **given)


@pytest.mark.parametrize("value", [None, True, "high", float("nan"), 1e300, [1], "\x1b[31m"])
def test_hostile_scores_are_refused_by_row(value, options, tmp_path: Path):
    rows = [{**row, "\x1b[2Jscore": 1.5} for row in word_rows(60)]
    rows[40]["\x1b[2Jscore"] = value
    pool = write_rows(tmp_path / "pool.jsonl", rows)
    with pytest.raises(DataError, match=r"row 41.*the difficulty is not a number: correct or drop the row") as refused:
        nncift.select(**{**options, "pool": pool}, output=tmp_path / "run", difficulty="\x1b[2Jscore", phases=2)
    assert "\x1b" not in str(refused.value)


def test_numbers_as_text_and_a_hostile_name(options, tmp_path: Path):
    rows = [{**row, "\x1b[2J<b>": str(i % 7)} for i, row in enumerate(word_rows(60))]
    pool = write_rows(tmp_path / "pool.jsonl", rows)
    run = tmp_path / "run"
    selection = nncift.select(**{**options, "pool": pool}, output=run, difficulty="\x1b[2J<b>", order="curriculum")
    assert selection.difficulty.tolist() == sorted(i % 7 for i in selection.indices)
    assert selection.phase is None
    for text in (summary_text(run), (run / "report.html").read_text()):
        assert "\x1b" not in text
    assert "<b>" not in (run / "report.html").read_text().partition("arranged: ")[2].partition("</p>")[0]
