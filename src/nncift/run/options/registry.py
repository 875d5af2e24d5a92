"""From a string on the command line to an object: a built-in name, an entry point, or "module:attribute"."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from nncift.errors import ConfigError


def resolve(name: str, built_in: Mapping[str, str], group: str) -> Any:
    """The object that `name` stands for, imported now.

    `name` is a key of `built_in` (names to "package.module:attribute"), an entry point of the group, for example
    "nncift.influence", or a path like those of `built_in` itself. Anything else is a ConfigError that lists the known
    names and the closest.
    """
    path = built_in.get(name) or (name if ":" in name else None)
    if path is None:  # only now, since all that is installed is read for it
        plugins = {point.name: point.value for point in entry_points(group=group)}
        if name not in plugins:
            raise ConfigError(
                f"there is no {group.rpartition('.')[2].removesuffix('s')} {name!r}",
                f'{suggest(name, sorted({*built_in, *plugins}))}, or your own "module:Class"',
            )
        path = plugins[name]
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        problem = f"cannot import {path!r} ({error})"
        raise ConfigError(problem, "check the module's name and that it is installed") from error


def is_known(name: str, built_in: Mapping[str, str], group: str) -> bool:
    """Whether `name` is a built-in name or an entry point of the group."""
    return name in built_in or any(point.name == name for point in entry_points(group=group))


def suggest(name: str, known: Sequence[str]) -> str:
    """What to write instead of an unknown name: the closest one that there is, and all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]!r}? Known: " if close else "known: ") + ", ".join(known)
