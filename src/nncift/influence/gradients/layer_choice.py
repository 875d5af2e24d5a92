"""The choice of layers whose per-sample gradients are compared: "last:8", "middle", or numbers.

The backward pass ends at the lowest of them, and the random projection contains their weights alone. One layer at half
the depth keeps most of what all layers predict, for half the backward pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nncift.errors import ConfigError

MIDDLE = "middle"
_LAST = re.compile(r"last:([1-9]\d{0,5})")
_VALID = f'give numbers from 0, such as 10,15,20, or "last:8", or "{MIDDLE}"'


def check_layers(layers: str | Sequence[int]) -> None:
    """Raise a `ConfigError` unless this is "last:N", "middle" or distinct numbers from 0."""
    if isinstance(layers, str):
        valid = layers == MIDDLE or _LAST.fullmatch(layers) is not None
    else:
        valid = 0 < len(layers) == len({*layers}) and min(layers) >= 0
    if not valid:
        raise ConfigError(f"`layers` {layers!r} is no choice of layers", _VALID)


def layer_numbers(layers: str | Sequence[int], count: int) -> list[int]:
    """The chosen ones of `count` layers, ascending.

    Raises:
        ConfigError: there are fewer layers.
    """
    if layers == MIDDLE:
        return [count // 2]
    if isinstance(layers, str):
        last = int(layers.removeprefix("last:"))
        found = list(range(count - last, count))
    else:
        found = sorted(layers)
    if not 0 <= found[0] <= found[-1] < count:
        raise ConfigError(f"`layers` {layers!r} does not exist: the model has {count} layers, from 0", _VALID)
    return found
