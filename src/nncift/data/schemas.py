"""From a row's fields to a prompt, a response and, for a chat, its messages.

A schema is detected from the fields of the first good row, and every other row must follow it. The table is ordered: a
row that fits several schemas is read by the first, so a full chat takes precedence over its excerpt in other columns.

Text is not stripped. Values of other types are not converted: a number in a response field is more often a class label
or a score than an answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from nncift.data.rows import json_text, kind

Values = Mapping[str, Any]


class BadRow(Exception):
    """A row that cannot be used: field and reason."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


class Text(NamedTuple):
    """The texts of a row.

    The prompt of a chat is the user's text if it is the only turn before the response, else a transcript ("User: ...",
    "Assistant: ..."); its response is the last assistant turn.
    """

    prompt: str
    response: str
    messages: str | None = None  # of a chat, as JSON, up to the response, unchanged but for OpenAI's role names


@dataclass(frozen=True)
class Schema:
    """The fields of prompt and response in a row."""

    name: str  # for users
    fields: tuple[str, ...]  # required, the response's last
    read: Callable[[Values], Text]  # from a row's values to its texts; raises BadRow
    optional: tuple[str, ...] = ()  # fields used if present
    chats: bool = False  # whether each field is a list of messages: distinguishes two schemas with the same fields

    def fits(self, values: Values) -> bool:
        """Whether a row has these fields."""
        return all(field in values and (not self.chats or isinstance(values[field], list)) for field in self.fields)


def schemas_for(prompt_field: str, response_field: str) -> tuple[Schema, ...]:
    """The schemas of user-given fields: lists of messages, or text."""
    name = f"{prompt_field}/{response_field}"
    return _messages_pair(name, prompt_field, response_field), _pair(name, prompt_field, response_field)


# --- text ----------------------------------------------------------------------------------------------


def _value(values: Values, field: str, wanted: type, what: str) -> Any:
    value = values.get(field)
    if isinstance(value, wanted):
        return value
    if field not in values:
        raise BadRow(field, "missing")
    raise BadRow(field, "null" if value is None else f"{kind(value)}, not {what}")


def _filled(field: str, text: str) -> str:
    if not text or text.isspace():
        raise BadRow(field, "empty")
    return text


def _pair(name: str, prompt_field: str, response_field: str, *, optional: str | None = None) -> Schema:
    """A schema of text fields; the optional one, unless blank, follows the prompt after an empty line."""

    def read(values: Values) -> Text:
        prompt = _value(values, prompt_field, str, "text")
        if optional is not None and values.get(optional) is not None:
            parts = (prompt, _value(values, optional, str, "text"))
            if not parts[1].isspace():
                prompt = "\n\n".join(filter(None, parts))
        response = _value(values, response_field, str, "text")
        return Text(_filled(prompt_field, prompt), _filled(response_field, response))

    return Schema(name, (prompt_field, response_field), read, (optional,) if optional else ())


# --- chats ---------------------------------------------------------------------------------------------

_OPENAI_ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool", "function")}
_SHAREGPT_ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response", "observation"), "tool"),
}


def _turns(values: Values, field: str) -> list[dict[str, Any]]:
    """The turns in a field, also from JSON text, as in CSV and some Parquet files."""
    value = values.get(field)
    if isinstance(value, str):
        try:
            values = {field: json.loads(value)}
        except (ValueError, RecursionError) as error:
            raise BadRow(field, "text that is not a JSON list of messages") from error
    turns: list[dict[str, Any]] = _value(values, field, list, "a list of messages")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise BadRow(f"{field}[{i}]", f"{kind(turn)}, not a message")
    return turns


def _role(turn: Values, key: str, where: str, roles: Mapping[str, str]) -> str:
    role: str = _value({f"{where}.{key}": turn[key]} if key in turn else {}, f"{where}.{key}", str, "a role")
    if role not in roles:
        raise BadRow(f"{where}.{key}", f"unknown role {role[:40]!r}")
    return roles[role]


def _openai(values: Values, field: str) -> list[dict[str, Any]]:
    """Messages with OpenAI's roles, unchanged."""
    messages = _turns(values, field)
    for i, message in enumerate(messages):
        _role(message, "role", f"{field}[{i}]", _OPENAI_ROLES)
    return messages


def _read_messages(values: Values) -> Text:
    return _chat(_openai(values, "messages"), "messages")


def _read_conversations(values: Values) -> Text:
    messages = []
    for i, turn in enumerate(_turns(values, "conversations")):
        names, words = ("from", "value") if "from" in turn else ("role", "content")
        role = _role(turn, names, f"conversations[{i}]", _SHAREGPT_ROLES)
        rest = {key: value for key, value in turn.items() if key not in (names, words)}
        content = {"content": turn[words]} if words in turn else {}
        messages.append({"role": role, **content, **rest})
    return _chat(messages, "conversations")


def _messages_pair(name: str, prompt_field: str, response_field: str) -> Schema:
    """TRL's conversational format: the messages of the prompt in one field, those of the response in another."""

    def read(values: Values) -> Text:
        prompt, response = _openai(values, prompt_field), _openai(values, response_field)
        if not any(message["role"] == "assistant" for message in response):
            raise BadRow(response_field, "no assistant turn")
        return _chat(prompt + response, f"{prompt_field}+{response_field}")

    return Schema(f"{name} (messages)", (prompt_field, response_field), read, chats=True)


def _chat(messages: list[dict[str, Any]], field: str) -> Text:
    """The last assistant turn is the response, the turns before it the prompt; later turns are dropped."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        raise BadRow(field, "no assistant turn")
    texts = [_content(message, f"{field}[{i}]") for i, message in enumerate(messages[: last + 1])]
    response = _filled(f"{field}[{last}]", texts[last])
    prompt = _transcript(messages[:last], texts[:last])
    if not prompt or prompt.isspace():
        raise BadRow(field, "nothing precedes the assistant's last turn")
    return Text(prompt, response, json_text(messages[: last + 1]))


def _transcript(messages: list[dict[str, Any]], texts: list[str]) -> str:
    turns = [i for i, message in enumerate(messages) if message["role"] not in ("system", "developer")]
    if len(turns) == 1 and messages[turns[0]]["role"] == "user":
        return texts[turns[0]]
    if not any(text.strip() for text in texts):
        return ""
    return "\n".join(f"{m['role'].capitalize()}: {text}" for m, text in zip(messages, texts, strict=True))


def _content(message: Values, where: str) -> str:
    """A message as plain text: its content, then its tool calls as JSON."""
    calls = message.get("tool_calls") or message.get("function_call")
    content = message.get("content")
    if calls and content is None:
        return json_text(calls)
    if isinstance(content, list):
        content = _joined(content, where)
    if not isinstance(content, str):
        raise BadRow(where, "no content" if content is None else f"content is {kind(content)}, not text")
    return f"{content}\n{json_text(calls)}".lstrip() if calls else content


def _joined(parts: list[Any], where: str) -> str:
    for part in parts:
        if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            what = f"of type {str(part.get('type'))[:40]!r}" if isinstance(part, dict) else f"that is {kind(part)}"
            raise BadRow(where, f"content has a part {what}, not text")
    return "".join(part["text"] for part in parts)


def transcript(messages: list[dict[str, Any]], texts: list[str], tools: str | None) -> str:
    """The turns before a response as one text: the user's alone if nothing else precedes the response."""
    heard = [i for i, text in enumerate(texts) if messages[i]["role"] not in ("system", "developer") or text.strip()]
    if len(heard) == 1 and tools is None and messages[heard[0]]["role"] == "user":
        return texts[heard[0]]
    lines = [f"{message['role'].capitalize()}: {text}" for message, text in zip(messages, texts, strict=True)]
    if tools is not None:
        start = next((i for i, m in enumerate(messages) if m["role"] not in ("system", "developer")), len(lines))
        lines.insert(start, f"Tools: {tools}")
    return "\n".join(lines)


def chat_messages(messages: str) -> list[dict[str, Any]]:
    """One row's `messages` column in the form that chat templates expect.

    Content in parts is joined, since templates of text models would print the list; null keys are dropped, since
    templates test for a key's presence and Parquet gives every message every key.
    """
    return [
        {
            key: _joined(value, key) if key == "content" and isinstance(value, list) else value
            for key, value in message.items()
            if value is not None or key == "content"
        }
        for message in json.loads(messages)
    ]


SCHEMAS = (
    Schema("messages", ("messages",), _read_messages),
    Schema("ShareGPT", ("conversations",), _read_conversations),
    _messages_pair("prompt/completion", "prompt", "completion"),
    _pair("Alpaca", "instruction", "output", optional="input"),
    _pair("Dolly", "instruction", "response", optional="context"),
    _pair("prompt/response", "prompt", "response"),
    _pair("prompt/completion", "prompt", "completion"),
    _pair("question/answer", "question", "answer"),
)
