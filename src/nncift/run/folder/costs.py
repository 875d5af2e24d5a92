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
from typing import Any, Literal, Protocol, Self

from nncift.run.folder.records import Record
from nncift.run.storage.files import read_json, write_json
from nncift.run.storage.refusals import refuse_damaged

_log = logging.getLogger("nncift")


@dataclass
class StageCost:
    """The cost of one stage, summed over interrupted and resumed runs."""

    seconds: float = 0.0  # wall time
    forward_tokens: int = 0  # that went through the language model, padding not counted
    backward_tokens: int = 0
    peak_memory: int = 0  # largest resident memory of the process up to the stage's end, in bytes
    texts: int = 0  # that the encoder read
    warm_up_seconds: float = 0.0  # of exact influence: before the first pair, however many there are
    sample_seconds: float = 0.0  # of exact influence: in `prepare`, and in blocks of pairs that ran a language model
    pair_seconds: float = 0.0  # of exact influence: in blocks of pairs that ran none


@dataclass(frozen=True)
class PlannedCost:
    """What a stage is expected to cost."""

    stage: str
    seconds: float = 0.0  # at rates measured on this machine
    pairs: int = 0  # exact influence values
    tokens: int | None = None  # of the language model; None where they are not known
    at_least: bool = False  # it may be more than that
    memory: int = 0  # bytes at the stage's peak, beyond what this process takes with its models loaded
    disk: int = 0  # bytes
    checkpoints: int = 0  # bytes of these that are removed at the end


@dataclass(frozen=True)
class Work(Record):
    """What exact influence of some pairs takes, in units that its time grows with."""

    samples: int  # pool samples and targets; of a pointwise function, pool samples
    pairs: int  # of a pointwise function, pool samples
    tokens: int | None = None  # of forward passes, without the warm-up's; None where the function counts none
    warm_up: int = 0  # tokens of the warm-up's forward passes

    @property
    def all_tokens(self) -> int | None:
        """Of the warm-up too."""
        return None if self.tokens is None else self.tokens + self.warm_up

    @property
    def units(self) -> int:
        """Tokens, or samples where the function counts no tokens."""
        return self.samples if self.tokens is None else self.tokens


@dataclass(frozen=True)
class Rates:
    """Time of exact influence: the cost model of the dry run, of the terminal and of the report.

    Attributes:
        warm_up: seconds, whatever is measured.
        unit: seconds per unit of `Work.units`.
        pair: seconds per pair in addition.
    """

    warm_up: float
    unit: float
    pair: float

    @classmethod
    def of(cls, cost: StageCost, work: Work) -> Self:
        """From what some work cost."""
        return cls(
            cost.warm_up_seconds, cost.sample_seconds / max(work.units, 1), cost.pair_seconds / max(work.pairs, 1)
        )

    def seconds(self, work: Work) -> float:
        """Expected time."""
        return self.warm_up + self.unit * work.units + self.pair * work.pairs


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

    def clock(self, stage: str) -> Callable[[Literal["warm_up", "sample", "pair"]], None]:
        """What to call after a part of a stage: adds the time since its last call to that part's seconds."""
        cost, since = self.stages[stage], time.perf_counter()

        def lap(part: Literal["warm_up", "sample", "pair"]) -> None:
            nonlocal since
            now = time.perf_counter()
            setattr(cost, f"{part}_seconds", getattr(cost, f"{part}_seconds") + now - since)
            since = now

        return lap

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


def seconds_of(work: Callable[[], Any], clock: Callable[[], float] | None = None) -> float:
    """How long a call takes, by a clock: wall time unless given."""
    clock = clock or time.perf_counter
    since = clock()
    work()
    return clock() - since


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
