"""A row of a source with its original text as one JSON object, from any kind of data.

The text is kept so that selected rows are written back unchanged. Of JSON it is verbatim; JSON is therefore parsed by
`json` and not by Arrow, which adds nulls, merges objects and has no integers beyond 64 bits. Arrow and Python values
without a JSON form become text: dates in ISO 8601, bytes in base64, decimals as written; NaN and infinity become null.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

BATCH = 1000  # rows of Parquet or Arrow in memory


class Row(NamedTuple):
    """A row of a source."""

    file: str  # or hub id, as the user names it
    number: int  # from 1; the line in JSON Lines, the record in CSV
    values: Mapping[str, Any] | None  # its fields; None if it cannot be parsed
    text: str  # the row as one JSON object on one line; the raw text if it cannot be parsed
    reason: str = ""  # of the failure
    source: str | None = None  # of a mixture, the name of the source


def json_row(file: str, number: int, text: str) -> Row:
    """The row of a JSON text, which is kept verbatim."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        return Row(file, number, None, text, f"invalid JSON ({error.msg} at character {error.pos + 1})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return Row(file, number, None, text, f"invalid JSON ({error})")
    return object_row(file, number, values, text)


def object_row(file: str, number: int, values: Any, text: str) -> Row:
    """The row with these values, which must be an object."""
    if isinstance(values, dict):
        return Row(file, number, values, text)
    return Row(file, number, None, text, f"{kind(values)}, not an object")


def mapping_rows(rows: Iterable[Any], file: str) -> Iterator[Row]:
    """Rows of Python mappings."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            yield Row(file, number, None, repr(row), f"{kind(row)}, not an object")
            continue
        try:
            text = json_text(row)
        except (TypeError, ValueError, RecursionError) as error:
            yield Row(file, number, None, repr(row), f"cannot be written as JSON ({error})")
        else:
            yield Row(file, number, row, text)


def arrow_rows(batches: Iterable[Any], file: str) -> Iterator[Row]:
    """Rows of Arrow record batches or tables."""
    number = 0
    for batch in batches:
        decode = _json_decoder(batch.schema)
        for values in _python_rows(batch):
            number += 1
            if values is None:
                yield Row(file, number, None, "", "invalid UTF-8")
                continue
            if decode:
                values = decode(values)
            yield Row(file, number, values, json_text(values))


def _python_rows(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch as dictionaries; None for one with invalid UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # nothing is yielded yet: the list is built as a whole
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


def _json_decoder(schema: Any) -> Callable[[Any], Any] | None:
    """A parser of the JSON-typed parts (`datasets.Json`) of a value of this Arrow schema or type; None without any."""
    import pyarrow as pa

    if isinstance(schema, pa.JsonType):
        return lambda value: None if value is None else json.loads(value)
    if isinstance(schema, (pa.ListType, pa.LargeListType)):
        decode = _json_decoder(schema.value_type)
        return decode and (lambda items: items and [decode(item) for item in items])
    if isinstance(schema, (pa.Schema, pa.StructType)):
        fields = {field.name: decode for field in schema if (decode := _json_decoder(field.type))}
        return (lambda row: row and row | {name: fields[name](row[name]) for name in fields}) if fields else None
    return None


def is_unicode(text: str) -> bool:
    """False for text with a lone surrogate: half a character, or a byte of invalid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_text(value: Any) -> str:
    """`value` as JSON on one line; values without a JSON form become text, NaN and infinity null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, default=_as_json)
    return text if is_unicode(text) else json.dumps(json.loads(text))  # escapes lone surrogates


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "tolist"):  # numpy
        return _finite(value.tolist())
    return str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def kind(value: Any) -> str:
    """The kind of a value, for messages."""
    if value is None:
        return "null"
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
