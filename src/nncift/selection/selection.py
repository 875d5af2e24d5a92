"""Selection: the selected samples in order, and the files that hold them.

The subset's rows are the user's rows: the JSON text of the source with three keys appended, not parsed and serialized
again, streamed from the memory-mapped pool.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.data.pool import open_samples
from nncift.data.schemas import chat_messages
from nncift.errors import ConfigError, RunError
from nncift.run.files import atomic_write, read_table, write_table
from nncift.run.folder import RunFolder

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

RANK, GAIN, INFLUENCE = "nncift_rank", "nncift_gain", "nncift_influence"
_METADATA = ("value", "objective", "objective_options")  # of the table


@dataclass(frozen=True, eq=False)
class Selection:
    """A subset in the order selected; under a count budget, its first m samples are the subset of budget m.

    Attributes:
        indices: pool rows, int64 (k,).
        gains: marginal gain of each when it was selected, float64 (k,).
        value: the objective's value of the subset.
        objective: the objective's name.
        objective_options: its parameters.
        influence: mean influence of each over the targets, on the influence function's scale, float32 (k,); None when
            not given.
        pool: what `indices` point into, with the columns `id` and `original`; None when not given.
    """

    indices: np.ndarray
    gains: np.ndarray
    value: float
    objective: str = ""
    objective_options: dict[str, float] = field(default_factory=dict)
    influence: np.ndarray | None = None
    pool: Dataset | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def with_pool(self, pool: Dataset, influence: np.ndarray | None = None) -> Selection:
        """The same selection with its pool and, per pool row, the mean influence, float (n_pool,)."""
        chosen = self.influence if influence is None else np.asarray(influence, dtype=np.float32)[self.indices]
        return replace(self, pool=pool, influence=chosen)

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The selected rows in their original columns, with nncift_rank (from 1), nncift_gain, nncift_influence.

        A column whose values have no common Arrow type holds each value's JSON text instead. Without a pool, this and
        the other methods that need one raise a ConfigError.
        """
        import pyarrow as pa
        from datasets import Dataset

        rows = [json.loads(line) for line in self._lines()]
        names = list(dict.fromkeys(name for row in rows for name in row))
        return Dataset(pa.table({name: _column([row.get(name) for row in rows]) for name in names}))

    def sft_dataset(self, *, chat: bool = True) -> Dataset:
        """The selected samples in the columns of trl's SFTTrainer.

        Args:
            chat: a column `messages`, for a model with a chat template: each chat as it is, each other sample as a user
                and an assistant message. Otherwise the columns `prompt` and `completion`, as text.
        """
        from datasets import Dataset

        rows = self._rows("prompt", "response", "messages")
        if not chat:
            return Dataset.from_list([{"prompt": row["prompt"], "completion": row["response"]} for row in rows])
        return Dataset.from_list([{"messages": _conversation(row)} for row in rows])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the selection's table and, last, the subset: the original rows, unchanged, and three keys.

        Raises:
            RunError: the folder cannot be written.
        """
        import pyarrow as pa

        run = RunFolder(folder)
        columns = {
            "rank": np.arange(1, len(self) + 1, dtype=np.int64),
            "pool_index": self.indices.astype(np.int64),
            "id": pa.array([row["id"] for row in self._rows("id")], pa.string()),
            "gain": self.gains.astype(np.float64),
            "influence": pa.array(self._influences(), pa.float64()),
        }
        metadata = {name: json.dumps(getattr(self, name)) for name in _METADATA}
        write_table(run.selection, pa.table(columns, metadata=metadata))
        with atomic_write(run.subset) as temporary, open(temporary, "wb") as file:
            for line in self._lines():
                file.write(line.encode("utf-8", "backslashreplace") + b"\n")  # a lone surrogate stays an escape

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, pool: Dataset | None = None) -> Selection:
        """Read what `save` wrote; `pool` is by default that of the run, if `folder` is a run folder.

        Raises:
            RunError: the folder holds no selection.
        """
        run = RunFolder(folder)
        if not run.selection.exists():
            raise RunError(f"{run.selection} does not exist", "is this the folder of a finished run?")
        table, samples = read_table(run.selection), run.samples("pool").samples
        influence = table["influence"]
        if pool is None and samples.exists():
            pool = open_samples(samples)
        return cls(
            indices=table["pool_index"].to_numpy(),
            gains=table["gain"].to_numpy(),
            influence=None if influence.null_count else influence.to_numpy().astype(np.float32),
            pool=pool,
            **{name.decode(): json.loads(fact) for name, fact in table.schema.metadata.items()},
        )

    def _rows(self, *columns: str) -> Iterator[dict[str, Any]]:
        if self.pool is None:
            raise ConfigError("this selection has no pool", "give it one: selection.with_pool(pool)")
        yield from self.pool.select_columns(list(columns)).select(self.indices)

    def _lines(self) -> Iterator[str]:
        """Each selected row as one line of JSON, the three keys appended."""
        keys = zip(range(1, len(self) + 1), self.gains.tolist(), self._influences(), strict=True)
        for row, (rank, gain, influence) in zip(self._rows("original"), keys, strict=True):
            yield _with_keys(row["original"], {RANK: rank, GAIN: gain, INFLUENCE: influence})

    def _influences(self) -> list[float | None]:
        """As the shortest decimals that round to the float32 values."""
        return [None] * len(self) if self.influence is None else [float(str(value)) for value in self.influence]


def _conversation(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A sample as the messages of a chat."""
    if row["messages"] is not None:
        return chat_messages(row["messages"])
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]


def _with_keys(text: str, keys: dict[str, Any]) -> str:
    """A JSON object's text with `keys` at its end, replacing the object's own keys of those names."""
    text = text.strip()
    if any(name in text for name in keys) or "\n" in text or "\r" in text:
        row = json.loads(text)
        return json.dumps({name: value for name, value in row.items() if name not in keys} | keys, ensure_ascii=False)
    body = text[:-1].rstrip()
    return body + (", " if body != "{" else "") + json.dumps(keys)[1:]


def _column(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, UnicodeError, OverflowError):
        return pa.array([None if value is None else json.dumps(value) for value in values])
