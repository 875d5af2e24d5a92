"""Workers on a Ray cluster.

A worker is an actor, which holds its GPU and its models until the end: a Ray *task* with a GPU ends its process
(`max_calls` is 1 by default), so that each shard would load the models again, and without that a process may be given
another GPU than the one that its models are on. Actors are not restarted by Ray but by `Dispatch`, which sends the
parts of one that died to others at once. Ray Data is not used: it has its own retries, queues and files.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

from nncift.errors import ConfigError, DependencyError, RunError, first_line
from nncift.run.executors.answers import Answering, packed
from nncift.run.executors.dispatch import THREADS, Dispatch

S = TypeVar("S")
R = TypeVar("R")

AUTO = "auto"
_SECONDS = 10.0  # for an address to answer

_log = logging.getLogger("nncift")


class RayExecutor:
    """Computes on a Ray cluster, to which it connects when there is something to compute.

    Args:
        address: HOST:PORT of the head node, ray://HOST:PORT, or "auto", the cluster of this machine or `RAY_ADDRESS`.
        count: number of workers; as many as the cluster has room for unless given.
        gpus: of each worker; unless given 1 where the cluster has any, else 0.
        cpus: of each worker.
    """

    elsewhere: ClassVar[bool] = True

    def __init__(
        self, address: str = AUTO, *, count: int | None = None, gpus: float | None = None, cpus: float = 1
    ) -> None:
        self._address, self._count, self._gpus, self._cpus = address, count, gpus, cpus
        self._connected = False  # by this object
        self._workers: list[_Actor] = []

    def map(self, job: Callable[[S], R], parts: Iterable[S]) -> Iterator[R]:
        """The result of each part as it is finished."""
        remaining = iter(parts)
        first = next(remaining, None)
        if first is None:
            return
        ray = self._connect()
        data = ray.put(packed(job))
        all_parts = _chained(first, remaining)
        yield from Dispatch(self._workers, data, ray.exceptions.RayError, _reason).results(all_parts)

    def close(self) -> None:
        """End the workers, and the connection unless the caller had it before."""
        for worker in self._workers:
            worker.stop()
        self._workers = []
        if self._connected:
            _import().shutdown()
            self._connected = False

    def _connect(self) -> Any:
        """Ray, with the workers asked for.

        Raises:
            DependencyError: Ray is not installed.
            RunError: no cluster answers, or it has no room for a worker.
        """
        ray = _import()
        if not ray.is_initialized():
            _check_address(self._address)
            try:
                ray.init(self._address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
                raise RunError(*_refused(self._address, error)) from error
            self._connected = True
        if not self._workers:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            gpus = self._gpus
            if gpus is None:
                gpus = float(any(resources.get("GPU", 0) >= 1 for resources in nodes))
            room = sum(_fitting(resources, gpus, self._cpus) for resources in nodes)
            if not room and self._count is None:
                problem = f"no node of the Ray cluster has room for a worker of {gpus:g} GPUs and {self._cpus:g} CPUs"
                raise RunError(problem, "give a smaller `gpus_per_worker` or `cpus_per_worker`")
            threads = {name: str(max(int(self._cpus), 1)) for name in THREADS}  # on which the last bits depend
            options = {"num_gpus": gpus, "num_cpus": self._cpus, "runtime_env": {"env_vars": threads}}
            kind = ray.remote(**options)(Answering)
            self._workers = [_Actor(ray, kind) for _ in range(self._count or room)]
            _log.info("Ray: %d workers of %g GPUs and %g CPUs", len(self._workers), gpus, self._cpus)
        return ray


class _Actor:
    """A worker on the cluster: an actor that is made when it is needed, and again when it has died."""

    def __init__(self, ray: Any, kind: Any) -> None:
        self._ray, self._kind = ray, kind
        self._actor: Any = None

    def start(self, job: Any) -> Future[bytes]:
        if self._actor is None:
            self._actor = self._kind.remote()
        return self._future("begin", job)

    def compute(self, part: bytes) -> Future[bytes]:
        return self._future("answer", part)

    def _future(self, method: str, argument: Any) -> Future[bytes]:
        future: Future[bytes] = getattr(self._actor, method).remote(argument).future()
        return future  # without callbacks: they run in Ray's own thread, which nothing may call Ray from

    def stop(self) -> None:
        if self._actor is not None:
            actor, self._actor = self._actor, None
            self._ray.kill(actor)


def _import() -> Any:
    try:
        import ray
    except ImportError as error:
        raise DependencyError("`executor` ray needs Ray", "pip install 'nncift[ray]'") from error
    return ray


def _chained(first: S, others: Iterator[S]) -> Iterator[S]:
    yield first
    yield from others


def _fitting(resources: dict[str, float], gpus: float, cpus: float) -> int:
    """How many workers a node has room for."""
    rooms = [resources.get(name, 0) / each + 1e-9 for name, each in (("GPU", gpus), ("CPU", cpus)) if each]
    return int(min(rooms, default=1))  # rounded down: ten workers of a tenth of a GPU fit on one


def _check_address(address: str) -> None:
    """Refuse an address at once that does not answer, for which Ray waits long.

    Raises:
        ConfigError: it is not HOST:PORT.
        RunError: nothing answers there.
    """
    if address in (AUTO, "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"`ray_address` {address!r} is not an address", "give HOST:PORT of the head node, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except OSError as error:
        raise RunError(*_refused(address, error)) from error


def _refused(address: str, error: Exception) -> tuple[str, str]:
    """Why there is no connection, and the remedy."""
    text = first_line(error)
    if "ersion mismatch" in str(error):
        text = " ".join(str(error).split())[:200]
        return f"the Ray cluster does not match this machine ({text})", "install the same versions on every machine"
    if address == AUTO:
        return f"there is no Ray cluster here ({text})", "start one with `ray start --head`, or give `ray_address`"
    return f"no Ray cluster answers at {address} ({text})", "check that address, and `ray status` there"


def _reason(error: Exception) -> str:
    """Why an actor died, in words."""
    text = " ".join(str(error).split())
    if "OOM" in text or "OutOfMemory" in type(error).__name__ or "memory" in text.lower():
        return "memory ran out on its machine"
    if "node" in text.lower() and ("terminated" in text or "removed" in text or "died" in text):
        return "its machine is gone"
    return f"{type(error).__name__}: {first_line(error)}"
