"""What a choice will cost in each form, from rates measured on a small matrix of the same kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nncift.matrix.cells import pairs_to_divide
from nncift.matrix.forms import Form, first_helpers, form_memory
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.sparse import AUDITED, sparsified, visits_of
from nncift.matrix.stored import in_memory
from nncift.run.costs import seconds_of

_GREEDY_PASSES = 4  # over stored pairs, that lazy greedy takes
_READ = 1 << 25  # stored entries that the rate of reading is measured on, at most
_FILLED = 1.3  # columns of the kernels' blocks for each target of a cell
_ENTRY_SECONDS = 6e-8  # of the choice and its certificate, for each entry kept


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
        helpers = first_helpers(pool, targets, expected)
        visited = visits_of(pool, helpers)
        kept = min(max(rows * helpers // (visited or pool), 1), rows)  # as large a part of the pairs as it will be
        sparsified(trial, kept)  # compiles
        each = seconds_of(lambda: sparsified(trial, kept), clock) / size
        pairs = float(targets * pool)
        if visited is not None:
            pairs = _FILLED * targets * visited + AUDITED * pool + pairs_to_divide(pool) + pairs_to_divide(targets)
        return Planned(each * pairs + _ENTRY_SECONDS * helpers * targets, memory)
    trial.coverage_gains(everyone, covered)  # compiles
    if form == "streamed":
        once = seconds_of(lambda: trial.coverage_gains(everyone, covered), clock) / size
        return Planned(((passes + certified) * pool + known) * targets * once, memory)
    once = seconds_of(lambda: in_memory(trial), clock) / size
    copies = max(min(_READ, pool * targets) // size, 1)  # in a cache entries would be read faster than from memory
    stored = InfluenceMatrix.from_array(np.tile(in_memory(trial).rows(slice(None)), (copies, 1)))
    all_copies = np.arange(copies * rows)
    again = seconds_of(lambda: stored.coverage_gains(all_copies, covered), clock) / (copies * size)
    reads = (_GREEDY_PASSES * passes + certified) * pool * targets
    return Planned((pool + known) * targets * once + reads * again, memory)
