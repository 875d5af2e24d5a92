"""Influence along directions of adapter space that targets share, from forward passes alone over the pool.

A direction is a weighted sum of the targets' gradients, preconditioned if the function is. A pool sample's gradient
enters only through its inner products with the directions d_1, ..., d_K, which are derivatives of its loss
(`training/directional_derivatives.py`), two forward passes each, so a sample needs no gradient of its own, no stored
activations, and no small batches. Targets take two forward and two backward passes each. With g the targets' gradients,

- of tasks: d_t is the mean of g_j / |g_j| over the targets j of task t, the average of LESS (section 4.2), and

      influence[i, j] = <g_i, d_t> / l_i,                               t the task of target j;

- leading: d_k are the first K right singular vectors of the rows g_j / |g_j|, and

      influence[i, j] = sum over k of <g_i, d_k> <d_k, g_j> / (l_i |g_j|).

LESS divides by the length of g_i, which no few directions contain. The gradient of a mean over T_i response tokens is
about as long as l_i = c / sqrt(T_i), with c fitted to the targets (the geometric mean of |g_j| sqrt(T_j)): without it,
short responses would come first. So values are about those of cosines, and not bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad

from nncift.influence.base import Side
from nncift.influence.gradients.adapter_gradients import AdapterGradients, GradientSettings
from nncift.models.text.examples import Example
from nncift.training.directional_derivatives import combined_gradients, directional_derivatives
from nncift.training.lora import Lora

# Change of the targets' losses, root mean square, by a step along a direction: larger where losses are rounded more.
CHANGE = 0.002
_LOW_PRECISION_CHANGE = 0.2  # where the base model computes in 16 bits
_RANK = 1e-6  # of the largest eigenvalue


@dataclass(frozen=True)
class TargetDirections:
    """K directions as weighted sums of targets' gradients.

    Attributes:
        targets: n distinct samples.
        weights: of the targets' gradients in each direction, (n, K) float32.
        slopes: root mean square of the targets' derivatives along each direction, (K,).
        length: estimated length of a gradient, times the root of its response tokens.
        projection: of leading directions: from a target's unit feature to its coordinates, (d, K) float32.
        tasks: of directions of tasks: their K names, ascending.
    """

    targets: Sequence[Example]
    weights: np.ndarray
    slopes: np.ndarray
    length: float
    projection: np.ndarray | None = None
    tasks: Sequence[str] = ()

    def coordinates(self, features: np.ndarray) -> np.ndarray:
        """Coordinates (n, K) of targets' unit gradients, from their projected gradients (n, d)."""
        assert self.projection is not None
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        return np.asarray((features / np.maximum(lengths, np.float32(1e-30))) @ self.projection)


def leading_directions(targets: Sequence[Example], features: np.ndarray, *, count: int) -> TargetDirections:
    """The leading right singular vectors of targets' unit gradients.

    Args:
        targets: n distinct samples.
        features: their projected gradients (n, d).
        count: the directions K, at most; fewer where the gradients span fewer.
    """
    lengths, unit = _lengths_and_units(features)
    values, vectors = np.linalg.eigh(unit @ unit.T)
    order = [k for k in np.argsort(-values)[:count] if values[k] > _RANK * values.max()]
    left, singular = vectors[:, order], np.sqrt(values[order])
    projection = np.asarray(unit.T @ (left / singular), np.float32)
    return replace(_directions(targets, lengths, unit, left / singular), projection=projection)


def mean_directions(
    targets: Sequence[Example], features: np.ndarray, *, rows: Sequence[tuple[str, str]]
) -> TargetDirections:
    """The mean unit gradient of each task.

    Args:
        targets: n distinct samples.
        features: their projected gradients (n, d).
        rows: `Example.key` and task of each target, as often as it occurs.
    """
    numbers = {target.key: number for number, target in enumerate(targets)}
    tasks = sorted({task for _, task in rows})
    counts = np.zeros((len(targets), len(tasks)))
    for key, task in rows:
        counts[numbers[key], tasks.index(task)] += 1
    lengths, unit = _lengths_and_units(features)
    return replace(_directions(targets, lengths, unit, counts / counts.sum(axis=0)), tasks=tasks)


def _lengths_and_units(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.maximum(np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True), 1e-30)
    return lengths, features / lengths


def _directions(
    targets: Sequence[Example], lengths: np.ndarray, unit: np.ndarray, weights: np.ndarray
) -> TargetDirections:
    """Directions by their weights (n, K) of the unit gradients."""
    slopes = np.maximum(np.sqrt(np.mean((unit @ (unit.T @ weights) * lengths) ** 2, axis=0)), 1e-30)
    tokens = np.array([target.scored for target in targets])
    length = float(np.exp(np.mean(np.log(lengths[:, 0] * np.sqrt(tokens)))))
    return TargetDirections(targets, np.asarray(weights / lengths, np.float32), slopes, length)


class AlongDirections(AdapterGradients):
    """An adapter at which targets have projected gradients, and pool samples derivatives along their directions.

    Args:
        adapter, settings: as of `AdapterGradients`.
        find: gives the directions from all targets and their projected gradients.
        known: the directions at each adapter, to be found by `prepared`.
        k: number of the adapter.
    """

    def __init__(
        self,
        adapter: Lora | Path,
        settings: GradientSettings,
        find: Callable[[Sequence[Example], np.ndarray], TargetDirections],
        known: dict[int, TargetDirections],
        k: int,
    ) -> None:
        super().__init__(adapter, settings)
        self._find, self._known, self._k = find, known, k

    def features(self, side: Side, examples: Sequence[Example]) -> np.ndarray:
        """Projected gradients of targets, (n, dimension), or pool samples' coordinates over l_i, (n, K) float32.

        Raises:
            DataError: a value is not finite.
        """
        if side == "target":
            return self.gradients(side, examples)
        (layers, _), (directions, steps), settings = self._layers, self._directions, self._settings
        found = directional_derivatives(
            settings.model, examples, layers, directions, steps, batch_size=settings.batch_size
        )
        self._check_finite(found, examples)
        scales = np.sqrt([example.scored for example in examples]) / self._known[self._k].length
        return found * scales[:, None].astype(np.float32)

    def prepared(self, side: Side, examples: Sequence[Example], features: np.ndarray) -> None:
        """Find the directions once all targets' features are known."""
        if side == "target" and len(examples):
            self._known[self._k] = self._find(examples, features)

    @cached_property
    def _directions(self) -> tuple[dict[str, torch.Tensor], list[float]]:
        """The directions, (K, out, in) of each layer, and the step along each."""
        settings, found, (layers, sketch) = self._settings, self._known[self._k], self._layers
        model = settings.model
        directions = combined_gradients(model, found.targets, layers, found.weights, batch_size=settings.batch_size)
        if settings.preconditioned == "both":  # the targets' gradients, and then the sample's
            for name, direction in directions.items():
                width = direction.shape[-1]
                padded = pad(direction, (0, sketch.widths[name] - width))
                for _ in range(2):
                    self._adam.scale(name, padded)
                directions[name] = padded[..., :width].contiguous()
        change = CHANGE if model.dtype == torch.float32 else _LOW_PRECISION_CHANGE
        return directions, [float(change / slope) for slope in found.slopes]
