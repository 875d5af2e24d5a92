"""Sources of a pool: a file, a folder, a saved dataset, a hub id, data in memory, or several of these.

`open_source` only resolves a name; `Source.rows` reads, and hashes the content meanwhile. So a finished run folder is
resumed without parsing, and offline for a hub id.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from nncift.data.files.formats import file_rows, is_known
from nncift.data.files.streams import ROW_BYTES
from nncift.data.rows import Row, is_unicode
from nncift.data.sources.folders import choose_split, resolve
from nncift.data.sources.memory import dataset_rows, is_table
from nncift.errors import DataError, first_line
from nncift.run.storage.checksums import content_hash

if TYPE_CHECKING:
    from datasets import Dataset

SourceLike: TypeAlias = "str | Path | Dataset | Iterable[Mapping[str, Any]] | Sequence[str | Path]"
Stamp: TypeAlias = dict[str, Any]

IN_MEMORY = "<dataset>"
MIXTURE = (".yaml", ".yml")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
NO_SOURCE = "no such file or folder"  # begins the error


@dataclass(frozen=True)
class Source:
    """A source of rows.

    Attributes:
        name: the path or hub id as given; "<dataset>" for data in memory.
        rows: starts reading.
        hash_files: the stamps; reads again what was not read as a whole.
        notes: remarks for the user, each a line, such as files that are left out.
        paths: its files, each read from start to end; empty for other sources.
        count: number of its rows, where it is there without reading.
    """

    name: str
    rows: Callable[[], Iterator[Row]]
    hash_files: Callable[[], list[Stamp]]
    notes: list[str] = field(default_factory=list)
    paths: tuple[Path, ...] = ()
    count: int | None = None

    @property
    def stamps(self) -> list[Stamp]:
        """A hash of the content of each file, to detect changes: quick after `rows`, which hashes what it reads."""
        return self.hash_files()


@dataclass(frozen=True)
class Opening:
    """The options of `open_source`."""

    split: str | None
    prefer: str | None
    limit: int
    seed: int


def open_source(
    source: SourceLike | Source,
    *,
    split: str | None = None,
    prefer: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
) -> Source:
    """Resolve a source without reading its rows.

    A string is a path if it exists or has the form of one (it starts with `.`, `/` or `~`, or has a known suffix), else
    a hub id: "org/name", or "org/name:config" for a dataset with several configurations, as "folder:config" for a
    folder. A list of paths or hub ids is read as one source, and a YAML file is a mixture.

    Args:
        source: what to read; one that is resolved is returned.
        split: the split to read of a source with several.
        prefer: the split to read where none is named, if it is there.
        limit: bytes of the longest row, 64 MiB unless given; a longer one is a bad row.
        seed: of the rows that a mixture draws, 0 unless given.

    Raises:
        DataError: there is nothing of that name, no data in a folder, or no such split.
    """
    if isinstance(source, Source):
        return source
    return open_with(source, Opening(split, prefer, limit or ROW_BYTES, seed or 0))


def open_with(source: SourceLike, opening: Opening) -> Source:
    """As `open_source`."""
    if isinstance(source, (str, Path)):
        return _open_path(source, opening)
    if is_several(source):
        from nncift.data.sources.mixtures import open_several

        return open_several(source, opening)
    return _in_memory(source, opening)


def is_several(source: object) -> TypeGuard[Sequence[str | Path]]:
    """Whether this is a list of paths or hub ids."""
    return isinstance(source, (list, tuple)) and bool(source) and all(isinstance(each, (str, Path)) for each in source)


def _open_path(source: str | Path, opening: Opening) -> Source:
    name, path = str(source), Path(source).expanduser()
    if not name:
        raise DataError("the path is empty", "give a file, a folder or a hub id")
    if not is_unicode(name):
        raise DataError("its name is not UTF-8", "rename it", file=name)
    if not is_possible(path):
        raise DataError("the path is longer than a file system allows", "check it", file=f"{name[:60]}...")
    if path.is_dir():
        return _open_folder(name, path, None, opening)
    if path.exists():
        if path.suffix.lower() in MIXTURE:
            from nncift.data.sources.mixtures import open_mixture

            return open_mixture(path, name, opening)
        if opening.split is not None:
            raise DataError(f"a single file has no split {opening.split!r}", "leave `split` out", file=name)
        return _of_files(name, [(path, name)], opening, [])
    folder, colon, config = name.rpartition(":")
    if colon and Path(folder).expanduser().is_dir():
        return _open_folder(folder, Path(folder).expanduser(), config, opening)
    if isinstance(source, Path) or name.startswith((".", "/", "~")) or is_known(path) or path.suffix.lower() in MIXTURE:
        raise DataError(NO_SOURCE, "check the path", file=name)
    if not is_hub_name(name):
        raise DataError(f"{NO_SOURCE}, nor a hub id", 'a hub id looks like "org/name"', file=name)
    return Source(name, partial(_hub_rows, name, opening), lambda: [{"file": name, "split": opening.split}])


def is_possible(path: Path) -> bool:
    """Whether the file system could have such a path: not where a name in it is too long."""
    try:
        path.exists()
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def is_hub_name(name: str) -> bool:
    """Whether a name has the form of a hub id, and not that of a path."""
    return _HUB_ID.fullmatch(name) is not None and not name.startswith(".") and not is_known(Path(name))


def _of_files(name: str, files: Sequence[tuple[Path, str]], opening: Opening, notes: list[str]) -> Source:
    """The source of these files, each with its name for users."""
    hashes: dict[str, str] = {}

    def rows() -> Iterator[Row]:
        for path, shown in files:
            yield from file_rows(path, shown, limit=opening.limit, hashed=partial(hashes.__setitem__, shown))

    def stamps() -> list[Stamp]:
        return [{"file": shown, "xxh3_128": hashes.get(shown) or hash_file(path, shown)} for path, shown in files]

    return Source(name, rows, stamps, notes, tuple(path for path, _ in files))


def hash_file(path: Path, name: str) -> str:
    """The hash of a file's content.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return content_hash(path)
    except OSError as error:
        raise DataError(f"the file cannot be read ({error.strerror})", "check it", file=name) from error


def _open_folder(name: str, path: Path, config: str | None, opening: Opening) -> Source:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        if config is not None:
            raise DataError(f"a saved dataset has no configuration {config!r}", "leave it out", file=name)
        held = [p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith("cache-")]  # of `map`
        return Source(
            name,
            partial(_saved_rows, path, name, opening),
            lambda: [{"file": str(p), "xxh3_128": hash_file(p, str(p))} for p in held],
        )
    found = resolve(path, name, config, opening.split, opening.prefer)
    for file in found.files:
        if not is_unicode(file):
            raise DataError("the name of this file is not UTF-8", "rename it", file=str(Path(name) / file))
    files = [(path / file, str(Path(name) / file)) for file in found.files]
    return _of_files(name if config is None else f"{name}:{config}", files, opening, found.notes)


def _hub_rows(name: str, opening: Opening) -> Iterator[Row]:
    import datasets

    identity, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(identity, config or None, split=opening.split)
    except Exception as error:  # hub, network and file errors share no base class
        raise DataError(f"cannot load it from the hub ({first_line(error)})", _hub_fix(error), file=name) from error
    if isinstance(loaded, dict):
        loaded = loaded[choose_split(list(loaded), name, None, opening.prefer)]
    yield from dataset_rows(loaded, name, opening.limit)


def _hub_fix(error: Exception) -> str:
    if isinstance(error, ConnectionError):
        return "check the network, or give a local file (there is none of that name)"
    if isinstance(error, FileNotFoundError):
        return "check the spelling; for a private or gated dataset log in with `hf auth login`"
    if "onfig name" in str(error):
        return 'name one as "org/name:config"'
    return "check the name, the configuration and `split`"


def _saved_rows(path: Path, name: str, opening: Opening) -> Iterator[Row]:
    import datasets

    try:
        loaded = datasets.load_from_disk(path)
    except Exception as error:  # whatever its state files make of it
        raise DataError(f"cannot load this saved dataset ({first_line(error)})", "save it again", file=name) from error
    yield from dataset_rows(_split_of(loaded, name, opening), name, opening.limit)


def _in_memory(source: Any, opening: Opening) -> Source:
    if isinstance(source, (Mapping, str, bytes)) and not _is_dict_of_datasets(source):
        raise DataError(f"a {type(source).__name__} is not a list of rows", "give a list of dicts, or a dataset")
    if not is_table(source) and not isinstance(source, (Iterable, Mapping)):
        raise DataError(f"{source!r} is not data", "give a path, a hub id, a dataset, a DataFrame or a list of dicts")
    chosen = _split_of(source, IN_MEMORY, opening)
    read: dict[str, str] = {}

    def rows() -> Iterator[Row]:
        import xxhash

        digest, count = xxhash.xxh3_128(), 0
        for row in dataset_rows(chosen, IN_MEMORY, opening.limit):
            text = row.text.encode("utf-8", "surrogatepass")
            digest.update(b"%d " % len(text) + text)
            count += 1
            yield row
        read.update(rows=str(count), xxh3_128=digest.hexdigest())

    def stamps() -> list[Stamp]:
        if not read:
            for _ in rows():
                pass
        return [{"file": IN_MEMORY, "rows": int(read["rows"]), "xxh3_128": read["xxh3_128"]}]

    return Source(IN_MEMORY, rows, stamps, count=len(chosen) if hasattr(chosen, "__len__") else None)


def _is_dict_of_datasets(source: object) -> bool:
    return isinstance(source, Mapping) and bool(source) and all(is_table(each) for each in source.values())


def _split_of(dataset: Any, name: str, opening: Opening) -> Any:
    """One split of a DatasetDict; anything else as it is, where no other split is asked for."""
    if isinstance(dataset, Mapping):
        return dataset[choose_split(list(dataset), name, opening.split, opening.prefer)]
    own = getattr(dataset, "split", None)
    if opening.split is not None and str(own) != opening.split:
        there = f"the data are of {str(own)!r}" if own is not None else "the data have no splits"
        raise DataError(f"there is no split {opening.split!r}", f"leave `split` out: {there}", file=name)
    return dataset


def changed_file(before: Iterable[Stamp], now: Iterable[Stamp]) -> tuple[str, str] | None:
    """The first file that differs from its stamp, and how: "is gone", "is new" or "has changed"."""
    then, there = {each["file"]: each for each in before}, {each["file"]: each for each in now}
    for file in then | there:
        if file not in there:
            return file, "is gone"
        if file not in then:
            return file, "is new"
        if not _is_same(then[file], there[file]):
            return file, "has changed"
    return None


def _is_same(before: Stamp, now: Stamp) -> bool:
    if "modified" in before:  # of version 0.1, which kept size and time of a file
        status = Path(before["file"]).expanduser().stat()
        return (status.st_size, status.st_mtime_ns) == (before["size"], before["modified"])
    if "sample" in before:  # of version 0.1, of data in memory
        return bool(before["rows"] == now["rows"])
    return before == now
