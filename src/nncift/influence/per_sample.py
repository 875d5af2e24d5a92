"""Values that a function computes once per sample, in shards that resume.

A shard holds a fixed range of the distinct samples, with a key of what each value was computed from, so a
killed run repeats at most one shard and ends with the same bytes, and a shard of other samples is not mistaken
for one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from tqdm import tqdm

from nncift.errors import RunError
from nncift.storage import read_tensors, write_tensors

SHARD = 256


def once_per_sample(
    keys: Sequence[str],
    compute: Callable[[list[int]], np.ndarray],
    *,
    name: str,
    folder: Path | None = None,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """The values of n samples, each distinct one computed once.

    Args:
        keys: n fingerprints, equal for samples that have the same value.
        compute: gives the values (m, d) float32 of m sample numbers.
        name: shards are `<name>-*.safetensors`.
        folder: keep the shards here; those that are there already are not computed again.
        progress: show a progress bar.

    Returns:
        Key to value, (d,) float32.

    Raises:
        RunError: a shard is damaged.
    """
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        first.setdefault(key, number)
    distinct = list(first)
    values: dict[str, np.ndarray] = {}
    with tqdm(total=len(distinct), desc=name, unit=" samples", disable=not progress) as bar:
        for start in range(0, len(distinct), SHARD):
            part = distinct[start : start + SHARD]
            path = None if folder is None else folder / f"{name}-{start // SHARD:06d}.safetensors"
            shard = None if path is None else _stored(path, part)
            if shard is None:
                shard = np.ascontiguousarray(compute([first[key] for key in part]), dtype=np.float32)
                if path is not None:
                    write_tensors(path, {"keys": _as_bytes(part), "values": shard})
            values.update(zip(part, shard, strict=True))
            bar.update(len(part))
    return values


def _stored(path: Path, keys: list[str]) -> np.ndarray | None:
    """The values of a shard, (m, d), if it is there and holds those of exactly these samples."""
    if not path.exists():
        return None
    try:
        shard = read_tensors(path)
    except SafetensorError as error:
        raise RunError(f"{path} is damaged", "remove the file and run again") from error
    found = shard.get("keys")
    return shard["values"] if found is not None and np.array_equal(found, _as_bytes(keys)) else None


def _as_bytes(keys: list[str]) -> np.ndarray:
    """Keys, all of one length, as the numbers that safetensors can hold: (m, length) uint8."""
    return np.frombuffer("".join(keys).encode(), np.uint8).reshape(len(keys), -1)


def broadcast(scores: np.ndarray, n_target: int) -> np.ndarray:
    """A score per pool sample, (n_pool,), as influence on every target alike, (n_pool, n_target) float32."""
    return np.repeat(np.asarray(scores, dtype=np.float32)[:, None], n_target, axis=1)
