"""Neighbours, reasons and the map, from vectors of samples."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from nncift.explorer.layout import positions
from nncift.explorer.reasons import find_reasons
from nncift.explorer.space import nearest
from nncift.matrix.cells import divide
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.products import product_matrix

INSTALLED = all(importlib.util.find_spec(name) for name in ("umap", "embedding_atlas"))
needs_packages = pytest.mark.skipif(not INSTALLED, reason="the packages of the extra `explore` are not installed")


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random_space(n: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, width)))


@pytest.mark.parametrize("among", [None, [1, 4, 5, 9, 30], []])
def test_nearest_are_those_with_the_largest_cosines(among):
    space = random_space(40)
    queries, some = np.array([0, 4, 5, 17]), None if among is None else np.array(among, np.int64)
    rows, cosines = nearest(space, queries, 6, among=some)
    for query, found, values in zip(queries, rows, cosines, strict=True):
        others = [row for row in (range(40) if among is None else among) if row != query]
        expected = sorted(others, key=lambda row: -float(space[query] @ space[row]))[:6]
        assert found.tolist() == expected + [-1] * (6 - len(expected))
        np.testing.assert_allclose(values[: len(expected)], space[expected] @ space[query], atol=1e-6)
        assert np.isnan(values[len(expected) :]).all()


def test_nearest_within_cells_that_were_divided_before():
    centres = 3 * random_space(20)
    space = unit(centres[np.arange(1500) % 20] + random_space(1500, seed=1))
    every, some, left = np.arange(1500), np.arange(0, 1500, 3), np.delete(np.arange(1500), np.arange(0, 1500, 3))
    cells, search = divide(space), {"exact": 0, "visits": 400}
    for found, again in zip(
        nearest(space, every, 5, **search), nearest(space, every, 5, cells=cells, **search), strict=True
    ):
        np.testing.assert_array_equal(found, again)
    for queries, among in ((some, left), (left, every), (left, left)):
        rows, cosines = nearest(space, queries, 5, among=among, cells=cells, **search)
        assert np.isin(rows, among).all()
        assert not (rows == queries[:, None]).any()
        np.testing.assert_allclose(cosines, np.einsum("nd,nkd->nk", space[queries], space[rows]), atol=1e-6)
        true, _ = nearest(space, queries, 5, among=among)
        assert np.mean([len(np.intersect1d(*pair)) for pair in zip(rows, true, strict=True)]) > 4


def test_equal_samples_are_their_own_neighbours_never():
    rows, _ = nearest(np.ones((5, 1), np.float32), np.arange(5), 3)
    assert [row.tolist() for row in rows] == [[k for k in range(5) if k != i][:3] for i in range(5)]


@pytest.mark.parametrize("own_target", [False, True])
def test_reasons_are_those_of_the_whole_matrix(own_target):
    values = np.random.default_rng(2).standard_normal((30, 30 if own_target else 7)).astype(np.float32)
    chosen, space = np.array([21, 3, 8]), random_space(30)
    neighbours = nearest(space, np.arange(30), 4)[0]
    found = find_reasons(InfluenceMatrix.from_array(values), chosen, space, neighbours, own_target=own_target)
    for i in range(30):
        targets = [j for j in range(values.shape[1]) if values[i, j] > 0 and not (own_target and i == j)]
        best = sorted(targets, key=lambda j: -values[i, j])[:3]
        assert found.helps[i].tolist() == best + [-1] * (3 - len(best))
        np.testing.assert_array_equal(found.helped[i, : len(best)], values[i, best])
        if i in chosen or not (own_target or best):
            assert found.covered_by[i] == -1
        else:
            on = i if own_target else best[0]
            assert found.covered_by[i] == max(chosen, key=lambda c: values[c, on])
            assert found.coverage[i] == values[chosen, on].max()


def test_reasons_of_too_many_pairs_are_of_neighbours_or_of_a_sample():
    space, chosen = random_space(60), np.arange(0, 60, 5)
    neighbours = nearest(space, np.arange(60), 8)[0]
    matrix = product_matrix(space, space, np.exp, held=0)
    found = find_reasons(matrix, chosen, space, neighbours, own_target=True, work=1)
    whole = np.exp(space @ space.T)
    for i in range(60):
        assert found.helps[i].tolist() == neighbours[i, :3].tolist()  # influence grows with the cosine
        np.testing.assert_allclose(found.helped[i], whole[i, found.helps[i]], rtol=1e-5)
        if i not in chosen:
            assert found.covered_by[i] == max(chosen, key=lambda c: whole[c, i])
    values = np.random.default_rng(0).random((60, 40)).astype(np.float32)
    drawn = find_reasons(
        InfluenceMatrix.from_array(values), chosen, space, neighbours, own_target=False, work=60 * 128 * 5
    )
    assert drawn.sampled == 5 == len(np.unique(drawn.helps))
    np.testing.assert_array_equal(drawn.helped[:, 0], values[np.arange(60), drawn.helps[:, 0]])
    left_out = np.setdiff1d(np.arange(60), chosen)
    assert (drawn.coverage[left_out] == values[chosen].max(axis=0)[drawn.helps[left_out, 0]]).all()


def test_scores_for_all_targets_alike_give_no_reasons():
    matrix = InfluenceMatrix.from_array(np.repeat(np.arange(5, dtype=np.float32)[:, None], 3, axis=1))
    space = random_space(5)
    assert find_reasons(matrix, np.array([4]), space, np.zeros((5, 1), int), own_target=False) is None


@pytest.fixture
def pynndescent_uncompiled(monkeypatch):
    """UMAP imports it, to compile it takes half a minute, and the map gives UMAP its neighbours."""
    import numba

    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    import pynndescent  # noqa: F401

    monkeypatch.undo()


@needs_packages
@pytest.mark.usefixtures("pynndescent_uncompiled")
def test_map_is_seeded_and_keeps_groups_together():
    centres = 5 * np.eye(4, 8)
    rng = np.random.default_rng(0)
    group = np.arange(240) % 4
    space = unit(centres[group] + rng.standard_normal((240, 8)))
    found = positions(space, seed=3)
    assert found.shape == (240, 2)
    assert found.dtype == np.float32
    middle = np.stack([found[group == k].mean(axis=0) for k in range(4)])
    assert (np.square(found[:, None] - middle).sum(axis=2).argmin(axis=1) == group).mean() > 0.95
    np.testing.assert_array_equal(positions(space, seed=3), found)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_map_of_a_few_samples(n):
    assert np.isfinite(positions(random_space(n))).all()
