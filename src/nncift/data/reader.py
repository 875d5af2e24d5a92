"""From the rows of a source to samples: one schema for all, ids, and handling of bad rows.

Pools, targets and test sets share this reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import IO, NamedTuple

from nncift.data.rows import Row, is_unicode, json_text
from nncift.data.schemas import SCHEMAS, BadRow, Schema, Text, Values
from nncift.data.sources import Source
from nncift.errors import DataError

_SHOWN = 5  # bad rows in an error message
_RAW = 2000  # characters of a bad row in the list
_FIELDS = 100  # unknown field names in an error message


class Sample(NamedTuple):
    """A good row."""

    identity: str  # the row's own id, else the content hash in hexadecimal
    own: bool  # whether it is the row's own
    content: int  # 60-bit hash of the texts; equal for exact duplicates
    text: Text
    row: Row
    position: int  # 0-based number in the source, bad rows counted


class Samples:
    """The samples of a source, read again by each iteration, which updates `read`, `bad` and `schema`.

    Args:
        source, schemas: the rows, and the candidates.
        skip: skip bad rows, instead of raising at the end.
        rejected: a file to list them in.
        screen: gives the reason why a row cannot be used, if there is one.

    Raises:
        DataError: at the end of the iteration: there is no row, no known schema fits, no row is good, or, without
            `skip`, one is bad.
    """

    def __init__(
        self,
        source: Source,
        schemas: Sequence[Schema] = SCHEMAS,
        *,
        skip: bool = False,
        rejected: IO[str] | None = None,
        screen: Callable[[Text], str | None] | None = None,
    ) -> None:
        self.source = source
        self.schemas = schemas
        self.skip = skip
        self.rejected = rejected
        self.screen = screen

    def __iter__(self) -> Iterator[Sample]:
        self.read = self.bad = 0
        self.schema: Schema | None = None
        self._first_bad: list[tuple[Row, str, str]] = []
        self._unmatched_fields: dict[str, None] | None = {}  # None once a schema fits
        for row in self.source.rows():
            self.read += 1
            try:
                sample = self._sample(row)
            except BadRow as error:
                self.refuse(row, error.field, error.reason)
            else:
                yield sample
        self._check()

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the source that the samples are made of."""
        return (*self.schema.fields[:-1], *self.schema.optional, self.schema.fields[-1]) if self.schema else ()

    def _sample(self, row: Row) -> Sample:
        if row.values is None:
            raise BadRow("", row.reason)
        schema = self.schema or next((schema for schema in self.schemas if schema.fits(row.values)), None)
        if schema is None:
            if self._unmatched_fields is not None and len(self._unmatched_fields) < _FIELDS:
                self._unmatched_fields |= dict.fromkeys(map(str, row.values))
            raise BadRow("", "no known schema fits its fields")
        self._unmatched_fields = None
        text = schema.read(row.values)
        own = _own_id(row.values)
        for field, value in ((schema.fields[0], text.prompt), (schema.fields[-1], text.response), ("id", own or "")):
            if not is_unicode(value):
                raise BadRow(field, "has half of a surrogate pair, which is not valid Unicode")
        self.schema = schema
        if self.screen is not None and (reason := self.screen(text)) is not None:
            raise BadRow("", reason)
        content = short_hash(f"{len(text.prompt)} {text.prompt}{text.response}{text.messages or ''}")
        return Sample(own or f"{content:015x}", own is not None, content, text, row, self.read - 1)

    def refuse(self, row: Row, field: str, reason: str) -> None:
        """Count a bad row, and add it to the message or the list of rejected rows."""
        self.bad += 1
        if len(self._first_bad) < _SHOWN:
            self._first_bad.append((row, field, reason))
        if self.rejected is not None:
            entry = {"file": row.file, "row": row.number, "field": field or None, "reason": reason}
            self.rejected.write(json_text(entry | {"raw": row.text[:_RAW]}) + "\n")

    def _check(self) -> None:
        if not self.read:
            raise DataError("there is no row in it", "give data with at least one", self.source.name)
        if self._unmatched_fields:
            raise self._unknown_schema(list(self._unmatched_fields))
        if self.bad and not (self.skip and self.schema):
            raise self._bad_rows()

    def _bad_rows(self) -> DataError:
        leave = ", or skip {} with `skip_bad_rows`" if self.schema else ""
        if self.bad == 1:
            row, field, reason = self._first_bad[0]
            return DataError(reason, "correct it" + leave.format("it"), row.file, row.number, field or None)
        named = "; ".join(
            ("" if row.file == self.source.name else f"{row.file} ")
            + f"row {row.number}"
            + (f", field {field!r}" if field else "")
            + f": {reason}"
            for row, field, reason in self._first_bad
        )
        more = f"; and {self.bad - _SHOWN} more" if self.bad > _SHOWN else ""
        problem = f"{self.bad} of {self.read} rows cannot be used: {named}{more}"
        return DataError(problem, "correct them" + leave.format("them"), self.source.name)

    def _unknown_schema(self, fields: list[str]) -> DataError:
        found = ", ".join(field[:40] for field in fields[:20]) + (", ..." if len(fields) > 20 else "")
        if self.schemas[0] not in SCHEMAS:
            missing = next((field for field in self.schemas[0].fields if field not in fields), None)
            return DataError("there is no such field", f"the fields are {found}", self.source.name, field=missing)
        known = ", ".join(f"{schema.name} ({', '.join(schema.fields)})" for schema in SCHEMAS if not schema.chats)
        return DataError(
            f"no known schema fits its fields ({found})",
            f"name two of them with `prompt_field` and `response_field`; known are {known}",
            self.source.name,
        )


def _own_id(values: Values) -> str | None:
    value = values.get("id")
    if value is None or isinstance(value, str):
        return value or None
    text = json_text(value)
    return None if text == "null" else text  # NaN, a table's missing id


def short_hash(text: str) -> int:
    """A 60-bit hash: two digits of a Python integer."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 4
