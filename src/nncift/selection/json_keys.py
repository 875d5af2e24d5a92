"""Set keys of a JSON object in its text, so that every other byte stays as it is.

Parsing and serializing again would lose what JSON texts differ in: 1.10 and 1E5, numbers beyond float64, escapes,
duplicate keys, white space. So the text is only scanned for where its top-level members begin and end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# A string, a bracket, a comma; whatever lies between them (numbers, literals, colons, white space) is passed over.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],]')
_KEY = re.compile(r'[ \t]*("[^"\\]*(?:\\.[^"\\]*)*")')
_LINE_BREAK = re.compile(r"[\r\n][ \t\r\n]*")  # between tokens always: in a string it is escaped
_SPACE = " \t"


def with_keys(text: str, keys: Mapping[str, Any], *, without: Collection[str] = ()) -> str:
    """A valid JSON object's text, on one line, with `keys` as its last members in place of its own of those names.

    Args:
        text: the object; a line break in it becomes a space.
        keys: their values, as `json` writes them.
        without: names of other members that are left out.
    """
    text = _LINE_BREAK.sub(" ", text.strip())
    removed = {*keys, *without}
    kept = [member for member in _members(text) if _name(member) not in removed]
    members = ",".join(kept)
    body = members.rstrip(_SPACE)
    return "{" + body + (", " if body else "") + json.dumps(keys)[1:-1] + members[len(body) :] + "}"


def _members(text: str) -> Iterator[str]:
    """The texts between an object's top-level commas."""
    depth, start = 0, 1
    for token in _TOKEN.finditer(text):
        symbol = token[0]
        if symbol in "{[":
            depth += 1
        elif symbol in "}]":
            depth -= 1
        elif symbol == "," and depth == 1:
            yield text[start : token.start()]
            start = token.end()
    yield text[start:-1]


def _name(member: str) -> str | None:
    """The key of a member; None for the blank inside of an empty object."""
    key = _KEY.match(member)
    return None if key is None else json.loads(key[1])
