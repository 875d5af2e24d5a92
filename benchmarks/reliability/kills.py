"""Runs killed at any instant: the same call ends with the same bytes.

Half of the instants are moments in time, uniform over the duration of the run. The others are the k-th operation on a
file in the run folder (open, rename, remove, ...), k uniform: a kill between two system calls, which a clock rarely
hits. Every second run is killed a second time while it resumes.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import children
import runs

_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree"}


def campaign(
    folder: Path, instants: int, seed: int, kinds: Sequence[runs.Kind]
) -> tuple[list[dict[str, object]], list[str]]:
    """Kill `instants` runs; a row of the table for each kind of run, and what failed.

    Args:
        folder: of the runs.
        instants: how many, over all kinds.
        seed: of the instants.
        kinds: of runs.
    """
    rng, failures, table = random.Random(seed), list[str](), list[dict[str, object]]()
    for whole, share in whole_runs(folder, instants, rng, kinds, failures):
        kind, stages = whole.kind, Counter[str]()
        for trial in range(share):
            failures += _trial(whole, folder / "run", rng, trial, stages)
        held = "; ".join(f"{stage} {count}" for stage, count in sorted(stages.items()))
        table.append({"run": kind.name, "kills": sum(stages.values()), "while working on": held})
        print(f"kills: {kind.name} {share}, {len(failures)} failures so far", file=sys.stderr)
    total: Counter[str] = Counter()
    for row in table:
        for part in str(row["while working on"]).split("; "):
            stage, _, count = part.rpartition(" ")
            total[stage] += int(count or 0)
    held = "; ".join(f"{stage} {count}" for stage, count in sorted(total.items()) if stage)
    return [*table, {"run": "all", "kills": sum(total.values()), "while working on": held}], failures


def whole_runs(
    folder: Path, trials: int, rng: random.Random, kinds: Sequence[runs.Kind], failures: list[str]
) -> Iterator[tuple[Whole, int]]:
    """The undisturbed run of each kind that has a share of the trials, and that share; a run that fails is a failure.

    Args:
        folder: of the runs.
        trials: how many, over all kinds.
        rng: draws the order of the kinds.
        kinds: of runs.
        failures: what failed so far.
    """
    kinds = [*kinds]
    rng.shuffle(kinds)
    for number, kind in enumerate(kinds):
        share = (trials * (number + 1)) // len(kinds) - (trials * number) // len(kinds)
        if not share:
            continue
        whole = Whole(kind, folder / "whole")
        if whole.outcome.kind == "ok":
            yield whole, share
        else:
            failures.append(f"{kind.name}: {whole.outcome}")


class Whole:
    """A run that nothing disturbs: its bytes, seconds, operations on files, and size on the disk."""

    def __init__(self, kind: runs.Kind, folder: Path) -> None:
        self.kind = kind
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(_cache(folder), ignore_errors=True)
        counted = folder.with_suffix(".operations")
        since = time.perf_counter()
        work = runs.start(kind, folder)
        self.outcome = children.run(with_cache(lambda: _counting(work, folder, counted), _cache(folder)))
        self.seconds = time.perf_counter() - since
        self.operations = int(counted.read_text()) if counted.exists() else 0
        self.bytes = runs.contents(folder) if folder.exists() else {}
        self.size = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def _trial(whole: Whole, folder: Path, rng: random.Random, trial: int, stages: Counter[str]) -> list[str]:
    """Kill a run, perhaps twice, resume it, and compare."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(_cache(folder), ignore_errors=True)
    instants = []
    for _ in range(1 + trial % 2):
        work = runs.start(whole.kind, folder)
        if rng.random() < 0.5:
            after = rng.uniform(0, whole.seconds)
            instants.append(f"after {after:.3f} s")
            children.killed(with_cache(work, _cache(folder)), after)
        else:
            operation = rng.randint(1, max(whole.operations, 1))
            instants.append(f"before operation {operation} of {whole.operations}")
            children.run(with_cache(lambda w=work, k=operation: _dying(w, folder, k), _cache(folder)))
        stages[_stage(folder)] += 1
    outcome = children.run(with_cache(runs.start(whole.kind, folder), _cache(folder)))
    where = f"{whole.kind.name}, killed {' and '.join(instants)}"
    return [f"{where}: {failed}" for failed in compared(whole, outcome, folder)]


def compared(whole: Whole, outcome: children.Outcome, folder: Path) -> list[str]:
    """How a run that has ended differs from the whole one."""
    if outcome.kind != "ok":
        return [f"{outcome.kind} {outcome.text}"]
    found = runs.contents(folder)
    differ = sorted(name for name in found | whole.bytes if found.get(name) != whole.bytes.get(name))
    return [f"differs in {', '.join(differ)}"] if differ else []


def _cache(folder: Path) -> Path:
    return folder.with_suffix(".cache")


def with_cache(work: Callable[[], Any], cache: Path) -> Callable[[], Any]:
    """With a cache of its own: another trial's features must not make this one shorter."""

    def cached() -> Any:
        os.environ["NNCIFT_CACHE"] = str(cache)
        return work()

    return cached


def _stage(folder: Path) -> str:
    """The part of the run folder that was written last."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    kept = [path for path in files if path.name not in runs.EXEMPT | {"config.json"}]
    if not kept:
        return "start"
    last = max(kept, key=lambda path: path.stat().st_mtime_ns)
    return last.relative_to(folder).parts[0].removeprefix(".partial-")


def _watch(folder: Path, act: Callable[[], None]) -> None:
    """Call `act` before each operation of this process on a file in the folder; it cannot be undone."""
    prefix = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and str(arguments[0]).startswith(prefix):
            act()

    sys.addaudithook(hook)


def _counting(work: Callable[[], Any], folder: Path, counted: Path) -> Any:
    operations = [0]

    def count() -> None:
        operations[0] += 1

    _watch(folder, count)
    value = work()
    counted.write_text(str(operations[0]))
    return value


def _dying(work: Callable[[], Any], folder: Path, operation: int) -> Any:
    left = [operation]

    def die() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _watch(folder, die)
    return work()
