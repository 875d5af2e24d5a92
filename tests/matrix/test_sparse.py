"""The strongest helpers of each target: equal to sorting all entries where all are visited, bounded where not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.errors import ConfigError
from nncift.matrix import sparse
from nncift.matrix.cells import CELL, NO_HELPER, divide, strongest
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.planning.forms import choose_form, first_helpers, form_memory, most_helpers
from nncift.matrix.products import product_matrix
from nncift.matrix.sparse import Audit, sparsified
from nncift.matrix.stored import in_memory


def towers(seed: int, n: int, m: int, rank: int = 6) -> InfluenceMatrix:
    rng = np.random.default_rng(seed)
    sides = (rng.standard_normal((size, rank)).astype(np.float32) for size in (n, m))
    biases = (rng.standard_normal(size).astype(np.float32) / 2 for size in (n, m))
    return InfluenceMatrix.from_towers(*sides, **dict(zip(("pool_bias", "target_bias"), biases, strict=True)))


def clusters(n: int, seed: int = 0, count: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 16))[rng.integers(0, count, n)] + 0.4 * rng.standard_normal((n, 16))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def kept(dense: np.ndarray, k: int) -> np.ndarray:
    """The definition: the k largest entries of each column, of equal ones the lower rows; below 0 nothing."""
    out = np.zeros_like(dense)
    for j, column in enumerate(dense.T):
        largest = np.argsort(-column, kind="stable")[:k]
        out[largest, j] = np.maximum(column[largest], 0)
    return out


@given(seed=st.integers(0, 99), n=st.integers(1, 60), m=st.integers(1, 150), k=st.integers(1, 70))
@settings(deadline=None, max_examples=40)
def test_keeps_the_strongest_helpers_of_each_target(seed, n, m, k):
    matrix = towers(seed, n, m)
    dense = matrix.rows(slice(None))
    found = sparsified(matrix, k)
    np.testing.assert_array_equal(found.rows(slice(None)), kept(dense, k))
    floor = np.sort(dense, axis=0)[-k] if k < n else np.zeros(m)
    np.testing.assert_array_equal(found.floor, np.maximum(floor, 0))
    assert (found.audit, found.helpers, found.confidence) == (None, min(k, n), 1)
    np.testing.assert_array_equal(found.row_max(), matrix.row_max())  # of the whole matrix
    columns = np.arange(m)[::-3]
    np.testing.assert_array_equal(found.columns(columns), kept(dense, k)[:, columns])


def test_of_equal_entries_those_of_lower_samples_are_kept():
    same = np.ones((40, 3), np.float32)
    values, helpers = strongest(product_matrix(same, same[:5], held=0).products()[0], 7, None)
    assert (values == 3).all()
    np.testing.assert_array_equal(np.sort(helpers, axis=1), np.tile(np.arange(7), (5, 1)))


def test_reductions_equal_those_of_the_same_entries_stored():
    matrix = towers(3, 50, 200)
    found = sparsified(matrix, 9)
    same = InfluenceMatrix.from_array(found.rows(slice(None)))
    rng = np.random.default_rng(0)
    rows, covered = rng.permutation(50)[:20], rng.random(200).astype(np.float32)
    np.testing.assert_allclose(found.coverage_gains(rows, covered), same.coverage_gains(rows, covered), rtol=1e-12)
    shares = rng.random(20)
    np.testing.assert_allclose(found.count_above(rows, shares, covered), same.count_above(rows, shares, covered))
    one, other = covered.copy(), covered.copy()
    found.cover(rows, one)
    same.cover(rows, other)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("transform", [None, lambda products: np.exp(products - 1)])
def test_of_inner_products_with_a_transform(transform):
    x = clusters(80)
    matrix = product_matrix(x, x[:30], transform, held=0)
    np.testing.assert_allclose(sparsified(matrix, 5).rows(slice(None)), kept(matrix.rows(slice(None)), 5), rtol=1e-5)


def test_a_falling_transform_or_a_relu_network_has_no_sparse_form():
    x = clusters(10)
    units = InfluenceMatrix.from_factors(x, x, output_weight=np.ones(16, np.float32), output_bias=0.0)
    for matrix in (product_matrix(x, x, np.negative, held=0), units, InfluenceMatrix.from_array(x)):
        assert not matrix.is_inner_product
        with pytest.raises(ConfigError, match="no sparse form"):
            sparsified(matrix, 3)


@given(seed=st.integers(0, 99), n=st.integers(1, 1500), distinct=st.sampled_from([1, 2, 3000]))
@settings(deadline=None, max_examples=15)
def test_cells_divide_all_samples(seed, n, distinct):
    vectors = clusters(distinct, seed)[np.random.default_rng(seed).integers(0, distinct, n)]
    cells = divide(vectors, seed=seed)
    assert max(map(len, cells)) <= CELL
    np.testing.assert_array_equal(np.sort(np.concatenate(cells)), np.arange(n))


def test_visits_find_most_of_the_strongest_and_the_audit_bounds_the_rest():
    n = 4000
    x = clusters(n, count=16)
    matrix = product_matrix(x, x, held=0)
    dense = matrix.rows(slice(None))
    found = sparsified(matrix, 20, visits=1000)
    values = found.rows(slice(None))
    rank_20 = np.sort(dense, axis=0)[-20]
    assert ((values > 0).sum(axis=0) == 20).all()
    assert np.mean(values[values > 0] >= rank_20[np.nonzero(values)[1]]) > 0.9  # of what is kept belongs there
    left_out = np.where(values > 0, -np.inf, dense).max(axis=0)
    assert found.audit is not None
    left_out = np.maximum(left_out, 0)
    missed = np.where(left_out > found.floor, left_out, 0)[found.audit.targets]
    np.testing.assert_allclose(found.audit.largest, missed, rtol=1e-6)
    assert (found.audit.most >= dense.max(axis=0)).all()
    for levels in (found.floor, np.float32(1.05) * found.floor):
        assert found.unseen(levels) >= np.maximum(left_out - levels, 0).sum()


@given(seed=st.integers(0, 400), scale=st.sampled_from([0.001, 0.1, 1.0]))
@settings(deadline=None, max_examples=60)
def test_the_bound_of_the_audit_holds(seed, scale):
    rng = np.random.default_rng(seed)
    largest = (rng.random(5000) * (rng.random(5000) < scale)).astype(np.float32)
    targets = rng.integers(0, 5000, 300)
    audit = Audit(targets, largest[targets], np.ones(5000, np.float32))
    levels = np.full(5000, 0.25, np.float32)
    assert audit.unseen(levels) >= np.maximum(largest - levels, 0).sum()


@pytest.mark.parametrize("values", [np.zeros(400), np.ones(400), np.repeat([0.0, 1.0], 200), np.linspace(0, 0.1, 400)])
def test_a_bound_of_a_mean_is_the_smaller_of_bernstein_s_and_chernoff_s(values):
    m, mean, doubt = len(values), values.mean(), 1e-4
    log = np.log(4 / doubt)
    bernstein = mean + np.sqrt(2 * values.var(ddof=1) * log / m) + 7 * log / (3 * (m - 1))
    grid = np.linspace(1e-6, 1 - 1e-6, 100_001)
    least = mean * np.log(mean / grid) if mean else 0.0
    most = (1 - mean) * np.log((1 - mean) / (1 - grid)) if mean < 1 else 0.0
    chernoff = grid[(least + most <= np.log(2 / doubt) / m) & (grid >= mean)].max(initial=mean)
    assert sparse._largest_mean(values, doubt) == pytest.approx(min(bernstein, chernoff), abs=2e-5)


def test_the_same_for_any_number_of_threads(monkeypatch):
    x = clusters(3000)
    matrix = product_matrix(x, x, held=0)
    one = sparsified(matrix, 10, visits=600)
    monkeypatch.setattr("nncift.matrix.compiled.kernels.THREADS", 3)
    other = sparsified(matrix, 10, visits=600)
    for a, b in zip((*one.stored, one.floor), (*other.stored, other.floor), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.audit.largest, other.audit.largest)


def test_fewer_samples_than_helpers_leave_places_empty():
    values, helpers = strongest(towers(0, 3, 4).products()[0], 5, None)
    assert ((helpers == NO_HELPER) == np.isinf(values)).all()
    assert (np.isinf(values).sum(axis=1) == 2).all()


def test_the_form_is_decided_by_memory_and_size(monkeypatch):
    monkeypatch.setattr("nncift.matrix.planning.forms.memory_bytes", lambda: 16 << 30)
    assert choose_form(10_000, 10_000, 1000, may_be_sparse=True) == "stored"
    assert choose_form(52_000, 52_000, 5200, may_be_sparse=True) == "sparse"
    assert choose_form(52_000, 52_000, 5200, may_be_sparse=False) == "streamed"
    assert choose_form(2_000_000, 1000, 10_000, may_be_sparse=True) == "streamed"
    assert choose_form(1_000_000, 1_000_000, 10_000, may_be_sparse=True) == "sparse"
    assert choose_form(1_000_000, 1_000_000, 100, may_be_sparse=True) == "streamed"  # too few helpers fit
    assert first_helpers(52_000, 52_000, 5200) == 40
    assert first_helpers(1_000_000, 1_000_000, 10_000) == 400
    assert most_helpers(1_000_000, 1_000_000) == 429
    assert form_memory("sparse", 52_000, 52_000, 5200) == 8 * 40 * 52_000
    monkeypatch.setattr("nncift.matrix.planning.forms.memory_bytes", lambda: 1 << 30)
    assert choose_form(10_000, 10_000, 1000, may_be_sparse=True) == "streamed"


def test_stored_entries_equal_those_computed():
    matrix = towers(1, 40, 70)
    same = in_memory(matrix)
    assert in_memory(same) is same
    rows, covered = np.arange(39, 3, -2), np.full(70, 0.3, np.float32)
    np.testing.assert_array_equal(same.coverage_gains(rows, covered), matrix.coverage_gains(rows, covered))
    assert sparse.visits_of(sparse.EXACT_BELOW, 10) is None
