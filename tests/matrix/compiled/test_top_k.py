"""The k largest entries of each column, and the entries by pool sample: equal to sorting them all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.matrix.cells import _first_cells
from nncift.matrix.compiled import kernels
from nncift.matrix.compiled.factored import Factors, pack
from nncift.matrix.compiled.top_k import NO_ROW, LargestEntries, keep_largest_of_each, keep_top_k
from nncift.matrix.compiled.transposed import by_sample


def factors_of(seed: int, n: int, m: int, distinct: int) -> Factors:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((distinct, 5)).astype(np.float32)[rng.integers(0, distinct, n)]
    return Factors(rows, np.zeros(n, np.float32), pack(rng.standard_normal((m, 5)).astype(np.float32)), m, 0, 0)


@given(
    seed=st.integers(0, 99),
    n=st.integers(1, 900),
    m=st.integers(1, 150),
    k=st.integers(1, 60),
    distinct=st.sampled_from([1, 3, 900]),  # ties
)
@settings(deadline=None, max_examples=40)
def test_the_k_largest_of_each_column_are_those_of_a_stable_sort(seed, n, m, k, distinct):
    factors = factors_of(seed, n, m, distinct)
    picked = np.random.default_rng(seed).permutation(n)[: max(n - 3, 1)]
    dense = kernels.score(factors, np.arange(n))
    values, rows = np.empty((m, k), np.float32), np.empty((m, k), np.int32)
    keep_top_k(factors, picked, np.arange(m)[::-1], values, rows)
    kept = min(k, len(picked))
    for j, (found, at) in enumerate(zip(values[::-1], rows[::-1], strict=True)):
        some = np.sort(picked)
        expected = some[np.argsort(-dense[some, j], kind="stable")[:k]]
        assert set(at[k - kept :]) == set(expected)
        np.testing.assert_array_equal(found[k - kept :], dense[at[k - kept :], j])
        assert (at[: k - kept] == NO_ROW).all()
        assert found[0] == found.min()
    nearest = np.empty(m, np.int64)
    keep_largest_of_each(factors, nearest)
    np.testing.assert_array_equal(nearest, dense.argmax(axis=0))


@given(seed=st.integers(0, 99), n=st.integers(1, 700), k=st.integers(1, 90), distinct=st.sampled_from([2, 9, 10**6]))
@settings(deadline=None, max_examples=60)
def test_the_largest_of_blocks_are_those_of_a_stable_sort(seed, n, k, distinct):
    """With ties, with and without a level that entries have to exceed, in blocks of any size."""
    rng = np.random.default_rng(seed)
    lines = (rng.integers(-distinct, distinct + 1, (5, n)) / -distinct).astype(np.float32)  # -0 among them
    for above in (None, rng.choice(lines.ravel(), 5).astype(np.float32)):
        largest = LargestEntries(5, k, above)
        first = 0
        while first < n:
            size = int(rng.integers(1, 200))
            for some in (slice(0, 2), slice(2, 5)):
                largest.add(np.ascontiguousarray(lines[some, first : first + size]), first, some)
            first += size
        values, places = largest.sorted()
        for line in range(5):
            order = np.argsort(-lines[line], kind="stable")
            order = order if above is None else order[lines[line][order] > above[line]]
            kept = order[:k]
            assert places[line].tolist() == [*kept.tolist(), *[-1] * (k - len(kept))]
            assert values[line].tolist() == [*lines[line][kept].tolist(), *[-np.inf] * (k - len(kept))]


@pytest.mark.parametrize("above", [2**31 - 5, 40])
@given(seed=st.integers(0, 99), n=st.integers(1, 5000), m=st.integers(1, 300), k=st.integers(1, 20))
@settings(deadline=None, max_examples=25)
def test_entries_by_sample_are_those_above_0_by_target(above, seed, n, m, k):
    rng = np.random.default_rng(seed)
    which = rng.integers(max(n - above, 0), n, (m, k), dtype=np.int32)
    values = rng.standard_normal((m, k)).astype(np.float32)
    which[values < -1], values[values < -1] = NO_ROW, -np.inf
    j, place = np.nonzero(values > 0)
    expected = sorted(zip(which[j, place].tolist(), j.tolist(), values[j, place].tolist(), strict=True))
    entries = by_sample(values.copy(), which.copy(), n)
    samples = np.repeat(np.arange(n), np.diff(entries.starts))
    found = zip(samples.tolist(), entries.columns.tolist(), entries.values.tolist(), strict=True)
    assert sorted(found) == expected


@given(seed=st.integers(0, 99), visits=st.integers(1, 20_000))
@settings(deadline=None, max_examples=30)
def test_cells_are_visited_in_the_order_of_all(seed, visits):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 257, 300)
    scores = rng.integers(0, 60, 300).astype(np.float32)
    visits = min(visits, int(sizes.sum()))
    order = np.argsort(-scores, kind="stable")
    count = int(np.searchsorted(np.cumsum(sizes[order]), visits)) + 1
    np.testing.assert_array_equal(_first_cells(scores, sizes, visits), order[:count])
