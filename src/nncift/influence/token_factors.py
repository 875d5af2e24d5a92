"""Token factors of gradients at some layers: the forward passes over samples, as shards keep and workers compute them.

What they are: `models/token_gradients.py`; what becomes of them: `gradient_sketch.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nncift.errors import ConfigError, DataError
from nncift.influence.model_functions import LanguageModelFunction
from nncift.models.text.examples import Example, in_example_batches
from nncift.models.token_gradients import BatchFactors, TokenFactors, batch_factors, join_factors, joined_factors
from nncift.run.shards import Arrays, Shards
from nncift.training.token_products import layers_at_sixths, states_layer


class TokenFactorFunction(LanguageModelFunction):
    """A function of the token factors of samples at some layers, set by its constructor."""

    layers: tuple[int, ...] | None
    """Numbers of the layers, from 0; None for the ends of sixths of the depth."""

    def _layers(self) -> tuple[int, ...]:
        count = int(self._config.num_hidden_layers)
        if self.layers is None:
            return layers_at_sixths(count)
        if not 0 <= self.layers[0] <= self.layers[-1] <= count:
            wrong = next(layer for layer in self.layers if not 0 <= layer <= count)
            raise ConfigError(f"`layers` {wrong} does not exist in {self.spec.name!r}", f"give 0 to {count}")
        return self.layers

    @property
    def _states_layer(self) -> int:
        return states_layer(self._layers())

    @property
    def _config(self) -> Any:
        """The language model's, for which no weights are loaded: these may be in workers alone."""
        return self.spec.tokenization.config.get_text_config()

    def _factors(self, examples: Sequence[Example]) -> list[TokenFactors]:
        """New token factors, on the CPU."""

        def work(batch: list[Example]) -> list[TokenFactors]:
            return self._pass(batch).to("cpu").split()

        return in_example_batches(self.language_model, work, examples, batch_size=self.batch_size)

    def _pass(self, batch: Sequence[Example]) -> BatchFactors:
        """One forward pass; raises `DataError` if a factor is not finite."""
        found = batch_factors(self.language_model, batch, self._layers())
        if not _finite(found.factors):
            wrong = next(one for one, own in zip(batch, found.split(), strict=True) if not _finite(own))
            raise DataError(f"the gradient of {wrong.id!r} is not finite", "drop the sample, or set `dtype` to float32")
        return found


def _finite(factors: TokenFactors) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in factors)


@dataclass(frozen=True)
class TokenFactorWork:
    """Token factors of some samples: the work of one shard."""

    function: TokenFactorFunction

    def __call__(self, examples: list[Example]) -> Arrays:
        """The arrays of a shard."""
        return join_factors(self.function._factors(examples))


def split_shards(shards: Shards) -> Iterator[TokenFactors]:
    """The token factors of each sample in turn."""
    return (factors for shard in shards for factors in joined_factors(shard).split())


def first_tokens(examples: Sequence[Example], most: int) -> list[Example]:
    """The first samples in the order of their keys, which are hashes, with about `most` response tokens in all."""
    ordered = sorted(examples, key=lambda example: example.key)
    before = np.cumsum([0, *(example.scored for example in ordered)])[:-1]
    return ordered[: int((before < most).sum())]
