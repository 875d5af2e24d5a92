"""The loop of every executor with workers: parts go to free workers, and those of a worker that died to others.

A worker holds at most `_AHEAD` parts, so few are in flight however many there are, and none of them waits for this
process to send it the next one. A part that ends its worker three times ends the run: it would do so for ever.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from nncift.errors import RunError
from nncift.run.executors.answers import opened, packed, versions

_AHEAD = 2  # parts at a worker: the one that it computes and the next
_DEATHS = 3  # of workers on one part, or at the start, that end the run
_NOT_THERE = "check that nncift is installed where it runs, or leave `workers` and `executor` out"
THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
"""Variables that set the number of threads of a worker."""
_PATIENCE = 60.0  # seconds without any worker, after which the log says so

_log = logging.getLogger("nncift")


class Worker(Protocol):
    """A place where parts are computed, in a process that can be replaced."""

    def start(self, job: Any) -> Future[bytes]:
        """Have a process, a new one where there is none, take the job; the answer of `Answering.begin`."""

    def compute(self, part: bytes) -> Future[bytes]:
        """The answer of `Answering.answer`, after those asked for before."""

    def stop(self) -> None:
        """End the process, if there is one; the next `start` makes another."""


@dataclass
class _Part:
    """A part, until its result is there."""

    name: str
    data: bytes
    deaths: int = 0


@dataclass(frozen=True)
class _Asked:
    """What a future is the answer to."""

    worker: Worker
    life: int  # number of the worker's process
    part: _Part | None = None  # None: it starts


class Dispatch:
    """One job on some workers.

    Args:
        workers: where to compute.
        job: as `Worker.start` takes it.
        died: the class of the errors that a future raises when its worker is gone.
        reason: why, in words.
    """

    def __init__(
        self, workers: Sequence[Worker], job: Any, died: type[Exception], reason: Callable[[Exception], str]
    ) -> None:
        self._workers, self._job, self._died, self._reason = workers, job, died, reason
        self._busy: dict[Future[bytes], _Asked] = {}
        self._ready: list[Worker] = []  # that have the job
        self._unsent: Iterator[_Part] = iter(())
        self._waiting: deque[_Part] = deque()  # the next part, and those of workers that died
        self._starts: Counter[Worker] = Counter()  # that failed in a row
        self._lives: Counter[Worker] = Counter()

    def results(self, parts: Iterable[Any]) -> Iterator[Any]:
        """The result of each part, in any order.

        Raises:
            RunError: a part ends its worker again and again, or no worker can be started.
        """
        self._unsent = (_Part(str(part), packed(part)) for part in parts)
        self._waiting.extend(itertools.islice(self._unsent, len(self._workers)))
        for worker in self._workers[: len(self._waiting)]:
            self._start(worker)
        try:
            while self._waiting or self._is_computing:
                for future in self._finished():
                    asked = self._busy.pop(future)
                    try:
                        result = opened(future.result())
                    except self._died as error:
                        self._bury(asked, self._reason(error))
                        continue
                    if asked.part is not None:
                        yield result
                    else:
                        _check_versions(*result)
                        self._starts[asked.worker] = 0
                        self._ready.append(asked.worker)
                self._feed()
        finally:
            for future, asked in self._busy.items():
                future.cancel()
                asked.worker.stop()

    @property
    def _is_computing(self) -> bool:
        return any(asked.part is not None for asked in self._busy.values())

    def _finished(self) -> set[Future[bytes]]:
        """The futures that are done, at least one."""
        while True:
            done, _ = wait(self._busy, timeout=_PATIENCE, return_when=FIRST_COMPLETED)
            if done:
                return done
            if not self._is_computing:
                _log.warning("no worker is there yet, after waiting for %d s; still waiting", _PATIENCE)

    def _held(self, worker: Worker) -> int:
        return sum(asked.worker is worker for asked in self._busy.values())

    def _start(self, worker: Worker) -> None:
        self._lives[worker] += 1
        self._busy[worker.start(self._job)] = _Asked(worker, self._lives[worker])

    def _feed(self) -> None:
        """Give the workers that are there what they can take, the next part to all before a second one to any."""
        for held in range(_AHEAD):
            for worker in self._ready:
                if self._waiting and self._held(worker) <= held:
                    part = self._waiting.popleft()
                    self._busy[worker.compute(part.data)] = _Asked(worker, self._lives[worker], part)
                    if not self._waiting:
                        self._waiting.extend(itertools.islice(self._unsent, 1))

    def _bury(self, asked: _Asked, reason: str) -> None:
        """Have the part of a worker that died computed again, and the worker replaced.

        Raises:
            RunError: it has died too often.
        """
        worker, part = asked.worker, asked.part
        if part is not None:
            part.deaths += 1
            _log.warning("a worker died on %s (%s); it is computed again", part.name, reason)
            if part.deaths >= _DEATHS:
                raise RunError(
                    f"a worker died {part.deaths} times on {part.name} ({reason})",
                    "if memory ran out, lower `batch_size` or give fewer `workers`; then run the same command again",
                )
            self._waiting.appendleft(part)
        else:
            self._starts[worker] += 1
            if self._starts[worker] >= _DEATHS:
                raise RunError(f"a worker does not start ({reason})", _NOT_THERE)
        if asked.life == self._lives[worker]:  # else it is replaced already
            self._ready = [other for other in self._ready if other is not worker]
            worker.stop()
            self._start(worker)


def _check_versions(host: str, there: dict[str, str]) -> None:
    """Refuse a worker whose values could differ."""
    here = versions()
    for name, found in there.items():
        if found != here[name]:
            raise RunError(
                f"the worker on {host} has {name} {found}, and this process {here[name]}",
                "install the same versions on every machine, so that all values are the same",
            )
