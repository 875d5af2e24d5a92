"""Features that the user brings: a `.npy` file with a row for each source row, or a column of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nncift.errors import DataError
from nncift.run.files import atomic_write, read_array, write_json

if TYPE_CHECKING:
    from datasets import Dataset


def own_features(
    samples: Dataset, source: str, *, folder: Path | None = None, name: str = "pool", source_rows: int | None = None
) -> np.ndarray:
    """The user's own features for the samples: a `.npy` file with a row per source row, or a column of the data.

    Args:
        samples: n rows as `load_pool` gives them; `source_row` says which row of the file is whose.
        source: path of a `.npy` file of shape (rows of the source, d), or the name of a column of lists of numbers.
        folder: keep them here as `<name>.npy`, as `embed` does.
        name: file name in `folder`.
        source_rows: how many rows the source has, where that is known: samples may be fewer.

    Returns:
        (n, d) float32.

    Raises:
        DataError: the shape does not fit, or a value is missing or not finite.
    """
    if folder is not None and (folder / f"{name}.json").exists():
        return read_array(folder / f"{name}.npy")
    features = (
        _features_file(samples, Path(source), source_rows)
        if source.endswith(".npy")
        else _features_column(samples, source)
    )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        row = int(np.asarray(samples["source_row"])[~finite][0]) + 1
        raise DataError("the features of this row are not finite", "mend or drop it", file=source, row=row)
    if folder is None:
        return features
    with atomic_write(folder / f"{name}.npy") as temporary, open(temporary, "wb") as handle:
        np.save(handle, features, allow_pickle=False)
    facts = {"encoder": source, "truncated": 0, "width": int(features.shape[1]), "rows": len(features)}
    write_json(folder / f"{name}.json", facts)
    return read_array(folder / f"{name}.npy")


def _features_file(samples: Dataset, path: Path, source_rows: int | None) -> np.ndarray:
    if not path.exists():
        raise DataError("no such features file", "give a .npy file or the name of a column", file=str(path))
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError("this is not an array of numbers", "write it with numpy.save", file=str(path)) from error
    rows = np.asarray(samples["source_row"], dtype=np.int64)
    least = int(rows.max()) + 1
    fits = len(array) >= least if source_rows is None else len(array) == source_rows
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not fits:
        raise DataError(
            f"expected numbers of shape (rows of the data, width), found {array.dtype} {array.shape}",
            f"the data has {f'at least {least}' if source_rows is None else source_rows} rows",
            file=str(path),
        )
    return np.ascontiguousarray(array[rows], dtype=np.float32)


def _features_column(samples: Dataset, column: str) -> np.ndarray:
    vectors: list[np.ndarray] = []
    for original, row in zip(samples["original"], samples["source_row"], strict=True):
        value = json.loads(original).get(column)
        try:
            vector = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.zeros(0, dtype=np.float32)
        if vector.ndim != 1 or not len(vector) or (vectors and len(vector) != len(vectors[0])):
            raise DataError(
                "expected a list of numbers, as long as in the first row",
                "give a .npy file or the name of a column of features",
                row=row + 1,
                field=column,
            )
        vectors.append(vector)
    return np.stack(vectors)
