"""Greedy that evaluates few candidates: a random sample at each step, or those that reach a threshold.

Stochastic: each step takes the best of (n / k) ln(1 / epsilon) random candidates, so that the whole choice evaluates
n ln(1 / epsilon) gains, whatever its size (Mirzasoleiman et al., "Lazier than lazy greedy", 2015).

Threshold: every candidate whose gain reaches a threshold is taken, and the threshold is lowered by a factor 1 - epsilon
from the largest gain down to epsilon / n of it (Badanidiyuru and Vondrák, "Fast algorithms for maximizing submodular
functions", 2014). An earlier gain is an upper bound, so that a candidate below the threshold is not evaluated again.

Both fill the budget: where no candidate adds anything any more, with those of the largest earlier gains, and of equal
ones by what the objective orders these by (`modular.ties_of`).
"""

from __future__ import annotations

import math

import numpy as np
from tqdm import tqdm

from nncift.run.progress import drawn
from nncift.selection.objectives.modular import ties_of
from nncift.selection.objectives.table import Objective
from nncift.selection.room import Room, Task

EPSILON = 0.02
_BATCH = 48  # candidates evaluated together
_FIRST_PASS = 4096


def stochastic_greedy(
    objective: Objective, task: Task, *, seed: int = 0, epsilon: float = EPSILON, progress: bool = False
) -> tuple[list[int], list[float]]:
    """Select the best of a random sample at each step; ties as in the sample.

    Args:
        objective: empty before, and with the subset afterwards.
        task: what to choose from.
        seed: of the samples.
        epsilon: what the expected value may lack beside plain greedy's, as a share of the best value.
        progress: show a bar.
    """
    left, room, per = task.candidates.copy(), Room(task), task.per
    ties = ties_of(objective)
    rng, m = np.random.default_rng(seed), len(left)
    size = max(math.ceil(m / task.expected * math.log(1 / epsilon)), 1)
    indices: list[int] = []
    gains: list[float] = []
    with tqdm(total=min(task.limit, m), desc="select", unit=" samples", **drawn(progress)) as bar:
        while m and room.left:
            places = rng.choice(m, min(size, m), replace=False, shuffle=False)
            fits = room.fits(left[places])
            gone = places[~fits].tolist()
            if len(places := places[fits]):
                found = np.asarray(objective.gains(left[places]), dtype=np.float64)
                for k in _order(found / per[left[places]], ties, left[places]):
                    i = int(left[places[k]])
                    gone.append(int(places[k]))
                    if room.take(i):
                        objective.add(i)
                        indices.append(i)
                        gains.append(float(found[k]))
                        bar.update()
                        break
            for place in sorted(gone, reverse=True):  # the last ones take their places
                m -= 1
                left[place] = left[m]
    return indices, gains


def _order(rates: np.ndarray, ties: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """Places of the rows by their rates, the largest first; of equal ones by `ties`, then as they are."""
    return np.argsort(-rates, kind="stable") if ties is None else np.lexsort((-ties[rows], -rates))


def threshold_greedy(
    objective: Objective, task: Task, *, epsilon: float = EPSILON, progress: bool = False
) -> tuple[list[int], list[float]]:
    """Select what reaches a threshold, in the order of earlier gains.

    Args:
        objective: monotone and submodular; empty before, and with the subset afterwards.
        task: what to choose from.
        epsilon: the factor by which the threshold is lowered, less than 1 by this.
        progress: show a bar.
    """
    choice = _Threshold(objective, task, progress)
    lowest = epsilon / len(task.candidates) * choice.highest
    threshold = choice.highest
    while threshold > lowest and choice.goes_on:
        choice.take_from(threshold)
        # Of the thresholds that some earlier gain reaches the highest: those between take nothing.
        threshold = min(threshold * (1 - epsilon), choice.highest)
    choice.fill()
    choice.bar.close()
    return choice.indices, choice.chosen


class _Threshold:
    """A subset that grows by what reaches a threshold.

    Attributes:
        indices, chosen: the samples in the order selected, and their gains.
        bar: of progress.
    """

    def __init__(self, objective: Objective, task: Task, progress: bool) -> None:
        self.indices: list[int] = []
        self.chosen: list[float] = []
        self.bar = tqdm(total=min(task.limit, len(task.candidates)), desc="select", unit=" samples", **drawn(progress))
        self._objective, self._room, self._left = objective, Room(task), task.candidates
        self._per, self._gains = task.per, np.zeros(objective.n)  # upper bounds of the gains
        for first in range(0, len(self._left), _FIRST_PASS):
            part = self._left[first : first + _FIRST_PASS]
            self._gains[part] = objective.gains(part)

    @property
    def goes_on(self) -> bool:
        """Whether another sample fits."""
        self._left = self._left[self._room.fits(self._left)] if self._room.left else self._left[:0]
        return bool(len(self._left))

    @property
    def highest(self) -> float:
        """The largest of the earlier gains, per token."""
        return float((self._gains[self._left] / self._per[self._left]).max(initial=0.0))

    def take_from(self, threshold: float) -> None:
        """Add the samples whose gain reaches the threshold."""
        rates = self._gains[self._left] / self._per[self._left]
        waiting = self._left[rates >= threshold]
        waiting = waiting[np.argsort(-rates[rates >= threshold], kind="stable")]
        refused = [i for first in range(0, len(waiting), _BATCH) for i in self._take(waiting, first, threshold)]
        self._left = np.setdiff1d(self._left, [*self.indices, *refused], assume_unique=False)

    def _take(self, waiting: np.ndarray, first: int, threshold: float) -> list[int]:
        """Add those of a batch; returns what no limit lets join."""
        batch, refused = waiting[first : first + _BATCH], []
        while self._room.left and len(batch := batch[self._room.fits(batch)]):
            self._gains[batch] = self._objective.gains(batch)
            reaching = np.flatnonzero(self._gains[batch] / self._per[batch] >= threshold)
            if not len(reaching):
                break
            i = int(batch[reaching[0]])
            if not self._add(i):
                refused.append(i)
            batch = batch[reaching[1:]]
        return refused

    def fill(self) -> None:
        """Add the samples with the largest earlier gains for as long as any fits."""
        rates = self._gains[self._left] / self._per[self._left]
        for i in self._left[_order(rates, ties_of(self._objective), self._left)].tolist():
            if not self._room.left:
                break
            if self._room.fits(np.array([i]))[0]:
                self._gains[i] = self._objective.gains(np.array([i]))[0]
                self._add(i)

    def _add(self, i: int) -> bool:
        if not self._room.take(i):
            return False
        self._objective.add(i)
        self.indices.append(i)
        self.chosen.append(float(self._gains[i]))
        self.bar.update()
        return True
