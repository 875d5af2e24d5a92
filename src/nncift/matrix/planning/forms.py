"""In which form the influence of all pairs is held for the choice: stored, streamed or sparse, by memory and size.

stored     all entries in memory, 4 bytes each: the fastest where they fit
streamed   entries computed whenever they are read, nothing stored: any size, but a pass over all pairs for the first
           gains, and more for the choice
sparse     each target's strongest helpers (`matrix.sparse`): time and memory grow with the samples, not with the pairs

Stored and streamed give the same choice; the sparse one bounds what it may lose.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Literal

from nncift.matrix.compiled.entries import LISTED

Form = Literal["stored", "streamed", "sparse"]

STORED = 1 << 32
"""Bytes of the largest matrix that is stored, if that is no more than a quarter of the machine's memory."""
FEW_TARGETS = 20_000
"""Targets up to which streaming is fast, however large the pool."""
LEAST_HELPERS = 16
_TIMES = 4  # helpers of a target among as many of the pool as there are for each sample to choose, at first
_ENTRY_BYTES = 8  # of a kept entry, and of a listed one
_STORED_SHARE, _SPARSE_SHARE = 4, 5  # parts of the machine's memory


def memory_bytes() -> int:
    """The memory that this process may have: the machine's, or less in a container or in a job of a cluster."""
    try:
        whole = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):  # not on every system
        whole = 1 << 33
    return min(whole, *control_group_limits())


def control_group_limits(process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Limits in bytes that Linux sets to the memory of this process's control groups, of either version.

    Args:
        process: the file that names its groups.
        root: the folder of all groups.
    """
    limits = [1 << 62]
    try:
        lines = process.read_text().splitlines()
    except OSError:  # another system
        return limits
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = top / path.lstrip("/")  # of the host, where a container has no groups of its own
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # the file has "max" where there is no limit
                limits.append(int((folder / name).read_text()))
    return limits


def choose_form(n_pool: int, n_target: int, expected: float, *, may_be_sparse: bool) -> Form:
    """The form for a choice.

    Args:
        n_pool: pool samples.
        n_target: targets.
        expected: about how many samples will be selected.
        may_be_sparse: the matrix and the objective have a sparse form.
    """
    if 4 * n_pool * n_target <= min(STORED, memory_bytes() // _STORED_SHARE):
        return "stored"
    enough = most_helpers(n_pool, n_target) * expected >= n_pool  # else most targets would have no helper chosen
    return "sparse" if may_be_sparse and n_target > FEW_TARGETS and enough else "streamed"


def first_helpers(n_pool: int, n_target: int, expected: float) -> int:
    """Helpers of each target to try first: a few times as many pool samples as there are for each one to select."""
    wanted = max(math.ceil(_TIMES * n_pool / max(expected, 1.0)), LEAST_HELPERS)
    return min(wanted, most_helpers(n_pool, n_target))


def most_helpers(n_pool: int, n_target: int) -> int:
    """Helpers of each target that a fifth of the machine's memory has room for, at most the pool."""
    room = memory_bytes() // (_SPARSE_SHARE * _ENTRY_BYTES * max(n_target, 1))
    return min(max(room, LEAST_HELPERS), n_pool)


def form_memory(form: Form, n_pool: int, n_target: int, expected: float) -> int:
    """Bytes that a form takes at its peak, beyond the vectors of the samples."""
    if form == "stored":
        return n_pool * (4 * n_target + _ENTRY_BYTES * (n_target // LISTED))
    return 0 if form == "streamed" else _ENTRY_BYTES * n_target * first_helpers(n_pool, n_target, expected)
