"""LossVal: a weight for every pool sample, learned jointly with a small model of the response.

A head predicts a response's sentence embedding r from its prompt's, p. With w_n the weight of pool sample n,
initialized to 1, and l_n = |r_n - head(p_n)|^2, weights and head minimize

    L = (sum over n of w_n l_n) * OT_w(pool, target)^2.

OT is the Sinkhorn divergence between the pool's points (p, r), of masses w, and the target's. A sample keeps its
weight if its response is as predictable from its prompt as others' are, and if it is close to the target's samples. The
final weights are the influence: one score per sample, for the target as a whole.

Differences from the paper and its code, which value tabular data:

- Points are prompt and response together, not inputs alone, so that a mismatched response is far from the target too.
- The head is the identity plus a linear map initialized to zero: prompt and response share one embedding space and
  mostly one topic. The map has a lower learning rate than the weights and is regularized by weight decay; it would
  overfit a small pool, including its wrong responses.
- In each step the target has the total mass of the pool's batch, not a mass of 1 per sample (equal if the batch is as
  large as the target). With other ratios all weights' gradients have one sign, and Adam, whose steps do not depend on
  the gradient's scale, moves all weights equally.
- A weight takes one step per epoch, from the gradient of its batch, so that the weights of large and small pools
  move equally far. A target larger than a batch is subsampled for each.

It costs two encoder passes per sample, of prompt and of response, and `epochs` passes over the cached embeddings;
no language model. Weights are comparable within one run only: they depend on all samples given to `prepare`.

Where several turns of a chat are trained on, each is a point of its own, its prompt all that precedes it. They share
their sample's weight, and its mass in equal parts, so the sample's loss is their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from tqdm import tqdm

from nncift.errors import ConfigError, DataError, DependencyError
from nncift.influence.base import InfluenceFunction, Setup, Traits, broadcast
from nncift.models.encoder import embed_texts
from nncift.models.loading import best_device
from nncift.models.spec import DEFAULT_ENCODER, EncoderSpec
from nncift.models.text.chats import trained_texts
from nncift.run.progress import drawn
from nncift.run.shards import once_per_sample
from nncift.run.storage.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

BLUR = 0.05  # the Sinkhorn divergence's smallest scale: geomloss's default, which the paper's code uses


class LossVal(InfluenceFunction):
    """Learned weights of the pool samples with respect to the target as a whole; 1 is neutral, larger is better.

    Args:
        encoder: a sentence-transformers model, or its folder or hub id, or an `EncoderSpec`; loaded on first use.
        epochs: passes over the pool; each changes a weight by about `learning_rate` at most.
        learning_rate: Adam's, of the weights.
        head_learning_rate: AdamW's, of the head.
        decay: AdamW's weight decay of the head; bounds the entries of its matrix by about 1 / decay.
        rows: batch size of the training: pool samples per step, and targets at most.
        seed: of the batches.
        **options: device, batch_size (of the encoder), trust_remote_code of `EncoderSpec`.

    Raises:
        ConfigError: an option has an invalid value.

    Source: LossVal (Wibiral et al. 2024, arXiv:2412.04158).
    """

    name = "lossval"
    traits = Traits(pointwise=True, relative=True)
    _settings = ("epochs", "learning_rate", "head_learning_rate", "decay", "rows", "seed")

    def __init__(
        self,
        encoder: Any | EncoderSpec = DEFAULT_ENCODER,
        *,
        epochs: int = 100,
        learning_rate: float = 0.01,
        head_learning_rate: float = 0.001,
        decay: float = 30.0,
        rows: int = 256,
        seed: int = 0,
        **options: Any,
    ) -> None:
        for option, value in (("epochs", epochs), ("rows", rows)):
            if value < 1:
                raise ConfigError(f"`{option}` {value} is too small", "give at least 1")
        for option, rate in (("learning_rate", learning_rate), ("head_learning_rate", head_learning_rate)):
            if not 0 < rate < 1:
                raise ConfigError(f"`{option}` {rate} is out of range", "give a number between 0 and 1")
        if not 0 <= decay * head_learning_rate < 1:
            raise ConfigError(
                f"`decay` {decay} is out of range", "give at least 0, and less than 1 / `head_learning_rate`"
            )
        self.encoder_spec = EncoderSpec.of(encoder, **options)
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.decay = decay
        self.rows = rows
        self.seed = seed
        self._weights: dict[str, float] | None = None  # of the pool samples given to `prepare`, by key
        self._targets: set[str] = set()  # keys of the targets given to it

    @classmethod
    def build(cls, setup: Setup, **options: Any) -> Self:
        """The function on the run's sentence encoder, with the run's seed."""
        return cls(setup.encoder, **{"seed": setup.seed} | options)

    def describe(self) -> dict[str, Any]:
        """With the encoder's name."""
        return super().describe() | {"encoder": self.encoder_spec.name}

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Embed every distinct sample once, and learn the weights.

        `folder` caches the embeddings in `lossval-*.safetensors`, the weights in `lossval-weights-*.safetensors`.

        Raises:
            DependencyError: geomloss is not installed.
        """
        pool_keys, target_keys = self._keys(pool), self._keys(target)
        turns = dict(zip([*pool_keys, *target_keys], [*trained_texts(pool), *trained_texts(target)], strict=True))
        # In the order of the keys: every byte is the same however the rows are ordered.
        samples, helped = sorted(set(pool_keys)), sorted(target_keys)
        self._weights, self._targets = {}, set(target_keys)
        if not samples or not helped:
            return

        @cache  # shards are slices of one result
        def learn() -> np.ndarray:
            known = self._embed([*chain(*turns.values())], folder)
            points = ([[known[self._key([turn])] for turn in turns[key]] for key in keys] for keys in (samples, helped))
            return self._learn(*points)

        all_of_them = fingerprint(self.describe(), samples, helped)
        scores = once_per_sample(
            [fingerprint(all_of_them, key) for key in samples],
            range(len(samples)),
            lambda which: learn()[which][:, None],
            name=f"{self.name}-weights",
            folder=folder,
        )
        self._weights = dict(zip(samples, (float(score[0]) for score in scores.values()), strict=True))

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """The weight of each pool sample, equal for all targets; larger is better."""
        if not len(pool_rows) or not len(target_rows):
            return np.zeros((len(pool_rows), len(target_rows)), np.float32)
        if self._weights is None:
            raise ConfigError(f"{self.name} needs all samples together", "call prepare(pool, target) first")
        keys = self._keys(pool_rows)
        for rows, asked, known, side in (
            (pool_rows, keys, self._weights.keys(), "pool sample"),
            (target_rows, self._keys(target_rows), self._targets, "target"),
        ):
            for prompt, key in zip(rows["prompt"], asked, strict=True):
                if key not in known:
                    raise ConfigError(
                        f"{self.name} was not trained with the {side} {prompt[:60]!r}",
                        "call prepare(pool, target) with all samples",
                    )
        return broadcast(np.array([self._weights[key] for key in keys]), len(target_rows))

    def _keys(self, rows: Dataset) -> list[str]:
        return [self._key(turns) for turns in trained_texts(rows)]

    def _key(self, turns: Sequence[tuple[str, str]]) -> str:
        """Identifies a sample's embeddings: the encoder and the texts."""
        return fingerprint(self.encoder_spec.name, *chain(*turns))

    def _embed(self, turns: Sequence[tuple[str, str]], folder: Path | None) -> dict[str, np.ndarray]:
        """Concatenated embeddings of prompt and response of each turn, (2 d,) float32, by key."""
        texts = {self._key([turn]): turn for turn in turns}
        keys = sorted(texts)

        def compute(pairs: list[tuple[str, str]]) -> np.ndarray:
            points = np.hstack([embed_texts(side, self.encoder_spec) for side in zip(*pairs, strict=True)])
            bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
            if len(bad):
                raise DataError(f"the embedding of {pairs[bad[0]][0][:80]!r} is not finite", "take another encoder")
            return points

        items = [texts[key] for key in keys]
        return once_per_sample(keys, items, compute, name=self.name, folder=folder, progress=self.progress)

    def _learn(self, pool: Sequence[Sequence[np.ndarray]], target: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """The weights after training, (n,) float32, from the embeddings (2 d,) of each sample's and target's turns."""
        device = self.encoder_spec.device or best_device()
        points, helped = (_Points.of(side, device) for side in (pool, target))
        n, m, width = len(pool), len(target), points.values.shape[1] // 2
        weights = torch.ones(n, device=device, requires_grad=True)
        head = torch.zeros(width + 1, width, device=device, requires_grad=True)  # the last row is the bias
        weight_steps = torch.optim.Adam([weights], lr=self.learning_rate)
        head_steps = torch.optim.AdamW([head], lr=self.head_learning_rate, weight_decay=self.decay)
        transport = _sinkhorn(points.farthest(helped))
        generator = torch.Generator().manual_seed(self.seed)
        bar = tqdm(range(self.epochs), desc=f"{self.name} training", unit=" epochs", **drawn(self.progress))
        for _ in bar:
            weight_steps.zero_grad()
            for batch in torch.randperm(n, generator=generator).tensor_split(-(-n // self.rows)):
                some = torch.arange(m) if m <= self.rows else torch.randperm(m, generator=generator)[: self.rows]
                mass, turns = points.select(batch, weights)
                equal = torch.full((m,), len(batch) / len(some), device=device)
                prompts, responses = turns.tensor_split(2, dim=1)
                predicted = prompts + prompts @ head[:-1] + head[-1]
                losses = ((responses - predicted) ** 2).sum(dim=1)
                loss = (mass * losses).sum() * transport(mass, turns, *helped.select(some, equal)) ** 2
                head_steps.zero_grad()
                loss.backward()
                head_steps.step()
            weight_steps.step()  # each weight's gradient is that of its one batch
            with torch.no_grad():
                weights.clamp_(min=0)  # masses are non-negative
        return np.asarray(weights.detach().cpu().numpy())


@dataclass(frozen=True)
class _Points:
    """The turns of samples: each sample's in a row, in the order of the samples."""

    values: torch.Tensor  # (turns, 2 d)
    counts: torch.Tensor  # turns of each sample, (n,)

    @classmethod
    def of(cls, samples: Sequence[Sequence[np.ndarray]], device: str) -> Self:
        values = torch.tensor(np.stack([*chain(*samples)]), device=device)
        return cls(values, torch.tensor([len(turns) for turns in samples]))

    def select(self, samples: torch.Tensor, masses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mass and embedding of each turn of some samples, whose masses (n,) are divided equally among their turns."""
        counts = self.counts[samples]
        owners = samples.repeat_interleave(counts)
        before = (self.counts.cumsum(0)[samples] - counts.cumsum(0)).repeat_interleave(counts)
        shares = masses[owners] / self.counts[owners].to(masses.device)
        return shares, self.values[before + torch.arange(len(owners))]

    def farthest(self, others: Self) -> float:
        """The largest distance of a point to one of the others."""
        return max(float(torch.cdist(some, others.values).max()) for some in torch.split(self.values, 1024))


def _sinkhorn(farthest: float) -> Any:
    """The Sinkhorn divergence of masses on points at most `farthest` apart."""
    try:
        from geomloss import SamplesLoss
    except ImportError as error:
        raise DependencyError("lossval needs the package geomloss", "pip install geomloss") from error
    # The scales need a positive start even if all points coincide.
    return SamplesLoss("sinkhorn", blur=BLUR, diameter=max(1.1 * farthest, BLUR), backend="tensorized")
