"""Greedy in parts of the pool, then among what the parts chose (GreeDi).

After Mirzasoleiman et al., "Distributed submodular maximization: identifying representative elements in massive data"
(2013): the pool is divided at random, plain greedy chooses from each part, and then from the union of these choices.
An objective that is a sum over targets, which are the pool itself, is evaluated on the targets of the part, and on the
union on as many random ones (their section 4.5), so that m parts of n samples take n^2 / m pairs instead of n^2.

Each part chooses `_SPARE` times its share of the budget, not the whole of it as in the paper: the union stays as small
as the budget, and a random part holds few more of the best subset. The paper's bound does not hold for it;
`docs/selection.md` has the loss as measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from nncift.run.progress import drawn
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
    found: list[int] = []
    for part in tqdm(parts, desc="parts", unit=" parts", **drawn(progress)):
        here = make(None if n_target is None else part)
        found += greedy(here, task.among(part, share))[0]
    sample = None if n_target is None else np.sort(rng.choice(n_target, min(size, n_target), replace=False))
    union = replace(task, candidates=np.sort(np.array(found, np.int64)))
    indices = greedy(make(sample), union)[0]
    gains = []
    for i in tqdm(indices, desc="gains", unit=" samples", **drawn(progress)):
        gains.append(float(objective.gains(np.array([i]))[0]))
        objective.add(i)
    return indices, gains
