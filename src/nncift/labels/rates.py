"""The rate of an influence function, measured on a handful of short batches: seconds, whatever the pool's size.

A function that trains is measured on one epoch over a few samples (`InfluenceFunction.shortened`). Fixed costs, such as
attaching an adapter and writing a checkpoint, are told apart from those of a token by the time of the training steps,
or by two trials of different size.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nncift.influence.base import InfluenceFunction
from nncift.labels.design import ROWS_PER_TARGET, TARGETS_PER_ROW
from nncift.labels.work import grid_work
from nncift.run.folder.costs import Rates

if TYPE_CHECKING:
    from datasets import Dataset

_CANDIDATES = 64  # random samples of a side, the shorter quarter of which the trials use
_ROWS, _TARGETS = (1, 2, 4, 8, 16), (2, 4, 8, 16, 16)  # samples of the trials, smallest first
_TRAINED = (3, 1)  # samples of a warm-up; one training is enough where the function tells the time of its steps
_ENOUGH, _LONG = 0.4, 1.5  # seconds; after a trial that took as long there is no larger one; after the first trial
_CHARACTERS = 600  # of a sample of the trials, at most
_COUNTED = 64  # samples whose tokens give the means of `Rate`
_MAX_PAIRS = 10**9


@dataclass(frozen=True)
class Rate:
    """Cost of labelling with an influence function, by the mean sample of a pool: `Rates` in samples and pairs.

    Attributes:
        row, target, pair: seconds per pool row, per target, and in addition per pair.
        warm_up: fixed cost, independent of the labels, in seconds.
    """

    row: float
    target: float
    pair: float
    warm_up: float = 0.0

    def seconds(self, rows: float, targets: float, pairs: float | None = None) -> float:
        """Expected time of so many pairs; of the full grid unless given."""
        pairs = rows * targets if pairs is None else pairs
        return self.warm_up + self.row * rows + self.target * targets + self.pair * pairs

    def pairs(self, seconds: float, *, own_targets: bool = False) -> int:
        """Pairs within a time budget, in the design of `plan_pairs`; at least one."""
        seconds = max(seconds - self.warm_up, 0.0)
        rows = ROWS_PER_TARGET if own_targets else 1  # per target of a row
        targets = rows * TARGETS_PER_ROW if own_targets else 1
        square = self.pair * rows
        line = max(self.row * rows + self.target * targets, 1e-9)  # resolution of the clock
        # The root of square * c^2 + line * c = seconds, in a form that is stable for square = 0.
        columns = 2 * seconds / (line + math.sqrt(line**2 + 4 * square * seconds))
        return min(max(int(rows * columns**2 + 1e-6), 1), _MAX_PAIRS)

    def rows(self, seconds: float) -> int:
        """Pool rows, each scored once, within a time budget; at least one."""
        return min(max(int((seconds - self.warm_up) / max(self.row, 1e-9)), 1), _MAX_PAIRS)


class _Trial(NamedTuple):
    """The time of a trial."""

    units: float
    pairs: int
    seconds: float  # that grow with the units
    pair_seconds: float


def measure_rates(
    function: InfluenceFunction, pool: Dataset, target: Dataset, *, n_pool: int | None = None, seed: int = 0
) -> Rates:
    """The rates of an influence function, measured on a few short samples; its model is loaded before.

    Args:
        function: the influence function.
        pool: the pool, or a part of it.
        target: the targets, or a part of them.
        n_pool: samples of the whole pool.
        seed: of the samples.
    """
    rng = np.random.default_rng(seed)
    rows, targets = (_short(samples, rng) for samples in (pool, target))
    if len(function.models) == 1:
        _ = function.models[0].loaded
    short = function.shortened()
    trains = type(function).warm_up is not InfluenceFunction.warm_up
    warm_up = _warm_up_seconds(function, short, rows, pool, n_pool or len(pool)) if trains else 0.0
    if not trains and not function.forward_tokens:
        _tried(short, rows.select([0]), targets.select([0]))  # what is done on first use alone
    trials: list[_Trial] = []
    for height, width in zip(_ROWS, _TARGETS, strict=True):
        some = rows.select(range(min(height, len(rows)))), targets.select(range(min(width, len(targets))))
        since = time.perf_counter()
        trials.append(_tried(short, *some))
        taken = time.perf_counter() - since
        if taken > (_LONG if len(trials) == 1 else _ENOUGH) or (height >= len(rows) and width >= len(targets)):
            break
    unit, fixed = _line([(trial.units, trial.seconds) for trial in trials])
    return Rates(warm_up + fixed, unit, trials[-1].pair_seconds / max(trials[-1].pairs, 1))


def mean_rate(function: InfluenceFunction, rates: Rates, pool: Dataset, target: Dataset, *, seed: int = 0) -> Rate:
    """Rates in samples and pairs, with the mean tokens of a random part of the samples."""
    rng = np.random.default_rng(seed)
    rows, targets = (samples.select(np.sort(rng.permutation(len(samples))[:_COUNTED])) for samples in (pool, target))
    n, m = len(rows), len(targets)
    if function.traits.pointwise:
        return Rate(rates.unit * grid_work(function, rows, targets).units / n + rates.pair, 0.0, 0.0, rates.warm_up)

    def units(columns: Dataset, some: Dataset = rows) -> int:
        return grid_work(function, some, columns).units

    alone = units(targets, rows.select([]))  # of the targets
    row = (units(targets) - alone) / n  # of a row with all its targets
    each = 0.0  # of a pair
    if function.traits.per_pair and m > 1:
        halves = targets.select(range(m // 2)), targets.select(range(m // 2, m))
        once = sum((units(half) - units(half, rows.select([]))) / n for half in halves) - row  # of a row, counted twice
        row, each = once, max(row - once, 0.0) / m
    return Rate(rates.unit * row, rates.unit * alone / m, rates.unit * each + rates.pair, rates.warm_up)


def _short(samples: Dataset, rng: np.random.Generator) -> Dataset:
    """A random part of the samples, the shorter quarter of them, its longest first, abridged."""
    some = samples.select(np.sort(rng.permutation(len(samples))[:_CANDIDATES]))
    if "prompt" not in some.column_names:
        return some
    lengths = [len(prompt) + len(response) for prompt, response in zip(some["prompt"], some["response"], strict=True)]
    return abridged(some.select(np.argsort(lengths, kind="stable")[: len(lengths) // 4 + 1][::-1]))


def abridged(samples: Dataset, characters: int = _CHARACTERS) -> Dataset:
    """The samples, the long ones as plain text with half as many characters each of prompt and response.

    Time is extrapolated by tokens, and a trial on a handful of long samples would take minutes.
    """
    from datasets import Dataset

    half, rows = characters // 2, samples.to_list()
    if all(len(row["prompt"]) + len(row["response"]) <= characters for row in rows):
        return samples
    for row in rows:
        if len(row["prompt"]) + len(row["response"]) > characters:
            row |= {"prompt": row["prompt"][-half:], "response": row["response"][:half]}
            row |= dict.fromkeys(row.keys() & {"messages", "tools", "turns"})
    return Dataset.from_list(rows, features=samples.features)


def _tried(function: InfluenceFunction, rows: Dataset, targets: Dataset) -> _Trial:
    tokens, since = function.forward_tokens, time.perf_counter()
    function.prepare(rows, targets, None)
    prepared, before = time.perf_counter(), function.forward_tokens
    function(rows, targets)
    ended = time.perf_counter()
    work = grid_work(function, rows, targets)
    ran = function.forward_tokens > before  # a call that runs a model takes the time of its tokens
    units = work.samples if work.tokens is None else function.forward_tokens - tokens
    called = ended - prepared
    return _Trial(units, work.pairs, prepared - since + called * ran, called * (not ran))


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Seconds per unit, and the fixed seconds, through the first and the last of (units, seconds)."""
    (few, short), (many, long) = points[0], points[-1]
    slope = (long - short) / (many - few) if many > few else 0.0
    fixed = short - slope * few
    if slope <= 0 or fixed < 0:
        return long / max(many, 1), 0.0
    return slope, fixed


def _warm_up_seconds(
    function: InfluenceFunction, short: InfluenceFunction, rows: Dataset, pool: Dataset, n_pool: int
) -> float:
    """Time of the warm-up on the whole pool, by its tokens and its epochs."""
    none = rows.select([])
    points: list[tuple[float, float]] = []
    for number in _TRAINED:
        some = rows.select(range(min(number, len(rows))))
        since, trained = time.perf_counter(), short.training_seconds
        short.warm_up(some)
        taken, steps = time.perf_counter() - since, short.training_seconds - trained
        units = float(short.tokens(none, none, some) or len(some))
        if steps > 0:
            points = [(0.0, taken - steps), (units, taken)]
            break
        points.insert(0, (units, taken))
    each, fixed = _line(points)
    tokens = function.tokens(none, none, pool)
    total = len(pool) if tokens is None else tokens
    epochs = max((function.tokens(none, none, rows) or 1) / max(short.tokens(none, none, rows) or 1, 1), 1.0)
    return each * total * n_pool / len(pool) + fixed * epochs
