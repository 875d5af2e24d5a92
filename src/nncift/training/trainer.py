"""LoRA fine-tuning that keeps, after every epoch, the adapter and Adam's moments: what LESS looks at.

Every epoch is one unit of work with random numbers of its own (order of the samples, dropout), so a killed run
goes on after the last finished epoch and ends with the same bytes. The loss is the mean over samples of the mean
over a response's tokens, as in LESS, where a batch is gathered from single samples. An `Observer` may look on from
inside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from nncift.errors import ConfigError, ModelError, RunError
from nncift.models.examples import Example, response_losses
from nncift.models.language_model import LanguageModel
from nncift.models.loading import out_of_memory
from nncift.models.onednn import frozen_linears
from nncift.run.files import fingerprint
from nncift.training.checkpoints import Checkpoint, read_checkpoint, read_moments, save_checkpoint
from nncift.training.lora import Lora, adapted, adapter_weights, forked_random

BETAS, EPSILON = (0.9, 0.999), 1e-8
PASS = 8  # samples per pass, at most
_FEWEST_SAMPLES = 32


@dataclass(frozen=True)
class Training:
    """How an adapter is trained; the defaults are LESS's warm-up.

    Attributes:
        lora: the adapter.
        fraction: share of the samples that is trained on, though no fewer than 32 where there are that many.
        epochs: times that each of them is seen.
        learning_rate: its peak. It rises over the first steps, then falls to zero in a straight line.
        rising: share of the steps in which it rises.
        batch_size: samples per step; fewer where an epoch would have less than `fewest_steps`, down to one.
        fewest_steps: of an epoch, for small pools.
        clip: longest gradient.
        seed: of the choice of samples, their order, and dropout.
    """

    lora: Lora = field(default_factory=Lora)
    fraction: float = 0.05
    epochs: int = 4
    learning_rate: float = 2e-5
    rising: float = 0.03
    batch_size: int = 128
    fewest_steps: int = 16
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("fewest_steps", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)} is too small", f"give at least {least}")
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                f"fraction {self.fraction} is no share of the samples", "give a number above 0, at most 1"
            )
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} {getattr(self, name)} cannot be used", "give a number above 0")
        if not 0 <= self.rising <= 1:
            raise ConfigError(f"rising {self.rising} is no share of the steps", "give a number from 0 to 1")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed} is too small", "give at least 0")


def choose_samples(n: int, training: Training) -> np.ndarray:
    """Which of n samples are trained on, sorted indices, int64."""
    count = min(max(round(training.fraction * n), _FEWEST_SAMPLES), n)
    return np.sort(np.random.default_rng([training.seed, 0]).permutation(n)[:count])


def samples_per_step(n: int, training: Training) -> int:
    """How many of n samples make a step, or one fewer where they do not divide evenly."""
    return min(training.batch_size, max(n // training.fewest_steps, 1))


def steps_per_epoch(n: int, training: Training) -> int:
    """How many steps it takes to see each of n samples once."""
    return math.ceil(n / samples_per_step(n, training))


@dataclass(frozen=True)
class Step:
    """A step that is about to be done.

    Attributes:
        number: from 0, over all epochs.
        rate: its learning rate.
        samples: how many it is the mean over.
        second_moments: Adam's so far, without bias correction, of each of the adapter's weights, (out, in), by the
            names of `adapter_layers`; nothing before the first step.
    """

    number: int
    rate: float
    samples: int
    second_moments: Mapping[str, torch.Tensor]


class Observer(Protocol):
    """Looks on from inside a training, which ends with the same weights as without it."""

    identity: str
    """What it looks for; a folder in which another one looked is refused."""

    def before_step(self, model: LanguageModel, step: Step) -> None:
        """Called at the weights that the step starts from, with dropout on and no gradients yet; leaves all so."""
        ...

    def during_pass(self, numbers: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        """Entered around the forward and backward pass of these examples of the step.

        What goes back is the gradient of the sum of their losses, divided by the step's number of samples.
        """
        ...

    def after_epoch(self) -> Mapping[str, np.ndarray]:
        """Arrays that the epoch's checkpoint is to hold as `NAME.npy`; the next epoch starts afresh."""
        ...


def fine_tune(
    model: LanguageModel,
    examples: Sequence[Example],
    training: Training,
    folder: Path,
    *,
    observer: Observer | None = None,
    pass_size: int = PASS,
    progress: bool = False,
) -> list[Checkpoint]:
    """Train an adapter on all the examples; the model itself stays as it is.

    Args:
        model: what the adapter is trained on.
        examples: n samples.
        training: how.
        folder: holds `epoch-1`, `epoch-2`, ... when done; those that are there already are not trained again.
        observer: looks on; not at the epochs that are there already.
        pass_size: samples that go through the model together. It changes no more than the order of sums, and so the
            last bits.
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
    looked_for = [] if observer is None else [observer.identity]
    keys = sorted(example.key for example in examples)
    identity = fingerprint(model.name, model.precision, dataclasses.asdict(training), keys, *looked_for)
    places = [folder / f"epoch-{epoch}" for epoch in range(1, training.epochs + 1)]
    finished = [read_checkpoint(place) for place in takewhile(Path.exists, places)]
    if any(checkpoint.state.get("fingerprint") != identity for checkpoint in finished):
        raise RunError(f"{folder} holds the training of other samples or settings", "choose another --output")
    if len(finished) < len(places):
        source = finished[-1].folder if finished else training.lora
        with adapted(model, source, trainable=True) as adapter:
            model.model.train()
            try:
                with frozen_linears(model.model):
                    loop = _Loop(model, examples, training, observer, pass_size, progress=progress)
                    loop.run(adapter, places, len(finished), identity)
            finally:
                model.model.eval()
    return [read_checkpoint(place) for place in places]


class _Loop:
    """The steps of a training, at the adapter that is on the model."""

    def __init__(
        self,
        model: LanguageModel,
        examples: Sequence[Example],
        training: Training,
        observer: Observer | None,
        pass_size: int,
        *,
        progress: bool,
    ) -> None:
        self.model, self.examples, self.training, self.observer = model, examples, training, observer
        self.pass_size, self.progress = pass_size, progress
        self.steps = steps_per_epoch(len(examples), training)
        self.weights = adapter_weights(model)
        self.optimizer = torch.optim.AdamW(self.weights.values(), betas=BETAS, eps=EPSILON, weight_decay=0.0)

    def run(self, adapter: Any, places: Sequence[Path], finished: int, identity: str) -> None:
        """Train the epochs that are not finished, and write a checkpoint after each."""
        if finished:
            self._restore(places[finished - 1], finished * self.steps)
        for epoch in range(finished, self.training.epochs):
            numbers = range(epoch * self.steps, (epoch + 1) * self.steps)
            with forked_random(self.model, self.training.seed, 1, epoch):
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
            arrays = {} if self.observer is None else self.observer.after_epoch()
            save_checkpoint(places[epoch], adapter, self._moments(), state, arrays)

    def _rate(self, step: int) -> float:
        """Learning rate of a step: up from zero, down to zero, and at neither."""
        steps = self.training.epochs * self.steps
        rising = math.ceil(self.training.rising * steps)
        return self.training.learning_rate * min((step + 1) / (rising + 1), (steps - step) / max(steps - rising, 1))

    def _epoch(self, epoch: int, numbers: range) -> float:
        """One pass over the examples in steps of these numbers; the mean loss."""
        order = np.random.default_rng([self.training.seed, 1, epoch]).permutation(len(self.examples))
        parts = np.array_split(order, self.steps)
        total = 0.0
        for number, part in zip(
            numbers, tqdm(parts, desc=f"training, epoch {epoch + 1}", disable=not self.progress), strict=True
        ):
            total += self._step(number, sorted(part.tolist(), key=lambda k: len(self.examples[k].ids)))
        return total / len(self.examples)

    def _step(self, number: int, batch: Sequence[int]) -> float:
        """A step of Adam for these examples; the sum of their losses."""
        rate = self._rate(number)
        if self.observer is not None:
            second = {name: moments[1] for name, moments in self._moments().items()}
            with _memory(self.model, "what looks on"):
                self.observer.before_step(self.model, Step(number, rate, len(batch), second))
        total = 0.0
        for start in range(0, len(batch), self.pass_size):
            total += self._backward(batch[start : start + self.pass_size], len(batch))
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self.training.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def _backward(self, numbers: Sequence[int], batch_size: int) -> float:
        """Add some examples' share of the batch's gradient; the sum of their losses."""
        examples = [self.examples[k] for k in numbers]
        around = contextlib.nullcontext() if self.observer is None else self.observer.during_pass(numbers)
        with _memory(self.model, f"{len(numbers)} samples"), around:
            loss = response_losses(self.model, examples).sum()
            (loss / batch_size).backward()  # type: ignore[no-untyped-call]
        self.model.backward_tokens += sum(len(example.ids) - 1 for example in examples)
        return float(loss.detach())

    def _moments(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Adam's moments of each weight; nothing before the first step."""
        states = {name: self.optimizer.state[weight] for name, weight in self.weights.items() if self.optimizer.state}
        return {name: (state["exp_avg"], state["exp_avg_sq"]) for name, state in states.items()}

    def _restore(self, folder: Path, steps: int) -> None:
        """Put the optimizer where it was when the checkpoint was written."""
        stored = read_moments(folder, {name: tuple(weight.shape) for name, weight in self.weights.items()})
        for name, weight in self.weights.items():
            first, second = (moment.to(weight.device) for moment in stored[name])
            state = {"step": torch.tensor(float(steps)), "exp_avg": first, "exp_avg_sq": second}
            self.optimizer.state[weight] = state


@contextlib.contextmanager
def _memory(model: LanguageModel, what: str) -> Iterator[None]:
    """Say what to do when memory runs out inside the block."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ModelError(
            f"{model.name!r} ran out of memory while training on {what}",
            "lower --max-length, use --dtype bfloat16, or take a smaller model",
        ) from error
