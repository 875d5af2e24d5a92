"""A flipped byte, a cut or an emptied file in a finished run folder: noticed, named in one line, and repaired.

Every file of the folder is damaged in turn: one bit of a random byte is flipped; in the whole campaign, for the runs of
`_THOROUGH`, also of the first, the middle and the last byte, and its second half or all of it is cut off. Then the same
call must refuse the folder and name the file, and after `nncift repair` it must end with the bytes of the undamaged
run. `run.log` is a diary that nothing reads, and is left out.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import children
import runs

_UNREAD = {"run.log"}
_THOROUGH = ("bm25", "bm25 from labels", "less", "verified shortlist", "active learning")
_NOT_AGAIN = {  # files that led to a result which is there: nothing needs them in a finished run of that kind
    "active learning": {"function.json", "models.json"},
    "token budget": {"tokens.npy"},
}


def campaign(
    folder: Path, n_runs: int, seed: int, kinds: Sequence[runs.Kind], most: int | None = None
) -> tuple[list[dict[str, object]], list[str]]:
    """Damage the files of `n_runs` kinds of runs, each once (0: of all kinds, some thoroughly).

    Args:
        folder: of the runs.
        n_runs: how many kinds.
        seed: of the places.
        kinds: of runs.
        most: files of a run, drawn at random; all unless given.
    """
    rng, failures, table = random.Random(seed), [], []
    os.environ["NNCIFT_CACHE"] = str(folder / "cache")
    first = sorted(kinds, key=lambda kind: _THOROUGH.index(kind.name) if kind.name in _THOROUGH else len(_THOROUGH))
    for kind in first[: n_runs or None]:
        whole = folder / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        outcome = children.run(runs.start(kind, whole))
        if outcome.kind != "ok":
            failures.append(f"{kind.name}: {outcome}")
            continue
        thorough = not n_runs and kind.name in _THOROUGH
        row, failed = _damage(kind, whole, folder / "damaged", rng, thorough=thorough, most=most)
        table.append(row)
        failures += failed
        print(f"damage: {kind.name}, {len(failures)} failures so far", file=sys.stderr)
    names = ("files", "damages", "noticed", "repaired")
    return [*table, {"run": "all"} | {name: sum(int(row[name]) for row in table) for name in names}], failures


def _damage(
    kind: runs.Kind, whole: Path, folder: Path, rng: random.Random, *, thorough: bool, most: int | None
) -> tuple[dict[str, object], list[str]]:
    expected, failures = runs.contents(whole), []
    files = [path for path in sorted(whole.rglob("*")) if path.is_file() and not _is_unread(path)]
    files = files if most is None or most >= len(files) else sorted(rng.sample(files, most))
    damages = noticed = repaired = 0
    for path in files:
        name = str(path.relative_to(whole))
        for what, content in _damaged(path.read_bytes(), rng, thorough=thorough):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(whole, folder)
            (folder / name).write_bytes(content)
            damages += 1
            where = f"{kind.name}, {name}, {what}"
            outcome = children.run(runs.start(kind, folder))
            if outcome.kind == "refused" and Path(name).name in outcome.text:
                noticed += 1
            else:
                failures.append(f"{where}: not noticed but {outcome.kind} {outcome.text}")
            outcome = children.run(lambda: _repair(folder))
            if outcome.kind != "ok":
                failures.append(f"{where}: repair {outcome.kind} {outcome.text}")
            outcome = children.run(runs.start(kind, folder))
            found = runs.contents(folder)
            not_again = {file for file in expected if _is_intermediate(file)} | _NOT_AGAIN.get(kind.name, set())
            kept = {file: value for file, value in expected.items() if file in found or file not in not_again}
            differ = sorted(file for file in found | kept if found.get(file) != kept.get(file))
            if outcome.kind == "ok" and not differ:
                repaired += 1
            else:
                failures.append(f"{where}: after repair {outcome.kind} {outcome.text}, differs in {', '.join(differ)}")
    return {
        "run": kind.name,
        "files": len(files),
        "damages": damages,
        "noticed": noticed,
        "repaired": repaired,
    }, failures


def _is_unread(path: Path) -> bool:
    return path.name in _UNREAD or path.suffix == ".lock" or path.name == ".lock"


def _is_intermediate(file: str) -> bool:
    """Whether nothing needs the file once the run has chosen: it is not computed again."""
    unused = ("labels/notes.json", "vectors/notes.json", "labels/delift-baseline.npy")
    if file.startswith("choices/") and file.endswith(".gains.npy"):  # of a comparison without `methods` weighted
        return True
    return file in unused or file.startswith(("labels/held-out/", "labels/round-", "verify/", "difficulty/"))


def _damaged(data: bytes, rng: random.Random, *, thorough: bool) -> list[tuple[str, bytes]]:
    """What is done to a file, and its bytes then."""
    if not data:
        return []
    places = {rng.randrange(len(data)), *((0, len(data) // 2, len(data) - 1) if thorough else ())}
    flips = [(f"byte {place} flipped", _flipped(data, place, rng.randrange(8))) for place in sorted(places)]
    return [*flips, *([("cut in half", data[: len(data) // 2]), ("emptied", b"")] if thorough else [])]


def _flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


def _repair(folder: Path) -> Any:
    from nncift.cli import main

    return _code(lambda: main(["repair", str(folder)]))


def _code(command: Callable[[], Any]) -> int:
    try:
        command()
    except SystemExit as error:
        return int(error.code or 0)
    return 0
