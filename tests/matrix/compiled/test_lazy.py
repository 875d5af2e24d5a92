"""Lazy greedy's queue on stored influence: lists in place of rows change no bit, and many at a time no choice."""

from __future__ import annotations

import numpy as np
import pytest

from nncift.matrix.compiled.entries import LISTED, cover_entries, entries_gains, listed_gains, no_lists
from nncift.matrix.compiled.lazy import _LEAST_ALONE, CoverageQueue
from nncift.matrix.matrix import InfluenceMatrix

N, TARGETS = 600, 203  # not a whole number of the kernels' blocks


@pytest.fixture
def entries():
    """Samples of 20 clusters, with rounded values, so that some gains are equal."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 32))
    pool, targets = (centres[rng.integers(0, 20, n)] + 0.3 * rng.standard_normal((n, 32)) for n in (N, TARGETS))
    return InfluenceMatrix.from_array(np.round(pool @ targets.T, 0).astype(np.float32)).stored


def gains_of_all(entries, covered):
    gains = np.empty(N)
    entries_gains(entries, np.arange(N), covered, gains)
    return gains


def test_gains_by_lists_are_those_of_whole_rows_bit_by_bit(entries):
    lists, covered, gains = no_lists(entries, TARGETS), np.zeros(TARGETS, np.float32), np.empty(N)
    rows = entries.values.reshape(N, TARGETS)
    for i in range(0, N, 10):
        listed_gains(entries, lists, np.arange(N), covered, gains)
        assert np.array_equal(gains, gains_of_all(entries, covered))
        above = (rows > covered).sum(axis=1)
        assert np.array_equal(lists.counts, np.where(above <= TARGETS // LISTED, above, -1))
        cover_entries(entries, np.array([i]), covered)
        assert np.array_equal(covered, np.maximum(rows[0 : i + 1 : 10].max(axis=0), 0))
    assert (lists.counts >= 0).mean() > 0.5


@pytest.mark.parametrize("equal_costs", [True, False])
def test_takes_what_plain_greedy_takes_with_many_evaluated_at_a_time(entries, equal_costs):
    rng = np.random.default_rng(1)
    costs, room = (np.ones(N) if equal_costs else rng.integers(1, 9, N).astype(float)), 90.0
    covered, modular, order = np.zeros(TARGETS, np.float32), rng.integers(0, 3, N).astype(float), rng.permutation(N)
    gains, left = gains_of_all(entries, covered) + modular, order.copy()
    queue, work = CoverageQueue(entries, covered, modular, gains, order, costs), []
    for step in range(60):
        present = gains_of_all(entries, covered) + modular
        left = left[costs[left] <= room]
        best = left[np.argmax(present[left] / costs[left])] if len(left) else None  # of equal ones the first in order
        assert queue.best(step, room) == best
        if best is None:
            break
        assert gains[best] == present[best]
        left, room = left[left != best], room - costs[best]
        cover_entries(entries, np.array([best]), covered)
        work.append(queue.work)
    assert np.diff(work).max() > 2 * _LEAST_ALONE
    assert room < 90 - 20
