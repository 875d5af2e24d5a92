"""Work in a forked child: it starts with the libraries imported, and may die without harm to the campaign."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY = 8 << 30  # bytes of address space that a child may add to what it starts with

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked child must not inherit a pool of threads
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nor PyTorch's thread for a GPU


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        kind: "ok", "refused" (a NNCIFTError), "escaped" (any other exception), "killed" (by a signal) or "hung".
        text: its value as JSON, the error, or the signal.
    """

    kind: str
    text: str = ""


def run(work: Callable[[], Any], *, timeout: float = 300, log: Path | None = None) -> Outcome:
    """The outcome of `work` in a child of its own; its output goes to `log`."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _redirect(log)
        os.write(write, json.dumps(_tried(work)).encode())
        os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], timeout)
    if not ready:
        os.kill(child, signal.SIGKILL)
    data = b"" if not ready else _all(read)
    os.close(read)
    _, status = os.waitpid(child, 0)
    if not ready:
        return Outcome("hung", f"no answer in {timeout} s")
    if not data:
        return Outcome("killed", f"status {status}")
    return Outcome(*json.loads(data))


def killed(work: Callable[[], Any], after: float, log: Path | None = None) -> None:
    """Start `work` in a child and kill it after some seconds, unless it has ended before."""
    child = os.fork()
    if not child:
        _redirect(log)
        _tried(work)
        os._exit(0)
    until = time.perf_counter() + after
    while time.perf_counter() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _tried(work: Callable[[], Any]) -> tuple[str, str]:
    from nncift.errors import NNCIFTError

    try:
        return "ok", json.dumps(work())
    except NNCIFTError as error:
        text = str(error)
        return ("refused", text) if "\n" not in text else ("escaped", f"two lines: {text}")
    except BaseException as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/nncift/" in f.filename]
        where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-1:]]
        return "escaped", f"{type(error).__name__}: {str(error)[:300]} {where}"


def _redirect(log: Path | None) -> None:
    """Output to the log; memory is limited, so that a fault does not take the machine down."""
    target = os.open(os.devnull if log is None else log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(target, 1)
    os.dup2(target, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _all(pipe: int) -> bytes:
    parts = []
    while part := os.read(pipe, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def import_libraries() -> None:
    """Import once what every child needs."""
    import datasets
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.stats  # noqa: F401
    import sentence_transformers  # noqa: F401
    import torch
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import nncift.cli
    import nncift.estimator.network
    import nncift.matrix.compiled.kernels
    import nncift.pipeline.select  # noqa: F401

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
