"""Collecting exact influence: blocks, resuming, and blocks that run out of memory."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from builders import chat, named, samples
from nncift.errors import DataError, ModelError
from nncift.influence.base import InfluenceFunction, Traits
from nncift.influence.delift import Delift
from nncift.influence.ifd import IFD
from nncift.labels.collect import collect
from nncift.labels.pairs import LabelledPairs
from nncift.models.spec import ModelSpec
from nncift.run.executors.base import computing_with
from worker_jobs import Elsewhere


@pytest.fixture
def pool():
    return named([("a", "b")] * 300, "x")


class Product(InfluenceFunction):
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


def product(pool_rows, target_rows):
    """The same as a plain callable."""
    return Product()(pool_rows, target_rows)


class Pointwise(Product):
    traits = Traits(pointwise=True)


@pytest.mark.parametrize("most", [3, 1])
def test_a_block_that_does_not_fit_is_halved_and_logged(pool, tmp_path, caplog, most):
    rows, columns = np.arange(3, 5), np.arange(20, 23)
    whole = collect(Product(), pool, pool, rows, columns)
    function = Product(most)
    with caplog.at_level(logging.INFO, "nncift"):
        halved = collect(function, pool, pool, rows, columns, folder=tmp_path)
    for name in ("pool_index", "target_index", "influence"):
        np.testing.assert_array_equal(getattr(halved, name), getattr(whole, name))
    np.testing.assert_array_equal(halved.influence, (halved.pool_index * halved.target_index).astype(np.float32))
    assert max(height * width for height, width in function.blocks) <= most
    assert "a block of 2 x 3 pairs ran out of memory and was halved" in caplog.text


def test_a_pair_that_does_not_fit_is_named(pool):
    with pytest.raises(ModelError, match="the influence of 'x7' on 'x9' does not fit into memory"):
        collect(Product(0), pool, pool, np.array([7]), np.array([9]))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (lambda values: 1 / 0, ZeroDivisionError, "division"),
        (lambda values: values.T, DataError, r"shape \(4, 5\) for 5 pool samples and 4 targets"),
        (lambda values: np.where(values == 6, np.nan, values), DataError, "the influence of 'x2' on 'x3' is nan"),
    ],
)
def test_other_errors_pass_and_bad_values_are_refused(pool, values, error, message):
    def function(pool_rows, target_rows):
        return values(product(pool_rows, target_rows))

    with pytest.raises(error, match=message):
        collect(function, pool, pool, np.arange(5), np.arange(4))


def test_blocks_of_a_pointwise_function_are_tall(pool):
    pairwise, pointwise = Product(), Pointwise()
    for function in (pairwise, pointwise):
        collect(function, pool, pool, np.arange(200), np.arange(64), progress=function is pointwise)
    assert pairwise.blocks[0] == (2, 64)
    assert pointwise.blocks == [(128, 64), (72, 64)]
    assert (pairwise.progress, pointwise.progress) == (False, True)


def test_one_pair_of_each_row(pool):
    rows, columns = np.arange(300)[::2], np.resize(np.arange(40, 47), (150, 1))
    pairs = collect(Pointwise(), pool, pool, rows, columns)
    np.testing.assert_array_equal(pairs.pool_index, rows)
    np.testing.assert_array_equal(pairs.target_index, columns[:, 0])
    np.testing.assert_array_equal(pairs.influence, pairs.pool_index * pairs.target_index)
    train, held_out = pairs.split()
    assert set(held_out.quadrants(train)) == {"Q2", "Q4"}  # a row is held out with its target


@pytest.mark.parametrize("function", [Product(), Pointwise(), product], ids=["pairwise", "pointwise", "plain"])
@pytest.mark.parametrize(
    "columns", [np.arange(7), np.resize(np.arange(9), (150, 7)), np.resize(np.arange(7), (150, 1))]
)
def test_killed_and_resumed_with_the_same_bytes(pool, function, columns, tmp_path):
    rows, blocks = np.arange(150), []
    whole = collect(function, pool, pool, rows, columns, folder=tmp_path / "whole")
    np.testing.assert_array_equal(whole.influence, whole.pool_index * whole.target_index)

    def stop():
        blocks.append(1)
        if len(blocks) == 2:
            raise KeyboardInterrupt

    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        collect(function, pool, pool, rows, columns, folder=part, after_block=stop)
    assert sorted(path.name for path in part.iterdir()) == ["block-000000.parquet", "block-000001.parquet"]
    collect(function, pool, pool, rows, columns, folder=part, after_block=stop)
    height = 128 if function is not product and function.traits.pointwise else 128 // columns.shape[-1]
    assert len(blocks) == -(-150 // height)
    assert [path.name for path in part.iterdir()] == ["labels.parquet"]
    assert (part / "labels.parquet").read_bytes() == (tmp_path / "whole" / "labels.parquet").read_bytes()
    collect(function, pool, pool, rows, columns, folder=part, after_block=lambda: pytest.fail("computed again"))


CHATS = [chat("a", "Say one", "One"), chat("b", "Say two", "Two"), {"id": "c", "prompt": "Three", "response": "3"}] * 7


@pytest.mark.parametrize("columns", [np.arange(4), np.resize(np.arange(5), (9, 2))])
@pytest.mark.parametrize("kind", [Delift, IFD])
def test_blocks_are_the_same_in_other_processes(kind, columns, tiny_model, monkeypatch):
    monkeypatch.setattr("nncift.labels.collect.BLOCK_PAIRS", 8)
    rows = samples(CHATS)
    here, there = (kind(ModelSpec(tiny_model, device="cpu")) for _ in range(2))
    known = collect(here, rows, rows, np.arange(3), np.arange(5))
    expected = collect(here, rows, rows, np.arange(2, 11), columns, known=known)
    collect(there, rows, rows, np.arange(3), np.arange(5))
    with computing_with(Elsewhere()):
        found = collect(there, rows, rows, np.arange(2, 11), columns, known=known)
    order = np.argsort(found.pool_index, kind="stable")  # in which blocks were computed
    for name in ("pool_index", "target_index", "influence"):
        np.testing.assert_array_equal(getattr(found, name)[order], getattr(expected, name))
    assert there.forward_tokens == here.forward_tokens
    assert there.cut_ids == here.cut_ids


class OneScore(Pointwise):
    """The number of the row, for every target."""

    def __call__(self, pool_rows, target_rows):
        return np.repeat([[int(name[1:])] for name in pool_rows["id"]], len(target_rows), axis=1)


@pytest.mark.parametrize("columns", [np.arange(20, 24), np.array([[20, 21], [22, 23], [20, 23], [21, 22], [20, 22]])])
@pytest.mark.parametrize("kind", [Product, OneScore])
def test_pairs_that_are_known_are_not_computed(pool, kind, columns):
    rows, prepared = np.arange(5, 10), []
    known = LabelledPairs(
        np.array([5, 5, 6, 7, 7, 7, 7], np.int32),
        np.array([20, 21, 22, 20, 21, 22, 23], np.int32),
        np.arange(7, dtype=np.float32) + 0.5,
    )
    function = kind()
    function.prepare = lambda some, targets, folder=None: prepared.append((some["id"], targets["id"]))
    found = collect(function, pool, pool, rows, columns, known=known)
    plain = collect(kind(), pool, pool, rows, columns)
    np.testing.assert_array_equal(found.pool_index, plain.pool_index)
    pairs = zip(known.pool_index.tolist(), known.target_index.tolist(), strict=True)
    values = dict(zip(pairs, known.influence, strict=True))
    if kind is OneScore:
        first = {5: 0.5, 6: 2.5, 7: 3.5}
        expected = [first.get(int(i), v) for i, v in zip(plain.pool_index, plain.influence, strict=True)]
    else:
        pairs = zip(plain.pool_index.tolist(), plain.target_index.tolist(), plain.influence.tolist(), strict=True)
        expected = [values.get((i, j), v) for i, j, v in pairs]
    np.testing.assert_array_equal(found.influence, np.array(expected, np.float32))
    assert "x7" not in prepared[0][0]  # all of its pairs are known
    everything = collect(function, pool, pool, rows, columns, known=plain)
    np.testing.assert_array_equal(everything.influence, plain.influence)
    assert len(prepared) == 1
