"""LoRA fine-tuning that keeps, after every epoch, the adapter and Adam's moments: what LESS looks at.

Every epoch is one unit of work with random numbers of its own (order of the samples, dropout), so a killed run
goes on after the last finished epoch and ends with the same bytes. The loss is the mean over samples of the mean
over a response's tokens, as in LESS, where a batch is gathered from single samples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nncift.adapters import (
    Checkpoint,
    Lora,
    adapted,
    adapter_weights,
    forked_random,
    read_checkpoint,
    read_moments,
    save_checkpoint,
)
from nncift.errors import ConfigError, ModelError, RunError
from nncift.examples import Example, response_losses
from nncift.frozen import frozen_linears
from nncift.language_model import LanguageModel
from nncift.loading import out_of_memory
from nncift.storage import fingerprint

BETAS, EPSILON = (0.9, 0.999), 1e-8
_MICRO_BATCH = 8  # samples per pass; a fixed number, since sums in another order give other bytes
_FEWEST_STEPS = 16
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
        batch_size: samples per step; fewer where an epoch would have less than 16 steps, down to one.
        clip: longest gradient.
        seed: of the choice of samples, their order, and dropout.
    """

    lora: Lora = field(default_factory=Lora)
    fraction: float = 0.05
    epochs: int = 4
    learning_rate: float = 2e-5
    rising: float = 0.03
    batch_size: int = 128
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)} is too small", f"give at least {least}")
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                f"fraction {self.fraction} is no share of the samples", "give a number above 0, at most 1"
            )


def choose_samples(n: int, training: Training) -> np.ndarray:
    """Which of n samples are trained on, sorted indices, int64."""
    count = min(max(round(training.fraction * n), _FEWEST_SAMPLES), n)
    return np.sort(np.random.default_rng([training.seed, 0]).permutation(n)[:count])


def fine_tune(
    model: LanguageModel,
    examples: Sequence[Example],
    training: Training,
    folder: Path,
    *,
    progress: bool = False,
) -> list[Checkpoint]:
    """Train an adapter on all the examples; the model itself stays as it is.

    Args:
        model: what the adapter is trained on.
        examples: n samples.
        training: how.
        folder: holds `epoch-1`, `epoch-2`, ... when done; those that are there already are not trained again.
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
    identity = fingerprint(
        model.name, model.precision, dataclasses.asdict(training), sorted(example.key for example in examples)
    )
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
                    _train(model, adapter, examples, training, places, len(finished), identity, progress=progress)
            finally:
                model.model.eval()
    return [read_checkpoint(place) for place in places]


def _train(
    model: LanguageModel,
    adapter: Any,
    examples: Sequence[Example],
    training: Training,
    places: Sequence[Path],
    finished: int,
    identity: str,
    *,
    progress: bool,
) -> None:
    """Train the epochs that are not finished, and write a checkpoint after each."""
    batch = min(training.batch_size, max(len(examples) // _FEWEST_STEPS, 1))
    steps = math.ceil(len(examples) / batch)
    weights = adapter_weights(model)
    optimizer = torch.optim.AdamW(weights.values(), betas=BETAS, eps=EPSILON, weight_decay=0.0)
    if finished:
        _restore(optimizer, weights, places[finished - 1], finished * steps)
    for epoch in range(finished, training.epochs):
        rates = [_rate(training, epoch * steps + step, steps) for step in range(steps)]
        with forked_random(model, training.seed, 1, epoch):
            loss = _epoch(model, examples, weights, optimizer, training, epoch, rates, progress=progress)
        state = {
            "epoch": epoch + 1,
            "steps": (epoch + 1) * steps,
            "learning_rate": float(np.mean(rates)),
            "loss": loss,
            "samples": len(examples),
            "batch_size": batch,
            "fingerprint": identity,
        }
        moments = {name: _moments(optimizer, weight) for name, weight in weights.items()}
        save_checkpoint(places[epoch], adapter, moments, state)


def _rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step: up from zero, down to zero, and at neither."""
    steps = training.epochs * steps_per_epoch
    rising = math.ceil(training.rising * steps)
    return training.learning_rate * min((step + 1) / (rising + 1), (steps - step) / max(steps - rising, 1))


def _epoch(
    model: LanguageModel,
    examples: Sequence[Example],
    weights: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    training: Training,
    epoch: int,
    rates: Sequence[float],
    *,
    progress: bool,
) -> float:
    """One pass over the examples, a step for each rate; the mean loss."""
    order = np.random.default_rng([training.seed, 1, epoch]).permutation(len(examples))
    total = 0.0
    parts = np.array_split(order, len(rates))
    for rate, part in zip(rates, tqdm(parts, desc=f"training, epoch {epoch + 1}", disable=not progress), strict=True):
        batch = sorted((examples[k] for k in part), key=lambda example: len(example.ids))
        for start in range(0, len(batch), _MICRO_BATCH):
            total += _backward(model, batch[start : start + _MICRO_BATCH], len(batch))
        torch.nn.utils.clip_grad_norm_(weights.values(), training.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return total / len(examples)


def _backward(model: LanguageModel, micro_batch: Sequence[Example], batch_size: int) -> float:
    """Add the micro-batch's share of the batch's gradient; the sum of its losses."""
    try:
        loss = response_losses(model, micro_batch).sum()
        (loss / batch_size).backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ModelError(
            f"{model.name!r} ran out of memory while training on {len(micro_batch)} samples",
            "lower --max-length, use --dtype bfloat16, or take a smaller model",
        ) from error
    model.backward_tokens += sum(len(example.ids) - 1 for example in micro_batch)
    return float(loss.detach())


def _moments(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    state = optimizer.state[weight]
    return state["exp_avg"], state["exp_avg_sq"]


def _restore(optimizer: torch.optim.Optimizer, weights: Mapping[str, Any], folder: Path, steps: int) -> None:
    """Put the optimizer where it was when the checkpoint was written."""
    stored = read_moments(folder, {name: tuple(weight.shape) for name, weight in weights.items()})
    for name, weight in weights.items():
        first, second = (moment.to(weight.device) for moment in stored[name])
        optimizer.state[weight] = {"step": torch.tensor(float(steps)), "exp_avg": first, "exp_avg_sq": second}
