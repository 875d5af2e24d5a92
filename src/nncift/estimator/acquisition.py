"""Posterior variance of the Gaussian process over pairs, and greedy acquisition by variance reduction.

The labels are approximated by a full grid with noise on each labelled sample's main effect and interaction, so a new
sample has one posterior variance for either. That orders samples and weighs their probes; it is not a calibrated error
of each pair.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.covariance import CHUNK, Side, block_kernels, kernel, same_samples

_CANDIDATES = 1024  # targets, at most, among which probes are chosen
_KERNEL_ENTRIES = 1 << 25  # at a time


class Posterior:
    """Posterior variance of a fitted network, given what `towers.PosteriorMean` has of the same names."""

    def __init__(self, pool: Side, target: Side, numbers: Mapping[str, float]) -> None:
        self.pool, self.target, self.numbers = pool, target, numbers

    def std(self, pool: Any) -> np.ndarray:
        """Posterior standard deviation on a target of typical prior variance and scale 1: (n, d) -> (n,) float64."""
        interaction, main = self.variances(pool)
        return np.asarray(np.sqrt(interaction * self.numbers["profile"] + main))

    def variances(self, pool: Any) -> tuple[np.ndarray, np.ndarray]:
        """Posterior variance of the interaction, per unit of the target kernel, and of the main effect: (n,), (n,)."""
        prior = self.pool.log_weights.exp().sum(1)

        def work(x: Tensor) -> tuple[np.ndarray, ...]:
            explained = zip(prior, self._explained(x), strict=True)
            return tuple((all_of_it - part.square().sum(0)).clamp(min=0).numpy() for all_of_it, part in explained)

        per_sample = len(self.pool.train) * (len(self.pool.projection.slices) + 1)
        interaction, main = self.pool.in_chunks(pool, work, max(min(_KERNEL_ENTRIES // per_sample, 4 * CHUNK), 1))
        return interaction, main

    def _explained(self, x: Tensor) -> list[Tensor]:
        """L^-1 k(train, x) of interaction and main effect, (labelled, n): squared column norms are variance removed."""
        return [
            torch.linalg.solve_triangular(factor, values.T, upper=False)
            for factor, values in zip(self._factors, self.pool.smooth(x), strict=True)
        ]

    @functools.cached_property
    def _factors(self) -> list[Tensor]:
        """Cholesky factors of the labelled samples' covariance, noise included."""
        noise = self.numbers["profile_noise"], self.numbers["level_noise"]
        identity = torch.eye(len(self.pool.train), dtype=torch.float64)
        covariances = self.pool.smooth(self.pool.train)
        return [torch.linalg.cholesky(k + n * identity) for k, n in zip(covariances, noise, strict=True)]

    def choose_samples(self, pool: Any, count: int) -> np.ndarray:
        """The samples whose labels most reduce the posterior variance of all of these, (count,) int64, best first."""
        x = self.pool.coordinates(pool[:])
        blocks = block_kernels(x, x, self.pool.projection.slices)
        covariance = torch.zeros((len(x), len(x)), dtype=torch.float64)
        shares = self.numbers["profile"], 1.0
        for weights, explained, share in zip(self.pool.log_weights, self._explained(x), shares, strict=True):
            covariance += share * (kernel(blocks, weights) - explained.T @ explained)
        noise = shares[0] * self.numbers["profile_noise"] + self.numbers["level_noise"]
        return greedy_variance_reduction(covariance, torch.full((len(x),), noise, dtype=torch.float64), count)

    def choose_targets(self, target: Any, scales: Callable[[Any], np.ndarray], count: int) -> np.ndarray:
        """The targets whose exact influence most reduces a new sample's variance on all, (count,) int64, best first.

        Candidates are at most 1,024 targets, evenly spaced; `scales` maps features to the scale s(y).
        """
        candidates = np.unique(np.linspace(0, len(target) - 1, _CANDIDATES).astype(np.int64))
        scale = torch.from_numpy(scales(target[candidates]))
        y = self.target.coordinates(target[candidates])
        # A typical new sample: half of the prior variance, as after a few labels.
        interaction, main = self.pool.log_weights.exp().sum(1) / 2
        covariance = (interaction * self.target_covariance(y, y) + main) * scale[:, None] * scale
        chosen = greedy_variance_reduction(covariance, self.numbers["noise"] * scale.square(), count)
        return np.asarray(candidates[chosen])

    def target_covariance(self, y: Tensor, z: Tensor) -> Tensor:
        """Covariance of the interaction between targets, given their coordinates: (n, m)."""
        smooth = kernel(block_kernels(y, z, self.target.projection.slices), self.target.log_weights[0])
        return smooth + self.target.nugget[0] * same_samples(y, z)

    def conditioned(self, pool: Any, target: Any, probed: Any, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Conditioning on the residuals at the probed targets, as columns for both towers: (n, k + 1), (m, k + 1).

        `residual` is exact minus estimated influence in units of each target's scale, (n, k); the others are features.
        """
        y = self.target.coordinates(probed)
        interaction, main = (torch.from_numpy(part)[:, None, None] for part in self.variances(pool))
        probes = self.target_covariance(y, y)
        noise = self.numbers["noise"] * torch.eye(len(y), dtype=torch.float64)
        residuals = torch.from_numpy(residual)
        weight = torch.empty_like(residuals)
        for some in torch.split(torch.arange(len(residuals)), max((CHUNK << 8) // len(y) ** 2, 1)):
            covariance = main[some] + interaction[some] * probes + noise
            weight[some] = torch.linalg.solve(covariance, residuals[some])
        left = torch.cat([interaction[:, :, 0] * weight, main[:, :, 0] * weight.sum(1, keepdim=True)], dim=1)
        (right,) = self.target.in_chunks(target, lambda part: (self.target_covariance(part, y).numpy(),))
        return left.numpy(), np.pad(right, ((0, 0), (0, 1)), constant_values=1)


def greedy_variance_reduction(covariance: Tensor, noise: Tensor, count: int) -> np.ndarray:
    """Greedy choice of observations that minimize the total posterior variance: (count,) int64, best first."""
    covariance = covariance.clone()
    chosen: list[int] = []
    for _ in range(min(count, len(covariance))):
        reduction = covariance.square().sum(0) / (covariance.diagonal() + noise)
        reduction[chosen] = -1
        best = int(reduction.argmax())
        chosen.append(best)
        covariance -= torch.outer(covariance[:, best], covariance[best]) / (covariance[best, best] + noise[best])
    return np.array(chosen, dtype=np.int64)
