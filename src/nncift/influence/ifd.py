"""How hard a response is for the model: IFD (how little the prompt helps), and perplexity. No target.

With L(y | c) the mean negative log-probability of the response's tokens, end-of-text included, after context c:

    ifd         L(y | prompt) / L(y)        near 0: the prompt gives it away; above 1: the prompt misleads
    perplexity  exp(L(y | prompt))

Larger means harder, which is what Cherry LLM looks for; it drops samples above 1, where the prompt is of no use
(`zero_above_one`). IFD costs two passes per sample, one without the prompt; perplexity costs one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from nncift.errors import ModelError
from nncift.influence.base import LanguageModelFunction, ModelOptions, broadcast
from nncift.models.hidden_states import response_losses
from nncift.models.language_model import LanguageModel, Prefix
from nncift.models.prompts import Prompts, Style, WordedSample, Wording, check_fit, choose_prompts

if TYPE_CHECKING:
    from datasets import Dataset


class Perplexity(LanguageModelFunction):
    """Perplexity of the response given the prompt; larger is harder.

    Args:
        model: a folder, a hub id, "embedded", or a `LanguageModel`.
        wording: "plain" or a `Wording`, of which `without_example` and `query` are used; "chat", the model's chat
            template; "auto", chat when any sample comes from a chat and the model has a template, else plain.
        **options: batch_size, dtype, device, max_length, trust_remote_code of `LanguageModelFunction`.
    """

    name = "perplexity"
    pointwise = True

    def __init__(
        self, model: str | LanguageModel, *, wording: Style | Wording = "auto", **options: Unpack[ModelOptions]
    ) -> None:
        super().__init__(model, **options)
        self.wording = wording
        self._prompts: Prompts | None = None  # chosen by `prepare` for all samples
        self._prefix: Prefix | None = None  # what stands before every prompt, encoded once for all blocks

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        plain = self.wording if isinstance(self.wording, Wording) else Wording()
        return {
            **super().describe(),
            "wording": "own" if plain is self.wording else self.wording,
            "plain_wording": {"without_example": plain.without_example, "query": plain.query},
        }

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Choose the wording for all pool samples, and check that each fits; nothing is kept in `folder`.

        Raises:
            DataError: a response does not fit into the context.
            ModelError: the model cannot be loaded, or leaves no room beside the wording.
        """
        prompts = self._prompts_for(pool)
        self._word(prompts, pool)
        self._prompts = prompts

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """The score of each pool sample, alike for all targets, (n_pool, n_target) float32; larger is harder.

        Raises:
            DataError: a response does not fit into the context.
            ModelError: the model cannot be loaded, or one sequence alone does not fit into memory.
        """
        if not len(pool_rows) or not len(target_rows):
            return np.zeros((len(pool_rows), len(target_rows)), np.float32)
        prompts = self._prompts or self._prompts_for(pool_rows)
        return broadcast(self._scores(prompts, self._word(prompts, pool_rows)), len(target_rows))

    def tokens(self, pool_rows: Dataset, target_rows: Dataset) -> int:
        """The exact number of tokens that scoring these pool samples sends through the model."""
        prompts = self._prompts or self._prompts_for(pool_rows)
        samples = self._word(prompts, pool_rows)
        if not samples or not len(target_rows):
            return 0
        again = 1 if self.language_model.shares_prefix else len(samples)  # how often a prefix is read
        passes = sum(len(sample.alone) + len(sample.response) - 1 for sample in samples)
        return again * len(prompts.no_example) + passes

    def _scores(self, prompts: Prompts, samples: list[WordedSample]) -> np.ndarray:
        return np.asarray(np.exp(self._losses(prompts.no_example, [sample.alone for sample in samples], samples)))

    def _losses(self, before: list[int], queries: list[list[int]], samples: list[WordedSample]) -> np.ndarray:
        """Mean loss of each response after `before` and its query, (n,) float64."""
        if self._prefix is None or self._prefix.ids != before:
            self._prefix = self.language_model.prefix(before)
        responses = [sample.response for sample in samples]
        return response_losses(self.language_model, self._prefix, queries, responses, batch_size=self.batch_size)

    def check_lengths(self, pool: Dataset, target: Dataset) -> None:
        """Refuse a pool sample that does not fit; loads the model.

        Raises:
            DataError: which.
            ModelError: the model cannot be loaded, or leaves no room beside the wording.
        """
        check_fit(self._prompts_for(pool), pool)

    def _prompts_for(self, pool: Dataset) -> Prompts:
        return choose_prompts(self.language_model, self.wording, pool, single=True, chats=self._chats)

    def _word(self, prompts: Prompts, rows: Dataset) -> list[WordedSample]:
        samples = prompts.word(rows)
        self._cut.update(sample.id for sample in samples if sample.cut)
        return samples


class IFD(Perplexity):
    """Instruction-following difficulty: loss of the response with the prompt over its loss without.

    Without the prompt a response follows nothing but the token that begins a text (the tokenizer's own, else the
    end-of-text token).

    Args:
        model: a folder, a hub id, "embedded", or a `LanguageModel`.
        zero_above_one: give 0 where the prompt does not help (a ratio of 1 or more), as Cherry LLM drops these.
        wording: that of `Perplexity`.
        **options: batch_size, dtype, device, max_length, trust_remote_code of `LanguageModelFunction`.

    Source: Cherry LLM (Li et al., NAACL 2024, arXiv:2308.12032).
    """

    name = "ifd"

    def __init__(
        self,
        model: str | LanguageModel,
        *,
        zero_above_one: bool = False,
        wording: Style | Wording = "auto",
        **options: Unpack[ModelOptions],
    ) -> None:
        super().__init__(model, wording=wording, **options)
        self.zero_above_one = zero_above_one

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        return {**super().describe(), "zero_above_one": self.zero_above_one}

    def tokens(self, pool_rows: Dataset, target_rows: Dataset) -> int:
        """The exact number of tokens that scoring these pool samples sends through the model."""
        if not len(pool_rows) or not len(target_rows):
            return 0
        prompts = self._prompts or self._prompts_for(pool_rows)
        start = len(beginning(self.language_model))
        alone = sum(start + len(sample.response) - 1 for sample in self._word(prompts, pool_rows))
        return super().tokens(pool_rows, target_rows) + alone

    def _scores(self, prompts: Prompts, samples: list[WordedSample]) -> np.ndarray:
        with_prompt = self._losses(prompts.no_example, [sample.alone for sample in samples], samples)
        start = beginning(self.language_model)
        responses = [sample.response for sample in samples]
        nothing, starts = Prefix([], None), [start] * len(samples)
        without = response_losses(self.language_model, nothing, starts, responses, batch_size=self.batch_size)
        ratio = with_prompt / np.maximum(without, 1e-6)  # a response that is certain without any context
        return np.where(ratio < 1, ratio, 0) if self.zero_above_one else ratio


def beginning(model: LanguageModel) -> list[int]:
    """What stands before a text that follows nothing.

    Raises:
        ModelError: the tokenizer has no token for that.
    """
    bos = model.tokenizer.bos_token_id
    start = model.leading_ids or ([] if bos is None else [bos]) or model.end_ids
    if not start:
        raise ModelError(
            f"the tokenizer of {model.name!r} has no token that begins or ends a text",
            "take another model, or the influence function perplexity",
        )
    return start
