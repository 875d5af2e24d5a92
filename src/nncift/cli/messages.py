"""Messages of the library in the words of the command line."""

from __future__ import annotations

import re

from nncift.cli import explore, handover, options, proof


def as_typed(text: object) -> str:
    """Options that a text names as Python does, in backticks, as they are typed on the command line."""
    names = options.NAMES | proof.NAMES | explore.NAMES | handover.NAMES
    return re.sub(r"`(\w+)`", lambda match: names.get(match[1], match[0]), str(text))
