"""Chats: from any usual notation of turns to OpenAI's messages, which turns are trained on, and their plain text.

A list of turns is read as role/content (OpenAI), from/value (ShareGPT), alternating texts (LIMA), or one object for
each exchange (human/assistant, input/output); also from JSON text, as in CSV files. OpenAI's messages stay unchanged
but for the names of roles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nncift.data.rows import json_text, kind

Values = Mapping[str, Any]
Messages = list[dict[str, Any]]

OPENAI_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SYSTEM_ROLES = ("system", "developer")
_USUAL_ROLES = frozenset(OPENAI_ROLES)
_ROLES = {role: role for role in OPENAI_ROLES} | {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "bard", "bing", "bot", "model", "ai", "function_call", "tool_call"), "assistant"
    ),
    **dict.fromkeys(("function_response", "tool_response", "observation", "ipython"), "tool"),
}
_SHAREGPT_ROLES = _ROLES | {"developer": "system", "function": "tool"}
_EXCHANGES = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("prompt", "response"))
_MARKS = frozenset(("weight", "train", "training", "loss"))  # of OpenAI and Mistral, axolotl (two), ms-swift
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_TEXT_PARTS = ("text", "input_text", "output_text")


class BadRow(Exception):
    """A row that cannot be used: field and reason."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


class UnknownSchema(BadRow):
    """A row whose fields or text are of no known form."""


class UndesiredRow(BadRow):
    """A row that is marked as not to be trained on."""


def typed(values: Values, field: str, wanted: type, what: str) -> Any:
    """The value of a field, which must be of this type."""
    value = values.get(field)
    if isinstance(value, wanted):
        return value
    if field not in values:
        raise BadRow(field, "missing")
    raise BadRow(field, "null" if value is None else f"{kind(value)}, not {what}")


def filled(field: str, text: str) -> str:
    """The text, which must not be blank."""
    if not text or text.isspace():
        raise BadRow(field, "empty")
    return text


def truth(value: Any, where: str) -> bool:
    """A mark as a truth value: also numbers and "true" or "false", as in CSV files."""
    if isinstance(value, (bool, int, float)) and value >= 0:
        return bool(value)
    if isinstance(value, str) and (known := _TRUTH.get(value.strip().lower())) is not None:
        return known
    raise BadRow(where, f"{value!r:.40} does not say whether to train on it: give true, false or a weight from 0")


# --- notations -----------------------------------------------------------------------------------------


def read_messages(values: Values, field: str) -> Messages:
    """The messages of a chat in a field."""
    turns = _turns(values, field)
    if turns and isinstance(turns[0], str):
        return _alternating(turns, field)
    messages: Messages = []
    rebuilt = field == "conversations"
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise BadRow(f"{field}[{i}]", f"{kind(turn)}, not a message")
        if not rebuilt and (role := turn.get("role")).__class__ is str and role in _USUAL_ROLES and "from" not in turn:
            messages.append(turn)
        else:
            messages += _exchange_in(turn) or [_message(turn, f"{field}[{i}]", rebuilt=rebuilt)]
    return messages


def _turns(values: Values, field: str) -> list[Any]:
    value = values.get(field)
    if isinstance(value, str):
        try:
            values = {field: json.loads(value)}
        except (ValueError, RecursionError) as error:
            raise BadRow(field, "text that is not a JSON list of messages") from error
    turns: list[Any] = typed(values, field, list, "a list of messages")
    return turns


def _alternating(turns: Sequence[Any], field: str) -> Messages:
    for i, turn in enumerate(turns):
        if not isinstance(turn, str):
            raise BadRow(f"{field}[{i}]", f"{kind(turn)} among texts that alternate between user and assistant")
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def _exchange_in(turn: Values) -> Messages | None:
    """Both turns of an exchange in one object."""
    if "role" in turn or "from" in turn:
        return None
    names = next((pair for pair in _EXCHANGES if all(isinstance(turn.get(name), str) for name in pair)), None)
    if names is None:
        return None
    system = turn.get("system")
    start: Messages = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    return [*start, *exchange(turn[names[0]], turn[names[1]])]


def exchange(prompt: str, response: str) -> Messages:
    """A user's message and an assistant's."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _message(turn: dict[str, Any], where: str, *, rebuilt: bool) -> dict[str, Any]:
    sharegpt = turn.get("from") is not None or ("from" in turn and "role" not in turn)
    names, words = ("from", "value") if sharegpt else ("role", "content")
    role: str = typed({f"{where}.{names}": turn[names]} if names in turn else {}, f"{where}.{names}", str, "a role")
    known = (_SHAREGPT_ROLES if sharegpt or rebuilt else _ROLES).get(role)
    if known is None:
        raise BadRow(f"{where}.{names}", f"unknown role {role[:40]!r} (known: {', '.join(_ROLES)})")
    if not (sharegpt or rebuilt):
        return turn if role == known else turn | {"role": known}
    other = {"role", "content"} if sharegpt else {"from", "value"}  # null, of a table with both notations
    dropped = {names, words, *(key for key in other if turn.get(key) is None)}
    content = {"content": turn[words]} if words in turn else {}
    return {"role": known, **content, **{key: value for key, value in turn.items() if key not in dropped}}


# --- which turns are trained on ------------------------------------------------------------------------


def trained_turns(messages: Messages, field: str) -> list[int]:
    """The indices of the assistant turns that are not marked as context only.

    Raises:
        BadRow: there is no assistant turn.
        UndesiredRow: none of them is trained on.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise BadRow(field, "no assistant turn")
    trained = [i for i in answers if _MARKS.isdisjoint(messages[i]) or _is_trained(messages[i], f"{field}[{i}]")]
    if not trained:
        raise UndesiredRow(field, "every assistant turn is marked as not to be trained on")
    return trained


def _is_trained(message: Values, where: str) -> bool:
    marks = [truth(message[name], f"{where}.{name}") for name in sorted(_MARKS) if message.get(name) is not None]
    return all(marks)


# --- plain text ----------------------------------------------------------------------------------------


def content_text(message: Values, field: str, i: int) -> str:
    """A message as plain text: its content, then its tool calls as JSON."""
    calls = message.get("tool_calls") or message.get("function_call")
    content = message.get("content")
    if isinstance(content, str) and not calls:
        return content
    where = f"{field}[{i}]"
    if calls and content is None:
        return json_text(calls)
    if isinstance(content, list):
        content = joined_parts(content, where)
    if not isinstance(content, str):
        raise BadRow(where, "no content" if content is None else f"content is {kind(content)}, not text")
    return f"{content}\n{json_text(calls)}".lstrip() if calls else content


def joined_parts(parts: Sequence[Any], where: str) -> str:
    """Content in parts as one text."""
    return "".join(_part(part, where) for part in parts)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise BadRow(where, f"content has {kind(part)} as a part, where a text is expected")
    name = part.get("type") or "text"
    if name not in _TEXT_PARTS:
        raise BadRow(where, f"content has a part of type {str(name)[:40]!r}; only text can be used")
    text = part.get("text")
    if not isinstance(text, str):
        raise BadRow(where, f"content has a text part with {kind(text)} as its text")
    return text


def has_blank_system(messages: Messages) -> bool:
    """Whether the first message is a system message without text."""
    if not messages or messages[0]["role"] not in SYSTEM_ROLES:
        return False
    content = messages[0].get("content")
    if isinstance(content, list) and all(isinstance(part, (str, dict)) for part in content):
        content = "".join(part if isinstance(part, str) else str(part.get("text", part)) for part in content)
    return content is None or (isinstance(content, str) and not content.strip())


def transcript(messages: Messages, texts: Sequence[str], tools: str | None) -> str:
    """The turns before a response as one text: the user's alone if nothing else precedes the response."""
    heard = [i for i, text in enumerate(texts) if messages[i]["role"] not in SYSTEM_ROLES or text.strip()]
    if len(heard) == 1 and tools is None and messages[heard[0]]["role"] == "user":
        return texts[heard[0]]
    if not any(text.strip() for text in texts):
        return ""
    lines = [f"{message['role'].capitalize()}: {text}" for message, text in zip(messages, texts, strict=True)]
    if tools is not None:
        start = next((i for i, m in enumerate(messages) if m["role"] not in SYSTEM_ROLES), len(lines))
        lines.insert(start, f"Tools: {tools}")
    return "\n".join(lines)
