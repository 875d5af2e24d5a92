"""Ratings that a language model gives: the questions, the tokens of its answers, and scores of their probabilities."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Self

import numpy as np
from scipy.special import softmax

from nncift.errors import ConfigError, ModelError
from nncift.models.language_model import LanguageModel

PARTS = re.compile(r"\{prompt\}|\{response\}")
"""What a rating prompt has in place of a sample's texts."""


@dataclass(frozen=True)
class RatingPrompts:
    """Questions to be answered with 1..levels: text, {prompt}, {response}, and text that asks for it, in this order."""

    levels: int
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.levels < 2 or not self.prompts:
            raise ConfigError("rating prompts need at least one prompt and two levels")
        for prompt in self.prompts:
            pieces = PARTS.split(prompt)
            if PARTS.findall(prompt) != ["{prompt}", "{response}"] or not pieces[0] or not pieces[-1]:
                raise ConfigError(
                    f"the rating prompt {prompt[:60]!r} is incomplete",
                    "it needs text, {prompt}, {response}, and text that asks for the answer, in this order",
                )

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Read `{"levels": K, "prompts": [...]}` from a JSON file, by default `rating_prompts.json`."""
        source = files("nncift.influence") / "rating_prompts.json" if path is None else Path(path)
        try:
            data = json.loads(source.read_text(encoding="utf-8"))
            return cls(int(data["levels"]), tuple(str(prompt) for prompt in data["prompts"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} contains no rating prompts", 'give a JSON file {"levels": 5, "prompts": ["..."]}'
            ) from error


def answer_tokens(model: LanguageModel, cue: str, levels: int) -> list[int]:
    """Token ids of the answers "1".."levels" after the cue; raises `ModelError` unless each is a token of its own."""
    (before,) = model.encode([cue])
    answers = [str(level) for level in range(1, levels + 1)]
    tokens = []
    for answer, ids in zip(answers, model.encode([cue + answer for answer in answers]), strict=True):
        if len(ids) != len(before) + 1 or ids[:-1] != before:
            raise ModelError(
                f"{answer!r} is not a single token of {model.name!r} after {cue[-20:]!r}",
                "end the rating prompts in another way, use fewer levels, or take another model",
            )
        tokens.append(ids[-1])
    if len(set(tokens)) < levels:
        raise ModelError(
            f"several of the answers 1..{levels} are the same token of {model.name!r}", "take another model"
        )
    return tokens


def token_rating(logits: np.ndarray, *, softmax_again: bool = False) -> np.ndarray:
    """The most probable answer times its mean margin over the others, (n,) float64 in [0, K], from logits (n, K)."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    if softmax_again:
        probabilities = softmax(probabilities, axis=1)
    best = probabilities.argmax(axis=1)
    margins = probabilities.max(axis=1, keepdims=True) - probabilities
    return np.asarray((best + 1) * margins.sum(axis=1) / (logits.shape[1] - 1))


def sentence_score(ratings: np.ndarray, alpha: float) -> np.ndarray:
    """Mean over prompts of ratings (prompts, n), penalized by their standard deviation, (n,)."""
    return np.asarray(ratings.mean(axis=0) / (1 + alpha * ratings.std(axis=0)))
