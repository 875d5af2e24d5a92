"""Gradient cosine similarity (TracIn at one checkpoint), and the per-sample gradient features it shares with LESS.

With features f of the pool and g of the targets at adapter k, each of length 1,

    influence[i, j] = sum over k of weight_k <f_ik, g_jk>,    weights that sum to 1, so in [-1, 1].

A feature takes one forward and one backward pass of one sample, so the cost is linear in the pool; a pair costs one
inner product. Shards hold a fixed range of samples: a killed run recomputes at most one of them.

`GradientSimilarity` needs no training: it takes gradients at a fresh adapter. Its second factor is initialized to zero,
so it alone has nonzero gradients, for which the first factor is a random projection of the layer's input.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from nncift.errors import ConfigError
from nncift.influence.base import Footprint, Side, Traits, look_up
from nncift.influence.gradients.adapter_gradients import AdapterGradients, GradientSettings, Point, Preconditioned
from nncift.influence.gradients.layer_choice import check_layers, layer_numbers
from nncift.influence.model_functions import SHARD, LanguageModelFunction
from nncift.models.hidden_states import layer_count
from nncift.models.language_model import LanguageModel
from nncift.models.memory import adapter_size
from nncift.models.spec import ModelSpec
from nncift.models.text.examples import Example, distinct
from nncift.run.progress import drawn
from nncift.run.shards import Arrays, Shards
from nncift.training.lora import Lora

if TYPE_CHECKING:
    from datasets import Dataset

_SIDES: tuple[Side, Side] = ("pool", "target")


class GradientInfluence(LanguageModelFunction):
    """Inner products of projected, normalized per-sample gradients of an adapter's weights.

    Args:
        model: a folder, a hub id, "embedded", a `LanguageModel`, or a `ModelSpec`; loaded on first use. It has an
            adapter only while gradients are computed.
        dimension: width of the random projection. Adapters with no more weights than that are not projected.
        layers: the model's layers whose gradients are compared: numbers from 0, "last:8", or "middle"; all unless
            given. The backward pass ends at the lowest of them.
        sharpness: gives exp(sharpness (cosine - 1)) instead of the cosine; 0 for the cosine itself.
        seed: of the projection and of the adapter.
        **options: batch_size (16 unless given), dtype, device, max_length, trust_remote_code of `ModelSpec`.
    """

    default_batch_size = 16
    seeded = True
    traits = Traits(both_sides=True, asks_language_model=True)
    _settings = ("preconditioned", "dimension", "seed")
    preconditioned: Preconditioned = "no"
    """The side whose gradients are preconditioned with Adam's moments."""
    _order: tuple[Side, Side] = _SIDES
    """In which `prepare` computes the features of the sides."""

    def __init__(
        self,
        model: str | LanguageModel | ModelSpec,
        *,
        dimension: int = 8192,
        layers: str | Sequence[int] | None = None,
        sharpness: float = 0.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if dimension < 1:
            raise ConfigError(f"`dimension` {dimension} is too small", "give at least 1")
        if not 0 <= sharpness < math.inf:
            raise ConfigError(f"`sharpness` {sharpness} is out of range", "give a number of at least 0")
        if layers is not None:
            check_layers(layers)
        super().__init__(model, **options)
        self.dimension = dimension
        self.layers = layers if layers is None or isinstance(layers, str) else tuple(sorted(layers))
        self.sharpness = sharpness
        self.seed = seed
        self._cache: dict[tuple[int, Side], dict[str, np.ndarray]] = {}  # features by `Example.key`

    def describe(self) -> dict[str, Any]:
        """With the layers and the sharpness where they are given."""
        given = {"layers": self.layers if isinstance(self.layers, str) else list(self.layers)} if self.layers else {}
        return super().describe() | given | ({"sharpness": self.sharpness} if self.sharpness else {})

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Weighted inner products, in [-1, 1], or their exponentials; larger is better."""
        return self._products(self._examples(pool_rows), self._examples(target_rows))

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Compute every sample's features once; `folder` caches them in a folder of this function's name."""
        rows: dict[Side, Dataset] = {"pool": pool, "target": target}
        examples = {side: distinct(self._examples(rows[side])) for side in _SIDES}
        place = None if folder is None else folder / self.name
        if place is not None:
            self._claim(place / "samples.json", examples)
        self._cache, known = {}, dict[tuple[int, Side], dict[str, np.ndarray]]()
        points, groups = self._adapters(), self._groups(examples)
        total = len(points) * sum(len(some) for _, some in groups)
        with tqdm(total=total, desc=self.name, unit=" samples", **drawn(self.progress)) as bar:
            for k in range(len(points)):
                with self._attach(k) as attached:  # once for all shards of both sides
                    for sides, some in groups:
                        name = "-".join(sides)
                        shards = Shards(len(some), SHARD, place, f"{name}-{k + 1}-by-{SHARD}", ".npy")
                        shards.compute(partial(_shard, attached, sides, some), bar=bar)
                        features = [feature for shard in shards for feature in shard["values"]]
                        for number, side in enumerate(sides):
                            own = features if len(sides) == 1 else [both[number] for both in features]
                            known.setdefault((k, side), {}).update(zip((each.key for each in some), own, strict=True))
                            attached.prepared(side, some, np.array(own))
        self._cache = known

    def _groups(self, examples: Mapping[Side, Sequence[Example]]) -> list[tuple[tuple[Side, ...], Sequence[Example]]]:
        """Samples by the sides whose features are computed in one pass: of targets both, if the function has both."""
        if not self.traits.both_sides:
            return [((side,), examples[side]) for side in self._order]
        keys = {example.key for example in examples["target"]}
        alone = [example for example in examples["pool"] if example.key not in keys]
        return [(("pool",), alone), (_SIDES, examples["target"])]

    def tokens(self, pool_rows: Dataset, target_rows: Dataset, pool: Dataset | None = None) -> int:
        """Tokens of all forward, and of all backward, passes of `prepare` on these rows."""
        sides = self._examples(pool_rows), self._examples(target_rows)
        groups = [[*sides[0], *sides[1]]] if self.traits.both_sides else sides
        examples = [example for group in groups for example in distinct(group)]
        return self._passes() * sum(len(example.ids) - 1 for example in examples)

    def footprint(self, pool_rows: Dataset, target_rows: Dataset, n_pool: int, n_target: int) -> Footprint:
        """A batch's forward and backward pass, the gradients' features of all samples, and the random projection."""
        whole, states = self._adapter_size()
        count, chosen = layer_count(self.language_model), self._layer_numbers()
        weights, depth = (whole, count) if chosen is None else (whole * len(chosen) // count, count - chosen[0])
        kept = n_pool + n_target * (2 if self.traits.both_sides else 1)  # of targets as pool samples too
        features = self._passes() * kept * min(self.dimension, weights) * 4
        moments = 0 if self.preconditioned == "no" else 2 * 4 * weights
        batch = self._batch_memory(pool_rows, target_rows, adapted=states, depth=depth)
        memory = batch + 4 * (whole + weights) + moments + features
        return Footprint(memory, disk=features, checkpoints=features)

    def _adapter_size(self) -> tuple[int, int]:
        """Weights of the adapter, and the numbers that it adds to a token's states."""
        lora = self._lora
        return adapter_size(self.language_model, lora.modules, lora.rank)

    def _layer_numbers(self) -> list[int] | None:
        """The layers whose gradients are compared; None for all."""
        return None if self.layers is None else layer_numbers(self.layers, layer_count(self.language_model))

    @property
    def _lora(self) -> Lora:
        """The shape of the adapter."""
        return Lora()

    def _passes(self) -> int:
        """Number of adapters, and so of passes over each sample."""
        return len(self._adapters())

    def _adapters(self) -> Sequence[Point]:
        """The adapters at which gradients are computed."""
        raise NotImplementedError

    def _products(self, pool: Sequence[Example], target: Sequence[Example]) -> np.ndarray:
        """Influence from weighted sums of the features' inner products, (n_pool, n_target) float32."""
        points = self._adapters()
        influence = np.zeros((len(pool), len(target)), np.float32)
        if influence.size:
            for k, point in enumerate(points):
                influence += point.weight * (self._features(k, "pool", pool) @ self._features(k, "target", target).T)
        return self._from_products(influence)

    def _from_products(self, products: np.ndarray) -> np.ndarray:
        """Influence from the sums of inner products, entry by entry."""
        cosines: np.ndarray = np.clip(products, -1, 1)
        return np.exp(np.float32(self.sharpness) * (cosines - 1)) if self.sharpness else cosines

    def _features(self, k: int, side: Side, examples: Sequence[Example]) -> np.ndarray:
        """Features of the examples, (n, dimension) float32, cached by `prepare` or new."""
        return look_up(
            self._cache.get((k, side), {}),
            [example.key for example in examples],
            lambda which: self._compute(k, side, [examples[number] for number in which]),
        )

    def _compute(self, k: int, side: Side, examples: Sequence[Example]) -> np.ndarray:
        """Features of the examples at an adapter, (n, dimension) float32."""
        with self._attach(k) as attached:
            return attached.features(side, examples)

    def _attach(self, k: int) -> AdapterGradients:
        """Gradients at one of the adapters, to be attached to the model."""
        return AdapterGradients(self._adapters()[k].adapter, self._gradient_settings())

    def _gradient_settings(self) -> GradientSettings:
        return GradientSettings(
            model=self.language_model,
            layers=self._layer_numbers(),
            preconditioned=self.preconditioned,
            dimension=self.dimension,
            seed=self.seed,
            batch_size=self.batch_size,
        )


def _shard(attached: AdapterGradients, sides: Sequence[Side], examples: Sequence[Example], rows: range) -> Arrays:
    some = examples[rows.start : rows.stop]
    return {"values": attached.features(sides[0], some) if len(sides) == 1 else attached.features_of_sides(some)}


class GradientSimilarity(GradientInfluence):
    """Cosine of the plain gradients of two samples' losses.

    Args:
        model: as of `GradientInfluence`.
        adapter: the configuration of the fresh adapter, or the folder of a trained one; LESS's configuration unless
            given.
        **options: dimension, layers, sharpness, seed, batch_size, dtype, device, max_length, trust_remote_code of
            `GradientInfluence`.

    Source: TracIn (arXiv:2002.08484), equation 1 at one checkpoint, normalized.
    """

    name = "gradient-similarity"

    def __init__(
        self, model: str | LanguageModel | ModelSpec, *, adapter: Lora | str | Path | None = None, **options: Any
    ) -> None:
        super().__init__(model, **options)
        self.adapter: Lora | Path = Path(adapter) if isinstance(adapter, str) else adapter or Lora(seed=self.seed)

    def describe(self) -> dict[str, Any]:
        """With the adapter."""
        adapter = str(self.adapter) if isinstance(self.adapter, Path) else dataclasses.asdict(self.adapter)
        return super().describe() | {"adapter": json.loads(json.dumps(adapter))}

    @property
    def _lora(self) -> Lora:
        return self.adapter if isinstance(self.adapter, Lora) else Lora()

    def _adapters(self) -> Sequence[Point]:
        return [Point(self.adapter, 1.0)]
