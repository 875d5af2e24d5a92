"""RDS+: the cosine of two samples' hidden states in the language model, one forward pass per sample.

A sample (worded request and response, T tokens) is the mean of its last hidden states, after the final
normalisation, weighted by position t / (1 + ... + T): later tokens have seen more of the sample. Means are
computed once per sample in `prepare`; a pair costs a dot product.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from nncift.influence.base import LanguageModelFunction, ModelOptions
from nncift.models.hidden_states import mean_states
from nncift.models.language_model import LanguageModel
from nncift.models.prompts import Prompts, Style, WordedSample, Wording, check_fit, choose_prompts
from nncift.run.files import fingerprint
from nncift.run.shards import once_per_sample

if TYPE_CHECKING:
    from datasets import Dataset


class RepresentationSimilarity(LanguageModelFunction):
    """Cosine of the position-weighted means of the last hidden states, in [-1, 1].

    Args:
        model: a folder, a hub id, "embedded", or a `LanguageModel`.
        wording: "plain" or a `Wording`, of which `without_example` and `query` are used; "chat", the model's chat
            template; "auto", chat when any sample comes from a chat and the model has a template, else plain.
        **options: batch_size, dtype, device, max_length, trust_remote_code of `LanguageModelFunction`.

    Source: RDS+ (Ivison et al. 2025, arXiv:2503.01807); the weights are those of SGPT (arXiv:2202.08904).
    """

    name = "representation-similarity"

    def __init__(
        self, model: str | LanguageModel, *, wording: Style | Wording = "auto", **options: Unpack[ModelOptions]
    ) -> None:
        super().__init__(model, **options)
        self.wording = wording
        self._prompts: Prompts | None = None  # chosen by `prepare` for all samples
        self._known: dict[str, np.ndarray] = {}  # means by sample and setting

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        plain = self.wording if isinstance(self.wording, Wording) else Wording()
        return {
            **super().describe(),
            "wording": "own" if plain is self.wording else self.wording,
            "plain_wording": {"without_example": plain.without_example, "query": plain.query},
        }

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Read each distinct sample once, in shards `<name>-*.safetensors` in `folder` that resume.

        Args:
            pool: the samples that may help, all that will be asked for.
            target: the samples to be helped, likewise.
            folder: keep the means here, each with what it was computed from.

        Raises:
            DataError: a response does not fit into the context.
            ModelError: the model cannot be loaded, or leaves no room beside the wording.
            RunError: a shard is damaged.
        """
        prompts = self._prompts_for(pool, target)
        samples = [*self._word(prompts, pool), *self._word(prompts, target)]
        self._known = once_per_sample(
            [self._key(prompts, sample) for sample in samples],
            lambda which: self._means(prompts, [samples[number] for number in which]),
            name=self.name,
            folder=folder,
            progress=self.progress,
        )
        self._prompts = prompts

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Similarity of each pool sample to each target, (n_pool, n_target) float32.

        Raises:
            DataError: a response does not fit into the context.
            ModelError: the model cannot be loaded, or one sequence alone does not fit into memory.
        """
        if not len(pool_rows) or not len(target_rows):
            return np.zeros((len(pool_rows), len(target_rows)), np.float32)
        prompts = self._prompts or self._prompts_for(pool_rows, target_rows)
        pool, target = (self._vectors(prompts, rows) for rows in (pool_rows, target_rows))
        return np.asarray(np.clip(pool @ target.T, -1, 1), dtype=np.float32)

    def tokens(self, pool_rows: Dataset, target_rows: Dataset) -> int:
        """The exact number of tokens that `prepare` sends through the model: each distinct sample once."""
        prompts = self._prompts or self._prompts_for(pool_rows, target_rows)
        samples = [*self._word(prompts, pool_rows), *self._word(prompts, target_rows)]
        distinct = {self._key(prompts, sample): sample for sample in samples}.values()
        before = len(prompts.no_example)
        return sum(before + len(sample.alone) + len(sample.response) for sample in distinct)

    def _vectors(self, prompts: Prompts, rows: Dataset) -> np.ndarray:
        """Rows of length 1, (n, hidden) float64; what `prepare` computed is not repeated."""
        samples = self._word(prompts, rows)
        keys = [self._key(prompts, sample) for sample in samples]
        missing = [number for number, key in enumerate(keys) if key not in self._known]
        known = self._known
        if missing:
            means = self._means(prompts, [samples[number] for number in missing])
            known = known | dict(zip((keys[number] for number in missing), means, strict=True))
        vectors = self._centred(np.stack([known[key] for key in keys]).astype(np.float64))
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))

    def _means(self, prompts: Prompts, samples: list[WordedSample]) -> np.ndarray:
        """Weighted means of hidden states, (n, hidden) float32."""
        contexts = [[*prompts.no_example, *sample.alone] for sample in samples]
        sequences = [[*context, *sample.response] for context, sample in zip(contexts, samples, strict=True)]
        weights = [
            self._weights(len(context), len(sequence)) for context, sequence in zip(contexts, sequences, strict=True)
        ]
        return mean_states(self.language_model, sequences, weights, layer=self._layer(), batch_size=self.batch_size)

    def _layer(self) -> int | None:
        """The layer whose input is read; None for what the output layer is given."""
        return None

    def _weights(self, context: int, length: int) -> np.ndarray:
        """Weight of each of `length` tokens, of which the first `context` are the request's; they sum to 1."""
        weights = np.arange(1, length + 1, dtype=np.float64)
        return np.asarray(weights / weights.sum())

    def _centred(self, means: np.ndarray) -> np.ndarray:
        """The means as they are compared, (n, hidden) float64."""
        return means

    def check_lengths(self, pool: Dataset, target: Dataset) -> None:
        """Refuse a sample that does not fit; loads the model.

        Raises:
            DataError: which.
            ModelError: the model cannot be loaded, or leaves no room beside the wording.
        """
        check_fit(self._prompts_for(pool, target), pool, target)

    def _prompts_for(self, pool: Dataset, target: Dataset) -> Prompts:
        return choose_prompts(self.language_model, self.wording, pool, target, single=True, chats=self._chats)

    def _word(self, prompts: Prompts, rows: Dataset) -> list[WordedSample]:
        samples = prompts.word(rows)
        self._cut.update(sample.id for sample in samples if sample.cut)
        return samples

    def _key(self, prompts: Prompts, sample: WordedSample) -> str:
        """What a mean was computed from: the function, the model, its precision and the exact tokens."""
        description = {name: self.describe().get(name) for name in ("name", "model", "dtype", "layer")}
        return fingerprint(description, prompts.no_example, sample.alone, sample.response)
