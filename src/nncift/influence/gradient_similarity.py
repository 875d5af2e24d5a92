"""Gradient cosine similarity (TracIn at one checkpoint), and what it shares with LESS: per-sample gradient features.

With features f of the pool and g of the targets at adapter k, each of length 1,

    influence[i, j] = sum over k of weight_k <f_ik, g_jk>,    weights that sum to 1, so in [-1, 1].

A feature is one forward and one backward pass of one sample, so the cost is linear in the pool; a pair costs one
inner product. Shards hold a fixed range of samples: a killed run repeats at most one of them.

`GradientSimilarity` needs no training: it takes gradients at a fresh adapter. Its second factor starts at zero, so it
alone has gradients, which see the first factor as a random projection of the layer's input.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, Unpack

import numpy as np
from tqdm import tqdm

from nncift.errors import ConfigError, DataError, RunError
from nncift.influence.base import LanguageModelFunction, ModelOptions
from nncift.models.examples import Example, encode_examples
from nncift.models.language_model import LanguageModel
from nncift.models.loading import default_batch_size
from nncift.models.prompts import in_parts
from nncift.run.files import fingerprint, read_array, read_json, write_array, write_json
from nncift.training.checkpoints import read_moments
from nncift.training.gradients import Adam, batched_features
from nncift.training.lora import Lora, adapted, adapter_layers, adapter_weights
from nncift.training.random_projection import SignSketch

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.config import Config


SHARD = 128
Preconditioned = Literal["no", "pool", "both"]
Side = Literal["pool", "target"]
_SIDES: tuple[Side, Side] = ("pool", "target")


class Point(NamedTuple):
    """An adapter at which gradients are taken: a fresh one or a checkpoint's folder, and its weight."""

    adapter: Lora | Path
    weight: float


class GradientInfluence(LanguageModelFunction):
    """Inner products of projected, normalised per-sample gradients of an adapter's weights.

    Args:
        model: a folder, a hub id, "embedded", or a `LanguageModel`; loaded on first use. An adapter is on it only
            while gradients are computed.
        dimension: width of the projection. Adapters with no more weights than that are not projected.
        seed: of the projection, and of what a subclass draws.
        **options: batch_size (16 unless given), dtype, device, max_length, trust_remote_code of
            `LanguageModelFunction`.

    Raises:
        ConfigError: an option has a value that cannot be used.
    """

    preconditioned: Preconditioned = "no"
    """Which side's gradients Adam's moments change."""

    def __init__(
        self,
        model: str | LanguageModel,
        *,
        dimension: int = 8192,
        seed: int = 0,
        **options: Unpack[ModelOptions],
    ) -> None:
        if dimension < 1:
            raise ConfigError(f"dimension {dimension} is too small", "give at least 1")
        if options.get("batch_size") is None:
            options["batch_size"] = default_batch_size(options.get("device"), cpu=16)
        super().__init__(model, **options)
        self.dimension = dimension
        self.seed = seed
        self._known: dict[tuple[int, Side], dict[str, np.ndarray]] = {}  # features by what `Example.key` says

    @classmethod
    def from_config(cls, config: Config, **options: Any) -> Self:
        """The function that a run's config asks for, with options of its own."""
        return super().from_config(config, seed=config.seed, **options)

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        settings = {name: getattr(self, name) for name in ("preconditioned", "dimension", "seed")}
        return super().describe() | settings

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Influence of each pool sample on each target.

        Args:
            pool_rows: n_pool samples.
            target_rows: n_target samples.

        Returns:
            (n_pool, n_target) float32 in [-1, 1]; larger is better.

        Raises:
            DataError: a response does not fit into the context, or a gradient is not finite.
            ModelError: the model cannot be loaded, or one sample alone does not fit into memory.
        """
        return self._products(self._examples(pool_rows), self._examples(target_rows))

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Compute every sample's features once.

        Args:
            pool: the samples that may help, all that will be asked for.
            target: the samples to be helped, likewise.
            folder: keep the features here, in a folder of this function's name, so that a resumed run goes on.

        Raises:
            DataError: a response does not fit into the context, or a gradient is not finite.
            ModelError: the model cannot be loaded, or one sample alone does not fit into memory.
            RunError: the folder holds the features of other samples or settings.
        """
        rows: dict[Side, Dataset] = {"pool": pool, "target": target}
        examples = {side: _distinct(self._examples(rows[side])) for side in _SIDES}
        place = None if folder is None else folder / self.name
        if place is not None:
            _same_samples(place / "samples.json", self.describe(), examples)
        self._known = {}
        points = self._adapters()
        total = len(points) * sum(map(len, examples.values()))
        with tqdm(total=total, desc=self.name, unit=" samples", disable=not self.progress) as bar:
            for (k, point), side in product(enumerate(points), _SIDES):
                known = self._known.setdefault((k, side), {})
                for start in range(0, len(examples[side]), SHARD):
                    shard = examples[side][start : start + SHARD]
                    path = None if place is None else place / f"{side}-{k + 1}-{start // SHARD:06d}.npy"
                    features = self._shard(point, side, shard, path)
                    known |= zip((example.key for example in shard), features, strict=True)
                    bar.update(len(shard))

    def check_lengths(self, pool: Dataset, target: Dataset) -> None:
        """Refuse a sample that does not fit; loads the model.

        Raises:
            DataError: which.
            ModelError: the model cannot be loaded.
        """
        for rows in (pool,) if target is pool else (pool, target):
            for part in in_parts(rows):
                encode_examples(self.language_model, part)

    def tokens(self, pool_rows: Dataset, target_rows: Dataset) -> int:
        """How many tokens go through the model, and back, when `prepare` is given these rows."""
        examples = [*_distinct(self._examples(pool_rows)), *_distinct(self._examples(target_rows))]
        return self._passes() * sum(len(example.ids) - 1 for example in examples)

    def _passes(self) -> int:
        """How many adapters there will be."""
        return len(self._adapters())

    def _adapters(self) -> Sequence[Point]:
        """Where gradients are taken."""
        raise NotImplementedError

    def _examples(self, rows: Dataset) -> list[Example]:
        examples = encode_examples(self.language_model, rows)
        self._cut.update(example.id for example in examples if example.cut)
        return examples

    def _products(self, pool: Sequence[Example], target: Sequence[Example]) -> np.ndarray:
        """Weighted sums of the features' inner products, (n_pool, n_target) float32 in [-1, 1]."""
        points = self._adapters()
        influence = np.zeros((len(pool), len(target)), np.float32)
        if influence.size:
            for k, point in enumerate(points):
                influence += point.weight * (self._features(k, "pool", pool) @ self._features(k, "target", target).T)
        return np.clip(influence, -1, 1)

    def _features(self, k: int, side: Side, examples: Sequence[Example]) -> np.ndarray:
        """Features of the examples, (n, dimension) float32; what `prepare` computed is not repeated."""
        known = self._known.get((k, side), {})
        missing = [example for example in _distinct(examples) if example.key not in known]
        if missing:
            found = self._compute(self._adapters()[k], side, missing)
            known = known | dict(zip((example.key for example in missing), found, strict=True))
        return np.stack([known[example.key] for example in examples])

    def _shard(self, point: Point, side: Side, shard: Sequence[Example], path: Path | None) -> np.ndarray:
        if path is not None and path.exists():
            return read_array(path)
        features = self._compute(point, side, shard)
        if path is not None:
            write_array(path, features)
        return features

    def _compute(self, point: Point, side: Side, examples: Sequence[Example]) -> np.ndarray:
        """Features of the examples at an adapter, (n, dimension) float32, each of length 1."""
        model = self.language_model
        with adapted(model, point.adapter):
            layers = adapter_layers(model)
            if isinstance(point.adapter, Lora):  # its second factor is zero, so the first has no gradient
                layers = {name: layer for name, layer in layers.items() if ".lora_B." in name}
            weights = adapter_weights(model)
            shapes = {name: (weights[name].shape[0], weights[name].shape[1]) for name in layers}
            sketch = SignSketch(shapes, self.dimension, seed=self.seed, device=model.device)
            change = None
            if self.preconditioned == "both" or self.preconditioned == side:
                assert isinstance(point.adapter, Path)
                adam = Adam(read_moments(point.adapter, shapes), sketch.widths, device=model.device)
                change = adam.update if side == "pool" else adam.scale
            found = batched_features(model, examples, layers, sketch, change, batch_size=self.batch_size)
        finite = np.isfinite(found).all(axis=1)
        if not finite.all():
            name = examples[int(np.flatnonzero(~finite)[0])].id
            raise DataError(f"the gradient of {name!r} is not finite", "drop the sample, or use --dtype float32")
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found / np.maximum(lengths, np.float32(1e-30)))


class GradientSimilarity(GradientInfluence):
    """Cosine of the plain gradients of two samples' losses.

    Args:
        model: a folder, a hub id, "embedded", or a `LanguageModel`; loaded on first use.
        adapter: the shape of the fresh adapter, or the folder of a trained one; of LESS's shape unless given.
        **options: of `GradientInfluence`: dimension, seed, batch_size, dtype, device, max_length,
            trust_remote_code.

    Source: TracIn (arXiv:2002.08484), equation 1 at one checkpoint, normalised.
    """

    name = "gradient-similarity"

    def __init__(self, model: str | LanguageModel, *, adapter: Lora | str | Path | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        self.adapter: Lora | Path = Path(adapter) if isinstance(adapter, str) else adapter or Lora(seed=self.seed)

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        adapter = str(self.adapter) if isinstance(self.adapter, Path) else dataclasses.asdict(self.adapter)
        return super().describe() | {"adapter": json.loads(json.dumps(adapter))}

    def _adapters(self) -> Sequence[Point]:
        return [Point(self.adapter, 1.0)]


def _distinct(examples: Sequence[Example]) -> list[Example]:
    """One example of those with the same tokens."""
    return list({example.key: example for example in examples}.values())


def _same_samples(path: Path, description: Mapping[str, Any], examples: Mapping[Side, Sequence[Example]]) -> None:
    """See to it that the features in this folder are those of these samples."""
    keys = {side: [example.key for example in examples[side]] for side in _SIDES}
    found = {"fingerprint": fingerprint(dict(description), keys)}
    if not path.exists():
        write_json(path, found)
    elif read_json(path) != found:
        raise RunError(f"{path.parent} holds gradients of other samples or settings", "choose another --output")
