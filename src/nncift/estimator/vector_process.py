"""Influence as the inner product of two samples' vectors, such as gradients: a Gaussian process over the features.

Where a function's cost is that of samples, a labelled target is measured as a pool sample too (`labels.collect`), so
the influence of m targets on each other is known beside that of r labelled pool rows on them. With S these r + m
samples and T the targets, each coordinate of the vectors is one draw of a Gaussian process with covariance k, and

    E f(x, y) = k(x, y) + w(x)' (F - K_ST) v(y),    w(x) = K_SS^-1 k(S, x),   v(y) = K_TT^-1 k(T, y),

F (r + m, m) being what was measured, and K the same of k. Labelled pairs are reproduced, and a pool sample borrows the
vectors of labelled samples of either side that resemble it; without any it is k, a similarity.

k is a sum of similarities and RBF kernels of the features' blocks and a nugget. Its weights maximize the likelihood of
the targets' vectors, for which their inner products G are enough: they minimize log|K_TT| + tr(K_TT^-1 G) (Rasmussen
and Williams 2006, equation 5.8, for independent outputs with the same covariance).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.covariance import (
    SHARPNESS,
    nystrom,
    rounded,
    same_pairs,
    same_samples,
    similarities,
    unit_blocks,
)
from nncift.estimator.pca import Projection
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs

STEPS = 60  # of Adam
_LEARNING_RATE, _PENALTY = 0.3, 0.02
_INITIAL, _INITIAL_NUGGET = -3.0, -0.5  # logarithms
_MIN_NUGGET = 1e-6
_SAMPLES = 512  # targets, at most, that the weights are fitted to
_COMPLETION_NOISE = 0.01  # variance, in units of an inner product of a target with itself
_STORED = ("train", "log_weights", "measured")


class Units(NamedTuple):
    """What the inner products of n samples with others are computed from.

    Attributes:
        coordinates: (n, width).
        pool: weights of the labelled samples for them as pool samples, w(x): (n, r + m).
        target: likewise as targets, v(y): (n, m).
    """

    coordinates: Tensor
    pool: Tensor
    target: Tensor


class VectorProcess:
    """Posterior expectation of inner products, in units of the mean inner product of a labelled target with itself.

    Args:
        projection: features to coordinates, of both sides.
        train: coordinates of the labelled pool rows, and after these of the targets, (r + m, width).
        log_weights: logarithms of the weights of the kernels and, last, of the nugget.
        measured: influence of all of these on the targets, (r + m, m).
        unit: of the influence.
    """

    def __init__(
        self, projection: Projection, train: Tensor, log_weights: Tensor, measured: Tensor, unit: float
    ) -> None:
        self.projection, self.unit = projection, unit
        self.train, self.log_weights, self.measured = train, log_weights, measured
        self._rows = len(measured) - measured.shape[1]  # r
        covariance = self._smooth(train, train) + self._nugget() * same_samples(train, train)
        covariance += _MIN_NUGGET * torch.eye(len(train), dtype=torch.float64)
        self._factor = torch.linalg.cholesky(covariance)
        self._target_factor = torch.linalg.cholesky(covariance[self._rows :, self._rows :])
        self._gain = measured - covariance[:, self._rows :]

    @classmethod
    def of(
        cls, projection: Projection, pool: Features, target: Features, labels: LabelledPairs, among: LabelledPairs
    ) -> VectorProcess | None:
        """Fitted to exact influence of pool rows on targets and of these targets on each other.

        None where some of these are missing, or where no vectors' product can be so: a target does not help itself.

        Args:
            projection: features to coordinates, of both sides.
            pool: features of all pool samples.
            target: features of all targets.
            labels: influence of pool rows; where a row lacks some targets, these are completed (`_completed`).
            among: influence of targets on each other, their indices on both sides; of those without a label it is left
                out.
        """
        columns = np.intersect1d(among.target_index, labels.target_index)
        gram = torch.from_numpy(labelled_grid(among, columns, columns))
        unit = float(gram.diagonal().mean()) if len(columns) else 0.0
        if not gram.isfinite().all() or unit <= 0:
            return None
        gram, y = gram / unit, rounded(torch.from_numpy(projection(target[columns])))
        some = torch.from_numpy(np.unique(np.linspace(0, len(y) - 1, _SAMPLES).astype(np.int64)))
        kernels = torch.stack(list(_kernels(y[some], y[some], projection, _GRID)))
        log_weights = rounded(_fit_weights(kernels, _semidefinite(gram[some][:, some])))
        rows = labelled_rows(labels, columns)
        x = rounded(torch.from_numpy(projection(pool[rows])))
        measured = torch.from_numpy(labelled_grid(labels, rows, columns)) / unit
        whole = measured.isfinite().all(1)

        def process(kept: Tensor, values: Tensor) -> VectorProcess:
            return cls(projection, torch.cat([x[kept], y]), log_weights, rounded(torch.cat([values[kept], gram])), unit)

        found = process(whole, measured)
        if whole.all():
            return found
        expected = found.grid(found.units(pool[rows]), found.units(target[columns]))
        return process(torch.ones_like(whole), _completed(measured, expected, _semidefinite(gram)))

    def units(self, rows: np.ndarray) -> Units:
        """Of features (n, d)."""
        x = torch.from_numpy(self.projection(rows))
        cross = self._smooth(self.train, x) + self._nugget() * same_samples(self.train, x)
        of_targets = torch.cholesky_solve(cross[self._rows :], self._target_factor)
        return Units(x, torch.cholesky_solve(cross, self._factor).T, of_targets.T)

    def grid(self, pool: Units, target: Units) -> Tensor:
        """Expected inner product of all pairs: (n, m) float64."""
        x, y = pool.coordinates, target.coordinates
        prior = self._smooth(x, y) + self._nugget() * same_samples(x, y)
        return prior + pool.pool @ self._gain @ target.target.T

    def pairs(self, pool: Units, target: Units) -> Tensor:
        """Expected inner product of n pairs: (n,) float64."""
        x, y = pool.coordinates, target.coordinates
        prior = self._smooth(x, y, _ALIGNED) + self._nugget() * same_pairs(x, y)
        return prior + (pool.pool @ self._gain * target.target).sum(1)

    def pool_tower(self, rows: np.ndarray, inducing: Units) -> Tensor:
        """The half of pool samples, features (n, d), in a product of two towers, given some targets: (n, width)."""
        x = self.units(rows)
        return torch.cat([x.pool @ self._gain, self._smooth(x.coordinates, inducing.coordinates)], dim=1)

    def target_tower(self, rows: np.ndarray, inducing: Units) -> Tensor:
        """The half of targets: (m, width). The product lacks the nugget, of a sample's influence on itself."""
        y, z = self.units(rows), inducing.coordinates
        smooth = nystrom(self._smooth(y.coordinates, z), self._smooth(z, z))
        return torch.cat([y.target, smooth], dim=1)

    def left_out(self, parts: np.ndarray) -> np.ndarray:
        """Of each labelled pool row, exact minus expected influence by a process without its part: (r, m) float64.

        Source: Rasmussen and Williams 2006, equation 5.12, of several rows at once.

        Args:
            parts: number of each row's part, (r,) int64.
        """
        inverse, residuals = torch.cholesky_inverse(self._factor), torch.zeros_like(self.measured[: self._rows])
        weighted = inverse @ self.measured
        for one in np.unique(parts):
            out = torch.from_numpy(np.flatnonzero(parts == one))
            residuals[out] = torch.linalg.solve(inverse[out][:, out], weighted[out])
        return np.asarray(self.unit * residuals)

    def rows_among_targets(self) -> np.ndarray:
        """Whether each labelled pool row is a labelled target too: (r,) bool."""
        return np.asarray(same_samples(self.train[: self._rows], self.train[self._rows :]).any(1))

    def trained_on(self, rows: np.ndarray) -> np.ndarray:
        """Whether samples are among the labelled ones, by their features: (n, d) -> (n,) bool."""
        return np.asarray(same_samples(torch.from_numpy(self.projection(rows)), self.train).any(1))

    def state(self) -> dict[str, np.ndarray]:
        """Arrays (float32), without the projection's and the unit."""
        arrays = (self.train, self.log_weights, self.measured)
        return {f"vectors.{name}": a.float().numpy().copy() for name, a in zip(_STORED, arrays, strict=True)}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], projection: Projection, unit: float) -> Self:
        """The inverse of `state`."""
        train, log_weights, measured = (torch.from_numpy(np.float64(arrays[f"vectors.{name}"])) for name in _STORED)
        return cls(projection, train, log_weights, measured, unit)

    def _smooth(self, x: Tensor, y: Tensor, product: _Product | None = None) -> Tensor:
        """The covariance without the nugget."""
        kernels = _kernels(x, y, self.projection, product or _GRID)
        weighted = torch.zeros((), dtype=torch.float64)
        for weight, kernel in zip(self.log_weights[:-1].exp(), kernels, strict=True):  # one at a time: they are large
            weighted = weighted + weight * kernel
        return weighted

    def _nugget(self) -> Tensor:
        return self.log_weights[-1].exp()


class _Product(NamedTuple):
    """How two sides are combined, each with each or in pairs: inner products of rows, differences of numbers."""

    inner: Callable[[Tensor, Tensor], Tensor]
    minus: Callable[[Tensor, Tensor], Tensor]


_GRID = _Product(lambda u, v: u @ v.T, lambda a, b: a[:, None] - b)
_ALIGNED = _Product(lambda u, v: (u * v).sum(1), lambda a, b: a - b)


def kernel_count(components: Sequence[int]) -> int:
    """Number of the kernels of blocks with so many components, without the nugget."""
    wide = sum(size > 1 for size in components)
    return 1 + (len(components) - wide) + wide * (1 + len(SHARPNESS))


def _kernels(x: Tensor, y: Tensor, projection: Projection, product: _Product) -> Iterator[Tensor]:
    """A constant, RBF kernels of single coordinates, and of each wide block the cosine and its exponentials."""
    for block in projection.slices:
        if block.stop - block.start == 1:
            yield torch.exp(-product.minus(x[:, block.start], y[:, block.start]).square() / 2)
    for u, v in zip(unit_blocks(x, projection), unit_blocks(y, projection), strict=True):
        cosine = product.inner(u, v)
        yield cosine
        yield from similarities(cosine, SHARPNESS)
    yield torch.ones_like(product.minus(x[:, 0], y[:, 0]))


def _fit_weights(kernels: Tensor, gram: Tensor) -> Tensor:
    """Logarithms of the weights of kernels (blocks, m, m) and of the nugget, by Adam, from inner products (m, m).

    The likelihood's value is that of one coordinate, with an L2 penalty toward the initial weights.
    """
    start = torch.full((len(kernels) + 1,), _INITIAL, dtype=torch.float64)
    start[-1] = _INITIAL_NUGGET
    value, identity = start.clone().requires_grad_(), torch.eye(len(gram), dtype=torch.float64)
    optimizer = torch.optim.Adam([value], lr=_LEARNING_RATE)
    for _ in range(STEPS):
        weights = value.detach().exp()
        covariance = torch.einsum("b,bij->ij", weights[:-1], kernels) + (weights[-1] + _MIN_NUGGET) * identity
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        slope = inverse - inverse @ gram @ inverse
        of_kernels = torch.einsum("bij,ij->b", kernels, slope)
        gradient = torch.cat([of_kernels, slope.diagonal().sum()[None]]) * weights
        value.grad = gradient + 2 * _PENALTY * (value.detach() - start)
        optimizer.step()
    return value.detach()


def _semidefinite(gram: Tensor) -> Tensor:
    """The positive semidefinite part of the symmetric part: the two roles of a sample's vector may differ a little."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    kept: Tensor = (vectors * values.clamp(min=0)) @ vectors.T
    return kept


def _completed(measured: Tensor, expected: Tensor, gram: Tensor) -> Tensor:
    """Rows of influence (r, m) with nan, completed by conditional expectation.

    What is unknown of a row's vector has no preferred direction, so the errors of what is `expected` vary together as
    the targets' own inner products (m, m) do.
    """
    found = measured.clone()
    masks, mask = torch.unique(measured.isnan(), dim=0, return_inverse=True)
    for number, missing in enumerate(masks):
        if not missing.any():
            continue
        rows, known = mask == number, ~missing
        noise = _COMPLETION_NOISE * torch.eye(int(known.sum()), dtype=torch.float64)
        gain = torch.linalg.solve(gram[known][:, known] + noise, gram[known][:, missing])
        residuals = (measured[rows] - expected[rows])[:, known]
        found[torch.outer(rows, missing)] = (expected[rows][:, missing] + residuals @ gain).flatten()
    return found


def labelled_rows(labels: LabelledPairs, targets: np.ndarray) -> np.ndarray:
    """Pool rows that have a label with one of the targets, ascending."""
    return np.unique(labels.pool_index[np.isin(labels.target_index, targets)])


def labelled_grid(pairs: LabelledPairs, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Influence of rows (r,) on targets (m,), both ascending, (r, m) float64; nan where no pair has it."""
    grid = np.full((len(rows), len(targets)), np.nan)
    known = pairs.take(np.isin(pairs.pool_index, rows) & np.isin(pairs.target_index, targets))
    grid[np.searchsorted(rows, known.pool_index), np.searchsorted(targets, known.target_index)] = known.influence
    return grid
