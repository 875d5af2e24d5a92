"""Exact influence that another tool computed: a long table of pairs, or a whole matrix with its two lists of ids.

A table (Parquet, CSV, JSON Lines or a JSON array, also `.gz`) has the columns `pool_id`, `target_id` and
`influence`, one row per pair, in any order. A matrix is a `.npy` file of shape (pool samples, targets); the ids of
its rows and columns are JSON lists of text beside it: for `exact.npy`, `exact.pool_ids.json` and
`exact.target_ids.json`. Either may cover a part of all pairs. Larger is better, as everywhere.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.data.files.formats import file_rows
from nncift.data.rows import json_text
from nncift.errors import DataError, RunError
from nncift.labels.pairs import LabelledPairs
from nncift.run.folder.parts import LabelFolder
from nncift.run.storage.checksums import content_hash
from nncift.run.storage.files import map_array, read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

CONTENT = "content"
COLUMNS = ("pool_id", "target_id", "influence")
_LARGEST = float(np.finfo(np.float32).max)


def read_labels(path: str | Path, pool: Dataset, target: Dataset) -> LabelledPairs:
    """Read exact influence that was computed elsewhere.

    Args:
        path: the table, or the matrix (`.npy`).
        pool: the samples that may help, with their `id`.
        target: the samples to be helped; the pool itself where there are no others.

    Returns:
        The pairs, sorted by pool sample and target.

    Raises:
        DataError: the file cannot be read, a column, an id or a value is missing, an id is not in the data, a value
            is not a finite number, a pair is given twice, or there are fewer than two.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("no such file", "check the path", file=str(path))
    sides = {"pool": pool, "target": target}
    places = {side: {name: number for number, name in enumerate(rows["id"])} for side, rows in sides.items()}
    read = _read_matrix if path.suffix == ".npy" else _read_table
    pool_index, target_index, influence = read(path, places)
    if len(influence) < 2:
        raise DataError("fitting takes at least two pairs", "give more", file=str(path))
    order = np.lexsort((target_index, pool_index))
    return LabelledPairs(pool_index[order], target_index[order], influence[order])


def keep_labels(path: str | Path, pool: Dataset, target: Dataset, folder: LabelFolder) -> LabelledPairs:
    """`read_labels` once, kept in a run's folder with the file's checksum.

    Raises:
        RunError: the file has changed since the run read it.
    """
    if folder.source.exists():
        _check_same(Path(path), read_json(folder.source))
        if folder.labels.exists():
            return LabelledPairs.load(folder.labels)
    stamps = _stamps(Path(path))
    pairs = read_labels(path, pool, target)
    write_json(folder.source, stamps)
    pairs.save(folder.labels)
    return pairs


def _stamps(path: Path) -> list[dict[str, Any]]:
    """Name, size and checksum of the file and of a matrix's id lists."""
    files = [path, *_id_files(path).values()] if path.suffix == ".npy" else [path]
    found = [file for file in files if file.is_file()]
    return [{"file": file.name, "size": file.stat().st_size, CONTENT: content_hash(file)} for file in found]


def _check_same(path: Path, stored: Any) -> None:
    """Refuse files of another content; the record of an earlier version has their sizes alone."""
    before = {stamp["file"]: stamp for stamp in stored} if isinstance(stored, list) else {}
    now = {stamp["file"]: stamp for stamp in _stamps(path)}
    for name in before | now:
        old, new = before.get(name, {}), now.get(name, {})
        if any(old.get(key) != new.get(key) for key in ("size", CONTENT) if key in old or not old):
            what = "is gone" if not new else "is new" if not old else "has changed"
            undo = "remove" if what == "is new" else "restore"
            problem = f"{path.with_name(name)} {what} since this run read it"
            raise RunError(problem, f"{undo} it, or choose another `output`")


def _place(name: str, side: str, places: dict[str, dict[str, int]], file: str, row: int | None = None) -> int:
    """The number of the sample with this id."""
    if name in places[side]:
        return places[side][name]
    raise DataError(
        f"there is no sample {name!r} in the {side}",
        "its ids are the data's own, of data without ids those of nncift.load_pool(...)['id']; it lacks excluded rows"
        " and duplicates (`keep_duplicates` keeps these)",
        file,
        row,
        f"{side}_id",
    )


def _read_table(path: Path, places: dict[str, dict[str, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found: dict[tuple[int, ...], tuple[float, int]] = {}  # value and row number by pair
    for row in file_rows(path, str(path)):
        where = row.file, row.number
        if row.values is None:
            raise DataError(row.reason, "correct it", *where)
        for column in COLUMNS:
            if row.values.get(column) in (None, ""):
                raise DataError("there is no value", f"each row needs {', '.join(COLUMNS)}", *where, column)
        ids = {side: row.values[f"{side}_id"] for side in places}
        names = {side: name if isinstance(name, str) else json_text(name) for side, name in ids.items()}
        pair = tuple(_place(name, side, places, *where) for side, name in names.items())
        if pair in found:
            raise DataError(f"this pair is also in row {found[pair][1]}", "give each once", *where)
        found[pair] = (_number(row.values["influence"], *where), row.number)
    pairs = np.array([*found], dtype=np.int32).reshape(len(found), 2)
    return pairs[:, 0], pairs[:, 1], np.array([value for value, _ in found.values()], dtype=np.float32)


def _number(value: Any, file: str, row: int) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= _LARGEST:
        raise DataError(f"{str(value)[:40]!r} is not a finite number", "correct or drop it", file, row, "influence")
    return number


def _id_files(path: Path) -> dict[str, Path]:
    return {side: path.with_suffix(f".{side}_ids.json") for side in ("pool", "target")}


def _read_matrix(path: Path, places: dict[str, dict[str, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        matrix = map_array(path)
    except (ValueError, OSError) as error:
        raise DataError("this is not an array of numbers", "write it with numpy.save", file=str(path)) from error
    files = _id_files(path)
    ids = {side: _read_ids(file) for side, file in files.items()}
    if matrix.shape != (len(ids["pool"]), len(ids["target"])) or matrix.dtype.kind not in "fiu":
        raise DataError(
            f"expected numbers of shape ({len(ids['pool'])}, {len(ids['target'])}), as many as there are ids,"
            f" found {matrix.dtype} {matrix.shape}",
            "one row per pool sample, one column per target",
            file=str(path),
        )
    index = {
        side: np.array([_place(name, side, places, str(files[side])) for name in names], dtype=np.int32)
        for side, names in ids.items()
    }
    with np.errstate(over="ignore"):  # values that overflow become infinite and are refused
        values = np.asarray(matrix, dtype=np.float32)
    if not np.isfinite(values).all():
        i, j = np.argwhere(~np.isfinite(values))[0]
        raise DataError(
            f"the influence of {ids['pool'][i]!r} on {ids['target'][j]!r} is {matrix[i, j]}",
            "give a table of the pairs that have a value",
            file=str(path),
        )
    rows, columns = values.shape
    return np.repeat(index["pool"], columns), np.tile(index["target"], rows), values.ravel()


def _read_ids(path: Path) -> list[str]:
    """A list of distinct ids; numbers become text, as in the data."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("the list of ids cannot be read", "write it as a JSON list", file=str(path)) from error
    if not isinstance(ids, list) or not all(isinstance(name, str | int) for name in ids):
        raise DataError("this is not a list of ids", "write it as a JSON list of text", file=str(path))
    names = [str(name) for name in ids]
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise DataError(f"the id {twice!r} is listed twice", "list each sample once", file=str(path))
    return names
