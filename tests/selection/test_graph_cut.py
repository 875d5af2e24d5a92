"""Graph cut and the log-determinant: their definitions, greedy's choice, and bounds on the best possible value."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

import references
from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.certificate import BoundOnBest
from nncift.selection.maximizers import graph_cut_greedy as contenders
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.maximizers.table import maximize
from nncift.selection.objectives.feature_kernel import FeatureKernel
from nncift.selection.objectives.graph_cut import GraphCut, GraphCutRelaxation
from nncift.selection.objectives.log_determinant import WIDEST, LogDeterminant
from nncift.selection.objectives.table import ObjectiveOptions


def points(n: int, d: int = 6, seed: int = 0) -> np.ndarray:
    """Clustered, of any length."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((5, d))[rng.integers(0, 5, n)] + 0.4 * rng.standard_normal((n, d))).astype(np.float32)


def cut(x: np.ndarray, entries: np.ndarray | None = None, **options) -> GraphCut:
    entries = np.abs(x) if entries is None else entries
    return GraphCut(InfluenceMatrix.from_array(entries), ObjectiveOptions(features=x, **options))


@pytest.mark.parametrize("kind", [GraphCut, LogDeterminant])
def test_equals_the_definition_on_features_of_their_own(kind):
    x, entries = points(9, seed=1), np.random.default_rng(2).normal(size=(9, 4)).astype(np.float32)
    options = ObjectiveOptions(features=x, redundancy=0.7, expected=4)
    objective = kind(InfluenceMatrix.from_array(entries), options)
    chosen = []
    for i in (4, 0, 8, 4, 2):
        objective.add(i)
        chosen.append(i)
        subset = sorted(set(chosen))
        value = references.of_features(objective.name, entries, subset, x, redundancy=0.7, expected=4)
        assert objective.value == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_submodlib_values():
    submodlib = pytest.importorskip("submodlib")
    x = points(30, seed=3)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = ((1 + unit @ unit.T) / 2).astype(np.float32)
    ours = cut(x, similarity, redundancy=1.0, expected=4)  # utility is the mean similarity, and lambda 1 / 8
    theirs = submodlib.GraphCutFunction(
        n=30, mode="dense", separate_rep=False, lambdaVal=30 * ours.weight, ggsijs=similarity
    )
    volume = LogDeterminant(InfluenceMatrix.from_array(np.ones((30, 2), np.float32)), ObjectiveOptions(features=x))
    peer = submodlib.LogDeterminantFunction(n=30, mode="dense", lambdaVal=1, sijs=(unit @ unit.T).astype(np.float32))
    subset: set[int] = set()
    for i in np.random.default_rng(0).permutation(30)[:8].tolist():
        assert ours.gains(np.array([i]))[0] == pytest.approx(theirs.marginalGain(subset, i) / 30, rel=1e-4, abs=1e-5)
        assert volume.gains(np.array([i]))[0] == pytest.approx(peer.marginalGain(subset, i), rel=1e-3, abs=1e-4)
        ours.add(i)
        volume.add(i)
        subset.add(i)
        assert ours.value == pytest.approx(theirs.evaluate(subset) / 30, rel=1e-4)


def test_with_similarity_as_utility_it_is_the_maximum_mean_discrepancy():
    x = points(40, seed=4)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    r = (1 + unit.astype(float) @ unit.T) / 2
    for chosen in (np.arange(8), np.arange(16, 24)):
        objective = cut(x, r.astype(np.float32), expected=8)
        for i in chosen:
            objective.add(int(i))
        discrepancy = r[np.ix_(chosen, chosen)].mean() - 2 * r[chosen].mean() + r.mean()
        assert objective.value == pytest.approx(8 / 2 * (r.mean() - discrepancy), rel=1e-5)


@pytest.mark.parametrize(("redundancy", "monotone"), [(0.0, True), (1e-3, True), (1.0, False)])
def test_declares_whether_it_is_monotone(redundancy, monotone):
    objective = cut(points(20), redundancy=redundancy, expected=5)
    assert objective.monotone is monotone
    if monotone:
        for i in range(20):
            assert objective.gains(np.array([i]))[0] >= 0
            objective.add(i)


def plain_greedy(objective, costs, limit, room, by_cost):
    """The definition: every gain at every step; of equal ones the larger first, then the lower index."""
    first = objective.gains(np.arange(objective.n))
    chosen: list[int] = []
    while len(chosen) < limit:
        left = [i for i in range(objective.n) if i not in chosen and costs[i] <= room]
        if not left:
            break
        gains = objective.gains(np.array(left))
        best = max(zip(gains / costs[left] if by_cost else gains, first[left], [-i for i in left], strict=True))
        chosen.append(-best[2])
        objective.add(chosen[-1])
        room -= costs[chosen[-1]]
    return chosen, objective.value


@given(seed=st.integers(0, 10_000), redundancy=st.sampled_from([0.0, 0.3, 1.0, 5.0]), data=st.data())
@settings(deadline=None, max_examples=30)
def test_chooses_what_plain_greedy_does(seed, redundancy, data):
    n = data.draw(st.integers(3, 60))
    x, rng = points(n, seed=seed), np.random.default_rng(seed)
    costs = rng.integers(1, 9, n).astype(float) if data.draw(st.booleans()) else np.ones(n)
    tokens = bool(costs.max() > 1)
    room = float(rng.integers(costs.min(), costs.sum() + 1)) if tokens else np.inf
    limit = n if tokens else data.draw(st.integers(1, n))

    def make(targets=None):
        return cut(x, redundancy=redundancy, expected=max(n // 4, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders, "_NUMBERS", 1)
        patch.setattr(contenders, "_LEAST", data.draw(st.sampled_from([1, 2, 7, 100])))
        budget = {"costs": costs, "max_cost": room} if tokens else {"budget": limit}
        found = maximize(make, **budget)
    rules = [plain_greedy(make(), costs, limit, room, by_cost) for by_cost in ((True, False) if tokens else (True,))]
    chosen, value = max(rules, key=lambda rule: rule[1])
    assert found.value == pytest.approx(value, rel=1e-6, abs=1e-9)
    if not tokens:
        assert found.indices.tolist() == chosen
        assert found.indices.tolist() == lazy_greedy(make(), limit).indices.tolist()
    assert found.gains.sum() == pytest.approx(found.value, rel=1e-5, abs=1e-7)
    assert costs[found.indices].sum() <= room


def test_few_passes_over_the_features(monkeypatch):
    monkeypatch.setattr(contenders, "_NUMBERS", 400 * 6)
    passes = []

    class Counting(GraphCut):
        def gains(self, candidates):
            passes.append(len(candidates))
            return super().gains(candidates)

    x = points(4000, seed=5)
    objective = Counting(InfluenceMatrix.from_array(np.abs(x)), ObjectiveOptions(features=x, expected=100))
    assert len(maximize(lambda targets=None: objective, 100)) == 100
    assert sum(each > 400 for each in passes) < 30


@given(seed=st.integers(0, 10_000), redundancy=st.sampled_from([0.2, 1.0, 4.0]))
@settings(deadline=None, max_examples=15)
def test_the_bound_holds_where_it_is_not_monotone(seed, redundancy):
    n = 7
    x = points(n, 3, seed)
    rng = np.random.default_rng(seed)
    costs, k = rng.integers(1, 9, n).astype(float), int(rng.integers(1, 6))
    room = float(rng.integers(costs.min(), costs.sum()))

    def make(targets=None):
        return cut(x, redundancy=redundancy, expected=k)

    def value(subset) -> float:
        objective = make()
        for i in subset:
            objective.add(i)
        return objective.value

    subsets = [s for size in range(n + 1) for s in itertools.combinations(range(n), size)]
    values = {subset: value(subset) for subset in subsets}
    for budget, fits in (
        ({"budget": k}, lambda s: len(s) <= k),
        ({"costs": costs, "max_cost": room}, lambda s: costs[list(s)].sum() <= room),
    ):
        found = maximize(make, certify=True, **budget).certificate
        assert max(values[s] for s in subsets if fits(s)) <= found.bound + 1e-6
        assert found.value <= found.bound + 1e-9


def test_the_bound_comes_close():
    x = points(2000, 8, seed=6)
    found = maximize(lambda targets=None: cut(x, expected=100), 100, certify=True)
    assert found.certificate.share > 0.97
    objective = cut(x, expected=100)
    for i in found.indices:
        objective.add(int(i))
    bound = BoundOnBest(np.arange(2000), np.ones(2000), 100, np.inf)
    bound.relax(GraphCutRelaxation(objective, found.indices), found.value)
    assert bound.value == pytest.approx(found.certificate.bound)


def test_sparse_and_memory_mapped_features_are_as_dense_ones(tmp_path):
    x = np.maximum(points(50), 0)
    np.save(tmp_path / "x.npy", x)
    expected = maximize(lambda targets=None: cut(x, expected=9), 9).indices.tolist()
    for vectors in (csr_array(x), np.load(tmp_path / "x.npy", mmap_mode="r")):
        matrix, options = InfluenceMatrix.from_array(np.abs(x)), ObjectiveOptions(features=vectors, expected=9)
        assert maximize(lambda targets=None: GraphCut(matrix, options), 9).indices.tolist() == expected  # noqa: B023


def test_wide_vectors_are_projected():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 3 * WIDEST)).astype(np.float32)
    x[1] = x[0] + 0.3 * x[1]
    rows = FeatureKernel(x, 6, widest=WIDEST).rows(slice(0, 6))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert rows.shape == (6, WIDEST)
    assert np.abs(rows @ rows.T - unit @ unit.T).max() < 0.2
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(6), rel=1e-5)
