"""The rows of JSON text: JSON Lines, an array, objects one after the other, or a list within an object.

The form is recognised by content, not by the suffix. Each is streamed: memory has a row, never the file. A line
that cannot be parsed is a bad row; in the other forms a syntax error hides the next row, so it raises.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from nncift.data.files.json_scanner import Scanner, TooLong
from nncift.data.files.streams import HEAD, Stream, lines, shown, too_long
from nncift.data.rows import Row, is_unicode, json_row, object_row
from nncift.data.schemas import SCHEMAS
from nncift.errors import DataError

_LINE = 1 << 22  # bytes of a first line that are looked at


def json_rows(stream: Stream, name: str, limit: int, first: int = 1) -> Iterator[Row]:
    """The rows of JSON text in UTF-8; `first` is the number of its first line, `limit` the bytes of a row.

    Raises:
        DataError: the text has no rows, or is damaged beyond single rows.
    """
    line, after = _first_line(stream)
    if line.startswith(b"[") and not (after and _is_whole(line)):
        return _scanned(_array_rows, Scanner(stream, limit), name)
    if line.startswith(b"{") and not _is_json_line(line, after):
        return _scanned(_objects, Scanner(stream, limit), name)
    return _line_rows(stream, name, limit, first)


def _first_line(stream: Stream) -> tuple[bytes, bytes]:
    """The first line, of an object at least its first megabytes, and some of the text after it, if there is any."""
    size = HEAD
    while True:
        head = stream.head(size)
        line, _, after = head.lstrip().partition(b"\n")
        if after.strip() or len(head) < size or size >= _LINE or not line.startswith(b"{"):
            return line, after.strip(b"\r\n")
        size *= 4


def _line_rows(stream: Stream, name: str, limit: int, first: int) -> Iterator[Row]:
    for number, line, size in lines(stream, limit, first):
        if size > limit:
            yield Row(name, number, None, shown(line), too_long(size, limit))
            continue
        stripped = line.strip(b" \t\r\n")
        try:
            text = stripped.decode()
        except UnicodeDecodeError as error:
            yield Row(name, number, None, shown(stripped), f"invalid UTF-8 (byte {error.start + 1} of the line)")
        else:
            yield json_row(name, number, text)


def _is_json_line(line: bytes, after: bytes) -> bool:
    """Whether a first line that begins an object is a row of JSON Lines, by itself or by the lines after it."""
    if not after:
        if len(line) > _LINE // 2 and not _is_whole(line):  # there may be more of it
            return not _begins_container(line)
        return not _may_continue(line) and not _is_whole(line)
    if _is_whole(line) or not _may_continue(line):
        return True
    return any(each.startswith(b"{") and _is_whole(each) for each in after.split(b"\n")[:100])


def _is_whole(line: bytes) -> bool:
    """Whether a line is one JSON value, perhaps of thousands of nested brackets."""
    try:
        json.loads(line)
    except RecursionError:
        pass
    except ValueError:
        return False
    return True


def _may_continue(line: bytes) -> bool:
    """Whether a JSON value may go on in the next line: it ends between tokens."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc.rstrip()) and not error.msg.startswith("Unterminated")
    except (ValueError, RecursionError):
        pass
    return False


# --- by tokens -----------------------------------------------------------------------------------------


def _scanned(read: Any, scanner: Scanner, name: str) -> Iterator[Row]:
    """The rows that `read` finds; a syntax error names the row."""
    try:
        yield from read(scanner, name)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(
            f"invalid JSON ({reason}), so the rest of the file cannot be read",
            "correct it, or convert the file to JSON Lines, where rows are independent",
            file=name,
            row=max(scanner.items, 1),
        ) from error


def _array_rows(scanner: Scanner, name: str) -> Iterator[Row]:
    scanner.expect("[")
    yield from _items(scanner, name)
    scanner.expect_end()


def _items(scanner: Scanner, name: str) -> Iterator[Row]:
    """The items of an array whose bracket was read, as rows."""
    closed = scanner.symbol() == "]" and scanner.expect("]") == "]"
    while not closed:
        yield _item(scanner, name)
        closed = scanner.expect(",]") == "]"


def _item(scanner: Scanner, name: str) -> Row:
    """The next value as a row."""
    number = scanner.begin_item()
    scanner.symbol()
    try:
        values, original = scanner.value()
    except json.JSONDecodeError:
        raise
    except TooLong:
        return _bad_item(scanner, name, number)
    except RecursionError:
        return _bad_item(scanner, name, number, "invalid JSON (thousands of nested brackets)")
    except ValueError as error:  # a number of thousands of digits
        return _bad_item(scanner, name, number, f"invalid JSON ({error})")
    if not is_unicode(original):
        return Row(name, number, None, shown(original.encode("utf-8", "surrogateescape")), "invalid UTF-8")
    return object_row(name, number, values, original)


def _bad_item(scanner: Scanner, name: str, number: int, reason: str = "") -> Row:
    beginning = scanner.beginning()
    size = scanner.skip()
    return Row(name, number, None, beginning, reason or too_long(size, scanner.limit))


def _objects(scanner: Scanner, name: str) -> Iterator[Row]:
    """Objects one after the other, each a row; or one object with a list of rows in it."""
    scanner.symbol()
    try:
        values, original = scanner.value()
    except TooLong:
        yield from _list_inside(scanner, name)
    else:
        if not scanner.symbol() and isinstance(values, dict) and _has_rows(values, name):
            yield from _list_inside(Scanner.of(original, scanner.limit), name)
        else:
            yield object_row(name, scanner.begin_item(), values, original)
    while scanner.symbol():
        yield _item(scanner, name)


def _has_rows(values: dict[str, Any], name: str) -> bool:
    """Whether a lone object has a list of rows and is none itself; raises where it has several, or columns."""
    if _is_columns(values):
        to_lines = 'to_json("rows.jsonl", orient="records", lines=True)'
        code = f"import pandas; pandas.read_json({json.dumps(name, ensure_ascii=False)}).{to_lines}"
        raise DataError(
            f"one JSON object of columns ({', '.join(list(values)[:20])}), not of rows",
            f"convert it: python -c {shlex.quote(code)}",
            file=name,
        )
    if any(schema.fits(values) for schema in SCHEMAS):
        return False
    held = [
        key
        for key, value in values.items()
        if isinstance(value, list) and value and key not in _FIELDS and all(map(_may_be_row, value))
    ]
    if len(held) > 1:
        raise _several_lists(name, held)
    return bool(held)


def _is_columns(values: dict[str, Any]) -> bool:
    """Whether an object has the values of all rows by column, in lists or, as of pandas, by row number."""
    columns = list(values.values())
    if len(columns) < 2 or not columns[0]:
        return False
    if all(isinstance(column, dict) for column in columns):
        return all(column.keys() == columns[0].keys() for column in columns)
    return all(
        isinstance(column, list) and len(column) == len(columns[0]) and not any(map(_is_object, column))
        for column in columns
    )


def _is_object(item: Any) -> bool:
    return isinstance(item, dict)


def _may_be_row(item: Any) -> bool:
    return _is_object(item) and not item.keys() & {"role", "from"}  # a message


_FIELDS = {field for schema in SCHEMAS for field in schema.fields} | {"tools"}


def _several_lists(name: str, keys: list[str]) -> DataError:
    keep = f"jq {shlex.quote('.' + keys[0])} {shlex.quote(name)} > rows.json"
    return DataError(f"one JSON object with several lists ({', '.join(keys[:20])})", f"keep one: {keep}", file=name)


def _begins_container(text: bytes) -> bool:
    """Whether an object, of which this is the beginning, has a list of rows in it, or begins with a column."""
    scanner = Scanner.of(text.decode("utf-8", "surrogateescape"), len(text))
    try:
        scanner.expect("{")
        while True:
            scanner.symbol()
            key = scanner.value()[0]
            scanner.expect(":")
            if scanner.symbol() == "[":
                scanner.expect("[")
                if scanner.symbol() != "{" or key not in _FIELDS:
                    return True
                scanner.skip(depth=1)
            else:
                scanner.skip()
            scanner.expect(",")
    except ValueError:
        return False


def _list_inside(scanner: Scanner, name: str) -> Iterator[Row]:
    """The rows of the one list of objects in an object; without any, the object is a row that is too long."""
    beginning, start, found = scanner.beginning(), scanner.position, ""
    scanner.expect("{")
    closed = False
    while not closed:
        scanner.symbol()
        key = str(scanner.value()[0])
        scanner.expect(":")
        if scanner.symbol() == "[":
            scanner.expect("[")
            if scanner.symbol() != "{" or key in _FIELDS:
                scanner.skip(depth=1)
            elif found:
                raise _several_lists(name, [found, key])
            else:
                found = key
                yield from _items(scanner, name)
        else:
            scanner.skip()
        closed = scanner.expect(",}") == "}"
    if not found:
        reason = too_long(scanner.position - start, scanner.limit)
        yield Row(name, scanner.begin_item(), None, beginning, reason)
