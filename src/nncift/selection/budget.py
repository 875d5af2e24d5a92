"""What a budget means for a pool: a number of samples, or of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nncift.errors import ConfigError
from nncift.run.folder.records import counted
from nncift.run.options.amounts import Amount

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.models.spec import ModelSpec


@dataclass(frozen=True)
class Budget:
    """How much to select."""

    amount: Amount  # a fraction of the pool, a count of samples, or tokens

    @property
    def max_tokens(self) -> float | None:
        """Tokens that the subset may have; None where the budget is in samples."""
        return self.amount.value if self.amount.kind == "tokens" else None

    def count(self, n_pool: int, times: float = 1.0) -> int:
        """Samples that a budget in samples stands for, at least one; `times` as many, rounded up."""
        value = self.amount.value
        count = max(round(value * n_pool), 1) if self.amount.kind == "fraction" else int(value)
        return math.ceil(count * times - 1e-9)

    def expected(self, n_pool: int, tokens: np.ndarray | None = None) -> float:
        """About how many samples will be selected: the count, or the tokens over the mean sample's."""
        if self.max_tokens is None or tokens is None:
            return float(self.count(n_pool))
        return self.max_tokens / max(float(tokens.mean()), 1.0)

    def check(self, n_pool: int, tokens: np.ndarray | None = None) -> None:
        """Refuse a budget that the pool cannot fill, or that no sample fits; `tokens` are (n_pool,) int64."""
        held = counted(n_pool, "sample") if self.amount.kind == "count" and self.amount.value > n_pool else None
        if self.max_tokens is not None and tokens is not None:
            if len(tokens) and tokens.min() > self.max_tokens:
                raise ConfigError(f"`budget` {self.amount} is less than the shortest sample has", "give a larger one")
            held = counted(int(tokens.sum()), "token") if tokens.sum() < self.max_tokens else None
        if held is not None:
            raise ConfigError(f"`budget` {self.amount} is more than the pool's {held}", "give a smaller one")


def check_shortlist(size: int, n_pool: int) -> None:
    """Refuse a shortlist of the whole pool where that is its own target: no sample is measured on itself."""
    if size >= n_pool:
        raise ConfigError(
            f"`verify` would measure {size} of the pool's {n_pool} samples, and leaves none to measure them on",
            "lower `verify` or `budget`, or give a `target`",
        )


def count_tokens(samples: Dataset, spec: ModelSpec) -> np.ndarray:
    """Tokens of each sample's prompt and response under the model's tokenizer, (n,) int64; loads no model."""
    from transformers import AutoTokenizer

    from nncift.models.locate import find_model

    if isinstance(spec.model, str):
        path = find_model(spec.model, "language model")
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=spec.trust_remote_code)
    else:
        tokenizer = spec.model.tokenizer
    counts: list[int] = []
    for start in range(0, len(samples), 1024):
        batch = samples[start : start + 1024]
        texts = [f"{prompt}\n{response}" for prompt, response in zip(batch["prompt"], batch["response"], strict=True)]
        counts += map(len, tokenizer(texts, verbose=False)["input_ids"])
    return np.array(counts, dtype=np.int64)
