"""Products of vectors as an influence matrix, dense and sparse, held and streamed, against entries one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from nncift.errors import ConfigError
from nncift.matrix import products
from nncift.matrix.products import product_matrix


def sharp(values: np.ndarray) -> np.ndarray:
    return np.exp(2 * (values - 1))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("held", [0, products.HELD])
@given(seed=st.integers(0, 99), n=st.integers(1, 9), m=st.integers(1, 9), transform=st.sampled_from([None, sharp]))
@settings(deadline=None, max_examples=25)
def test_equals_entries_one_by_one(sparse, held, seed, n, m, transform):
    rng = np.random.default_rng(seed)
    u, v = ((rng.normal(size=(k, 4)) * (rng.random((k, 4)) < 0.5)).astype(np.float32) for k in (n, m))
    expected = np.array([[sum(float(a) * float(b) for a, b in zip(x, y, strict=True)) for y in v] for x in u])
    expected = expected if transform is None else np.exp(2 * (expected - 1))
    sides = (csr_array(u), csr_array(v)) if sparse else (u, v)
    matrix = product_matrix(*sides, transform, held=held)
    assert matrix.shape == (n, m)
    np.testing.assert_allclose(matrix.rows(slice(None)), expected, rtol=1e-5, atol=1e-6)
    rows, columns = rng.integers(0, n, 5), rng.integers(0, m, 3)
    np.testing.assert_allclose(matrix.block(rows, columns), expected[np.ix_(rows, columns)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(matrix.block(slice(0, n), columns), expected[:, columns], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(matrix.row_means(), expected.mean(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(matrix.column_max(), expected.max(axis=0), rtol=1e-5, atol=1e-6)


def test_a_small_matrix_is_computed_once_and_a_large_one_on_access(monkeypatch):
    asked = []

    def counting(values: np.ndarray) -> np.ndarray:
        asked.append(values.size)
        return values

    u, v = np.eye(6, 3, dtype=np.float32), np.ones((5, 3), np.float32)
    small = product_matrix(u, v, counting, held=4 * 6 * 5)
    assert sum(asked) == 30
    small.row_means()
    assert sum(asked) == 30
    asked.clear()
    large = product_matrix(u, v, counting, held=4 * 6 * 5 - 1)
    assert not asked
    monkeypatch.setattr("nncift.matrix.selectors.TILE", 10)
    np.testing.assert_array_equal(large.row_means(), small.row_means())
    assert max(asked) == 10  # never the whole


@pytest.mark.parametrize(("pool", "targets", "averaged"), [(1 << 17, 1 << 18, 1 << 18), (1 << 18, 1 << 18, 1 << 17)])
def test_how_many_targets_means_are_over(pool, targets, averaged):
    assert products.averaged_targets(pool, targets) == averaged


def test_means_of_very_many_pairs_are_over_a_sample_of_the_targets(monkeypatch):
    u, v = np.random.default_rng(0).standard_normal((2, 40, 3), dtype=np.float32)
    monkeypatch.setattr(products, "MEANS_EXACT", 400)
    matrix = product_matrix(u, v, held=0)
    assert len(matrix.averaged) == 10
    np.testing.assert_allclose(matrix.row_means(), matrix.block(slice(0, 40), matrix.averaged).mean(axis=1), atol=1e-6)


def test_vectors_of_different_length():
    with pytest.raises(ConfigError, match="vectors of 3 and 2 numbers have no inner product"):
        product_matrix(np.zeros((4, 3), np.float32), np.zeros((4, 2), np.float32))
