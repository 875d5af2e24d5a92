"""Hyperparameters and weights of the Gaussian process over pairs, from labels in any pattern.

The influence of pool sample x on target y is modeled as

    k h(x, y) + s(y) [ a(x) + g(x, y) + sum_t beta_t term_t(x, y) ] + c(y) + noise

| symbol   | name                   | covariance                                                      |
|----------|------------------------|-----------------------------------------------------------------|
| k h(x,y) | prior mean             | none: label-free similarity, scaled by least squares beforehand,|
|          |                        | or 0 where the labels are likelier without it                   |
| a(x)     | main effect (pool)     | kernel over pool samples                                        |
| g(x, y)  | interaction            | kernel over pool samples x kernel over targets                  |
| beta_t   | similarity coefficient | independent; the terms are cosines and their exponentials       |
| c(y)     | main effect (target)   | kernel over targets                                             |
| s(y)     | scale of a target      | none: estimated first, from the spread of the labels            |
|          | nugget of a kernel     | variance of a labelled sample that no other sample shares       |

A kernel is a weighted sum over the feature blocks of RBF kernels, plus its nugget. The hyperparameters maximize the
marginal likelihood (Rasmussen and Williams 2006, section 5.4.1) of a subset of the pairs, with an L2 penalty toward
their initial values; nothing is tuned on held-out samples. Products of kernels over pairs: Bonilla et al., "Multi-task
Gaussian process prediction", NeurIPS 2007.

Stored networks name the interaction "profile", the main effect "level" and the nugget "own".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.covariance import kernel, rounded
from nncift.estimator.training_data import LabelledGrid

LIKELIHOOD_PAIRS = 1000
DENSE_PAIRS = 3000
STEPS = 40  # of Adam
_LEARNING_RATE, _PENALTY = 0.5, 0.02
_MIN_NOISE = 1e-6
_INITIAL = {"pool_main": -2.0, "pool": -1.5, "target": -1.5, "target_main": -2.0, "terms": -3.0}
_INITIAL |= {"pool_main_nugget": -3.0, "pool_nugget": -3.0, "target_nugget": -1.0, "target_main_nugget": -2.0}
_INITIAL |= {"noise": -1.0}

Theta = dict[str, Tensor]
"""Log-transformed hyperparameters: `pool` and `target` are the factors of the interaction's kernel."""


def maximize_likelihood(grid: LabelledGrid, *, seed: int) -> Theta:
    """Hyperparameters by Adam on the marginal likelihood of at most 1,000 labels, drawn by `seed`."""
    blocks = _blocks(grid) | {"terms": grid.terms}
    start = {
        name: torch.full((len(blocks[name]),) if name in blocks else (), value, dtype=torch.float64)
        for name, value in _INITIAL.items()
    }
    if grid.pointwise:
        kept = {"pool_main", "pool_main_nugget", "noise", "terms"}
        start |= {name: start[name] - math.inf for name in set(_INITIAL) - kept}
    free = {name: value.clone().requires_grad_() for name, value in start.items() if torch.isfinite(value).all()}
    subset = _drawn(grid, seed)
    optimizer = torch.optim.Adam(free.values(), lr=_LEARNING_RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        covariance = _covariance(start | free, subset)
        penalty = _PENALTY * torch.stack([(value - start[name]).square().sum() for name, value in free.items()]).sum()
        gradient = _likelihood_gradient(covariance.detach(), subset.value)
        torch.autograd.backward([covariance, penalty], [gradient, torch.ones_like(penalty)])
        optimizer.step()
    return start | {name: rounded(value.detach()) for name, value in free.items()}


@torch.no_grad()
def log_likelihood(theta: Theta, grid: LabelledGrid, *, seed: int) -> float:
    """Log marginal likelihood, on the labels' own scale, of those that `maximize_likelihood` draws by `seed`."""
    subset = _drawn(grid, seed)
    factor = torch.linalg.cholesky(_covariance(theta, subset))
    fit = subset.value @ torch.cholesky_solve(subset.value[:, None], factor)[:, 0]
    n = len(subset.value)
    return float(-fit / 2 - factor.diagonal().log().sum() - n * math.log(grid.unit * math.sqrt(2 * math.pi)))


def _drawn(grid: LabelledGrid, seed: int) -> LabelledGrid:
    return grid.subset(np.random.default_rng(seed).permutation(len(grid.value))[:LIKELIHOOD_PAIRS])


def _likelihood_gradient(covariance: Tensor, value: Tensor) -> Tensor:
    """Gradient of the negative log marginal likelihood in the covariance (equation 5.9), (n, n)."""
    factor = torch.linalg.cholesky(covariance)
    solved = torch.cholesky_solve(value[:, None], factor)
    return (torch.cholesky_inverse(factor) - solved @ solved.T) / 2


def _blocks(grid: LabelledGrid) -> dict[str, Tensor]:
    """The blocks' kernels that each of the four kernels is a sum of."""
    pool, target = grid.pool_kernels, grid.target_kernels
    return {"pool_main": pool, "pool": pool, "target": target, "target_main": target}


def kernels(theta: Theta, grid: LabelledGrid) -> tuple[Tensor, ...]:
    """The four kernels between labelled samples, nuggets included, in the order of `_blocks`."""
    return tuple(
        kernel(blocks, theta[name]) + theta[f"{name}_nugget"].exp() * torch.eye(blocks.shape[1], dtype=torch.float64)
        for name, blocks in _blocks(grid).items()
    )


def _covariance(theta: Theta, grid: LabelledGrid) -> Tensor:
    """Covariance of the labels, (labels, labels), noise included."""
    pool_main, pool, target, target_main = kernels(theta, grid)
    i, j = grid.row, grid.column
    terms = grid.terms[:, i, j].T * theta["terms"].exp()
    inner = _at(pool_main, i) + _at(pool, i) * _at(target, j) + terms @ terms.T
    scale = grid.scale[j]
    noise = (theta["noise"].exp() + _MIN_NOISE) * scale * scale
    return inner * scale[:, None] * scale + _at(target_main, j) + torch.diag(noise)


def _at(symmetric: Tensor, index: Tensor) -> Tensor:
    """Rows and columns `index` of a symmetric matrix; two selections of rows are faster than one of columns."""
    return symmetric.index_select(0, index).T.index_select(0, index)


@torch.no_grad()
def solve(theta: Theta, grid: LabelledGrid) -> Tensor:
    """Covariance^-1 times the labels, as a matrix (n, m) with 0 where there is no label.

    By Cholesky for few labels, else by conjugate gradients on the grid, whose products cost n m (n + m).
    """
    if len(grid.value) <= DENSE_PAIRS:
        factor = torch.linalg.cholesky(_covariance(theta, grid))
        return _scatter(torch.cholesky_solve(grid.value[:, None], factor)[:, 0], grid)
    pool_main, pool, target, target_main = kernels(theta, grid)
    counts = _scatter(torch.ones_like(grid.value), grid)
    mask = counts.clamp(max=1)
    noise = (theta["noise"].exp() + _MIN_NOISE) * grid.scale.square() / counts.clamp(min=1)
    terms = grid.terms * theta["terms"].exp()[:, None, None]

    def product(x: Tensor) -> Tensor:
        scaled = x * grid.scale
        inner = (pool_main @ scaled.sum(1))[:, None] + pool @ scaled @ target
        inner += torch.einsum("tij,t->ij", terms, torch.einsum("tij,ij->t", terms, scaled))
        return mask * (inner * grid.scale + target_main @ x.sum(0) + noise * x)

    return conjugate_gradients(product, _scatter(grid.value, grid) / counts.clamp(min=1))


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, *, tolerance: float = 1e-5, max_steps: int = 1000
) -> Tensor:
    """The solution of product(x) = right for a symmetric positive definite product."""
    x, residual = torch.zeros_like(right), right.clone()
    direction, size = residual.clone(), float(residual.square().sum())
    enough = tolerance**2 * size
    for _ in range(max_steps):
        if size <= enough:
            break
        along = product(direction)
        step = size / float((direction * along).sum())
        x += step * direction
        residual -= step * along
        before, size = size, float(residual.square().sum())
        direction = residual + size / before * direction
    return x


def noise_variances(theta: Theta, grid: LabelledGrid) -> dict[str, float]:
    """Noise variance of a label, and of a labelled sample's main effect and interaction in the full-grid approximation.

    An interaction is observed through noise in each eigendirection of the target kernel, weighted by its eigenvalue.
    """
    noise, per_row = float(theta["noise"].exp()), len(grid.value) / len(grid.pool)
    targets = kernel(grid.target_kernels, theta["target"]) + theta["target_nugget"].exp() * torch.eye(len(grid.target))
    strength = float(targets.square().sum() / targets.diagonal().sum().clamp(min=1e-12))
    observed = max(strength * per_row / len(grid.target), 1e-12)
    return {
        "noise": noise,
        "profile": float(targets.diagonal().mean()),
        "profile_noise": min(noise / observed, 1e6) + float(theta["pool_nugget"].exp()) + 1e-9,
        "level_noise": noise / per_row + float(theta["pool_main_nugget"].exp()) + 1e-9,
    }


def _scatter(values: Tensor, grid: LabelledGrid) -> Tensor:
    """The labels' values summed into their entries of a matrix (n, m)."""
    matrix = torch.zeros((len(grid.pool), len(grid.target)), dtype=torch.float64)
    return matrix.index_put_((grid.row, grid.column), values, accumulate=True)
