"""Training data of the Gaussian process over pairs: labels as entries of a grid of labelled samples."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.covariance import SHARPNESS, block_kernels, rounded, similarities, unit_blocks
from nncift.estimator.pca import Projection, fit_projections
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs

MAX_ROWS, MAX_COLUMNS = 4096, 1024  # labelled samples in a fit
_NOISE_RATIOS = np.geomspace(0.03, 30, 11)
_MIN_STD = 0.1  # of a similarity term: keeps its coefficient from fitting noise when no labelled pair is similar
_SHRINKAGE = 5.0  # pseudo-observations of the common variance in each target's own

_log = logging.getLogger("nncift")


@dataclass(frozen=True)
class LabelledGrid:
    """Labels as entries of an n x m grid of labelled samples, with the kernels between these."""

    projections: tuple[Projection, Projection]  # features to coordinates, of either side
    pool: Tensor  # (n, width) coordinates of the labelled samples
    target: Tensor  # (m, width)
    row: Tensor  # (labels,) int64 indices of the labelled samples
    column: Tensor
    value: Tensor  # (labels,) standardized influence, (influence - mean) / unit
    scale: Tensor  # (m,) s(y) of the labelled targets
    mean: float  # of the influence, on its own scale
    unit: float
    pool_kernels: Tensor  # (blocks, n, n) `covariance.block_kernels` between them
    target_kernels: Tensor  # (blocks, m, m)
    terms: Tensor  # (terms, n, m) `shared_terms`, standardized
    term_mean: Tensor  # (terms,) of the terms before
    term_std: Tensor
    pointwise: bool  # only the main effect a(x) is modeled

    @classmethod
    def of(cls, pool: Features, target: Features, labels: LabelledPairs, *, pointwise: bool) -> LabelledGrid:
        """From the features of all samples and the exact influence of some pairs."""
        rows, row = np.unique(labels.pool_index, return_inverse=True)
        columns, column = np.unique(labels.target_index, return_inverse=True)
        projections = fit_projections(pool, target, rows, columns)
        x, y = (
            rounded(torch.from_numpy(projection(side[some])))
            for projection, side, some in zip(projections, (pool, target), (rows, columns), strict=True)
        )
        shared = projections[0] is projections[1] and not pointwise
        parts = shared_terms(x, y, projections[0]) if shared else []
        terms = torch.stack(parts) if parts else torch.zeros((0, len(x), len(y)), dtype=torch.float64)
        center = terms.mean((1, 2))
        std = (terms - center[:, None, None]).square().mean((1, 2)).sqrt().clamp(min=_MIN_STD)
        return cls(
            projections=projections,
            pool=x,
            target=y,
            row=torch.from_numpy(row),
            column=torch.from_numpy(column),
            **_standardized(labels.influence, column, len(columns), pointwise=pointwise),
            pool_kernels=block_kernels(x, x, projections[0].slices),
            target_kernels=block_kernels(y, y, projections[1].slices),
            terms=(terms - center[:, None, None]) / std[:, None, None],
            term_mean=center,
            term_std=std,
            pointwise=pointwise,
        )

    def with_influence(self, influence: np.ndarray) -> LabelledGrid:
        """The same pairs with other values, (labels,) on their own scale."""
        return replace(
            self,
            **_standardized(influence, self.column.numpy(), self.scale.shape[0], pointwise=self.pointwise),
        )

    def subset(self, chosen: np.ndarray) -> LabelledGrid:
        """Some of the labels, and only the samples that occur in them."""
        rows, row = torch.unique(self.row[chosen], return_inverse=True)
        columns, column = torch.unique(self.column[chosen], return_inverse=True)
        return replace(
            self,
            pool=self.pool[rows],
            target=self.target[columns],
            row=row,
            column=column,
            value=self.value[chosen],
            scale=self.scale[columns],
            pool_kernels=self.pool_kernels[:, rows][:, :, rows],
            target_kernels=self.target_kernels[:, columns][:, :, columns],
            terms=self.terms[:, rows][:, :, columns],
        )


def _standardized(influence: np.ndarray, column: np.ndarray, columns: int, *, pointwise: bool) -> dict[str, Any]:
    """The fields of a grid that depend on the values."""
    value = influence.astype(np.float64)
    scale, unit = _target_scales(column, value, columns)
    mean = float(value.mean())
    return {
        "value": torch.from_numpy((value - mean) / unit),
        "scale": torch.from_numpy(np.ones_like(scale) if pointwise else scale),
        "mean": mean,
        "unit": unit,
    }


def shared_terms(x: Tensor, y: Tensor, projection: Projection, sharpness: Sequence[float] = SHARPNESS) -> list[Tensor]:
    """Similarity terms: the cosine of each shared block, then for each sharpness its exponentials, (n, m) each."""
    pairs = zip(unit_blocks(x, projection), unit_blocks(y, projection), strict=True)
    cosines = [u @ v.T for u, v in pairs]
    by_block = [similarities(cosine, sharpness) for cosine in cosines]
    return [*cosines, *(block[k] for k in range(len(sharpness)) for block in by_block)]


def _target_scales(column: np.ndarray, value: np.ndarray, n_columns: int) -> tuple[np.ndarray, float]:
    """Standard deviation of the influence on each target relative to the pooled one, and that: (n_columns,), float."""
    counts = np.bincount(column, minlength=n_columns)
    means = np.bincount(column, value, minlength=n_columns) / counts
    squares = np.square(value - means[column])
    common = float(squares.mean()) or float(np.square(value - value.mean()).mean()) or 1.0
    variance = (np.bincount(column, squares, minlength=n_columns) + _SHRINKAGE * common) / (counts + _SHRINKAGE)
    return np.sqrt(variance / common), math.sqrt(common)


def smooth_scales(grid: LabelledGrid) -> tuple[float, Tensor, Tensor]:
    """Kernel ridge regression of log s(y): mean, dual coefficients (m,) and residuals (m,) of the labelled targets.

    The noise-to-signal ratio maximizes the marginal likelihood on a grid.
    """
    log_scale, kernel = grid.scale.log(), grid.target_kernels.mean(0)
    mean = log_scale.mean()
    values, directions = torch.linalg.eigh(kernel)
    rotated = (directions.T @ (log_scale - mean)).square()
    losses = {}
    for ratio in _NOISE_RATIOS:
        variance = values.clamp(min=0) + ratio
        losses[ratio] = float(len(rotated) * torch.log((rotated / variance).mean() + 1e-12) + torch.log(variance).sum())
    ratio = min(losses, key=lambda one: losses[one])
    dual = directions @ ((directions.T @ (log_scale - mean)) / (values.clamp(min=0) + ratio))
    return float(mean), dual, log_scale - mean - kernel @ dual


def capped(labels: LabelledPairs, seed: int) -> LabelledPairs:
    """The labels of at most `MAX_ROWS` pool samples and `MAX_COLUMNS` targets, drawn at random."""
    sides = ("pool samples", labels.pool_index, MAX_ROWS), ("targets", labels.target_index, MAX_COLUMNS)
    for name, index, cap in sides:
        distinct = np.unique(index)
        if len(distinct) > cap:
            _log.warning("network: fitted to %d of the %d labelled %s", cap, len(distinct), name)
            kept = np.random.default_rng(seed).permutation(distinct)[:cap]
            return capped(labels.take(np.isin(index, kept)), seed)
    return labels
