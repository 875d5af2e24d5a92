"""Similarity of gradients for the price of a forward pass: the error at the output times the activations of layers.

A layer's gradient is a sum over tokens of outer products, and both factors are there after a forward pass
(`models/token_gradients.py`): g_t, the gradient at the last layer's output, and x_lt, the normalized input of layer l.
A sample is G_l = sum over its response tokens of g_t x_lt^T for a few layers l. Similarity is the mean over layers of
the cosine of two samples' G_l, with x whitened over the pool (`training/token_products.py`), plus, with a small weight,
the cosine of the whitened means of x at one layer. No labels, no training, no backward pass through the layers.

Summed over a subset, many small cosines outweigh a few large ones, so influence is exp(sharpness (cos - 1)).

A sample takes one pass and is then a vector of `dimension` + hidden numbers, which are kept; a pair costs an inner
product. With `dimension=0` cosines are exact, for small sets: (layers + 1) x hidden numbers are kept of each response
token, and a pair costs a product of its samples' tokens. Whitening takes the first 16,384 response tokens of
the pool, in a fixed pseudo-random order of its samples, so values depend on the pool given to `prepare`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from nncift.errors import ConfigError
from nncift.influence.base import Footprint, Traits, look_up
from nncift.influence.model_functions import SHARD
from nncift.influence.token_factors import TokenFactorFunction, TokenFactorWork, first_tokens, split_shards
from nncift.models.language_model import LanguageModel
from nncift.models.loading import best_device
from nncift.models.spec import ModelSpec
from nncift.models.text.examples import Example, distinct, in_example_batches
from nncift.models.token_gradients import TokenFactors, join_factors, joined_factors
from nncift.run.executors.base import workers
from nncift.run.progress import drawn
from nncift.run.shards import Arrays, Shards
from nncift.run.storage.files import read_tensors, write_tensors
from nncift.training.token_products import (
    Sketch,
    WhitenedSample,
    cosines,
    gradient_norms,
    whiten,
    whitening,
)

if TYPE_CHECKING:
    from datasets import Dataset

WHITENING_TOKENS = 16384


class GradientSketch(TokenFactorFunction):
    """exp(sharpness (cos - 1)) of gradient sketches from forward passes, in (0, 1]; 1 for the same sample.

    Args:
        model: a folder, a hub id, "embedded", a `LanguageModel`, or a `ModelSpec`.
        layers: numbers of the layers whose inputs are used, from 0; the number of layers itself stands for the output
            layer. At the ends of sixths of the depth unless given: 5, 10, ..., 30 of 30.
        damping: of the whitening, in units of the mean eigenvalue; above 0.
        sharpness: of the exponential; 0 gives the cosine itself, in [-1, 1].
        dimension: width of the random projection; 0 for exact cosines, which a run estimates from labels.
        states: weight of the mean states' cosine, 0 to 1; their layer is the one at two thirds of `layers`.
        seed: of the projection.
        **options: batch_size, dtype, device, max_length, trust_remote_code, wording of `ModelSpec`.

    Raises:
        ConfigError: an option is out of range.
    """

    name = "gradient-sketch"
    traits = Traits(relative=True, relative_to_pool=True, factored=True, asks_language_model=True)
    seeded = True
    _settings = ("damping", "sharpness", "dimension", "states", "seed")

    def __init__(
        self,
        model: str | LanguageModel | ModelSpec,
        *,
        layers: Sequence[int] | None = None,
        damping: float = 1.0,
        sharpness: float = 5.0,
        dimension: int = 8192,
        states: float = 0.2,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        for name, value, valid, range_ in (
            ("layers", layers, layers is None or len(layers) > 0, "at least one number"),
            ("damping", damping, 0 < damping < math.inf, "a number above 0"),
            ("sharpness", sharpness, 0 <= sharpness < math.inf, "a number of at least 0; 0 gives the cosine"),
            ("dimension", dimension, dimension >= 0, "at least 1, or 0 for exact cosines"),
            ("states", states, 0 <= states <= 1, "a number from 0 to 1"),
        ):
            if not valid:
                raise ConfigError(f"`{name}` {value} is out of range", f"give {range_}")
        self.layers = None if layers is None else tuple(sorted({*layers}))
        self.damping, self.sharpness, self.dimension, self.states = damping, sharpness, dimension, states
        self.seed = seed
        if not dimension:  # exact cosines are no inner products of vectors
            self.traits = replace(self.traits, factored=False)
        self._matrices: np.ndarray | None = None  # of the whitening
        self._restored: np.ndarray | None = None  # those of earlier samples
        self._rows: dict[str, np.ndarray] = {}  # vectors with their norms, by `Example.key`
        self._samples: dict[str, TokenFactors] = {}  # instead of these for exact cosines

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """exp(sharpness (cosine - 1)), or the cosine; a sample that `prepare` did not see is computed now."""
        if self.dimension or not len(pool_rows) or not len(target_rows):
            return super().__call__(pool_rows, target_rows)
        pool, target = (self._whitened(self._examples(rows)) for rows in (pool_rows, target_rows))
        return self.from_products(cosines(pool, target, self.states).astype(np.float32))

    def vectors(self, rows: Dataset) -> np.ndarray:
        """Vectors of unit length, (n, d) float32, whose inner products are the cosines.

        Raises:
            ConfigError: cosines are exact, or `prepare` has not been called.
        """
        if not self.dimension:
            raise ConfigError(f"{self.name} has no vectors with `dimension` 0", "give `dimension` 8192")
        return self._vectors_and_norms(rows)[:, :-1]

    def norms(self, rows: Dataset) -> np.ndarray:
        """Gradient norms, (n,) float32: the mean over layers of that of G_l, without whitening.

        By its gradient, a target's loss falls by cosine times norm: they weight targets.
        """
        if self.dimension:
            return self._vectors_and_norms(rows)[:, -1]
        found = self._factors_of(self._examples(rows))
        return gradient_norms(joined_factors(join_factors(found))).numpy() if found else np.zeros(0, np.float32)

    def from_products(self, products: np.ndarray) -> np.ndarray:
        """Influence from the inner products of two samples' vectors, entry by entry."""
        cosine: np.ndarray = np.clip(products, -1, 1)
        return np.exp(np.float32(self.sharpness) * (cosine - 1)) if self.sharpness else cosine

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """One pass over each distinct sample; `folder` caches the results in a folder of this function's name."""
        of_pool, of_target = (distinct(self._examples(rows)) for rows in (pool, target))
        place = None if folder is None else folder / self.name
        if place is not None:
            self._claim(place / "samples.json", {"pool": of_pool, "target": of_target})
        restored, self._restored = self._restored, None
        first = first_tokens(of_pool, WHITENING_TOKENS) if restored is None else []
        known = {example.key for example in first}
        others = [example for example in distinct([*of_pool, *of_target]) if example.key not in known]
        self._matrices, self._rows, self._samples = restored, {}, {}
        if not first and restored is None:
            return
        with tqdm(total=len(first) + len(others), desc=self.name, unit=" samples", **drawn(self.progress)) as bar:
            if self.dimension:
                self._prepare_vectors(first, others, place, bar)
            else:
                self._prepare_factors(first, others, place, bar)

    def _prepare_vectors(self, first: list[Example], others: list[Example], place: Path | None, bar: tqdm) -> None:
        """Whitening and vectors of the samples that it is computed from, in one file; then the other vectors."""
        stored = None if place is None else place / "whitening.safetensors"
        factors = Shards(len(first), SHARD, place, "tokens")
        if self._matrices is not None:
            found = {"matrices": self._matrices, "vectors": np.zeros(0, np.float32)}
        elif stored is not None and stored.exists():
            bar.update(len(first))
            found = read_tensors(stored)
        else:
            self._compute(factors, TokenFactorWork(self), first, bar)
            matrices = whitening(split_shards(factors), self.damping)
            sketch = self._sketch(matrices)
            rows = np.concatenate([sketch.with_norms(joined_factors(shard)).cpu().numpy() for shard in factors])
            found = {"matrices": matrices, "vectors": rows}
            if stored is not None:
                write_tensors(stored, found)
        factors.drop()
        self._matrices = found["matrices"]
        vectors = Shards(len(others), SHARD, place, "vectors", ".npy")
        self._compute(vectors, _Vectors(self), others, bar)
        rest = (row for shard in vectors for row in shard["values"])
        keys = [example.key for example in (*first, *others)]
        self._rows = dict(zip(keys, [*found["vectors"], *rest], strict=True))

    def _compute(
        self, shards: Shards, work: Callable[[list[Example]], Arrays], examples: list[Example], bar: tqdm
    ) -> None:
        """Compute the shards of the examples, by the run's workers."""
        shards.compute(
            work,
            bar=bar,
            executor=workers(),
            send=lambda rows: examples[rows.start : rows.stop],
            counter=self.spec,
        )

    def _prepare_factors(self, first: list[Example], others: list[Example], place: Path | None, bar: tqdm) -> None:
        """The token factors of all samples."""
        for name, examples in (("whitening", first), ("tokens", others)):
            shards = Shards(len(examples), SHARD, place, name)
            self._compute(shards, TokenFactorWork(self), examples, bar)
            self._samples |= zip((example.key for example in examples), split_shards(shards), strict=True)
        self._matrices = whitening((self._samples[example.key] for example in first), self.damping)

    def statistics(self) -> dict[str, np.ndarray]:
        """The whitening, (layers, hidden, hidden); nothing where cosines are exact."""
        return {} if self._matrices is None or not self.dimension else {"whitening": self._matrices}

    def restore(self, statistics: Mapping[str, np.ndarray]) -> None:
        """Whiten by earlier samples."""
        self._restored = statistics["whitening"]

    def tokens(self, pool_rows: Dataset, target_rows: Dataset, pool: Dataset | None = None) -> int:
        """Each distinct sample once."""
        examples = distinct([*self._examples(pool_rows), *self._examples(target_rows)])
        return sum(len(example.ids) - 1 for example in examples)

    def footprint(self, pool_rows: Dataset, target_rows: Dataset, n_pool: int, n_target: int) -> Footprint:
        """A batch's forward pass, whitening and signs of the layers; vectors, or token factors, of all samples."""
        hidden = int(self._config.hidden_size)
        samples, layers = n_pool + n_target, len(self._layers())
        examples = [*self._examples(pool_rows), *self._examples(target_rows)]
        scored = sum(example.scored for example in examples) / max(len(examples), 1) * samples
        token, square = 4 * ((layers + 1) * hidden + 1), 4 * layers * hidden**2
        work = self._batch_memory(pool_rows, target_rows) + 4 * square  # moments in float64
        if not self.dimension:
            kept = round(scored * token)
            return Footprint(work + 3 * kept, disk=kept, checkpoints=kept)
        kept = samples * 4 * (self.dimension + 1 + (hidden if self.states else 0)) + square
        return Footprint(work, disk=kept, checkpoints=kept + round(min(scored, WHITENING_TOKENS) * token))

    def describe(self) -> dict[str, Any]:
        """With the layers."""
        return super().describe() | {"layers": "sixths" if self.layers is None else list(self.layers)}

    def _sketch(self, matrices: np.ndarray) -> Sketch:
        return Sketch(
            matrices,
            int(self._config.hidden_size),
            dimension=self.dimension,
            states=self.states,
            states_layer=self._states_layer,
            seed=self.seed,
            device=self.language_model.device
            if self.spec.is_loaded
            else torch.device(self.spec.device or best_device()),
        )

    def _vectors_and_norms(self, rows: Dataset) -> np.ndarray:
        """Vectors and, in the last column, gradient norms, (n, d + 1) float32."""
        examples, matrices = self._examples(rows), self._prepared()
        if not examples:
            return np.zeros((0, self._sketch(matrices).width + 1), np.float32)

        def compute(which: list[int]) -> np.ndarray:
            return self._vectors([examples[number] for number in which], self._sketch(matrices))

        return look_up(self._rows, [example.key for example in examples], compute)

    def _prepared(self) -> np.ndarray:
        if self._matrices is None:
            raise ConfigError(f"{self.name} needs the whitening over the pool", "call prepare(pool, target) first")
        return self._matrices

    def _whitened(self, examples: Sequence[Example]) -> list[WhitenedSample]:
        matrices = self._prepared()
        return [whiten(factors, matrices, self._states_layer) for factors in self._factors_of(examples)]

    def _factors_of(self, examples: Sequence[Example]) -> list[TokenFactors]:
        """Token factors of the examples, cached by `prepare` or new."""
        new = distinct([example for example in examples if example.key not in self._samples])
        found = dict(zip((example.key for example in new), self._factors(new), strict=True))
        return [self._samples.get(example.key) or found[example.key] for example in examples]

    def _vectors(self, examples: Sequence[Example], sketch: Sketch) -> np.ndarray:
        """New vectors with their norms, (n, d + 1) float32."""

        def work(batch: list[Example]) -> list[np.ndarray]:
            return [*sketch.with_norms(self._pass(batch)).cpu().numpy()]

        return np.stack(in_example_batches(self.language_model, work, examples, batch_size=self.batch_size))

    def __getstate__(self) -> dict[str, Any]:
        """Without the samples' vectors: a worker needs the settings and the whitening alone."""
        return super().__getstate__() | {"_rows": {}, "_samples": {}, "_restored": None}


@dataclass(frozen=True)
class _Vectors:
    """Vectors of some samples with their norms: the work of one shard."""

    function: GradientSketch

    def __call__(self, examples: list[Example]) -> Arrays:
        return {"values": self.function._vectors(examples, self._sketch)}

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function}

    @cached_property
    def _sketch(self) -> Sketch:
        return self.function._sketch(self.function._prepared())
