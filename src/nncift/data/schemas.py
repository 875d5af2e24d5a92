"""From a row's fields to a prompt, a response and, for a chat, its messages and tools.

The table is ordered: a row that fits several schemas is read by the first, so a full chat takes precedence over its
excerpt in other columns (`data.detection`).

Text is not stripped. Values of other types are not converted: a number in a response field is more often a class label
or a score than an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from nncift.data.chats.context import Context, is_filled
from nncift.data.chats.messages import (
    BadRow,
    Messages,
    UnknownSchema,
    Values,
    content_text,
    exchange,
    filled,
    joined_parts,
    read_messages,
    trained_turns,
    transcript,
    typed,
)
from nncift.data.chats.role_markers import is_between_turns, marked_messages
from nncift.data.rows import json_text
from nncift.errors import ConfigError


class Text(NamedTuple):
    """The texts of a row.

    The prompt of a chat is the user's text if nothing else precedes the response, else a transcript ("System: ...",
    "Tools: ...", "User: ...", "Assistant: ..."); its response is the last assistant turn that is trained on.
    """

    prompt: str
    response: str
    messages: str | None = None  # of a chat, as JSON, up to the response, unchanged but for the names of roles
    tools: str | None = None  # of a chat with tools, as JSON, in the form that chat templates expect
    turns: tuple[int, ...] | None = None  # of a chat, the messages that are trained on; None: the last


class _Turns(NamedTuple):
    """A chat before its response is looked for."""

    messages: Messages
    field: str  # for messages


@dataclass(frozen=True, eq=False)  # hashed by identity, for each row
class Schema:
    """The fields of prompt and response in a row."""

    name: str  # for users
    fields: tuple[str, ...]  # required, the response's last
    turns: Callable[[Values], Text | _Turns]  # from a row's values; raises BadRow
    optional: tuple[str, ...] = ()  # fields used if present
    kinds: tuple[type | tuple[type, ...], ...] = ()  # of the fields: distinguishes schemas with the same fields

    def fits(self, values: Values) -> bool:
        """Whether a row has something in each field; an optional field can stand in for a blank prompt."""
        for field in self.fields:
            value = values.get(field)
            if not is_filled(value) and not (isinstance(value, str) and self._stands_in(values, field)):
                return False
        return all(isinstance(values[field], kind) for field, kind in zip(self.fields, self.kinds, strict=False))

    def _stands_in(self, values: Values, field: str) -> bool:
        return field == self.fields[0] and any(is_filled(values.get(other)) for other in self.optional)

    def is_broken(self, values: Values, other: Schema) -> bool:
        """Whether a row that fits `other` is rather a broken row of this schema: it has some of its fields only."""
        there = [field for field in self.fields if is_filled(values.get(field))]
        used = (*other.fields, *other.optional)
        return len(there) < len(self.fields) and any(field not in used for field in there)

    def read(self, values: Values, context: Context | None = None) -> Text:
        """The texts of a row, after what precedes its turns.

        Raises:
            BadRow: it cannot be used.
        """
        read = self.turns(values)
        if isinstance(read, Text):
            if not context:
                return read
            return _chat(context.before(exchange(read.prompt, read.response)), self.fields[-1], context.tools)
        if not context:
            return _chat(read.messages, read.field)
        return _chat(context.before(read.messages), read.field, context.tools)


def schemas_for(prompt_field: str | None, response_field: str | None, messages_field: str | None) -> tuple[Schema, ...]:
    """The schemas of user-given fields: lists of messages, or text; none if no field is given.

    Raises:
        ConfigError: the fields do not go together.
    """
    if messages_field is not None:
        if prompt_field is not None or response_field is not None:
            raise ConfigError("`messages_field` has prompt and response, so the others are not needed", "give it alone")
        return (_chat_field(messages_field, messages_field, marked=True),)
    if prompt_field is None and response_field is None:
        return ()
    if prompt_field is None or response_field is None:
        raise ConfigError("`prompt_field` and `response_field` go together", "give both")
    if prompt_field == response_field:
        raise ConfigError(
            f"`prompt_field` and `response_field` are the same column {prompt_field!r}",
            "name two columns; for a column with whole chats, or a text with role markers, give `messages_field`",
        )
    name = f"{prompt_field}/{response_field}"
    return _messages_pair(name, prompt_field, response_field), _pair(name, prompt_field, response_field)


# --- text ----------------------------------------------------------------------------------------------


def _pair(name: str, prompt_field: str, response_field: str, *, optional: str | None = None) -> Schema:
    """A schema of text fields; the optional one, unless blank, follows the prompt after an empty line."""

    def read(values: Values) -> Text:
        get = values.get
        prompt, response = get(prompt_field), get(response_field)
        more = None if optional is None else get(optional)
        if not (type(prompt) is str is type(response) and (more is None or type(more) is str)):
            _check_text(values, prompt_field, response_field, *([] if more is None else [str(optional)]))
        if more and not more.isspace():
            prompt = f"{prompt}\n\n{more}" if prompt else more
        if not prompt or prompt.isspace():
            raise BadRow(prompt_field, "empty")
        if not response or response.isspace():
            raise BadRow(response_field, "empty")
        return Text(prompt, response)

    return Schema(name, (prompt_field, response_field), read, (optional,) if optional else ())


def _check_text(values: Values, *fields: str) -> None:
    for field in fields:
        typed(values, field, str, "text")


def _with_optional(values: Values, prompt_field: str, optional: str | None) -> str:
    prompt: str = typed(values, prompt_field, str, "text")
    if optional is None or values.get(optional) is None:
        return prompt
    more: str = typed(values, optional, str, "text")
    return "\n\n".join(filter(None, (prompt, more))) if not more.isspace() else prompt


def _marked_text(field: str) -> Schema:
    """A schema of one text with role markers."""
    return Schema("text", (field,), lambda values: _Turns(_marked(values, field), field), kinds=(str,))


def _marked(values: Values, field: str) -> Messages:
    text = typed(values, field, str, "text")
    messages = marked_messages(text)
    if messages is None:
        raise UnknownSchema(field, "text without role markers such as ### Human: and ### Assistant:")
    return messages


# --- chats ---------------------------------------------------------------------------------------------


def _chat_field(name: str, field: str, *, kinds: tuple[type, ...] = (), marked: bool = False) -> Schema:
    """A schema of one list of messages; also a text with role markers, if `marked`."""

    def read(values: Values) -> _Turns:
        return _listed_or_marked(values, field) if marked else _Turns(read_messages(values, field), field)

    return Schema(name, (field,), read, kinds=kinds)


def _listed_or_marked(values: Values, field: str) -> _Turns:
    """A chat as a list of messages, also in JSON text, or as text with role markers."""
    value = values.get(field)
    marked = isinstance(value, str) and not re.match(r"\s*\[(?!/?[A-Z_]+\])", value)  # [INST] is no list
    return _Turns(_marked(values, field) if marked else read_messages(values, field), field)


def _messages_pair(name: str, prompt_field: str, response_field: str) -> Schema:
    """TRL's conversational format: the messages of the prompt in one field, those of the response in another."""

    def read(values: Values) -> _Turns:
        prompt, response = read_messages(values, prompt_field), read_messages(values, response_field)
        if not any(message["role"] == "assistant" for message in response):
            raise BadRow(response_field, "no assistant turn")
        return _Turns(prompt + response, f"{prompt_field}+{response_field}")

    return Schema(f"{name} (messages)", (prompt_field, response_field), read, kinds=(list, list))


def _chat(messages: Messages, field: str, tools: str | None = None) -> Text:
    """The last assistant turn that is trained on is the response, the turns before it the prompt; the rest is dropped.

    Of the other turns that are trained on, those with nothing before them or nothing in them are not counted.
    """
    trained = trained_turns(messages, field)
    last = trained[-1]
    texts = [content_text(message, field, i) for i, message in enumerate(messages[: last + 1])]
    response = filled(f"{field}[{last}]", texts[last])
    prompt = transcript(messages[:last], texts[:last], tools)
    if not prompt or prompt.isspace():
        raise BadRow(field, "nothing precedes the assistant's last turn")
    if len(trained) > 1:
        first = next(i for i, text in enumerate(texts) if is_filled(text))
        trained = [i for i in trained if i > first and is_filled(texts[i])]
    return Text(prompt, response, json_text(messages[: last + 1]), tools, tuple(trained))


def chat_messages(messages: str) -> list[dict[str, Any]]:
    """One row's `messages` column in the form that chat templates expect.

    Content in parts is joined, since templates of text models would print the list; null keys are dropped, since
    templates test for a key's presence and Parquet gives every message every key.
    """
    return [
        {
            key: joined_parts(value, key) if key == "content" and isinstance(value, list) else value
            for key, value in message.items()
            if value is not None or key == "content"
        }
        for message in json.loads(messages)
    ]


# --- preferences: the chosen side ----------------------------------------------------------------------

_CHOSEN_KINDS = ((str, list), (str, list, dict))


def _chosen(prompt_field: str, *, optional: str | None = None) -> Schema:
    """The chosen response beside its prompt; either as text, or as messages, which may repeat the prompt."""

    def read(values: Values) -> Text | _Turns:
        prompt, chosen = values[prompt_field], values["chosen"]
        if isinstance(chosen, str):
            if isinstance(prompt, list):
                return _Turns([*read_messages(values, prompt_field), _answer(chosen)], "chosen")
            prompt = _with_optional(values, prompt_field, optional)
            if _repeated(prompt, chosen, values.get("rejected")):
                chosen = chosen.removeprefix(prompt)
            return Text(filled(prompt_field, prompt), filled("chosen", chosen))
        response = read_messages({"chosen": [chosen] if isinstance(chosen, dict) else chosen}, "chosen")
        if isinstance(prompt, list):
            before = read_messages(values, prompt_field)
            return _Turns(response if response[: len(before)] == before else before + response, "chosen")
        if any(message["role"] == "user" for message in response):
            return _Turns(response, "chosen")
        prompt = _with_optional(values, prompt_field, optional)
        return _Turns([{"role": "user", "content": prompt}, *response], "chosen")

    return Schema("preference", (prompt_field, "chosen"), read, (optional,) if optional else (), _CHOSEN_KINDS)


def _repeated(prompt: str, *responses: Any) -> bool:
    """Whether every response that is text repeats the prompt before it.

    An answer may begin with the words of a short prompt ("Hello", "Hello! How are you?"): the prompt must end where a
    turn can.
    """
    return all(
        text.startswith(prompt) and is_filled(text[len(prompt) :]) and is_between_turns(prompt, text[len(prompt) :])
        for text in responses
        if isinstance(text, str)
    )


def _answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _chosen_turn(field: str) -> Schema:
    """LLaMA-Factory's form: a chat without its response, and the chosen one as a message."""

    def read(values: Values) -> _Turns:
        return _Turns(read_messages(values, field) + read_messages({"chosen": [values["chosen"]]}, "chosen"), field)

    return Schema("preference", (field, "chosen"), read, kinds=(list, dict))


SCHEMAS = (
    _chosen_turn("messages"),
    _chosen_turn("conversations"),
    _chat_field("messages", "messages"),
    _chat_field("ShareGPT", "conversations"),
    _chat_field("conversation", "conversation", kinds=(list,)),
    _messages_pair("prompt/completion", "prompt", "completion"),
    _pair("Alpaca", "instruction", "output", optional="input"),
    _pair("Dolly", "instruction", "response", optional="context"),
    _pair("prompt/response", "prompt", "response"),
    _pair("prompt/completion", "prompt", "completion"),
    _pair("question/answer", "question", "answer", optional="context"),
    _pair("question/response", "question", "response"),
    _pair("query/response", "query", "response"),
    _pair("query/answer", "query", "answer"),
    _pair("query/answers", "query", "answers"),
    _pair("problem/solution", "problem", "solution"),
    _pair("problem/answer", "problem", "answer"),
    _pair("inputs/targets", "inputs", "targets"),
    _pair("user/assistant", "user", "assistant"),
    _pair("input/output", "input", "output"),
    _chosen("instruction", optional="input"),
    _chosen("prompt"),
    _chosen("question"),
    _chosen("query"),
    _chosen("input"),
    Schema("preference", ("chosen",), lambda values: _listed_or_marked(values, "chosen"), kinds=((str, list),)),
    _marked_text("text"),
)
