"""Per-item results of a model on a test set, kept so that any two models can be compared item by item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nncift.errors import RunError
from nncift.run.storage.files import read_table, write_table


class Metric(NamedTuple):
    """What a column of results measures."""

    title: str
    larger_is_better: bool
    binary: bool = False  # each item is 0 or 1


METRICS = {
    "loss": Metric("response loss", False),  # leads: the most sensitive at small sizes
    "exact_match": Metric("exact match", True, binary=True),
    "rouge1": Metric("ROUGE-1", True),
    "rouge2": Metric("ROUGE-2", True),
    "rougeL": Metric("ROUGE-L", True),
    "similarity": Metric("embedding similarity", True),
    "judge": Metric("judge (1-5)", True),
}


@dataclass(frozen=True, eq=False)
class ItemScores:
    """Results of one model on the n items of a test set.

    Attributes:
        ids: of the items.
        values: by the names in `METRICS`, float64 (n,); NaN for an item that a metric does not apply to, or that the
            judge gave no grade.
        answers: the generated responses; empty where nothing was generated.
    """

    ids: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    answers: tuple[str, ...] = field(default=())

    def save(self, path: Path) -> None:
        """Write one Parquet file, a row for each item."""
        import pyarrow as pa

        columns = {"id": pa.array(self.ids, pa.string())}
        columns |= {name: pa.array(np.asarray(value, np.float64)) for name, value in self.values.items()}
        if self.answers:
            columns["answer"] = pa.array(self.answers, pa.string())
        write_table(path, pa.table(columns))

    @classmethod
    def load(cls, path: Path) -> ItemScores:
        """The inverse of `save`.

        Raises:
            RunError: the file is missing or damaged.
        """
        table = read_table(path)
        if "id" not in table.column_names:
            raise RunError(f"{path} holds no results of a test set", "remove it, and run the same command again")
        values = {name: table[name].to_numpy() for name in METRICS if name in table.column_names}
        answers = tuple(table["answer"].to_pylist()) if "answer" in table.column_names else ()
        return cls(tuple(table["id"].to_pylist()), values, answers)
