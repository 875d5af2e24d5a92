"""A disk that is full at any point: refused in one line, and the same call goes on once there is room.

Each run works on a file system of its own whose size is uniform between nothing and what the whole run needs; the cache
lies there too in every second run. Then the file system is enlarged, and the same call must end with the bytes of a run
that had room. Only root can mount a file system; for anybody else a limit on the size of each file takes its place.
"""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import children
import runs
from kills import Whole, compared, whole_runs, with_cache

Work = Callable[[], Any]

_PAGE = 4096
_CHECKPOINTS = ".partial-training"  # which an evaluation goes on from
_ROOM = 1 << 30
_SAID = ("o space left", "exceeds the largest size of a file", "check the space on the disk")


def campaign(
    folder: Path, trials: int, seed: int, kinds: Sequence[runs.Kind]
) -> tuple[list[dict[str, object]], list[str]]:
    """Fill the disk of `trials` runs; a row of the table for each kind of run, and what failed.

    Args:
        folder: of the runs.
        trials: how many, over all kinds.
        seed: of the sizes.
        kinds: of runs.
    """
    rng, failures, table = random.Random(seed), list[str](), list[dict[str, object]]()
    for whole, share in whole_runs(folder, trials, rng, kinds, failures):
        kind = whole.kind
        ended: Counter[str] = Counter()
        for trial in range(share):
            failures += _trial(whole, folder / "disk", rng, trial, ended)
        table.append({"run": kind.name, "full disks": share, "refused": ended["refused"], "did without": ended["ok"]})
        print(f"space: {kind.name} {share}, {len(failures)} failures so far", *failures, sep="\n  ", file=sys.stderr)
    names = ("full disks", "refused", "did without")
    return [*table, {"run": "all"} | {name: sum(int(str(row[name])) for row in table) for name in names}], failures


def _trial(whole: Whole, disk: Path, rng: random.Random, trial: int, ended: Counter[str]) -> list[str]:
    """Run on a disk that is too small, then on the same disk with room, and compare."""
    run, cache = disk / "run", (disk / "cache" if trial % 2 else disk.with_suffix(".cache"))
    shutil.rmtree(cache, ignore_errors=True)
    size = rng.randrange(0, whole.size // _PAGE + 1) * _PAGE
    failures = []
    with _small(disk, size) as (limited, enlarge):
        where = f"{whole.kind.name}, disk of {size // 1024} KiB of {whole.size // 1024}"
        printed = disk.with_suffix(".log")
        printed.unlink(missing_ok=True)
        outcome = children.run(limited(with_cache(runs.start(whole.kind, run), cache)), log=printed)
        ended[outcome.kind] += 1
        if "Traceback" in printed.read_text():
            failures.append(f"{where}: printed a traceback")
        if outcome.kind != "ok" and not (outcome.kind == "refused" and any(text in outcome.text for text in _SAID)):
            failures.append(f"{where}: {outcome.kind} {outcome.text}")
        if left := [str(path.relative_to(disk)) for path in disk.rglob(".partial-*") if path.name != _CHECKPOINTS]:
            failures.append(f"{where}: left {', '.join(left)}")
        enlarge()
        outcome = children.run(with_cache(runs.start(whole.kind, run), cache))
        failures += [f"{where}, {failed}" for failed in compared(whole, outcome, run)]
    return failures


@contextmanager
def _small(
    disk: Path, size: int
) -> Iterator[tuple[Callable[[Callable[[], Any]], Callable[[], Any]], Callable[[], None]]]:
    """A disk of some bytes: what makes a call feel its size, and what enlarges it."""
    disk.mkdir(exist_ok=True)
    options = f"size={max(size, _PAGE)}"  # 0 is no limit
    mounted = not subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], capture_output=True).returncode

    def limited(work: Work) -> Work:
        return work if mounted else lambda: (resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)), work())[1]

    def enlarge() -> None:
        if mounted:
            subprocess.run(["mount", "-o", f"remount,size={_ROOM}", disk], check=True)

    try:
        yield limited, enlarge
    finally:
        if mounted:
            subprocess.run(["umount", disk], check=True)
        shutil.rmtree(disk, ignore_errors=True)
