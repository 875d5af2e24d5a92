"""LoRA fine-tuning as users do it: an adapter trained by trl's SFTTrainer, saved in the hub's format.

What is trained on are the token ids of `encode_examples`, with the loss on the responses, so that the training and the
test loss read a sample alike. trl's own tokens of `Selection.sft_dataset()` differ from them in one thing: whatever a
chat template prints after the token that ends a response (a line break in most), which is never generated, and which
trl trains on.

While it is trained, an adapter's folder holds a folder of the trainer's checkpoints, one per epoch that takes a while
and one every few minutes. Each is sealed by checksums when it is complete, and a killed training resumes from the last
sound one with the same bytes in the end. The model is loaded once for any number of trainings, which leave it as it
was.

Phases (Pang et al. 2024) train one adapter on several sets of rows in turn, each with a learning rate schedule and a
state of Adam of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from nncift.errors import ConfigError, DependencyError, ModelError, RunError
from nncift.models.batching import in_memory
from nncift.models.language_model import LanguageModel
from nncift.models.onednn import onednn_linears
from nncift.models.spec import ModelSpec
from nncift.models.text.chats import Style
from nncift.models.text.examples import Example, encode_examples
from nncift.models.text.tokenization import Tokenization
from nncift.run.progress import drawn
from nncift.run.storage.checksums import PARTIAL
from nncift.run.storage.files import atomic_write, fingerprint, read_json, remove, write_json
from nncift.training.isolation import silent, trackers, unchanged, writing
from nncift.training.lora import CONFIG, WEIGHTS, adapted, adapter_weights, save_adapter
from nncift.training.model_card import base_name, model_card
from nncift.training.settings import FineTuning

if TYPE_CHECKING:
    from datasets import Dataset

PASS = 4  # samples per pass on the CPU, at most; on CUDA those of a step, halved when memory runs out
RECORD = "training.json"  # written first
_CARD, _WORK = "README.md", f"{PARTIAL}training"
_SECONDS = 20.0, 600.0  # between two checkpoints, at least and at most


def training_wording(model: ModelSpec, wording: Style | None = None) -> Style:
    """How samples are rendered for a training and its test loss: as given, else "chat" where there is a template."""
    return wording or model.wording or ("chat" if model.tokenization.has_chat_template else "plain")


def fine_tune(
    model: ModelSpec,
    rows: Dataset,
    settings: FineTuning,
    folder: Path,
    *,
    wording: Style | None = None,
    weights: np.ndarray | None = None,
    phases: Sequence[np.ndarray] | None = None,
    progress: bool = False,
) -> Path:
    """Train an adapter on all the rows; the model is the same afterwards as before.

    Args:
        model: the base model; "8bit" and "4bit" weights (QLoRA) train on CUDA.
        rows: n samples, in the columns of `load_pool`.
        settings: the settings.
        folder: for the adapter (`adapter_config.json`, `adapter_model.safetensors`), its model card and
            `training.json`. A finished training is returned at once, a killed one resumed.
        wording: as of `training_wording`.
        weights: of each sample's loss, (n,), none below 0; scaled to a mean of 1.
        phases: row numbers of each phase; the adapter is trained on them in turn, with `epochs` epochs each. Together
            they have the steps of one training on all rows, or one more per phase and epoch for a last, smaller step.
        progress: show a progress bar.

    Returns:
        The folder.

    Raises:
        ConfigError: there are no rows, weights or phases do not fit them, or the model cannot be trained as it is.
        DataError: a response has no tokens.
        DependencyError: trl or a tracker of `report_to` is not installed.
        ModelError: the model has no such layers, or a pass does not fit into memory.
        RunError: the folder holds another training, or cannot be written.
    """
    if not len(rows):
        raise ConfigError("there are no samples to train on", "give some rows")
    weights = _normalised(weights, len(rows))
    parts = _checked(phases, len(rows))
    wording = training_wording(model, wording)
    examples = encode_examples(_tokenization(model, settings.max_length), rows, wording=wording, cut_responses=True)
    record = _record(model, wording, examples, settings, weights, parts)
    if not _is_finished(folder, record):
        _check_installed()
        _check_device(model.loaded)
        write_json(folder / RECORD, record)
        size = _pass_size(model, settings)
        tuning = _Tuning(model.loaded, examples, weights, settings, folder, size, progress)
        tuning.run(parts, record)
    if not (folder / _CARD).exists():
        _write_card(folder, record)
    remove(folder / _WORK)
    return folder


def is_trained(folder: Path) -> bool:
    """Whether a training's folder has all its files; repair removes damaged ones."""
    return all((folder / name).exists() for name in (RECORD, _CARD, CONFIG, WEIGHTS))


def _pass_size(model: ModelSpec, settings: FineTuning) -> int:
    """Samples per pass, at most; changes the order of summation alone."""
    most = settings.batch_size if model.loaded.device.type == "cuda" else PASS
    return min(model.batch_size or most, settings.batch_size)


def _check_device(model: LanguageModel) -> None:
    device, precision = model.device, model.precision
    if device.type == "cuda" and device.index:
        problem = f"trl trains on the first GPU alone, and {model.name!r} is on {str(device)!r}"
        raise ConfigError(problem, f"set CUDA_VISIBLE_DEVICES={device.index}, and give `device` cuda")
    if device.type == "cuda" or precision in ("float32", "bfloat16") or (device.type, precision) == ("mps", "float16"):
        return
    problem = f"{model.name!r} cannot be trained on {device.type!r} with `dtype` {precision}"
    raise ConfigError(problem, "take float32, or a GPU with CUDA")


def _check_installed() -> None:
    try:
        with silent():
            import trl  # noqa: F401
    except ImportError as error:
        raise DependencyError("fine-tuning needs the package trl", "pip install 'nncift[proof]'") from error


def _normalised(weights: np.ndarray | None, n: int) -> np.ndarray | None:
    """The weights with a mean of 1, (n,) float64."""
    if weights is None:
        return None
    weights = np.asarray(weights, np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ConfigError("`weights` cannot be used", f"give {n} numbers, none below 0 and not all of them 0")
    scaled: np.ndarray = weights / weights.mean()
    return scaled


def _checked(phases: Sequence[np.ndarray] | None, n: int) -> list[np.ndarray]:
    """The row numbers of each phase; one of all rows unless given."""
    if phases is None:
        return [np.arange(n)]
    parts = [np.asarray(part, np.int64) for part in phases]
    if not parts or any(part.ndim != 1 or not len(part) or part.min() < 0 or part.max() >= n for part in parts):
        raise ConfigError("`phases` cannot be used", f"give row numbers from 0 to {n - 1}, at least one for each phase")
    return parts


def _tokenization(model: ModelSpec, max_length: int | None) -> Tokenization:
    """The model's, with a shorter context on request; loads no weights."""
    found = copy.copy(model.tokenization)
    found.context_length = min(found.context_length, max_length or found.context_length)
    return found


def _record(
    model: ModelSpec,
    wording: Style,
    examples: Sequence[Example],
    settings: FineTuning,
    weights: np.ndarray | None,
    parts: Sequence[np.ndarray],
) -> dict[str, Any]:
    """The content of `training.json`."""
    found = {
        "model": base_name(model),
        **({} if model.files is None else {"files": model.files}),
        "dtype": model.describe()["dtype"],
        "wording": wording,
        "rows": len(examples),
        "tokens": sum(len(example.ids) for example in examples),
        "response_tokens": sum(example.scored for example in examples),
        "steps": sum(settings.steps(len(part)) for part in parts),
        "weighted": weights is not None,
        "phases": [len(part) for part in parts],
        "settings": settings.describe(),
    }
    data = [example.key for example in examples], None if weights is None else weights.tolist()
    numbers = [part.tolist() for part in parts]
    return found | {"fingerprint": fingerprint(model.name, found["dtype"], found["settings"], *data, numbers)}


def _is_finished(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether the folder holds this training, complete; a RunError if it holds another one."""
    if (folder / RECORD).exists():
        stored = read_json(folder / RECORD)
        if stored.get("fingerprint") != record["fingerprint"]:
            problem = f"{folder} holds the training of other rows or settings"
            raise RunError(problem, "choose another folder, or remove it")
        if len({stored.get("files"), record.get("files")} - {None}) > 1:  # an earlier version kept none
            problem = f"{folder} holds a training of {record['model']!r} with other files than it has now"
            raise RunError(problem, "restore them, choose another folder, or remove it")
        return (folder / CONFIG).exists() and (folder / WEIGHTS).exists()
    if (folder / WEIGHTS).exists():
        raise RunError(f"{folder} holds another adapter", "choose another folder")
    return False


def _write_card(folder: Path, record: Mapping[str, Any]) -> None:
    with atomic_write(folder / _CARD) as temporary:
        temporary.write_text(model_card(record), encoding="utf-8")


@dataclass
class _Tuning:
    """One training."""

    model: LanguageModel
    examples: Sequence[Example]
    weights: np.ndarray | None
    settings: FineTuning
    folder: Path
    pass_size: int
    progress: bool
    recompute: bool = field(init=False)  # activations in the backward pass, for a fraction of the memory

    def __post_init__(self) -> None:
        self.recompute = self.model.device.type == "mps"

    def run(self, parts: Sequence[np.ndarray], record: dict[str, Any]) -> None:
        """Train the phases that are not finished, and save the adapter."""
        done = [self._phase(k) for k in range(len(parts) - 1) if (self._phase(k) / WEIGHTS).exists()]
        before, total = (self.settings.epochs * sum(map(len, some)) for some in (parts[: len(done)], parts))
        bar = tqdm(total=total, initial=before, desc="fine-tuning", unit=" samples", **drawn(self.progress))
        source = done[-1] if done else self.settings.lora
        with bar, unchanged(self.model), adapted(self.model, source, trainable=True) as adapter:
            adapter.peft_config["default"].base_model_name_or_path = None  # else each save looks for it on the hub
            for k in range(len(done), len(parts)):
                self._train(adapter, k, parts[k], bar)
                if k < len(parts) - 1:
                    with atomic_write(self._phase(k)) as temporary:
                        temporary.mkdir()
                        save_adapter(temporary, adapter)
            _write_card(self.folder, record)
            save_adapter(self.folder, adapter, base_model_name_or_path=record["model"], inference_mode=True)

    def _phase(self, k: int) -> Path:
        """The adapter after phase k."""
        return self.folder / _WORK / f"phase-{k}"

    def _train(self, adapter: Any, k: int, part: np.ndarray, bar: tqdm) -> None:
        """Train phase k, on these rows, from its last checkpoint on."""
        from nncift.training.sft_trainer import LoraTrainer, Watch, last_checkpoint, sft_arguments, tokenized

        output = self.folder / _WORK / f"checkpoints-{k}"
        rows = tokenized([self.examples[j] for j in part], None if self.weights is None else self.weights[part])
        watch = Watch(bar, len(part), self.settings.batch_size, seconds=_SECONDS)
        initial = {name: weight.detach().clone() for name, weight in adapter_weights(self.model).items()}

        def attempt() -> bool:
            checkpoint = last_checkpoint(output)
            with torch.no_grad():
                for name, weight in adapter_weights(self.model).items():
                    weight.copy_(initial[name])
            with silent(), writing(output), onednn_linears(self.model.model):
                options = {"model": adapter, "train_dataset": rows, "callbacks": [watch]}
                with trackers(self.settings.report_to, self.folder / "runs"):
                    sizes = len(part), output, k, self.pass_size
                    arguments = sft_arguments(self.model, self.settings, *sizes, recompute=self.recompute)
                    trainer = LoraTrainer(self.model, self.settings.batch_size, args=arguments, **options)
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            return True

        while in_memory(attempt) is None:
            self._save_memory()
        remove(output)

    def _save_memory(self) -> None:
        """After a pass that did not fit, compute activations anew on CUDA (a third more work), then halve passes."""
        if not self.recompute and self.model.device.type == "cuda":
            self.recompute = True
        elif self.pass_size > 1:
            self.pass_size //= 2
        else:
            fix = "lower `max_length`, use `dtype` 4bit, or take a smaller model"
            raise ModelError(f"{self.model.name!r} ran out of memory while it was trained on one sample", fix)
