"""Sources of a pool: a file, a folder, a saved dataset, a hub id, or data in memory.

`open_source` only resolves a name and stamps its files, to detect later changes; `Source.rows` reads. So a finished run
folder is resumed without reading, and offline for a hub id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from nncift.data.formats import file_rows, is_known, known_formats
from nncift.data.rows import BATCH, Row, arrow_rows, mapping_rows
from nncift.errors import DataError
from nncift.run.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

SourceLike: TypeAlias = "str | Path | Dataset | Sequence[Mapping[str, Any]]"

IN_MEMORY = "<dataset>"
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json"}  # metadata of a folder, not rows
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")


@dataclass(frozen=True)
class Source:
    """A source of rows."""

    name: str  # the path or hub id as given; "<dataset>" for data in memory
    stamps: list[dict[str, Any]]  # size and modification time of each file, to detect changes
    rows: Callable[[], Iterator[Row]]  # starts reading


def open_source(source: SourceLike | Source, *, split: str | None = None, prefer: str | None = None) -> Source:
    """Resolve a source without reading it; one that is resolved is returned.

    A string is a path if it exists or has the form of one (it starts with `.`, `/` or `~`, or has a known suffix), else
    a hub id: "org/name", or "org/name:config" for a dataset with several configurations. `split` is of a hub id or a
    DatasetDict, and ignored for files; without it, `prefer` is taken of several.

    Raises:
        DataError: there is nothing of that name, or no data in a folder.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.is_dir():
            return _open_folder(str(source), path, split, prefer)
        if path.exists():
            return Source(str(source), [_stamp(path, str(source))], partial(file_rows, path, str(source)))
        if isinstance(source, Path) or source.startswith((".", "/", "~")) or is_known(path):
            raise DataError("no such file or folder", "check the path", file=str(source))
        if (match := _HUB_ID.fullmatch(source)) is None:
            raise DataError("no such file or folder, nor a hub id", 'a hub id looks like "org/name"', file=source)
        return Source(source, [{"file": source, "split": split}], partial(_hub_rows, match, split, prefer))
    chosen = _choose(source, IN_MEMORY, split, prefer)
    return Source(IN_MEMORY, _stamps_in_memory(chosen), partial(_dataset_rows, chosen, IN_MEMORY))


def _open_folder(name: str, path: Path, split: str | None, prefer: str | None) -> Source:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        stamps = [_stamp(p, str(p)) for p in sorted(path.rglob("*")) if p.is_file()]
        return Source(name, stamps, partial(_saved_rows, path, name, split, prefer))
    inside = [p.relative_to(path) for p in sorted(path.rglob("*")) if p.is_file() and is_known(p)]
    files = [p for p in inside if p.name not in _DESCRIPTIONS and not any(part[0] == "." for part in p.parts)]
    if not files:
        raise DataError("no data in this folder", f"expected {known_formats()}, or a saved dataset", file=name)

    def rows() -> Iterator[Row]:
        for file in files:
            yield from file_rows(path / file, str(Path(name) / file))

    return Source(name, [_stamp(path / file, str(Path(name) / file)) for file in files], rows)


def _hub_rows(match: re.Match[str], split: str | None, prefer: str | None) -> Iterator[Row]:
    import datasets

    name = match[0]
    try:
        loaded = datasets.load_dataset(match["id"], match["config"], split=split)
    except Exception as error:  # hub, network and file errors share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot load it from the hub ({reason})", _hub_fix(error), file=name) from error
    yield from _dataset_rows(_choose(loaded, name, split, prefer), name)


def _hub_fix(error: Exception) -> str:
    if isinstance(error, ConnectionError):
        return "check the network, or give a local file (there is none of that name)"
    if isinstance(error, FileNotFoundError):
        return "check the spelling; for a private or gated dataset log in with `hf auth login`"
    if "onfig name" in str(error):
        return 'name one as "org/name:config"'
    return "check the name, the configuration and `split`"


def _saved_rows(path: Path, name: str, split: str | None, prefer: str | None) -> Iterator[Row]:
    import datasets

    try:
        loaded = datasets.load_from_disk(path)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot load this saved dataset ({error})", "save it again", file=name) from error
    yield from _dataset_rows(_choose(loaded, name, split, prefer), name)


def _choose(dataset: Any, name: str, split: str | None, prefer: str | None) -> Any:
    """One split of a DatasetDict; anything else as it is."""
    if not isinstance(dataset, dict):
        return dataset
    chosen = split or (next(iter(dataset)) if len(dataset) == 1 else prefer)
    if chosen not in dataset:
        problem = f"there is no split {chosen!r}" if chosen else "it has several splits"
        raise DataError(problem, f"choose one with `split`: {', '.join(dataset)}", file=name)
    return dataset[chosen]


def _dataset_rows(dataset: Any, name: str) -> Iterator[Row]:
    if not hasattr(dataset, "with_format") or not hasattr(dataset, "__len__"):  # mappings, or an IterableDataset
        return mapping_rows(dataset, name)
    return arrow_rows(dataset.with_format("arrow").iter(BATCH), name)  # Python rows would decode images


def _stamp(path: Path, name: str) -> dict[str, Any]:
    status = path.stat()
    return {"file": name, "size": status.st_size, "modified": status.st_mtime_ns}


def _stamps_in_memory(dataset: Any) -> list[dict[str, Any]]:
    """The number of rows and a hash of up to 1,000 of them."""
    if not hasattr(dataset, "__len__"):
        return [{"file": IN_MEMORY}]
    every = range(0, len(dataset), max(1, len(dataset) // 1000))
    sample = dataset.select(every) if hasattr(dataset, "select") else [dataset[i] for i in every]
    texts = (row.text for row in _dataset_rows(sample, IN_MEMORY))
    return [{"file": IN_MEMORY, "rows": len(dataset), "sample": fingerprint(*texts)}]
