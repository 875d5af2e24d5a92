"""Exact influence of pairs, collected in blocks that resume.

The pairs are rows of the pool, each with several targets, the same for all rows or its own: an influence function can
share an example's work over them. A block is a few rows with all their targets, fixed by the plan and never by timing.
A pointwise function gives a row the same value for every target, so one pair of each row is enough.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from tqdm import tqdm

from nncift.data.sources.memory import detached
from nncift.errors import DataError, ModelError
from nncift.influence.base import InfluenceFunction, as_function
from nncift.labels.pairs import LabelledPairs
from nncift.models.batching import LESS_MEMORY, in_memory
from nncift.run.executors.base import LOCAL, workers
from nncift.run.folder.parts import LabelFolder
from nncift.run.progress import drawn
from nncift.run.shards import Arrays, Shards

if TYPE_CHECKING:
    from datasets import Dataset

BLOCK_PAIRS = 128

_log = logging.getLogger("nncift")


def collect(
    function: InfluenceFunction | Callable[[Dataset, Dataset], np.ndarray],
    pool: Dataset,
    target: Dataset,
    rows: np.ndarray,
    columns: np.ndarray,
    *,
    folder: Path | None = None,
    progress: bool = False,
    after_prepare: Callable[[], None] = lambda: None,
    after_block: Callable[[], None] = lambda: None,
    known: LabelledPairs | None = None,
    among: Path | None = None,
    title: str = "exact influence",
) -> LabelledPairs:
    """Exact influence of pool rows on targets, block by block.

    Args:
        function: the influence function, prepared with all these samples once, or a plain callable with a name.
        pool: the samples that may help.
        target: the samples to be helped.
        rows: (r,) indices into `pool`.
        columns: indices into `target`: (c,) for all rows, or (r, k), each row's own.
        folder: keep blocks here while running, then the pairs; what is stored is not computed again.
        progress: show a progress bar.
        after_prepare: called once the function is prepared.
        after_block: called after each computed block, for example to save the costs.
        known: exact values of pairs of these samples by this function, which are not computed again; of a function
            that is not relative.
        among: keep the influence of these targets on each other here too, their indices on both sides; needs `folder`
            and a function with the trait `both_sides`.
        title: of the progress bar.

    Returns:
        r * c or r * k pairs, row by row.

    A block that does not fit into memory is halved, and the log reports it. A pointwise function's blocks are as tall
    as if there were one target, since its cost does not grow with the targets.

    Raises:
        DataError: a value is not finite; the message names the pair.
        ModelError: a single pair does not fit into memory.
    """
    files = None if folder is None else LabelFolder(folder)
    function, columns = as_function(function), np.asarray(columns)
    width = columns.shape[-1]
    height = BLOCK_PAIRS if function.traits.pointwise else max(BLOCK_PAIRS // width, 1)
    blocks = Shards(len(rows), height, folder, "block", ".parquet")
    if files is None or not files.labels.exists() or not (among is None or among.exists()):
        function.progress = progress
        values = _Known.of(known, pointwise=function.traits.pointwise)
        new_rows, new_columns = values.missing(rows, columns)
        if among is not None:
            new_columns = np.unique(columns)
        if len(new_rows) or among is not None:
            function.prepare(pool.select(new_rows), target.select(new_columns), folder)
        after_prepare()
        executor = workers() if function.travels else LOCAL

        def send(part: range) -> _Block:
            place = slice(part.start, part.stop)
            own = columns if columns.ndim == 1 else columns[place]
            block = _Block.of(pool, target, rows[place], own, values)
            return block.alone() if executor.elsewhere else block

        each = width if function.traits.pointwise else 1
        unit = " samples" if width == 1 else " pairs"
        with tqdm(total=len(rows) * width, desc=title, unit=unit, **drawn(progress)) as bar:
            blocks.compute(
                _Labelling(function),
                bar=bar,
                after_shard=after_block,
                steps=width,
                steps_per_row=each,
                executor=executor,
                send=send,
                counter=function.models[0] if len(function.models) == 1 else None,
            )
        pairs = LabelledPairs.joined([LabelledPairs(**block) for block in blocks])
        if files is None:
            return pairs
        if among is not None:
            among_targets(function, target, new_columns).save(among)
        pairs.save(files.labels)
    blocks.drop()
    return LabelledPairs.load(files.labels)


def among_targets(function: InfluenceFunction, target: Dataset, targets: np.ndarray) -> LabelledPairs:
    """Influence of targets (m,) on each other, each with itself too: m * m pairs of their indices, row by row."""
    some = target.select(targets)
    values = _Labelling(function).computed(some, some)
    i, j = np.repeat(targets, len(targets)), np.tile(targets, len(targets))
    return LabelledPairs(i.astype(np.int32), j.astype(np.int32), values.ravel())


@dataclass(frozen=True)
class _Known:
    """Exact values by pair, of a pointwise function by row.

    Attributes:
        codes: (m,) int64, ascending.
        influence: (m,) float32.
        pointwise: a code is that of a row.
    """

    codes: np.ndarray
    influence: np.ndarray
    pointwise: bool

    @classmethod
    def of(cls, pairs: LabelledPairs | None, *, pointwise: bool) -> Self:
        """Of some pairs, or of none."""
        if pairs is None:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.float32), pointwise)
        codes, first = np.unique(_codes(pairs.pool_index, pairs.target_index, pointwise), return_index=True)
        return cls(codes, pairs.influence[first], pointwise)

    def values(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The values of pairs, in the shape that rows and columns give together, float32; nan where not known."""
        codes = np.broadcast_to(_codes(rows, columns, self.pointwise), np.broadcast_shapes(rows.shape, columns.shape))
        if not len(self.codes):
            return np.full(codes.shape, np.nan, np.float32)
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(self.codes[place] == codes, self.influence[place], np.float32(np.nan))

    def of_rows(self, rows: np.ndarray) -> Self:
        """Those of some rows."""
        there = np.isin(self.codes if self.pointwise else self.codes >> 32, rows)
        return replace(self, codes=self.codes[there], influence=self.influence[there])

    def missing(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows and the targets of planned pairs that are not known, the targets ascending."""
        new = np.isnan(self.values(rows[:, None], columns))
        return rows[new.any(axis=1)], np.unique(np.broadcast_to(columns, new.shape)[new])


def _codes(rows: np.ndarray, columns: np.ndarray, pointwise: bool) -> np.ndarray:
    return rows.astype(np.int64) if pointwise else rows.astype(np.int64) << 32 | columns.astype(np.int64)


@dataclass(frozen=True)
class _Block:
    """Some rows with their targets.

    Attributes:
        rows: (r,) indices of pool samples.
        columns: indices of targets, (c,) for all rows or (r, k), each row's own.
        pool, target: these samples, each once, in the order of their indices.
        known: exact values of some of the pairs.
    """

    rows: np.ndarray
    columns: np.ndarray
    pool: Dataset
    target: Dataset
    known: _Known

    @classmethod
    def of(cls, pool: Dataset, target: Dataset, rows: np.ndarray, columns: np.ndarray, known: _Known) -> Self:
        """Of all pool samples and targets."""
        return cls(rows, columns, pool.select(np.unique(rows)), target.select(np.unique(columns)), known)

    def alone(self) -> Self:
        """As it travels to another process."""
        known = self.known.of_rows(self.rows)
        return replace(self, pool=detached(self.pool), target=detached(self.target), known=known)

    def samples(self, rows: np.ndarray, columns: np.ndarray) -> tuple[Dataset, Dataset]:
        """Pool samples and targets of some indices."""
        places = (np.searchsorted(np.unique(of), which) for of, which in ((self.rows, rows), (self.columns, columns)))
        return self.pool.select(next(places)), self.target.select(next(places))


@dataclass(frozen=True)
class _Labelling:
    """Exact influence of rows on their targets: the work of one block."""

    function: InfluenceFunction

    def __call__(self, block: _Block) -> Arrays:
        rows, columns, shared = block.rows, block.columns, block.columns.ndim == 1
        if shared:
            values = self._grid(block, rows, columns)
        elif self.function.traits.pointwise:
            distinct, place = np.unique(columns, return_inverse=True)
            values = np.take_along_axis(self._grid(block, rows, distinct), place.reshape(columns.shape), axis=1)
        else:  # each row with its own targets
            values = np.concatenate([self._grid(block, rows[[i]], own) for i, own in enumerate(columns)])
        return {
            "pool_index": np.repeat(rows, values.shape[1]).astype(np.int32),
            "target_index": np.broadcast_to(columns, values.shape).ravel().astype(np.int32),
            "influence": values.ravel(),
        }

    def _grid(self, block: _Block, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Influence of rows x columns, (r, c) float32: known, or computed in the smallest grid that has the others."""
        values = block.known.values(rows[:, None], columns[None])
        new = np.isnan(values)
        some_rows, some_columns = new.any(axis=1), new.any(axis=0)
        if some_rows.any():
            place = np.ix_(some_rows, some_columns)
            computed = self.computed(*block.samples(rows[some_rows], columns[some_columns]))
            values[place] = np.where(new[place], computed, values[place])
        return values

    def computed(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Influence of some samples on others, (r, c) float32, computed and checked."""
        values = _influence(self.function, pool_rows, target_rows)
        if values.shape != (len(pool_rows), len(target_rows)):
            raise DataError(
                f"the influence function {self.function.name!r} gave shape {values.shape} for {len(pool_rows)} pool"
                f" samples and {len(target_rows)} targets",
                "it must give one row per pool sample and one column per target",
            )
        if not np.isfinite(values).all():
            i, j = np.argwhere(~np.isfinite(values))[0].tolist()
            raise DataError(
                f"the influence of {pool_rows[i]['id']!r} on {target_rows[j]['id']!r} is {values[i, j]}",
                "check these two samples; with `dtype` float16, use bfloat16 or float32",
            )
        return values


def _influence(function: InfluenceFunction, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
    """Influence of a block, (n_pool, n_target) float32, in halves where it does not fit into memory."""
    values = in_memory(lambda: np.asarray(function(pool_rows, target_rows), dtype=np.float32))
    if values is not None:
        return values
    height, width = len(pool_rows), len(target_rows)
    if height == width == 1:
        raise ModelError(
            f"the influence of {pool_rows[0]['id']!r} on {target_rows[0]['id']!r} does not fit into memory", LESS_MEMORY
        )
    _log.info("labels: a block of %d x %d pairs ran out of memory and was halved", height, width)
    if height > 1:
        parts = [_influence(function, pool_rows.select(half), target_rows) for half in np.array_split(range(height), 2)]
        return np.concatenate(parts)
    parts = [_influence(function, pool_rows, target_rows.select(half)) for half in np.array_split(range(width), 2)]
    return np.concatenate(parts, axis=1)
