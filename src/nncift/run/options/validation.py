"""Values of a dataclass's fields against the types that it declares."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection
from typing import Any, Literal

from nncift.errors import ConfigError

_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def check_types(options: Any, *, skip: Collection[str] = ()) -> None:
    """Check every field but `skip`; nothing is converted, but a whole number is a number.

    Raises:
        ConfigError: a value is of another type.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    strict = ConfigDict(strict=True, arbitrary_types_allowed=True)
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value, hint = getattr(options, field.name), hints[field.name]
        if field.name in skip or value is field.default:
            continue
        try:
            TypeAdapter(hint, config=strict).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"`{field.name}` is {repr(value)[:100]}", f"give {describe_type(hint)}") from error


def describe_type(hint: Any) -> str:
    """A type in words, for messages: of a union without None."""
    origin, members = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(member) for member in members if member is not types.NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(str, members))}"
    if origin is tuple:
        return f"{describe_type(members[0])}, or a tuple of several"
    return _NAMES.get(origin, getattr(origin, "__name__", str(origin)))
