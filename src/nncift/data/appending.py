"""Adding rows to a finished pool: its samples are copied as they are, and only the new rows are read.

The pool is then what a list of both sources would have given: ids stay unique, a new row that repeats an earlier sample
is a duplicate, `source_row` goes on counting, and samples of a pool from one source get its name in the column
`source`. Of the earlier samples the texts are hashed again, about a second for 100,000.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nncift.data.cleaning.deduplication import Deduplication
from nncift.data.facts import PoolFacts, open_pool
from nncift.data.sources.sources import Source
from nncift.data.writer import PoolWriter
from nncift.run.folder.parts import SampleFolder
from nncift.run.storage.checksums import content_hash
from nncift.run.storage.files import read_json
from nncift.run.storage.refusals import refuse_damaged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import Dataset

    from nncift.data.rows import Row

APPENDED_TO = "appended_to"  # in the facts of a pool: the number of its first samples, and the hash of their file


@dataclass(frozen=True)
class EarlierPool:
    """The finished pool that rows are added to.

    Attributes:
        files: its folder.
        rows: its samples.
        facts: of its reading.
    """

    files: SampleFolder
    rows: Dataset
    facts: PoolFacts

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The pool in a folder.

        Raises:
            RunError: the folder is not that of a finished pool.
        """
        return cls(SampleFolder(folder), *open_pool(folder))

    def begin(self, writer: PoolWriter, kept: Deduplication) -> None:
        """Write its samples and its lists of removed rows first, and compare the new rows with them."""
        writer.copy(self.files, self.rows, source=self.facts.source, read=self.facts.read)
        kept.remember(self.rows)

    def facts_with(self, new: PoolFacts) -> PoolFacts:
        """The data summary of both."""
        sides, schemas = (self.facts, new), Counter(self.facts.schemas)
        schemas.update(new.schemas)
        counts = ("read", "duplicates", "excluded", "rejected", "undesired")
        return replace(
            new,
            source=", ".join(each.source for each in sides),
            schema=", ".join(dict.fromkeys(name for each in sides for name in each.schema.split(", "))),
            fields=tuple(dict.fromkeys([*self.facts.fields, *new.fields])),
            schemas=dict(schemas.most_common()),
            notes=(*self.facts.notes, *new.notes),
            has_named=self.facts.has_named or new.has_named,
            **{name: sum(getattr(each, name) for each in sides) for name in counts},
        )

    def mark(self) -> dict[str, Any]:
        """What the facts of the pool keep of it."""
        return {APPENDED_TO: {"rows": len(self.rows), "xxh3_128": content_hash(self.files.samples)}}


def rows_before(folder: SampleFolder) -> tuple[int, str]:
    """How many samples of a finished pool another began with, and the hash of their file; (0, "") for a pool as read.

    Raises:
        RunError: the facts are damaged.
    """
    stored = read_json(folder.facts)
    with refuse_damaged(folder.facts, "is not valid", KeyError, TypeError, ValueError, AttributeError):
        mark = stored.get(APPENDED_TO)
        return (0, "") if mark is None else (int(mark["rows"]), str(mark["xxh3_128"]))


def named(source: Source) -> Source:
    """A source whose rows have its name, unless they have that of a part."""
    return replace(source, rows=partial(_named_rows, source))


def _named_rows(source: Source) -> Iterator[Row]:
    for row in source.rows():
        yield row if row.source is not None else row._replace(source=source.name)
