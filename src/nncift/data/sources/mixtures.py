"""Several sources as one: a list of paths, or a mixture, which takes a share of each.

A mixture is a YAML file, a list of entries such as `{name: math, path: math.jsonl, weight: 0.5}`. `weight` is the share
of the source's rows to take, `cap` their largest number; which rows is drawn from the seed and the source's name, so
that it depends on no other source. A source with either is read twice: its rows are counted first.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nncift.data.rows import Row, kind
from nncift.data.sources.sources import MIXTURE, Opening, Source, Stamp, hash_file, is_hub_name, is_possible, open_with
from nncift.errors import DataError

_KEYS = ("name", "path", "weight", "cap", "split")


@dataclass(frozen=True)
class Part:
    """A source of a mixture.

    Attributes:
        name: in the column `source`.
        source: where the rows come from.
        weight: the share of the rows to take, above 0 and at most 1.
        cap: the largest number of rows to take.
    """

    name: str
    source: Source
    weight: float | None = None
    cap: int | None = None

    def rows(self, seed: int) -> Iterator[Row]:
        """The rows that are taken, in their order."""
        every = self.source.rows()
        if self.weight is not None or self.cap is not None:
            taken = self._drawn(sum(1 for _ in every), seed)
            every = (row for row, is_taken in zip(self.source.rows(), taken, strict=False) if is_taken)
        for row in every:
            yield row._replace(source=self.name)

    def _drawn(self, count: int, seed: int) -> Any:
        """Which of so many rows are taken, (count,) bool."""
        import numpy as np

        wanted = count if self.weight is None else max(1, round(self.weight * count))
        wanted = min(wanted, count, count if self.cap is None else self.cap)
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        taken = np.zeros(count, bool)
        taken[rng.choice(count, wanted, replace=False)] = True
        return taken


def open_several(paths: Sequence[str | Path], opening: Opening) -> Source:
    """Several paths or hub ids as one source, each named as given.

    Raises:
        DataError: one is given twice, or cannot be opened.
    """
    names = [str(path) for path in paths]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError("this source is given twice", "give it once", file=twice)
    parts = [Part(name, open_with(path, opening)) for name, path in zip(names, paths, strict=True)]
    return parts[0].source if len(parts) == 1 else _joined(", ".join(names), parts, opening.seed)


def open_mixture(path: Path, name: str, opening: Opening) -> Source:
    """The sources that a YAML file lists, whose paths are relative to it.

    Raises:
        DataError: the file is no mixture, or a source cannot be opened.
    """
    if opening.split is not None:
        raise DataError("a mixture names the split of each of its sources", "write it into the mixture", file=name)
    parts: list[Part] = []
    for number, entry in enumerate(_entries(path, name), 1):
        part = _part(entry, replace(opening, split=entry.get("split")), name, number)
        if any(part.name == other.name for other in parts):
            raise DataError(f"two sources are called {part.name!r}", "rename one", file=name, row=number)
        parts.append(part)
    joined = _joined(name, parts, opening.seed)

    def stamps() -> list[Stamp]:
        return [{"file": name, "xxh3_128": hash_file(path, name), "seed": opening.seed}, *joined.stamps]

    return replace(joined, hash_files=stamps)


def _joined(name: str, parts: Sequence[Part], seed: int) -> Source:
    def rows() -> Iterator[Row]:
        for part in parts:
            yield from part.rows(seed)

    def stamps() -> list[Stamp]:
        return [stamp for part in parts for stamp in part.source.stamps]

    whole = all(part.weight is None and part.cap is None and part.source.paths for part in parts)
    paths = tuple(path for part in parts for path in part.source.paths) if whole else ()
    return Source(name, rows, stamps, [note for part in parts for note in part.source.notes], paths)


_EXAMPLE = "a list of sources, such as: - {name: math, path: math.jsonl, weight: 0.5}"


def _entries(path: Path, name: str) -> list[dict[str, Any]]:
    import yaml

    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the mixture is not valid YAML ({reason})", "correct it", file=name) from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"a mixture is {_EXAMPLE}", f"this is {kind(entries)}", file=name)
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise DataError(f"{kind(entry)}, not a source", f"a mixture is {_EXAMPLE}", file=name, row=number)
        unknown = [str(key) for key in entry if key not in _KEYS]
        if unknown:
            raise DataError("there is no such key", f"known are {', '.join(_KEYS)}", name, number, unknown[0])
    return entries


def _part(entry: dict[str, Any], opening: Opening, name: str, number: int) -> Part:
    def refuse(key: str, problem: str, fix: str) -> DataError:
        return DataError(problem, fix, file=name, row=number, field=key)

    for key in ("name", "path", *(["split"] if "split" in entry else [])):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise refuse(key, "missing" if key not in entry else f"{kind(entry[key])}, not text", "give a text")
    weight, cap = entry.get("weight"), entry.get("cap")
    if weight is not None and cap is not None:
        raise refuse("cap", "`weight` and `cap` are both given", "leave one of them out")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1):
        raise refuse("weight", f"{weight!r} is not a share of the rows", "give a number above 0 and at most 1")
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        raise refuse("cap", f"{cap!r} is not a number of rows", "give a whole number of at least 1")
    return Part(entry["name"], _open_listed(entry["path"], opening, name, number), weight, cap)


def _open_listed(listed: str, opening: Opening, name: str, number: int) -> Source:
    """The source of an entry: a path from the mixture's folder, unless it is absolute, or else a hub id."""
    if Path(listed).suffix.lower() in MIXTURE:
        raise DataError("a mixture in a mixture", "list its sources here", file=name, row=number, field="path")
    beside = Path(name).parent / Path(listed).expanduser()
    if not is_possible(beside):
        return open_with(str(beside), opening)  # refuses it
    folder = Path(str(beside).rpartition(":")[0])
    is_hub_id = is_hub_name(listed) and not beside.exists() and not (folder.name and folder.is_dir())
    return open_with(listed if is_hub_id else str(beside), opening)
