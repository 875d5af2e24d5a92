"""Amounts as users write them, in one form.

A fraction "0.1" or "10%", a count "2000", "500ktok", "200samples", seconds "15m", bytes "64MiB".
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from nncift.errors import ConfigError

_UNIT = r"(?P<percent>%)|(?P<tokens>[kKmMgG]?)tok(?:ens)?|(?P<samples>samples)|(?P<seconds>[smh])"
_AMOUNT = re.compile(rf"(?P<number>\d+(?:\.\d*)?(?:e\d+)?|\.\d+)\s*(?:{_UNIT})?")
_BYTES = re.compile(r"(?P<number>\d+(?:\.\d*)?)\s*(?P<unit>|[kmgt]i?)b?", re.IGNORECASE)
_TOKENS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Amount:
    """A budget or a number of labels."""

    kind: Literal["fraction", "count", "tokens", "seconds", "samples"]
    value: float  # above 0, but for a cap; a fraction is at most 1
    text: str = field(default="", compare=False)  # as the user wrote it, for messages

    def __str__(self) -> str:
        return self.text or f"{self.value:g}"


def parse_budget(budget: str | float) -> Amount:
    """Parse a budget: "0.1", "10%", "2000", "2Mtok"; the number 1.0 is the whole pool, 1 one sample.

    Raises:
        ConfigError: not such an amount, zero, or a fraction above 1.
    """
    example = "a fraction (0.1 or 10%), a number of samples (2000) or tokens (2Mtok)"
    return _parse("budget", budget, ("tokens",), example)


def parse_labels(labels: str | float) -> Amount:
    """Parse a number of labels: "2000", "0.01", "1%", "200samples", "90s", "15m"; raises as `parse_budget`."""
    example = "a number of pairs (2000) or samples (200samples), a fraction of all pairs (0.01), a time (15m) or auto"
    return _parse("labels", labels, ("seconds", "samples"), example)


def parse_share(option: str, given: str | float, *, zero: bool = False) -> Amount:
    """Parse a part of a budget, as `parse_budget`; with `zero` it may be nothing."""
    if zero and re.fullmatch(r"0+(?:\.0*)?\s*%?", str(given).strip()):
        return Amount("fraction", 0.0, str(given))
    return _parse(option, given, ("tokens",), "a fraction of the budget (0.1 or 10%), a number of samples or of tokens")


def _parse(option: str, given: str | float, units: tuple[str, ...], example: str) -> Amount:
    text = str(given)
    raw = text.replace("_", "").strip()
    match = _AMOUNT.fullmatch(raw)
    if match is None or match.lastgroup not in ("number", "percent", *units) or isinstance(given, bool):
        raise ConfigError(f"`{option}` {given!r} is not an amount", f"give {example}")
    number = float(match["number"])
    if number <= 0 or not math.isfinite(number):
        raise ConfigError(f"`{option}` {given!r} is zero", f"give {example}")
    if match.lastgroup == "tokens":
        return Amount("tokens", round(number * _TOKENS[match["tokens"].lower()]), text)
    if match.lastgroup == "seconds":
        return Amount("seconds", number * _SECONDS[match["seconds"]], text)
    if match.lastgroup == "samples":
        return Amount("samples", round(number), text)
    if match.lastgroup == "number" and "." not in raw:
        return Amount("count", number, text)
    share = number / 100 if match.lastgroup == "percent" else number
    if share > 1:
        raise ConfigError(f"`{option}` {given!r} is more than everything", f"give {example}")
    return Amount("fraction", share, text)


def size_text(size: int) -> str:
    """A number of bytes for people: "64 MiB"."""
    for unit, bytes_ in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= bytes_:
            return f"{size / bytes_:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} bytes"


def parse_bytes(option: str, given: int | str) -> int:
    """Parse a number of bytes, at least one: 67108864, "64MiB", "1.5 GB".

    Raises:
        ConfigError: not such a number; the message names the option.
    """
    match = _BYTES.fullmatch(str(given).replace("_", "").strip())
    if match is None or isinstance(given, bool):
        raise ConfigError(f"`{option}` {given!r} is not a number of bytes", "give one, such as 67108864 or 64MiB")
    unit = match["unit"].lower()
    size = (1024 if unit.endswith("i") else 1000) ** ("", "k", "m", "g", "t").index(unit.removesuffix("i"))
    if (count := int(float(match["number"]) * size)) < 1:
        raise ConfigError(f"`{option}` {given!r} is less than one byte", "give more, such as 64MiB")
    return count
