"""What a choice will cost in each form: operations counted by stage, times rates measured on a small matrix.

The stored form computes each pair once, into new memory, and reads whole rows in the first passes of lazy greedy; from
then on lists of a few entries, for which the queue itself is what costs. The streamed form computes each pair in each
pass. Each stage of the sparse form has a rate of its own: k-means, which divides both sides into cells; the search for
the strongest helpers in the cells visited, and for the audit in all; sorting the entries by pool sample; the choice
with its certificate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nncift.matrix.cells import CELL, SMALL_NODE, Products, divide, nearest_means, strongest, work_to_divide
from nncift.matrix.compiled.entries import Entries, cover_entries, entries_gains
from nncift.matrix.compiled.lazy import CoverageQueue
from nncift.matrix.compiled.transposed import by_sample
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.planning.forms import Form, first_helpers, form_memory
from nncift.matrix.sparse import AUDITED, sparsified, visits_of
from nncift.matrix.stored import fill
from nncift.run.folder.costs import seconds_of

_WHOLE_PASSES = 5  # over stored pairs, of lazy greedy before rows have lists: 3 to 5.5 were measured
_EVALUATIONS = 8  # of each sample in lazy greedy's queue: 4 to 11 were measured
_STATISTICS = 2  # passes over stored pairs besides: the first gains, and each sample's largest entry
_QUEUED, _NARROW, _STEPS = 1 << 16, 64, 16  # samples, targets and steps that the queue's rate is measured with, at most
_PIECE, _PIECES = 1 << 26, 16  # bytes of new memory that its rate is measured on at a time, and how many times at most
_MEASURED = 8  # one in so many bytes of what is needed is measured
_SPARSE_PASSES = 6  # over the kept entries, that the choice and its certificate take
_READ = 1 << 25  # stored entries that the rate of reading is measured on, at most
_KEPT = 1 << 22  # kept entries that the rate of sorting and reading is measured on, at most: more than a cache holds
_FILLED = 1.3  # columns of the kernels' blocks for each target of a cell
_MEANS = 1024  # that the rate of comparing is measured with, at most


class Planned(NamedTuple):
    """What a choice is expected to take."""

    seconds: float
    memory: int  # bytes beyond the vectors of the samples


def planned_choice(
    form: Form,
    shape: tuple[int, int],
    expected: float,
    trial: InfluenceMatrix,
    *,
    known: int = 0,
    passes: float = 1.0,
    certified: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Planned:
    """Expected cost of a choice and its certificate.

    Args:
        form: in which the pairs are held.
        shape: (n_pool, n_target).
        expected: about how many samples will be selected.
        trial: a small matrix of the same kind, computed on access, which the rates are measured on.
        known: samples whose influence is read once besides.
        passes: over all pairs, that the choice takes where they are streamed.
        certified: passes over all pairs that a certificate takes.
        clock: that the rates are measured by.
    """
    (pool, targets), rows = shape, trial.shape[0]
    everyone, covered = np.arange(rows), np.zeros(trial.shape[1], np.float32)
    memory, size = form_memory(form, pool, targets, expected), rows * trial.shape[1]
    if form == "sparse":
        seconds = _sparse_seconds(shape, first_helpers(pool, targets, expected), trial, clock)
        return Planned(sum(seconds.values()), memory)
    trial.coverage_gains(everyone, covered)  # compiles
    if form == "streamed":
        once = seconds_of(lambda: trial.coverage_gains(everyone, covered), clock) / size
        return Planned(((passes + certified) * pool + known) * targets * once, memory)
    values = np.ones(trial.shape, np.float32)  # touched: new memory has a rate of its own, and counts once
    once = _median_seconds(lambda: fill(values, trial), clock) / size
    copies = max(min(_READ, pool * targets) // size, 1)  # in a cache entries would be read faster than from memory
    stored = InfluenceMatrix.from_array(np.tile(values, (copies, 1)))
    all_copies = np.arange(copies * rows)
    again = _median_seconds(lambda: stored.coverage_gains(all_copies, covered), clock) / (copies * size)
    reads = ((_WHOLE_PASSES + _STATISTICS) * passes + certified) * pool * targets
    queue = _EVALUATIONS * passes * pool * _queue_rate(min(pool, _QUEUED), min(targets, _NARROW), clock)
    return Planned((pool + known) * targets * once + _new_memory_seconds(memory, clock) + reads * again + queue, memory)


def _median_seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Of three calls, since other processes disturb short ones."""
    return sorted(seconds_of(work, clock) for _ in range(3))[1]


def _new_memory_seconds(size: int, clock: Callable[[], float]) -> float:
    """Seconds that the system takes to hand out this much memory.

    The first of it is often what this process gave back a moment ago, and costs a tenth of what the rest does, which in
    a virtual machine the host has to find. So each piece is held while the next one is measured, and the last counts
    for all that is not measured.
    """
    held, seconds = list[np.ndarray](), list[float]()
    for _ in range(min(max(size // (_MEASURED * _PIECE), 1), _PIECES)):
        seconds.append(seconds_of(lambda: held.append(np.ones(min(_PIECE, size) // 4 or 1, np.float32)), clock))
    measured = sum(piece.nbytes for piece in held)
    return sum(seconds) + max(size - measured, 0) / held[-1].nbytes * seconds[-1]


def _queue_rate(rows: int, columns: int, clock: Callable[[], float]) -> float:
    """Seconds for a sample that lazy greedy's queue evaluates, besides the reading of a long row."""
    values = np.random.default_rng(0).random((rows, columns), np.float32)
    starts = np.arange(rows + 1, dtype=np.int64) * columns
    entries = Entries(values.reshape(-1), starts, np.zeros(0, np.int32))
    everyone, covered, gains = np.arange(rows), np.zeros(columns, np.float32), values.sum(axis=1, dtype=np.float64)

    def choose(steps: int) -> CoverageQueue:
        queue = CoverageQueue(entries, covered, np.zeros(rows), gains, everyone, np.ones(rows))
        for step in range(steps):
            if (i := queue.best(step, np.inf)) is None:
                break
            cover_entries(entries, everyone[i : i + 1], covered)
        return queue

    choose(1)  # compiles
    covered[:] = 0
    found = list[CoverageQueue]()
    seconds = seconds_of(lambda: found.append(choose(_STEPS)), clock)
    return seconds / max(found[0].work, 1)


def _sparse_seconds(
    shape: tuple[int, int], helpers: int, trial: InfluenceMatrix, clock: Callable[[], float]
) -> dict[str, float]:
    """Expected seconds of each stage of a choice from the strongest helpers of each target."""
    (pool, targets), visited = shape, visits_of(shape[0], helpers)
    compiled = sparsified(trial, 1, visits=trial.shape[0] // 2)
    compiled.coverage_gains(np.arange(1), np.zeros(trial.shape[1], np.float32))
    products, _ = trial.products()  # type: ignore[misc]
    product = _search_rate(products, helpers / (visited or pool), clock)
    sort, read = _entry_rates(shape, helpers, clock)
    seconds = {"sort": sort * targets * helpers, "choice": _SPARSE_PASSES * read * targets * helpers}
    if visited is None:
        return {"search": product * pool * targets, **seconds}
    search = product * _FILLED * targets * (visited + CELL / 4)  # the last cell visited is half too much
    audit = _search_rate(products, helpers / pool, clock) * AUDITED * pool
    cells = _cell_seconds(products.rows, pool, clock) + _cell_seconds(products.columns, targets, clock)
    return {"cells": cells, "search": search, "audit": audit, **seconds}


def _search_rate(products: Products, share: float, clock: Callable[[], float]) -> float:
    """Seconds for a pair of a search that keeps this share of the samples."""
    rows, columns = len(products.rows), len(products.columns)
    kept = min(max(round(rows * share), 1), rows)
    return seconds_of(lambda: strongest(products, kept, None), clock) / (rows * columns)


def _cell_seconds(vectors: np.ndarray, n: int, clock: Callable[[], float]) -> float:
    """Seconds to divide n samples: in large nodes by their pairs, in small ones by their samples."""
    pairs, small = work_to_divide(n)
    some = np.asarray(vectors[:SMALL_NODE], np.float32)
    means, everyone = some[:_MEANS], np.arange(len(some))
    pair = seconds_of(lambda: nearest_means(some, everyone, means), clock) / (len(some) * len(means))
    return pairs * pair + small * seconds_of(lambda: divide(some), clock) / len(some)


def _entry_rates(shape: tuple[int, int], helpers: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds for an entry kept: to sort it by sample, and to read it for a gain."""
    (pool, targets), rng = shape, np.random.default_rng(0)
    some = min(max(_KEPT // helpers, 1), targets)
    values = np.ones((some, helpers), np.float32)
    which = rng.integers(0, pool, values.shape, dtype=np.int32)
    found, covered, gains = list[Entries](), np.zeros(targets, np.float32), np.empty(pool)
    sorting = seconds_of(lambda: found.append(by_sample(values, which, pool)), clock)
    spread = found[0]._replace(columns=rng.integers(0, targets, values.size, dtype=np.int32))
    reading = seconds_of(lambda: entries_gains(spread, np.arange(pool), covered, gains), clock)
    return sorting / values.size, reading / values.size
