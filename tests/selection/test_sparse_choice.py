"""Choices from a sparse matrix: what they lose at most, and a certificate that holds for the whole matrix."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.products import product_matrix
from nncift.matrix.sparse import sparsified
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.coverage import ConcaveCover, FacilityLocation
from nncift.selection.objectives.table import ObjectiveOptions, make_objective

NAMES = [f"facility-location{form}" for form in ("", "-reciprocal-rank", "-mutual-information", "-conditional-gain")]


def problem(seed: int, n: int, m: int) -> InfluenceMatrix:
    rng = np.random.default_rng(seed)
    pool, target = (rng.standard_normal((size, 4)).astype(np.float32) for size in (n, m))
    return product_matrix(pool, target, held=0)


def make(name: str, matrix: InfluenceMatrix):
    known = np.full(matrix.shape[1], 0.3, np.float32) if name.endswith(("gain", "rank")) else None
    return make_objective(name, matrix, ObjectiveOptions(has_target=True, known=known))


def value_of(name: str, matrix: InfluenceMatrix, subset) -> float:
    objective = make(name, matrix)
    for i in subset:
        objective.add(int(i))
    return float(objective.value)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 999), n=st.integers(1, 7), m=st.integers(1, 6), data=st.data())
@settings(deadline=None, max_examples=40)
def test_the_certificate_holds_for_the_whole_matrix(name, seed, n, m, data):
    budget, helpers = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    matrix = problem(seed, n, m)
    objective = make(name, sparsified(matrix, helpers))
    selection = lazy_greedy(objective, budget, certify=True)
    best = max(value_of(name, matrix, subset) for subset in itertools.combinations(range(n), budget))
    assert selection.certificate.bound >= best - 1e-5
    true = value_of(name, matrix, selection.indices)
    assert selection.value <= true + 1e-5
    assert true <= selection.value + objective.matrix.left_out(objective.covered) + 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_with_all_helpers_it_is_the_choice_from_all_pairs(name):
    matrix = problem(1, 60, 40)
    whole = lazy_greedy(make(name, matrix), 12)
    found = lazy_greedy(make(name, sparsified(matrix, 60)), 12)
    assert found.indices.tolist() == whole.indices.tolist()
    np.testing.assert_allclose(found.gains, whole.gains, rtol=1e-5, atol=1e-6)


def test_few_helpers_lose_little_and_the_certificate_is_close():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 32))[rng.integers(0, 20, 3000)] + 0.6 * rng.standard_normal((3000, 32))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    matrix = product_matrix(x, x, held=0)
    whole = lazy_greedy(FacilityLocation(matrix), 150)
    found = lazy_greedy(FacilityLocation(sparsified(matrix, 80)), 150, certify=True)
    assert value_of(NAMES[0], matrix, found.indices) >= 0.99 * whole.value
    assert found.certificate.share > 0.9
    visited = lazy_greedy(FacilityLocation(sparsified(matrix, 80, visits=1000)), 150, certify=True)
    assert value_of(NAMES[0], matrix, visited.indices) >= 0.98 * whole.value
    assert visited.certificate.confidence == 0.999
    assert visited.certificate.bound >= whole.value


def test_another_objective_of_a_sparse_matrix_has_no_bound():
    objective = ConcaveCover(sparsified(problem(0, 9, 5), 3))
    assert "sparse" in lazy_greedy(objective, 3, certify=True).certificate.reason
