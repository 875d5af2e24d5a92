"""Collecting exact values: memory that runs out, and how blocks are cut."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from builders import named
from nncift.errors import ModelError
from nncift.labels.collect import collect


@pytest.fixture
def pool():
    return named([("a", "b")] * 300, "x")


class Product:
    """Influence by row and column number, with memory for blocks of a few pairs."""

    name = "product"

    def __init__(self, most: int = 10**9) -> None:
        self.most = most
        self.blocks: list[tuple[int, int]] = []

    def __call__(self, pool_rows, target_rows):
        if len(pool_rows) * len(target_rows) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.blocks.append((len(pool_rows), len(target_rows)))
        rows, columns = ([int(name[1:]) for name in samples["id"]] for samples in (pool_rows, target_rows))
        return np.outer(rows, columns)


class Pointwise(Product):
    pointwise = True
    progress = False


@pytest.mark.parametrize("most", [10, 3, 1])
def test_a_block_that_does_not_fit_is_halved_and_the_log_says_so(pool, tmp_path, caplog, most):
    rows, columns = np.arange(3, 7), np.arange(20, 26)
    whole = collect(Product(), pool, pool, rows, columns)
    function = Product(most)
    with caplog.at_level(logging.INFO, "nncift"):
        halved = collect(function, pool, pool, rows, columns, folder=tmp_path)
    for name in ("pool_index", "target_index", "influence"):
        np.testing.assert_array_equal(getattr(halved, name), getattr(whole, name))
    np.testing.assert_array_equal(halved.influence, (halved.pool_index * halved.target_index).astype(np.float32))
    assert max(height * width for height, width in function.blocks) <= most
    assert "memory ran out on a block of 4 x 6 pairs, which was halved" in caplog.text


def test_a_pair_that_does_not_fit_is_named(pool):
    with pytest.raises(ModelError, match="the influence of 'x7' on 'x9' does not fit into memory"):
        collect(Product(0), pool, pool, np.array([7]), np.array([9]))


def test_other_errors_pass(pool):
    class Broken(Product):
        def __call__(self, pool_rows, target_rows):
            raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        collect(Broken(), pool, pool, np.array([7]), np.array([9]))


def test_blocks_of_a_pointwise_function_are_tall(pool):
    pairwise, pointwise = Product(), Pointwise()
    for function in (pairwise, pointwise):
        collect(function, pool, pool, np.arange(200), np.arange(64), progress=function is pointwise)
    assert pairwise.blocks[0] == (2, 64)
    assert pointwise.blocks == [(128, 64), (72, 64)]
    assert pointwise.progress
    assert not hasattr(pairwise, "progress")


def test_one_pair_of_each_row(pool, tmp_path):
    rows, columns = np.arange(300)[::2], np.resize(np.arange(40, 47), (150, 1))
    pairs = collect(Pointwise(), pool, pool, rows, columns, folder=tmp_path)
    np.testing.assert_array_equal(pairs.pool_index, rows)
    np.testing.assert_array_equal(pairs.target_index, columns[:, 0])
    np.testing.assert_array_equal(pairs.influence, pairs.pool_index * pairs.target_index)
    train, held_out = pairs.split()
    assert set(held_out.quadrants(train)) == {"Q2", "Q4"}  # a row is held out with its target


def test_one_pair_of_each_row_resumes(pool, tmp_path):
    def stop():
        raise KeyboardInterrupt

    rows, columns = np.arange(300), np.resize(np.arange(7), (300, 1))
    whole = collect(Pointwise(), pool, pool, rows, columns)
    with pytest.raises(KeyboardInterrupt):
        collect(Pointwise(), pool, pool, rows, columns, folder=tmp_path, after_block=stop)
    resumed = Pointwise()
    found = collect(resumed, pool, pool, rows, columns, folder=tmp_path)
    assert [height for height, _ in resumed.blocks] == [128, 44]
    for name in ("pool_index", "target_index", "influence"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
