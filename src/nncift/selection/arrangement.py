"""How a subset is trained on: the weights of its samples, phases from easy to hard, and the order.

Phases are those of phased instruction fine-tuning (Pang et al. 2024, arXiv:2406.04371): the model is trained on one
after the other. Theirs are cut at two values of a judge's rating from 1 to 5; ours have equally many samples, so that
each is trained for equally many steps whatever the scale of the difficulty.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nncift.selection.selection import Selection

LEAST_WEIGHT, LARGEST_WEIGHT = 0.2, 5.0
_SMALLEST_GAIN = 1e-12  # as a fraction of the largest: gains below count alike
_HALVINGS = 100


def gain_weights(gains: np.ndarray) -> np.ndarray:
    """Weights in proportion to marginal gains, with mean 1 and between `LEAST_WEIGHT` and `LARGEST_WEIGHT`.

    The first sample of a greedy selection is credited with all that any sample would cover, and the last ones of a
    saturated objective with nothing: on P3 the largest gain is 10 to 80 times the mean, and weights in proportion to it
    would make 100 samples count as few as 10 to 40 equal ones (effective sample size; Kish 1965). So weights are
    truncated as those of surveys are, at 5 (DeBell and Krosnick 2009), and below at its reciprocal, so that no selected
    sample is left out of the training. Those in between keep the ratios of their gains.

    Args:
        gains: (k,); one that is 0 or less has the least weight.

    Returns:
        float64 (k,); all 1 where no gain is above 0.
    """
    gains = np.maximum(np.asarray(gains, dtype=np.float64), 0.0)
    largest = gains.max(initial=0.0)
    if largest == 0:
        return np.ones(len(gains))
    relative = np.maximum(gains / largest, _SMALLEST_GAIN)
    low, high = np.log(LEAST_WEIGHT), np.log(LARGEST_WEIGHT / _SMALLEST_GAIN)  # of the factor: the mean grows with it
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_small = _truncated(relative, middle).mean() < 1
        low, high = (middle, high) if too_small else (low, middle)
    return _truncated(relative, high)


def _truncated(relative: np.ndarray, log_factor: float) -> np.ndarray:
    return np.asarray(np.clip(relative * np.exp(log_factor), LEAST_WEIGHT, LARGEST_WEIGHT))


def arranged(
    selection: Selection,
    *,
    difficulty: np.ndarray | None = None,
    phases: int | None = None,
    curriculum: bool = False,
    weights: bool = False,
) -> Selection:
    """The same samples with what they are to be trained with, and in the order in which.

    Args:
        selection: in the order selected.
        difficulty: of each sample, (k,); larger is harder. Required for phases and for a curriculum.
        phases: number of phases, of equally many samples up to one, from easy to hard; of fewer samples, as many as
            there are.
        curriculum: from easy to hard, in each phase too; otherwise the order selected is kept, in each phase.
        weights: add weights by gain.

    Samples of equal difficulty stay in the order selected.
    """
    if weights:
        selection = replace(selection, weights=gain_weights(selection.gains))
    if difficulty is None:
        return selection
    selection = replace(selection, difficulty=np.asarray(difficulty, dtype=np.float32))
    if phases is not None:
        parts = phase_parts(difficulty, phases, curriculum=curriculum)
        number = np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts])
        return replace(selection.take(np.concatenate(parts)), phase=number)
    return selection.take(np.argsort(difficulty, kind="stable")) if curriculum else selection


def phase_parts(difficulty: np.ndarray, phases: int, *, curriculum: bool = False) -> list[np.ndarray]:
    """The places of each phase's samples, int64: equally many up to one, from easy to hard.

    Args:
        difficulty: of each sample, (k,).
        phases: at most so many; of fewer samples, as many as there are.
        curriculum: in each phase from easy to hard too, instead of in their order.
    """
    parts = np.array_split(np.argsort(difficulty, kind="stable"), min(phases, len(difficulty)))
    return parts if curriculum else [np.sort(part) for part in parts]
