"""What a trainer takes: the form of a row, the files beside the data, and how to start it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import yaml

from nncift.handover.chats import TrainingChat


class LeftOut(Exception):
    """A sample that a trainer's form cannot hold, with the reason."""


class Trainer:
    """The form of a trainer's data, an object for each export.

    Attributes:
        title: its name for readers.
        version: that the form was checked against, with its own loader.
        weighted: whether weights of samples reach its loss.
    """

    title: ClassVar[str]
    version: ClassVar[str]
    weighted: ClassVar[bool]

    def rows(self, chat: TrainingChat) -> Iterator[dict[str, Any]]:
        """A sample as rows of the data file, ready for JSON.

        Raises:
            LeftOut: the form cannot hold it.
        """
        yield from self._rows(replace(chat, messages=[_with_known_calls(message) for message in chat.messages]))

    def _rows(self, chat: TrainingChat) -> Iterator[dict[str, Any]]:
        """As `rows`, of a sample whose `tool_calls` are lists of objects with a name."""
        raise NotImplementedError

    def write_config(self, folder: Path, files: list[str]) -> None:
        """Write the files beside the data, of which there is one, or one for each phase in turn."""

    def usage(self, files: list[str]) -> list[str]:
        """How to start the training, as paragraphs of Markdown."""
        raise NotImplementedError


def config_names(name: str, files: list[str]) -> list[str]:
    """The names of the YAML files, one for each data file: NAME.yaml, or NAME-phase-1.yaml and so on."""
    return [f"{name}.yaml"] if len(files) == 1 else [f"{name}-{Path(file).stem}.yaml" for file in files]


def write_yaml(folder: Path, name: str, files: list[str], options: Callable[[str], dict[str, Any]]) -> None:
    """Write the YAML files of `config_names`, with the options for each data file."""
    for file, config in zip(files, config_names(name, files), strict=True):
        (folder / config).write_text(yaml.safe_dump(options(file), sort_keys=False), encoding="utf-8")


def console(commands: list[str]) -> str:
    """Commands as a block of Markdown."""
    return "```console\n" + "\n".join(commands) + "\n```"


def in_ticks(names: list[str]) -> str:
    """File names in a sentence of Markdown."""
    return ", ".join(f"`{name}`" for name in names)


def marked_messages(chat: TrainingChat, mark: str) -> list[dict[str, Any]]:
    """Messages of which each assistant's says in the key `mark` whether it is trained on."""
    messages = []
    for place, message in enumerate(chat.messages):
        marks = {mark: place in chat.trained} if message["role"] == "assistant" else {}
        messages.append({**with_arguments(message, arguments_text), **marks})
    return messages


def tools_text(chat: TrainingChat) -> dict[str, str]:
    """The tools as a column of JSON text, where there are some.

    Arrow, which these trainers read the file with, would give every tool the keys of all others.
    """
    return {} if chat.tools is None else {"tools": json.dumps(chat.tools, ensure_ascii=False)}


def _with_known_calls(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its tool calls, which may be JSON text or a single one, as a list, and its function call read.

    Raises:
        LeftOut: a call is no object with the name of a function.
    """
    read: dict[str, Any] = {}
    if "tool_calls" in message:
        calls = _parsed(message["tool_calls"]) or []
        calls = [_parsed(call) for call in (calls if isinstance(calls, list) else [calls])]
        for call in calls:
            _check_named(call.get("function", call) if isinstance(call, dict) else call)
        read["tool_calls"] = calls
    if "function_call" in message and (call := _parsed(message["function_call"])):
        _check_named(call)
        read["function_call"] = call
    left = {key: value for key, value in message.items() if key != "function_call" or value}
    return left | read


def _parsed(value: Any) -> Any:
    """What JSON text holds; other values, and text that is no JSON, as they are."""
    try:
        return json.loads(value) if isinstance(value, str) and value else value
    except (ValueError, RecursionError):
        return value


def _check_named(function: Any) -> None:
    if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or not name:
        raise LeftOut("a tool call is not an object with the name of a function")


def with_arguments(message: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The message with the arguments of its tool calls changed: by `arguments_text` or `arguments_object`."""
    if not isinstance(calls := message.get("tool_calls"), list):
        return message
    return {**message, "tool_calls": [_with_arguments(call, change) for call in calls]}


def _with_arguments(call: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    if not isinstance(function := call.get("function"), dict):
        return call
    return {**call, "function": {**function, "arguments": change(function.get("arguments", {}))}}


def arguments_text(arguments: Any) -> str:
    """Arguments of a tool call as JSON text, as OpenAI's API has them; Arrow leaves text as it is."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def arguments_object(arguments: Any) -> Any:
    """Arguments of a tool call as an object, as chat templates take them; text that is no JSON stays text."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments or {}
    except ValueError:
        return arguments
