"""Settings of fine-tuning: the schedule, and the adapter's shape."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from nncift.errors import ConfigError
from nncift.training.lora import ALL_LINEAR, Lora


@dataclass(frozen=True)
class FineTuning:
    """How an adapter is trained.

    An adapter on every linear layer is what full fine-tuning's quality takes (QLoRA, arXiv:2305.14314, section 4), and
    needs no names of layers, which differ between architectures.
    """

    epochs: int = 3
    learning_rate: float = 2e-4  # peak; linear warm-up, then linear decay to 0
    batch_size: int = 8  # samples per step
    warmup_ratio: float = 0.03  # fraction of steps with linear warm-up
    max_grad_norm: float = 1.0  # of a step, for clipping
    rank: int = 16
    alpha: int = 32  # the adapter's output is scaled by alpha / rank
    dropout: float = 0.0
    modules: tuple[str, ...] = (ALL_LINEAR,)  # name endings of the layers to adapt
    max_length: int | None = None  # tokens; the model's limit unless given
    seed: int = 0  # of the adapter's initial weights, the order of the samples, and dropout
    report_to: tuple[str, ...] = ()  # trackers of transformers, such as "wandb", "tensorboard"; changes no result

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("rank", 1), ("alpha", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"`{name}` {getattr(self, name)} is too small", f"give at least {least}")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"`{name}` {getattr(self, name)} cannot be used", "give a number above 0")
        if not 0 <= self.warmup_ratio <= 1:
            raise ConfigError(f"`warmup_ratio` {self.warmup_ratio} is no fraction of the steps", "give 0 to 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"`dropout` {self.dropout} is no probability", "give at least 0, below 1")
        if not self.modules:
            raise ConfigError("`modules` names no layers", f'give some, or "{ALL_LINEAR}"')
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"`max_length` {self.max_length} is too small", "give at least 2")

    @property
    def lora(self) -> Lora:
        """The shape of the adapter."""
        return Lora(self.rank, self.alpha, self.dropout, self.modules, self.seed)

    def steps(self, rows: int) -> int:
        """Steps of a training on so many rows."""
        return self.epochs * math.ceil(rows / self.batch_size)

    def describe(self) -> dict[str, Any]:
        """The settings that the adapter depends on, ready for JSON."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name != "report_to"}
        return json.loads(json.dumps(values))  # type: ignore[no-any-return]
