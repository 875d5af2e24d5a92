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

from nncift.data.formats import file_rows
from nncift.data.rows import Row, json_text
from nncift.errors import DataError, RunError
from nncift.labels.pairs import LabelledPairs
from nncift.run.files import read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("pool_id", "target_id", "influence")
_LARGEST = float(np.finfo(np.float32).max)


def read_labels(path: str | Path, pool: Dataset, target: Dataset) -> LabelledPairs:
    """Read exact values that were made elsewhere.

    Args:
        path: the table, or the matrix (`.npy`).
        pool: the samples that may help, with their `id`.
        target: the samples to be helped; the pool where it is its own target.

    Returns:
        The pairs, sorted by pool sample and target.

    Raises:
        DataError: the file cannot be read, a column, an id or a value is missing, an id is not in the data, a value
            is not a finite number, a pair is given twice, or there are fewer than two.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("no such file", "check the path", file=str(path))
    places = {"pool": _places(pool), "target": _places(target)}
    read = _read_matrix if path.suffix == ".npy" else _read_table
    pool_index, target_index, influence = read(path, places)
    if len(influence) < 2:
        raise DataError("two labelled pairs or more are needed to learn from", "give more", file=str(path))
    order = np.lexsort((target_index, pool_index))
    return LabelledPairs(pool_index[order], target_index[order], influence[order])


def keep_labels(path: str | Path, pool: Dataset, target: Dataset, folder: Path) -> LabelledPairs:
    """Read them once and keep them in a run's folder as `labels.parquet`, beside what tells a changed file.

    Raises:
        DataError: as `read_labels` does.
        RunError: the file has changed since the run read it.
    """
    stored, stamps = folder / "labels.parquet", folder / "source.json"
    if stored.exists():
        if read_json(stamps) != _stamps(Path(path)):
            raise RunError(f"{path} has changed since this run read it", "choose another --output")
        return LabelledPairs.load(stored)
    stamped = _stamps(Path(path))
    pairs = read_labels(path, pool, target)
    write_json(stamps, stamped)
    pairs.save(stored)
    return pairs


def _stamps(path: Path) -> list[dict[str, Any]]:
    """What tells later whether the file, and the id lists of a matrix, are still the same."""
    files = [path, *_id_files(path).values()] if path.suffix == ".npy" else [path]
    return [
        {"file": file.name, "size": status.st_size, "modified": status.st_mtime_ns}
        for file in files
        if file.exists()
        for status in (file.stat(),)
    ]


def _places(samples: Dataset) -> dict[str, int]:
    return {name: number for number, name in enumerate(samples["id"])}


def _unknown(side: str, name: str, file: str, row: int | None = None) -> DataError:
    return DataError(
        f"there is no sample {name!r} in the {side}",
        "its ids are the data's own, of data without ids those of nncift.load_pool(...)['id']; samples that were left"
        " out are not part of it (--keep-duplicates keeps some)",
        file=file,
        row=row,
        field=f"{side}_id",
    )


def _read_table(path: Path, places: dict[str, dict[str, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found: dict[tuple[int, int], tuple[float, int]] = {}  # value and row number by pair
    for row in file_rows(path, str(path)):
        values = _checked(row)
        pair = (
            _place(row, "pool", values["pool_id"], places["pool"]),
            _place(row, "target", values["target_id"], places["target"]),
        )
        if pair in found:
            raise DataError(
                f"this pair is given before, in row {found[pair][1]}", "give each once", file=row.file, row=row.number
            )
        found[pair] = (_number(row, values["influence"]), row.number)
    pairs = np.array([*found], dtype=np.int32).reshape(len(found), 2)
    return pairs[:, 0], pairs[:, 1], np.array([value for value, _ in found.values()], dtype=np.float32)


def _checked(row: Row) -> dict[str, Any]:
    if row.values is None:
        raise DataError(row.reason, "correct it", file=row.file, row=row.number)
    for column in COLUMNS:
        if row.values.get(column) in (None, ""):
            raise DataError(
                "there is no value", f"each row needs {', '.join(COLUMNS)}", row.file, row=row.number, field=column
            )
    return dict(row.values)


def _place(row: Row, side: str, value: Any, places: dict[str, int]) -> int:
    name = value if isinstance(value, str) else json_text(value)
    if name not in places:
        raise _unknown(side, name, row.file, row.number)
    return places[name]


def _number(row: Row, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= _LARGEST:
        raise DataError(
            f"{str(value)[:40]!r} is not a finite number", "correct or drop it", row.file, row.number, "influence"
        )
    return number


def _id_files(path: Path) -> dict[str, Path]:
    return {side: path.with_suffix(f".{side}_ids.json") for side in ("pool", "target")}


def _read_matrix(path: Path, places: dict[str, dict[str, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
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
    index = {}
    for side, names in ids.items():
        unknown = next((name for name in names if name not in places[side]), None)
        if unknown is not None:
            raise _unknown(side, unknown, str(files[side]))
        index[side] = np.array([places[side][name] for name in names], dtype=np.int32)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
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
    """A list of distinct ids; numbers are taken as text, as they are in the data."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("the list of ids cannot be read", "write it as a JSON list", file=str(path)) from error
    if not isinstance(ids, list) or not all(isinstance(name, str | int) for name in ids):
        raise DataError("this is not a list of ids", "write it as a JSON list of text", file=str(path))
    names = [str(name) for name in ids]
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise DataError(f"the id {twice!r} is there twice", "give each sample once", file=str(path))
    return names
