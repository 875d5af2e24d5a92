"""Runs whose influence is exact for every pair: no labels, no network, the choice is that by the function itself."""

from __future__ import annotations

import dataclasses
import html
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import nncift
import nncift.pipeline.plan as planning
from builders import EstimatedBM25, word_rows, write_rows
from nncift.cli import main
from nncift.data.pool import load_pool
from nncift.errors import ConfigError, DataError, RunError
from nncift.influence.base import InfluenceFunction, Setup, Traits
from nncift.influence.bm25 import BM25
from nncift.influence.catalogue import BUILT_IN, is_factored
from nncift.influence.embedding_similarity import EmbeddingSimilarity
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.pipeline.configuration.configure import make_config
from nncift.report.html import write_report
from nncift.report.terminal import summary_text
from nncift.run.files import write_json
from nncift.run.registry import resolve
from nncift.run.repair import repair
from pipeline_runs import stopped_at

FACTORED = [name for name in BUILT_IN if is_factored(name)]
DRAWN = ["random", "stratified-random"]
SCORES = ["ifd", "perplexity"]
PAIRWISE = [name for name in FACTORED if name not in (*DRAWN, *SCORES)]  # scores have an objective of their own
ENDS = ("influence.npy", "selection.parquet", "subset.jsonl")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder, sides = tmp_path_factory.mktemp("files"), {"pool": (40, 0), "target": (6, 100), "known": (9, 300)}
    chat = [{"role": "user", "content": "Say river"}, {"role": "assistant", "content": "river"}]
    chat = {"messages": [*chat, {"role": "user", "content": "And stone"}, {"role": "assistant", "content": "stone"}]}
    made = {side: write_rows(folder / f"{side}.jsonl", word_rows(n, start)) for side, (n, start) in sides.items()}
    return made | {"chats": write_rows(folder / "chats.jsonl", [chat, *word_rows(20)])}


@pytest.fixture(scope="module")
def common(tiny_model, minilm) -> dict:
    return {"model": tiny_model, "encoder": minilm, "device": "cpu", "budget": 5}


def function_of(name: str, common: dict) -> InfluenceFunction:
    setup = Setup((ModelSpec(common["model"], device="cpu"),), EncoderSpec(common["encoder"], device="cpu"))
    return resolve(name, BUILT_IN, "nncift.influence").build(setup)


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_choice_is_that_by_the_functions_own_values(files, common, tmp_path: Path, name):
    run = tmp_path / "run"
    selection = nncift.select(files["pool"], target=files["target"], influence=name, output=run, **common)
    pool, target, function = load_pool(files["pool"]), load_pool(files["target"]), function_of(name, common)
    function.check(pool, target)
    function.prepare(pool, target)
    exact = function(pool, target)
    np.testing.assert_allclose(np.load(run / "influence.npy"), exact.mean(axis=1), rtol=1e-4, atol=1e-6)
    covered, eta = np.zeros(6), 6 / 5  # greedy mutual information, entry by entry
    for row, gain in zip(selection.indices, selection.gains, strict=True):
        positive = np.maximum(exact, 0)
        gains = np.maximum(positive, covered).sum(axis=1) - covered.sum() + eta * positive.max(axis=1)
        gains[selection.indices[: list(selection.indices).index(row)]] = -np.inf
        assert gains[row] == pytest.approx(gains.max(), rel=1e-4)
        assert gain == pytest.approx(gains[row], rel=1e-4)
        covered = np.maximum(covered, positive[row])
    assert f"Influence: {name}, exact for every pair (240)" in summary_text(run)
    rows = [json.loads(line) for line in (run / "subset.jsonl").read_text().splitlines()]
    measured = [row["nncift_influence"] for row in rows]
    np.testing.assert_allclose(measured, exact[selection.indices].mean(axis=1), rtol=1e-4, atol=1e-6)
    assert not any((run / part).exists() for part in ("labels", "network", "features", "fidelity.json"))
    assert list(json.loads((run / "costs.json").read_text())["stages"]) == ["read", "influence", "select", "report"]
    tokens = json.loads((run / "costs.json").read_text())["stages"]["influence"]["forward_tokens"]
    assert tokens == (function.tokens(pool, target) or 0)
    before = state(run)
    again = nncift.select(files["pool"], target=files["target"], influence=name, output=run, **common)
    np.testing.assert_array_equal(again.indices, selection.indices)
    assert {n: c for n, c in state(run).items() if n in ENDS or "vectors" in n} == {
        n: c for n, c in before.items() if n in ENDS or "vectors" in n
    }


@pytest.mark.parametrize("name", PAIRWISE)
def test_streamed_is_held(files, common, tmp_path: Path, monkeypatch, name):
    """Without a target, over known samples and turns of chats."""
    given = {**common, "influence": name, "known": files["known"], "turns": "all"}
    held = nncift.select(files["chats"], output=tmp_path / "held", **given)
    monkeypatch.setattr("nncift.pipeline.choosing.exact.HELD", 0)
    monkeypatch.setattr("nncift.matrix.selectors.TILE", 50)
    streamed = nncift.select(files["chats"], output=tmp_path / "streamed", **given)
    np.testing.assert_allclose(streamed.gains, held.gains, rtol=1e-4, atol=1e-5)
    pool, known = load_pool(files["chats"], turns="all"), load_pool(files["known"])
    function = function_of(name, common)
    function.check(pool, pool)
    from datasets import concatenate_datasets

    function.prepare(concatenate_datasets([pool, known]), pool)  # all on one scale
    covered = function(known, pool).max(axis=0)
    np.testing.assert_allclose(np.load(tmp_path / "held/known.npy"), covered, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "held/summary.json").read_text())["known"]["rows"] == 9


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_every_sample_are_computed(files, common, tmp_path: Path, name):
    run = tmp_path / "run"
    given = {**common, "influence": name, "turns": "all", "output": run}
    selection = nncift.select(files["chats"], **given)
    pool, function = load_pool(files["chats"], turns="all"), function_of(name, common)
    function.check(pool, pool)
    function.prepare(pool, pool)
    exact = function(pool, pool.select([0]))[:, 0]
    np.testing.assert_allclose(np.load(run / "influence.npy"), exact, rtol=1e-4)
    assert sorted(selection.indices) == sorted(np.argsort(-exact)[:5])
    assert selection.objective == "mean-influence"
    assert not any((run / part).exists() for part in ("labels", "network", "features", "fidelity.json"))
    assert f"Influence: {name}, exact for every pair (441)" in summary_text(run)
    costs = json.loads((run / "costs.json").read_text())["stages"]
    assert costs["influence"]["forward_tokens"] == function.tokens(pool, pool)
    assert list(nncift.select(files["chats"], **given).indices) == list(selection.indices)
    grown = nncift.select(from_run=run, append=files["known"], output=tmp_path / "grown", budget=5, device="cpu")
    more = json.loads((tmp_path / "grown/costs.json").read_text())["stages"]
    assert 0 < more["influence"]["forward_tokens"] < costs["influence"]["forward_tokens"]
    assert len(grown) == 5


@dataclasses.dataclass
class Loud(InfluenceFunction):
    """Samples whose first target has higher values than the others."""

    name = "loud"
    traits = Traits(factored=True)

    def vectors(self, rows) -> np.ndarray:
        number = np.array([int(text.split()[-1]) for text in rows["prompt"]], np.float32)
        return np.stack([np.ones_like(number), number % 7], axis=1)

    def target_vectors(self, rows) -> np.ndarray:
        values = np.full((len(rows), 2), 0.1, np.float32)
        values[:, 0] = np.linspace(2, 1, len(rows))
        return values


@pytest.mark.parametrize("held", [1 << 20, 0])
def test_the_targets_that_a_choice_serves_are_reported(files, common, tmp_path: Path, monkeypatch, held):
    monkeypatch.setattr("nncift.pipeline.choosing.exact.HELD", held)
    given = {**common, "influence": Loud(), "output": tmp_path / "run"}
    selection = nncift.select(files["pool"], target=files["target"], **given)
    assert vars(selection.served) == {
        **{"targets": 6, "selected": 5, "served": 1, "target": 0, "most": 5.0},
        **{"covered": 6, "covering": 1, "widest": 6},
    }
    warning = "5 of the 5 selected samples have the same top target, 'row-100' (100.0 %)"
    assert warning in summary_text(tmp_path / "run")
    assert warning in html.unescape((tmp_path / "run/report.html").read_text()).replace("\u00a0", " ")
    assert json.loads((tmp_path / "run/summary.json").read_text())["served"]["id"] == "row-100"
    again = nncift.select(files["pool"], target=files["target"], **given)
    assert again.served == selection.served


@pytest.mark.parametrize("budget", [5, "300tok"])
def test_the_certificate_of_a_choice_is_reported(files, common, tmp_path: Path, budget):
    given = {**common, "influence": Loud(), "output": tmp_path / "run", "budget": budget}
    selection = nncift.select(files["pool"], target=files["target"], **given)
    found = selection.certificate
    assert (found.value, found.among) == (selection.value, len(selection.pool))
    assert 1 - 1 / np.e < found.share <= 1
    line = f"at least {found.percent} of the optimal value (upper bound {found.bound:.4g})"
    assert line.replace("\u00a0", " ") in summary_text(tmp_path / "run")
    assert line in html.unescape((tmp_path / "run/report.html").read_text())
    assert json.loads((tmp_path / "run/summary.json").read_text())["certificate"]["share"] == found.share
    again = nncift.select(files["pool"], target=files["target"], **given)
    assert again.certificate == found


def test_a_pool_as_its_own_target_serves_others(files, common, tmp_path: Path):
    selection = nncift.select(files["pool"], influence="embedding-similarity", output=tmp_path / "run", **common)
    pool, function = load_pool(files["pool"]), function_of("embedding-similarity", common)
    exact = function(pool, pool)
    np.fill_diagonal(exact, -1)
    best = exact[selection.indices].argmax(axis=1)
    assert selection.served.served == len(set(best.tolist()))
    assert selection.served.most == max(np.bincount(best))


@pytest.mark.parametrize("name", ["response-similarity", "bm25"])
def test_killed_at_every_file_it_ends_with_the_same_bytes(files, common, tmp_path: Path, monkeypatch, name):
    monkeypatch.setattr("nncift.run.shards.SHARD", 16)
    given = {**common, "target": files["target"], "influence": name}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    nncift.select(files["pool"], output=whole, **given)
    vectors = sorted(path.relative_to(whole).as_posix() for path in (whole / "vectors").iterdir())
    shards = [f"vectors/prepared/{name}-{k:06d}.safetensors" for k in (0, 2)] if name != "bm25" else []
    first = [file for file in vectors if file.endswith("notes.json")]
    then = sorted((file for file in vectors if file not in first), key=lambda file: "statistics" not in file)
    stops = ["function.json", *first, *shards, *then]
    for stop in (*stops, "influence.npy", "selection.parquet", "summary.json"):
        for after in (0, 1):
            with stopped_at(killed / stop, after=bool(after)):
                nncift.select(files["pool"], output=killed, **given)
    nncift.select(files["pool"], output=killed, **given)
    assert state(killed).keys() == state(whole).keys()
    for file in (*ENDS, *vectors):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file


def test_vectors_are_taken_where_they_hold(files, common, tmp_path: Path):
    options = {**common, "influence": "embedding-similarity"}
    nncift.select(files["pool"], target=files["target"], output=tmp_path / "first", **options)

    def notes(folder: Path) -> dict[str, str]:
        return json.loads((folder / "taken.json").read_text())["notes"]

    again = nncift.select(files["pool"], from_run=tmp_path / "first", budget=7, output=tmp_path / "second")
    fresh = nncift.select(files["pool"], target=files["target"], output=tmp_path / "fresh", **options | {"budget": 7})
    np.testing.assert_array_equal(again.indices, fresh.indices)
    assert notes(tmp_path / "second")["vectors pool"] == "vectors of the pool: taken"
    nncift.select(files["pool"], from_run=tmp_path / "first", target=files["known"], output=tmp_path / "third")
    assert notes(tmp_path / "third")["vectors pool"] == "vectors of the pool: taken"
    assert notes(tmp_path / "third")["vectors target"] == "vectors of the target: computed anew (other target samples)"
    nncift.select(files["pool"], from_run=tmp_path / "first", influence="bm25", output=tmp_path / "fourth")
    assert "computed anew (the influence function differs" in notes(tmp_path / "fourth")["vectors pool"]
    nncift.select(files["pool"], from_run=tmp_path / "fourth", target=files["known"], output=tmp_path / "fifth")
    assert "computed anew (other target samples)" in notes(tmp_path / "fifth")["vectors pool"]  # it is relative


def test_an_earlier_run_that_estimated_leaves_its_labels(files, common, tmp_path: Path):
    options = {**common, "influence": "builders:EstimatedBM25", "labels": 60, "features": "sentence", "seed": 3}
    nncift.select(files["pool"], output=tmp_path / "estimated", **options)
    nncift.select(files["pool"], from_run=tmp_path / "estimated", influence=BM25(), output=tmp_path / "exact")
    config = json.loads((tmp_path / "exact/config.json").read_text())
    assert (config["labels"], config["features"], config["seed"]) == (None, None, 3)
    back = {"influence": EstimatedBM25(), "labels": 60, "features": "sentence"}
    nncift.select(files["pool"], from_run=tmp_path / "exact", output=tmp_path / "back", **back)
    assert (tmp_path / "back/network").exists()


@pytest.mark.parametrize(
    "option",
    [
        {"labels": 60},
        {"labels": "auto"},
        {"probes": 2},
        {"verify": 2},
        {"recipe": "paper"},
        {"features": "sentence"},
    ],
)
def test_options_of_an_estimate_are_refused(files, common, tmp_path: Path, option):
    (name, value) = next(iter(option.items()))
    message = f"bm25 is computed exactly for every pair, so `{name}` {value} has no use: leave it out"
    with pytest.raises(ConfigError, match=message):
        nncift.select(files["pool"], influence="bm25", output=tmp_path / "run", **common, **option)
    assert not (tmp_path / "run").exists()


def test_labels_for_the_default_name_a_function_that_is_estimated(files, common, tmp_path: Path):
    message = "gradient-sketch is computed .* so `labels` 60 has no use: leave it out, or give `influence` less"
    with pytest.raises(ConfigError, match=message):
        nncift.select(files["pool"], labels=60, output=tmp_path / "run", **common)


def test_a_network_beside_an_exact_function(files, common, tmp_path: Path):
    options = {**common, "influence": "builders:EstimatedBM25", "labels": 60}
    nncift.select(files["pool"], output=tmp_path / "fitted", **options)
    with pytest.raises(ConfigError, match="bm25 is computed exactly for every pair, so `labels` 60 has no use"):
        nncift.select(files["pool"], influence="bm25", network=tmp_path / "fitted", labels=60, **common)


def test_the_folder_of_a_run_that_estimated_is_refused(files, common, tmp_path: Path):
    """As of an earlier version, which had labels for every function."""
    nncift.select(files["pool"], influence="bm25", output=tmp_path / "run", **common)
    (tmp_path / "run/labels").mkdir()
    with pytest.raises(ConfigError, match="holds a run that estimated bm25 from labels; now it is exact"):
        nncift.select(files["pool"], influence="bm25", output=tmp_path / "run", **common)


def test_in_the_laboratory_it_can_be_estimated_nevertheless(files, common, tmp_path: Path):
    function = BM25()
    function.traits = dataclasses.replace(function.traits, factored=False)
    nncift.select(files["pool"], influence=function, labels=60, output=tmp_path / "run", **common)
    assert (tmp_path / "run/network").exists()


def test_report_terminal_and_plan_say_that_it_is_exact(files, common, tmp_path: Path, capsys):
    run = tmp_path / "run"
    given = {**common, "influence": "embedding-similarity"}
    nncift.select(files["pool"], output=run, **given)
    text, page = summary_text(run), (run / "report.html").read_text(encoding="utf-8")
    assert "Influence: embedding-similarity, exact for every pair (1,600): nothing was estimated" in text
    assert "Influence is exact for every pair" in page
    assert "Embedding map" in page
    assert not any(word in page for word in ("fidelity-title", "labelled exactly", "Estimated value"))
    again = write_report(run).read_bytes()
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(run)])
    assert (run / "report.html").read_bytes() == again
    nncift.select(files["pool"], output=tmp_path / "words", influence="bm25", **common)
    assert "Embedding map" not in (tmp_path / "words/report.html").read_text(encoding="utf-8")
    plan = planning.plan(make_config(files["pool"], output=tmp_path / "plan", **{**given, "budget": "5"}))
    assert (plan.pairs, plan.all_pairs, plan.exact_seconds, set(plan.seconds)) == (
        *(1600, 1600, None),
        {"influence", "select"},
    )
    assert "Labels: none; embedding-similarity is exact for every pair\n" in str(plan)
    assert "Measure exactly: 1,600 of 1,600 pairs (100.0 %)" in str(plan)
    whole = planning.plan(
        make_config(files["pool"], known=files["known"], **common | {"budget": "5", "influence": "bm25"})
    )
    assert whole.known == 9


def test_damaged_vectors_are_computed_again(files, common, tmp_path: Path):
    run, given = tmp_path / "run", {**common, "influence": "response-similarity"}
    nncift.select(files["pool"], output=run, **given)
    before = {name: content for name, content in state(run).items() if name in ENDS or "vectors" in name}
    (run / "vectors/pool.npy").write_bytes(b"broken")
    with pytest.raises(RunError, match="nncift repair"):
        nncift.select(files["pool"], output=run, **given)
    assert repair(run) == ["vectors/pool.npy was damaged and is removed: the same command writes it again."]
    nncift.select(files["pool"], output=run, **given)
    assert {name: content for name, content in state(run).items() if name in before} == before
    for name in ("function.json", "models.json"):
        lost = (run / name).read_bytes()
        (run / name).unlink()
        nncift.select(files["pool"], output=run, **given)
        assert (run / name).read_bytes() == lost
    (run / "vectors/notes.json").write_bytes(b"broken")
    assert "the report lacks the number of truncated samples" in repair(run)[0]
    nncift.select(files["pool"], output=run, **given)


def test_truncated_texts_are_reported(common, tmp_path: Path):
    rows = [{"prompt": f"river {k} " * (200 if k < 6 else 1), "response": "stone"} for k in range(12)]
    pool = write_rows(tmp_path / "pool.jsonl", rows)
    nncift.select(pool, influence="embedding-similarity", output=tmp_path / "run", **common)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["encoder"] == {"name": common["encoder"], "truncated": 6, "width": 384}
    assert "6 of 12 texts exceed the encoder's maximum length and were truncated." in summary["warnings"]
    assert json.loads((tmp_path / "run/vectors/notes.json").read_text())["cut"] == sorted(
        row["id"] for row in load_pool(pool) if len(row["prompt"]) > 100
    )
    nncift.select(pool, from_run=tmp_path / "run", budget=3, output=tmp_path / "again")
    assert json.loads((tmp_path / "again/summary.json").read_text())["encoder"] == summary["encoder"]


class Broken(EmbeddingSimilarity):
    """Has no vector of some samples."""

    name = "broken"

    def vectors(self, rows):
        found = super().vectors(rows)
        found[[text.endswith(" 7") for text in rows["prompt"]]] = np.nan
        return found


class NoVectors(InfluenceFunction):
    """Says that it has vectors, and has none."""

    name = "no-vectors"
    traits = Traits(factored=True)

    def __call__(self, pool_rows, target_rows):
        return np.zeros((len(pool_rows), len(target_rows)), np.float32)


def test_vectors_that_cannot_be_used(files, common, tmp_path: Path):
    with pytest.raises(DataError, match="the vector of 'row-7' by broken is not finite"):
        nncift.select(files["pool"], influence=f"{__name__}:Broken", output=tmp_path / "run", **common)
    with pytest.raises(ConfigError, match="NoVectors is incomplete: give it a `name`, `traits` and `vectors`"):
        nncift.select(files["pool"], influence=NoVectors(), output=tmp_path / "none", **common)


def test_phases_and_weights_of_an_exact_choice(files, common, tmp_path: Path):
    given = {**common, "influence": "bm25", "phases": 2, "weights": True}
    selection = nncift.select(files["pool"], output=tmp_path / "run", **given)
    assert selection.phase is not None
    assert selection.weights.mean() == pytest.approx(1)
    assert not (tmp_path / "run/labels").exists()


def test_another_precision_is_not_mixed_in(files, common, tmp_path: Path):
    run, given = tmp_path / "run", {**common, "influence": "representation-similarity"}
    nncift.select(files["pool"], target=files["target"], output=run, **given)
    function = json.loads((run / "function.json").read_text())
    write_json(run / "function.json", function | {"dtype": "bfloat16"})
    nncift.select(files["pool"], target=files["target"], output=run, **given)  # nothing is left to compute
    (run / "vectors/target.npy").unlink()
    with pytest.raises(ConfigError, match=r"bfloat16.*`dtype`"):
        nncift.select(files["pool"], target=files["target"], output=run, **given)
    shutil.rmtree(run)
