"""Labelling in rounds: where least is known, until the wish is reached; resumed where it was killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import nncift
import nncift.pipeline.plan
from builders import word_rows, write_rows
from nncift.config import Config
from nncift.errors import ConfigError
from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.metrics import measures
from nncift.labels.design import PairPlan
from nncift.labels.pairs import LabelledPairs
from nncift.pipeline.learning.active import ActiveLabelling
from nncift.report.terminal import summary_text
from nncift.run.folder.records import LabelHistory
from nncift.run.storage.files import read_json, write_json

N, M = 400, 60


@pytest.fixture(scope="module", autouse=True)
def few_labels_of_the_likelihood() -> Iterator[None]:
    """The hyperparameters of each round from 200 of its labels: of 1,000 they take seconds, and none is judged here."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("likelihood", "gaussian_process"):
            patch.setattr(f"nncift.estimator.{module}.LIKELIHOOD_PAIRS", 200)
        yield


def features(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)


class Measured:
    """Measures a smooth influence, and remembers what it was asked; may be killed before a round."""

    def __init__(self, killed_at: str | None = None, noise: float = 0.05) -> None:
        self.pool, self.target = features(1, N), features(2, M)
        level = np.tanh(self.pool[:, :3]) @ np.tanh(self.target[:, :3]).T
        self.influence = level + noise * np.random.default_rng(0).standard_normal((N, M))
        self.asked: dict[str, PairPlan] = {}
        self.killed_at = killed_at

    def __call__(self, plan: PairPlan, name: str) -> LabelledPairs:
        if name == self.killed_at:
            raise KeyboardInterrupt
        self.asked[name] = plan
        j = np.broadcast_to(plan.columns, (len(plan.rows), plan.columns.shape[-1])).ravel()
        i = np.repeat(plan.rows, plan.columns.shape[-1])
        return LabelledPairs(i.astype(np.int32), j.astype(np.int32), self.influence[i, j].astype(np.float32))


def rounds(
    target_fidelity: float = 0.6, n_target: int | None = M, recipe: str = "process", *, own_targets: bool = False
) -> ActiveLabelling:
    return ActiveLabelling(
        N, n_target, pointwise=False, own_targets=own_targets, recipe=recipe, target_fidelity=target_fidelity, seed=0
    )


def test_labelling_stops_at_the_target_fidelity(tmp_path: Path):
    measured = Measured()
    pairs = rounds().label(measured.pool, measured.target, tmp_path / "rounds.json", measured)
    history = read_json(tmp_path / "rounds.json")
    reached = [one["reached"] for one in history["rounds"]]
    assert history["ended"] == "target fidelity reached"
    assert reached[-1] >= 0.6
    assert all(value < 0.6 for value in reached[:-1])
    taken = [history["held_out"][0], *(one["rows"] for one in history["rounds"])]
    assert len(np.concatenate(taken)) == len(np.unique(np.concatenate(taken)))  # no row twice
    assert len(pairs) == sum(map(len, taken)) * 48
    assert [one["pairs"] for one in history["rounds"]] == (48 * np.cumsum([len(rows) for rows in taken[1:]])).tolist()


def test_a_killed_round_resumes_with_the_same_labels(tmp_path: Path):
    whole = rounds(0.99).label(features(1, N), features(2, M), tmp_path / "whole.json", Measured(noise=0.5))
    history = read_json(tmp_path / "whole.json")
    assert len(history["rounds"]) >= 3
    for place in ("held-out", "round-1"):
        path = tmp_path / f"{place}.json"
        with pytest.raises(KeyboardInterrupt):
            rounds(0.99).label(features(1, N), features(2, M), path, Measured(place, noise=0.5))
        again = rounds(0.99).label(features(1, N), features(2, M), path, Measured(noise=0.5))
        np.testing.assert_array_equal(again.pool_index, whole.pool_index)
        assert [one["reached"] for one in read_json(path)["rounds"]] == [one["reached"] for one in history["rounds"]]


def test_a_finished_history_is_not_labelled_again(tmp_path: Path):
    first = rounds().label(features(1, N), features(2, M), tmp_path / "rounds.json", Measured())
    before = (tmp_path / "rounds.json").read_bytes()
    again = rounds().label(features(1, N), features(2, M), tmp_path / "rounds.json", Measured())
    np.testing.assert_array_equal(again.influence, first.influence)
    assert (tmp_path / "rounds.json").read_bytes() == before


def test_the_fidelity_is_the_subset_sum_correlation_and_of_ranks_where_an_earlier_version_began(tmp_path: Path):
    found = {}
    for began, metric in (("now", "subset_sum_correlation_within_target"), ("earlier", "spearman_within_target")):
        path = tmp_path / f"{began}.json"
        with pytest.raises(KeyboardInterrupt):
            rounds(0.05).label(features(1, N), features(2, M), path, Measured("round-0", noise=1.0))
        stored = read_json(path)
        assert stored.pop("metric") == "subset_sum_correlation_within_target"
        if began == "earlier":
            write_json(path, stored | {"target_fidelity": 0.01})  # the default of then
        measured = Measured(noise=1.0)
        rounds(0.05).label(measured.pool, measured.target, path, measured)
        history = read_json(path)
        train = measured(measured.asked["round-0"], "again")
        network = InfluenceNetwork(seed=0).fit(measured.pool, measured.target, train)
        held_out = measured(measured.asked["held-out"], "again")
        predicted = network.predict(measured.pool[held_out.pool_index], measured.target[held_out.target_index])
        assert history["rounds"][0]["reached"] == measures(held_out, predicted, scale=1.0)[metric]
        assert LabelHistory.load(path).is_of_ranks == (began == "earlier")
        if began == "earlier":
            assert (len(history["rounds"]), history["ended"]) == (1, "target fidelity reached")
        found[began] = history["rounds"][0]["reached"]
    assert found["now"] != found["earlier"]


def test_rows_and_targets_are_disjoint_in_a_pool_that_is_its_own_target(tmp_path: Path):
    measured = Measured()
    measured.influence = np.tanh(measured.pool[:, :3]) @ np.tanh(measured.pool[:, :3]).T
    rounds(n_target=None, target_fidelity=0.05).label(measured.pool, measured.pool, tmp_path / "rounds.json", measured)
    history = read_json(tmp_path / "rounds.json")
    rows = history["held_out"][0] + [i for one in history["rounds"] for i in one["rows"]]
    assert not set(history["targets"]) & set(rows)


@pytest.mark.parametrize("n_target", [M, None])
def test_rows_have_targets_of_their_own_for_functions_that_cost_per_pair(tmp_path: Path, n_target: int | None):
    measured, again = Measured(noise=0.5), Measured(noise=0.5)
    for one in (measured, again):
        if n_target is None:
            one.influence = np.tanh(one.pool[:, :3]) @ np.tanh(one.pool[:, :3]).T
        target = one.pool if n_target is None else one.target
        rounds(0.99, n_target, own_targets=True).label(one.pool, target, tmp_path / "rounds.json", one)
    history = read_json(tmp_path / "rounds.json")
    assert measured.asked["held-out"].columns.tolist() == history["columns"]
    first = measured.asked["round-0"]
    assert first.columns.shape == (48, 24)
    assert first.targets.tolist() == history["targets"]
    assert len(first.targets) == (M if n_target else 192)
    assert measured.asked.keys() == again.asked.keys()
    for name, plan in measured.asked.items():
        np.testing.assert_array_equal(again.asked[name].columns, plan.columns)
    if n_target is None:
        rows = history["held_out"][0] + [i for one in history["rounds"] for i in one["rows"]]
        assert not set(history["targets"]) & set(rows)


def test_the_papers_recipe_labels_at_random(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nncift.pipeline.learning.active.TARGETS_PER_ROW", 8)
    measured = Measured(noise=5.0)
    rounds(recipe="paper", target_fidelity=0.99).label(
        measured.pool, measured.target, tmp_path / "rounds.json", measured
    )
    assert read_json(tmp_path / "rounds.json")["ended"] in ("no improvement in two rounds", "pool exhausted")


def test_stopping_rules():
    ending = rounds(0.5)._ending
    assert ending([0.2], 10) is None
    assert ending([0.2, 0.5], 10) == "target fidelity reached"
    assert ending([0.2, 0.201, 0.205], 10) == "no improvement in two rounds"
    assert ending([0.2, 0.3, 0.305], 10) is None
    assert ending([None], 0) == "pool exhausted"


def test_acquisition_prefers_samples_far_from_labelled_ones():
    rng = np.random.default_rng(0)
    known, other = rng.standard_normal((2, 40, 8)).astype(np.float32) * 0.3
    other[:, 0] += 4
    pool = np.concatenate([known, other])
    target = features(3, 12)
    influence = (np.tanh(pool[:, :3]) @ np.tanh(target[:, :3]).T).astype(np.float32)
    i, j = np.divmod(np.arange(20 * 12), 12)
    network = InfluenceNetwork().fit(pool, target, LabelledPairs(i.astype("i"), j.astype("i"), influence[i, j]))
    chosen = network.choose_samples(pool, 6)
    assert len(set(chosen.tolist())) == 6
    assert (chosen >= 40).mean() > 0.6


@pytest.mark.parametrize("influence", ["builders:EstimatedCosine", "builders:EstimatedIFD"])
def test_a_run_reports_its_rounds(influence, tmp_path: Path, small_encoder, tiny_model):
    pool = write_rows(tmp_path / "pool.jsonl", word_rows(130))
    common = {"encoder": small_encoder, "model": tiny_model, "device": "cpu", "budget": 8, "influence": influence}
    options = {
        **common,
        "labels": "auto",
        "fidelity": 0.99,
        "target": write_rows(tmp_path / "target.jsonl", word_rows(9, 300)),
    }
    run = tmp_path / "run"
    selection = nncift.select(pool, output=run, **options)
    history, fidelity = read_json(run / "labels/rounds.json"), read_json(run / "fidelity.json")
    labelled = pq.read_table(run / "labels/labels.parquet")
    assert fidelity["held_out"]["pool"] >= len(history["held_out"][0]) == 32
    assert sum(fidelity["pairs"].values()) == labelled.num_rows
    assert f"Active labelling stopped after {len(history['rounds'])} round" in summary_text(run)
    assert "Active learning" in (run / "report.html").read_text()
    for name in ("selection.parquet", "labels/labels.parquet", "network"):
        path = run / name
        path.unlink() if path.is_file() else [p.unlink() for p in path.iterdir()] and path.rmdir()
    again = nncift.select(pool, output=run, **options)
    assert again.indices.tolist() == selection.indices.tolist()
    plan = nncift.pipeline.plan.plan(Config(pool, **options))
    assert "at least" in str(plan)


@pytest.mark.parametrize("n", [1, 2])
def test_a_pool_too_small_for_active_learning_is_refused(n, tmp_path: Path, small_encoder, tiny_model):
    pool = write_rows(tmp_path / "pool.jsonl", word_rows(n))
    options = {"encoder": small_encoder, "model": tiny_model, "device": "cpu", "influence": "builders:EstimatedCosine"}
    with pytest.raises(ConfigError, match=f"a pool of {n} samples? is too small to fit a network"):
        nncift.select(pool, output=tmp_path / "run", labels="auto", budget=1, **options)
