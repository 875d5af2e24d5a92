"""What each stage cost: seconds, language-model tokens, peak memory; kept in the run's `costs.json`."""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nncift.errors import RunError
from nncift.run.files import read_json, write_json

_log = logging.getLogger("nncift")


@dataclass
class StageCost:
    """The cost of one stage, summed over interrupted and resumed runs.

    Attributes:
        seconds: wall time.
        forward_tokens: tokens that went through the language model forwards, padding not counted.
        backward_tokens: tokens that went through it backwards.
        peak_memory: largest resident memory of the process up to the stage's end, in bytes.
        texts: samples that the encoder read.
    """

    seconds: float = 0.0
    forward_tokens: int = 0
    backward_tokens: int = 0
    peak_memory: int = 0
    texts: int = 0


class Costs:
    """A table of stages that survives a kill: it is saved at the end of every stage and by `save`."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.stages: dict[str, StageCost] = {}
        self._running: tuple[str, float] | None = None
        if path is not None and path.exists():
            try:
                self.stages = {name: StageCost(**cost) for name, cost in read_json(path)["stages"].items()}
            except (KeyError, TypeError, AttributeError) as error:
                raise RunError(f"{path} is no table of costs", "remove the file and run again") from error

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

    def save(self) -> None:
        """Bring the running stage up to date and write the file."""
        if self._running is not None:
            name, since = self._running
            now = time.perf_counter()
            self.stages[name].seconds += now - since
            self.stages[name].peak_memory = max(self.stages[name].peak_memory, peak_memory())
            self._running = (name, now)
        if self.path is not None:
            write_json(self.path, {"stages": {name: asdict(cost) for name, cost in self.stages.items()}})


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def duration(seconds: float) -> str:
    """Seconds as a person says them: "4.2 s", "3 min 10 s", "1 h 37 min", "2.5 days"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 48 * 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{seconds / 86400:,.1f} days"
