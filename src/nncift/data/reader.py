"""From the rows of a source to samples: ids, and handling of bad rows.

Pools, targets and test sets share this reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import IO, NamedTuple

from nncift.data.chats.messages import BadRow, UndesiredRow, UnknownSchema, Values
from nncift.data.chats.role_markers import NOTATIONS
from nncift.data.detection import Detector, field_names
from nncift.data.rows import Row, is_unicode, json_text
from nncift.data.schemas import SCHEMAS, Schema, Text
from nncift.data.sources.sources import Source
from nncift.errors import DataError
from nncift.run.folder.records import counted

SHOWN = 5  # bad rows in an error message
_RAW = 2000  # characters of a bad row in the list
_FIRST = 100  # rows whose field names are kept for an error message
_FIELDS = 100  # field names that are kept


class Sample(NamedTuple):
    """A good row."""

    identity: str  # the row's own id, else the content hash in hexadecimal
    own: bool  # whether it is the row's own
    content: int  # 60-bit hash of the texts
    text: Text
    row: Row
    position: int  # 0-based number in the source, bad rows counted


class Samples:
    """The samples of a source, read again by each iteration, which updates `read`, `bad`, `undesired` and `schemas`.

    Args:
        source: the rows.
        named: the schemas of fields that the user names, which take precedence; others need not have these fields.
        all_turns: train on every assistant turn of a chat, unless it is marked otherwise, instead of the last.
        skip: skip bad rows, instead of raising at the end.
        rejected: a file to list them in.

    Raises:
        DataError: at the end of the iteration: there is no row, no known schema fits, no row is good, or, without
            `skip`, one is bad.
    """

    def __init__(
        self,
        source: Source,
        named: Sequence[Schema] = (),
        *,
        all_turns: bool = False,
        skip: bool = False,
        rejected: IO[str] | None = None,
    ) -> None:
        self.source = source
        self.named = named
        self.all_turns = all_turns
        self.skip = skip
        self.rejected = rejected

    def __iter__(self) -> Iterator[Sample]:
        self.read = self.bad = self.undesired = self._parsed = self._unknown = 0
        self._detector = Detector((*self.named, *SCHEMAS))
        self._first_bad: list[tuple[Row, str, str]] = []
        self._first_undesired = ""
        self._fields: dict[str, None] = {}  # of the first rows
        for row in self.source.rows():
            self.read += 1
            try:
                sample = self._sample(row)
            except UndesiredRow as error:
                self.undesired += 1
                self._first_undesired = self._first_undesired or f"row {row.number}, {error.field}: {error.reason}"
                self._list(row, error.field, error.reason)
            except BadRow as error:
                self._unknown += isinstance(error, UnknownSchema)
                self.refuse(row, error.field, error.reason)
            else:
                yield sample
        self._check()

    @property
    def schemas(self) -> dict[str, int]:
        """The schemas that rows follow, the most frequent first, with their numbers of rows."""
        rows: Counter[str] = Counter()
        for schema, count in self._detector.rows.items():
            rows[schema.name] += count
        return dict(rows.most_common())

    @property
    def has_named(self) -> bool:
        """Whether any row was read by the fields that the user names."""
        return any(schema in self._detector.rows for schema in self.named)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the source that the samples are made of."""
        schemas = self._detector.rows
        turns = [(*schema.fields[:-1], *schema.optional, schema.fields[-1]) for schema in schemas]
        return tuple(dict.fromkeys([*(field for fields in turns for field in fields), *self._detector.context]))

    @property
    def notes(self) -> list[str]:
        """Remarks for the data summary."""
        expected = {"history": "list of earlier turns"}
        return [
            f"{field} of {counted(count, 'row')} is not used: not a {expected.get(field, 'list of tools')}"
            for field, count in self._detector.unused.items()
        ]

    def _sample(self, row: Row) -> Sample:
        if row.values is None:
            raise BadRow("", row.reason)
        self._parsed += 1
        if self._parsed <= _FIRST and len(self._fields) < _FIELDS:
            self._fields |= dict.fromkeys(map(str, row.values))
        schema, text = self._detector.read(row.values)
        own = own_id(row.values)
        if text.turns is not None and not self.all_turns:
            text = text._replace(turns=None)
        try:
            content = content_hash(text)
        except UnicodeEncodeError:
            raise _bad_unicode(schema.fields[-1 if is_unicode(text.prompt) else 0]) from None
        if own is None:
            return Sample(f"{content:015x}", False, content, text, row, self.read - 1)
        if not is_unicode(own):
            raise _bad_unicode("id")
        return Sample(own, True, content, text, row, self.read - 1)

    def refuse(self, row: Row, field: str, reason: str) -> None:
        """Count a bad row, and add it to the message or the list of rejected rows."""
        self.bad += 1
        if len(self._first_bad) < SHOWN:
            self._first_bad.append((row, field, reason))
        self._list(row, field, reason)

    def _list(self, row: Row, field: str, reason: str) -> None:
        if self.rejected is not None:
            entry = {"file": row.file, "row": row.number, "field": field or None, "reason": reason}
            self.rejected.write(json_text(entry | {"raw": row.text[:_RAW]}) + "\n")

    def _check(self) -> None:
        if not self.read:
            raise DataError("there is no row in it", "give data with at least one", self.source.name)
        none_good = not self._detector.rows
        if none_good and self._unknown and self._unknown == self._parsed:
            raise self._unknown_schema()
        if self.bad and (none_good or not self.skip):
            raise self._rows_error()
        if none_good:
            raise self._all_undesired()

    def _rows_error(self) -> DataError:
        advise = bool(self._detector.rows) and 2 * self.bad <= self.read  # or most of the data would go
        return bad_rows_error(self.source.name, self._first_bad, self.bad, self.read, skip=advise)

    def _all_undesired(self) -> DataError:
        problem = f"every row is marked as not to be trained on: {self._first_undesired}"
        return DataError(problem, "give data with rows to train on", self.source.name)

    def _unknown_schema(self) -> DataError:
        if self.named:
            return self.no_named_field() if self._missing_field else self._rows_error()
        known = dict.fromkeys(" + ".join(schema.fields) for schema in SCHEMAS)
        return DataError(
            f"no known schema fits its fields ({field_names(self._fields)})",
            "name two of them with `prompt_field` and `response_field`, or one that holds chats with `messages_field`;"
            f" known are {', '.join(known)} with role markers ({NOTATIONS})",
            self.source.name,
        )

    @property
    def _missing_field(self) -> str | None:
        return next((field for field in self.named[0].fields if field not in self._fields), None)

    def no_named_field(self) -> DataError:
        """The error that no row has the fields that the user names."""
        problem, fix = "there is no such field", f"the fields are {field_names(self._fields)}"
        return DataError(problem, fix, self.source.name, field=self._missing_field)


def bad_rows_error(name: str, first: Sequence[tuple[Row, str, str]], bad: int, read: int, *, skip: bool) -> DataError:
    """The error that names the first bad rows of a source: row, field, reason; advising to skip them only if `skip`."""
    leave = ", or skip {} with `skip_bad_rows`" if skip else ""
    if bad == 1:
        row, field, reason = first[0]
        return DataError(reason, "correct it" + leave.format("it"), row.file, row.number, field or None)
    named = "; ".join(
        ("" if row.file == name else f"{row.file} ")
        + f"row {row.number}"
        + (f", field {field!r}" if field else "")
        + f": {reason}"
        for row, field, reason in first[:SHOWN]
    )
    more = f"; and {bad - SHOWN} more" if bad > SHOWN else ""
    problem = f"{bad} of {read} rows cannot be used: {named}{more}"
    return DataError(problem, "correct them" + leave.format("them"), name)


def _bad_unicode(field: str) -> BadRow:
    return BadRow(field, "has half of a surrogate pair, which is not valid Unicode")


def content_hash(text: Text) -> int:
    """A 60-bit hash of all texts of a sample, with the marks of its turns."""
    return short_hash(f"{len(text.prompt)} {text.prompt}{text.response}{text.messages or ''}{text.tools or ''}")


def own_id(values: Values) -> str | None:
    """A row's own id as text."""
    value = values.get("id")
    if value is None or isinstance(value, str):
        return value or None
    text = json_text(value)
    return None if text == "null" else text  # NaN, a table's missing id


def short_hash(text: str) -> int:
    """A 60-bit hash: two digits of a Python integer."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 4
