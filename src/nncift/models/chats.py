"""Samples as a language model reads them: the turns of a chat, its tools, and the turns that are trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from nncift.data.rows import json_text
from nncift.data.schemas import chat_messages, message_text, transcript

if TYPE_CHECKING:
    from datasets import Dataset

Style = Literal["auto", "chat", "plain"]
Turn = dict[str, Any]

_CHUNK = 1024  # samples
_SYSTEM = ("system", "developer")
_CALLS = ("tool_calls", "function_call")


@dataclass(frozen=True)
class Conversation:
    """One sample.

    Attributes:
        id: of its row.
        prompt, response: plain text.
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
        prompt: str,
        response: str,
        messages: str | None = None,
        tools: str | None = None,
        turns: Sequence[int] | None = None,
        id: str = "",
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
        earlier = (self.turns[: end + 1] for end in self.trained[:-1])
        return [*(replace(self, response=message_text(turns[-1]), turns=turns, trained=()) for turns in earlier), self]

    @property
    def as_chat(self) -> list[Turn]:
        """Its turns; of a sample that is no chat, a user's and an assistant's."""
        return exchange(self.prompt, self.response) if self.turns is None else self.turns

    @property
    def plain_prompt(self) -> str:
        """All that precedes the response, as plain text: tools and system prompt too."""
        return self.prompt if self.turns is None else plain_text(with_tools(self.turns[:-1], self.tools))


    @property
    def setting(self) -> list[str]:
        """The texts of a chat that its `prompt` lacks: the system prompt's, and the tools."""
        if self.turns is None:
            return []
        texts = [message_text(turn) for turn in self.turns if turn["role"] in _SYSTEM]
        missing = [text for text in texts if text and text not in self.prompt]
        return [*missing, json_text(self.tools)] if self.tools else missing


def exchange(prompt: str, answer: str) -> list[Turn]:
    """A user's turn and an assistant's."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def plain_text(turns: Sequence[Turn]) -> str:
    """Turns as a transcript; a system prompt and a single request of the user as two paragraphs."""
    first = next((k for k, turn in enumerate(turns) if turn["role"] not in _SYSTEM), len(turns))
    if len(turns) - first == 1 and turns[first]["role"] == "user":
        return "\n\n".join(filter(None, map(message_text, turns)))
    return transcript(list(turns))


def with_tools(turns: Sequence[Turn], tools: list[Any] | None) -> list[Turn]:
    """The turns with the tools as text in the system message, for templates that do not take tools."""
    if not tools:
        return list(turns)
    text = f"Tools:\n{json_text(tools)}"
    if turns and turns[0]["role"] in _SYSTEM:
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
    return [Conversation.read(*values, id=name) for name, *values in columns]


_COLUMNS = ("id", "prompt", "response", "messages", "tools", "turns")


def any_chat(*datasets: Dataset) -> bool:
    """Whether any sample comes from a chat."""
    chats = (rows.select_columns("messages") for rows in datasets if "messages" in rows.column_names)
    columns = (rows.with_format("arrow")[:]["messages"] for rows in chats)
    return any(column.null_count < len(column) for column in columns)


def chunks(rows: Dataset) -> Iterator[Dataset]:
    """The rows, some at a time."""
    for start in range(0, len(rows), _CHUNK):
        yield rows.select(range(start, min(start + _CHUNK, len(rows))))
