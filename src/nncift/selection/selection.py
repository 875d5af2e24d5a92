"""Selection: the selected samples, and the files that hold them.

The subset's rows are the user's rows: the JSON text of the source with our keys appended and every other byte as it
was, streamed from the memory-mapped pool.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.data.facts import open_samples
from nncift.errors import ConfigError, RunError
from nncift.run.folder.folder import RunFolder
from nncift.run.storage.files import atomic_write, read_table, write_table
from nncift.selection import sft
from nncift.selection.certificate import Certificate
from nncift.selection.json_keys import with_keys
from nncift.selection.quotas import GroupCount
from nncift.selection.served import TargetsServed
from nncift.selection.sparseness import Sparseness

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

RANK, GAIN, INFLUENCE = "nncift_rank", "nncift_gain", "nncift_influence"
SOURCE = "nncift_source"  # of rows from several sources, the name of theirs
OPTIONAL = {"weights": "weight", "difficulty": "difficulty", "phase": "phase"}  # attribute to column, and nncift_ key
_OF_A_CHOICE = {f"nncift_{name}" for name in OPTIONAL.values()}  # those in the pool's rows are of an earlier choice
_METADATA = ("value", "objective", "objective_options", "served", "certificate", "groups", "sparseness")  # of the table
_RECORDS = {
    "served": TargetsServed,
    "certificate": Certificate,
    "sparseness": Sparseness,
}  # those of them that are dataclasses


@dataclass(frozen=True, eq=False)
class Selection:
    """A subset in the order of its file: the order selected, unless it has phases or goes from easy to hard.

    Under a count budget, the samples that were selected first (`ranks` 1 to m) are the subset of budget m, unless there
    are quotas or caps.

    Attributes:
        indices: pool rows, int64 (k,).
        gains: marginal gain of each when it was selected, float64 (k,).
        value: the objective's value of the subset.
        objective: the objective's name.
        objective_options: its parameters.
        influence: mean influence of each over the targets, on the influence function's scale, float32 (k,); None when
            not given.
        pool: what `indices` point into, with the columns `id` and `original`; None when not given.
        ranks: when each was selected, from 1, int64 (k,); 1 to k unless given.
        weights: of each in the loss of a training, mean 1, float64 (k,); None when not asked for.
        difficulty: of each, larger is harder, float32 (k,); None when not computed.
        phase: in which each is trained on, from 1, ascending, int64 (k,); None without phases.
        served: how their influence spreads over the targets; None when not counted.
        groups: what is selected of each value of the columns with quotas or caps; None without any.
        certificate: a bound on the best possible value; None when not computed.
        sparseness: what a choice from each target's strongest helpers may have lost; None of a choice from all pairs.
    """

    indices: np.ndarray
    gains: np.ndarray
    value: float
    objective: str = ""
    objective_options: dict[str, float] = field(default_factory=dict)
    influence: np.ndarray | None = None
    pool: Dataset | None = None
    ranks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    weights: np.ndarray | None = None
    difficulty: np.ndarray | None = None
    phase: np.ndarray | None = None
    served: TargetsServed | None = None
    groups: tuple[GroupCount, ...] | None = None
    certificate: Certificate | None = None
    sparseness: Sparseness | None = None

    def __post_init__(self) -> None:
        if len(self.ranks) != len(self.indices):
            object.__setattr__(self, "ranks", np.arange(1, len(self.indices) + 1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        of = "" if self.pool is None else f" of {len(self.pool)}"
        return f"Selection({len(self)}{of} samples, {self.objective or 'objective'} {self.value:.6g})"

    def with_pool(self, pool: Dataset, influence: np.ndarray | None = None) -> Selection:
        """The same selection with its pool and, per pool row, the mean influence, float (n_pool,)."""
        chosen = self.influence if influence is None else np.asarray(influence, dtype=np.float32)[self.indices]
        return replace(self, pool=pool, influence=chosen)

    def renumbered(self, rows: np.ndarray, pool: Dataset) -> Selection:
        """The same samples in the numbers of a pool, `rows` of which (int64) were chosen from."""
        return replace(self, indices=rows[self.indices], pool=pool)

    def among(self, rows: np.ndarray, pool: Dataset | None = None) -> Selection:
        """The same samples by their places among `rows` of the pool, int64 ascending, such as what a first cut kept."""
        return replace(self, indices=np.searchsorted(rows, self.indices), pool=pool)

    def take(self, places: np.ndarray) -> Selection:
        """These samples, in this order; `value` stays that of the whole.

        Args:
            places: places in the selection, int64 (m,), such as one of `phases`.
        """
        arrays = ("indices", "gains", "influence", "ranks", *OPTIONAL)
        values = {name: getattr(self, name) for name in arrays}
        return replace(self, **{name: value[places] for name, value in values.items() if value is not None})

    @property
    def phases(self) -> list[np.ndarray]:
        """The places of each phase's samples in the selection, easiest phase first; all of them without phases."""
        if self.phase is None:
            return [np.arange(len(self))]
        return [np.flatnonzero(self.phase == number) for number in np.unique(self.phase)]

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The selected rows in their original columns, with nncift_rank (from 1), nncift_gain, nncift_influence.

        Rows of a pool from several sources also have nncift_source; with weights, difficulty or phases, they have
        nncift_weight, nncift_difficulty and nncift_phase; without them these are left out, should the rows have them
        from an earlier choice. A column whose values have no common Arrow type, or one that
        Parquet cannot hold, has each value's JSON text instead. Without a pool, this and the other methods that need
        one raise a ConfigError.
        """
        import pyarrow as pa
        from datasets import Dataset

        rows = [json.loads(line) for line in self._lines()]
        names = list(dict.fromkeys(name for row in rows for name in row))
        return Dataset(pa.table({name: _column([row.get(name) for row in rows]) for name in names}))

    def sft_dataset(self, *, chat: bool = True, weights: bool = False) -> Dataset:
        """The selected samples in the columns of trl's SFTTrainer, `prompt` and `completion`: loss on the responses.

        Args:
            chat: as messages, for a model with a chat template: of a chat its own (the system prompt, earlier turns,
                and `tools` as a column of their own), of any other sample a user's and an assistant's. A chat whose
                turns are all trained on (`turns` "all") gives a row for each of them that answers something. Otherwise
                as plain text, of a chat the transcript and the last response.
            weights: add each sample's weight as the column `weight`, which trl itself does not use.

        For one phase at a time: `selection.take(phase).sft_dataset()` for each of `phases`.

        Raises:
            ConfigError: the selection has no pool, or no weights.
            DependencyError: chats with tools need a newer version of `datasets`.
        """
        rows = self._rows("prompt", "response", optional=sft.CHAT_COLUMNS)
        if weights:
            if self.weights is None:
                raise ConfigError("this selection has no weights", "select with `weights`")
            rows = ({**row, sft.WEIGHT: float(weight)} for row, weight in zip(rows, self.weights, strict=True))
        return sft.chat_dataset(rows) if chat else sft.text_dataset(rows)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the selection's table and, last, the subset: the original rows, unchanged, and our keys.

        Raises:
            RunError: the folder cannot be written.
        """
        import pyarrow as pa

        run = RunFolder(folder)
        columns = {
            "rank": self.ranks.astype(np.int64),
            "pool_index": self.indices.astype(np.int64),
            "id": pa.array([row["id"] for row in self._rows("id")], pa.string()),
            "gain": self.gains.astype(np.float64),
            "influence": pa.array(self._influences(), pa.float64()),
        }
        if any(sources := list(self._sources())):
            columns["source"] = pa.array(sources, pa.string())
        columns |= self._optional()
        facts = {name: getattr(self, name) for name in _METADATA}
        facts |= {name: asdict(facts[name]) for name in _RECORDS if facts[name] is not None}
        facts["groups"] = None if self.groups is None else [asdict(each) for each in self.groups]
        metadata = {name: json.dumps(fact) for name, fact in facts.items() if fact is not None}
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
        if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
            raise RunError(f"{folder!r} is not a folder", "give that of a finished run")
        run = RunFolder(folder)
        if not run.selection.exists():
            raise RunError(f"{run.selection} does not exist", "is this the folder of a finished run?")
        table, samples = read_table(run.selection), run.samples("pool").samples
        influence = table["influence"]
        facts = {name.decode(): json.loads(fact) for name, fact in table.schema.metadata.items()}
        if (groups := facts.pop("groups", None)) is not None:
            facts["groups"] = tuple(GroupCount(**each) for each in groups)
        facts |= {name: kind(**facts[name]) for name, kind in _RECORDS.items() if name in facts}
        if pool is None and samples.exists():
            pool = open_samples(samples)
        return cls(
            indices=table["pool_index"].to_numpy(),
            gains=table["gain"].to_numpy(),
            influence=None if influence.null_count else influence.to_numpy().astype(np.float32),
            pool=pool,
            ranks=table["rank"].to_numpy(),
            **{name: table[column].to_numpy() for name, column in OPTIONAL.items() if column in table.column_names},
            **facts,
        )

    def _rows(self, *columns: str, optional: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """These columns of each selected row, and those of the optional ones that there are."""
        if self.pool is None:
            raise ConfigError("this selection has no pool", "give it one: selection.with_pool(pool)")
        if missing := [name for name in columns if name not in self.pool.column_names]:
            raise ConfigError(f"the selection's pool has no column {missing[0]!r}", "give one that load_pool returns")
        if len(self) and self.indices.max() >= len(self.pool):
            raise ConfigError(
                f"row {self.indices.max()} is selected, and the pool has {len(self.pool)}", "give the pool it is from"
            )
        present = [*columns, *(name for name in optional if name in self.pool.column_names)]
        yield from self.pool.select_columns(present).select(self.indices)

    def _lines(self) -> Iterator[str]:
        """Each selected row as one line of JSON, our keys appended."""
        keys = {RANK: self.ranks.tolist(), GAIN: self.gains.tolist(), INFLUENCE: self._influences()}
        more = {f"nncift_{name}": _shortest(values) for name, values in self._optional().items()}
        for i, row in enumerate(self._rows("original", optional=("source",))):
            source = {} if row.get("source") is None else {SOURCE: row["source"]}
            ours, others = ({name: values[i] for name, values in each.items()} for each in (keys, more))
            yield with_keys(row["original"], {**ours, **source, **others}, without=_OF_A_CHOICE)

    def _optional(self) -> dict[str, np.ndarray]:
        """Weights, difficulty and phases, those that there are, by the names of their columns."""
        found = {column: getattr(self, name) for name, column in OPTIONAL.items()}
        return {column: values for column, values in found.items() if values is not None}

    def _sources(self) -> Iterator[str | None]:
        """The source of each row, of a pool from several."""
        yield from (row.get("source") for row in self._rows("id", optional=("source",)))

    def by_source(self) -> dict[str, tuple[int, int]]:
        """Of a pool from several sources: how many samples of each are selected, and how many there are."""
        if self.pool is None or "source" not in self.pool.column_names:
            return {}
        whole, chosen = self.pool.data.column("source").value_counts(), Counter(self._sources())
        counts = ((each["values"], each["counts"]) for each in whole.to_pylist())
        return {name: (chosen[name], count) for name, count in counts if name is not None}

    def _influences(self) -> list[float | None]:
        return [None] * len(self) if self.influence is None else _shortest(self.influence)


def _shortest(values: np.ndarray) -> list[Any]:
    """As Python's numbers; float32 as the shortest decimals that round to them."""
    return [float(str(value)) for value in values] if values.dtype == np.float32 else values.tolist()


def _column(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    with contextlib.suppress(pa.ArrowException, TypeError, UnicodeError, OverflowError):
        found = pa.array(values)
        if _in_parquet(found.type):
            return found
    return pa.array([None if value is None else json.dumps(value) for value in values])


def _in_parquet(kind: pa.DataType) -> bool:
    """Whether Parquet has the type: not of mappings without a key, {}."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_in_parquet(field.type) for field in kind)
    return not pa.types.is_list(kind) or _in_parquet(kind.value_type)
