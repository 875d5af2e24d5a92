"""The first cut: targets take turns, samples without targets keep their density, known samples count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.data.cleaning.near_duplicates import unit
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


def clusters(*sizes: int) -> np.ndarray:
    centres = np.eye(len(sizes), 6, dtype=np.float32)
    return np.concatenate([unit(centres[k] + 0.1 * vectors(size, k)) for k, size in enumerate(sizes)])


def test_a_small_pool_is_represented_by_facility_location():
    pool, known = clusters(40, 30), vectors(5, 8)
    similarity = pool @ pool.T
    covered = {False: np.zeros(70, np.float32), True: 0.5 * np.maximum((pool @ known.T).max(axis=1), 0)}
    for with_known in (False, True):
        chosen: list[int] = []
        for _ in range(9):  # plain greedy
            level = np.maximum(covered[with_known], similarity[chosen].max(axis=0, initial=0))
            chosen.append(int(np.maximum(similarity - level, 0).sum(axis=1).argmax()))
        found = representative(pool, 9, known=known if with_known else None, nu=0.5)
        assert found.rows.tolist() == sorted(chosen)


def test_groups_of_a_large_pool_keep_their_shares(monkeypatch):
    monkeypatch.setattr(first_cut, "_PART", 150)
    monkeypatch.setattr(first_cut, "_GROUP", 50)
    sizes = (400, 100, 40)
    groups = np.repeat(np.arange(3), sizes)
    found = representative(clusters(*sizes), 54)
    assert len(np.unique(found.rows)) == 54
    assert np.abs(np.bincount(groups[found.rows]) - np.array(sizes) / 10).max() <= 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 9)), min_size=1, max_size=9), st.data())
def test_shares_are_as_many_as_asked_for(parts: list[tuple[float, int]], data):
    weights, sizes = np.array([weight for weight, _ in parts]), [size for _, size in parts]
    count = data.draw(st.integers(0, sum(sizes)))
    shares = first_cut._shares(weights, sizes, count)
    assert shares.sum() == count
    assert (shares <= sizes).all()
    expected = count * weights / max(weights.sum(), 1e-9)
    if (expected + 1 <= sizes).all() and weights.sum() > 1e-6:
        assert (np.abs(shares - expected) < 1 + 1e-6).all()


@pytest.mark.parametrize("part", [60, 4096])
def test_known_samples_are_not_represented_again(part: int, monkeypatch):
    monkeypatch.setattr(first_cut, "_PART", part)
    monkeypatch.setattr(first_cut, "_GROUP", 40)
    pool, known = clusters(100, 100), clusters(50, 1)[:50]
    assert (representative(pool, 20, known=known).rows >= 100).mean() > 0.8
    assert (representative(pool, 20, known=known, nu=0).rows >= 100).sum() == pytest.approx(10, abs=2)
    assert np.array_equal(representative(pool, 200, known=known).rows, np.arange(200))
    target = np.repeat(np.eye(2, 6, dtype=np.float32), 2, axis=0)
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


def test_vectors_around_a_centre():
    whole = vectors(23, 7)
    parts = StaticVectors([whole[k : k + 10].astype(np.float16) for k in (0, 10, 20)], 10)
    assert np.allclose(parts.mean, whole.mean(axis=0), atol=1e-3)
    assert np.allclose(parts.around(parts.mean)[3:21], unit(whole - whole.mean(axis=0))[3:21], atol=5e-3)
