"""The posterior mean of all pairs as a product of two towers, of the rank that pool and targets need.

Interaction, main effect and cosines are products already. The exponential similarities, and the label-free similarity
that is the prior mean, become one by the Nyström approximation with at most 512 targets as inducing points; with no
more targets than that it is exact up to jitter. The product is then truncated by a singular value decomposition on a
subset of both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.covariance import (
    CHUNK,
    SHARPNESS,
    Side,
    in_chunks,
    nystrom,
    same_samples,
    similarities,
    unit_blocks,
)
from nncift.estimator.similarity import LabelFreeSimilarity
from nncift.estimator.vector_process import VectorProcess
from nncift.run.executors.base import LOCAL, workers

RANK = 128  # of the estimate, at most
_INDUCING = 512  # targets, at most
_REFERENCE = 1024  # samples of a side that the truncation is computed on
_TOLERANCE = 1e-7  # share of the squared Frobenius norm that the truncation may lose
_SPREAD = 1 << 17  # pool samples from which workers compute the tower: less than their start takes


class PosteriorMean:
    """The posterior mean unit (inner(x, y) s(y) + c(y)) + mean, plus the scaled prior means.

    These are `numbers["similarity"]` times the label-free similarity and `numbers["prior"]` times a prior's.

    Attributes:
        pool: labelled pool samples; kernels of the interaction and of the main effect.
        target: labelled targets; kernels of the interaction, of c(y) and of log s(y).
        arrays: `profile` (n, m), dual coefficients of the interaction; `bias` (m,) of c; `scale` (2, m) of log s,
            smooth and nugget; `terms` (terms,) coefficients of the similarities.
        numbers: mean and unit of the influence, and the other scalars.
        similarity: the prior mean, before it is scaled: label-free, or of labels on both sides; None without one.
        prior: a network fitted earlier, to other data or another influence.
        sharpness: of the similarities, see `covariance.similarities`.
    """

    pool: Side
    target: Side
    prior: PosteriorMean | None = None
    similarity: LabelFreeSimilarity | VectorProcess | None = None

    def __init__(self) -> None:
        self.arrays: dict[str, Tensor] = {}
        self.numbers: dict[str, float] = {}
        self.sharpness = SHARPNESS

    def pool_effects(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Interaction coefficients on the labelled targets, and main effect plus the constant: (n, m), (n,)."""
        interaction, main = self.pool.kernels(x)
        weights = self.arrays["profile"]
        return interaction @ weights, main @ weights.sum(1) + self.numbers["constant"]

    def target_effects(self, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Scale s(y) and main effect c(y) plus the mean, both on the influence's scale: (n,), (n,)."""
        _, main, uniform = self.target.kernels(y)
        smooth, nugget = self.arrays["scale"]
        scale = torch.exp(self.numbers["scale_mean"] + uniform @ smooth + same_samples(y, self.target.train) @ nugget)
        unit = self.numbers["unit"]
        return (unit * scale).numpy(), (unit * (main @ self.arrays["bias"]) + self.numbers["mean"]).numpy()

    def towers(self, pool: Any, target: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Both towers and c(y), with the prior's alongside: (n, rank), (m, rank), (m,)."""
        left, right, bias = self._truncated(pool, target)
        if self.prior is None:
            return left, right, bias
        before, weight = self.prior.towers(pool, target), self.numbers["prior"]
        left, right = np.concatenate([left, weight * before[0]], axis=1), np.concatenate([right, before[1]], axis=1)
        return left, right, bias + weight * before[2]

    def _truncated(self, pool: Any, target: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All but the prior as a product of truncated rank, and c(y): (n, rank), (m, rank) float32, (m,)."""
        inducing = self._inducing(target[_subset(len(target), _INDUCING)])
        left = self._pool_tower(pool[_subset(len(pool), _REFERENCE)], inducing)
        right, _ = self._target_tower(target[_subset(len(target), _REFERENCE)], inducing)
        u, size, v = torch.linalg.svd(left @ right.T, full_matrices=False)
        lost = 1 - size.square().cumsum(0) / size.square().sum().clamp(min=1e-300)
        rank = min(int((lost > _TOLERANCE).sum()) + 1, RANK, len(size))
        root = size[:rank].clamp(min=1e-12 * float(size[0]) + 1e-30).sqrt()
        basis, target_basis = right.T @ v[:rank].T / root, left.T @ u[:, :rank] / root
        left_all = _of_pool(_PoolTower(self, inducing, basis), pool)

        def projected(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            tower, bias = self._target_tower(rows, inducing)
            return (tower @ target_basis).float().numpy(), bias

        right_all, bias = in_chunks(target, projected)
        return left_all, right_all, bias

    def _inducing(self, rows: np.ndarray) -> _Inducing:
        """Of some targets' features."""
        units = None if self.similarity is None else self.similarity.units(rows)
        return _Inducing(self.target.coordinates(rows), units)

    def _pool_tower(self, rows: np.ndarray, inducing: _Inducing) -> Tensor:
        """Interaction, main effect, the cosines' half, and weighted similarities to the inducing points, (n, width)."""
        x = self.pool.coordinates(rows)
        interaction, main = self.pool_effects(x)
        columns = [interaction, main[:, None]]
        if len(self.arrays["terms"]):
            projection, weights = self.pool.projection, self.arrays["terms"].reshape(1 + len(self.sharpness), -1)
            units = unit_blocks(x, projection)
            columns += [b * u for b, u in zip(weights[0], units, strict=True)]
            for u, v, weight in zip(units, unit_blocks(inducing.coordinates, projection), weights[1:].T, strict=True):
                columns.append(torch.einsum("k,kij->ij", weight, torch.stack(similarities(u @ v.T, self.sharpness))))
        if self.similarity is not None:
            columns.append(self.numbers["similarity"] * self.similarity.pool_tower(rows, inducing.units))
        return torch.cat(columns, dim=1)

    def _target_tower(self, rows: np.ndarray, inducing: _Inducing) -> tuple[Tensor, np.ndarray]:
        """The target's half of each column of `_pool_tower`, and c(y): (m, width), (m,)."""
        y = self.target.coordinates(rows)
        scale, bias = self.target_effects(y)
        columns = [self.target.kernels(y)[0], torch.ones((len(y), 1), dtype=torch.float64)]
        if len(self.arrays["terms"]):
            projection = self.pool.projection
            units = unit_blocks(y, projection)
            columns += units
            for u, v in zip(units, unit_blocks(inducing.coordinates, projection), strict=True):
                columns.append(nystrom(*(similarities(w @ v.T, self.sharpness[:1])[0] for w in (u, v))))
        columns = [column * torch.from_numpy(scale)[:, None] for column in columns]
        if self.similarity is not None:
            columns.append(self.similarity.target_tower(rows, inducing.units))
        return torch.cat(columns, dim=1), bias


class _Inducing(NamedTuple):
    """Targets that stand for all in the Nyström approximation.

    Attributes:
        coordinates: (m, width).
        units: as the prior mean has them.
    """

    coordinates: Tensor
    units: Any


@dataclass(frozen=True)
class _Rows:
    """The features of some samples; written in messages as their numbers."""

    first: int
    features: np.ndarray

    def __str__(self) -> str:
        return f"samples {self.first} to {self.first + len(self.features) - 1} of the estimate"


@dataclass(frozen=True, eq=False)
class _PoolTower:
    """The pool's tower of some samples, truncated; picklable."""

    mean: PosteriorMean
    inducing: _Inducing
    basis: Tensor  # float64 (width, rank)

    def __call__(self, rows: _Rows) -> tuple[int, np.ndarray]:
        tower = self.mean._pool_tower(rows.features, self.inducing) @ self.basis
        return rows.first, tower.float().numpy()


def _of_pool(tower: _PoolTower, pool: Any) -> np.ndarray:
    """The tower of all pool samples, float32 (n, rank), of many by the run's workers."""
    executor = workers() if len(pool) >= _SPREAD else LOCAL
    found = np.empty((len(pool), tower.basis.shape[1]), np.float32)
    parts = (_Rows(first, pool[first : first + CHUNK]) for first in range(0, len(pool), CHUNK))
    for first, rows in executor.map(tower, parts):
        found[first : first + len(rows)] = rows
    return found


def _subset(n: int, size: int) -> np.ndarray:
    """Indices of at most `size` of n samples, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, size)).astype(np.int64))
