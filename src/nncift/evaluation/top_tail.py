"""The top tail of an influence function: training without, and with only, the samples that it ranks highest.

The linear datamodeling score validates sums of influence over random halves, which the many middling samples decide. A
selection takes the largest values. So for a group of targets the top k of a training set are removed, or trained on
alone, and the loss of these targets is compared with that after removing, or training on, as many random samples (the
query loss difference; removal is the counterfactual test of datamodels, Ilyas et al. 2022, arXiv:2202.00622, section
4.1, and of TRAK, arXiv:2303.14186, figure 5). A training for each target alone would be too expensive, so targets of
one kind share theirs: the group's mean influence ranks the samples.

The trainings of a group are those of no other, and each is done with one seed, so the interval is over groups, and over
the random draws, which all groups share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nncift.errors import ConfigError
from nncift.evaluation.comparisons import Trained, contrast
from nncift.evaluation.datamodels import TrainingOutcomes

WITHOUT, ONLY = "without", "only"


@dataclass(frozen=True)
class TailEffect:
    """Loss difference to random samples, mean over groups of targets, in nats per token; larger is better."""

    kind: str  # "without": the top samples are missed; "only": they train better
    value: float
    low: float  # 95 % interval, over groups and random draws
    high: float
    p_value: float
    by_group: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def top_subsets(
    influence: np.ndarray, groups: Sequence[str], *, base: np.ndarray, share: float = 0.1
) -> dict[tuple[str, str], np.ndarray]:
    """The subsets to train on for one influence function.

    Args:
        influence: (n_pool, n_target), larger is better.
        groups: of the targets, n_target names.
        base: (n_pool,) bool, the training set that the top samples are taken out of, and taken from.
        share: of the base that is its top.

    Returns:
        By kind ("without", "only") and group, (n_pool,) bool.

    Raises:
        ConfigError: the shapes do not match, a value is not finite, or the top is nothing or all of the base.
    """
    if influence.shape != (len(base), len(groups)):
        raise ConfigError(f"influence has the shape {influence.shape}, not {(len(base), len(groups))}")
    if not np.isfinite(influence).all():
        raise ConfigError("influence has values that are not finite")
    size = top_size(base, share)
    members = np.flatnonzero(base)
    subsets: dict[tuple[str, str], np.ndarray] = {}
    for group in dict.fromkeys(groups):
        mean = influence[:, [name == group for name in groups]].mean(axis=1, dtype=np.float64)
        top = members[np.argsort(-mean[members], kind="stable")[:size]]
        subsets |= _pair(base, top, group)
    return subsets


def random_subsets(
    base: np.ndarray, *, draws: int, share: float = 0.1, seed: int = 0
) -> dict[tuple[str, str], np.ndarray]:
    """The same for random samples: by kind and number of the draw ("0", "1", ...)."""
    rng, size, members = np.random.default_rng(seed), top_size(base, share), np.flatnonzero(base)
    subsets: dict[tuple[str, str], np.ndarray] = {}
    for draw in range(draws):
        subsets |= _pair(base, rng.permutation(members)[:size], str(draw))
    return subsets


def top_size(base: np.ndarray, share: float) -> int:
    """Samples in the top of a base, at least 1.

    Raises:
        ConfigError: nothing of the base would be left, or the share is not positive.
    """
    size = max(round(share * int(base.sum())), 1)
    if share <= 0 or size >= base.sum():
        raise ConfigError(f"a share of {share} of {int(base.sum())} samples leaves nothing", "take one between 0 and 1")
    return size


def _pair(base: np.ndarray, top: np.ndarray, name: str) -> dict[tuple[str, str], np.ndarray]:
    only = np.zeros(len(base), bool)
    only[top] = True
    return {(WITHOUT, name): base & ~only, (ONLY, name): only}


def tail_effects(
    outcomes: TrainingOutcomes,
    names: Sequence[tuple[str, str]],
    random: TrainingOutcomes,
    random_names: Sequence[tuple[str, str]],
    groups: Sequence[str],
) -> dict[str, TailEffect]:
    """The effect of both kinds, by kind.

    Args:
        outcomes: of training on `top_subsets`.
        names: kind and group of each of their subsets.
        random: of training on `random_subsets` of the same base, with at least two draws.
        random_names: kind and draw of each of these.
        groups: of the targets, n_target names.

    Raises:
        ConfigError: the outcomes are those of other targets, or there are fewer than two draws or groups.
    """
    if outcomes.target_ids != random.target_ids or len(groups) != len(outcomes.target_ids):
        raise ConfigError("the outcomes are not those of the same targets")
    kinds = list(dict.fromkeys(groups))
    members = [np.array([name == group for name in groups]) for group in kinds]
    effects = {}
    for kind, sign in ((WITHOUT, 1.0), (ONLY, -1.0)):
        # Mean loss of each group's targets, after the group's own training and after those of the random draws.
        own = [_losses(outcomes, names, (kind, group))[of].mean() for group, of in zip(kinds, members, strict=True)]
        draws = [_losses(random, random_names, name) for name in random_names if name[0] == kind]
        others = np.array([[losses[of].mean() for of in members] for losses in draws])  # (draws, groups)
        if len(others) < 2 or len(kinds) < 2:
            raise ConfigError("an interval needs two random draws and two groups of targets")
        # The function's trainings differ from group to group, so their noise is part of the variance over groups.
        models = [Trained(np.array([own]), fixed=True), Trained(others)]
        found = contrast(models, np.array([[sign, -sign]]))
        by_group = dict(zip(kinds, (sign * (np.array(own) - others.mean(axis=0))).tolist(), strict=True))
        value, low, high, p_value = (float(part[0]) for part in found)
        effects[kind] = TailEffect(kind, value, low, high, p_value, by_group)
    return effects


def _losses(outcomes: TrainingOutcomes, names: Sequence[tuple[str, str]], name: tuple[str, str]) -> np.ndarray:
    """Loss of each target after training on the named subset, mean over the seeds, (n_target,) float64."""
    return np.asarray(outcomes.after[:, list(names).index(name)].mean(axis=0, dtype=np.float64))
