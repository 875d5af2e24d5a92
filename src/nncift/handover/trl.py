"""trl: prompts and completions for SFTTrainer, and the script that trains on them, checked against version 1.16.

The script needs trl alone. Its loss is on the completion, of which each row has one turn; a sample of several trained
turns is a row for each. It weights the samples where the run did, which trl by itself does not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nncift.handover.chats import TrainingChat
from nncift.handover.trainers import Trainer, arguments_object, console, tools_text, with_arguments

SCRIPT = Path(__file__).parent / "recipes" / "trl_sft.py"


class Trl(Trainer):
    """Data and a script for trl's SFTTrainer."""

    title = "trl"
    version = "1.16.0"
    weighted = True

    def _rows(self, chat: TrainingChat) -> Iterator[dict[str, Any]]:
        """A row for each trained message."""
        for part in chat.parts():
            messages = [with_arguments(message, arguments_object) for message in part.messages]
            weight = {} if part.weight is None else {"weight": part.weight}
            yield {"id": part.id, "prompt": messages[:-1], "completion": messages[-1:], **tools_text(part), **weight}

    def write_config(self, folder: Path, files: list[str]) -> None:
        """train.py."""
        shutil.copyfile(SCRIPT, folder / "train.py")

    def usage(self, files: list[str]) -> list[str]:
        """How to train."""
        return [
            "`train.py` trains on this folder's data with trl's SFTTrainer; its options are those of `SFTConfig`,"
            " `ModelConfig` (`--use_peft`, `--lora_r`, ...) and `--data`:",
            console(["pip install trl peft", "python train.py --model_name_or_path MODEL --output_dir model"]),
            "The loss is on the completions. Weights of samples count, and phases are trained one after the other.",
        ]
