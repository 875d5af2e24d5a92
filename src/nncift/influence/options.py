"""Options of an influence function: from NAME=VALUE texts, YAML or Python to keyword arguments of its constructor.

The signature is the schema: each parameter with a type that text can express is an option, those of `build` first, then
those of the constructors as far as `**options` leads. A dataclass contributes its fields under dotted names:
`training.lora.rank`. Parameters that `build` takes from the run's `Setup` are not options. Values are validated by
pydantic.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from nncift.errors import ConfigError, printable
from nncift.influence.base import InfluenceFunction, Setup, as_function
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.run.options.registry import suggest

_NONE = inspect.Parameter.empty
_SETUP = {field.name for kind in (Setup, ModelSpec, EncoderSpec) for field in dataclasses.fields(kind)}
_OWN = {"wording"}  # in the run's setup too, but a function may have its own
_SEQUENCES = (collections.abc.Sequence, tuple, list)
_NARROWEST_FIRST = (types.NoneType, int, float, bool, Literal, *_SEQUENCES, str, Path, Any)
_YAML_BOOLEANS = {"true": ("true", "yes", "on"), "false": ("false", "no", "off")}
_CONFIG = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)


class Option(NamedTuple):
    """The type of an option's value, and its default (`inspect.Parameter.empty` if it is required)."""

    hint: Any
    default: Any

    def __str__(self) -> str:
        default = "required" if self.default is _NONE else f"default {printable(_text(self.default))}"
        return f"{_type_name(self.hint)}, {default}"


def options_of(kind: Any) -> dict[str, Option]:
    """The options, by dotted name, of a class of influence functions or a factory."""
    return dict(_expand(_parameters(kind)))


def read_options(kind: Any, given: Mapping[str, Any] | Sequence[str], *, name: str) -> dict[str, Any]:
    """The validated values of the given options (nested, with dotted names, or NAME=VALUE), by dotted name, sorted.

    Raises:
        ConfigError: an option is unknown, invalid, or given twice; the message names the function, `name`.
    """
    known, flat, values = options_of(kind), dict(_flatten(given)), {}
    for option, value in sorted(flat.items()):
        if option not in known:
            if option in _SETUP and _is_built(kind):
                raise ConfigError(f"`{option}` is an option of the run, not of {name}", f"give `{option}`")
            fix = suggest(option, sorted(known)) if known else "it has none"
            raise ConfigError(f"{name} has no option {option!r}", fix)
        try:
            values[option] = read_value(value, known[option].hint)
        except ValueError as error:
            expected = _type_name(known[option].hint)
            raise ConfigError(f"{name} cannot use {option}={_text(value)}", f"expected {expected}") from error
        if whole := [other for other in flat if option.startswith(f"{other}.")]:
            raise ConfigError(f"{name} was given both {whole[0]} and {option}", "give only one of them")
    return values


def read_value(value: Any, hint: Any) -> Any:
    """The value, or the one that a text expresses, as an instance of the type; a sequence as a tuple, unless a list."""
    for member in _members(hint):
        bounded: Any = Annotated[int, Field(ge=-(2**63), lt=2**63)] if member is int else member
        try:
            return TypeAdapter(bounded, config=_CONFIG).validate_python(_parsed(value, member))
        except (ValidationError, json.JSONDecodeError):
            continue
    raise ValueError(f"{value!r} is not {_type_name(hint)}")


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as a nested mapping."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *places, last = name.split(".")
        branch = tree
        for place in places:
            branch = branch.setdefault(place, {})
        branch[last] = value
    return tree


def option_texts(given: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Options as NAME=VALUE texts, as on the command line."""
    lists = (list, tuple)
    return [f"{name}={json.dumps(v) if isinstance(v, lists) else _text(v)}" for name, v in _flatten(given)]


def make_function(
    kind: Any, setup: Setup, given: Mapping[str, Any] | Sequence[str] | None, *, name: str
) -> InfluenceFunction:
    """An influence function, by `build` of a class or by a factory, with a run's settings and the given options.

    Fields of a dataclass that are not given keep the values that the function has by default.

    Raises:
        ConfigError: an option is unknown, missing or invalid, or `kind` makes no function.
    """
    if not callable(kind):
        raise ConfigError(f"{name} is neither a class nor a factory of influence functions", "give one")
    options = nested(read_options(kind, given or (), name=name))
    known = dict(_parameters(kind))
    _require(name, "", known, options)
    make = partial(kind.build, setup) if _is_function(kind) else kind
    groups = {option: value for option, value in options.items() if isinstance(value, dict)}
    whole = {option: value for option, value in options.items() if option not in groups}
    defaults: Mapping[str, Any] = {}
    if groups and all(known[option].default is not _NONE for option in groups):
        defaults = vars(make(**whole))
    for option, fields in groups.items():
        whole[option] = _complete(name, f"{option}.", known[option].hint, defaults.get(option), fields)
    return as_function(make(**whole))


def _complete(name: str, place: str, hint: Any, base: Any, given: Mapping[str, Any]) -> Any:
    """The hint's dataclass with the given fields, nested, and the others as in `base`."""
    kind, fields = _dataclass_in(hint), dict(given)
    known = dict(_fields(kind))
    for field, value in given.items():
        if isinstance(value, dict):
            inner = getattr(base, field, None)
            fields[field] = _complete(name, f"{place}{field}.", known[field].hint, inner, value)
    if isinstance(base, kind):
        return dataclasses.replace(base, **fields)
    _require(name, place, known, fields)
    return kind(**fields)


def _require(name: str, place: str, known: Mapping[str, Option], given: Container[str]) -> None:
    for option, (hint, default) in known.items():
        if default is _NONE and option not in given and (_is_readable(hint) or _dataclass_in(hint)):
            raise ConfigError(f"{name} needs {place}{option}", f"give it in `influence_options`: {place}{option}=VALUE")


def _is_function(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, InfluenceFunction)


def _is_built(kind: Any) -> bool:
    """Whether it takes parameters from the run's `Setup`."""
    return _is_function(kind) and kind.build.__func__ is not InfluenceFunction.build.__func__  # type: ignore[attr-defined]


def _parameters(kind: Any) -> Iterator[tuple[str, Option]]:
    """The parameters of a class or a factory that are not taken from the run."""
    makers = [kind]
    if inspect.isclass(kind):
        makers = [vars(c)["__init__"] for c in kind.__mro__[:-1] if "__init__" in vars(c)]
    seen: set[str] = set()
    if _is_built(kind):
        makers, seen = [kind.build, *makers], _SETUP - _OWN
    for maker in makers:
        parameters = [*inspect.signature(maker).parameters.values()]
        hints = _hints(maker)
        for parameter in parameters if maker is kind else parameters[1:]:  # without setup or `self`
            name, default, sort = parameter.name, parameter.default, parameter.kind
            if sort in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name not in seen:
                seen.add(name)
                plain = type(default) if isinstance(default, bool | int | float) else Any
                yield name, Option(hints.get(name, plain), default)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            return


def _fields(kind: Any, instance: Any = None) -> Iterator[tuple[str, Option]]:
    """The fields of a dataclass; their defaults are the values of `instance` if it is one."""
    hints = _hints(kind)
    for field in dataclasses.fields(kind):
        default = field.default_factory() if callable(field.default_factory) else field.default
        if isinstance(instance, kind):
            default = getattr(instance, field.name)
        if field.init:
            yield field.name, Option(hints.get(field.name, Any), _NONE if default is dataclasses.MISSING else default)


def _expand(options: Iterator[tuple[str, Option]], place: str = "") -> Iterator[tuple[str, Option]]:
    """Options by name, with the fields of dataclasses by dotted name."""
    for name, option in options:
        if _is_readable(option.hint):
            yield f"{place}{name}", option
        if (kind := _dataclass_in(option.hint)) is not None:
            yield from _expand(_fields(kind, option.default), f"{place}{name}.")


def _hints(maker: Any) -> dict[str, Any]:
    """Types of a callable's parameters or a dataclass's fields; empty where a name is undefined at run time."""
    try:
        return typing.get_type_hints(maker)
    except NameError:
        return {}


def _flatten(given: Mapping[str, Any] | Sequence[str], place: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(given, Mapping):
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(
                f"`influence_options` {given!r} is neither a mapping nor NAME=VALUE texts", "give names and values"
            )
        given = dict(map(_split, texts))
    for name, value in given.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def _split(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise ConfigError(f"`influence_options` {text!r} is not NAME=VALUE", "give for example preconditioned=both")
    return name.strip(), value


def _union(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _members(hint: Any) -> list[Any]:
    """The types of a union that text can express, the narrowest first."""
    origins = {member: typing.get_origin(member) or member for member in _union(hint)}
    found = [member for member in origins if origins[member] in _NARROWEST_FIRST]
    return sorted(found, key=lambda member: _NARROWEST_FIRST.index(origins[member]))


def _is_readable(hint: Any) -> bool:
    return any(member is not types.NoneType for member in _members(hint))


def _dataclass_in(hint: Any) -> Any:
    return next((member for member in _union(hint) if dataclasses.is_dataclass(member)), None)


def _parsed(value: Any, hint: Any) -> Any:
    """The value that a text expresses where pydantic's own conversion differs; any other value as it is."""
    origin, text = typing.get_origin(hint) or hint, str(value).strip().lower()
    if hint is types.NoneType:
        return None if text in ("none", "null") else value
    if origin is Literal:
        texts = _YAML_BOOLEANS.get(text, (text,))
        return next((choice for choice in typing.get_args(hint) if str(choice).lower() in texts), value)
    if origin in _SEQUENCES:
        if isinstance(value, str):
            parts = (part.strip() for part in value.split(","))
            value = json.loads(value) if value.lstrip().startswith("[") else [part for part in parts if part]
        return tuple(value) if isinstance(value, list) else value
    if isinstance(value, bool) and hint in (int, float):
        return None
    return str(value) if isinstance(value, Path) and hint is str else value


def _type_name(hint: Any) -> str:
    return " or ".join(dict.fromkeys(map(_member_name, reversed(_members(hint)))))


def _member_name(hint: Any) -> str:
    origin = typing.get_origin(hint) or hint
    if origin is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    names = {types.NoneType: "none", bool: "true or false", Path: "str", Any: "text"}
    return "comma-separated list" if origin in _SEQUENCES else names.get(origin, origin.__name__)


def _text(value: Any) -> str:
    """A value as an option's text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) or "nothing" if isinstance(value, list | tuple) else str(value)
