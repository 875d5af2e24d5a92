"""Where a run computes: the executor that its config names (`run.executors`).

Models read samples in workers: features, exact influence of samples, and labels where each pair is work of its own. All
else is this process's: reading the data, the network, the choice, and every file of the run folder.
"""

from __future__ import annotations

import os

from nncift.config import Config
from nncift.errors import ConfigError
from nncift.run.executors.base import LOCAL, Executor
from nncift.run.folder.records import counted


def executor_of(config: Config) -> Executor:
    """The executor; workers are started when there is something to compute.

    Raises:
        ConfigError: the number of processes is not given, and there are no GPUs that give it.
    """
    if config.executor == "ray":
        from nncift.run.executors.ray_cluster import AUTO, RayExecutor

        return RayExecutor(
            config.ray_address or AUTO,
            count=config.workers,
            gpus=config.gpus_per_worker,
            cpus=config.cpus_per_worker or 1,
        )
    if config.executor != "processes":
        return LOCAL
    from nncift.run.executors.processes import ProcessExecutor

    gpus = _gpus() if config.device in (None, "cuda") else []
    return ProcessExecutor(_processes(config, gpus), gpus=gpus if len(gpus) > 1 else (), threads=config.cpus_per_worker)


def described(config: Config) -> str:
    """The workers in words, for a dry run; empty where this process computes."""
    if config.executor == "ray":
        some = "all that there is room for" if config.workers is None else counted(config.workers, "worker")
        return f"{some} on the Ray cluster {config.ray_address or 'of this machine'}"
    if config.executor != "processes":
        return ""
    gpus = _gpus() if config.device in (None, "cuda") else []
    count = _processes(config, gpus)
    among = f", on {counted(len(gpus), 'GPU')}" if gpus else ""
    return f"{count} {'process' if count == 1 else 'processes'} on this machine{among}"


def _processes(config: Config, gpus: list[str]) -> int:
    if config.workers is None and not gpus:
        problem = "`executor` processes starts one per GPU, and there is none here"
        raise ConfigError(problem, "give their number, `workers`, or leave `executor` out")
    return config.workers or len(gpus)


def _gpus() -> list[str]:
    """The GPUs that this process sees, each as `CUDA_VISIBLE_DEVICES` names it."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]
