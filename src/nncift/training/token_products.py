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

from nncift.models.token_gradients import BatchFactors, TokenFactors
from nncift.training.random_projection import SignSketch

_PARTS = 6  # of the depth, each with a layer at its end
_TINY = 1e-30  # a gradient of zero has cosine 0 with all others
_ENTRIES = {"cpu": 2**19}  # of the matrices G that are formed at a time, as far as a CPU's cache holds them
_ENTRIES_ACCELERATOR = 2**26  # 256 MiB, so that a kernel has work


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


def gradient_norms(batch: BatchFactors) -> torch.Tensor:
    """Mean over layers of the Frobenius norm of G_l before whitening, (n,) float32 on the batch's device."""
    found = []
    for part in _parts(batch):
        gradients, inputs, _ = part.padded()
        turned = gradients.transpose(1, 2)
        norms = [torch.linalg.vector_norm(torch.bmm(turned, layer).flatten(1), dim=1) for layer in inputs]
        found.append(torch.stack(norms).mean(dim=0))
    return torch.cat(found)


def _parts(batch: BatchFactors) -> list[BatchFactors]:
    """As many samples each as have their matrices G formed at once."""
    gradients, inputs = batch.factors.gradients, batch.factors.inputs
    entries = _ENTRIES.get(gradients.device.type, _ENTRIES_ACCELERATOR)
    return batch.parts(max(entries // (gradients.shape[-1] * inputs.shape[-1]), 1))


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
        self.states, self.states_layer, self.device = states, states_layer, device
        self._matrices = torch.from_numpy(matrices).to(device)
        shapes = {str(k): (hidden, matrices.shape[1]) for k in range(len(matrices))}
        self._sketch = SignSketch(shapes, dimension, seed=seed, device=device)
        self.width = dimension + (matrices.shape[1] if states else 0)

    def vectors(self, batch: BatchFactors) -> torch.Tensor:
        """The vector of each sample, (n, width) float32."""
        return torch.cat([self._vectors(part) for part in _parts(batch.to(self.device))])

    def with_norms(self, batch: BatchFactors) -> torch.Tensor:
        """`vectors` and, in the last column, `gradient_norms`, (n, width + 1) float32."""
        batch = batch.to(self.device)
        return torch.cat([self.vectors(batch), gradient_norms(batch)[:, None]], dim=1)

    def _vectors(self, batch: BatchFactors) -> torch.Tensor:
        gradients, inputs, weights = batch.padded()
        inputs = torch.bmm(inputs.flatten(1, 2), self._matrices).view(inputs.shape)  # whitened
        found = gradients.new_zeros(len(weights), self._sketch.dimension)
        for k, whitened in enumerate(inputs):
            product = self._sketch.gradients(str(k), gradients, whitened)
            norms, projected = _norms(product.flatten(1)), torch.zeros_like(found)
            self._sketch.add(projected, str(k), product)
            found += projected / norms
        parts = [math.sqrt(1 - self.states) * found / _norms(found)]
        if self.states:
            means = torch.bmm(weights[:, None], inputs[self.states_layer])[:, 0]
            parts.append(math.sqrt(self.states) * means / _norms(means))
        return torch.cat(parts, dim=1)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return norms.clamp(min=_TINY)


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
