"""What the labels leave open in the Gaussian process over pairs, and what to measure next.

The labels are taken for a full grid with noise on each labelled sample's level a(x) and on its profile g(x, .), so what
is open in a new sample is one variance for each. That is an order among samples and the base of their completion, not
a calibrated error of each pair.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.covariance import Side, block_kernels, kernel, same_samples

_LOOKED_AT = 1024  # targets, at most, among which probes are chosen
_AT_ONCE = 8192  # samples
_NUMBERS = 1 << 25  # of their kernels, likewise


class Posterior:
    """Of a fitted network.

    Args:
        pool: the pool's tower; its kernels are those of the profile and of the level.
        target: the targets' tower.
        numbers: of the process, `ProcessNetwork.numbers`.
    """

    def __init__(self, pool: Side, target: Side, numbers: Mapping[str, float]) -> None:
        self.pool, self.target, self.numbers = pool, target, numbers

    def spread(self, pool: Any) -> np.ndarray:
        """Standard deviation of a sample's influence on a target of the typical profile and spread 1, (n,) float64."""
        profile, level = self.variances(pool)
        return np.asarray(np.sqrt(profile * self.numbers["profile"] + level))

    def variances(self, pool: Any) -> tuple[np.ndarray, np.ndarray]:
        """Variance that is open in each sample's profile, per unit of its kernel, and in its level: (n,), (n,)."""
        prior = self.pool.log_weights.exp().sum(1)
        out = np.empty((2, len(pool)))
        kernels = len(self.pool.landmarks) * (len(self.pool.projection.slices) + 1)  # numbers for each sample
        at_once = max(min(_NUMBERS // kernels, _AT_ONCE), 1)
        for start in range(0, len(pool), at_once):
            told = self._told(self.pool.coordinates(pool[start : start + at_once]))
            for k, part in enumerate(told):
                out[k, start : start + at_once] = (prior[k] - part.square().sum(0)).clamp(min=0).numpy()
        return out[0], out[1]

    def _told(self, x: Tensor) -> list[Tensor]:
        """For profile and level, (labelled, n) numbers whose squares sum up to the variance that the labels take."""
        return [
            torch.linalg.solve_triangular(factor, values.T, upper=False)
            for factor, values in zip(self._factors, self.pool.smooth(x), strict=True)
        ]

    @functools.cached_property
    def _factors(self) -> list[Tensor]:
        """Cholesky factors of the labelled samples' covariance, noise included."""
        among = self.pool.smooth(self.pool.landmarks)
        noise = self.numbers["profile_noise"], self.numbers["level_noise"]
        identity = torch.eye(len(self.pool.landmarks), dtype=torch.float64)
        return [torch.linalg.cholesky(k + n * identity) for k, n in zip(among, noise, strict=True)]

    def choose_samples(self, pool: Any, count: int) -> np.ndarray:
        """The samples whose labels would tell most of the influence of all of these, (count,) int64, greedily."""
        x = self.pool.coordinates(pool[:])
        blocks = block_kernels(x, x, self.pool.projection.slices)
        left = torch.zeros((len(x), len(x)), dtype=torch.float64)
        shares = self.numbers["profile"], 1.0
        for weights, told, share in zip(self.pool.log_weights, self._told(x), shares, strict=True):
            left += share * (kernel(blocks, weights) - told.T @ told)
        noise = shares[0] * self.numbers["profile_noise"] + self.numbers["level_noise"]
        return _most_telling(left, torch.full((len(left),), noise, dtype=torch.float64), count)

    def choose_targets(self, target: Any, scales: Callable[[Any], np.ndarray], count: int) -> np.ndarray:
        """The targets whose exact influence tells most of a new sample's influence on all, (count,) int64, greedily.

        Args:
            target: features of all targets; of more than 1,024, some are looked at.
            scales: features to each target's spread.
            count: how many.
        """
        looked_at = np.unique(np.linspace(0, len(target) - 1, _LOOKED_AT).astype(np.int64))
        scale = torch.from_numpy(scales(target[looked_at]))
        y = self.target.coordinates(target[looked_at])
        # Of a typical new sample: half of what the prior leaves open, as after a few labels.
        profile, level = self.pool.log_weights.exp().sum(1) / 2
        left = (profile * self.target_kernel(y, y) + level) * scale[:, None] * scale
        return np.asarray(looked_at[_most_telling(left, self.numbers["noise"] * scale.square(), count)])

    def target_kernel(self, y: Tensor, z: Tensor) -> Tensor:
        """Covariance of a profile between targets, given their coordinates: (n, m)."""
        smooth = kernel(block_kernels(y, z, self.target.projection.slices), self.target.log_weights[0])
        return smooth + self.target.own[0] * same_samples(y, z)

    def completed(self, pool: Any, target: Any, probed: Any, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What residuals at a few targets add to both towers: (n, k + 1), (m, k + 1).

        Each sample's residuals are completed by its own open variance, times the kernel over targets.

        Args:
            pool: features of n samples.
            target: features of m targets.
            probed: features of the k targets that are measured.
            residual: (n, k) what was measured less what was estimated, in units of each target's spread.
        """
        y, right = self.target.coordinates(probed), np.ones((len(target), len(probed) + 1))
        profile, level = (torch.from_numpy(part)[:, None, None] for part in self.variances(pool))
        among = self.target_kernel(y, y)
        noise = self.numbers["noise"] * torch.eye(len(y), dtype=torch.float64)
        known = torch.from_numpy(residual)
        weight = torch.empty_like(known)
        for some in torch.split(torch.arange(len(known)), max(_AT_ONCE * 64 // len(y) ** 2, 1)):
            covariance = level[some] + profile[some] * among + noise
            weight[some] = torch.linalg.solve(covariance, known[some])
        left = torch.cat([profile[:, :, 0] * weight, level[:, :, 0] * weight.sum(1, keepdim=True)], dim=1)
        for start in range(0, len(target), _AT_ONCE):
            part = self.target.coordinates(target[start : start + _AT_ONCE])
            right[start : start + _AT_ONCE, :-1] = self.target_kernel(part, y).numpy()
        return left.numpy(), right


def _most_telling(covariance: Tensor, noise: Tensor, count: int) -> np.ndarray:
    """What to measure, one after the other, so that least variance is left in all: (count,) int64."""
    left = covariance.clone()
    chosen: list[int] = []
    for _ in range(min(count, len(left))):
        told = left.square().sum(0) / (left.diagonal() + noise)
        told[chosen] = -1
        best = int(told.argmax())
        chosen.append(best)
        left -= torch.outer(left[:, best], left[best]) / (left[best, best] + noise[best])
    return np.array(chosen, dtype=np.int64)
