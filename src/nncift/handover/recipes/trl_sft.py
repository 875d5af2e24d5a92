"""Train on the samples that nncift selected, with trl's SFTTrainer.

python train.py --model_name_or_path MODEL --output_dir model --use_peft --num_train_epochs 2

All options of trl's SFTConfig and ModelConfig can be given; `--data FOLDER` where the data are not beside this file.
The loss is on the completions. Where rows have a `weight`, it multiplies their loss. The files phase-1.jsonl,
phase-2.jsonl, ... are trained on one after the other, each with a learning-rate schedule of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Json, List, Value
from torch.nn.functional import cross_entropy
from transformers.utils import is_torch_bf16_gpu_available
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

MESSAGES = List(Json())  # whose keys differ: Arrow would give every message the keys of all others
COLUMNS = {"prompt": MESSAGES, "completion": MESSAGES, "tools": MESSAGES, "weight": Value("float32")}


@dataclass
class DataArguments:
    """Where the data are."""

    data: str = field(default=str(Path(__file__).parent), metadata={"help": "The folder that nncift exported."})


def read(file: Path) -> Dataset:
    """The rows of a data file."""
    with open(file, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        row["tools"] = json.loads(row["tools"]) if row.get("tools") else None
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Dataset.from_dict(columns, features=Features({name: COLUMNS[name] for name in names}))


class WeightedTrainer(SFTTrainer):
    """An SFTTrainer whose loss multiplies that of each row by its `weight`; trl's own for rows without one."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._without_weights = self.data_collator
        self.data_collator = self._collated

    def _collated(self, rows: list[dict[str, Any]]) -> Any:
        batch = self._without_weights(rows)
        if "weight" in rows[0]:
            batch["weight"] = torch.tensor([row["weight"] for row in rows])
        return batch

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*{*self._signature_columns, "weight"}]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum over tokens of weight x loss, divided by the number of tokens of the step."""
        if "weight" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        weights, labels = inputs["weight"], inputs["labels"][:, 1:]
        others = {name: value for name, value in inputs.items() if name not in ("weight", "labels")}
        outputs = model(**others, use_cache=False)
        losses = cross_entropy(outputs.logits[:, :-1].float().transpose(1, 2), labels, reduction="none")  # -100 gives 0
        tokens = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
        loss = (losses * weights[:, None]).sum() / tokens
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def main() -> None:
    """Train, phase after phase, and save the model."""
    parser = TrlParser((DataArguments, SFTConfig, ModelConfig))
    if not is_torch_bf16_gpu_available():
        parser.set_defaults(bf16=False)  # trl's default, True, is refused without such a device
    data_arguments, training, model_arguments = parser.parse_args_and_config()
    folder = Path(data_arguments.data)
    files = sorted(folder.glob("phase-*.jsonl"), key=lambda file: int(file.stem.split("-")[1]))
    files = files or [folder / "train.jsonl"]
    model, adapter = model_arguments.model_name_or_path, get_peft_config(model_arguments)
    training.model_init_kwargs = {**_loading(model_arguments), **(training.model_init_kwargs or {})}
    for number, file in enumerate(files, 1):
        arguments = training
        if len(files) > 1:
            print(f"phase {number} of {len(files)}")
            arguments = replace(training, output_dir=str(Path(training.output_dir) / f"phase-{number}"))
        dataset = read(file)
        if "weight" in dataset.column_names and (arguments.packing or arguments.padding_free):
            raise SystemExit("rows with weights cannot be packed: leave --packing and --padding_free out")
        if not isinstance(model, str):
            arguments.model_init_kwargs = None
        trainer = WeightedTrainer(model, args=arguments, train_dataset=dataset, peft_config=adapter)
        trainer.train()
        model, adapter = trainer.model, None
    trainer.save_model(training.output_dir)


def _loading(arguments: ModelConfig) -> dict[str, Any]:
    """How the model is loaded."""
    options = {
        "revision": arguments.model_revision,
        "attn_implementation": arguments.attn_implementation,
        "dtype": arguments.dtype,
        "quantization_config": get_quantization_config(arguments),
    }
    return {name: value for name, value in options.items() if value is not None}


if __name__ == "__main__":
    main()
