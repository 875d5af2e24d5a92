"""axolotl: JSON Lines of messages and a YAML file with the `datasets` section, checked against version 0.19.0.

Each assistant's message says in `train` whether it has a loss (`message_field_training`), so that a sample is one row.
axolotl has no weights of samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nncift.data.chats.messages import SYSTEM_ROLES
from nncift.handover.chats import TrainingChat
from nncift.handover.trainers import Trainer, config_names, console, in_ticks, marked_messages, tools_text, write_yaml


class Axolotl(Trainer):
    """Data for `axolotl train`."""

    title = "axolotl"
    version = "0.19.0"
    weighted = False

    def _rows(self, chat: TrainingChat) -> Iterator[dict[str, Any]]:
        """One row."""
        messages = marked_messages(chat, "train")
        for message in messages:  # its loss is on roles that it knows
            message["role"] = _role(message["role"])
        yield {"id": chat.id, "messages": messages, **tools_text(chat)}

    def write_config(self, folder: Path, files: list[str]) -> None:
        """axolotl.yaml, or one for each phase."""
        write_yaml(folder, "axolotl", files, _options)

    def usage(self, files: list[str]) -> list[str]:
        """How to train."""
        names = config_names("axolotl", files)
        return [
            f"Add the model's options (`base_model`, `adapter`, `output_dir`, ...) to {in_ticks(names)}, then in this"
            " folder:",
            console([f"axolotl train {name}" for name in names]),
        ]


def _options(file: str) -> dict[str, Any]:
    """Of a data file."""
    data = {
        "path": file,
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "message_field_training": "train",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }
    return {"datasets": [data], "chat_template": "tokenizer_default", "train_on_inputs": False}


def _role(role: str) -> str:
    if role in SYSTEM_ROLES:
        return "system"
    return "tool" if role == "function" else role
