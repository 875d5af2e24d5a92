"""Influence along the leading directions of the targets' gradients, from forward passes over the pool alone.

With G the targets' unit gradients as rows, G = U S V^T, the first K right singular vectors v_k span the directions of
adapter space that the targets share; one is the mean direction of a single task. A pool sample's gradient enters only
through its inner products with v_1, ..., v_K, which are derivatives of its loss
(`training/directional_derivatives.py`), two forward passes each, so a sample needs no gradient of its own, no stored
activations, and no small batches. Targets take two forward and two backward passes each.

    influence[i, j] = sum over k of <g_i, v_k> <v_k, g_j> / (l_i |g_j|),    l_i = c / sqrt(T_i)

LESS divides by the length of g_i, which no few directions contain. The gradient of a mean over T response tokens is
about as long as l_i, with c fitted to the targets (the geometric mean of |g_j| sqrt(T_j)): without it, short responses
would come first. So values are about those of cosines, and not bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import pad

from nncift.influence.base import Side
from nncift.influence.gradient_similarity import Attached, GradientInfluence, Point
from nncift.models.examples import Example
from nncift.training.directional_derivatives import combined_gradients, directional_derivatives

# Change of the targets' losses, root mean square, by a step along a direction: larger where losses are rounded more.
CHANGE = 0.002
_LOW_PRECISION_CHANGE = 0.2  # where the base model computes in 16 bits
_RANK = 1e-6  # of the largest eigenvalue


class LeadingDirections:
    """The leading right singular vectors of targets' unit gradients, as weighted sums of these gradients.

    Args:
        targets: n distinct samples.
        features: their projected gradients (n, d).
        count: the directions K, at most; fewer where the gradients span fewer.

    Attributes:
        targets: as given.
        weights: of the gradients in each direction, (n, K) float32.
        projection: from a target's unit feature to its coordinates, (d, K) float32.
        slopes: root mean square of the targets' derivatives along each direction, (K,).
        length: estimated length of a gradient, times the root of its response tokens.
    """

    def __init__(self, targets: Sequence[Example], features: np.ndarray, count: int) -> None:
        lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        lengths = np.maximum(lengths, 1e-30)
        unit = features / lengths
        values, vectors = np.linalg.eigh(unit @ unit.T)
        order = [k for k in np.argsort(-values)[:count] if values[k] > _RANK * values.max()]
        left, singular = vectors[:, order], np.sqrt(values[order])
        self.targets = targets
        self.weights = np.asarray(left / singular / lengths, np.float32)
        self.projection = np.asarray(unit.T @ (left / singular), np.float32)
        self.slopes = np.sqrt(np.mean((left * singular * lengths) ** 2, axis=0))
        tokens = np.array([target.scored for target in targets])
        self.length = float(np.exp(np.mean(np.log(lengths[:, 0] * np.sqrt(tokens)))))

    def coordinates(self, features: np.ndarray) -> np.ndarray:
        """Coordinates (n, K) of targets' unit gradients, from their projected gradients (n, d)."""
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        return np.asarray((features / np.maximum(lengths, np.float32(1e-30))) @ self.projection)


class AlongDirections(Attached):
    """An adapter at which targets have projected gradients, and pool samples derivatives along their directions.

    Args:
        function, point: as of `Attached`.
        count: the directions, at most.
        leading: the directions at each adapter, to be found by `prepared`.
        k: number of the adapter.
    """

    def __init__(
        self, function: GradientInfluence, point: Point, count: int, leading: dict[int, LeadingDirections], k: int
    ) -> None:
        super().__init__(function, point)
        self._count, self._leading, self._k = count, leading, k

    def features(self, side: Side, examples: Sequence[Example]) -> np.ndarray:
        """Projected gradients of targets, (n, dimension), or pool samples' coordinates over l_i, (n, K) float32.

        Raises:
            DataError: a value is not finite.
        """
        if side == "target":
            return self.gradients(side, examples)
        model, size = self._function.language_model, self._function.batch_size
        (layers, _), (directions, steps) = self._layers, self._directions
        found = directional_derivatives(model, examples, layers, directions, steps, batch_size=size)
        self._check_finite(found, examples)
        scales = np.sqrt([example.scored for example in examples]) / self._leading[self._k].length
        return found * scales[:, None].astype(np.float32)

    def prepared(self, side: Side, examples: Sequence[Example], features: np.ndarray) -> None:
        """Find the directions once all targets' features are known."""
        if side == "target" and len(examples):
            self._leading[self._k] = LeadingDirections(examples, features, self._count)

    @cached_property
    def _directions(self) -> tuple[dict[str, torch.Tensor], list[float]]:
        """The directions, (K, out, in) of each layer, and the step along each."""
        function, leading, (layers, sketch) = self._function, self._leading[self._k], self._layers
        model, size = function.language_model, function.batch_size
        directions = combined_gradients(model, leading.targets, layers, leading.weights, batch_size=size)
        if function.preconditioned == "both":  # the targets' gradients, and then the sample's
            for name, direction in directions.items():
                width = direction.shape[-1]
                padded = pad(direction, (0, sketch.widths[name] - width))
                for _ in range(2):
                    self._adam.scale(name, padded)
                directions[name] = padded[..., :width].contiguous()
        change = CHANGE if model.dtype == torch.float32 else _LOW_PRECISION_CHANGE
        return directions, [float(change / slope) for slope in leading.slopes]
