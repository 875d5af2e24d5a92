"""What do the rows themselves take as a pool grows, without models, vectors and pairs?

    python benchmarks/metadata.py FOLDER --rows 10000000 --read
    python benchmarks/metadata.py FOLDER --rows 1000000
    python benchmarks/metadata.py FOLDER --rows 1000000 --append 10000

A real run on short rows with ids of their own, ten tasks and one exact duplicate in a hundred: reading, duplicates,
random numbers as influence, a quota on the tasks, a choice of 10,000, its files and the report. `--read` reads alone,
which holds most: hashes of contents and ids. `--append` adds as many rows to a run. Each is a process of its own. Its
peak memory is given with the pages of memory-mapped files, which the system may drop, and without them: what the run
itself holds.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nncift

CHOSEN, TASKS, REPEATED = 10_000, 10, 100
_WORDS = [f"w{number:03d}" for number in range(1000)]
_BLOCK = 10_000  # rows written together
_GIB = 1 << 20  # kilobytes, in which the system counts


def write_rows(path: Path, first: int, n: int) -> None:
    """Rows of about 150 bytes, unless the file is there; one in `REPEATED` has the texts of the one before it."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draw, temporary = random.Random(first), path.with_suffix(".partial")
    with open(temporary, "w", encoding="utf-8") as file:
        prompt = response = ""
        for start in range(first, first + n, _BLOCK):
            lines = []
            for number in range(start, min(start + _BLOCK, first + n)):
                if not prompt or number % REPEATED:
                    words = draw.choices(_WORDS, k=15)
                    prompt, response = " ".join(words[:10]), " ".join(words[10:])
                lines.append(
                    f'{{"id": "row-{number}", "task": "task {number % TASKS}", "prompt": "{prompt}",'
                    f' "response": "{response}"}}\n'
                )
            file.write("".join(lines))
    temporary.rename(path)


class Peaks(threading.Thread):
    """The largest memory of this process, in kilobytes, with and without the pages of files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Look ten times a second."""
        while not self._done.wait(0.1):
            self.own = max(self.own, _memory("RssAnon"))

    def stop(self) -> None:
        """Look no more."""
        self._done.set()
        self.join()


def _memory(field: str) -> int:
    """Kilobytes of this process, from the system's table."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def one(folder: Path, append: int, read: bool) -> None:
    """The run, or what grows from it, or its reading; prints a record."""
    options: dict[str, Any] = {"influence": "random", "budget": CHOSEN, "quota": {"task": "equal"}, "progress": False}
    peaks, before, since, cpu = Peaks(), _memory("RssAnon"), time.perf_counter(), time.process_time()
    peaks.start()
    if read:
        pool, stages = nncift.load_pool(folder / "pool.jsonl", folder=folder / "read"), {}
    else:
        output = folder / ("grown" if append else "run")
        if append:
            selection = nncift.select(from_run=folder / "run", append=folder / "new.jsonl", output=output)
        else:
            selection = nncift.select(folder / "pool.jsonl", output=output, **options)
        pool, stages = selection.pool, json.loads((output / "costs.json").read_text(encoding="utf-8"))["stages"]
    peaks.stop()
    record = {
        "samples": len(pool),
        "seconds": time.perf_counter() - since,
        "cpu": time.process_time() - cpu,
        "before": before,
        "own": peaks.own,
        "all": _memory("VmHWM"),
        "stages": {name: round(stage["seconds"], 1) for name, stage in stages.items()},
    }
    print(json.dumps(record))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--append", type=int, default=0, help="rows to add to the run that is there")
    parser.add_argument("--read", action="store_true", help="read the rows alone")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder / str(options.rows)
    if options.here:
        one(folder, options.append, options.read)
        return
    write_rows(folder / "pool.jsonl", 0, options.rows)
    if options.append:
        write_rows(folder / "new.jsonl", options.rows, options.append)
    answer = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--here"], check=True, capture_output=True)
    found = json.loads(answer.stdout.splitlines()[-1])
    print("| samples | s | CPU s | peak GiB, held by the run | with pages of files | bytes held a sample | stages, s |")
    print("|---|---|---|---|---|---|---|")
    each = (found["own"] - found["before"]) * 1024 / found["samples"]
    stages = ", ".join(f"{name} {seconds}" for name, seconds in found["stages"].items())
    print(
        f"| {found['samples']:,} | {found['seconds']:.0f} | {found['cpu']:.0f} | {found['own'] / _GIB:.2f} |"
        f" {found['all'] / _GIB:.2f} | {each:.0f} | {stages} |"
    )


if __name__ == "__main__":
    main()
