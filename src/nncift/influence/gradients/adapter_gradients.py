"""Projected per-sample gradients of the weights of an adapter, which is attached to the model to compute them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from nncift.errors import ConfigError, DataError
from nncift.influence.base import Side
from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import Example
from nncift.training.checkpoints import read_moments
from nncift.training.gradients import Adam, features_by_change
from nncift.training.lora import Lora, adapted, adapter_layers, adapter_weights
from nncift.training.random_projection import SignSketch

Preconditioned = Literal["no", "pool", "both"]


class Point(NamedTuple):
    """An adapter at which gradients are computed (a fresh one or a checkpoint's folder), and its weight."""

    adapter: Lora | Path
    weight: float


@dataclass(frozen=True)
class GradientSettings:
    """How gradients are computed, at any adapter.

    Attributes:
        model: the language model, without an adapter.
        layers: numbers of the model's layers whose gradients are computed; None for all.
        preconditioned: the side whose gradients are preconditioned with Adam's moments.
        dimension: width of the random projection.
        seed: of the projection.
        batch_size: samples in a batch, at most.
    """

    model: LanguageModel
    layers: Sequence[int] | None
    preconditioned: Preconditioned
    dimension: int
    seed: int
    batch_size: int


class AdapterGradients(contextlib.ExitStack):
    """Gradients at an adapter, on the model from the first that are computed to the end of the block.

    Args:
        adapter: a fresh one, or a checkpoint's folder.
        settings: the model and all else.
    """

    def __init__(self, adapter: Lora | Path, settings: GradientSettings) -> None:
        super().__init__()
        self._adapter, self._settings = adapter, settings

    def features(self, side: Side, examples: Sequence[Example]) -> np.ndarray:
        """Normalized features of the examples, (n, dimension) float32.

        Raises:
            DataError: a gradient is not finite.
        """
        return _unit(self.gradients(side, examples))

    def features_of_sides(self, examples: Sequence[Example]) -> np.ndarray:
        """Normalized features of the examples as pool samples and as targets, (n, 2, dimension), from one pass of each.

        Raises as `features`.
        """
        return _unit(self._projected(("pool", "target"), examples))

    def gradients(self, side: Side, examples: Sequence[Example]) -> np.ndarray:
        """Projected gradients of the examples, (n, dimension) float32, preconditioned where the side is.

        Raises:
            DataError: a gradient is not finite.
        """
        return self._projected((side,), examples)[:, 0]

    def _projected(self, sides: Sequence[Side], examples: Sequence[Example]) -> np.ndarray:
        """Projected gradients of the examples on each side, (n, sides, dimension) float32."""
        settings = self._settings
        layers, sketch = self._layers
        changes = [self._change(side) for side in sides]
        found = features_by_change(settings.model, examples, layers, sketch, changes, batch_size=settings.batch_size)
        self._check_finite(found, examples)
        return found

    def _change(self, side: Side) -> Callable[[str, torch.Tensor], None] | None:
        if self._settings.preconditioned not in ("both", side):
            return None
        return self._adam.update if side == "pool" else self._adam.scale

    def prepared(self, side: Side, examples: Sequence[Example], features: np.ndarray) -> None:
        """Called by `prepare` of the function with all features of a side."""

    def _check_finite(self, values: np.ndarray, examples: Sequence[Example]) -> None:
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        if len(bad):
            name = examples[bad[0]].id
            raise DataError(f"the gradient of {name!r} is not finite", "drop the sample, or set `dtype` to float32")

    @cached_property
    def _layers(self) -> tuple[dict[str, torch.nn.Module], SignSketch]:
        """The layers of the adapter, which is attached now, and the random projection of their gradients."""
        settings, model = self._settings, self._settings.model
        self.enter_context(adapted(model, self._adapter))
        layers = adapter_layers(model, settings.layers)
        if not layers:
            raise ConfigError("the adapter has no weights in the chosen `layers`", "choose others, or omit `layers`")
        if isinstance(self._adapter, Lora):  # its second factor is zero, so the first has no gradient
            layers = {name: layer for name, layer in layers.items() if ".lora_B." in name}
        sketch = SignSketch(_shapes(model, layers), settings.dimension, seed=settings.seed, device=model.device)
        return layers, sketch

    @cached_property
    def _adam(self) -> Adam:
        """Adam's preconditioning by the checkpoint's moments."""
        assert isinstance(self._adapter, Path)
        (layers, sketch), model = self._layers, self._settings.model
        moments = read_moments(self._adapter, _shapes(model, layers))
        return Adam(moments, sketch.widths, device=model.device)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1 along the last axis."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.float32(1e-30)))


def _shapes(model: LanguageModel, layers: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(out, in) of the weights of some layers of the adapter on the model."""
    weights = adapter_weights(model)
    return {name: (weights[name].shape[0], weights[name].shape[1]) for name in layers}
