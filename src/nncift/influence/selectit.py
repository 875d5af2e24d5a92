"""SelectIT: a language model rates each sample itself, and how sure it is counts. One score per sample, no target.

With P_k the model's probabilities of the answers 1..K after a rating prompt, P'_k = P_k / sum P, b the most
probable answer:

    token level      t = b * sum_k (P'_b - P'_k) / (K - 1)
    sentence level   s = mean(t) / (1 + alpha * std(t)) over the rating prompts (population std)
    model level      mean of s over the models, weighted by their parameters.

A rating costs a pass over the sample for each rating prompt and model. What stands before the sample in a rating
prompt is the same for all samples and is encoded once, and only the last position meets the output layer. K is
small, so P' needs the logits of K tokens alone. One model is in memory at a time.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
from scipy.special import softmax

from nncift.errors import ConfigError, DataError, ModelError
from nncift.influence.base import LanguageModelFunction, ModelOptions, broadcast
from nncift.models.language_model import LanguageModel
from nncift.run.files import fingerprint
from nncift.run.shards import SHARD, once_per_sample

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.config import Config

_PARTS = re.compile(r"\{prompt\}|\{response\}")


@dataclass(frozen=True)
class RatingPrompts:
    """Questions that are answered with a digit.

    Attributes:
        levels: the answers are 1..levels.
        prompts: each holds {prompt}, then {response}, then what calls for the answer.

    Raises:
        ConfigError: a placeholder is missing or out of order, or nothing stands before or after them.
    """

    levels: int
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.levels < 2 or not self.prompts:
            raise ConfigError("rating prompts need at least one prompt and two levels")
        for prompt in self.prompts:
            pieces = _PARTS.split(prompt)
            if _PARTS.findall(prompt) != ["{prompt}", "{response}"] or not pieces[0] or not pieces[-1]:
                raise ConfigError(
                    f"the rating prompt {prompt[:60]!r} cannot be used",
                    "it needs text, {prompt}, {response}, and text that calls for the answer, in this order",
                )

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Read `{"levels": K, "prompts": [...]}` from a JSON file; our own wording without one.

        Raises:
            ConfigError: the file is missing or holds something else.
        """
        source = files("nncift.influence") / "rating_prompts.json" if path is None else Path(path)
        try:
            data = json.loads(source.read_text(encoding="utf-8"))
            return cls(int(data["levels"]), tuple(str(prompt) for prompt in data["prompts"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} holds no rating prompts", 'give a JSON file {"levels": 5, "prompts": ["..."]}'
            ) from error


class SelectIT(LanguageModelFunction):
    """How good a language model finds a sample, weighted by how sure it is.

    Args:
        model: a folder, a hub id, "embedded", a `LanguageModel`, or several of them for the model level.
        rating_prompts: the questions, or a JSON file of them; our own unless given.
        alpha: how much disagreement between the rating prompts lowers the score.
        softmax: apply a softmax to P', as the authors' released code does; it flattens the margins.
        **options: batch_size, dtype, device, max_length, trust_remote_code of `LanguageModelFunction`.

    Source: SelectIT (Liu et al., NeurIPS 2024, arXiv:2402.16705), token, sentence and model level.
    """

    name = "selectit"
    pointwise = True

    def __init__(
        self,
        model: str | LanguageModel | Sequence[str | LanguageModel],
        *,
        rating_prompts: RatingPrompts | str | Path | None = None,
        alpha: float = 0.2,
        softmax: bool = False,
        **options: Unpack[ModelOptions],
    ) -> None:
        self.models = (model,) if isinstance(model, str | LanguageModel) else tuple(model)
        if not self.models:
            raise ConfigError("selectit needs at least one language model")
        super().__init__(self.models[0], **options)
        if not isinstance(rating_prompts, RatingPrompts):
            rating_prompts = RatingPrompts.load(rating_prompts)
        self.rating_prompts = rating_prompts
        self.alpha = alpha
        self.softmax = softmax
        self._tokens = 0
        self._splits: list[int] = []
        self._loaded: tuple[int, LanguageModel] | None = None  # the model in memory and its number
        self._known: dict[str, np.ndarray] = {}  # [score, parameters] by model and sample

    @classmethod
    def from_config(cls, config: Config, **options: Any) -> Self:
        """The function that a run's config asks for, with options of its own; models are separated by commas."""
        function = super().from_config(config, **options)
        function.models = config.models
        return function

    @property
    def forward_tokens(self) -> int:
        """Tokens that went through the models so far, padding not counted."""
        return self._tokens

    @property
    def oom_splits(self) -> list[int]:
        """Sizes of the batches that did not fit into memory and were halved."""
        return self._splits

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        return {
            "name": self.name,
            "models": [self.describe_model(model) for model in self.models],
            "levels": self.rating_prompts.levels,
            "prompts": list(self.rating_prompts.prompts),
            "alpha": self.alpha,
            "softmax": self.softmax,
        }

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Rate every pool sample, model by model, in shards `selectit-<model>-*.safetensors` that resume.

        Raises:
            DataError: a response does not fit into the context.
            ModelError: a model cannot be loaded, or the answers are not single tokens of it.
            RunError: a shard is damaged.
        """
        known: dict[str, np.ndarray] = {}
        for number in range(len(self.models)):
            compute = partial(self._rate, number, pool)
            name = f"{self.name}-{number}"
            keys = self._keys(number, pool)
            known |= once_per_sample(keys, compute, name=name, folder=folder, progress=self.progress)
        self._known = known

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """The score of each pool sample, alike for all targets, (n_pool, n_target) float32; larger is better.

        Raises:
            DataError: a response does not fit into the context.
            ModelError: a model cannot be loaded, or the answers are not single tokens of it.
        """
        if not len(pool_rows) or not len(target_rows):
            return np.zeros((len(pool_rows), len(target_rows)), np.float32)
        values = []  # of each model, (n_pool, 2)
        for number in range(len(self.models)):
            keys = self._keys(number, pool_rows)
            missing = [i for i, key in enumerate(keys) if key not in self._known]
            if missing:
                self._known.update(zip((keys[i] for i in missing), self._rate(number, pool_rows, missing), strict=True))
            values.append(np.stack([self._known[key] for key in keys]))
        scores, sizes = np.stack(values).astype(np.float64).transpose(2, 0, 1)  # each (models, n_pool)
        return broadcast((scores * sizes).sum(axis=0) / sizes.sum(axis=0), len(target_rows))

    def tokens(self, pool_rows: Dataset, target_rows: Dataset) -> int:
        """The exact number of tokens that `prepare` sends through the models; loads each."""
        total = 0
        for number in range(len(self.models)):
            first = {key: i for i, key in reversed([*enumerate(self._keys(number, pool_rows))])}
            rows = pool_rows.select(sorted(first.values()))  # each distinct sample once
            model, shards = self._model(number), math.ceil(len(rows) / SHARD)
            for rating_prompt in self.rating_prompts.prompts:
                before, queries = self._word(model, rating_prompt, rows)
                again = shards if model.shares_prefix else len(rows)  # how often the prefix is read
                total += again * len(before) + sum(map(len, queries))
        return total

    def _keys(self, number: int, rows: Dataset) -> list[str]:
        description = {**self.describe(), "models": self.describe_model(self.models[number])}
        setting = fingerprint(description)
        texts = zip(rows["prompt"], rows["response"], strict=True)
        return [fingerprint(setting, prompt, response) for prompt, response in texts]

    def _rate(self, number: int, rows: Dataset, which: Sequence[int]) -> np.ndarray:
        """Sentence-level scores by one model, with its number of parameters, (n, 2) float32."""
        model = self._model(number)
        rows = rows.select(which)
        tokens, splits = model.forward_tokens, len(model.oom_splits)
        ratings = [self._ratings(model, prompt, rows) for prompt in self.rating_prompts.prompts]
        self._tokens += model.forward_tokens - tokens
        self._splits += model.oom_splits[splits:]
        size = sum(weights.numel() for weights in model.model.parameters())
        scores = sentence_score(np.stack(ratings), self.alpha)
        return np.stack([scores, np.full(len(scores), size)], axis=1).astype(np.float32)

    def _model(self, number: int) -> LanguageModel:
        if self._loaded is None or self._loaded[0] != number:
            self._loaded = None  # frees the one before
            self._loaded = (number, self.load(self.models[number]))
        return self._loaded[1]

    def _ratings(self, model: LanguageModel, rating_prompt: str, rows: Dataset) -> np.ndarray:
        """Token-level ratings of samples under one rating prompt, (n,) float64."""
        answers = answer_tokens(model, _PARTS.split(rating_prompt)[-1], self.rating_prompts.levels)
        before, queries = self._word(model, rating_prompt, rows)
        logits = model.next_token_logits(model.prefix(before), queries, answers, batch_size=self.batch_size)
        return token_rating(logits, softmax_again=self.softmax)

    def _word(self, model: LanguageModel, rating_prompt: str, rows: Dataset) -> tuple[list[int], list[list[int]]]:
        """A rating prompt in token ids: what stands before every sample, and the rest of it for each."""
        before, between, after = model.encode(_PARTS.split(rating_prompt))
        room = model.context_length - len(model.leading_ids) - len(before) - len(between) - len(after)
        queries = []
        encoded = zip(rows["id"], model.encode(rows["prompt"]), model.encode(rows["response"]), strict=True)
        for name, prompt, response in encoded:
            if len(response) > room:
                raise DataError(
                    f"the response of {name!r} takes {len(response)} tokens of {model.name!r}",
                    f"at most {max(room, 0)} fit beside the rating prompt: drop the sample, or raise --max-length",
                )
            over = max(len(prompt) + len(response) - room, 0)
            if over:
                self._cut.add(name)
            queries.append([*prompt[over:], *between, *response, *after])
        return [*model.leading_ids, *before], queries


def answer_tokens(model: LanguageModel, cue: str, levels: int) -> list[int]:
    """Token ids of the answers "1".."levels" where they follow the cue.

    Raises:
        ModelError: the tokenizer does not write each as one token there.
    """
    (before,) = model.encode([cue])
    answers = [str(level) for level in range(1, levels + 1)]
    tokens = []
    for answer, ids in zip(answers, model.encode([cue + answer for answer in answers]), strict=True):
        if len(ids) != len(before) + 1 or ids[:-1] != before:
            raise ModelError(
                f"{answer!r} is not a single token of {model.name!r} after {cue[-20:]!r}",
                "end the rating prompts in another way, give fewer levels, or take another model",
            )
        tokens.append(ids[-1])
    if len(set(tokens)) < levels:
        raise ModelError(f"{model.name!r} writes several of the answers 1..{levels} alike", "take another model")
    return tokens


def token_rating(logits: np.ndarray, *, softmax_again: bool = False) -> np.ndarray:
    """The most probable answer times its mean margin over the others.

    Args:
        logits: (n, K) of the answers 1..K.
        softmax_again: apply another softmax to the normalised probabilities, as the authors' code does.

    Returns:
        (n,) float64, in [0, K].
    """
    probabilities = softmax(logits.astype(np.float64), axis=1)
    if softmax_again:
        probabilities = softmax(probabilities, axis=1)
    best = probabilities.argmax(axis=1)
    margins = probabilities.max(axis=1, keepdims=True) - probabilities  # that of the best itself is 0
    return np.asarray((best + 1) * margins.sum(axis=1) / (logits.shape[1] - 1))


def sentence_score(ratings: np.ndarray, alpha: float) -> np.ndarray:
    """Ratings under several prompts, (prompts, n), as one score each, (n,): lower where they disagree."""
    return np.asarray(ratings.mean(axis=0) / (1 + alpha * ratings.std(axis=0)))
