"""What a finished pool folder holds: its samples, memory-mapped, and the facts of its reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nncift.run.folder.parts import SampleFolder
from nncift.run.folder.records import counted
from nncift.run.storage.checksums import verify
from nncift.run.storage.files import read_json
from nncift.run.storage.refusals import refuse_damaged

if TYPE_CHECKING:
    from datasets import Dataset


_CONTENT = ("id", "prompt", "response", "messages", "tools", "turns", "original")


@dataclass(frozen=True)
class PoolFacts:
    """Data summary: `read` = `rows` + `duplicates` + `excluded` + `rejected` + `undesired`."""

    source: str  # path or hub id, "<dataset>" for data in memory
    schema: str  # that fits; of several, their names, the most frequent first
    fields: tuple[str, ...]  # of the source, that the samples are made of
    read: int  # rows of the source
    rows: int  # samples in the pool
    duplicates: int  # removed exact duplicates
    excluded: int  # removed rows that also occur in a test set
    rejected: int  # removed rows that cannot be used
    undesired: int = 0  # removed rows that are marked as not to be trained on
    schemas: dict[str, int] = field(default_factory=dict)  # rows by schema
    notes: tuple[str, ...] = ()  # one-line remarks on how it was read
    has_named: bool = True  # whether it, or one of its test sets, has the fields that the options name

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """What `to_dict` made, also in a run folder of the version before; a KeyError if something is missing."""
        optional = ("undesired", "schemas", "notes", "has_named")
        names = [f.name for f in fields(cls) if f.name in stored or f.name not in optional]
        values: dict[str, Any] = {name: stored[name] for name in names}
        values |= {name: tuple(values[name]) for name in ("fields", "notes") if name in values}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self) | {"fields": list(self.fields), "notes": list(self.notes)}

    def __str__(self) -> str:
        """One line for the terminal, without the notes."""
        several = len(self.schemas) > 1
        schema = ", ".join(f"{name} {n:,}" for name, n in self.schemas.items()) if several else self.schema
        counts = [
            counted(self.rows, "sample"),
            f"{counted(self.duplicates, 'exact duplicate')} dropped" if self.duplicates else "",
            f"{self.excluded:,} excluded (also in a test set)" if self.excluded else "",
            f"{self.rejected:,} rejected" if self.rejected else "",
            f"{self.undesired:,} left out (marked as not to be trained on)" if self.undesired else "",
        ]
        return f"{counted(self.read, 'row')} of {self.source} ({schema}): {', '.join(filter(None, counts))}"


def open_pool(folder: Path) -> tuple[Dataset, PoolFacts]:
    """Open a finished pool folder, whether or not its source has changed.

    Raises:
        RunError: the folder is not that of a finished pool.
    """
    files = SampleFolder(folder)
    stored = read_json(files.facts)
    with refuse_damaged(files.facts, "is not valid", KeyError, TypeError):
        facts = PoolFacts.from_dict(stored)
    return open_samples(files.samples), facts


def open_samples(path: Path) -> Dataset:
    """Memory-map the samples of a pool folder.

    Raises:
        RunError: there are none, or they are damaged.
    """
    import pyarrow as pa
    from datasets import Dataset

    with refuse_damaged(path, "is damaged", ValueError, pa.ArrowException):
        verify(path)
        return Dataset.from_file(str(path))


def same_content(one: Dataset, other: Dataset) -> bool:
    """Whether two pools have the same samples in the same order; those of earlier versions lack some columns."""
    if len(one) != len(other):
        return False
    for column in _CONTENT:
        ours, theirs = (some.column_names.count(column) and some.data.column(column) for some in (one, other))
        if ours and theirs:
            if not ours.equals(theirs):
                return False
        elif (ours or theirs) and (ours or theirs).null_count < len(one):
            return False
    return True
