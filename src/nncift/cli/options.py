"""The options of the command line: those of `Config` under headings, and from a YAML file."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, get_type_hints

from cyclopts import Group, Parameter, Token

from nncift.config import Config
from nncift.errors import ConfigError
from nncift.pipeline.configuration.options import GROUPS
from nncift.run.options.quotas import rule_texts

NAMES = {field.name: f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Config)}
NAMES["influence_options"] = "--influence-option"
NAMES["from_run"] = "--from"
"""How each field of `Config` is typed."""
_RULES = ("quota", "cap")
_TEXTS = ("influence_options", *_RULES)  # which in Python may be mappings
_HEADINGS = {heading: Group(heading, sort_key=place) for place, heading in enumerate(GROUPS)}
OUTPUT = Parameter(group=_HEADINGS["Output"], show_default=False)


def _whole(kind: type, tokens: Sequence[Token]) -> int:
    """A whole number; cyclopts would round another."""
    try:
        return int(tokens[0].value)
    except ValueError as error:
        raise ValueError(f"{tokens[0].value!r} is not a whole number.") from error


class _Given:
    """Keeps the options as they are given, since those of an earlier run (`from_run`) stand in for the others alone.

    `Config` itself rewrites some: `labels` 0 becomes None beside a `network`.
    """

    given: dict[str, Any]

    def __new__(cls, **given: Any) -> Self:
        """With what the command line or a file has."""
        made = super().__new__(cls)
        object.__setattr__(made, "given", given)
        return made

    @staticmethod
    def refuse(given: Mapping[str, Any]) -> None:
        """Refuse options that the command does not take; this one takes all."""

    def __post_init__(self) -> None:
        """Check the options as they stand; those that complete an earlier run's are checked with them (`inherited`)."""
        self.refuse(self.given)
        if not getattr(self, "from_run"):  # noqa: B009 (of `Config`)
            super().__post_init__()  # type: ignore[misc]


def options_class(
    *,
    without: Collection[str] = (),
    hidden: Collection[str] = (),
    refuse: Callable[[Mapping[str, Any]], None] = _Given.refuse,
) -> type[Config]:
    """`Config` with each field under its heading, and the options of the influence function as NAME=VALUE texts.

    Args:
        without: fields that the command line does not take.
        hidden: those that its help leaves out, since they are refused: with a reason, not as a mistyped option.
        refuse: refuses options by their values as given, before any other check.
    """
    hints = get_type_hints(Config) | dict.fromkeys(_TEXTS, tuple[str, ...])
    optional = () if "from_run" in {*without, *hidden} else ("pool",)  # that of the earlier run
    given = {field.name: field for field in dataclasses.fields(Config)}
    fields = []
    for heading, names in GROUPS.items():
        for name in names:
            default = () if name in _TEXTS else None if name in optional else given[name].default
            hint = hints[name] | None if name in optional else hints[name]
            parameter = Parameter(
                name=NAMES[name] if given[name].kw_only else None,
                group=_HEADINGS[heading],
                converter=_whole if hints[name] in (int, int | None) else None,
                show_default=None if default else False,
                parse=None if name not in without else False,
                show=None if name not in hidden else False,
            )
            field = dataclasses.field(default=default, kw_only=given[name].kw_only)
            fields.append((name, Annotated[hint, parameter], field))
    namespace = {"__module__": __name__, "refuse": staticmethod(refuse)}
    return dataclasses.make_dataclass("Options", fields, bases=(_Given, Config), frozen=True, namespace=namespace)


if TYPE_CHECKING:
    Options = Config
else:
    Options = options_class()


def take_config_file(arguments: list[str]) -> tuple[list[str], Path | None]:
    """Take `--config FILE` out of the arguments of any sub-command.

    Raises:
        ConfigError: there is no such file, or two are given.
    """
    rest, found = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, given, value = argument.partition("=")
        if name == "--config":
            found.append(value if given else next(remaining, ""))
        else:
            rest.append(argument)
    if not found:
        return rest, None
    if len(found) > 1:
        raise ConfigError("--config is given twice", "join the files")
    if not Path(found[0]).is_file():
        raise ConfigError(f"there is no file {found[0]!r}", "give --config a YAML file of options")
    return rest, Path(found[0])


def read_config_file(file: Path) -> dict[str, Any]:
    """The options in a YAML file by name; without those that are null, and `influence_options` as NAME=VALUE texts.

    Raises:
        ConfigError: it is no YAML file, or its content is no mapping of names to values.
    """
    import yaml

    try:
        options = yaml.safe_load(file.read_bytes()) or {}
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} is not a YAML file of options ({reason})", "correct it") from error
    if not isinstance(options, dict):
        raise ConfigError(f"{file} is not a YAML file of options", "give one per line, NAME: VALUE")
    for name, value in options.items():
        if not isinstance(name, str):
            raise ConfigError(f"{file} has the option {name!r}, which is not a name", "give one per line, NAME: VALUE")
        if not _is_plain(value) and not (name in _RULES and isinstance(value, dict)):  # whose keys may be numbers
            raise ConfigError(f"{file} has no plain value for {name!r}", "give text, a number, or a list of them")
    if "config" in options:
        raise ConfigError(f"{file} names another file of options", "join the files")
    options = {name: value for name, value in options.items() if value is not None}
    if "influence_options" in options:
        from nncift.influence.options import option_texts

        options["influence_option"] = option_texts(options.pop("influence_options"))
    for name in _RULES:
        if isinstance(options.get(name), dict):
            options[name] = rule_texts(name, options[name])
    return options


def _is_plain(value: Any) -> bool:
    """Whether it is a text, a number, a date, or lists and mappings by name of them."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | datetime.date | None)
