"""Features of the user's own: a `.npy` file with a row per source row, or a column of the data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import DataError, RunError
from nncift.features.base import CONTENT, FeatureSource
from nncift.features.features import feature_facts
from nncift.run.folder.parts import FeatureFolder
from nncift.run.storage.checksums import content_hash
from nncift.run.storage.files import map_array

if TYPE_CHECKING:
    from datasets import Dataset

_SMALLEST, _LARGEST = 1e-18, 1e18  # whose squares are finite and not 0 in float32


@dataclass(frozen=True)
class OwnFeatures(FeatureSource):
    """The block "own" of a file or column; `source_row` is a sample's row in the file.

    Attributes:
        name: path of a `.npy` file of shape (rows of the source, width), or a column of lists of numbers.
        source_rows: number of rows of the source, of which the samples may be some; unknown unless given.
    """

    name: str
    source_rows: int | None = None
    is_local = True

    def check(self, samples: Dataset) -> None:
        """Refuse a file that is missing, no array of numbers, or of another shape."""
        if self._is_file:
            array, least = self._array(), int(np.max(samples["source_row"])) + 1
            numbers = array.ndim == 2 and array.shape[1] > 0 and array.dtype.kind in "fiu"
            rows = len(array) if numbers else 0
            if not numbers or (rows < least if self.source_rows is None else rows != self.source_rows):
                raise DataError(
                    f"expected numbers of shape (rows of the data, width), found {array.dtype} {array.shape}",
                    f"the data has {f'at least {least}' if self.source_rows is None else self.source_rows} rows",
                    file=self.name,
                )

    def __call__(self, samples: Dataset) -> dict[str, np.ndarray]:
        """The block; a value that is missing, of another length than the first, or not finite is refused."""
        rows = np.asarray(samples["source_row"], dtype=np.int64)
        features = np.asarray(self._array()[rows], np.float32) if self._is_file else self._column(samples)
        if not (finite := np.isfinite(features).all(axis=1)).all():
            row = int(rows[~finite][0]) + 1
            raise DataError("the features of this row are not finite", "correct or drop it", file=self.name, row=row)
        largest = float(np.abs(features).max(initial=0))
        if largest and not _SMALLEST < largest < _LARGEST:
            problem = f"the largest of the features is {largest:.3g}, which single precision cannot compare"
            raise DataError(problem, "scale them", file=self.name)
        features = np.where(np.abs(features) < _SMALLEST, np.float32(0), features)
        return {"own": features}

    def settings(self) -> dict[str, Any]:
        """The checksum of the file."""
        return {CONTENT: content_hash(Path(self.name))} if self._is_file else {}

    def check_same(self, folder: FeatureFolder, name: str) -> None:
        """Refuse finished features of a file whose content was another; one that is gone is not needed.

        Raises:
            RunError: the file has changed.
        """
        stored = feature_facts(folder, name).get(CONTENT)
        if stored is not None and Path(self.name).is_file() and stored != content_hash(Path(self.name)):
            raise RunError(f"{self.name} has changed since this run read it", "restore it, or choose another `output`")

    @property
    def _is_file(self) -> bool:
        return self.name.endswith(".npy")

    def _array(self) -> np.ndarray:
        if not Path(self.name).exists():
            raise DataError("no such features file", "give a .npy file or the name of a column", file=self.name)
        try:
            return map_array(Path(self.name))
        except ValueError as error:
            raise DataError("this is not an array of numbers", "write it with numpy.save", file=self.name) from error
        except OSError as error:
            raise DataError(f"cannot read this file ({error.strerror})", "make it readable", file=self.name) from error

    def _column(self, samples: Dataset) -> np.ndarray:
        vectors: list[np.ndarray] = []
        for original, row in zip(samples["original"], samples["source_row"], strict=True):
            try:
                vector = np.asarray(json.loads(original).get(self.name), dtype=np.float32)
            except (TypeError, ValueError):
                vector = np.zeros(0, dtype=np.float32)
            if vector.ndim != 1 or not len(vector) or (vectors and len(vector) != len(vectors[0])):
                raise DataError(
                    "expected a list of numbers, as long as in the first row",
                    "give a .npy file or the name of a column of features",
                    row=row + 1,
                    field=self.name,
                )
            vectors.append(vector)
        return np.stack(vectors)
