"""A row of a source, with its own text as one JSON object, from whatever kind of data it stands in.

The text is kept so that what is chosen can be written back unchanged. Of JSON it is the file's own, digit by
digit; JSON is therefore read by `json` and not through Arrow, which adds nulls, merges objects and has no
whole numbers beyond 64 bits. Arrow and Python values that JSON lacks become text: dates in ISO 8601, bytes
in base64, decimals as written; NaN and infinity become null.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

BATCH = 1000  # rows of Parquet or Arrow that are in memory at once


class Row(NamedTuple):
    """A row of a source.

    Attributes:
        file: the file or hub id it stands in, as the user would name it.
        number: from 1; the line in JSON Lines, the record in CSV.
        values: its fields; None when it cannot be read.
        text: the row as one JSON object on one line; what stands there instead when it cannot be read.
        reason: why it cannot be read.
    """

    file: str
    number: int
    values: Mapping[str, Any] | None
    text: str
    reason: str = ""


def json_row(file: str, number: int, text: str) -> Row:
    """The row that a JSON text stands for, the text kept as it is."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        return Row(file, number, None, text, f"invalid JSON ({error.msg} at character {error.pos + 1})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return Row(file, number, None, text, f"invalid JSON ({error})")
    return object_row(file, number, values, text)


def object_row(file: str, number: int, values: Any, text: str) -> Row:
    """The row with these values, if they are an object."""
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
            continue
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
    """The rows of a batch as dictionaries; None for one with text that is not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # nothing was yielded yet: the list is made as a whole
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


def _json_decoder(schema: Any) -> Callable[[Any], Any] | None:
    """What parses the JSON-typed parts (`datasets.Json`) of a value of this Arrow schema or type; None without any."""
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
    """False for text with a lone surrogate: half a character, or a byte that was not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_text(value: Any) -> str:
    """`value` as JSON on one line; what JSON lacks becomes text, NaN and infinity become null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, default=_as_json)
    return text if is_unicode(text) else json.dumps(json.loads(text))  # escapes what UTF-8 cannot hold


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
    """What a value is, in the words of an error message."""
    if value is None:
        return "null"
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
