"""Probes of every sample and the measured shortlist: in a run, and against their definitions."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nncift
import nncift.pipeline.plan
from builders import word_rows, write_rows
from nncift.config import Config
from nncift.data.pool import load_pool
from nncift.errors import ConfigError
from nncift.estimator.network import InfluenceNetwork
from nncift.features.features import SampleSet
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.matrix.matrix import InfluenceMatrix
from nncift.pipeline.choosing.choose import pick
from nncift.pipeline.choosing.verify import best_influence, first_measured, overlaid
from nncift.pipeline.context import Run
from nncift.report.terminal import summary_text
from nncift.run.folder.folder import RunFolder
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.relevance import FacilityLocationReciprocalRank
from nncift.selection.objectives.table import ObjectiveOptions

EVERY = slice(None)


@pytest.fixture
def data(tmp_path: Path) -> tuple[str, str]:
    pool = write_rows(tmp_path / "pool.jsonl", word_rows(60))
    return pool, write_rows(tmp_path / "target.jsonl", word_rows(12, 200))


@pytest.fixture
def options(small_encoder, tiny_model) -> dict:
    common = {"encoder": small_encoder, "model": tiny_model, "device": "cpu", "budget": 6, "labels": 120}
    return {**common, "influence": "builders:EstimatedCosine"}


def exact_values(pool: str, target: str | None, options: dict) -> np.ndarray:
    """Influence of all pairs by the influence function itself."""
    function = nncift.EmbeddingSimilarity(options["encoder"], device="cpu")
    samples, targets = load_pool(pool), load_pool(target or pool)
    function.prepare(samples, targets, None)
    return np.asarray(function(samples, targets))


def test_a_shortlist_of_the_whole_pool_gives_the_exact_choice(data, options, tmp_path: Path):
    pool, target = data
    run = tmp_path / "run"
    selection = nncift.select(pool, target=target, output=run, verify=10, **options)
    exact = exact_values(pool, target, options)
    best = lazy_greedy(FacilityLocationReciprocalRank(InfluenceMatrix.from_array(exact)), 6)
    assert selection.indices.tolist() == best.indices.tolist()
    np.testing.assert_allclose(selection.influence, exact[selection.indices].mean(axis=1), rtol=1e-5)
    facts = json.loads((run / "verify/verify.json").read_text())
    assert (facts["samples"], facts["targets"], facts["pairs"]) == (60, 12, 720)
    covered = exact[selection.indices].max(axis=0)
    assert facts["value"]["exact"] == pytest.approx(np.maximum(covered, 0).mean(), rel=1e-5)
    assert facts["value"]["exact"] != facts["value"]["estimated"]
    assert json.loads((run / "costs.json").read_text())["stages"]["verify"]["seconds"] > 0
    assert "Verified: exact influence of a shortlist of 60 samples on 12 targets" in summary_text(run)
    assert "Verification" in (run / "report.html").read_text()
    assert selection.certificate.among == 60
    assert selection.certificate.bound >= selection.value
    rows = [json.loads(line) for line in (run / "subset.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"row-{i}" for i in selection.indices]


def test_only_the_shortlist_and_some_targets_are_measured(data, options, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nncift.pipeline.choosing.verify.VERIFY_TARGETS", 5)
    run = tmp_path / "run"
    selection = nncift.select(data[0], target=data[1], output=run, verify=2, **options)
    parts = [LabelledPairs.load(run / "verify" / name / "labels.parquet") for name in ("choice", "more-1", "more-2")]
    assert [len(part) for part in parts] == [6 * 5, 3 * 5, 3 * 5]
    measured = LabelledPairs.joined(parts)
    rows, columns = np.unique(measured.pool_index), np.unique(measured.target_index)
    assert (len(rows), len(columns)) == (12, 5)
    assert set(selection.indices.tolist()) <= set(rows.tolist())
    labelled = json.loads((run / "labels/plan.json").read_text())["columns"]
    assert set(columns.tolist()) <= set(labelled)  # those that are known come first


def test_the_next_part_maximises_the_gain_over_what_was_measured(data, options, tmp_path: Path):
    run = tmp_path / "run"
    nncift.select(data[0], target=data[1], output=run, verify=2, **options)
    features = [np.load(run / "features" / f"{side}.npy") for side in ("pool", "target")]
    parts = [LabelledPairs.load(run / path / "labels.parquet") for path in ("labels", "verify/choice")]
    network = InfluenceNetwork().fit(*features, LabelledPairs.joined([parts[0].without(parts[1]), parts[1]]))
    first = np.unique(parts[1].pool_index)
    covered = np.maximum(parts[1].influence.reshape(6, 12).max(axis=0), 0)
    objective = FacilityLocationReciprocalRank(network.estimate(*features), ObjectiveOptions(covered=covered))
    expected = lazy_greedy(objective, 3, candidates=np.setdiff1d(np.arange(60), first))
    plan = json.loads((run / "verify/more-1/plan.json").read_text())
    assert plan["rows"] == sorted(expected.indices.tolist())


def test_parts_under_a_token_budget_hold_at_least_one_sample(data, options, tmp_path: Path):
    run = tmp_path / "run"
    common = {**options, "budget": "200tok"}
    selection = nncift.select(data[0], target=data[1], output=run, verify=1.001, **common)  # parts of 0.1 tokens
    plans = [json.loads((run / "verify" / name / "plan.json").read_text()) for name in ("choice", "more-1", "more-2")]
    assert [len(plan["rows"]) for plan in plans[1:]] == [1, 1]
    rows = {row for plan in plans for row in plan["rows"]}
    assert set(selection.indices.tolist()) <= rows
    assert np.load(run / "tokens.npy")[selection.indices].sum() <= 200


def test_a_pool_that_is_its_own_target_is_not_measured_on_itself(data, options, tmp_path: Path):
    run = tmp_path / "run"
    nncift.select(data[0], output=run, verify=2, **options)
    plans = [json.loads((run / "verify" / name / "plan.json").read_text()) for name in ("choice", "more-1", "more-2")]
    rows = [row for plan in plans for row in plan["rows"]]
    assert len(set(rows)) == 12
    assert plans[0]["columns"] == plans[1]["columns"] == plans[2]["columns"]
    assert not set(rows) & set(plans[0]["columns"])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_shortlist_and_targets_are_disjoint_under_a_token_budget(seed):
    """The choice within twice the tokens need not contain the choice within once."""
    rng = np.random.default_rng(seed)
    rows = [{"prompt": "a" * int(n), "response": f"{i}"} for i, n in enumerate(rng.integers(1, 99, 60))]
    matrix = InfluenceMatrix.from_array(rng.gamma(1, 1, (60, 60)).astype(np.float32))
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "tokens.npy", rng.integers(5, 120, 60))
        config = Config("pool", budget="400tok", verify=2, seed=seed, influence="builders:EstimatedBM25")
        run = Run.resolve(config, RunFolder(folder), {})
        run.samples["pool"] = SampleSet(load_pool(rows))
        chosen, columns = first_measured(run, matrix, pick(run, matrix), None)
    assert len(columns)
    assert not set(chosen.tolist()) & set(columns.tolist())


def test_a_shortlist_of_the_whole_pool_needs_a_target(data, options, tmp_path: Path):
    with pytest.raises(ConfigError, match="would measure 60 of the pool's 60 samples, and leaves none"):
        nncift.select(data[0], output=tmp_path / "run", verify=10, **options)
    assert not (tmp_path / "run/labels").exists()
    with pytest.raises(ConfigError, match="leaves none"):  # known when it is chosen
        nncift.select(data[0], output=tmp_path / "tokens", verify=10, **{**options, "budget": "200tok"})


def test_a_killed_verification_resumes_with_the_same_bytes(data, options, tmp_path: Path):
    run = tmp_path / "run"
    options = {**options, "target": data[1], "output": run, "verify": 2, "probes": 3}
    nncift.select(data[0], **options)
    ends = ("subset.jsonl", "selection.parquet", "verify/verify.json")
    names = (*ends, "verify/choice/plan.json", "verify/more-1/plan.json", "verify/more-2/plan.json", "probes/plan.json")
    before = {name: (run / name).read_bytes() for name in names}
    labels = (run / "verify/choice/labels.parquet").stat().st_mtime_ns
    for lost in (ends, (*ends, "verify/more-2/labels.parquet", "verify/more-2/plan.json")):
        for name in lost:
            (run / name).unlink()
        nncift.select(data[0], **options)
        assert {name: (run / name).read_bytes() for name in names} == before
        assert (run / "verify/choice/labels.parquet").stat().st_mtime_ns == labels


def test_a_fitted_network_is_verified_with_its_own_influence_function(data, options, tmp_path: Path):
    pool, target = data
    nncift.select(pool, target=target, output=tmp_path / "run", **options)
    new = write_rows(tmp_path / "new.jsonl", word_rows(30, 500))
    common = {"network": tmp_path / "run", "budget": 3, "device": "cpu", "verify": 2, "model": options["model"]}
    with pytest.raises(ConfigError, match="influence with the name 'estimated-cosine', and 'delift' would"):
        nncift.select(new, influence="delift", output=tmp_path / "other", **common)
    with pytest.raises(
        ConfigError, match=r"gradient-sketch is computed .* or give `influence` estimated-cosine to estimate that"
    ):
        nncift.select(new, output=tmp_path / "other", **common)
    selection = nncift.select(new, output=tmp_path / "new", influence="builders:EstimatedCosine", probes=2, **common)
    exact = exact_values(new, target, options)
    np.testing.assert_allclose(selection.influence, exact[selection.indices].mean(axis=1), rtol=1e-5)


def test_probes_lower_the_error_of_the_row_means(data, options, tmp_path: Path):
    pool, target = data
    exact = exact_values(pool, target, options)
    errors = {}
    for probes in (None, 4):
        run = tmp_path / f"run-{probes}"
        nncift.select(pool, target=target, output=run, probes=probes, **options)
        errors[probes] = np.abs(np.load(run / "influence.npy") - exact.mean(axis=1)).mean()
    assert errors[4] < 0.8 * errors[None]
    assert pq.read_table(run / "probes/labels.parquet").num_rows == 4 * 60


def test_the_papers_network_can_be_verified(data, options, tmp_path: Path):
    run = tmp_path / "run"
    nncift.select(data[0], target=data[1], output=run, verify=2, recipe="paper", **options)
    assert json.loads((run / "verify/verify.json").read_text())["samples"] == 12


def test_overlaid_has_the_exact_values():
    rng = np.random.default_rng(0)
    values, exact = rng.random((5, 7)).astype(np.float32), Probes(np.array([4, 1]), np.full((5, 2), 9.0, np.float32))
    whole = values.copy()
    whole[:, [4, 1]] = 9.0
    matrix = overlaid(InfluenceMatrix.from_array(values), exact)
    np.testing.assert_array_equal(matrix.block(EVERY, EVERY), whole)
    np.testing.assert_array_equal(matrix.block(np.array([3, 0]), np.array([1, 6])), whole[np.ix_([3, 0], [1, 6])])
    assert best_influence(matrix, np.array([2])) == pytest.approx(whole[2].mean(), rel=1e-6)


def test_the_dry_run_counts_probes_and_shortlist(data, options):
    pool, target = data
    plain = nncift.pipeline.plan.plan(Config(pool, target=target, **options))
    whole = nncift.pipeline.plan.plan(Config(pool, target=target, probes=3, verify=2, **options))
    assert whole.pairs == plain.pairs + 60 * 3 + 12 * 12
    assert set(whole.seconds) - set(plain.seconds) == {"probes", "verify"}


def test_a_fitted_network_is_the_prior_of_another(data, options, tmp_path: Path):
    pool, target = data
    nncift.select(pool, target=target, output=tmp_path / "run", **options)
    new = write_rows(tmp_path / "new.jsonl", word_rows(40, 500))
    common = {**options, "network": tmp_path / "run", "labels": 80, "influence": "builders:EstimatedCosine"}
    del common["encoder"]  # the learned network's own
    nncift.select(new, output=tmp_path / "tuned", **common)
    network = InfluenceNetwork.from_pretrained(tmp_path / "tuned/network")
    assert network.model.prior is not None
    assert network.description_["pairs"] < 80
    assert (tmp_path / "tuned/fidelity.json").exists()
    with pytest.raises(ConfigError, match="no posterior variance, so `network`"):
        nncift.select(new, output=tmp_path / "other", recipe="paper", **common)


def test_a_paper_network_is_no_prior_and_is_refused_before_labelling(data, options, tmp_path: Path):
    pool, target = data
    nncift.select(pool, target=target, output=tmp_path / "run", recipe="paper", **options)
    common = {**options, "network": tmp_path / "run", "labels": 80}
    with pytest.raises(ConfigError, match="is the paper's, which cannot be a prior"):
        nncift.select(write_rows(tmp_path / "new.jsonl", word_rows(40, 500)), output=tmp_path / "tuned", **common)
    assert not (tmp_path / "tuned/labels").exists()


def test_probes_of_a_sample_on_itself_do_not_count(data, options, tmp_path: Path):
    run = tmp_path / "run"
    nncift.select(data[0], output=run, probes=3, **options)  # its similarity to itself is 1
    columns = np.array(json.loads((run / "probes/plan.json").read_text())["columns"])
    table = pq.read_table(run / "probes/labels.parquet")["influence"].to_numpy().reshape(60, 3).copy()
    np.testing.assert_allclose(table[columns, range(3)], 1, atol=1e-5)
    network, features = InfluenceNetwork.from_pretrained(run / "network"), np.load(run / "features/pool.npy")
    lifted = network.estimate(features, features, probes=Probes(columns, table)).row_means()[columns]
    table[columns, range(3)] = np.nan
    expected = network.estimate(features, features, probes=Probes(columns, table)).row_means()[columns]
    np.testing.assert_allclose(np.load(run / "influence.npy")[columns], expected, atol=1e-5)
    assert np.abs(lifted - expected).min() > 1e-3
