"""Runs with `labels` 0: exact functions as ever, gradient-sketch in place of those that would be estimated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import nncift
import nncift.pipeline.plan as planning
import references
from builders import EstimatedBM25, word_rows, write_rows
from nncift.cli import main
from nncift.data.pool import load_pool
from nncift.errors import ConfigError
from nncift.labels.pairs import LabelledPairs
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.report.terminal import summary_text
from nncift.run.storage.checksums import CHECKSUMS
from nncift.run.storage.files import write_json

ENDS = ("influence.npy", "selection.parquet", "subset.jsonl")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    sides = {"pool": (24, 0), "target": (5, 100)}
    return {side: write_rows(folder / f"{side}.jsonl", word_rows(n, start)) for side, (n, start) in sides.items()}


@pytest.fixture(scope="module")
def common(tiny_model, small_encoder) -> dict:
    return {"model": tiny_model, "encoder": small_encoder, "device": "cpu", "budget": 5}


@pytest.fixture(scope="module")
def sketched(files, common, tmp_path_factory) -> Path:
    """A run by gradient-sketch, which needs no labels."""
    run = tmp_path_factory.mktemp("runs") / "sketched"
    nncift.select(files["pool"], target=files["target"], output=run, **common)
    return run


@pytest.mark.parametrize("influence", ["less", EstimatedBM25()])
def test_gradient_sketch_stands_in_for_what_would_be_estimated(files, common, sketched, tmp_path: Path, influence):
    run = tmp_path / "run"
    options = {"target": files["target"], "labels": 0, "influence": influence, "output": run, **common}
    first = nncift.select(files["pool"], **options)
    for name in ENDS:
        assert (run / name).read_bytes() == (sketched / name).read_bytes(), name
    assert not any((run / name).exists() for name in ("labels", "network", "features", "fidelity.json"))
    name = influence if isinstance(influence, str) else influence.name
    in_place = f"gradient-sketch, exact for every pair (120), in place of {name}, which labels 0 does not compute"
    assert in_place in summary_text(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"nothing of {name} was computed" in page
    assert f"gradient-sketch, in place of {name}" in page
    assert json.loads((run / "config.json").read_text())["labels"] == "0"
    assert list(nncift.select(files["pool"], **options).indices) == list(first.indices)  # resumes
    if isinstance(influence, str):
        assert FinishedRun.open(run).matrix().shape == (24, 5)


def test_exact_functions_are_computed_as_without_it(files, common, sketched, tmp_path: Path):
    for name, influence in (("default", None), ("bm25", "bm25")):
        run = tmp_path / name
        nncift.select(files["pool"], target=files["target"], labels=0, influence=influence, output=run, **common)
        text = summary_text(run)
        assert f"Influence: {influence or 'gradient-sketch'}, exact for every pair (120): nothing was estimated" in text
    assert (tmp_path / "default/influence.npy").read_bytes() == (sketched / "influence.npy").read_bytes()


def test_a_shortlist_of_gradient_sketch_is_measured_by_the_function_that_was_asked_for(
    files, common, sketched, tmp_path: Path
):
    run = tmp_path / "run"
    options = {"target": files["target"], "labels": 0, "verify": 2, "influence": "builders:EstimatedCosine"}
    selection = nncift.select(files["pool"], output=run, **options, **common)
    sketch = FinishedRun.open(sketched).matrix().block(slice(None), slice(None))
    shortlist = np.sort(best(sketch, 10))
    function = nncift.EmbeddingSimilarity(common["encoder"], device="cpu")
    pool, target = load_pool(files["pool"]), load_pool(files["target"])
    function.prepare(pool, target, None)
    exact = np.asarray(function(pool, target))[shortlist]
    assert selection.indices.tolist() == shortlist[best(exact, 5)].tolist()
    np.testing.assert_allclose(selection.influence, exact[best(exact, 5)].mean(axis=1), rtol=1e-5)
    facts = json.loads((run / "verify/verify.json").read_text())
    by_sketch = [shortlist.tolist().index(row) for row in best(sketch, 5)]
    alone = facts["value"]["exact_of_the_choice_by_estimates"]
    assert alone == pytest.approx(exact[by_sketch].max(axis=0).mean(), rel=1e-5)
    assert (facts["samples"], facts["targets"]) == (10, 5)
    assert (run / "influence.npy").read_bytes() == (sketched / "influence.npy").read_bytes()
    text, page = summary_text(run), (run / "report.html").read_text(encoding="utf-8")
    assert "Influence: shortlist by gradient-sketch, exact for every pair (120); measured by estimated-cosine" in text
    assert "Verified: estimated-cosine on a shortlist of 10 samples and 5 targets" in text
    assert "Shortlist by gradient-sketch, measured by estimated-cosine" in page
    assert not any((run / name).exists() for name in ("labels", "network", "features", "fidelity.json"))
    assert FinishedRun.open(run).matrix().shape == (24, 5)
    plan = planning.plan(make_config(files["pool"], output=tmp_path / "plan", **options, **common | {"budget": "5"}))
    assert "the place of builders:EstimatedCosine; estimated-cosine measures a shortlist of 10 samples" in str(plan)
    assert plan.pairs == 120
    assert {"influence", "verify"} <= set(plan.seconds)


def best(influence: np.ndarray, size: int) -> np.ndarray:
    """The choice by coverage and ranks, plainly greedy, best first."""
    chosen: list[int] = []
    for _ in range(size):
        rest = [row for row in range(len(influence)) if row not in chosen]
        chosen.append(max(rest, key=lambda row: references.coverage_and_ranks(influence, [*chosen, row])))
    return np.array(chosen)


def test_less_measures_a_shortlist_and_a_killed_run_resumes(files, common, tmp_path: Path):
    run = tmp_path / "run"
    options = {"target": files["target"], "labels": 0, "verify": 2, "influence": "less", "output": run, **common}
    options["influence_options"] = {"training.epochs": 1, "dimension": 64}
    first = nncift.select(files["pool"], **options)
    measured = LabelledPairs.load(run / "verify/choice/labels.parquet")
    assert len(measured) == 10 * 5
    assert set(first.indices.tolist()) <= set(measured.pool_index.tolist())
    described = [json.loads((run / name).read_text())["name"] for name in ("function.json", "verify/function.json")]
    assert described == ["gradient-sketch", "less"]
    assert not list(run.rglob("epoch-*"))
    before = {name: (run / name).read_bytes() for name in ENDS}
    for lost in (*ENDS[1:], "verify/verify.json"):
        (run / lost).unlink()
    nncift.select(files["pool"], **options)
    assert {name: (run / name).read_bytes() for name in ENDS} == before
    made = make_config(from_run=run, budget="6")
    assert (made.labels, made.verify, made.influence_options["dimension"]) == ("0", 2, 64)


def test_a_pool_that_is_its_own_target_is_not_measured_on_the_shortlist(files, common, tmp_path: Path):
    run = tmp_path / "run"
    options = {"labels": 0, "verify": 2, "influence": "builders:EstimatedCosine", "output": run, **common}
    selection = nncift.select(files["pool"], **options)
    plan = json.loads((run / "verify/choice/plan.json").read_text())
    assert (len(plan["rows"]), len(plan["columns"])) == (10, 14)
    assert not set(plan["rows"]) & set(plan["columns"])
    assert set(selection.indices.tolist()) <= set(plan["rows"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"influence": "selectit"}, "selectit is one score of a sample .* so `labels` 0 leaves it without an estimate"),
        ({"influence": "lossval"}, "lossval is one score"),
        (
            {"influence": "less", "influence_options": {"sharpness": 3}},
            "`labels` 0 computes gradient-sketch in place of less, so `influence_options`",
        ),
        ({"influence": "bm25", "verify": 2}, "bm25 is computed exactly for every pair, so `verify` 2"),
        ({"influence": "selectit", "verify": 2}, "selectit is one score"),
        ({"features": "sentence"}, "gradient-sketch is computed exactly for every pair, so `features` sentence has no"),
        ({"influence": "less", "recipe": "paper"}, "gradient-sketch is computed exactly .* so `recipe` paper has no"),
    ],
)
def test_options_without_a_use_are_refused(files, common, tmp_path: Path, options, message):
    with pytest.raises(ConfigError, match=message):
        nncift.select(files["pool"], labels=0, output=tmp_path / "run", **common, **options)
    assert not (tmp_path / "run").exists()


def test_the_dry_run_names_what_is_computed(files, common, tmp_path: Path):
    given = {**common, "budget": "5", "target": files["target"], "output": tmp_path / "plan"}
    plan = planning.plan(make_config(files["pool"], labels=0, influence="less", **given))
    assert "Labels: none; gradient-sketch is exact for every pair and takes the place of less" in str(plan)
    assert (plan.pairs, plan.all_pairs) == (120, 120)


def test_from_an_earlier_run(files, common, sketched, tmp_path: Path):
    """The options of an estimate, and those of a function that is not computed, are left behind."""
    config = json.loads((sketched / "config.json").read_text())
    for name, own, kept in (
        ("less", {"influence": "less", "influence_options": {"sharpness": 3.0}, "labels": "60"}, ("less", None)),
        ("object", {"influence": '{"name": "mine"}', "labels": "60", "recipe": "paper"}, (None, None)),
        ("sketch", {"influence_options": {"sharpness": 3.0}}, (None, {"sharpness": 3.0})),
        ("earlier version", {"network": "pretrained", "features": "sentence,lm"}, (None, None)),
    ):
        shutil.copytree(sketched, tmp_path / name)
        (tmp_path / name / CHECKSUMS).unlink()  # of the run as it was
        write_json(tmp_path / name / "config.json", {**config, **own})
        made = make_config(from_run=tmp_path / name, labels=0)
        assert (made.labels, made.network, made.recipe, made.features) == ("0", None, "process", None), name
        assert (made.influence, made.influence_options) == kept, name
    made = make_config(from_run=tmp_path / "less", network="pretrained")
    assert (made.labels, made.network, made.influence) == (None, "pretrained", None)


def test_a_comparison_has_choices_without_labels_anyway(files, capsys, tmp_path: Path):
    options = ["--influence", "less", "--labels", "0", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="2"):
        main(["compare", files["pool"], "--test", files["target"], *options])
    assert "--labels 0 estimates nothing, and gradient-sketch" in capsys.readouterr().err
