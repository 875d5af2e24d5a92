"""Influence as a Gaussian process over pairs of samples: what it learns from labels in any pattern.

The influence of pool sample x on target y is modelled as

    s(y) [ a(x) + g(x, y) + sum_t beta_t term_t(x, y) ] + c(y) + noise

with four kinds of covariance: a(x) how much a sample helps all targets, g(x, y) what it does for this one (a product
of a kernel over pool samples and one over targets), how alike the two are in each block of features (their cosine, and
exponentials of it that leave only what is very much alike), and c(y) how easily a target is helped. Targets differ
in spread: s(y). A kernel is a weighted sum over the blocks of exp(-|u - v|^2 / 2), plus a part that belongs to one
labelled sample alone. The weights maximise the marginal likelihood (Rasmussen and Williams 2006, section 5.4.1) on a
part of the pairs, pulled towards their starting values; nothing is tuned on held-out samples. Products of kernels over
pairs: Bonilla et al., "Multi-task Gaussian process prediction", NeurIPS 2007.

What is predicted for a new pair is a sum over labelled samples, so it has the form of two towers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.covariance import kernel, rounded
from nncift.estimator.training_data import LabelledGrid

LIKELIHOOD_PAIRS = 1000
DENSE_PAIRS = 3000
_STEPS, _RATE, _PULL = 40, 0.5, 0.02
_LEAST_NOISE = 1e-6
_START = {"pool_main": -2.0, "pool": -1.5, "target": -1.5, "target_main": -2.0, "terms": -3.0}
_START |= {"pool_own": -3.0, "profile_own": -3.0, "target_own": -1.0, "mean_own": -2.0, "noise": -1.0}

Weights = dict[str, Tensor]


def learn_weights(grid: LabelledGrid, *, seed: int) -> Weights:
    """The kernels' logarithmic weights, by marginal likelihood on at most 1,000 of the labels.

    Args:
        grid: the labels.
        seed: which of them.
    """
    blocks = {"pool_main": grid.among_pool, "pool": grid.among_pool, "terms": grid.terms}
    blocks |= {"target": grid.among_targets, "target_main": grid.among_targets}
    start = {
        name: torch.full((len(blocks[name]),) if name in blocks else (), value, dtype=torch.float64)
        for name, value in _START.items()
    }
    if grid.pointwise:
        start |= {name: start[name] - math.inf for name in set(_START) - {"pool_main", "pool_own", "noise", "terms"}}
    free = {name: value.clone().requires_grad_() for name, value in start.items() if torch.isfinite(value).all()}
    order = np.random.default_rng(seed).permutation(len(grid.value))
    some = grid.part(order[:LIKELIHOOD_PAIRS])
    optimizer = torch.optim.Adam(free.values(), lr=_RATE)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        covariance = _covariance(start | free, some)
        pull = _PULL * sum(((value - start[name]).square().sum() for name, value in free.items()), torch.tensor(0.0))
        torch.autograd.backward(
            [covariance, pull], [_likelihood_gradient(covariance.detach(), some.value), torch.ones_like(pull)]
        )
        optimizer.step()
    return start | {name: rounded(value.detach()) for name, value in free.items()}


def _likelihood_gradient(covariance: Tensor, value: Tensor) -> Tensor:
    """Of the negative logarithmic marginal likelihood with respect to the covariance (equation 5.9), (n, n)."""
    factor = torch.linalg.cholesky(covariance)
    solved = torch.cholesky_solve(value[:, None], factor)
    return (torch.cholesky_inverse(factor) - solved @ solved.T) / 2


@dataclass(frozen=True)
class Kernels:
    """The four kernels between labelled samples, own parts included."""

    pool_main: Tensor
    pool: Tensor
    target: Tensor
    target_main: Tensor

    @classmethod
    def of(cls, weights: Weights, grid: LabelledGrid) -> Kernels:
        """From the blocks' kernels."""
        pool, target = grid.among_pool, grid.among_targets
        rows, columns = (torch.eye(side.shape[1], dtype=torch.float64) for side in (pool, target))
        return cls(
            kernel(pool, weights["pool_main"]) + weights["pool_own"].exp() * rows,
            kernel(pool, weights["pool"]) + weights["profile_own"].exp() * rows,
            kernel(target, weights["target"]) + weights["target_own"].exp() * columns,
            kernel(target, weights["target_main"]) + weights["mean_own"].exp() * columns,
        )


def _covariance(weights: Weights, grid: LabelledGrid) -> Tensor:
    """Covariance of the labels, (labels, labels), noise included."""
    k = Kernels.of(weights, grid)
    i, j = grid.row, grid.column
    terms = grid.terms[:, i, j].T * weights["terms"].exp()
    inner = _at(k.pool_main, i) + _at(k.pool, i) * _at(k.target, j) + terms @ terms.T
    scale = grid.scale[j]
    noise = (weights["noise"].exp() + _LEAST_NOISE) * scale * scale
    return inner * scale[:, None] * scale + _at(k.target_main, j) + torch.diag(noise)


def _at(symmetric: Tensor, index: Tensor) -> Tensor:
    """Its rows and columns `index`; by rows twice, which is faster both ways than by columns."""
    return symmetric.index_select(0, index).T.index_select(0, index)


@torch.no_grad()
def solve(weights: Weights, grid: LabelledGrid) -> Tensor:
    """Covariance^-1 times the labels, at their places: (n, m), 0 where there is no label.

    Dense for few labels, else by conjugate gradients on the grid, whose products cost n m (n + m).
    """
    if len(grid.value) <= DENSE_PAIRS:
        factor = torch.linalg.cholesky(_covariance(weights, grid))
        return _placed(torch.cholesky_solve(grid.value[:, None], factor)[:, 0], grid)
    k = Kernels.of(weights, grid)
    counts = _placed(torch.ones_like(grid.value), grid)
    seen = counts.clamp(max=1)
    noise = (weights["noise"].exp() + _LEAST_NOISE) * grid.scale.square() / counts.clamp(min=1)
    terms = grid.terms * weights["terms"].exp()[:, None, None]

    def product(x: Tensor) -> Tensor:
        scaled = x * grid.scale
        inner = (k.pool_main @ scaled.sum(1))[:, None] + k.pool @ scaled @ k.target
        inner = inner + torch.einsum("tij,t->ij", terms, torch.einsum("tij,ij->t", terms, scaled))
        return seen * (inner * grid.scale + k.target_main @ x.sum(0) + noise * x)

    return conjugate_gradients(product, _placed(grid.value, grid) / counts.clamp(min=1))


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, *, tolerance: float = 1e-5, most: int = 1000
) -> Tensor:
    """The solution of product(x) = right for a symmetric positive definite product."""
    x, residual = torch.zeros_like(right), right.clone()
    direction, size = residual.clone(), float(residual.square().sum())
    enough = tolerance**2 * size
    for _ in range(most):
        if size <= enough:
            break
        along = product(direction)
        step = size / float((direction * along).sum())
        x += step * direction
        residual -= step * along
        before, size = size, float(residual.square().sum())
        direction = residual + size / before * direction
    return x


def _placed(values: Tensor, grid: LabelledGrid) -> Tensor:
    """The sum of the labels' values at each place."""
    places = torch.zeros((len(grid.pool), len(grid.target)), dtype=torch.float64)
    return places.index_put_((grid.row, grid.column), values, accumulate=True)
