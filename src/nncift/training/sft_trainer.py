"""trl's SFTTrainer as `finetune` runs it: our token ids, little padding, weights of samples, sealed checkpoints.

trl's loss is the mean over the response tokens of a step. On the CPU trl puts every position through the output layer;
here only those that predict a response token go through it. And rows of a pass are read in batches of similar length,
since of eight random rows together almost half is padding. Both give the same loss. A step's samples with weights w
have the loss

    sum over samples of w * (sum over their response tokens of -log p) / number of response tokens of the step,

trl's own where every weight is 1. Without weights and on other devices the loss is computed by trl. Left out of what
trl does by itself: a model card in every checkpoint, and telemetry.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import Example
from nncift.run.progress import advance, already
from nncift.run.storage.checksums import content_hash
from nncift.run.storage.files import read_json, remove, write_json
from nncift.training.trainer import schedule

if TYPE_CHECKING:
    from nncift.training.settings import FineTuning

IGNORED = -100  # label of a token without loss
WEIGHT = "weight"
_SEAL = "seal.json"


def tokenized(examples: Sequence[Example], weights: np.ndarray | None = None) -> Dataset:
    """Examples in the columns that SFTTrainer makes of texts: `input_ids`, and `labels`, -100 outside the responses."""
    columns: dict[str, list[Any]] = {"input_ids": [example.ids for example in examples], "labels": []}
    for example in examples:
        labels = [IGNORED] * len(example.ids)
        for start, end in example.spans:
            labels[start:end] = example.ids[start:end]
        columns["labels"].append(labels)
    if weights is not None:
        columns[WEIGHT] = weights.tolist()
    return Dataset.from_dict(columns)


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `labels` and `attention_mask`, each (n, longest) int64, and `weight` (n,) float32."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }
    if WEIGHT in rows[0]:
        batch[WEIGHT] = torch.tensor([row[WEIGHT] for row in rows])
    return batch


class StepSampler(Sampler[int]):
    """Rows in random order, new in each epoch; those of a step by length, so that passes have little padding.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a step.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch, from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.lengths)).tolist()
        for start in range(0, len(order), self.batch_size):
            yield from sorted(order[start : start + self.batch_size], key=lambda row: self.lengths[row])

    def __len__(self) -> int:
        return len(self.lengths)


class LoraTrainer(SFTTrainer):  # type: ignore[misc]
    """An SFTTrainer of the adapter that is attached to a model.

    Args:
        language_model: the model; its counts of tokens grow.
        batch_size: rows of a step.
        options: of SFTTrainer.
    """

    def __init__(self, language_model: LanguageModel, batch_size: int, **options: Any) -> None:
        self.language_model, self.batch_size = language_model, batch_size
        super().__init__(data_collator=collate, processing_class=language_model.tokenizer, **options)
        self.processing_class = None  # else it is saved with every checkpoint
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> Any:
        """The rows in the order of `StepSampler`."""
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        sampler = StepSampler(lengths, self.batch_size, self.args.seed)
        size = self.args.per_device_train_batch_size
        loader: Any = DataLoader(
            self.train_dataset, size, sampler=sampler, collate_fn=self.data_collator, pin_memory=False
        )
        return self.accelerator.prepare(loader)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """`schedule`; transformers' own takes the first step, of the few that a small subset has, at a rate of 0."""
        self.lr_scheduler: Any
        if self.lr_scheduler is None:
            rate = partial(schedule, steps=num_training_steps, warmup=self.args.get_warmup_steps(num_training_steps))
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one pass; `num_items_in_batch` is the number of response tokens of the whole step."""
        tokens = int(inputs["attention_mask"].sum())
        self.language_model.backward_tokens += tokens - len(inputs["attention_mask"])
        on_cpu = self.language_model.device.type == "cpu" and not getattr(self, "aux_loss_enabled", False)
        if WEIGHT not in inputs and not on_cpu:
            self.language_model.forward_tokens += tokens
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        lengths = inputs["attention_mask"].sum(1).tolist()
        scored = (inputs["labels"][:, 1:] != IGNORED).sum(1).tolist()
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        parts = self.language_model.batches(order, lengths, scored, len(order))
        total = torch.stack([self._summed_losses(inputs, part) for part in parts]).sum()
        return total / (sum(scored) if num_items_in_batch is None else num_items_in_batch)

    def _summed_losses(self, inputs: dict[str, Any], part: list[int]) -> torch.Tensor:
        """The weighted losses of all response tokens of some rows of a pass, added up: a float32 scalar."""
        lengths, labels = inputs["attention_mask"][part].sum(1).tolist(), inputs["labels"][part]
        sequences = [ids[: length - 1].tolist() for ids, length in zip(inputs["input_ids"][part], lengths, strict=True)]
        rows, columns = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)
        with self.accelerator.autocast():
            logits = self.language_model.logits_at(sequences, rows, columns)
        losses = cross_entropy(logits.float(), labels[rows, columns + 1], reduction="none")
        if WEIGHT in inputs:
            losses = losses * inputs[WEIGHT][part][rows]
        return losses.sum()

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: `finetune` writes the card of the finished adapter."""

    def _send_telemetry(self) -> None:
        """Nothing: what is trained here is nobody's business."""


def sft_arguments(
    model: LanguageModel,
    settings: FineTuning,
    rows: int,
    output: Path,
    phase: int,
    pass_size: int,
    *,
    recompute: bool = False,
) -> SFTConfig:
    """The arguments of the trainer of a phase with so many rows, whose passes have at most `pass_size` samples.

    With `recompute` (gradient checkpointing) the backward pass computes activations anew in place of keeping them.
    """
    device, precision = model.device.type, model.precision
    sizes = range(1, min(pass_size, settings.batch_size) + 1)
    size = max(size for size in sizes if settings.batch_size % size == 0)
    arguments = SFTConfig(
        output_dir=str(output),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(settings.warmup_ratio * settings.steps(rows)),
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        per_device_train_batch_size=size,
        gradient_accumulation_steps=settings.batch_size // size,
        gradient_checkpointing=recompute,
        bf16=precision not in ("float32", "float16") and device != "mps",
        fp16=precision == "float16" and device == "cuda",
        use_cpu=device == "cpu",
        max_length=None,
        packing=False,
        completion_only_loss=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        save_strategy="no",  # of itself: `Watch` asks for checkpoints
        save_total_limit=2,
        logging_strategy="steps" if settings.report_to else "no",
        logging_steps=1,
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        seed=int(np.random.SeedSequence([settings.seed, phase]).generate_state(1)[0]),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # of several, the one that the model is on
    return arguments


class Watch(TrainerCallback):  # type: ignore[misc]
    """Moves the progress bar, asks for checkpoints at the ends of epochs and every few minutes, and seals them.

    Args:
        bar: one step for each sample and epoch.
        rows: samples of an epoch.
        batch_size: of them in a step.
        seconds: between two checkpoints: an epoch that ends sooner has none; after the longest time one is made.
    """

    def __init__(self, bar: tqdm, rows: int, batch_size: int, *, seconds: tuple[float, float]) -> None:
        self.bar, self.rows, self.batch_size = bar, rows, batch_size
        self.shortest, self.longest = seconds
        self._position, self._saved = 0, time.monotonic()

    def _moved(self, step: int) -> int:
        """Samples since the last call, the training now being at this step."""
        epochs, rest = divmod(step, -(-self.rows // self.batch_size))
        before, self._position = self._position, epochs * self.rows + rest * self.batch_size
        return self._position - before

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar to the step of the checkpoint."""
        already(self.bar, self._moved(state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar, and ask for a checkpoint where the last one is old."""
        samples = self._moved(state.global_step)
        self.bar.update(samples)
        advance(samples)
        if time.monotonic() - self._saved > self.longest:
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint, unless there is one a moment ago; the last epoch's is the adapter itself."""
        if time.monotonic() - self._saved >= self.shortest and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal the checkpoint."""
        seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        self._saved = time.monotonic()


def seal(checkpoint: Path) -> None:
    """Write the checksums of a checkpoint's files into it, last."""
    files = [path for path in sorted(checkpoint.iterdir()) if path.is_file() and path.name != _SEAL]
    write_json(checkpoint / _SEAL, {path.name: content_hash(path) for path in files})


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint of a trainer's output folder that is sealed and undamaged; None without.

    The others are removed, since the trainer would count them among those that it keeps.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    last = next((path for path in found if _is_sound(path)), None)
    for path in found:
        if path != last:
            remove(path)
    return last


def _is_sound(checkpoint: Path) -> bool:
    try:
        return all(content_hash(checkpoint / name) == known for name, known in read_json(checkpoint / _SEAL).items())
    except Exception:  # a file is missing, or the seal is damaged
        return False
