"""Names of run folders that the user did not name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nncift.run.storage.files import fingerprint

IN_MEMORY = "dataset "
"""Begins the name of a source that is no file."""
_NAMED_POOLS = 3
_LONGEST_NAME = 60


def folder_of(pools: Sequence[str]) -> Path:
    """The folder of a run on these sources: runs/NAME-OF-THE-POOL."""
    stems = [Path(pool).name.partition(".")[0] or "pool" for pool in pools]
    more = len(stems) - _NAMED_POOLS
    named = [*stems[:_NAMED_POOLS], *([f"{more}-more"] if more > 0 else [])]
    return Path("runs") / re.sub(r"\W+", "-", "-".join(named)).strip("-")[:100]


def folder_beside(run: str, changed: Mapping[str, Any]) -> str:
    """A folder beside an earlier run, named after the options that differ; the same for the same options."""
    words = "-".join(f"{name}-{value}" for name, value in sorted(changed.items()))
    slug = re.sub(r"[^\w.]+", "-", words).strip("-.")
    if len(slug) > _LONGEST_NAME:
        slug = f"{slug[:_LONGEST_NAME]}-{fingerprint(changed)[:6]}"
    return f"{run.rstrip('/')}-{slug or 'again'}"
