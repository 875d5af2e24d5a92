"""Values of many samples, computed in shards that resume.

A shard holds a fixed range of samples, so a killed run repeats at most one of them and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from nncift.run.files import atomic_write, read_array, read_tensors, write_json, write_tensors

if TYPE_CHECKING:
    from datasets import Dataset
from collections.abc import Sequence

from safetensors import SafetensorError

from nncift.errors import RunError

SAMPLES_PER_SHARD = 1024


def in_shards(
    samples: Dataset,
    compute: Callable[[Dataset], dict[str, np.ndarray]],
    *,
    folder: Path | None,
    name: str,
    facts: dict[str, Any],
    blocks: Mapping[str, int] | None = None,
    progress: bool = False,
    after_shard: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Features of every sample.

    Args:
        samples: n rows.
        compute: some rows to "features" (rows, d) float32, and "truncated" (rows,) bool, which texts were cut.
        folder: keep shards here while running, then `<name>.npy` and `<name>.json`; what is there already is not
            computed again.
        name: file name in `folder`.
        facts: what to record beside rows, width and the number of texts cut.
        blocks: name to width, where the features are several blocks side by side.
        progress: show a progress bar.
        after_shard: called after each shard that was computed, for example to save the costs.

    Returns:
        (n, d) float32, memory-mapped when a folder is given.
    """
    if folder is not None and (folder / f"{name}.json").exists():
        _drop_shards(folder, name)
        return read_array(folder / f"{name}.npy")
    shards: list[Path | np.ndarray] = []
    truncated = 0
    with tqdm(total=len(samples), desc=f"features {name}", unit=" samples", disable=not progress) as bar:
        for start in range(0, len(samples), SAMPLES_PER_SHARD):
            path = folder / f"{name}-{start // SAMPLES_PER_SHARD:06d}.safetensors" if folder is not None else None
            if path is not None and path.exists():
                shard = read_tensors(path)
            else:
                shard = compute(samples.select(range(start, min(start + SAMPLES_PER_SHARD, len(samples)))))
                if path is not None:
                    write_tensors(path, shard)
                after_shard()
            truncated += int(shard["truncated"].sum())
            bar.update(len(shard["features"]))
            shards.append(path if path is not None else shard["features"])
    if folder is None:
        return np.concatenate([shard for shard in shards if isinstance(shard, np.ndarray)])
    paths = [shard for shard in shards if isinstance(shard, Path)]
    facts = {**facts, "truncated": truncated} | ({} if blocks is None else {"blocks": dict(blocks)})
    return _join(paths, len(samples), folder, name, facts)


def _join(shards: list[Path], n: int, folder: Path, name: str, facts: dict[str, Any]) -> np.ndarray:
    """One memory-mappable array from the shards, without holding it in memory; then drop the shards."""
    path = folder / f"{name}.npy"
    width = read_tensors(shards[0])["features"].shape[1]
    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n, width)}
        np.lib.format.write_array_header_1_0(handle, header)
        for shard in shards:
            handle.write(read_tensors(shard)["features"].tobytes())
    write_json(folder / f"{name}.json", {**facts, "width": int(width), "rows": n})
    _drop_shards(folder, name)
    return read_array(path)


def _drop_shards(folder: Path, name: str) -> None:
    """Remove the shards that the joined array holds by now, and what they were begun with."""
    for left in (*folder.glob(f"{name}-*.safetensors"), *folder.glob(f"{name}-begun.json")):
        left.unlink()


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
