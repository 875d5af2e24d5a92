"""Plain greedy for graph cut, exactly, in few passes over the features.

With each sample added, every gain falls by lambda (1 + x_i . x_k), so by something for all alike: earlier gains are too
loose as bounds for lazy greedy. But of t samples added with the vectors' sum D, no gain falls by less than
lambda (t - |D|). So a pass over the features finds the candidates with the largest gains, a few thousand contenders,
whose vectors are held in memory; greedy goes on among them, a matrix-vector product a step, for as long as the best of
them is above the best of all others less that. The subset is that of plain greedy, up to the rounding of the gains.
"""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from nncift.run.progress import drawn
from nncift.selection.objectives.graph_cut import GraphCut
from nncift.selection.room import Room, Task

_NUMBERS = 1 << 23  # of the contenders' vectors in memory, at most: 32 MB
_LEAST = 256  # contenders, where there are as many


def graph_cut_greedy(objective: GraphCut, task: Task, *, progress: bool = False) -> tuple[list[int], list[float]]:
    """Select greedily; `objective` is empty before and holds the subset afterwards.

    Ties: the larger initial gain first, then the lower index.

    Returns:
        The samples in the order selected, and the gain of each.
    """
    left, room, per = task.candidates, Room(task), task.per
    first = np.empty(objective.n)
    first[left] = objective.gains(left)
    size = max(_LEAST, _NUMBERS // objective.kernel.width)
    indices: list[int] = []
    gains: list[float] = []
    with tqdm(total=min(task.limit, len(left)), desc="select", unit=" samples", **drawn(progress)) as bar:
        while room.left:
            left = left[room.fits(left) & ~objective.chosen[left]]
            if not len(left):
                break
            rates = (objective.gains(left) if indices else first[left]) / per[left]
            contenders, best_other = left, -np.inf
            if len(left) > size:
                places = np.argpartition(-rates, size)
                contenders, best_other = np.sort(left[places[:size]]), float(rates[places[size]])
            found = _among(objective, contenders, best_other, room, task, first)
            for i, gain in found:
                indices.append(i)
                gains.append(gain)
                bar.update()
    return indices, gains


def _among(
    objective: GraphCut, contenders: np.ndarray, best_other: float, room: Room, task: Task, first: np.ndarray
) -> list[tuple[int, float]]:
    """Greedy among the contenders for as long as none of the others, whose gain per token is lower now, can win."""
    vectors, weight, per = objective.kernel.rows(contenders), objective.weight, task.per[contenders]
    gains = objective.gains(contenders)
    order = np.lexsort((contenders, -first[contenders]))
    vectors, gains, per, contenders = vectors[order], gains[order], per[order], contenders[order]
    fits = room.fits(contenders)
    added = np.zeros(objective.kernel.width)
    slowest = float(task.per.max())
    found: list[tuple[int, float]] = []
    while room.left and fits.any():
        rates = np.where(fits, gains / per, -np.inf)
        k = int(np.argmax(rates))
        fallen = weight * (len(found) - float(np.linalg.norm(added)))
        if found and rates[k] < best_other - fallen / slowest:
            break
        fits[k] = False
        i = int(contenders[k])
        if not room.take(i):
            continue
        objective.add(i)
        found.append((i, float(gains[k])))
        added += vectors[k]
        gains -= weight * (1 + (vectors @ vectors[k]).astype(np.float64))
        if task.limits or not np.isinf(task.max_cost):
            fits[fits] = room.fits(contenders[fits])
    return found
