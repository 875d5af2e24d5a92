"""Length-sorted batches that fit into memory.

Rows are sorted by length and cut into the batches that cost least. A batch that does not fit is halved, and so are all
that follow it. Work on blocks of another shape uses `in_memory`. torch is imported on use alone.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from nncift.errors import ModelError
from nncift.run.progress import advance

T = TypeVar("T")

LESS_MEMORY = "lower `max_length`, use `dtype` bfloat16, or take a smaller model"

_MEMORY_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",  # ENOMEM: of a memory limit, or of a file that is mapped
    "not enough memory",
    "unable to mmap",
    "failed to map segment",  # a library's code does not fit
    "bad_alloc",
    "alloc_failed",
)
_LOGITS = 2**28  # positions x vocabulary of a batch at the output layer, at most: 1 GiB in float32
_OVERHEAD = {"cpu": 32}  # cost of one more pass, in tokens
_OVERHEAD_ACCELERATOR = 4096


def out_of_memory(error: BaseException) -> bool:
    """Whether a library's error means that memory ran out, on any device, or that a limit on it was reached."""
    import torch

    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    if any(sign in str(error).lower() for sign in _MEMORY_SIGNS):
        return True
    cause = error.__cause__ or error.__context__  # libraries wrap it
    return cause is not None and out_of_memory(cause)


def in_memory(work: Callable[[], T]) -> T | None:
    """The result of `work`, or None if memory ran out; the memory of the attempt is freed."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    import torch

    gc.collect()  # only here, after the error is gone, are its frames free
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    return None


def sequence_too_long(name: str, tokens: int) -> ModelError:
    """The error for one sequence that does not fit into memory."""
    return ModelError(f"{name!r} ran out of memory on one sequence of {tokens} tokens", LESS_MEMORY)


class Batcher:
    """Work of a model in batches that fit into memory.

    Args:
        name: the model's name in messages.
        vocabulary: logits for each position at the output layer.
        device: type of the device, such as "cpu".
    """

    def __init__(self, name: str, vocabulary: int, device: str) -> None:
        self.name = name
        self.vocabulary = vocabulary
        self.oom_splits: list[int] = []  # sizes of the batches that did not fit into memory and were halved
        self._overhead = _OVERHEAD.get(device, _OVERHEAD_ACCELERATOR)
        self._most_rows: int | None = None  # set when memory runs out

    def in_batches(
        self,
        work: Callable[[list[int]], Sequence[T]],
        lengths: Sequence[int],
        scored: Sequence[int],
        *,
        batch_size: int,
        before: int = 0,
        steps: Sequence[int] | None = None,
    ) -> list[T]:
        """The result of `work` for each of n rows, in length-sorted batches that are halved when memory runs out.

        Args:
            work: maps a batch of row numbers to one result per row.
            lengths: tokens of each row.
            scored: positions of each row at the output layer.
            batch_size: rows in a batch, at most.
            before: tokens in front of every row, for the error alone.
            steps: passes of the model for each row alone, such as tokens to generate; a batch takes those of its
                longest, one unless given.

        Raises:
            ModelError: one row alone does not fit into memory.
        """
        order = sorted(range(len(lengths)), key=lambda j: -lengths[j])
        results: dict[int, T] = {}
        waiting = deque(self.batches(order, lengths, scored, batch_size, steps))
        while waiting:
            batch = waiting.popleft()
            found = in_memory(partial(work, batch))
            if found is not None:
                results.update(zip(batch, found, strict=True))
                advance(len(batch))
                continue
            if len(batch) == 1:
                raise sequence_too_long(self.name, before + lengths[batch[0]])
            self.oom_splits.append(len(batch))
            self._most_rows = len(batch) // 2
            waiting = deque(self.batches([*batch, *chain(*waiting)], lengths, scored, batch_size, steps))
        return [results[j] for j in range(len(lengths))]

    def batches(
        self,
        order: Sequence[int],
        lengths: Sequence[int],
        scored: Sequence[int],
        batch_size: int,
        steps: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Rows in `order`, longest first, cut into the batches of least cost: padded tokens and an overhead each."""
        most = min(batch_size, self._most_rows or batch_size)
        cost, begin = [0] + [0] * len(order), [0] * (len(order) + 1)
        for end in range(1, len(order) + 1):
            best, positions, passes = None, 0, 1
            for start in range(end - 1, max(end - most, 0) - 1, -1):
                positions += scored[order[start]]
                if positions * self.vocabulary > _LOGITS and start < end - 1:
                    break
                passes = max(passes, 1 if steps is None else steps[order[start]])
                total = cost[start] + (end - start) * lengths[order[start]] + passes * self._overhead
                if best is None or total < best:
                    best, begin[end] = total, start
            cost[end] = best or 0
        batches, end = [], len(order)
        while end:
            batches.append(list(order[begin[end] : end]))
            end = begin[end]
        return batches[::-1]
