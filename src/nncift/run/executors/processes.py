"""Processes on this machine, one per GPU where there are several.

Each is a Python of its own with its environment set before anything is imported: the GPU that it sees and its number of
threads. It reads messages from a pipe and writes answers to another, and ends when the pipe does, so none outlives the
run. Nothing of the caller's main module is imported in it: a script needs no `if __name__ == "__main__"`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, ClassVar, TypeVar

from nncift.run.executors.answers import packed
from nncift.run.executors.dispatch import THREADS, Dispatch

S = TypeVar("S")
R = TypeVar("R")

JOB, PART = b"j", b"p"  # kinds of messages
_LENGTH = 8  # bytes of a message's length


class ProcessExecutor:
    """Computes in processes on this machine.

    Args:
        count: number of processes.
        gpus: what `CUDA_VISIBLE_DEVICES` is in each, in turn; none: as it is here.
        threads: of each process; unless given, its share of the CPUs.
    """

    elsewhere: ClassVar[bool] = True

    def __init__(self, count: int, *, gpus: Sequence[str] = (), threads: int | None = None) -> None:
        threads = threads or max(_cpus() // count, 1)
        shared = {name: str(threads) for name in THREADS} | {"PYTHONPATH": os.pathsep.join(sys.path)}
        seen = [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {} for number in range(count)]
        self._workers = [_Process(shared | own) for own in seen]

    def map(self, job: Callable[[S], R], parts: Iterable[S]) -> Iterator[R]:
        """The result of each part as it is finished."""
        return Dispatch(self._workers, packed(job), WorkerDied, str).results(parts)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.stop()


def _cpus() -> int:
    """CPUs that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerDied(Exception):
    """A process ended without an answer."""


class _Process:
    """A process that is started when it is needed, and again when it has died.

    A thread talks to it: it is asked one thing after another.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nncift-worker")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, job: bytes) -> Future[bytes]:
        return self._thread.submit(self._start, job)

    def compute(self, part: bytes) -> Future[bytes]:
        return self._thread.submit(self._ask, PART, part)

    def stop(self) -> None:
        if self._process is not None:
            _end(self._process)

    def _start(self, job: bytes) -> bytes:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "nncift.run.executors.worker"],  # the paths are this process's alone
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **self._environment},
            )
        return self._ask(JOB, job)

    def _ask(self, kind: bytes, data: bytes) -> bytes:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            write_message(process.stdin, kind, data)
            answer = read_message(process.stdout)
        except (OSError, ValueError):  # the pipe is broken, or closed since the process died
            answer = None
        if answer is None:
            raise WorkerDied(_ending(_end(process)))
        return answer[1]


def _end(process: subprocess.Popen[bytes]) -> int:
    """End a process, if it has not ended, and its pipes; its exit code."""
    process.kill()
    code = process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # what it was being sent
                stream.close()
    return code


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"it exited with code {code}"
    name = signal.Signals(-code).name if -code in [*signal.Signals] else f"signal {-code}"
    return f"{name}, as when memory runs out" if -code == signal.SIGKILL else name


def write_message(stream: IO[bytes], kind: bytes, data: bytes) -> None:
    """Write a message: its kind, its length, itself."""
    stream.write(kind + len(data).to_bytes(_LENGTH, "little"))
    stream.write(data)
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[bytes, bytes] | None:
    """Read a message, its kind and itself; None at the end of the stream."""
    head = stream.read(1 + _LENGTH)
    size = int.from_bytes(head[1:], "little")
    if len(head) < 1 + _LENGTH or len(data := stream.read(size)) < size:
        return None
    return head[:1], data
