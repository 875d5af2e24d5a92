"""Labels at their places among the labelled samples: what the Gaussian process over pairs is fitted to."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.covariance import SHARPNESS, block_kernels, rounded, similarities, unit_blocks
from nncift.estimator.pca import Projection, fit_projections
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs

MOST_ROWS, MOST_COLUMNS = 4096, 1024  # labelled samples that are learned from
_NOISE_RATIOS = np.geomspace(0.03, 30, 11)
_LEAST_SPREAD = 0.1  # of a likeness: where no labelled pair is alike, chance must not tell what one that is will get
_SHRINK = 5.0  # labels that the common spread weighs in a target's own

_log = logging.getLogger("nncift")


@dataclass(frozen=True)
class LabelledGrid:
    """Labels at their places among labelled samples, and all that the process needs to know of these.

    Attributes:
        projections: features to coordinates, of either side.
        pool, target: coordinates of the labelled samples, (n, width), (m, width).
        row, column: (labels,) int64 numbers of the labelled samples.
        value: (labels,) influence, less `mean`, in units of `unit`.
        scale: (m,) s(y) of the labelled targets.
        mean, unit: of the influence, on its own scale.
        among_pool, among_targets: `radial.block_kernels` of the labelled samples, (blocks, n, n), (blocks, m, m).
        terms: (terms, n, m) of each shared block the cosines, then of each sharpness and block the similarities;
            standardised.
        term_mean, term_spread: (terms,) what was taken off and divided by.
        pointwise: there is nothing but a(x).
    """

    projections: tuple[Projection, Projection]
    pool: Tensor
    target: Tensor
    row: Tensor
    column: Tensor
    value: Tensor
    scale: Tensor
    mean: float
    unit: float
    among_pool: Tensor
    among_targets: Tensor
    terms: Tensor
    term_mean: Tensor
    term_spread: Tensor
    pointwise: bool

    @classmethod
    def of(cls, pool: Features, target: Features, labels: LabelledPairs, *, pointwise: bool) -> LabelledGrid:
        """From the features of all samples and the labels of some pairs.

        Args:
            pool: features of the pool.
            target: features of the targets.
            labels: exact influence of some pairs.
            pointwise: there is nothing but a(x).
        """
        rows, row = np.unique(labels.pool_index, return_inverse=True)
        columns, column = np.unique(labels.target_index, return_inverse=True)
        projections = fit_projections(pool, target, rows, columns)
        x, y = (
            rounded(torch.from_numpy(projection(side[some])))
            for projection, side, some in zip(projections, (pool, target), (rows, columns), strict=True)
        )
        value = labels.influence.astype(np.float64)
        scale, unit = _target_scales(column, value, len(columns))
        mean = float(value.mean())
        shared = projections[0] is projections[1] and not pointwise
        parts = shared_terms(x, y, projections[0]) if shared else []
        terms = torch.stack(parts) if parts else torch.zeros((0, len(x), len(y)), dtype=torch.float64)
        centre = terms.mean((1, 2))
        spread = (terms - centre[:, None, None]).square().mean((1, 2)).sqrt().clamp(min=_LEAST_SPREAD)
        return cls(
            projections=projections,
            pool=x,
            target=y,
            row=torch.from_numpy(row),
            column=torch.from_numpy(column),
            value=torch.from_numpy((value - mean) / unit),
            scale=torch.from_numpy(np.ones_like(scale) if pointwise else scale),
            mean=mean,
            unit=unit,
            among_pool=block_kernels(x, x, projections[0].slices),
            among_targets=block_kernels(y, y, projections[1].slices),
            terms=(terms - centre[:, None, None]) / spread[:, None, None],
            term_mean=centre,
            term_spread=spread,
            pointwise=pointwise,
        )

    def part(self, some: np.ndarray) -> LabelledGrid:
        """Some of the labels, and the samples alone that occur in them."""
        rows, row = torch.unique(self.row[some], return_inverse=True)
        columns, column = torch.unique(self.column[some], return_inverse=True)
        return replace(
            self,
            pool=self.pool[rows],
            target=self.target[columns],
            row=row,
            column=column,
            value=self.value[some],
            scale=self.scale[columns],
            among_pool=self.among_pool[:, rows][:, :, rows],
            among_targets=self.among_targets[:, columns][:, :, columns],
            terms=self.terms[:, rows][:, :, columns],
        )


def shared_terms(x: Tensor, y: Tensor, projection: Projection, sharpness: Sequence[float] = SHARPNESS) -> list[Tensor]:
    """The cosines of each block that both sides share, and then of each sharpness the similarities, (n, m) each."""
    pairs = zip(unit_blocks(x, projection), unit_blocks(y, projection), strict=True)
    cosines = [u @ v.T for u, v in pairs]
    alike = [similarities(cosine, sharpness) for cosine in cosines]
    return [*cosines, *(of_block[k] for k in range(len(sharpness)) for of_block in alike)]


def _target_scales(column: np.ndarray, value: np.ndarray, n_columns: int) -> tuple[np.ndarray, float]:
    """Spread of the influence on each target, relative to the common spread, and that: (n_columns,), float."""
    counts = np.bincount(column, minlength=n_columns)
    means = np.bincount(column, value, minlength=n_columns) / counts
    squares = np.square(value - means[column])
    common = float(squares.mean()) or float(np.square(value - value.mean()).mean()) or 1.0
    variance = (np.bincount(column, squares, minlength=n_columns) + _SHRINK * common) / (counts + _SHRINK)
    return np.sqrt(variance / common), math.sqrt(common)


def smooth_scales(grid: LabelledGrid) -> tuple[float, Tensor, Tensor]:
    """Logarithm of s(y) as mean + kernel times the second + what is left of each labelled target, (m,) each.

    Kernel ridge regression; the ratio of noise to signal with the highest marginal likelihood.
    """
    log_scale, among = grid.scale.log(), grid.among_targets.mean(0)
    mean = log_scale.mean()
    values, directions = torch.linalg.eigh(among)
    turned = (directions.T @ (log_scale - mean)).square()
    losses = {}
    for ratio in _NOISE_RATIOS:
        spread = values.clamp(min=0) + ratio
        losses[ratio] = float(len(turned) * torch.log((turned / spread).mean() + 1e-12) + torch.log(spread).sum())
    ratio = min(losses, key=lambda one: losses[one])
    smooth = directions @ ((directions.T @ (log_scale - mean)) / (values.clamp(min=0) + ratio))
    return float(mean), smooth, log_scale - mean - among @ smooth


def at_most(labels: LabelledPairs, seed: int) -> LabelledPairs:
    """The labels, without some of the samples where there are more than can be learned from."""
    for name, index, most in (
        ("pool samples", labels.pool_index, MOST_ROWS),
        ("targets", labels.target_index, MOST_COLUMNS),
    ):
        distinct = np.unique(index)
        if len(distinct) > most:
            _log.warning("network: it learns from %d of the %d labelled %s", most, len(distinct), name)
            kept = np.random.default_rng(seed).permutation(distinct)[:most]
            return at_most(labels.take(np.isin(index, kept)), seed)
    return labels
