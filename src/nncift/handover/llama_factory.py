"""LLaMA-Factory: a dataset in ShareGPT form with its entry in dataset_info.json, checked against version 0.9.5.

Its other form for chats, "openai", appends a line to every system prompt, so it is not used. Loss on the last message
alone is its option `mask_history`; a sample of several trained turns is therefore a row for each. It has no weights of
samples. What its conversion would skip with a warning is left out here with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nncift.data.chats.messages import SYSTEM_ROLES
from nncift.handover.chats import TrainingChat
from nncift.handover.trainers import LeftOut, Trainer, arguments_object, config_names, console, in_ticks, write_yaml
from nncift.run.storage.files import json_text

_TOOL_ROLES = ("tool", "function")
_ODD, _EVEN = ("human", "observation"), ("gpt", "function_call")  # which alternate


class LlamaFactory(Trainer):
    """Data for `llamafactory-cli train`."""

    title = "LLaMA-Factory"
    version = "0.9.5"
    weighted = False

    def _rows(self, chat: TrainingChat) -> Iterator[dict[str, Any]]:
        """A row for each trained message."""
        for part in chat.parts():
            system, turns = _split(part.messages)
            conversations = [_turn(message) for message in turns]
            if conversations[0]["from"] in _EVEN:
                raise LeftOut("its first turn is an assistant's, not a user's")
            for place, turn in enumerate(conversations):
                if turn["from"] not in (_ODD, _EVEN)[place % 2]:
                    raise LeftOut("its turns do not alternate between user, or tool, and assistant")
            tools = "" if part.tools is None else json.dumps(part.tools, ensure_ascii=False)
            yield {"id": part.id, "conversations": conversations, "system": system, "tools": tools}

    def write_config(self, folder: Path, files: list[str]) -> None:
        """dataset_info.json, and train.yaml, or one for each phase, with the options that belong to the data."""
        columns = {"messages": "conversations", "system": "system", "tools": "tools"}
        entries = {
            self.name_of(file): {"file_name": file, "formatting": "sharegpt", "columns": columns} for file in files
        }
        (folder / "dataset_info.json").write_text(json_text(entries), encoding="utf-8")
        write_yaml(folder, "train", files, self._options)

    def usage(self, files: list[str]) -> list[str]:
        """How to train."""
        names = config_names("train", files)
        return [
            f"Add the model's options to {in_ticks(names)} (`model_name_or_path`, `template`, `finetuning_type`,"
            " `output_dir`, ...), then in this folder:",
            console([f"llamafactory-cli train {name}" for name in names]),
            "`mask_history: true` is needed: each row is trained on its last message alone. Or copy the data and the"
            " entries of `dataset_info.json` into a `dataset_dir` of your own.",
        ]

    def _options(self, file: str) -> dict[str, Any]:
        return {"stage": "sft", "dataset_dir": ".", "dataset": self.name_of(file), "mask_history": True}

    @staticmethod
    def name_of(file: str) -> str:
        """The dataset's name in dataset_info.json."""
        return f"nncift_{Path(file).stem.replace('-', '_')}"


def _split(messages: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The system prompt, and the turns after it."""
    if messages[0]["role"] in SYSTEM_ROLES:
        return messages[0]["content"], messages[1:]
    return "", messages


def _turn(message: dict[str, Any]) -> dict[str, str]:
    role, content = message["role"], message["content"]
    if role in SYSTEM_ROLES:
        raise LeftOut("a system prompt stands after its beginning")
    if role in _TOOL_ROLES:
        return {"from": "observation", "value": content}
    calls = message.get("tool_calls") or (
        [{"function": message["function_call"]}] if "function_call" in message else []
    )
    if not calls:
        return {"from": "human" if role == "user" else "gpt", "value": content}
    if content.strip():
        raise LeftOut("an assistant's message has text beside its tool calls")
    functions = [call.get("function", call) for call in calls]
    named = [{"name": each["name"], "arguments": arguments_object(each.get("arguments"))} for each in functions]
    return {"from": "function_call", "value": json.dumps(named, ensure_ascii=False)}
