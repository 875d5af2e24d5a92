"""LossVal: a weight for every pool sample, learned together with a small model of the response.

A head predicts a response's sentence embedding r from its prompt's, p. With w_n the weight of pool sample n, which
starts at 1, and l_n = |r_n - head(p_n)|^2, weights and head descend together on

    L = (sum over n of w_n l_n) * OT_w(pool, target)^2.

OT is the Sinkhorn divergence between the pool's points (p, r), of masses w, and the target's. A sample keeps its
weight when its response follows from its prompt as others' do, and when it lies where the target's samples lie. The
weights after the last step are the influence: one score per sample, for the target as a whole.

What differs from the paper and its code, which value tabular data, and why:

- Points are prompt and response together, not inputs alone, so that a response from elsewhere lies away from the
  target too.
- The head starts as the identity and adds a linear map: prompt and response are in one space, and a response is
  mostly about what its prompt is about. The map learns slower than the weights and is pulled to zero, since it would
  learn a small pool by heart, wrong responses included.
- In each step the target has the mass of the pool's batch, not a mass of 1 per sample; with batches as large as the
  target that is the same. Other ratios push all weights' gradients to one sign, and Adam, which takes steps of one size
  whatever the gradient's, then moves all weights alike.
- A weight takes one step per epoch, from the gradient of the batch that held it, so that a large pool's weights do
  not move further than a small one's. A target larger than a batch is sampled anew for each.

It costs two encoder passes per sample, of prompt and of response, and `epochs` passes over the stored embeddings;
no language model. Weights are compared within one run: they depend on all samples that `prepare` sees.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from tqdm import tqdm

from nncift.config import DEFAULT_ENCODER
from nncift.errors import ConfigError, DataError, DependencyError
from nncift.influence.base import broadcast
from nncift.models.encoder import embed_texts, load_encoder
from nncift.models.loading import best_device
from nncift.run.files import fingerprint
from nncift.run.shards import once_per_sample

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.config import Config

BLUR = 0.05  # the Sinkhorn divergence's smallest scale: geomloss's default, which the paper's code uses


class LossVal:
    """Learned weights of the pool samples with respect to the target as a whole; 1 is neutral, larger is better.

    Args:
        encoder: a sentence-transformers model, or its folder or hub id; loaded on first use.
        epochs: passes over the pool, in each of which a weight moves by about `learning_rate` at most.
        learning_rate: Adam's, of the weights.
        head_learning_rate: AdamW's, of the head.
        decay: AdamW's weight decay of the head: no entry of its matrix grows much above 1 / decay.
        rows: pool samples in a step, and targets at most.
        seed: of the batches.
        batch_size: texts per forward pass of the encoder; 32 unless given, on CUDA as many as fit.
        device: "cuda", "mps", "cpu"; the best there is unless given.
        trust_remote_code: run code that comes with the encoder.

    Raises:
        ConfigError: an option has a value that cannot be used.

    Source: LossVal (Wibiral et al. 2024, arXiv:2412.04158).
    """

    name = "lossval"
    pointwise = True
    relative = True
    progress = False  # `collect` sets it: show bars while `prepare` works

    def __init__(
        self,
        encoder: Any = DEFAULT_ENCODER,
        *,
        epochs: int = 100,
        learning_rate: float = 0.01,
        head_learning_rate: float = 0.001,
        decay: float = 30.0,
        rows: int = 256,
        seed: int = 0,
        batch_size: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        for option, value, least in (("epochs", epochs, 1), ("rows", rows, 1), ("batch_size", batch_size, 1)):
            if value is not None and value < least:
                raise ConfigError(f"{option} {value} is too small", f"give at least {least}")
        for option, rate in (("learning_rate", learning_rate), ("head_learning_rate", head_learning_rate)):
            if not 0 < rate < 1:
                raise ConfigError(f"{option} {rate} cannot be used", "give a number between 0 and 1")
        if not 0 <= decay * head_learning_rate < 1:
            raise ConfigError(f"decay {decay} cannot be used", "give at least 0, and less than 1 / head_learning_rate")
        self.encoder = encoder
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.decay = decay
        self.rows = rows
        self.seed = seed
        self.batch_size = batch_size
        self.device = device
        self.trust_remote_code = trust_remote_code
        self._loaded: Any = None
        self._weights: dict[str, float] | None = None  # of the pool samples that `prepare` saw, by key
        self._targets: set[str] = set()  # keys of the targets that it saw

    @classmethod
    def from_config(cls, config: Config, **options: Any) -> Self:
        """The function that a run's config asks for, with options of its own."""
        return cls(
            config.encoder or DEFAULT_ENCODER,
            seed=config.seed,
            batch_size=config.batch_size,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
            **options,
        )

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        settings = ("epochs", "learning_rate", "head_learning_rate", "decay", "rows", "seed")
        return {
            "name": self.name,
            "encoder": self._encoder_name(),
            **{setting: getattr(self, setting) for setting in settings},
        }

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Embed every sample once, and learn the weights.

        Args:
            pool: the samples to score; of equal ones, one takes part.
            target: the samples to be helped.
            folder: keep the embeddings in shards `lossval-*.safetensors` here and the weights in
                `lossval-weights-*.safetensors`; what is there already is not computed again.

        Raises:
            DataError: an embedding is not finite.
            DependencyError: geomloss is not installed.
            ModelError: the encoder cannot be loaded.
            RunError: a shard is damaged.
        """
        pool_keys, target_keys = self._keys(pool), self._keys(target)
        texts = dict(zip([*pool_keys, *target_keys], [*_texts(pool), *_texts(target)], strict=True))
        # In the order of the keys: batches, sums and so every byte are the same however the rows are ordered.
        samples, helped = sorted(set(pool_keys)), sorted(target_keys)
        self._weights, self._targets = {}, set(target_keys)
        if not samples or not helped:
            return

        @cache  # the weights' shards are slices of one result, which is not needed when all are there
        def learn() -> np.ndarray:
            known = self._embed(texts, folder)
            points = [np.stack([known[key] for key in keys]) for keys in (samples, helped)]
            return self._learn(*points)

        all_of_them = fingerprint(self.describe(), samples, helped)
        scores = once_per_sample(
            [fingerprint(all_of_them, key) for key in samples],
            lambda which: learn()[which][:, None],
            name=f"{self.name}-weights",
            folder=folder,
        )
        self._weights = dict(zip(samples, (float(score[0]) for score in scores.values()), strict=True))

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """The weight of each pool sample, alike for all targets, (n_pool, n_target) float32; larger is better.

        Raises:
            ConfigError: `prepare` has not been called, or not with these samples.
        """
        if not len(pool_rows) or not len(target_rows):
            return np.zeros((len(pool_rows), len(target_rows)), np.float32)
        if self._weights is None:
            raise ConfigError(f"{self.name} learns from all samples together", "call prepare(pool, target) first")
        keys = self._keys(pool_rows)
        for rows, asked, known, side in (
            (pool_rows, keys, self._weights.keys(), "pool sample"),
            (target_rows, self._keys(target_rows), self._targets, "target"),
        ):
            unknown = next((number for number, key in enumerate(asked) if key not in known), None)
            if unknown is not None:
                prompt = rows[unknown]["prompt"]
                raise ConfigError(
                    f"{self.name} does not know the {side} {prompt[:60]!r}", "call prepare(pool, target) with all"
                )
        return broadcast(np.array([self._weights[key] for key in keys]), len(target_rows))

    def _encoder_name(self) -> str:
        return self.encoder if isinstance(self.encoder, str) else type(self.encoder).__name__

    def _keys(self, rows: Dataset) -> list[str]:
        """What a sample's embeddings are computed from."""
        return [fingerprint(self._encoder_name(), *texts) for texts in _texts(rows)]

    def _embed(self, texts: dict[str, tuple[str, str]], folder: Path | None) -> dict[str, np.ndarray]:
        """Embeddings of prompt and response side by side, (2 d,) float32, by key."""
        keys = sorted(texts)

        def compute(which: list[int]) -> np.ndarray:
            pairs = [texts[keys[number]] for number in which]
            points = np.hstack([self._encode([pair[side] for pair in pairs]) for side in (0, 1)])
            finite = np.isfinite(points).all(axis=1)
            if not finite.all():
                prompt = pairs[int(np.flatnonzero(~finite)[0])][0]
                raise DataError(
                    f"the encoder gave a vector that is not finite for {prompt[:80]!r}", "take another encoder"
                )
            return points

        return once_per_sample(keys, compute, name=self.name, folder=folder, progress=self.progress)

    def _encode(self, texts: list[str]) -> np.ndarray:
        if self._loaded is None:
            self._loaded = (
                load_encoder(self.encoder, device=self.device, trust_remote_code=self.trust_remote_code)
                if isinstance(self.encoder, str)
                else self.encoder
            )
        return embed_texts(texts, self._loaded, batch_size=self.batch_size)

    def _learn(self, pool: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The weights after training, (n,) float32.

        Args:
            pool: (n, 2 d) float32, prompt and response embeddings side by side.
            target: (m, 2 d) float32, likewise.
        """
        device = self.device or best_device()
        points, helped = (torch.tensor(side, device=device) for side in (pool, target))
        prompts, responses = points.tensor_split(2, dim=1)
        n, m, width = len(points), len(helped), prompts.shape[1]
        weights = torch.ones(n, device=device, requires_grad=True)
        head = torch.zeros(width + 1, width, device=device, requires_grad=True)  # the last row is the bias
        weight_steps = torch.optim.Adam([weights], lr=self.learning_rate)
        head_steps = torch.optim.AdamW([head], lr=self.head_learning_rate, weight_decay=self.decay)
        transport = _sinkhorn(max(float(torch.cdist(part, helped).max()) for part in torch.split(points, 1024)))
        generator = torch.Generator().manual_seed(self.seed)
        for _ in tqdm(range(self.epochs), desc=f"{self.name} training", unit=" epochs", disable=not self.progress):
            weight_steps.zero_grad()
            for batch in torch.randperm(n, generator=generator).tensor_split(-(-n // self.rows)):
                some = helped if m <= self.rows else helped[torch.randperm(m, generator=generator)[: self.rows]]
                mass = torch.full((len(some),), len(batch) / len(some), device=device)
                predicted = prompts[batch] + prompts[batch] @ head[:-1] + head[-1]
                losses = ((responses[batch] - predicted) ** 2).sum(dim=1)
                loss = (weights[batch] * losses).sum() * transport(weights[batch], points[batch], mass, some) ** 2
                head_steps.zero_grad()
                loss.backward()
                head_steps.step()
            weight_steps.step()  # each weight's gradient is that of the one batch that held it
            with torch.no_grad():
                weights.clamp_(min=0)  # less than no mass cannot be transported
        return np.asarray(weights.detach().cpu().numpy())


def _texts(rows: Dataset) -> list[tuple[str, str]]:
    """Prompt and response of each sample."""
    return list(zip(rows["prompt"], rows["response"], strict=True)) if len(rows) else []


def _sinkhorn(farthest: float) -> Any:
    """The Sinkhorn divergence of masses on points, for points no further apart than `farthest`.

    Raises:
        DependencyError: geomloss is not installed.
    """
    try:
        from geomloss import SamplesLoss
    except ImportError as error:
        raise DependencyError("lossval needs the package geomloss", "pip install geomloss") from error
    # Where all points are one point, the scales still have to begin somewhere.
    return SamplesLoss("sinkhorn", blur=BLUR, diameter=max(1.1 * farthest, BLUR), backend="tensorized")
