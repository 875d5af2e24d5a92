"""The targets that a selection serves, against a slow count, and when one of them dominates."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncift.matrix import selectors
from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.served import TargetsServed, targets_served


def counted_slowly(influence: np.ndarray, rows: list[int], own: list[int] | None) -> dict | None:
    """The counts sample by sample and target by target, with exact fractions."""
    values = {
        (k, j): influence[i, j]
        for k, i in enumerate(rows)
        for j in range(influence.shape[1])
        if own is None or own[k] != j
    }
    frequency: Counter[int] = Counter()
    for k in range(len(rows)):
        mine = {j: value for (row, j), value in values.items() if row == k and value > 0}
        best = [j for j, value in mine.items() if value == max(mine.values())]
        for j in best:
            frequency[j] += Fraction(1, len(best))
    widths: Counter[int] = Counter()
    for j in range(influence.shape[1]):
        theirs = {k: value for (k, target), value in values.items() if target == j and value > 0}
        if theirs:
            widths[max(theirs, key=lambda k: (theirs[k], -k))] += 1
    if all(len({v for (row, _), v in values.items() if row == k}) <= 1 for k in range(len(rows))):
        return None
    top = max(range(influence.shape[1]), key=lambda j: (frequency[j], -j))
    return {
        "targets": influence.shape[1],
        "selected": round(sum(frequency.values())),
        "served": sum(value > 0 for value in frequency.values()),
        "target": top,
        "most": pytest.approx(float(frequency[top]), abs=1e-5),
        "covered": sum(widths.values()),
        "covering": len(widths),
        "widest": max(widths.values(), default=0),
    }


@given(st.data(), st.booleans(), st.integers(1, 40))
def test_counts_are_those_of_a_slow_count(data, own_target, tile):
    n, n_target = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 6))
    n_target = n if own_target else n_target
    cells = st.lists(st.integers(-2, 3), min_size=n * n_target, max_size=n * n_target)
    influence = np.array(data.draw(cells), np.float32).reshape(n, n_target)
    rows = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selectors, "TILE", tile)  # blocks of one row and more
        kept = influence.copy()
        chosen = np.array(rows)
        found = targets_served(InfluenceMatrix.from_array(influence), chosen, own=chosen if own_target else None)
    assert np.array_equal(influence, kept)
    slow = counted_slowly(influence, rows, rows if own_target else None)
    assert (None if found is None else vars(found)) == slow


def served(targets: int, selected: int, most: float) -> TargetsServed:
    return TargetsServed(targets, selected, 1, 0, most, targets, 1, targets)


@pytest.mark.parametrize(
    ("targets", "selected", "most", "dominated"),
    [
        (30, 30, 22, True),  # the run that asked for this
        (30, 30, 15, False),  # half
        (30, 1, 1, False),  # one sample always has one best target
        (2, 30, 20, False),  # two thirds for one of two targets
        (2, 30, 25, True),
        (1, 30, 30, False),  # one target cannot dominate
        (30, 0, 0, False),
        (3, 3, 2, False),  # as chance has it
    ],
)
def test_a_target_dominates_above_the_middle_between_an_even_spread_and_all(targets, selected, most, dominated):
    assert served(targets, selected, most).is_dominated == dominated


def test_chance_seldom_dominates():
    rng = np.random.default_rng(0)
    for targets, selected in ((2, 5), (3, 4), (10, 3), (50, 3), (5, 20)):
        draws = rng.integers(targets, size=(400, selected))
        most = [np.bincount(draw).max() for draw in draws]
        assert np.mean([served(targets, selected, count).is_dominated for count in most]) <= 0.06
