"""Difficulty of a response for the model: IFD (how little the prompt helps) and perplexity. No target.

With L(y | c) the mean negative log-likelihood of the response's tokens, end-of-text included, after context c:

    ifd         L(y | prompt) / L(y)        near 0: the prompt implies the response; above 1: the prompt misleads
    perplexity  exp(L(y | prompt))

Larger is harder. Cherry LLM selects hard samples and drops those above 1, where the prompt does not help
(`zero_above_one`). Where several turns of a chat are trained on, a sample's score is the mean of the turns'. IFD costs
two passes per sample, one without the prompt; perplexity costs one. The features of a network that would estimate them
cost a pass too, so a run computes them for every sample.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import ModelError
from nncift.influence.base import Traits, broadcast, look_up
from nncift.influence.model_functions import PromptedFunction
from nncift.models.language_model import LanguageModel, Prefix
from nncift.models.spec import ModelSpec
from nncift.models.text.chats import mean_over_turns
from nncift.models.text.prompts import Prompts, Query
from nncift.run.executors.base import workers
from nncift.run.shards import once_per_sample
from nncift.run.storage.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset


class Perplexity(PromptedFunction):
    """Perplexity of the response given the prompt; larger is harder.

    Args:
        model: a folder, a hub id, "embedded", a `LanguageModel`, or a `ModelSpec`.
        **options: batch_size, dtype, device, max_length, trust_remote_code of `ModelSpec`; and `wording`: "plain" or a
            `PromptTemplate`, of which `without_example` and `query` are used; "chat", the model's chat template;
            "auto", chat when any sample comes from a chat and the model has a template, else plain.
    """

    name = "perplexity"
    traits = Traits(pointwise=True, factored=True, asks_language_model=True)
    _prefix: Prefix | None = None  # precedes every prompt, encoded once for all batches

    def __init__(self, model: str | LanguageModel | ModelSpec, **options: Any) -> None:
        super().__init__(model, **options)
        self._cache: dict[str, np.ndarray] = {}  # scores by turn and setting

    def __getstate__(self) -> dict[str, Any]:
        """Without what is as large as the model's states, or the pool."""
        return super().__getstate__() | {"_prefix": None, "_cache": {}}

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Score each distinct turn of the pool once; `folder` caches the scores in shards `<name>-*.safetensors`."""
        prompts = self._choose(pool)
        queries = [query for sample in self._render(prompts, pool) for query in sample.queries]
        self._cache = {}
        self._cache = once_per_sample(
            self._keys(prompts, queries),
            queries,
            partial(self._scores, prompts.no_example),
            name=self.name,
            folder=folder,
            progress=self.progress,
            executor=workers(),
            counter=self.spec,
        )
        self._prompts = prompts

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """The score of each pool sample, equal for all targets; larger is harder."""
        if not len(pool_rows) or not len(target_rows):
            return np.zeros((len(pool_rows), len(target_rows)), np.float32)
        return broadcast(self.vectors(pool_rows)[:, 0], len(target_rows))

    def vectors(self, rows: Dataset) -> np.ndarray:
        """The scores, (n, 1) float32; a sample that `prepare` did not score is scored now."""
        prompts = self._prompts_for(rows)
        turns = [sample.queries for sample in self._render(prompts, rows)]
        queries = [*chain(*turns)]
        scores = look_up(
            self._cache,
            self._keys(prompts, queries),
            lambda which: self._scores(prompts.no_example, [queries[k] for k in which]),
        )
        return np.asarray(mean_over_turns(turns, scores.astype(np.float64)), np.float32)

    def target_vectors(self, rows: Dataset) -> np.ndarray:
        """Ones, (n, 1) float32: the score counts for every target."""
        return np.ones((len(rows), 1), np.float32)

    def tokens(self, pool_rows: Dataset, target_rows: Dataset, pool: Dataset | None = None) -> int:
        """Each distinct turn once, with its prompt."""
        if not len(target_rows):
            return 0
        prompts = self._prompts_for(pool_rows)
        queries = self._distinct(prompts, pool_rows)
        prefixes = 1 if self.language_model.shares_prefix and queries else len(queries)
        passes = sum(len(query.alone) + len(query.response) - 1 for query in queries)
        return prefixes * len(prompts.no_example) + passes

    def _distinct(self, prompts: Prompts, rows: Dataset) -> list[Query]:
        """The turns of these samples, each once."""
        queries = [query for sample in self._render(prompts, rows) for query in sample.queries]
        return [*dict(zip(self._keys(prompts, queries), queries, strict=True)).values()]

    def _keys(self, prompts: Prompts, queries: list[Query]) -> list[str]:
        """Identify the scores: the function, the model, its precision and the tokens."""
        described = self.describe()
        description = {name: described.get(name) for name in ("name", "model", "dtype", *self._settings)}
        return [fingerprint(description, prompts.no_example, query.alone, query.response) for query in queries]

    def _scores(self, before: list[int], queries: list[Query]) -> np.ndarray:
        """The score of each turn, (n, 1) float32, with the tokens before every prompt."""
        return np.asarray(np.exp(self._losses(before, queries)), np.float32)[:, None]

    def _losses(self, before: list[int], queries: list[Query]) -> np.ndarray:
        """Mean loss of each response after its prompt, (n,) float64."""
        if self._prefix is None or self._prefix.ids != before:
            self._prefix = self.language_model.prefix(before)
        return self._losses_after(self._prefix, [query.alone for query in queries], queries)

    def _losses_after(self, prefix: Prefix, asked: list[list[int]], queries: list[Query]) -> np.ndarray:
        """Mean loss of each response after the prefix and what asks for it, (n,) float64."""
        responses = [query.response for query in queries]
        found = self.language_model.response_log_probabilities(prefix, asked, responses, batch_size=self.batch_size)
        return np.array([-values.astype(np.float64).mean() for values in found])


class IFD(Perplexity):
    """Instruction-following difficulty: loss of the response with the prompt over its loss without.

    Without the prompt, the response follows the token that begins a text (the tokenizer's own, else end-of-text).

    Args:
        model: as of `Perplexity`.
        zero_above_one: give 0 where the prompt does not help (a ratio of 1 or more), as Cherry LLM drops these.
        **options: wording, batch_size, dtype, device, max_length, trust_remote_code as of `Perplexity`.

    Source: Cherry LLM (Li et al., NAACL 2024, arXiv:2308.12032).
    """

    name = "ifd"
    _settings = ("zero_above_one",)

    def __init__(self, model: str | LanguageModel | ModelSpec, *, zero_above_one: bool = False, **options: Any) -> None:
        super().__init__(model, **options)
        self.zero_above_one = zero_above_one

    def tokens(self, pool_rows: Dataset, target_rows: Dataset, pool: Dataset | None = None) -> int:
        """Each distinct turn twice, once without its prompt."""
        if not len(target_rows):
            return 0
        start = len(beginning(self.language_model))
        queries = self._distinct(self._prompts_for(pool_rows), pool_rows)
        alone = sum(start + len(query.response) - 1 for query in queries)
        return super().tokens(pool_rows, target_rows) + alone

    def _scores(self, before: list[int], queries: list[Query]) -> np.ndarray:
        with_prompt = self._losses(before, queries)
        starts = [beginning(self.language_model)] * len(queries)
        without = self._losses_after(Prefix([], None), starts, queries)
        ratio = with_prompt / np.maximum(without, 1e-6)  # a response that is certain without any context
        kept = np.where(ratio < 1, ratio, 0) if self.zero_above_one else ratio
        return kept.astype(np.float32)[:, None]


def beginning(model: LanguageModel) -> list[int]:
    """The tokens that begin a text; raises `ModelError` if the tokenizer has none."""
    bos = model.tokenizer.bos_token_id
    start = model.leading_ids or ([] if bos is None else [bos]) or model.end_ids
    if not start:
        raise ModelError(
            f"the tokenizer of {model.name!r} has no token that begins or ends a text",
            "take another model, or the influence function perplexity",
        )
    return start
