"""Resumable work on many rows: one loop over shards.

A shard is a fixed range of rows. It is written when it is computed, so a killed run repeats at most the shards in
progress and ends with the same bytes, however many processes compute them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from nncift.errors import RunError
from nncift.run.executors import Executor, LocalExecutor
from nncift.run.files import read_array, read_table, read_tensors, write_array, write_table, write_tensors
from nncift.run.progress import already, drawn, moving

SHARD = 64  # of values that are computed once per distinct sample: what a kill loses at most

Arrays = dict[str, np.ndarray]
Work = Callable[[range], Arrays]
"""Computes the arrays of a range of rows. Picklable: a frozen dataclass that holds specs instead of models."""


_LOCAL = LocalExecutor()
_log = logging.getLogger("nncift")


@dataclass(frozen=True)
class Shard:
    """A range of rows and the file of its arrays; None: they stay in memory."""

    rows: range
    path: Path | None


def _compute(work: Work, shard: Shard) -> tuple[Shard, Arrays | None]:
    """Compute a shard, in whichever process: with its arrays unless they are written."""
    arrays = work(shard.rows)
    if shard.path is None:
        return shard, arrays
    _write(shard.path, arrays)
    return shard, None


def _write(path: Path, arrays: Arrays) -> None:
    if path.suffix == ".npy":
        write_array(path, arrays["values"])
    elif path.suffix == ".parquet":
        write_table(path, pa.table(arrays))
    else:
        write_tensors(path, arrays)


def _read(path: Path) -> Arrays:
    if path.suffix == ".npy":
        return {"values": read_array(path)}
    if path.suffix == ".parquet":
        table = read_table(path)
        return {name: table[name].to_numpy() for name in table.column_names}
    return read_tensors(path)


class Shards:
    """The shards of n rows; iterates over their arrays in the order of the rows.

    Args:
        n: number of rows.
        size: rows per shard.
        folder: keep each shard here as `<name>-<number><suffix>`; in memory unless given.
        name: of the files.
        suffix: ".safetensors", ".parquet" for columns, or ".npy" for the one array "values", memory-mapped.
    """

    def __init__(self, n: int, size: int, folder: Path | None, name: str, suffix: str = ".safetensors") -> None:
        self.n, self.folder, self.files = n, folder, f"{name}-*{suffix}"
        self._shards = [
            Shard(range(n)[start : start + size], folder and folder / f"{name}-{number:06d}{suffix}")
            for number, start in enumerate(range(0, n, size))
        ]
        self._computed: dict[int, Arrays] = {}  # by first row; only those without a file

    def compute(
        self,
        work: Work,
        *,
        bar: tqdm,
        accept: Callable[[range, Arrays], bool] | None = None,
        after_shard: Callable[[], None] = lambda: None,
        count: Callable[[int], None] = lambda rows: None,
        steps: int = 1,
        steps_per_row: int = 1,
        executor: Executor = _LOCAL,
    ) -> None:
        """Compute the shards that are not stored, or are damaged.

        Args:
            work: computes the arrays of a range of rows.
            bar: progress bar, advanced by shards, within a shard by the batches that the work reports.
            accept: whether a stored shard is that of these rows; one that is not is computed again.
            after_shard: called after each computed shard, for example to save the costs.
            count: called before that with the number of its rows.
            steps: of the bar for each row.
            steps_per_row: of the bar for each row of a batch.
            executor: where to compute.
        """
        missing = [shard for shard in self._shards if not self._stored(shard, accept)]
        already(bar, steps * (self.n - sum(len(shard.rows) for shard in missing)))
        job = functools.partial(_compute, work)
        computed = iter(executor.map(job, missing))
        for expected in missing:
            with moving(bar, steps * len(expected.rows), steps_per_row=steps_per_row):
                shard, arrays = next(computed)
            if arrays is not None:
                self._computed[shard.rows.start] = arrays
            count(len(shard.rows))
            after_shard()

    def __iter__(self) -> Iterator[Arrays]:
        for shard in self._shards:
            yield self._computed[shard.rows.start] if shard.path is None else _read(shard.path)

    def drop(self) -> None:
        """Remove the files, once what was made of them is stored."""
        if self.folder is not None:
            for path in self.folder.glob(self.files):
                path.unlink()

    def _stored(self, shard: Shard, accept: Callable[[range, Arrays], bool] | None) -> bool:
        if shard.path is None:
            return shard.rows.start in self._computed
        if not shard.path.exists():
            return False
        try:
            arrays = _read(shard.path)
        except RunError as error:
            if isinstance(error.__cause__, OSError):  # not its content
                raise
            _log.warning("computed again: %s", error.problem)
            return False
        return accept is None or accept(shard.rows, arrays)


@dataclass(frozen=True)
class _Keyed:
    """Values (m, d) float32 of some samples, stored with their keys."""

    compute: Callable[[list[int]], np.ndarray]
    keys: list[str]
    samples: list[int]

    def __call__(self, rows: range) -> Arrays:
        part = slice(rows.start, rows.stop)
        values = np.ascontiguousarray(self.compute(self.samples[part]), dtype=np.float32)
        return {"keys": self.stored_keys(rows), "values": values}

    def accept(self, rows: range, arrays: Arrays) -> bool:
        """Whether a shard holds the values of these samples."""
        return np.array_equal(arrays.get("keys", ()), self.stored_keys(rows))

    def stored_keys(self, rows: range) -> np.ndarray:
        """The keys, all of one length, as safetensors can hold them: (m, length) uint8."""
        text = "".join(self.keys[rows.start : rows.stop])
        return np.frombuffer(text.encode(), np.uint8).reshape(len(rows), -1)


def once_per_sample(
    keys: Sequence[str],
    compute: Callable[[list[int]], np.ndarray],
    *,
    name: str,
    folder: Path | None = None,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """The values of n samples, each distinct one computed once: key to value, (d,) float32.

    Args:
        keys: n fingerprints, equal for samples that have the same value.
        compute: gives the values (m, d) float32 of m sample numbers; picklable, like `Work`.
        name: shards are `<name>-*.safetensors`.
        folder: keep the shards here; those that are stored already are not computed again.
        progress: show a progress bar.
    """
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        first.setdefault(key, number)
    work = _Keyed(compute, list(first), list(first.values()))
    shards = Shards(len(first), SHARD, folder, name)
    with tqdm(total=len(first), desc=name, unit=" samples", **drawn(progress)) as bar:
        shards.compute(work, accept=work.accept, bar=bar)
    return dict(zip(first, (value for shard in shards for value in shard["values"]), strict=True))
