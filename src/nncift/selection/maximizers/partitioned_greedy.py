"""Greedy in parts of the pool, then among what the parts chose (GreeDi).

After Mirzasoleiman et al., "Distributed submodular maximization: identifying representative elements in massive data"
(2013): the pool is divided at random, plain greedy chooses from each part, and then from the union of these choices.
An objective that is a sum over targets, which are the pool itself, is evaluated on the targets of the part, and on the
union on as many random ones (their section 4.5), so that m parts of n samples take n^2 / m pairs instead of n^2.

Each part chooses `_SPARE` times its share of the budget, not the whole of it as in the paper: the union stays as small
as the budget, and a random part holds few more of the best subset. The paper's bound does not hold for it;
`docs/selection.md` has the loss as measured.

Parts of estimated influence travel to the run's workers, some 70 MB for a whole one, and are chosen from there, with
the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from nncift.run.executors.base import LOCAL, workers
from nncift.run.progress import drawn
from nncift.selection.objectives.built_in import alone
from nncift.selection.objectives.table import Objective
from nncift.selection.room import Task

if TYPE_CHECKING:
    from nncift.selection.maximizers.table import Chosen, Make

PART = 1 << 16  # samples of a part, at most
_SPARE = 2.0


def partitioned_greedy(
    make: Make,
    greedy: Callable[[Objective, Task], Chosen],
    objective: Objective,
    task: Task,
    *,
    n_target: int | None = None,
    part_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Chosen:
    """Select in parts.

    Args:
        make: makes an empty objective, of all targets or of some.
        greedy: plain greedy.
        objective: of all targets, empty before and with the subset afterwards.
        task: what to choose from, without limits on groups.
        n_target: number of targets, where these are the samples themselves and a part can be its own target; otherwise
            every part is evaluated on all of them.
        part_size: samples of a part, at most; `PART` unless given. A pool that fits is one part.
        seed: of the division and of the targets of the union.
        progress: show a bar.
    """
    size, among = part_size or PART, task.candidates
    count = -(-len(among) // size)
    if count == 1:
        return greedy(objective, task)
    rng = np.random.default_rng(seed)
    parts = [np.sort(part) for part in np.array_split(rng.permutation(among), count)]
    share = min(_SPARE / count, 1.0)
    tasks = [task.among(part, share) for part in parts]
    found = np.sort(np.concatenate(_chosen(make, greedy, objective, tasks, n_target is not None, progress)))
    sample = None if n_target is None else np.sort(rng.choice(n_target, min(size, n_target), replace=False))
    indices = greedy(make(sample), replace(task, candidates=found))[0]
    gains = []
    for i in tqdm(indices, desc="gains", unit=" samples", **drawn(progress)):
        gains.append(float(objective.gains(np.array([i]))[0]))
        objective.add(i)
    return indices, gains


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of the pool, with all that a choice from it takes.

    Attributes:
        number: of the part.
        objective: empty; of the targets that count for the part.
        task: what to choose from it.
    """

    number: int
    objective: Objective
    task: Task

    def __str__(self) -> str:
        return f"part {self.number + 1} of the choice"


@dataclass(frozen=True)
class _Choosing:
    """Chooses from a part: its number, and places among the samples of its objective."""

    greedy: Callable[[Objective, Task], Chosen]

    def __call__(self, part: _Part) -> tuple[int, np.ndarray]:
        return part.number, np.array(self.greedy(part.objective, part.task)[0], np.int64)


def _chosen(
    make: Make,
    greedy: Callable[[Objective, Task], Chosen],
    objective: Objective,
    tasks: Sequence[Task],
    own_targets: bool,
    progress: bool,
) -> list[np.ndarray]:
    """What is chosen from each part, int64, by the run's workers where a part can travel."""
    executor = workers() if alone(objective, tasks[0].candidates[:1]) is not None else LOCAL

    def parts() -> Iterator[_Part]:
        for number, task in enumerate(tasks):
            here = make(task.candidates if own_targets else None)
            if executor.elsewhere and (there := alone(here, task.candidates)) is not None:
                yield _Part(number, there, task.alone())
            else:
                yield _Part(number, here, task)

    found = [np.zeros(0, np.int64)] * len(tasks)
    with tqdm(total=len(tasks), desc="parts", unit=" parts", **drawn(progress)) as bar:
        for number, places in executor.map(_Choosing(greedy), parts()):
            found[number] = tasks[number].candidates[places] if executor.elsewhere else places
            bar.update()
    return found
