"""SelectIT: a language model's rating of each sample, weighted by its certainty. One score per sample, no target.

With P_k the model's probabilities of the answers 1..K after a rating prompt, P'_k = P_k / sum P, b the most
probable answer:

    token level      t = b * sum_k (P'_b - P'_k) / (K - 1)
    sentence level   s = mean(t) / (1 + alpha * std(t)) over the rating prompts (population std)
    model level      mean of s over the models, weighted by their parameters.

A rating costs a pass over the sample for each rating prompt and model. The part of a rating prompt before the sample is
encoded once, only the last position goes through the output layer, and P' needs the logits of K tokens alone. One model
is in memory at a time. Where several turns of a chat are trained on, each is rated after what precedes it, and a
sample's score is their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from nncift.errors import ConfigError, DataError
from nncift.influence.base import InfluenceFunction, Setup, Side, Traits, broadcast, look_up
from nncift.influence.model_functions import LanguageModelFunction
from nncift.influence.ratings import PARTS, RatingPrompts, answer_tokens, sentence_score, token_rating
from nncift.models.language_model import LanguageModel
from nncift.models.spec import ModelSpec
from nncift.models.text.chats import Conversation, mean_over_turns, trained_texts
from nncift.models.text.prompts import check_response, name_sample
from nncift.models.text.screening import Screen, reason
from nncift.models.text.tokenization import Tokenization, surely_fits
from nncift.run.shards import SHARD, once_per_sample
from nncift.run.storage.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset


class _Turn(NamedTuple):
    """A turn that is trained on, of the sample with this id."""

    id: str
    prompt: str
    response: str


class SelectIT(LanguageModelFunction):
    """A language model's rating of a sample, weighted by its certainty.

    Args:
        model: a folder, a hub id, "embedded", a `LanguageModel`, a `ModelSpec`, or several of them for the model level.
        rating_prompts: the questions, or a JSON file of them; our own unless given.
        alpha: penalty on disagreement between the rating prompts.
        softmax: apply a softmax to P', as the authors' released code does; it flattens the margins.
        **options: batch_size, dtype, device, max_length, trust_remote_code of `ModelSpec`.

    Source: SelectIT (Liu et al., NeurIPS 2024, arXiv:2402.16705), token, sentence and model level.
    """

    name = "selectit"
    traits = Traits(pointwise=True, asks_language_model=True)
    _settings = ("alpha", "softmax")

    def __init__(
        self,
        model: str | LanguageModel | ModelSpec | Sequence[str | LanguageModel | ModelSpec],
        *,
        rating_prompts: RatingPrompts | str | Path | None = None,
        alpha: float = 0.2,
        softmax: bool = False,
        **options: Any,
    ) -> None:
        models = (model,) if isinstance(model, str | LanguageModel | ModelSpec) else tuple(model)
        if not models:
            raise ConfigError("selectit needs at least one language model")
        super().__init__(models[0], **options)
        self.models = (self.spec, *(ModelSpec.of(other, **options) for other in models[1:]))
        if not isinstance(rating_prompts, RatingPrompts):
            rating_prompts = RatingPrompts.load(rating_prompts)
        self.rating_prompts = rating_prompts
        self.alpha = alpha
        self.softmax = softmax
        self._tokens = 0
        self._splits: list[int] = []
        self._loaded: tuple[int, LanguageModel] | None = None  # the last model and its number
        self._cache: dict[str, np.ndarray] = {}  # [score, parameters] by model and sample

    @classmethod
    def build(cls, setup: Setup, **options: Any) -> Self:
        """The function on all of the run's language models."""
        return cls(setup.models, **options)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_loaded": None}

    @property
    def forward_tokens(self) -> int:  # type: ignore[override]
        """Of all its models."""
        return self._tokens

    @property
    def oom_splits(self) -> list[int]:  # type: ignore[override]
        """Of all its models."""
        return self._splits

    def describe(self) -> dict[str, Any]:
        """With the models and the rating prompts."""
        prompts = {"levels": self.rating_prompts.levels, "prompts": list(self.rating_prompts.prompts)}
        return InfluenceFunction.describe(self) | {"models": [spec.describe() for spec in self.models]} | prompts

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Rate every pool sample, model by model; `folder` caches the ratings in `selectit-<model>-*.safetensors`."""
        known, turns = dict[str, np.ndarray](), [*chain(*_turns(pool))]
        for number in range(len(self.models)):
            keys, name = self._keys(number, turns), f"{self.name}-{number}"
            rate = partial(self._rate, number)
            known |= once_per_sample(keys, turns, rate, name=name, folder=folder, progress=self.progress)
        self._cache = known

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """The score of each pool sample, equal for all targets; larger is better."""
        if not len(pool_rows) or not len(target_rows):
            return np.zeros((len(pool_rows), len(target_rows)), np.float32)
        samples = _turns(pool_rows)
        values, turns = [], [*chain(*samples)]  # of each model, (turns, 2)
        for number in range(len(self.models)):
            keys = self._keys(number, turns)
            values.append(look_up(self._cache, keys, partial(self._rate_of, number, turns)))
            self._cache.update(zip(keys, values[-1], strict=True))
        scores, sizes = np.stack(values).astype(np.float64).transpose(2, 0, 1)  # each (models, turns)
        means = (scores * sizes).sum(axis=0) / sizes.sum(axis=0)
        return broadcast(mean_over_turns(samples, means), len(target_rows))

    def tokens(self, pool_rows: Dataset, target_rows: Dataset, pool: Dataset | None = None) -> int:
        """Each distinct turn of a pool sample once for each rating prompt and model; loads each model."""
        total, every = 0, [*chain(*_turns(pool_rows))]
        for number in range(len(self.models)):
            turns = [*dict(zip(self._keys(number, every), every, strict=True)).values()]
            model, shards = self._model(number), math.ceil(len(turns) / SHARD)
            for rating_prompt in self.rating_prompts.prompts:
                before, queries = self._render(model, rating_prompt, turns)
                prefixes = shards if model.shares_prefix else len(turns)  # passes over the prefix
                total += prefixes * len(before) + sum(map(len, queries))
        return total

    def _keys(self, number: int, turns: Sequence[_Turn]) -> list[str]:
        setting = fingerprint(self.describe() | {"models": self.models[number].describe()})
        return [fingerprint(setting, turn.prompt, turn.response) for turn in turns]

    def _rate_of(self, number: int, turns: Sequence[_Turn], which: Sequence[int]) -> np.ndarray:
        return self._rate(number, [turns[k] for k in which])

    def _rate(self, number: int, turns: Sequence[_Turn]) -> np.ndarray:
        """Sentence-level scores by one model, with its number of parameters, (n, 2) float32."""
        model = self._model(number)
        tokens, splits = model.forward_tokens, len(model.oom_splits)
        ratings = [self._ratings(model, prompt, turns) for prompt in self.rating_prompts.prompts]
        self._tokens += model.forward_tokens - tokens
        self._splits += model.oom_splits[splits:]
        size = sum(weights.numel() for weights in model.model.parameters())
        scores = sentence_score(np.stack(ratings), self.alpha)
        return np.stack([scores, np.full(len(scores), size)], axis=1).astype(np.float32)

    def _model(self, number: int) -> LanguageModel:
        if len(self.models) == 1:
            return self.language_model
        if self._loaded is None or self._loaded[0] != number:
            self._loaded = None  # frees the previous one
            self._loaded = (number, self.models[number].load())
        return self._loaded[1]

    def _ratings(self, model: LanguageModel, rating_prompt: str, turns: Sequence[_Turn]) -> np.ndarray:
        """Token-level ratings of turns under one rating prompt, (n,) float64."""
        answers = answer_tokens(model, PARTS.split(rating_prompt)[-1], self.rating_prompts.levels)
        before, queries = self._render(model, rating_prompt, turns)
        logits = model.next_token_logits(model.prefix(before), queries, answers, batch_size=self.batch_size)
        return token_rating(logits, softmax_again=self.softmax)

    def _render(
        self, model: LanguageModel, rating_prompt: str, turns: Sequence[_Turn]
    ) -> tuple[list[int], list[list[int]]]:
        """A rating prompt in token ids: the prefix shared by all turns, and the rest for each."""
        before, between, after = model.encode(PARTS.split(rating_prompt))
        room = self._room(model, before, between, after)
        queries = []
        prompts, responses = (model.encode([turn[side] for turn in turns]) for side in (1, 2))
        for (name, *_), prompt, response in zip(turns, prompts, responses, strict=True):
            try:
                check_response(response, room, model)
            except DataError as error:
                raise name_sample(error, name) from error
            over = max(len(prompt) + len(response) - room, 0)
            if over:
                self._note_cut([name])
            queries.append([*prompt[over:], *between, *response, *after])
        return [*model.leading_ids, *before], queries

    def _room(self, model: Tokenization, *pieces: list[int]) -> int:
        """Tokens that a sample may fill beside a rating prompt of these pieces."""
        return model.context_length - len(model.leading_ids) - sum(map(len, pieces))

    def screen(self, side: Side) -> Screen | None:
        """Of responses beside the longest rating prompt of each model; targets are not read."""
        if side == "target":
            return None
        rooms: list[tuple[Tokenization, int]] = []

        def refuse(sample: Conversation) -> str | None:
            if not rooms:
                for model in (spec.tokenization for spec in self.models):
                    pieces = (model.encode(PARTS.split(prompt)) for prompt in self.rating_prompts.prompts)
                    rooms.append((model, min(self._room(model, *some) for some in pieces)))
            try:
                for (model, room), turn in product(rooms, sample.parts):
                    if not surely_fits(turn.response, room):
                        check_response(model.encode([turn.response])[0], room, model)
            except DataError as error:
                return reason(error)
            return None

        return refuse


def _turns(rows: Dataset) -> list[list[_Turn]]:
    """The turns of each sample."""
    samples = zip(rows["id"], trained_texts(rows), strict=True)
    return [[_Turn(name, *texts) for texts in turns] for name, turns in samples]
