"""What each stage cost: seconds, language-model tokens, peak memory; kept in the run's `costs.json`."""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from nncift.run.files import read_json, refuse_damaged, write_json

_log = logging.getLogger("nncift")


@dataclass
class StageCost:
    """The cost of one stage, summed over interrupted and resumed runs."""

    seconds: float = 0.0  # wall time
    forward_tokens: int = 0  # that went through the language model, padding not counted
    backward_tokens: int = 0
    peak_memory: int = 0  # largest resident memory of the process up to the stage's end, in bytes
    texts: int = 0  # that the encoder read


@dataclass(frozen=True)
class PlannedCost:
    """What a stage is expected to cost."""

    stage: str
    seconds: float = 0.0  # at rates measured on this machine
    pairs: int = 0  # exact influence values
    tokens: int | None = None  # of the language model; None where they are not known
    at_least: bool = False  # it may be more than that
    memory: int = 0  # bytes, models not counted
    disk: int = 0  # bytes


class TokenCounter(Protocol):
    """Counts the tokens that went through a language model so far."""

    @property
    def forward_tokens(self) -> int:
        """Forwards."""

    @property
    def backward_tokens(self) -> int:
        """Backwards."""


class Costs:
    """A table of stages that survives a kill: it is saved at the end of every stage and by `save`."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.stages: dict[str, StageCost] = {}
        self._running: tuple[str, float] | None = None
        if path is not None and path.exists():
            stored = read_json(path, sealed=True)
            with refuse_damaged(path, "is not a valid table of costs", KeyError, TypeError, AttributeError):
                self.stages = {name: StageCost(**cost) for name, cost in stored["stages"].items()}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[StageCost]:
        """Time the block as part of stage `name`; yields its cost, to which the block adds its tokens."""
        cost = self.stages.setdefault(name, StageCost())
        self._running = (name, time.perf_counter())
        try:
            yield cost
        finally:
            self.save()
            self._running = None
            _log.info("%s: %s in all, %d LLM tokens forward", name, duration(cost.seconds), cost.forward_tokens)

    def counter(self, stage: str, reader: TokenCounter) -> Callable[[], None]:
        """What to call after each unit of work: adds the tokens that `reader` reads from now on to the stage's cost."""
        cost = self.stages[stage]
        forward = cost.forward_tokens - reader.forward_tokens
        backward = cost.backward_tokens - reader.backward_tokens

        def count() -> None:
            cost.forward_tokens = forward + reader.forward_tokens
            cost.backward_tokens = backward + reader.backward_tokens
            self.save()

        return count

    def save(self) -> None:
        """Bring the running stage up to date and write the file."""
        if self._running is not None:
            (name, since), now = self._running, time.perf_counter()
            stage = self.stages[name]
            stage.seconds += now - since
            stage.peak_memory = max(stage.peak_memory, peak_memory())
            self._running = (name, now)
        if self.path is not None:
            stages = {name: asdict(cost) for name, cost in self.stages.items()}
            write_json(self.path, {"stages": stages}, sealed=True)


def seconds_of(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    since = time.perf_counter()
    work()
    return time.perf_counter() - since


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def duration(seconds: float) -> str:
    """Seconds in readable units: "4.2 s", "3 min 10 s", "1 h 37 min", "2.5 days"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 48 * 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{seconds / 86400:,.1f} days"
