"""What an executor is, the one that computes in this process, and the one that a run's stages use.

Workers elsewhere compute and nothing else: a part of the work goes to them with the samples that it needs, and the
arrays come back. The run folder is read and written by the run's own process alone, so workers need no shared file
system, a worker that was given up cannot write into a run, and nothing on disk depends on who computed it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import ClassVar, Protocol, TypeVar

S = TypeVar("S")
R = TypeVar("R")


class Executor(Protocol):
    """Maps a job over parts of the work."""

    elsewhere: ClassVar[bool]
    """Whether the job and its parts travel to other processes, as pickles."""

    def map(self, job: Callable[[S], R], parts: Iterable[S]) -> Iterator[R]:
        """The result of each part as it is finished, in any order; parts are taken as they are needed.

        Raises:
            RunError: a part ends its worker again and again.
            NNCIFTError: that the job raised.
        """

    def close(self) -> None:
        """Stop the workers."""


class LocalExecutor:
    """Computes one part after another in this process."""

    elsewhere: ClassVar[bool] = False

    def map(self, job: Callable[[S], R], parts: Iterable[S]) -> Iterator[R]:
        """The result of each part, in order."""
        return map(job, parts)

    def close(self) -> None:
        """Nothing to stop."""


LOCAL = LocalExecutor()

_current: ContextVar[Executor] = ContextVar("executor", default=LOCAL)


@contextlib.contextmanager
def computing_with(executor: Executor) -> Iterator[None]:
    """Inside the block, `workers` is this executor; its workers are stopped at the end."""
    token = _current.set(executor)
    try:
        yield
    finally:
        _current.reset(token)
        executor.close()


def workers() -> Executor:
    """The executor of the run around this call, for work that may be computed elsewhere; else this process."""
    return _current.get()
