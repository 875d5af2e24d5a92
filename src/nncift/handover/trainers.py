"""What a trainer takes: the form of a row, the files beside the data, and how to start it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

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
        raise NotImplementedError

    def write_config(self, folder: Path, files: list[str]) -> None:
        """Write the files beside the data, of which there is one, or one for each phase in turn."""

    def usage(self, files: list[str]) -> list[str]:
        """How to start the training, as paragraphs of Markdown."""
        raise NotImplementedError


def config_names(name: str, files: list[str]) -> list[str]:
    """The names of the YAML files, one for each data file: NAME.yaml, or NAME-phase-1.yaml and so on."""
    return [f"{name}.yaml"] if len(files) == 1 else [f"{name}-{Path(file).stem}.yaml" for file in files]


def in_ticks(names: list[str]) -> str:
    """File names in a sentence of Markdown."""
    return ", ".join(f"`{name}`" for name in names)


def marked_messages(chat: TrainingChat, mark: str) -> list[dict[str, Any]]:
    """Messages of which each assistant's says in the key `mark` whether it is trained on."""
    messages = []
    for place, message in enumerate(chat.messages):
        marks = {mark: place in chat.trained} if message["role"] == "assistant" else {}
        messages.append({**_with_text_arguments(message), **marks})
    return messages


def tools_text(chat: TrainingChat) -> dict[str, str]:
    """The tools as a column of JSON text, where there are some.

    Arrow, which these trainers read the file with, would give every tool the keys of all others.
    """
    return {} if chat.tools is None else {"tools": json.dumps(chat.tools, ensure_ascii=False)}


def _with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """The arguments of tool calls as JSON text, as OpenAI's API has them; Arrow leaves text as it is."""
    if not isinstance(calls := message.get("tool_calls"), list):
        return message
    return {**message, "tool_calls": [_with_text(call) for call in calls]}


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or isinstance(arguments := function.get("arguments", {}), str):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(arguments, ensure_ascii=False)}}


def arguments_object(arguments: Any) -> Any:
    """Arguments of a tool call as an object; text that is no JSON stays text."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments or {}
    except ValueError:
        return arguments
