"""Batches: each row once, at the least cost, bounded at the output layer, halved when memory runs out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.errors import ModelError
from nncift.models.batching import Batcher, in_memory

VOCABULARY = 50_000
ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
    MemoryError(),
]


@pytest.fixture
def batcher() -> Batcher:
    return Batcher("org/name", VOCABULARY, "cpu")


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 100)), min_size=1, max_size=40),
    batch_size=st.integers(1, 9),
)
def test_each_row_is_in_one_batch_at_no_more_cost_than_in_slices(lengths, batch_size):
    order = sorted(range(len(lengths)), key=lambda j: -sum(lengths[j]))
    total, scored = [sum(pair) for pair in lengths], [pair[1] for pair in lengths]
    batches = Batcher("org/name", VOCABULARY, "cpu").batches(order, total, scored, batch_size)
    assert [j for batch in batches for j in batch] == order
    assert max(map(len, batches)) <= batch_size

    def cost(some):
        return sum(len(batch) * total[batch[0]] + 32 for batch in some)

    assert cost(batches) <= cost([order[k : k + batch_size] for k in range(0, len(order), batch_size)])


def test_positions_at_the_output_layer_are_bounded(batcher):
    most = 2**28 // VOCABULARY
    scored = [most // 2] * 5 + [2 * most]  # the last alone is above the bound: a batch of its own
    batches = batcher.batches([5, 0, 1, 2, 3, 4], [10**9] * 6, scored, 32)
    assert batches[0] == [5]
    assert max(map(len, batches)) == 2
    short_and_long = batcher.batches([*range(1, 16, 2), *range(0, 16, 2)], [2, 200] * 8, [1] * 16, 32)
    assert list(map(len, short_and_long)) == [8, 8]


@pytest.mark.parametrize("error", ERRORS)
def test_running_out_of_memory_halves_the_batches_for_good(batcher, error):
    sizes = []

    def work(rows):
        sizes.append(len(rows))
        if len(rows) > 4:
            raise error
        return [10 * row for row in rows]

    for expected in ([16, 8, 4, 4, 4, 4], [4, 4, 4, 4]):
        assert batcher.in_batches(work, [12] * 16, [1] * 16, batch_size=32) == [10 * row for row in range(16)]
        assert sizes == expected
        assert batcher.oom_splits == [16, 8]
        sizes.clear()


def test_one_sequence_that_does_not_fit_is_an_error(batcher):
    def work(rows):
        torch.empty(2**55, dtype=torch.uint8)  # this machine's own error

    with pytest.raises(
        ModelError, match="'org/name' ran out of memory on one sequence of 9 tokens: lower `max_length`"
    ):
        batcher.in_batches(work, [6], [1], batch_size=32, before=3)
    assert in_memory(lambda: work([0])) is None


def test_other_errors_are_raised():
    def broken():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        in_memory(broken)
