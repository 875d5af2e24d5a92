"""The types that an option's value may have, how each is read from text, and what it is called."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal

_NAMES = {
    types.NoneType: "none",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "text",
    Any: "text",
}
_SEQUENCES = (collections.abc.Sequence, tuple, list)
_WORDS = {True: ("true", "yes", "on"), False: ("false", "no", "off")}  # YAML takes each of them for the first


def is_readable(hint: Any) -> bool:
    """Whether a value of the type, None aside, can be read from text."""
    return any(member is not types.NoneType for member in _members(hint))


def says(hint: Any) -> str:
    """What a value of the type is called."""
    return " or ".join(dict.fromkeys(_name(member) for member in reversed(_members(hint))))


def shown(value: Any) -> str:
    """A value as it is written in an option."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) or "nothing" if isinstance(value, list | tuple) else str(value)


def dataclass_in(hint: Any) -> Any:
    """The dataclass that a value may be, or None."""
    return next((member for member in _union(hint) if dataclasses.is_dataclass(member)), None)


def read_value(value: Any, hint: Any) -> Any:
    """The value as one of the type, which text or a value from YAML or Python stands for.

    Raises:
        ValueError: it does not.
    """
    for member in _members(hint):
        try:
            return _read(value, member)
        except (ValueError, TypeError, OverflowError):
            continue
    raise ValueError(f"{value!r} is not {says(hint)}")


def _union(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _members(hint: Any) -> list[Any]:
    """The types of a union that can be read from text, the narrowest first."""
    order = [types.NoneType, bool, int, float, Literal, *_SEQUENCES, str, Path, Any]
    found = [member for member in _union(hint) if (typing.get_origin(member) or member) in order]
    return sorted(found, key=lambda member: order.index(typing.get_origin(member) or member))


def _name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    return "a list separated by commas" if (origin or hint) in _SEQUENCES else _NAMES[hint]


def _read(value: Any, hint: Any) -> Any:
    """The value as one of a single type; ValueError or TypeError where it is none."""
    origin, text = typing.get_origin(hint) or hint, str(value).strip().lower()
    if origin in _SEQUENCES:
        return _read_list(value, origin, (*typing.get_args(hint), str)[0])
    if origin is Literal:
        return _choose(text, typing.get_args(hint))
    if hint is types.NoneType and (value is None or text in ("none", "null")):
        return None
    if hint is bool and text in (*_WORDS[True], *_WORDS[False]):
        return text in _WORDS[True]
    if hint is Any or (hint in (str, Path) and isinstance(value, str | Path)):
        return value if hint is Any else hint(value)
    if hint in (int, float) and not isinstance(value, bool):
        number = hint(value)
        if math.isfinite(number) and (isinstance(value, str) or number == value):
            return number
    raise ValueError(value)


def _choose(text: str, choices: tuple[Any, ...]) -> Any:
    """The one of the choices that the text is; YAML's false is the choice "no"."""
    same = next((words for words in _WORDS.values() if text == words[0]), ())
    for choice in choices:
        if str(choice).lower() in (text, *same):
            return choice
    raise ValueError(text)


def _read_list(value: Any, origin: Any, hint: Any) -> Any:
    """A list of values, given as one, as text separated by commas, or as a JSON list."""
    if isinstance(value, str):
        parts = (part.strip() for part in value.split(","))
        value = json.loads(value) if value.lstrip().startswith("[") else [part for part in parts if part]
    if not isinstance(value, collections.abc.Sequence):
        raise ValueError(value)
    items = [read_value(item, hint) for item in value]
    return items if origin is list else tuple(items)
