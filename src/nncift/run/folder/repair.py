"""Repair of a run folder: damaged files are removed, so that the same command computes them again.

A file is damaged if its checksum differs; in a folder of an earlier version, which has no checksums, if it cannot be
read. The other files stay as they are, so only what is lost costs time. Files that are not the run's are not touched.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from nncift.errors import ConfigError, RunError
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import counted
from nncift.run.options.amounts import parse_labels
from nncift.run.storage.checksums import (
    CHECKSUMS,
    PARTIAL,
    SEALED,
    Checksums,
    checksum_line,
    content_hash,
    parse_line,
    sealed_files,
)
from nncift.run.storage.files import (
    atomic_write,
    read_array,
    read_json,
    read_table,
    read_tensors,
    remove,
)
from nncift.run.storage.refusals import refuse_damaged

_AGAIN = "the same command writes it again"
_CHECKPOINT = re.compile(r"epoch-(\d+)")


def repair(folder: str | os.PathLike[str]) -> list[str]:
    """Check every file of a run, and remove the damaged ones.

    Args:
        folder: the run folder.

    Returns:
        A line for each damaged file, or one that nothing is damaged.

    Raises:
        RunError: this is no run folder, or another process is working in it.
    """
    run = RunFolder(folder)
    if not any(path.is_file() for path in (run.config, run.path / CHECKSUMS)):
        raise RunError(f"{run.path} is not the folder of a run", "give the folder that `output` named")
    with run.locked():
        lines = _repair_list(run)
        files = sorted({*_own_files(run), *_listed_files(run), *sealed_files(run.path)})
        for path in files:
            if path.is_file() and _is_damaged(path):
                lines += _remove(run, path)
        lines += _remove_stale(run)
    checked = f"{counted(len(files), 'file')} of {run.path} {'was' if len(files) == 1 else 'were'} checked"
    return lines or [f"Nothing is damaged: {checked}."]


def _is_damaged(path: Path) -> bool:
    """Whether a recorded file differs from its checksums, or, where there are none, one of ours cannot be read."""
    checksums = Checksums.of(path)
    name = path.name if checksums is None else checksums.name(path)
    if checksums is not None and path.name != SEALED:
        try:
            return name in checksums.found and checksums.differs(name)
        except FileNotFoundError:  # another process has just removed it
            return False
    try:
        if (read := _readers().get(path.suffix)) is not None:
            read(path)
    except RunError as error:
        if not path.exists():
            return False
        if isinstance(error.__cause__, OSError) and error.__cause__.errno is not None:
            raise
        return True
    return False


def _readers() -> dict[str, Callable[[Path], object]]:
    def read_lines(path: Path) -> None:
        try:
            for line in path.read_bytes().splitlines():
                json.loads(line)
        except ValueError as error:
            raise RunError(f"{path} is damaged") from error

    def read_costs_or_json(path: Path) -> object:
        return read_json(path, sealed=path.name == SEALED)

    def read_stream(path: Path) -> None:
        import pyarrow as pa

        with refuse_damaged(path, "is damaged", pa.ArrowException):
            for _ in pa.ipc.open_stream(pa.memory_map(str(path))):
                pass

    return {
        ".arrow": read_stream,
        ".json": read_costs_or_json,
        ".jsonl": read_lines,
        ".npy": read_array,
        ".parquet": read_table,
        ".safetensors": read_tensors,
    }


def _remove(run: RunFolder, path: Path) -> list[str]:
    """Remove a damaged file, and what is of no use without it."""
    name = path.relative_to(run.path).as_posix()
    if path.name == SEALED:
        remove(path)
        return [f"{name} was damaged and is removed: times and tokens are counted from now on."]
    if path in (run.labels.notes, run.vectors.notes):
        remove(path)
        labelled = "labelled " if path == run.labels.notes else ""
        return [f"{name} was damaged and is removed: the report lacks the number of truncated {labelled}samples."]
    nothing_needs_it = path.parent.parent == run.labels.path and path != run.labels.among_targets
    if nothing_needs_it and run.labels.labels.is_file():
        remove(path)
        return [f"{name} was damaged and is removed: nothing needs it any more."]
    together = [path]
    if run.network in path.parents:
        together = [run.network]
    for side in map(run.samples, ("pool", "target", "known")):
        if path in side.lists:  # written together with the samples
            together = [path, side.samples]
    for parent in path.parents:
        if match := _CHECKPOINT.fullmatch(parent.name):  # later epochs started from it
            epochs = {folder: _CHECKPOINT.fullmatch(folder.name) for folder in parent.parent.iterdir()}
            together = [folder for folder, epoch in epochs.items() if epoch and int(epoch[1]) >= int(match[1])]
    for one in together:
        remove(one)
    return [f"{name} was damaged and is removed: {_AGAIN}."]


def _remove_stale(run: RunFolder) -> list[str]:
    """Without its plan, a labelling that took a given time cannot be made again: remove what followed from it."""
    if run.labels.plan.is_file() or not run.labels.labels.is_file() or not _is_timed(run):
        return []
    after = (run.labels, run.probes, run.shortlist, run.difficulty)
    results = (run.network, run.fidelity, run.influence, run.known, run.selection, run.subset, run.summary, run.report)
    for path in (*(folder.path for folder in after), *results):
        remove(path)
    return ["labels/plan.json is lost, and the time for labels gives other pairs now: labels and all results removed."]


def _is_timed(run: RunFolder) -> bool:
    """Whether the run's labels are given as a time."""
    try:
        return parse_labels(str(read_json(run.config)["labels"])).kind == "seconds"
    except (ConfigError, RunError, KeyError, TypeError):
        return False


def _repair_list(run: RunFolder) -> list[str]:
    """Write the list of checksums again where a line of it is damaged, or files of the run lack theirs."""
    path = run.path / CHECKSUMS
    if not path.is_file():
        return []
    data = [line for line in path.read_bytes().split(b"\n") if line]
    whole = {line: entry for line in data if (entry := parse_line(line)) is not None}
    damaged = b"\n".join(line for line in data if line not in whole)
    known = {name for name, _ in whole.values()}
    more, notes = [], []
    for file in _own_files(run):
        name = file.relative_to(run.path).as_posix()
        line = checksum_line(name, content_hash(file)).encode()
        if line in whole:
            continue
        proven = _is_proven(line, damaged)
        if proven or name not in known:
            more.append(line)
        if not proven and name not in known:
            notes.append(name)
    if not damaged and not more:
        return []
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in (*whole, *more)))
    lines = [f"{CHECKSUMS} was damaged and is written again."]
    if notes:
        lines.append(f"Lost checksums were computed from the files as they are now: {', '.join(notes)}.")
    return lines


def _is_proven(line: bytes, damaged: bytes) -> bool:
    """Whether damaged lines hold a file's checksum, or the check of its line: one of the two is whole."""
    _, digest, check = json.loads(line)
    return digest.encode() in damaged or check.encode() in damaged


def _own_files(run: RunFolder) -> Iterator[Path]:
    """The files that a run writes, save the costs and the log."""
    folders = [
        run.first_cut.path,
        run.features.path,
        run.vectors.path,
        run.network,
        *(run.samples(side).path for side in ("pool", "target", "known")),
    ]
    folders += [run.labels.path, run.probes.path, run.shortlist.path, run.difficulty.path]
    folders += [run.embeddings.path, run.explorer.map.parent]
    single = (run.config, run.function, run.tokens, run.fidelity, run.influence, run.known, run.selection, run.subset)
    taken = (run.models, run.taken, run.prefix, run.measured)
    inside = (path for folder in folders for path in sorted(folder.rglob("*")))
    for path in (*single, *taken, run.reasons, run.summary, run.report, *inside):
        if path.is_file() and not any(part.startswith(PARTIAL) for part in path.relative_to(run.path).parts):
            yield path


def _listed_files(run: RunFolder) -> Iterator[Path]:
    """The files whose checksums are listed."""
    checksums = Checksums.of(run.config)
    if checksums is not None and (run.path / CHECKSUMS).is_file():
        yield from (path for name in checksums.found if (path := run.path / name).is_file())
