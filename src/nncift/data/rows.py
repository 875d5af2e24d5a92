"""A row of a source with its original text as one JSON object, from any kind of data.

The text is kept so that selected rows are written back unchanged. Of JSON it is verbatim; JSON is therefore parsed by
`json` and not by Arrow, which adds nulls, merges objects and has no integers beyond 64 bits. Arrow and Python values
without a JSON form become text: dates in ISO 8601, also those that Python has not, bytes in base64, decimals as
written; NaN and infinity become null.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from nncift.data.files.streams import ROW_BYTES, SHOWN, too_long

BATCH = 1000  # rows of Parquet or Arrow in memory

_decode = json.JSONDecoder().decode  # `json.loads` without its options, which takes a tenth of the time of a row


class Row(NamedTuple):
    """A row of a source."""

    file: str  # or hub id, as the user names it
    number: int  # from 1; the line in JSON Lines, the record in CSV, else the item
    values: Mapping[str, Any] | None  # its fields; None if it cannot be parsed
    text: str  # the row as one JSON object on one line; the raw text if it cannot be parsed
    reason: str = ""  # of the failure
    source: str | None = None  # the name of the source in a mixture


def json_row(file: str, number: int, text: str) -> Row:
    """The row of a JSON text, which is kept verbatim."""
    try:
        values = _decode(text)
    except json.JSONDecodeError as error:
        return Row(file, number, None, text, f"invalid JSON ({error.msg} at character {error.pos + 1})")
    except RecursionError:
        return Row(file, number, None, text, "invalid JSON (thousands of nested brackets)")
    except ValueError as error:  # a number of thousands of digits
        return Row(file, number, None, text, f"invalid JSON ({error})")
    if type(values) is dict:
        return Row(file, number, values, text)
    return object_row(file, number, values, text)


def object_row(file: str, number: int, values: Any, text: str) -> Row:
    """The row with these values, which must be an object."""
    if isinstance(values, dict):
        return Row(file, number, values, text)
    return Row(file, number, None, text, f"{kind(values)}, not an object")


def mapping_rows(rows: Iterable[Any], file: str, limit: int = ROW_BYTES) -> Iterator[Row]:
    """Rows of Python mappings; one of more than `limit` bytes is a bad row."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            yield Row(file, number, None, repr(row), f"{kind(row)}, not an object")
            continue
        try:
            text = json_text(row)
        except (TypeError, ValueError, RecursionError) as error:
            yield Row(file, number, None, repr(row), f"cannot be written as JSON ({error})")
        else:
            yield Row(file, number, row, text) if len(text) <= limit else _long_row(file, number, text, limit)


def arrow_rows(batches: Iterable[Any], file: str, limit: int = ROW_BYTES) -> Iterator[Row]:
    """Rows of Arrow record batches or tables; one of more than `limit` bytes is a bad row."""
    number = 0
    for batch in batches:
        decode = _json_decoder(batch.schema)
        for values in _python_rows(batch):
            number += 1
            if isinstance(values, str):
                yield Row(file, number, None, "", values)
                continue
            if decode:
                values = decode(values)
            text = json_text(values)
            yield Row(file, number, values, text) if len(text) <= limit else _long_row(file, number, text, limit)


def _long_row(file: str, number: int, text: str, limit: int) -> Row:
    return Row(file, number, None, text[:SHOWN], too_long(len(text), limit))


def _python_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch as dictionaries; the reason for one that cannot be read."""
    try:
        batch.validate(full=True)  # offsets may point outside the data, and would be followed
        rows = batch.to_pylist()
    except Exception:  # values that Python has not raise many kinds of errors; each is found below
        rows = (_python_row(batch.slice(i, 1)) for i in range(batch.num_rows))
    yield from rows


def _python_row(row: Any) -> dict[str, Any] | str:
    try:
        row.validate(full=True)
    except Exception as error:
        if "UTF8" not in str(error):
            return f"a damaged value ({error})"
    try:
        return {name: _python_value(column[0]) for name, column in zip(row.schema.names, row.columns, strict=True)}
    except UnicodeDecodeError:
        return "invalid UTF-8"
    except Exception as error:
        return f"a damaged value ({error})"


def _python_value(scalar: Any) -> Any:
    """A value of Arrow in Python; as text where Python has none, such as the date of a year beyond 9999."""
    import numpy as np
    import pyarrow as pa

    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise
    except Exception:
        kind = scalar.type
        if isinstance(scalar, pa.StructScalar):
            return {field.name: _python_value(scalar[i]) for i, field in enumerate(kind)}
        if isinstance(scalar, (pa.ListScalar, pa.LargeListScalar, pa.FixedSizeListScalar)):
            return [_python_value(item) for item in scalar.values]
        if pa.types.is_date(kind):
            return str(np.datetime64(scalar.value, "D" if pa.types.is_date32(kind) else "ms"))
        if pa.types.is_timestamp(kind):
            return str(np.datetime64(scalar.value, kind.unit)) + ("+00:00" if kind.tz else "")
        if pa.types.is_duration(kind):
            return f"{scalar.value} {kind.unit}"
        return str(scalar)


def _json_decoder(schema: Any) -> Callable[[Any], Any] | None:
    """A parser of the JSON-typed parts (`datasets.Json`) of a value of this Arrow schema or type; None without any."""
    import pyarrow as pa

    if isinstance(schema, pa.JsonType):
        return _parsed
    if isinstance(schema, (pa.ListType, pa.LargeListType)):
        decode = _json_decoder(schema.value_type)
        return decode and (lambda items: items and [decode(item) for item in items])
    if isinstance(schema, (pa.Schema, pa.StructType)):
        fields = {field.name: decode for field in schema if (decode := _json_decoder(field.type))}
        return (lambda row: row and row | {name: fields[name](row[name]) for name in fields}) if fields else None
    return None


def _parsed(text: str | None) -> Any:
    """The value of a JSON text; one that is no JSON stays text."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text


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
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_as_json)
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
