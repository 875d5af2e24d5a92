"""ms-swift: JSON Lines of messages for `--dataset`, checked against version 4.6.0.

Each assistant's message says in `loss` whether it has one, and in `loss_scale` with which weight: a sample is one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nncift.data.chats.messages import SYSTEM_ROLES
from nncift.handover.chats import TrainingChat
from nncift.handover.trainers import Trainer, console, marked_messages, tools_text

_ROLES = {**dict.fromkeys(SYSTEM_ROLES, "system"), "function": "tool"}


class MsSwift(Trainer):
    """Data for `swift sft`."""

    title = "ms-swift"
    version = "4.6.0"
    weighted = True

    def __init__(self) -> None:
        self._weights = False

    def _rows(self, chat: TrainingChat) -> Iterator[dict[str, Any]]:
        """One row."""
        messages = marked_messages(chat, "loss")
        for message in messages:
            message["role"] = _ROLES.get(message["role"], message["role"])
            if chat.weight is not None and message.get("loss"):
                message["loss_scale"] = chat.weight
                self._weights = True
        yield {"id": chat.id, "messages": messages, **tools_text(chat)}

    def usage(self, files: list[str]) -> list[str]:
        """How to train."""
        option = " --is_binary_loss_scale false" if self._weights else ""
        commands = [f"swift sft --model MODEL --dataset {file}{option}" for file in files]
        why = ["Without `--is_binary_loss_scale false`, weights count as 1."] if self._weights else []
        return ["In this folder:", console(commands), *why]
