"""LoRA fine-tuning that keeps, after every epoch, the adapter and Adam's moments, which LESS needs.

Every epoch is one unit of work with random numbers of its own (order of the samples, dropout), so a killed run resumes
after the last finished epoch and ends with the same bytes. The loss is the mean over samples of the mean over a
response's tokens, as in LESS, where a batch is gathered from single samples. A `TrainingCallback` has hooks before each
step, around each pass and after each epoch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nncift.errors import ConfigError, ModelError, RunError
from nncift.models.batching import LESS_MEMORY, out_of_memory
from nncift.models.language_model import LanguageModel
from nncift.models.onednn import onednn_linears
from nncift.models.text.examples import Example, response_losses
from nncift.run.progress import advance, drawn, moving
from nncift.run.storage.files import fingerprint
from nncift.training.checkpoints import Checkpoint, read_checkpoint, read_moments, save_checkpoint
from nncift.training.gradients import BETAS, EPSILON
from nncift.training.lora import Lora, adapted, adapter_weights, forked_random

PASS = 8  # samples per pass, at most
_MIN_SAMPLES = 32
_STORED = {"warmup_ratio": "rising", "min_steps_per_epoch": "fewest_steps", "max_grad_norm": "clip"}


@dataclass(frozen=True)
class Training:
    """How an adapter is trained; the defaults are LESS's warm-up."""

    lora: Lora = field(default_factory=Lora)
    fraction: float = 0.05  # share of the samples to train on, at least 32 samples where there are as many
    epochs: int = 4
    learning_rate: float = 2e-5  # peak; linear warm-up, then linear decay to 0
    warmup_ratio: float = 0.03  # fraction of steps with linear warm-up
    batch_size: int = 128  # samples per step, reduced to no less than 1 for `min_steps_per_epoch`
    min_steps_per_epoch: int = 16  # for small pools
    max_grad_norm: float = 1.0  # of a step, for clipping
    seed: int = 0  # of the choice of samples, their order, and dropout

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("min_steps_per_epoch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"`training.{name}` {getattr(self, name)} is too small", f"give at least {least}")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"`training.{name}` {getattr(self, name)} cannot be used", "give a number above 0")
        if not 0 < self.fraction <= 1:
            problem = f"`training.fraction` {self.fraction} is no fraction of the samples"
            raise ConfigError(problem, "give above 0, at most 1")
        if not 0 <= self.warmup_ratio <= 1:
            raise ConfigError(f"`training.warmup_ratio` {self.warmup_ratio} is no fraction of the steps", "give 0 to 1")

    def describe(self) -> dict[str, Any]:
        """The options as records store them, ready for JSON, under keys that renamed options keep."""
        options = {_STORED.get(name, name): value for name, value in dataclasses.asdict(self).items()}
        return json.loads(json.dumps(options))  # type: ignore[no-any-return]


def choose_samples(n: int, training: Training) -> np.ndarray:
    """Sorted indices of the samples to train on among n, int64."""
    count = min(max(round(training.fraction * n), _MIN_SAMPLES), n)
    return np.sort(np.random.default_rng([training.seed, 0]).permutation(n)[:count])


def samples_per_step(n: int, training: Training) -> int:
    """Samples of a step among n, or one fewer where they do not divide evenly."""
    return min(training.batch_size, max(n // training.min_steps_per_epoch, 1))


def steps_per_epoch(n: int, training: Training) -> int:
    """Steps of one pass over n samples."""
    return math.ceil(n / samples_per_step(n, training))


def schedule(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate of a step: linear over `warmup` steps, then linear decay, never 0 in a training."""
    return max(min((step + 1) / (warmup + 1), (steps - step) / max(steps - warmup, 1)), 0.0)


@dataclass(frozen=True)
class Step:
    """A step about to be taken."""

    number: int  # from 0, over all epochs
    rate: float  # learning rate
    samples: int  # size of the batch
    second_moments: Mapping[str, torch.Tensor]
    """Adam's, without bias correction, (out, in) by the names of `adapter_layers`; empty before the first step."""


class TrainingCallback:
    """Hooks inside a training, which ends with the same weights as without them."""

    identity: str = ""
    """Fingerprint of its results; a folder trained with another one is refused."""

    def before_step(self, model: LanguageModel, step: Step) -> None:
        """Called at the step's initial weights, with dropout on and no gradients yet; leaves all of these so."""

    def during_pass(self, numbers: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        """Entered around the forward and backward pass of these examples of the step.

        The loss of the backward pass is the sum of theirs, divided by the step's number of samples.
        """
        return contextlib.nullcontext()

    def after_epoch(self) -> Mapping[str, np.ndarray]:
        """Arrays for the epoch's checkpoint, stored as `NAME.npy`; the next epoch starts afresh."""
        return {}


def fine_tune(
    model: LanguageModel,
    examples: Sequence[Example],
    training: Training,
    folder: Path,
    *,
    callback: TrainingCallback | None = None,
    pass_size: int = PASS,
    progress: bool = False,
) -> list[Checkpoint]:
    """Train an adapter on all the examples; the model's own weights do not change.

    Args:
        model: the base model.
        examples: n samples.
        training: the options.
        folder: for `epoch-1`, `epoch-2`, ...; finished epochs are not trained again.
        callback: its hooks are called in the epochs that are trained now.
        pass_size: samples that go through the model together, at most; changes the order of summation alone.
        progress: show a progress bar.

    Returns:
        The checkpoints, one for each epoch.

    Raises:
        ConfigError: there are no examples.
        ModelError: the model has no such layers, or a batch does not fit into memory.
        RunError: the folder holds the training of other samples or settings.
    """
    if not examples:
        raise ConfigError("there are no samples to train on", "give a pool")
    callback = callback or TrainingCallback()
    keys = sorted(example.key for example in examples)
    identity = fingerprint(model.name, model.precision, training.describe(), keys, *filter(None, [callback.identity]))
    places = [folder / f"epoch-{epoch}" for epoch in range(1, training.epochs + 1)]
    finished = [read_checkpoint(place) for place in takewhile(Path.exists, places)]
    if any(checkpoint.state.get("fingerprint") != identity for checkpoint in finished):
        raise RunError(f"{folder} holds the training of other samples or settings", "choose another `output`")
    if len(finished) < len(places):
        source = finished[-1].folder if finished else training.lora
        with adapted(model, source, trainable=True) as adapter:
            model.model.train()
            try:
                with onednn_linears(model.model):
                    loop = _Loop(model, examples, training, callback, pass_size, progress)
                    loop.run(adapter, places, len(finished), identity)
            finally:
                model.model.eval()
    return [read_checkpoint(place) for place in places]


@dataclass
class _Loop:
    """The steps of a training with the adapter on the model."""

    model: LanguageModel
    examples: Sequence[Example]
    training: Training
    callback: TrainingCallback
    pass_size: int
    progress: bool

    def __post_init__(self) -> None:
        self.steps = steps_per_epoch(len(self.examples), self.training)
        self.lengths = [len(example.ids) - 1 for example in self.examples]
        self.scored = [example.scored for example in self.examples]
        self.weights = adapter_weights(self.model)
        self.optimizer = torch.optim.AdamW(self.weights.values(), betas=BETAS, eps=EPSILON, weight_decay=0.0)

    def run(self, adapter: Any, places: Sequence[Path], finished: int, identity: str) -> None:
        """Train the epochs that are not finished, and write a checkpoint after each."""
        if finished:
            self._restore(places[finished - 1], finished * self.steps)
        for epoch in range(finished, self.training.epochs):
            numbers = range(epoch * self.steps, (epoch + 1) * self.steps)
            with forked_random(self.training.seed, 1, epoch):
                loss = self._epoch(epoch, numbers)
            state = {
                "epoch": epoch + 1,
                "steps": numbers.stop,
                "learning_rate": float(np.mean([self._rate(number) for number in numbers])),
                "loss": loss,
                "samples": len(self.examples),
                "batch_size": samples_per_step(len(self.examples), self.training),
                "fingerprint": identity,
            }
            save_checkpoint(places[epoch], adapter, self._moments(), state, self.callback.after_epoch())

    def _rate(self, step: int) -> float:
        steps = self.training.epochs * self.steps
        return self.training.learning_rate * schedule(step, steps, math.ceil(self.training.warmup_ratio * steps))

    def _epoch(self, epoch: int, numbers: range) -> float:
        """One pass over the examples in steps of these numbers; the mean loss."""
        order = np.random.default_rng([self.training.seed, 1, epoch]).permutation(len(self.examples))
        total, parts = 0.0, np.array_split(order, self.steps)
        description = f"training, epoch {epoch + 1} of {self.training.epochs}"
        with tqdm(total=len(order), desc=description, unit=" samples", **drawn(self.progress)) as bar:
            for number, part in zip(numbers, parts, strict=True):
                with moving(bar, len(part)):
                    total += self._step(number, sorted(part.tolist(), key=lambda k: -self.lengths[k]))
        return total / len(self.examples)

    def _step(self, number: int, batch: Sequence[int]) -> float:
        """One step of Adam on these examples, longest first; the sum of their losses."""
        rate, since = self._rate(number), time.perf_counter()
        second = {name: moments[1] for name, moments in self._moments().items()}
        with _memory(self.model, "computing target gradients"):
            self.callback.before_step(self.model, Step(number, rate, len(batch), second))
        passes = self.model.batches(batch, self.lengths, self.scored, self.pass_size)
        total = sum(self._backward(numbers, len(batch)) for numbers in passes)
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self.training.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.training_seconds += time.perf_counter() - since
        return total

    def _backward(self, numbers: Sequence[int], batch_size: int) -> float:
        """Accumulate some examples' gradients; the sum of their losses."""
        examples = [self.examples[k] for k in numbers]
        with _memory(self.model, f"training on {len(numbers)} samples"), self.callback.during_pass(numbers):
            loss = response_losses(self.model, examples).sum()
            (loss / batch_size).backward()  # type: ignore[no-untyped-call]
        self.model.backward_tokens += sum(len(example.ids) - 1 for example in examples)
        advance(len(examples))
        return float(loss.detach())

    def _moments(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Adam's moments of each weight; empty before the first step."""
        states = {name: self.optimizer.state[weight] for name, weight in self.weights.items() if self.optimizer.state}
        return {name: (state["exp_avg"], state["exp_avg_sq"]) for name, state in states.items()}

    def _restore(self, folder: Path, steps: int) -> None:
        """Restore the optimizer's state from a checkpoint."""
        stored = read_moments(folder, {name: tuple(weight.shape) for name, weight in self.weights.items()})
        for name, weight in self.weights.items():
            first, second = (moment.to(weight.device) for moment in stored[name])
            self.optimizer.state[weight] = {"step": torch.tensor(float(steps)), "exp_avg": first, "exp_avg_sq": second}


@contextlib.contextmanager
def _memory(model: LanguageModel, work: str) -> Iterator[None]:
    """Turn running out of memory inside the block into an error that names the work."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ModelError(f"{model.name!r} ran out of memory while {work}", LESS_MEMORY) from error
