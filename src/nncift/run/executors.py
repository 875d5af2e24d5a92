"""Executors: where the shards of a piece of work are computed.

An executor with workers elsewhere pickles the job once, so work is a frozen dataclass that holds a `ModelSpec` or an
`EncoderSpec`, whose model each process loads once. It also has to return the tokens that a worker's model counted with
each shard and add them to this process's model, whose counters the caller's `after_shard` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

S = TypeVar("S")
R = TypeVar("R")


class Executor(Protocol):
    """Maps a job over shards."""

    def map(self, job: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
        """The result of each shard as it is finished, in any order."""


class LocalExecutor:
    """Computes one shard after another in this process."""

    def map(self, job: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
        """The result of each shard, in order."""
        return map(job, shards)
