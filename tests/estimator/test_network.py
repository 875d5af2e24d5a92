"""Labelled pairs, the plan of what to label, the InfluenceNetwork and its fidelity."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from nncift.config import Amount
from nncift.errors import ConfigError, DataError, ModelError
from nncift.estimator.network import RECIPES, InfluenceNetwork
from nncift.estimator.training_data import MOST_COLUMNS
from nncift.evaluation.fidelity import measure_fidelity
from nncift.evaluation.metrics import measures, spearman
from nncift.labels.collect import collect
from nncift.labels.design import PairPlan, Rate, deal, measure_rate, number_of_pairs, plan_pairs
from nncift.labels.pairs import LabelledPairs

WIDTH = 6


def features(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, WIDTH)).astype(np.float32)


def grid(n_pool: int, n_target: int, seed: int = 0) -> LabelledPairs:
    rng = np.random.default_rng(seed)
    return LabelledPairs(
        np.repeat(np.arange(n_pool), n_target).astype(np.int32),
        np.tile(np.arange(n_target), n_pool).astype(np.int32),
        rng.standard_normal(n_pool * n_target).astype(np.float32),
    )


def samples(n: int, prefix: str) -> Dataset:
    return Dataset.from_dict({"id": [f"{prefix}{i}" for i in range(n)], "value": list(range(n))})


class Product:
    """An influence function whose values show which pair they belong to."""

    name = "product"

    def __init__(self, bad: tuple[int, int] | None = None):
        self.bad = bad
        self.calls = 0

    def __call__(self, pool_rows, target_rows):
        self.calls += 1
        values = np.outer(pool_rows["value"], np.array(target_rows["value"]) + 0.5).astype(np.float32)
        if self.bad is not None:
            values[
                np.ix_(np.array(pool_rows["value"]) == self.bad[0], np.array(target_rows["value"]) == self.bad[1])
            ] = np.nan
        return values


# --- which pairs


@given(st.integers(2, 400), st.integers(1, 60), st.integers(2, 3000), st.integers(0, 5))
def test_a_plan_is_a_grid_within_the_wish_and_the_data(n_pool, n_target, pairs, seed):
    plan = plan_pairs(n_pool, n_target, pairs, seed=seed)
    assert 2 <= len(plan) <= max(pairs, 2)
    for index, n in ((plan.rows, n_pool), (plan.columns, n_target)):
        assert len(np.unique(index)) == len(index)
        assert index.min() >= 0
        assert index.max() < n
    again = plan_pairs(n_pool, n_target, pairs, seed=seed)
    np.testing.assert_array_equal(plan.rows, again.rows)
    # No wish is wasted: another row would exceed it or the pool.
    assert len(plan) + len(plan.columns) > pairs or len(plan.rows) == n_pool


@given(st.integers(4, 400), st.integers(3, 3000), st.booleans())
def test_without_a_target_no_sample_is_on_both_sides(n_pool, pairs, own_targets):
    plan = plan_pairs(n_pool, None, pairs, own_targets=own_targets)
    assert not set(plan.rows) & set(plan.targets)


@given(st.integers(60, 4000), st.one_of(st.none(), st.integers(30, 3000)), st.integers(400, 5000), st.integers(0, 5))
def test_rows_with_targets_of_their_own_reach_more_targets_with_the_same_labels(n_pool, n_target, pairs, seed):
    plan, same = (plan_pairs(n_pool, n_target, pairs, seed=seed, own_targets=own) for own in (True, False))
    assert len(plan) <= pairs
    assert len(plan.targets) >= min(len(same.targets), 2 * n_pool // 3 if n_target is None else n_target)
    if plan.columns.ndim == 1:  # a row has all targets there are
        assert len(plan.columns) == (n_target if n_target is not None else n_pool - len(plan.rows))
        return
    assert plan.columns.shape[1] < len(plan.targets) <= min(2 * len(plan.rows), n_target or n_pool)
    assert (np.diff(plan.columns, axis=1) > 0).all()  # no target twice in a row
    rows, targets = plan.held_out
    judged = plan.columns[np.isin(plan.rows, rows)]
    assert len(judged) == len(rows) == round(0.2 * len(plan.rows))
    assert (judged == judged[0]).all()
    assert set(targets) < set(judged[0])
    again = plan_pairs(n_pool, n_target, pairs, seed=seed, own_targets=True)
    np.testing.assert_array_equal(plan.columns, again.columns)
    stored = PairPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    np.testing.assert_array_equal(stored.columns, plan.columns)
    np.testing.assert_array_equal(stored.held_out[0], rows)


@given(st.integers(1, 60), st.integers(1, 90), st.integers(1, 60), st.integers(0, 5))
def test_targets_are_dealt_evenly(n_targets, rows, each, seed):
    targets = np.arange(10, 10 + n_targets)
    columns = deal(targets, rows, min(each, n_targets), np.random.default_rng(seed))
    counts = np.bincount(columns.ravel(), minlength=10 + n_targets)[10:]
    assert counts.max() - counts.min() <= 1
    assert all(len(set(row)) == len(row) for row in columns.tolist())


def test_no_more_targets_are_labelled_than_the_network_learns_from():
    plan = plan_pairs(10**6, 10**6, 400_000, own_targets=True)
    assert len(plan.targets) == MOST_COLUMNS


@given(st.integers(2, 400), st.integers(1, 60), st.integers(2, 3000), st.integers(0, 5))
def test_a_pointwise_plan_has_a_row_for_each_label(n_pool, n_target, pairs, seed):
    plan = plan_pairs(n_pool, n_target, pairs, seed=seed, pointwise=True)
    assert len(plan) == len(np.unique(plan.rows)) == min(pairs, n_pool)
    assert plan.columns.shape == (len(plan.rows), 1)
    assert 1 <= len(plan.targets) <= n_target
    assert plan.rows.max() < n_pool
    assert plan.columns.max() < n_target
    assert len(plan.held_out[0]) == round(0.2 * len(plan.rows))


@given(st.integers(4, 400), st.integers(3, 3000))
def test_a_pointwise_plan_without_a_target(n_pool, pairs):
    plan = plan_pairs(n_pool, None, pairs, pointwise=True)
    assert not set(plan.rows) & set(plan.targets)
    assert len(plan) <= min(pairs, n_pool - len(plan.targets))


def test_amounts_become_pairs():
    assert number_of_pairs(Amount("fraction", 0.1), 100, 50, pointwise=True) == 10
    assert number_of_pairs(Amount("seconds", 90), 100, 50, Rate(0.5, 0, 0, warm_up=60), pointwise=True) == 60
    assert number_of_pairs(Amount("seconds", 90), 100, 50, Rate(0, 0, 0.5, warm_up=60)) == 60
    assert number_of_pairs(Amount("seconds", 90), 100, 50, Rate(0, 0, 0.5, warm_up=100)) == 1
    assert number_of_pairs(Amount("count", 1500), 10, 10) == 1500
    assert number_of_pairs(Amount("fraction", 0.01), 100, 50) == 50
    assert number_of_pairs(Amount("seconds", 90), 100, 50, Rate(0, 0, 0.5)) == 180
    with pytest.raises(ConfigError, match="too few"):
        plan_pairs(10, 10, 1)


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10), st.floats(1, 1e4), st.booleans())
def test_a_time_becomes_the_pairs_that_take_it(row, target, pair, seconds, own_targets):
    rate = Rate(row, target, pair)
    pairs = rate.pairs(seconds, own_targets=own_targets)
    if 1 < pairs < 10**9:
        rows, targets = (4, 8) if own_targets else (1, 1)  # for each target of a row
        each = math.sqrt(pairs / rows)
        assert rate.seconds(rows * each, targets * each, rows * each**2) <= seconds * (1 + 1e-6)
        assert rate.seconds(rows * (each + 1), targets * (each + 1), rows * (each + 1) ** 2) > seconds


@pytest.mark.parametrize(("pointwise", "fixed"), [(False, 0), (True, 0), (True, 60)])
def test_the_rate_tells_samples_from_pairs(monkeypatch, pointwise, fixed):
    """A function that takes five seconds to load, three for a sample in `prepare`, and two for a pair or sample.

    A pointwise one may also take a fixed time in `prepare`.
    """
    clock = [0.0]
    monkeypatch.setattr("nncift.labels.design.time.perf_counter", lambda: clock[0])

    class Slow:
        name = "slow"
        loaded = False

        def prepare(self, pool, target, folder=None):
            clock[0] += 0 if self.loaded else 5
            self.loaded = True
            clock[0] += fixed + 3 * (len(pool) + (0 if pointwise else len(target)))

        def __call__(self, pool_rows, target_rows):
            clock[0] += 2 * len(pool_rows) * (1 if pointwise else len(target_rows))
            return np.zeros((len(pool_rows), len(target_rows)), np.float32)

    function = Slow()
    function.pointwise = pointwise
    samples = Dataset.from_list([{"id": str(i)} for i in range(20)])
    assert measure_rate(function, samples, samples) == (Rate(5, 0, 0, fixed) if pointwise else Rate(3, 3, 2))


def test_the_rate_tells_what_warming_up_on_the_whole_pool_takes(monkeypatch):
    """A function that warms up on every sample for seven seconds after five to start and ten to load."""
    clock = [0.0]
    monkeypatch.setattr("nncift.labels.design.time.perf_counter", lambda: clock[0])

    class Slow:
        name = "slow"
        loaded = False

        def warm_up(self, pool, folder=None, *, progress=False):
            clock[0] += 5 + 7 * len(pool) + (0 if self.loaded else 10)
            self.loaded = True

        def tokens(self, pool_rows, target_rows, pool=None):
            return 100 * len(pool)

        def __call__(self, pool_rows, target_rows):
            clock[0] += 2 * len(pool_rows) * len(target_rows)
            return np.zeros((len(pool_rows), len(target_rows)), np.float32)

    samples = Dataset.from_list([{"id": str(i)} for i in range(20)])
    rate = measure_rate(Slow(), samples, samples)
    assert (rate.row, rate.pair, rate.warm_up) == (0, 2, pytest.approx(5 + 7 * 20))
    assert rate.seconds(3, 2) == pytest.approx(145 + 12)


# --- splitting


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 9))
def test_a_split_holds_out_whole_samples(n_pool, n_target, seed):
    pairs = grid(n_pool, n_target)
    train, held_out = pairs.split(0.8, seed=seed)
    assert len(train) + len(held_out) == len(pairs)
    assert len(train)
    assert len(held_out)
    where = held_out.quadrants(train)
    assert set(where) == {"Q2", "Q3", "Q4"}
    assert (train.quadrants(train) == "Q1").all()
    new_pool = ~np.isin(held_out.pool_index, train.pool_index)
    assert ((where == "Q2") | (where == "Q4")).tolist() == new_pool.tolist()


def test_exact_duplicates_stay_on_one_side():
    pairs = grid(10, 4)
    groups = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    for seed in range(5):
        train, _ = pairs.split(0.5, seed=seed, pool_groups=groups)
        assert len(np.unique(groups[train.pool_index])) == 1


def test_a_single_target_is_not_held_out():
    train, held_out = grid(10, 1).split(0.8)
    assert set(held_out.quadrants(train)) == {"Q2"}


# --- collecting


def test_collect_gives_each_pair_its_value_and_resumes(tmp_path: Path):
    pool, target = samples(50, "p"), samples(70, "t")
    rows, columns = np.array([3, 7, 11, 30, 49]), np.arange(5, 69)
    whole = collect(Product(), pool, target, rows, columns)
    np.testing.assert_allclose(whole.influence, whole.pool_index * (whole.target_index + 0.5))
    assert len(whole) == 5 * 64

    class Killed(Exception):
        pass

    def stop() -> None:
        if len(list(tmp_path.glob("block-*"))) == 2:
            raise Killed

    with pytest.raises(Killed):
        collect(Product(), pool, target, rows, columns, folder=tmp_path, after_block=stop)
    resumed = Product()
    pairs = collect(resumed, pool, target, rows, columns, folder=tmp_path)
    assert resumed.calls == 1  # two rows a block; two of three blocks were there
    np.testing.assert_array_equal(pairs.influence, whole.influence)
    assert [p.name for p in tmp_path.iterdir()] == ["labels.parquet"]
    finished = Product()
    collect(finished, pool, target, rows, columns, folder=tmp_path)
    assert finished.calls == 0


def test_collect_names_the_pair_that_is_not_finite():
    with pytest.raises(DataError, match="'p3' on 't2' is nan"):
        collect(Product(bad=(3, 2)), samples(5, "p"), samples(4, "t"), np.arange(5), np.arange(4))


def test_collect_refuses_a_wrong_shape():
    class Transposed(Product):
        def __call__(self, pool_rows, target_rows):
            return super().__call__(pool_rows, target_rows).T

    with pytest.raises(DataError, match=r"shape \(4, 5\) for 5 pool samples"):
        collect(Transposed(), samples(5, "p"), samples(4, "t"), np.arange(5), np.arange(4))


def test_labels_with_one_score_for_each_pool_sample_are_known_as_such():
    pairs = grid(5, 4)
    assert not pairs.pointwise
    one_each = LabelledPairs(pairs.pool_index, pairs.target_index, pairs.pool_index.astype(np.float32))
    assert one_each.pointwise
    assert not one_each.take(np.arange(20) % 4 == 0).pointwise  # a single target says nothing
    assert not grid(0, 0).pointwise


# --- the network


def test_the_paper_recipe_is_the_papers():
    network = InfluenceNetwork("paper").fit(
        np.zeros((3, 1024), np.float32), np.zeros((3, 1024), np.float32), grid(3, 3)
    )
    model = network.model
    assert sum(p.numel() for p in model.parameters()) == 2048 * 100 + 100 + 100 + 1  # 204,900 weights and biases
    assert (model.learning_rate, model.epochs, model.batch_size, model.hidden) == (1e-4, 20, 64, 100)
    assert len(model.losses_) == 20


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100), st.sampled_from([0.01, 1.0, 300.0]))
def test_estimate_equals_forward(n_pool, n_target, seed, scale):
    a, b = features(n_pool, seed), features(n_target, seed + 1)
    pairs = grid(n_pool, n_target, seed)
    pairs = LabelledPairs(pairs.pool_index, pairs.target_index, pairs.influence * np.float32(scale))
    network = InfluenceNetwork("paper", hidden=16, epochs=2, learning_rate=0.05, seed=seed).fit(a, b, pairs)
    matrix = network.estimate(a, b)
    assert matrix.shape == (n_pool, n_target)
    with torch.no_grad():
        plain = network.model(torch.from_numpy(a[pairs.pool_index]), torch.from_numpy(b[pairs.target_index])).numpy()
    every = matrix.block(slice(None), slice(None)).ravel()
    low, size = float(network.model.low), float(network.model.range)
    # 1e-5 on the scale the network learns on; on the influence's own, what float32 rounds away comes on top.
    allowed = 1e-5 * size + 1e-6 * abs(low)
    np.testing.assert_allclose(every, plain * size + low, rtol=0, atol=allowed)
    predicted = network.predict(a[pairs.pool_index], b[pairs.target_index])
    np.testing.assert_allclose(predicted, every, rtol=0, atol=allowed)


def test_it_learns_what_can_be_learned_and_is_seeded():
    a, b = features(120), features(90, 1)
    pairs = grid(120, 90)
    truth = np.tanh(a[pairs.pool_index, 0] + b[pairs.target_index, 1])
    pairs = LabelledPairs(pairs.pool_index, pairs.target_index, truth.astype(np.float32))
    train, held_out = pairs.split(0.8)
    first = InfluenceNetwork("paper", learning_rate=1e-3).fit(a, b, train)
    result = measure_fidelity(first, a, b, held_out, train)
    assert result.beats_baselines
    assert result.quadrants["Q2"]["methods"]["network"]["r2"] > 0.9
    assert result.quadrants["Q4"]["methods"]["network"]["spearman_within_target"] > 0.9
    assert first.model.losses_[-1] < first.model.losses_[0]
    second = InfluenceNetwork("paper", learning_rate=1e-3).fit(a, b, train)
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)
    other = InfluenceNetwork("paper", learning_rate=1e-3, seed=1).fit(a, b, train)
    assert not torch.equal(first.model.first.weight, other.model.first.weight)


def test_fitting_leaves_the_global_random_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    InfluenceNetwork("paper", epochs=1).fit(features(4), features(4), grid(4, 4))
    InfluenceNetwork().fit(features(4), features(4), grid(4, 4))
    assert torch.equal(torch.rand(3), expected)


def test_it_saves_safetensors_and_comes_back(tmp_path: Path):
    a, b = features(9), features(8, 1)
    network = InfluenceNetwork("paper", hidden=5, epochs=1, seed=3).fit(a, b, grid(9, 8))
    network.description_ = {"features": {"encoder": "some/encoder", "own": None}}
    network.save_pretrained(tmp_path / "net")
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    back = InfluenceNetwork.from_pretrained(tmp_path / "net")
    assert back.description_ == network.description_
    assert back.options == network.options
    every = slice(None)
    np.testing.assert_array_equal(back.estimate(a, b).block(every, every), network.estimate(a, b).block(every, every))
    with pytest.raises(ModelError, match=r"7 wide, and the network learned with 6.*some/encoder"):
        back.estimate(np.zeros((3, 7), np.float32), b)


def test_pickle_is_never_read(tmp_path: Path):
    network = InfluenceNetwork("paper", epochs=1).fit(features(4), features(4), grid(4, 4))
    network.save_pretrained(tmp_path)
    torch.save(network.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        InfluenceNetwork.from_pretrained(tmp_path)


def test_foreign_configs_and_unfitted_networks_are_clear_errors(tmp_path: Path):
    with pytest.raises(ModelError, match="has not learned"):
        InfluenceNetwork().predict(features(1), features(1))
    with pytest.raises(ModelError, match="has not learned"):
        InfluenceNetwork().save_pretrained(tmp_path / "none")
    with pytest.raises(ModelError, match="no labelled pair"):
        InfluenceNetwork().fit(features(1), features(1), grid(0, 0))
    with pytest.raises(ConfigError, match="no recipe 'bigger'"):
        InfluenceNetwork("bigger")
    with pytest.raises(ConfigError, match=r"no such option.*hidden"):
        InfluenceNetwork(hidden=5)
    InfluenceNetwork("paper", epochs=1).fit(features(4), features(4), grid(4, 4)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="no InfluenceNetwork"):
        InfluenceNetwork.from_pretrained(tmp_path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_seed_gives_the_same_bytes_in_another_process(recipe: str, tmp_path: Path):
    script = (
        "import sys, numpy as np; from nncift.estimator.network import InfluenceNetwork;"
        "from nncift.labels.pairs import LabelledPairs;"
        "r = np.random.default_rng(0); a = r.standard_normal((9, 6)).astype('f');"
        "p = LabelledPairs(np.arange(9, dtype='i'), np.arange(9, dtype='i')[::-1].copy(), a[:, 0].copy());"
        "InfluenceNetwork(sys.argv[2]).fit(a, a, p).save_pretrained(sys.argv[1])"
    )
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / name), recipe], check=True)
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# --- fidelity


def reference_measures(exact: np.ndarray, predicted: np.ndarray, scale: float) -> dict[str, float]:
    """The measures of a full matrix (n_pool, n_target), written out slowly."""
    n, m = exact.shape
    error = sum((exact[i, j] - predicted[i, j]) ** 2 for i in range(n) for j in range(m))
    total = sum((exact[i, j] - exact.mean()) ** 2 for i in range(n) for j in range(m))
    within = sum((exact[i, j] - exact[:, j].mean()) ** 2 for i in range(n) for j in range(m))
    return {
        "mse": error / (n * m) / scale**2,
        "r2": 1 - error / total,
        "r2_over_target_mean": 1 - error / within,
        "spearman": spearmanr(exact.ravel(), predicted.ravel()).statistic,
        "spearman_within_target": np.mean([spearmanr(exact[:, j], predicted[:, j]).statistic for j in range(m)]),
        "spearman_row_mean": spearmanr(exact.mean(axis=1), predicted.mean(axis=1)).statistic,
    }


@settings(deadline=None)
@given(st.integers(3, 12), st.integers(1, 8), st.integers(0, 1000))
def test_measures_equal_their_definitions(n, m, seed):
    rng = np.random.default_rng(seed)
    exact = rng.standard_normal((n, m)).astype(np.float32)
    predicted = exact + rng.standard_normal((n, m))
    pairs = LabelledPairs(
        np.repeat(np.arange(n), m).astype(np.int32), np.tile(np.arange(m), n).astype(np.int32), exact.ravel()
    )
    shuffled = rng.permutation(n * m)
    found = measures(pairs.take(shuffled), predicted.ravel()[shuffled], scale=2.0)
    for name, value in reference_measures(exact.astype(float), predicted, 2.0).items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_a_constant_predictor_ranks_nothing():
    assert spearman(np.arange(5.0), np.ones(5)) == 0.0
    assert spearman(np.arange(2.0), np.arange(2.0)) is None


def test_noise_is_called_noise():
    a, b = features(60), features(20, 1)
    train, held_out = grid(60, 20).split(0.8)
    network = InfluenceNetwork().fit(a, b, train)
    result = measure_fidelity(network, a, b, held_out, train)
    assert not result.beats_baselines
    assert "does not beat the baselines" in str(result)
    assert set(result.quadrants) == {"Q1", "Q2", "Q3", "Q4"}
    assert set(result.quadrants["Q2"]["methods"]) == {"network", "cosine", "target mean", "constant"}
    assert result.held_out == {"pool": 12, "target": 4}
    assert len(result.scatter["exact"]) == len(held_out)


def test_the_target_mean_baseline_knows_only_what_was_trained():
    pairs = grid(30, 5)
    pairs = LabelledPairs(pairs.pool_index, pairs.target_index, pairs.target_index.astype(np.float32))
    train, held_out = pairs.split(0.8)
    result = measure_fidelity(
        InfluenceNetwork("paper", epochs=1).fit(features(30), features(5), train),
        features(30),
        features(5),
        held_out,
        train,
    )
    assert result.quadrants["Q2"]["methods"]["target mean"]["r2"] == 1.0
    unseen = result.quadrants["Q4"]["methods"]
    assert unseen["target mean"]["mse"] == unseen["constant"]["mse"]
    assert not result.beats_baselines
