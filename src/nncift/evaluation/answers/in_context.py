"""In-context learning: the chosen rows most similar to a test item stand before it as demonstrations.

Similarity is the cosine of the sentence embeddings of the prompts; the most similar demonstration comes last, next to
the question. In a chat template a demonstration is an earlier exchange, in plain text a block of its own. As many stand
before an item as the context has room for beside its answer; the least similar are dropped first.

Five demonstrations of 150 tokens before each of 150 items are 110,000 tokens, minutes on a CPU; so the loss of the
reference and the answer share one pass of the prompt (`generation`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nncift.data.chats.messages import SYSTEM_ROLES, exchange
from nncift.errors import ConfigError, DataError
from nncift.evaluation.answers.items import Items, encoded
from nncift.models.encoder import embed_texts
from nncift.models.spec import EncoderSpec
from nncift.models.text.chats import Conversation, Turn, conversations
from nncift.models.text.examples import Example
from nncift.models.text.prompts import PLAIN
from nncift.models.text.tokenization import Tokenization

if TYPE_CHECKING:
    from datasets import Dataset

Render = Callable[[Tokenization, Conversation, Example, Sequence[Conversation]], Example]


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """The demonstrations of each of n items.

    Attributes:
        samples: the chosen rows.
        nearest: (n, k) int64, indices into `samples`, the most similar first.
    """

    samples: tuple[Conversation, ...]
    nearest: np.ndarray

    @classmethod
    def choose(cls, items: Items, chosen: Dataset, encoder: EncoderSpec, *, k: int = 5) -> Demonstrations:
        """The k chosen rows with the most similar prompts; all of them where there are fewer.

        Raises:
            ConfigError: k is less than 1, or no rows are chosen.
            ModelError: the encoder cannot be loaded.
        """
        if k < 1 or not len(chosen):
            raise ConfigError(
                f"in-context learning with {k} of {len(chosen)} rows has no demonstrations", "give at least 1 of both"
            )
        samples = tuple(conversations(chosen))
        embeddings = embed_texts([*items.prompts, *(sample.prompt for sample in samples)], encoder)
        return cls(samples, most_similar(embeddings[: len(items)], embeddings[len(items) :], k))

    def before(self, items: Items, model: Tokenization, *, new_tokens: Sequence[int]) -> Items:
        """The items with their demonstrations in front.

        Args:
            items: n test items.
            model: the language model they were rendered for, or its tokenizer alone.
            new_tokens: of each item, for which the context keeps room, or for the reference where that is longer.

        Raises:
            ModelError: the chat template refuses the demonstrations.
        """
        if len(self.nearest) != len(items):
            raise ConfigError(f"there are {len(items)} test items, and demonstrations for {len(self.nearest)}")
        render: Render = _in_chat if items.wording == "chat" else _in_plain
        examples = []
        for sample, alone, nearest, room in zip(items.samples, items.examples, self.nearest, new_tokens, strict=True):
            shown = [self.samples[k] for k in reversed(nearest.tolist())]  # the most similar last
            examples.append(_fitting(model, sample, alone, shown, render, room))
        return replace(items, examples=tuple(examples))


def most_similar(queries: np.ndarray, keys: np.ndarray, k: int) -> np.ndarray:
    """The k keys of the largest cosine with each query, (n, k) int64, largest first, equal ones in their order.

    Args:
        queries: (n, d) float32, rows of length 1.
        keys: (m, d) likewise.
        k: number of keys, at most m.
    """
    cosines = queries.astype(np.float64) @ keys.astype(np.float64).T
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k].astype(np.int64)


def _fitting(
    model: Tokenization, sample: Conversation, alone: Example, shown: Sequence[Conversation], render: Render, room: int
) -> Example:
    """The item after as many demonstrations as leave room for the answer, from the last one on."""
    for first in range(len(shown)):
        try:
            example = render(model, sample, alone, shown[first:])
        except DataError:  # a demonstration exceeds the context by itself
            continue
        start, end = example.spans[-1]
        if not example.cut and start + max(room, end - start) <= model.context_length:
            return example
    return alone


def _in_plain(model: Tokenization, sample: Conversation, alone: Example, shown: Sequence[Conversation]) -> Example:
    """Blocks of request and response before the item's tokens."""
    blocks = [f"{PLAIN.replace('{prompt}', one.prompt)}{one.response}\n\n" for one in shown]
    before = [token for ids in model.encode(blocks) for token in ids]
    leading, moved = len(model.leading_ids), len(before)
    ids = [*alone.ids[:leading], *before, *alone.ids[leading:]]
    return replace(alone, ids=ids, spans=tuple((start + moved, end + moved) for start, end in alone.spans))


def _in_chat(model: Tokenization, sample: Conversation, alone: Example, shown: Sequence[Conversation]) -> Example:
    """Exchanges before the item's turns, after its system message."""
    turns, earlier = sample.as_chat, [turn for one in shown for turn in _exchanges(one)]
    system = int(bool(turns) and turns[0].get("role") in SYSTEM_ROLES)
    trained = tuple(place + len(earlier) for place in sample.trained or (len(turns) - 1,))
    together = replace(sample, turns=[*turns[:system], *earlier, *turns[system:]], trained=trained)
    return encoded(model, [together], "chat")[0]


def _exchanges(sample: Conversation) -> list[Turn]:
    """A demonstration as turns of user and assistant; one with tools as the text of an exchange, as templates take it.

    Its system message would stand in the middle of the conversation, where templates refuse it, and is left out.
    """
    turns = [turn for turn in sample.as_chat if turn.get("role") not in SYSTEM_ROLES]
    alternate = all(turn.get("role") == ("user", "assistant")[k % 2] for k, turn in enumerate(turns))
    plain = all(isinstance(turn.get("content"), str) and not turn.get("tool_calls") for turn in turns)
    return turns if alternate and plain and not sample.tools else exchange(sample.prompt, sample.response)
