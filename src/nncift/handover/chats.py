"""The selected samples as trainers take them: messages, tools, and which turns have a loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nncift.data.chats.messages import exchange
from nncift.models.text.chats import conversations
from nncift.selection.selection import Selection

_BATCH = 1000


@dataclass(frozen=True)
class TrainingChat:
    """One selected sample.

    Attributes:
        id: of its row.
        messages: of role and content, which is text; what else the data's messages have is kept.
        trained: indices of the assistant's messages with a loss, ascending; those that follow a message.
        tools: their JSON schemas; None without any.
        weight: in the loss; None where the run has none.
    """

    id: str
    messages: list[dict[str, Any]]
    trained: list[int]
    tools: list[Any] | None = None
    weight: float | None = None

    def parts(self) -> Iterator[TrainingChat]:
        """One chat for each trained message, which is its last one."""
        for place in self.trained:
            yield TrainingChat(self.id, self.messages[: place + 1], [place], self.tools, self.weight)


def training_chats(selection: Selection) -> Iterator[TrainingChat]:
    """The samples of a selection with its pool, in its order; one without a message to train on is left out."""
    assert selection.pool is not None
    weights = selection.weights
    for start in range(0, len(selection), _BATCH):
        places = np.arange(start, min(start + _BATCH, len(selection)))
        rows = conversations(selection.pool.select(selection.indices[places]))
        for place, row in zip(places, rows, strict=True):
            if row.turns is None:
                messages, trained = exchange(row.prompt, row.response), [1]
            else:
                messages = [{**turn, "content": turn.get("content") or ""} for turn in row.turns]
                trained = [turn for turn in row.trained if turn > 0]  # a greeting answers no prompt
            if trained:
                weight = None if weights is None else float(weights[place])
                yield TrainingChat(row.id, messages, trained, row.tools, weight)
