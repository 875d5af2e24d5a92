"""The first cut: targets take turns, samples without targets keep their density, known samples count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.data.near_duplicates import unit
from nncift.features.static import StaticVectors
from nncift.selection import first_cut
from nncift.selection.first_cut import most_similar, representative


def vectors(n: int, seed: int, width: int = 6) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32))


def in_turns(similarity: np.ndarray, count: int, covered: np.ndarray | None) -> set[int]:
    """The slow reference: every sample of every target at its time, at one time the most similar first."""
    taken: list[int] = []
    turns = []
    for j, column in enumerate(similarity.T):
        least = -np.inf if covered is None else covered[j]
        rows = [i for i in np.argsort(-column, kind="stable") if column[i] > least]
        weight = 1.0 if covered is None else float(column.max() - least)
        turns += [((rank + 1) / weight, -column[i], int(i)) for rank, i in enumerate(rows)]
    for _, _, i in sorted(turns):
        if i not in taken:
            taken.append(i)
    rest = [int(i) for i in np.argsort(-similarity.max(axis=1), kind="stable") if i not in taken]
    return set([*taken, *rest][:count])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 10**6), st.data())
def test_targets_take_turns(n: int, m: int, seed: int, data):
    pool, targets = vectors(n, seed), vectors(m, seed + 1)
    count = data.draw(st.integers(1, n))
    covered = data.draw(st.none() | st.just(np.linspace(-1, 1, m).astype(np.float32)))
    found = most_similar(pool, targets, count, covered=covered)
    similarity = targets @ pool.T
    assert set(found.rows.tolist()) == in_turns(similarity.T, count, covered)
    assert np.allclose(found.scores, similarity.max(axis=0), atol=1e-6)
    assert (np.diff(found.rows) > 0).all()


def test_a_target_far_from_the_others_keeps_its_share():
    targets = np.eye(2, 6, dtype=np.float32)
    near = unit(targets[0] + 0.1 * vectors(90, 0))
    far = unit(targets[1] + 2.0 * vectors(30, 1))
    found = most_similar(np.concatenate([near, far]), targets, 20)
    assert (found.rows >= 90).sum() == 10


def test_lists_that_are_too_short_are_made_longer(monkeypatch):
    pool, targets = vectors(50, 3), np.repeat(vectors(1, 4), 8, axis=0)  # all take the same samples
    whole = set(np.argsort(-(pool @ targets[0]))[:40].tolist())
    assert set(most_similar(pool, targets, 40).rows.tolist()) == whole
    monkeypatch.setattr(first_cut, "_ENTRIES", 80)  # ten of each target: the rest by the largest similarity
    assert set(most_similar(pool, targets, 40).rows.tolist()) == whole


def test_many_targets_are_sampled(monkeypatch):
    monkeypatch.setattr(first_cut, "MOST_TARGETS", 5)
    pool, targets = vectors(60, 5), vectors(30, 6)
    one, other = (most_similar(pool, targets, 20, seed=1, covered=np.zeros(30, np.float32)) for _ in range(2))
    assert len(one.rows) == 20
    assert np.array_equal(one.rows, other.rows)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10**6), st.data())
def test_representative_samples_are_distinct_and_repeatable(n: int, seed: int, data):
    pool, count = vectors(n, seed), data.draw(st.integers(1, n))
    one, other = (representative(pool, count, seed=seed) for _ in range(2))
    assert np.array_equal(one.rows, other.rows)
    assert len(np.unique(one.rows)) == count
    assert 0 <= one.rows.min() <= one.rows.max() < n


def test_representative_samples_keep_the_density():
    sizes = (400, 100, 40)
    centres = np.eye(3, 6, dtype=np.float32)
    pool = np.concatenate([unit(centres[k] + 0.1 * vectors(size, k)) for k, size in enumerate(sizes)])
    groups = np.repeat(np.arange(3), sizes)
    counts = np.bincount(groups[representative(pool, 54).rows])
    assert np.abs(counts - np.array(sizes) / 10).max() <= 2


def test_known_samples_are_not_represented_again():
    centres = np.eye(2, 6, dtype=np.float32)
    pool = np.concatenate([unit(centres[k] + 0.05 * vectors(100, k)) for k in range(2)])
    known = unit(centres[:1] + 0.05 * vectors(50, 9))
    assert (representative(pool, 20, known=known).rows >= 100).mean() > 0.9
    assert (representative(pool, 20, known=known, nu=0).rows >= 100).sum() == pytest.approx(10, abs=1)
    every = representative(pool, 200, known=known)  # more than those that count
    assert np.array_equal(every.rows, np.arange(200))
    target = np.concatenate([centres, centres])
    covered = (target @ known.T).max(axis=1)
    assert (most_similar(pool, target, 20, covered=covered).rows >= 100).mean() >= 0.9


def test_vectors_in_float16_read_as_an_array():
    whole = vectors(23, 7)
    parts = StaticVectors(
        [whole[:10].astype(np.float16), whole[10:20].astype(np.float16), whole[20:].astype(np.float16)], 10
    )
    assert parts.shape == whole.shape
    for rows in (slice(0, 23), slice(5, 15), slice(None, None, 3), np.array([22, 0, 9, 10, 10]), np.zeros(0, int)):
        assert parts[rows].dtype == np.float32
        assert np.allclose(parts[rows], whole[rows], atol=1e-3)
    assert np.array_equal(most_similar(parts, vectors(3, 8), 9).rows, most_similar(parts[:], vectors(3, 8), 9).rows)
