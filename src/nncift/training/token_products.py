"""Cosines of sums of token outer products, G_l = sum over t of g_t x_lt^T, exactly or through random projections.

Inputs x are whitened, x L^-T with C_l + damping mean(diag C_l) = L L^T and C_l the second moment of a set of tokens, so
that the few directions that all tokens share do not dominate (the input side of K-FAC, arXiv:1503.05671).

Exact cosines form no G: <G, G'> = sum over t, t' of (g_t . g'_t') (x_t . x'_t'), the ghost inner product of
arXiv:2110.05679. For vectors, each G_l is formed once, divided by its norm and added to one count sketch of all layers,
whose inner products are unbiased estimates of the mean cosine with a standard error of about 1 / sqrt(dimension). A
projection of g and x to 64 numbers each, which keeps layers x 64 x 64, has a lower LDS with 24,576 numbers than this
with 2,048 (docs/measurements.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from nncift.models.token_gradients import TokenFactors
from nncift.training.random_projection import SignSketch

_PARTS = 6  # of the depth, each with a layer at its end
_TINY = 1e-30  # a gradient of zero has cosine 0 with all others


def layers_at_sixths(count: int) -> tuple[int, ...]:
    """Those of a model's layers, by default: at the ends of sixths of the depth, 5, 10, ..., 30 of 30."""
    return tuple(sorted({math.ceil(count * part / _PARTS) for part in range(1, _PARTS + 1)}))


def states_layer(layers: Sequence[int]) -> int:
    """Position, among the layers, of the one whose mean states count: the one at two thirds."""
    return math.ceil(2 * len(layers) / 3) - 1


def whitening(parts: Iterable[TokenFactors], damping: float) -> np.ndarray:
    """L^-T of each layer, (layers, hidden, hidden) float32, from the inputs of all tokens, each counted once.

    Args:
        parts: of the samples whose tokens count; at least one.
        damping: above 0, in units of the mean eigenvalue.
    """
    total: np.ndarray | float = 0.0
    tokens = 0
    for part in parts:
        inputs = part.inputs.double().cpu().numpy()
        total = total + inputs.transpose(0, 2, 1) @ inputs
        tokens += inputs.shape[1]
    moments = np.asarray(total) / tokens
    hidden = moments.shape[-1]
    means = np.maximum(np.trace(moments, axis1=1, axis2=2) / hidden, _TINY)
    factors = np.linalg.cholesky(moments + damping * means[:, None, None] * np.eye(hidden))
    inverses = np.linalg.solve(factors, np.broadcast_to(np.eye(hidden), factors.shape))
    return np.ascontiguousarray(inverses.transpose(0, 2, 1), dtype=np.float32)


def gradient_norm(factors: TokenFactors) -> torch.Tensor:
    """Mean over layers of the Frobenius norm of G_l before whitening, a float32 scalar on the factors' device."""
    norms = [torch.linalg.vector_norm(factors.gradients.T @ inputs) for inputs in factors.inputs]
    return torch.stack(norms).mean()


class Sketch:
    """Vectors of unit length whose inner products estimate the similarity of two samples.

    Args:
        matrices: of `whitening`, (layers, hidden, hidden).
        hidden: width of the gradients.
        dimension: of the count sketch; layers with no more entries in all are preserved exactly.
        states: weight of the mean states' cosine.
        states_layer: position, among the layers, of the one whose mean states count.
        seed: of the projection.
        device: where the vectors are computed.
    """

    def __init__(
        self,
        matrices: np.ndarray,
        hidden: int,
        *,
        dimension: int,
        states: float,
        states_layer: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.states, self.states_layer = states, states_layer
        self._matrices = torch.from_numpy(matrices).to(device)
        shapes = {str(k): (hidden, matrices.shape[1]) for k in range(len(matrices))}
        self._sketch = SignSketch(shapes, dimension, seed=seed, device=device)
        self.width = dimension + (matrices.shape[1] if states else 0)

    def vector(self, factors: TokenFactors) -> torch.Tensor:
        """The vector, (width,) float32, and the gradient norm behind it: (width + 1,)."""
        factors = TokenFactors(*(part.to(self._matrices.device) for part in factors))
        gradients, inputs = factors.gradients[None], factors.inputs @ self._matrices  # (layers, T, hidden), whitened
        found = torch.zeros(1, self._sketch.dimension, device=gradients.device)
        for k, whitened in enumerate(inputs):
            product = self._sketch.gradients(str(k), gradients, whitened[None])
            self._sketch.add(found, str(k), _unit(product))
        parts = [math.sqrt(1 - self.states) * _unit(found[0])]
        if self.states:
            parts.append(math.sqrt(self.states) * _unit(factors.weights @ inputs[self.states_layer]))
        return torch.cat([*parts, gradient_norm(factors)[None]])


def _unit(values: torch.Tensor) -> torch.Tensor:
    return torch.div(values, torch.linalg.vector_norm(values).clamp(min=_TINY))


class WhitenedSample(NamedTuple):
    """What exact cosines of a sample take, float64.

    Attributes:
        gradients: (T, hidden).
        inputs: (layers, T, hidden), whitened.
        norms: (layers,), of G_l.
        mean: (hidden,), whitened mean states of unit length.
    """

    gradients: np.ndarray
    inputs: np.ndarray
    norms: np.ndarray
    mean: np.ndarray


def whiten(factors: TokenFactors, matrices: np.ndarray, states_layer: int) -> WhitenedSample:
    """A sample's factors, ready for `cosines`."""
    gradients, inputs, weights = (part.double().cpu().numpy() for part in factors)
    inputs = inputs @ matrices.astype(np.float64)
    alike = gradients @ gradients.T
    squared = [(alike * (whitened @ whitened.T)).sum() for whitened in inputs]
    mean = weights @ inputs[states_layer]
    norms = np.maximum(np.sqrt(np.maximum(squared, 0)), _TINY)
    return WhitenedSample(gradients, inputs, norms, mean / max(np.linalg.norm(mean), _TINY))


def cosines(pool: Sequence[WhitenedSample], target: Sequence[WhitenedSample], states: float) -> np.ndarray:
    """Mean over layers of the cosine of G_l, and `states` of the mean states' cosine, (n_pool, n_target) float64."""
    gradients = np.concatenate([sample.gradients for sample in target])
    inputs = np.concatenate([sample.inputs for sample in target], axis=1)
    starts = np.cumsum([0, *(len(sample.gradients) for sample in target[:-1])])
    norms, means = np.stack([sample.norms for sample in target], axis=1), np.stack([one.mean for one in target])
    found = np.zeros((len(pool), len(target)))
    for row, sample in zip(found, pool, strict=True):
        alike = sample.gradients @ gradients.T  # (T, target tokens)
        for k, whitened in enumerate(sample.inputs):
            products = (alike * (whitened @ inputs[k].T)).sum(axis=0)
            row += np.add.reduceat(products, starts) / (sample.norms[k] * norms[k]) / len(norms)
        row *= 1 - states
        row += states * (means @ sample.mean)
    return found
