"""Samples as a language model reads them: the turns of a chat, its tools, and the turns that are trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nncift.data.chats.messages import SYSTEM_ROLES, content_text, exchange, transcript
from nncift.data.rows import json_text
from nncift.data.schemas import chat_messages

if TYPE_CHECKING:
    from datasets import Dataset

Style = Literal["auto", "chat", "plain"]
Turn = dict[str, Any]

_CHUNK = 1024  # samples
_CALLS = ("tool_calls", "function_call")


@dataclass(frozen=True)
class Conversation:
    """One sample.

    Attributes:
        id: of its row.
        prompt, response: plain text; the prompt is all that precedes the response, tools and system prompt too.
        turns: of a chat, up to and including the response; None for a sample that is no chat.
        tools: their JSON schemas, as chat templates take them.
        trained: indices into `turns` of the assistant turns that are trained on, ascending, the response's last.
    """

    id: str
    prompt: str
    response: str
    turns: list[Turn] | None = None
    tools: list[Any] | None = None
    trained: tuple[int, ...] = ()

    @classmethod
    def read(
        cls,
        id: str,
        prompt: str,
        response: str,
        messages: str | None = None,
        tools: str | None = None,
        turns: Sequence[int] | None = None,
    ) -> Conversation:
        """From the columns of a pool (`load_pool`)."""
        if not messages:
            return cls(id, prompt, response)
        chat = chat_messages(messages)
        last = len(chat) - 1
        trained = sorted({*(turns or ()), last})
        return cls(id, prompt, response, chat, json.loads(tools) if tools else None, tuple(trained))

    @property
    def parts(self) -> list[Conversation]:
        """A sample for each turn that is trained on: the conversation up to it, with the turn as the response."""
        if self.turns is None or len(self.trained) < 2:
            return [self]
        earlier = [self.turns[: end + 1] for end in self.trained[:-1]]
        texts = [(plain_text(turns[:-1], self.tools), message_text(turns[-1])) for turns in earlier]
        parts = zip(texts, earlier, strict=True)
        return [*(replace(self, prompt=p, response=r, turns=turns, trained=()) for (p, r), turns in parts), self]

    @property
    def as_chat(self) -> list[Turn]:
        """Its turns; of a sample that is no chat, a user's and an assistant's."""
        return exchange(self.prompt, self.response) if self.turns is None else self.turns


def plain_text(turns: Sequence[Turn], tools: list[Any] | None = None) -> str:
    """Turns as a transcript; a single request of the user as it is."""
    return transcript(list(turns), [message_text(turn) for turn in turns], json_text(tools) if tools else None)


def message_text(turn: Turn) -> str:
    """A turn as plain text: its content, then its tool calls as JSON."""
    has_text = turn.get("content") is not None or any(turn.get(key) for key in _CALLS)
    return content_text(turn, "messages", 0) if has_text else ""


def with_tools(turns: Sequence[Turn], tools: list[Any] | None) -> list[Turn]:
    """The turns with the tools as text in the system message, for templates that do not take tools."""
    if not tools:
        return list(turns)
    text = f"Tools:\n{json_text(tools)}"
    if turns and turns[0]["role"] in SYSTEM_ROLES:
        first = {**turns[0], "content": "\n\n".join(filter(None, [message_text(turns[0]), text]))}
        return [first, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def with_calls_as_text(turn: Turn) -> Turn:
    """A turn with its tool calls as part of its text, for templates that do not render them."""
    if not any(turn.get(key) for key in _CALLS):
        return turn
    rest = {key: value for key, value in turn.items() if key not in _CALLS}
    return {**rest, "content": message_text(turn)}


def with_arguments_read(turn: Turn) -> Turn:
    """A turn whose tool calls have their arguments as an object, as templates take them, not as JSON in a string."""
    if not isinstance(calls := turn.get("tool_calls"), list):
        return turn
    return {**turn, "tool_calls": [_with_arguments_read(call) for call in calls]}


def _with_arguments_read(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(text := function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(text)
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def conversations(rows: Dataset) -> list[Conversation]:
    """The samples of a dataset; it need not have the columns of chats."""
    optional = (rows[name] if name in rows.column_names else [None] * len(rows) for name in _COLUMNS[3:])
    columns = zip(*(rows[name] for name in _COLUMNS[:3]), *optional, strict=True)
    return [Conversation.read(*values) for values in columns]


_COLUMNS = ("id", "prompt", "response", "messages", "tools", "turns")


def any_chat(*datasets: Dataset) -> bool:
    """Whether any sample comes from a chat."""
    chats = (rows.select_columns("messages") for rows in datasets if "messages" in rows.column_names)
    columns = (rows.with_format("arrow")[:]["messages"] for rows in chats)
    return any(column.null_count < len(column) for column in columns)


def any_turns(*datasets: Dataset) -> bool:
    """Whether any sample has turns besides its response that are trained on."""
    import pyarrow.compute as pc

    chats = (rows.select_columns("turns") for rows in datasets if "turns" in rows.column_names)
    columns = (rows.with_format("arrow")[:]["turns"] for rows in chats)
    return any((pc.max(pc.list_value_length(c)).as_py() or 0) > 1 for c in columns if c.null_count < len(c))


def trained_texts(rows: Dataset) -> list[list[tuple[str, str]]]:
    """For each sample, prompt and response of each turn that is trained on: all that precedes it, and the turn."""
    if not len(rows):
        return []
    if not any_turns(rows):
        return [[texts] for texts in zip(rows["prompt"], rows["response"], strict=True)]
    return [[(part.prompt, part.response) for part in sample.parts] for sample in conversations(rows)]


def mean_over_turns(samples: Sequence[Sized], values: np.ndarray) -> np.ndarray:
    """For each sample, a list of its turns, the mean (n, ...) of values (all turns in order, ...), in their dtype."""
    counts = np.array([len(turns) for turns in samples], dtype=np.int64)
    if (counts == 1).all():
        return values
    sums = np.add.reduceat(values, np.cumsum(counts) - counts, axis=0)
    return np.asarray(sums / counts.reshape(-1, *[1] * (values.ndim - 1)), dtype=values.dtype)


def chunks(rows: Dataset) -> Iterator[Dataset]:
    """The rows, some at a time."""
    for start in range(0, len(rows), _CHUNK):
        yield rows.select(range(start, min(start + _CHUNK, len(rows))))
