"""Columns beside the turns that belong to a sample: the system message, earlier turns, and tools.

They are those that LLaMA-Factory, ms-swift, trl and OpenAI document: `system`; `history`, a list of (prompt, response);
`tools` or `functions`, a list or its JSON text. A column of one of these names that holds something else, such as a
list of tool names, is not used, and counted, so that the data summary can name it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NamedTuple

from nncift.data.chats.messages import (
    SYSTEM_ROLES,
    BadRow,
    Messages,
    Values,
    exchange,
    has_blank_system,
    read_messages,
    typed,
)
from nncift.data.rows import json_text

SYSTEM = ("system", "system_prompt")
HISTORY = ("history",)
TOOLS = ("tools", "functions")
CONTEXT = (*SYSTEM, *HISTORY, *TOOLS)


class Context(NamedTuple):
    """What precedes the turns of a row."""

    system: str | None = None
    history: tuple[dict[str, Any], ...] = ()
    tools: str | None = None  # JSON of a list, in the form that chat templates expect
    unused: tuple[str, ...] = ()  # columns of these names with something else

    def __bool__(self) -> bool:
        return bool(self.system or self.history or self.tools)

    def before(self, messages: Messages) -> Messages:
        """The messages of a row after its system message and its history; a blank own one yields to the column's."""
        if self.system and has_blank_system(messages):
            messages = messages[1:]
        own = bool(messages) and messages[0]["role"] in SYSTEM_ROLES
        start: Messages = messages[:1] if own else []
        if self.system and not own:
            start = [{"role": "system", "content": self.system}]
        return [*start, *self.history, *(messages[1:] if own else messages)]


def read_context(values: Values, fields: Collection[str]) -> Context | None:
    """The context in these fields of a row; None where they are empty."""
    found = [field for field in fields if is_filled(values.get(field))]
    if not found:
        return None
    system: str | None = None
    history: Messages = []
    tools: list[Any] | None = None
    unused = []
    for field in found:
        if field in SYSTEM:
            system = system or typed(values, field, str, "text")
        elif field in HISTORY:
            if (turns := _history(values[field], field)) is None:
                unused.append(field)
            history += turns or []
        elif (listed := _tools(values[field], field)) is None:
            unused.append(field)
        else:
            tools = (tools or []) + listed
    return Context(system, tuple(history), json_text(tools) if tools else None, tuple(unused))


def is_filled(value: Any) -> bool:
    """Whether a value is there: not null, NaN, blank text or an empty list."""
    if isinstance(value, str):
        return bool(value) and not value.isspace()
    if value is None:
        return False
    return bool(value) if isinstance(value, (list, tuple, dict)) else not (isinstance(value, float) and value != value)


def _parsed(value: Any, field: str) -> Any:
    """A value, of JSON text what it holds; other text as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow(field, f"invalid JSON ({error})") from error


def _history(value: Any, field: str) -> Messages | None:
    """Earlier turns, from pairs of texts or from messages; None if it is neither."""
    turns = _parsed(value, field)
    if not isinstance(turns, list):
        return None
    if all(isinstance(turn, dict) for turn in turns):
        return read_messages({field: turns}, field)
    messages: Messages = []
    for i, pair in enumerate(turns):
        if not isinstance(pair, (list, tuple)):
            return None
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise BadRow(f"{field}[{i}]", "not a pair of texts, prompt and response")
        messages += exchange(*pair)
    return messages


def _tools(value: Any, field: str) -> list[dict[str, Any]] | None:
    """Tools as chat templates expect them; None if the value is no list of tool definitions."""
    tools = _parsed(value, field)
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list):
        return None
    tools = [_parsed(tool, field) for tool in tools]
    if not all(isinstance(tool, dict) and ("name" in tool or "function" in tool or "type" in tool) for tool in tools):
        return None
    return [
        tool if "function" in tool or "name" not in tool else {"type": "function", "function": _without_nulls(tool)}
        for tool in tools
    ] or None


def _without_nulls(tool: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tool.items() if key != "type" and value is not None}
