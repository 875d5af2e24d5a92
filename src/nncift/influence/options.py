"""An influence function's own options: from the command line, YAML or Python to what its constructor takes.

The signature is the list. Every parameter of a type that text can stand for is an option: those of `from_config`,
where there is one, and those of the constructor as far as `**options` leads there. A dataclass stands for its fields,
by dotted names: `training.lora.rank`. What `Config` has a field for is no option of a function made from a config.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from nncift.config import Config
from nncift.errors import ConfigError, printable
from nncift.influence.option_types import dataclass_in, is_readable, read_value, says, shown
from nncift.run.registry import suggest

if TYPE_CHECKING:
    from nncift.influence.base import InfluenceFunction

_NONE = inspect.Parameter.empty
_CONFIG = {field.name for field in dataclasses.fields(Config)}


class Option(NamedTuple):
    """An option: the type of its value, and the value it has unless given (`inspect.Parameter.empty`: it must be)."""

    hint: Any
    default: Any

    def __str__(self) -> str:
        return says(self.hint) + ("" if self.default is _NONE else f"; {printable(shown(self.default))} unless given")


def options_of(kind: Any) -> dict[str, Option]:
    """The options, by dotted name, of a class of influence functions, or of whatever makes one."""
    return dict(_expand(_parameters(kind)))


def read_options(kind: Any, given: Mapping[str, Any] | Sequence[str], *, name: str) -> dict[str, Any]:
    """The values of the given options, by dotted name, in the order of the names.

    Args:
        kind: what makes the influence function.
        given: a mapping, nested or with dotted names, or "NAME=VALUE" texts.
        name: of the function, for messages.

    Raises:
        ConfigError: an option is unknown or has a value of another type, or two do not go together.
    """
    known, flat, values = options_of(kind), dict(_flatten(given)), {}
    for option, value in sorted(flat.items()):
        if option not in known:
            raise _unknown(name, option, known, from_config=hasattr(kind, "from_config"))
        try:
            values[option] = read_value(value, known[option].hint)
        except ValueError as error:
            raise ConfigError(
                f"{name} cannot take {option}={shown(value)}", f"give {says(known[option].hint)}"
            ) from error
        if whole := [other for other in flat if option.startswith(f"{other}.")]:
            raise ConfigError(f"{name} was given both {whole[0]} and {option}", "leave one of them out")
    return values


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as a nested mapping."""
    own, inner = _grouped(values)
    return own | {name: nested(fields) for name, fields in inner.items()}


def option_texts(given: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Options as "NAME=VALUE" texts, as on the command line."""
    values = (
        (name, json.dumps(value) if isinstance(value, list | tuple) else value) for name, value in _flatten(given)
    )
    return [f"{name}={shown(value)}" for name, value in values]


def make_function(kind: Any, config: Config, *, name: str) -> InfluenceFunction:
    """The influence function with the options that a run's config gives; what else it needs comes from there too.

    Of a dataclass that is given in part, the rest stays as the function has it without.

    Raises:
        ConfigError: an option is unknown, is missing, or has a value that cannot be used.
    """
    own, inner = _grouped(read_options(kind, config.influence_options or (), name=name))
    known = dict(_parameters(kind))
    _require(name, "", known, {*own, *inner})
    make = partial(kind.from_config, config) if hasattr(kind, "from_config") else kind
    made = None if any(known[option].default is _NONE for option in inner) else make(**own)
    for option, fields in inner.items():
        own[option] = _fill(name, f"{option}.", known[option].hint, getattr(made, option, None), fields)
    return typing.cast("InfluenceFunction", make(**own) if inner else made)


def _fill(name: str, place: str, hint: Any, base: Any, values: Mapping[str, Any]) -> Any:
    """The hint's dataclass with these fields, by dotted name, and the others as `base` has them."""
    kind = dataclass_in(hint)
    own, inner = _grouped(values)
    known = dict(_fields(kind))
    for field, fields in inner.items():
        own[field] = _fill(name, f"{place}{field}.", known[field].hint, getattr(base, field, None), fields)
    if isinstance(base, kind):
        return dataclasses.replace(base, **own)
    _require(name, place, known, own)
    return kind(**own)


def _require(name: str, place: str, known: Mapping[str, Option], given: typing.Container[str]) -> None:
    for option, (hint, default) in known.items():
        if default is _NONE and option not in given and (is_readable(hint) or dataclass_in(hint)):
            raise ConfigError(f"{name} needs {place}{option}", f"give --influence-option {place}{option}=VALUE")


def _parameters(kind: Any) -> Iterator[tuple[str, Option]]:
    """What can be given to whatever makes the function."""
    from_config = getattr(kind, "from_config", None)
    makers = [] if from_config is None else [from_config]
    makers += (
        [vars(c)["__init__"] for c in kind.__mro__[:-1] if "__init__" in vars(c)] if inspect.isclass(kind) else [kind]
    )
    seen = set() if from_config is None else set(_CONFIG)
    for maker in makers:
        parameters = [*inspect.signature(maker).parameters.values()]
        hints = _hints(maker)
        for parameter in parameters if maker is kind else parameters[1:]:  # after the config or `self`
            name, default, sort = parameter.name, parameter.default, parameter.kind
            if sort in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name not in seen:
                seen.add(name)
                plain = type(default) if isinstance(default, bool | int | float) else Any
                yield name, Option(hints.get(name, plain), default)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            return


def _fields(kind: Any, whole: Any = None) -> Iterator[tuple[str, Option]]:
    """What can be given to a dataclass; its defaults are what `whole` has, where that is one."""
    hints = _hints(kind)
    for field in dataclasses.fields(kind):
        default = field.default_factory() if callable(field.default_factory) else field.default
        if isinstance(whole, kind):
            default = getattr(whole, field.name)
        if field.init:
            yield field.name, Option(hints.get(field.name, Any), _NONE if default is dataclasses.MISSING else default)


def _expand(options: Iterator[tuple[str, Option]], place: str = "") -> Iterator[tuple[str, Option]]:
    """Options under their names, and the fields of a dataclass that may stand there under theirs."""
    for name, option in options:
        if is_readable(option.hint):
            yield f"{place}{name}", option
        if (kind := dataclass_in(option.hint)) is not None:
            yield from _expand(_fields(kind, option.default), f"{place}{name}.")


def _hints(maker: Any) -> dict[str, Any]:
    """Types of a callable's parameters or a dataclass's fields; none where a name in them is not known at run time."""
    try:
        return typing.get_type_hints(maker)
    except NameError:
        return {}


def _flatten(given: Mapping[str, Any] | Sequence[str], place: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(given, Mapping):
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(
                f"influence options {given!r} are neither a mapping nor NAME=VALUE texts",
                "give a name and a value each",
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
        raise ConfigError(f"--influence-option {text!r} is not NAME=VALUE", "give for example preconditioned=both")
    return name.strip(), value


def _grouped(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Dotted names parted into those without a dot, and by their first part."""
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        first, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(first, {})[rest] = value
        else:
            own[name] = value
    return own, inner


def _unknown(name: str, option: str, known: Mapping[str, Option], *, from_config: bool) -> ConfigError:
    if from_config and option in _CONFIG:
        return ConfigError(f"{option} is no option of {name} but of the run", f"give --{option.replace('_', '-')}")
    if not known:
        return ConfigError(f"{name} has no option {option!r}", "it takes none")
    return ConfigError(f"{name} has no option {option!r}", suggest(option, sorted(known)))
