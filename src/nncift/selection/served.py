"""Which targets a selection serves: how its samples' best influence spreads over the targets.

A subset may rank high because all its samples help one and the same target, a short or an odd one whose column has high
values. Two counts show it: for each selected sample the target that it helps most, and for each target the selected
sample that helps it most. The second is what facility location maximises; where relevance counts too, one target can
decide the first. Costs one pass over the selected rows, and holds a block of them at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.selectors import row_slices

_LEVEL = 0.05


@dataclass(frozen=True)
class TargetsServed:
    """How a selection's influence spreads over the targets; influence of 0 and below serves nothing.

    Where a sample helps several targets alike, as the targets of one task, it counts for each of them in part.
    """

    targets: int
    selected: int  # samples with influence above 0 on some target
    served: int  # targets that some sample helps more than any other target
    target: int  # the target that is so for the most samples, the first of equal ones
    most: float  # for how many samples that one is
    covered: int  # targets with influence above 0 of some sample
    covering: int  # samples that are the best of the selection for some target
    widest: int  # for how many targets one sample is, at most

    @property
    def largest_share(self) -> float:
        """Share of the samples whose best target is the most frequent one (Berger and Parker's index of dominance).

        Source: Berger and Parker 1970, doi:10.1126/science.168.3937.1345.
        """
        return self.most / self.selected if self.selected else 0.0

    @property
    def is_dominated(self) -> bool:
        """Whether one target is the best one of too many samples.

        Its share is above the middle between an even spread and all, so above half with many targets; and more than
        chance: were each sample's best target drawn at random, some target would have as many with a probability of at
        most 5 % (binomial, times the number of targets).
        """
        from scipy.special import bdtrc

        even = 1 / max(self.targets, 1)
        if self.largest_share <= (1 + even) / 2:
            return False
        return bool(self.targets * bdtrc(np.ceil(self.most) - 1, self.selected, even) <= _LEVEL)


def targets_served(matrix: InfluenceMatrix, rows: np.ndarray, *, own: np.ndarray | None = None) -> TargetsServed | None:
    """Count the targets that some rows of a matrix serve.

    Args:
        matrix: influence, (n, n_target).
        rows: the selected samples, int64 (k,), the first selected first, which is the best of equal ones.
        own: the target that is the sample itself, of each of them, int64 (k,), where the pool is its own target: no
            sample counts as served by itself.

    Returns:
        The counts; None where each sample has the same influence on all targets, so that it serves none in particular.
    """
    n_target = matrix.shape[1]
    frequency, selected, tells_apart = np.zeros(n_target), 0, False
    best, holder = np.zeros(n_target, np.float32), np.full(n_target, -1)
    for part in row_slices(len(rows), n_target):
        block = matrix.rows(rows[part])
        if own is not None:
            block = block.copy()  # of a stored matrix it is a view
            block[np.arange(len(block)), own[part]] = -np.inf
        largest = block.max(axis=1, keepdims=True)
        tells_apart = tells_apart or bool(((block < largest) & np.isfinite(block)).any())
        sample, target = np.nonzero((block == largest) & (largest > 0))
        equal = np.bincount(sample, minlength=len(block))
        frequency += np.bincount(target, weights=1 / equal[sample], minlength=n_target)
        selected += int(np.count_nonzero(equal))
        first = block.argmax(axis=0)
        better = block[first, np.arange(n_target)] > best
        best[better], holder[better] = block.max(axis=0)[better], part.start + first[better]
    if not tells_apart:
        return None
    shares = np.bincount(holder[holder >= 0], minlength=1)
    return TargetsServed(
        targets=n_target,
        selected=selected,
        served=int(np.count_nonzero(frequency)),
        target=int(frequency.argmax()),
        most=round(float(frequency.max()), 6),
        covered=int(shares.sum()),
        covering=int(np.count_nonzero(shares)),
        widest=int(shares.max()),
    )
