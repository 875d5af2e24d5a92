"""Resumable work on many rows: one loop over shards.

A shard is a fixed range of rows. It is written when it is computed, so a killed run repeats at most the shards in
progress and ends with the same bytes, however many processes of as many threads compute them. This process writes
them all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from nncift.errors import RunError
from nncift.run.executors.base import LOCAL, Executor
from nncift.run.progress import already, drawn, moving
from nncift.run.storage.files import read_array, read_table, read_tensors, write_array, write_table, write_tensors

SHARD = 64  # of values that are computed once per distinct sample: what a kill loses at most

Arrays = dict[str, np.ndarray]
Work = Callable[[Any], Arrays]
"""Computes the arrays of a range of rows, from the range or from what `Shards.compute` sends in its place.

Picklable where it is computed elsewhere: a frozen dataclass that holds specs instead of models.
"""

_log = logging.getLogger("nncift")


class TokenCounts(Protocol):
    """Counts the tokens that went through a language model: a `ModelSpec`."""

    @property
    def forward_tokens(self) -> int:
        """Forwards."""

    @property
    def backward_tokens(self) -> int:
        """Backwards."""

    def count_elsewhere(self, forward_tokens: int, backward_tokens: int) -> None:
        """Add those of the model in another process."""


@dataclass(frozen=True)
class Shard:
    """A range of rows and the file of its arrays; None: they stay in memory."""

    rows: range
    path: Path | None


@dataclass(frozen=True)
class _Part:
    """What a worker needs of a shard; written in messages as the range of rows."""

    shard: Shard
    sent: Any

    def __str__(self) -> str:
        rows, path = self.shard.rows, self.shard.path
        return f"rows {rows.start} to {rows.stop - 1}" + ("" if path is None else f" of {path.parent / path.stem[:-7]}")


@dataclass(frozen=True)
class _Computed:
    """The arrays of a shard, and the tokens that they took."""

    shard: Shard
    arrays: Arrays
    forward_tokens: int
    backward_tokens: int


@dataclass(frozen=True)
class _Job:
    """Computes a shard, in whichever process."""

    work: Work
    counter: TokenCounts | None

    def __call__(self, part: _Part) -> _Computed:
        before = self._tokens()
        arrays = self.work(part.sent)
        forward, backward = (now - then for now, then in zip(self._tokens(), before, strict=True))
        return _Computed(part.shard, arrays, forward, backward)

    def _tokens(self) -> tuple[int, int]:
        return (0, 0) if self.counter is None else (self.counter.forward_tokens, self.counter.backward_tokens)


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
        executor: Executor = LOCAL,
        send: Callable[[range], Any] | None = None,
        counter: TokenCounts | None = None,
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
            send: what the work takes of a range of rows, such as their samples, so that these alone travel to a
                worker; the range itself unless given.
            counter: of the work's model; gets the tokens that workers elsewhere counted.
        """
        missing = [shard for shard in self._shards if not self._stored(shard, accept)]
        already(bar, steps * (self.n - sum(len(shard.rows) for shard in missing)))
        parts = (_Part(shard, shard.rows if send is None else send(shard.rows)) for shard in missing)
        results = iter(executor.map(_Job(work, counter), parts))
        for expected in missing:
            with moving(bar, steps * len(expected.rows), steps_per_row=steps_per_row):
                computed = next(results)
            shard = computed.shard
            if shard.path is None:
                self._computed[shard.rows.start] = computed.arrays
            else:
                _write(shard.path, computed.arrays)
            if counter is not None and executor.elsewhere:
                counter.count_elsewhere(computed.forward_tokens, computed.backward_tokens)
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

    compute: Callable[[list[Any]], np.ndarray]

    def __call__(self, given: tuple[np.ndarray, list[Any]]) -> Arrays:
        keys, items = given
        return {"keys": keys, "values": np.ascontiguousarray(self.compute(items), dtype=np.float32)}


def once_per_sample(
    keys: Sequence[str],
    items: Sequence[Any],
    compute: Callable[[list[Any]], np.ndarray],
    *,
    name: str,
    folder: Path | None = None,
    progress: bool = False,
    executor: Executor = LOCAL,
    counter: TokenCounts | None = None,
) -> dict[str, np.ndarray]:
    """The values of n samples, each distinct one computed once: key to value, (d,) float32.

    Args:
        keys: n fingerprints of one length, equal for samples that have the same value.
        items: n samples, as `compute` takes them.
        compute: gives the values (m, d) float32 of m samples; picklable, like `Work`.
        name: shards are `<name>-*.safetensors`.
        folder: keep the shards here; those that are stored already are not computed again.
        progress: show a progress bar.
        executor: where to compute.
        counter: as of `Shards.compute`.
    """
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        first.setdefault(key, number)
    distinct, numbers = list(first), list(first.values())
    shards = Shards(len(first), SHARD, folder, name)

    def stored_keys(rows: range) -> np.ndarray:
        """As safetensors can hold them: (m, length) uint8."""
        text = "".join(distinct[rows.start : rows.stop])
        return np.frombuffer(text.encode(), np.uint8).reshape(len(rows), -1)

    with tqdm(total=len(first), desc=name, unit=" samples", **drawn(progress)) as bar:
        shards.compute(
            _Keyed(compute),
            accept=lambda rows, arrays: np.array_equal(arrays.get("keys", ()), stored_keys(rows)),
            bar=bar,
            executor=executor,
            send=lambda rows: (stored_keys(rows), [items[number] for number in numbers[rows.start : rows.stop]]),
            counter=counter,
        )
    return dict(zip(first, (value for shard in shards for value in shard["values"]), strict=True))
