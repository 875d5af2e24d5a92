"""From the rows of a source to samples: one schema for all of them, ids, and what to do about bad rows.

The same reader serves pools, targets and test sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import IO, NamedTuple

from nncift.data.rows import Row, is_unicode, json_text
from nncift.data.schemas import SCHEMAS, BadRow, Schema, Text, Values, recognise
from nncift.data.sources import Source
from nncift.errors import DataError

_SHOWN = 5  # bad rows that an error names
_RAW = 2000  # characters of a bad row that are kept
_FIELDS = 100  # names of unknown fields that are kept for it


class Sample(NamedTuple):
    """A good row.

    Attributes:
        identity: the row's own id, else the content in hexadecimal.
        own: whether it is the row's own.
        content: 60-bit hash of what was said; equal for exact duplicates.
        text: prompt, response, messages.
        row: where it stands.
        position: 0-based number in the source, bad rows counted.
    """

    identity: str
    own: bool
    content: int
    text: Text
    row: Row
    position: int


class Samples:
    """The samples of a source, read anew by each iteration; meanwhile `read`, `bad` and `schema` are kept up to date.

    Args:
        source: where they are.
        schemas: the schemas to choose from.
        skip: go on after bad rows, instead of raising when all have been read.
        rejected: a file to list them in.

    Raises:
        DataError: by the end of the iteration: there is no row, no schema is known, no row is good, or, without
            `skip`, one is bad.
    """

    def __init__(
        self,
        source: Source,
        schemas: Sequence[Schema] = SCHEMAS,
        *,
        skip: bool = False,
        rejected: IO[str] | None = None,
    ) -> None:
        self.source = source
        self.schemas = schemas
        self.skip = skip
        self.rejected = rejected

    def __iter__(self) -> Iterator[Sample]:
        self.read = self.bad = 0
        self.schema: Schema | None = None
        self._first_bad: list[tuple[Row, str, str]] = []
        self._strange: dict[str, None] | None = {}  # the fields that no schema fits; None once one fitted
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
        schema = self.schema or recognise(row.values, self.schemas)
        if schema is None:
            if self._strange is not None and len(self._strange) < _FIELDS:
                self._strange |= dict.fromkeys(map(str, row.values))
            raise BadRow("", "no known schema fits its fields")
        self._strange = None
        text = schema.read(row.values)
        own = _own_id(row.values)
        for field, value in ((schema.fields[0], text.prompt), (schema.fields[-1], text.response), ("id", own or "")):
            if not is_unicode(value):
                raise BadRow(field, "holds half of a surrogate pair, which is no Unicode text")
        self.schema = schema
        content = short_hash(f"{len(text.prompt)} {text.prompt}{text.response}{text.messages or ''}")
        return Sample(own or f"{content:015x}", own is not None, content, text, row, self.read - 1)

    def refuse(self, row: Row, field: str, reason: str) -> None:
        """Count a bad row, and note it for the message or the list of rejected rows."""
        self.bad += 1
        if len(self._first_bad) < _SHOWN:
            self._first_bad.append((row, field, reason))
        if self.rejected is not None:
            entry = {"file": row.file, "row": row.number, "field": field or None, "reason": reason}
            self.rejected.write(json_text(entry | {"raw": row.text[:_RAW]}) + "\n")

    def _check(self) -> None:
        if not self.read:
            raise DataError("there is no row in it", "give data with at least one", self.source.name)
        if self._strange:
            raise self._unknown_schema(list(self._strange))
        if self.bad and not (self.skip and self.schema):
            raise self._bad_rows()

    def _bad_rows(self) -> DataError:
        leave = ", or leave {} out with --skip-bad-rows" if self.schema else ""
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
        return DataError(
            f"{self.bad} of {self.read} rows cannot be used: {named}{more}",
            "correct them" + leave.format("them"),
            self.source.name,
        )

    def _unknown_schema(self, fields: list[str]) -> DataError:
        found = ", ".join(field[:40] for field in fields[:20]) + (", ..." if len(fields) > 20 else "")
        if self.schemas[0] not in SCHEMAS:
            missing = next((field for field in self.schemas[0].fields if field not in fields), None)
            return DataError("there is no such field", f"the fields are {found}", self.source.name, field=missing)
        known = ", ".join(f"{schema.name} ({', '.join(schema.fields)})" for schema in SCHEMAS if not schema.chats)
        return DataError(
            f"no known schema fits its fields ({found})",
            f"name two of them with --prompt-field and --response-field; known are {known}",
            self.source.name,
        )


def _own_id(values: Values) -> str | None:
    value = values.get("id")
    if value is None or isinstance(value, str):
        return value or None
    text = json_text(value)
    return None if text == "null" else text  # NaN, where a table has no id


def short_hash(text: str) -> int:
    """60 bits, which Python holds in the smallest integer that goes beyond 30."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 4
