"""RDS+: the cosine of two samples' hidden states in the language model, one forward pass per sample.

A sample (prompt and response, T tokens) is the mean of its last hidden states, after the final normalization, with
position weights t / (1 + ... + T): later tokens attend to more of the sample. Means are computed once per sample in
`prepare`; a pair costs a dot product. Where several turns of a chat are trained on, a sample is the mean of what the
conversation up to each of them is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.influence.base import Traits, look_up
from nncift.influence.model_functions import PromptedFunction
from nncift.models.hidden_states import mean_states
from nncift.models.language_model import LanguageModel
from nncift.models.spec import ModelSpec
from nncift.models.text.chats import mean_over_turns
from nncift.models.text.prompts import PromptedSample, Prompts
from nncift.run.executors.base import workers
from nncift.run.shards import once_per_sample
from nncift.run.storage.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset


class RepresentationSimilarity(PromptedFunction):
    """Cosine of the position-weighted means of the last hidden states, in [-1, 1].

    Args:
        model: a folder, a hub id, "embedded", a `LanguageModel`, or a `ModelSpec`.
        **options: batch_size, dtype, device, max_length, trust_remote_code of `ModelSpec`; and `wording`: "plain" or a
            `PromptTemplate`, of which `without_example` and `query` are used; "chat", the model's chat template;
            "auto", chat when any sample comes from a chat and the model has a template, else plain.

    Source: RDS+ (Ivison et al. 2025, arXiv:2503.01807); the weights are those of SGPT (arXiv:2202.08904).
    """

    name = "representation-similarity"
    traits = Traits(factored=True, asks_language_model=True)

    def __init__(self, model: str | LanguageModel | ModelSpec, **options: Any) -> None:
        super().__init__(model, **options)
        self._cache: dict[str, np.ndarray] = {}  # means by sample and setting

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Encode each distinct sample once; `folder` caches the means in shards `<name>-*.safetensors`."""
        prompts = self._choose(pool, target)
        both = [*self._render(prompts, pool), *self._render(prompts, target)]
        samples = self._sequences(prompts, both)
        self._cache = {}
        self._cache = once_per_sample(
            self._keys(samples),
            samples,
            self._means,
            name=self.name,
            folder=folder,
            progress=self.progress,
            executor=workers(),
            counter=self.spec,
        )
        self._prompts = prompts

    def vectors(self, rows: Dataset) -> np.ndarray:
        """Means of length 1, (n, hidden) float32; a sample that `prepare` did not encode is encoded now."""
        prompts = self._prompts_for(rows)
        rendered = self._render(prompts, rows)
        samples = self._sequences(prompts, rendered)
        means = look_up(self._cache, self._keys(samples), lambda which: self._means([samples[k] for k in which]))
        turns = [sample.queries for sample in rendered]
        vectors = self._standardized(mean_over_turns(turns, means.astype(np.float64)))
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)

    def from_products(self, products: np.ndarray) -> np.ndarray:
        """Cosines, in [-1, 1]."""
        return np.asarray(np.clip(products, -1, 1))

    def tokens(self, pool_rows: Dataset, target_rows: Dataset, pool: Dataset | None = None) -> int:
        """Each distinct sample once."""
        prompts = self._prompts_for(pool_rows, target_rows)
        both = [*self._render(prompts, pool_rows), *self._render(prompts, target_rows)]
        samples = self._sequences(prompts, both)
        return sum(len(ids) for ids, _ in dict(zip(self._keys(samples), samples, strict=True)).values())

    def _sequences(self, prompts: Prompts, samples: Sequence[PromptedSample]) -> list[tuple[list[int], int]]:
        """Token ids of each sample up to each turn that is trained on, and how many precede that."""
        queries = (query for sample in samples for query in sample.queries)
        contexts = [(prompts.no_example + query.alone, query.response) for query in queries]
        return [(context + response, len(context)) for context, response in contexts]

    def _means(self, samples: list[tuple[list[int], int]]) -> np.ndarray:
        """Weighted means of hidden states of some samples, (n, hidden) float32."""
        sequences = [ids for ids, _ in samples]
        weights = [self._weights(context, len(ids)) for ids, context in samples]
        return mean_states(self.language_model, sequences, weights, layer=self._layer(), batch_size=self.batch_size)

    def _layer(self) -> int | None:
        """The layer whose input is used; None for the input of the output layer."""
        return None

    def _weights(self, context: int, length: int) -> np.ndarray:
        """Weight of each of `length` tokens, of which the first `context` precede the response; they sum to 1."""
        weights = np.arange(1, length + 1, dtype=np.float64)
        return np.asarray(weights / weights.sum())

    def _standardized(self, means: np.ndarray) -> np.ndarray:
        """The means as they are compared, (n, hidden) float64."""
        return means

    def _keys(self, samples: list[tuple[list[int], int]]) -> list[str]:
        """Identify the means: the function, the model, its precision and the tokens."""
        description = {name: self.describe().get(name) for name in ("name", "model", "dtype", "layer")}
        return [fingerprint(description, ids, start) for ids, start in samples]
