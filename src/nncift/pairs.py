"""Labelled pairs: exact influence values with the samples they belong to, collected in blocks that resume.

The pairs to label are rows of the pool, each with several targets, the same for all rows or its own: an influence
function can share an example's work over them. A block is a few rows with all their targets: what a block holds is
fixed by the plan, never by timing. A pointwise function gives a row the same value for every target, so one pair of
each row is enough.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from nncift.errors import DataError, ModelError
from nncift.influence import is_pointwise
from nncift.loading import out_of_memory
from nncift.storage import read_table, write_table

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.influence import InfluenceFunction

BLOCK_PAIRS = 128

_log = logging.getLogger("nncift")


@dataclass(frozen=True)
class LabelledPairs:
    """Aligned arrays of exact influence values.

    Attributes:
        pool_index: (n,) int32, the sample that may help.
        target_index: (n,) int32, the sample that it may help.
        influence: (n,) float32, larger is better.
    """

    pool_index: np.ndarray
    target_index: np.ndarray
    influence: np.ndarray

    def __len__(self) -> int:
        return len(self.influence)

    def take(self, mask: np.ndarray) -> LabelledPairs:
        """The pairs where `mask` (n,) bool holds, or those of these numbers."""
        return LabelledPairs(self.pool_index[mask], self.target_index[mask], self.influence[mask])

    def split(
        self,
        fraction: float = 0.8,
        *,
        seed: int = 0,
        held_out: tuple[np.ndarray, np.ndarray] | None = None,
        pool_groups: np.ndarray | None = None,
        target_groups: np.ndarray | None = None,
    ) -> tuple[LabelledPairs, LabelledPairs]:
        """Hold out whole samples on both sides.

        Args:
            fraction: share of the labelled samples of each side that stay for training. A side with two or
                more samples holds out at least one.
            seed: which ones.
            held_out: the pool samples and the targets to hold out, where they are chosen already.
            pool_groups: group number of every pool sample; samples of one group (exact duplicates) fall on
                the same side. Each is its own group unless given.
            target_groups: the same for the targets.

        Returns:
            The pairs of which both samples stay (the paper's quadrant Q1), and all others.
        """
        rng = np.random.default_rng(seed)
        rows, targets = held_out or (None, None)
        stays = _keep(self.pool_index, pool_groups, fraction, rng, rows)
        stays &= _keep(self.target_index, target_groups, fraction, rng, targets)
        return self.take(stays), self.take(~stays)

    @classmethod
    def joined(cls, parts: Sequence[LabelledPairs]) -> LabelledPairs:
        """One after the other."""
        names = ("pool_index", "target_index", "influence")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def without(self, others: LabelledPairs) -> LabelledPairs:
        """The pairs that are not among the others."""
        width = max(self.target_index.max(initial=0), others.target_index.max(initial=0)) + 1
        own, other = (pairs.pool_index.astype(np.int64) * width + pairs.target_index for pairs in (self, others))
        return self.take(~np.isin(own, other))

    @property
    def pointwise(self) -> bool:
        """Whether each pool sample has one score for all its targets, and one at least has several targets."""
        _, row = np.unique(self.pool_index, return_inverse=True)
        low, high = np.full(row.max(initial=-1) + 1, np.inf), np.full(row.max(initial=-1) + 1, -np.inf)
        np.minimum.at(low, row, self.influence)
        np.maximum.at(high, row, self.influence)
        return bool(len(low) < len(row) and (low == high).all())

    def quadrants(self, train: LabelledPairs) -> np.ndarray:
        """The paper's quadrant of each pair, (n,) of "Q1" both samples seen in `train`, "Q2" new pool sample,
        "Q3" new target, "Q4" both new.
        """  # noqa: D205
        new_pool = ~np.isin(self.pool_index, train.pool_index)
        new_target = ~np.isin(self.target_index, train.target_index)
        return np.array(["Q1", "Q2", "Q3", "Q4"])[new_pool + 2 * new_target]

    def save(self, path: Path) -> None:
        """Write a Parquet file of the three columns."""
        columns = {"pool_index": self.pool_index, "target_index": self.target_index, "influence": self.influence}
        write_table(path, pa.table(columns))

    @classmethod
    def load(cls, path: Path) -> LabelledPairs:
        """Read what `save` wrote."""
        table = read_table(path)
        return cls(*(table[name].to_numpy() for name in ("pool_index", "target_index", "influence")))


@dataclass(frozen=True)
class Probes:
    """Exact influence of each of n pool samples on the same few targets.

    Attributes:
        columns: (k,) int64 numbers of the targets.
        influence: (n, k) float32; nan where a sample is the target itself, which tells nothing of the others.
    """

    columns: np.ndarray
    influence: np.ndarray

    def take(self, rows: np.ndarray) -> Probes:
        """Of some of the samples."""
        return Probes(self.columns, self.influence[rows])

    def joined(self, other: Probes) -> Probes:
        """With the other's targets that are not among these."""
        new = ~np.isin(other.columns, self.columns)
        columns = np.concatenate([self.columns, other.columns[new]])
        return Probes(columns, np.concatenate([self.influence, other.influence[:, new]], axis=1))


def _keep(
    index: np.ndarray,
    groups: np.ndarray | None,
    fraction: float,
    rng: np.random.Generator,
    chosen: np.ndarray | None,
) -> np.ndarray:
    """Which pairs have a sample that is not held out on this side; `chosen`: which are, with all of their groups."""
    own = index if groups is None else groups[index]
    if chosen is not None:
        return ~np.isin(own, chosen if groups is None else groups[chosen])
    distinct = np.unique(own)
    held_out = max(round((1 - fraction) * len(distinct)), 1) if len(distinct) > 1 else 0
    return ~np.isin(own, rng.permutation(distinct)[:held_out])


def collect(
    function: InfluenceFunction,
    pool: Dataset,
    target: Dataset,
    rows: np.ndarray,
    columns: np.ndarray,
    *,
    folder: Path | None = None,
    progress: bool = False,
    after_block: Callable[[], None] = lambda: None,
) -> LabelledPairs:
    """Exact influence of pool rows on targets, block by block.

    Args:
        function: the influence function; its `prepare`, where it has one, sees all these samples once.
        pool: the samples that may help.
        target: the samples to be helped.
        rows: (r,) indices into `pool`.
        columns: indices into `target`: (c,) for all rows, or (r, k), for each row its own.
        folder: keep `block-*.parquet` here while running, then `labels.parquet`; what is there already is not
            computed again.
        progress: show a progress bar.
        after_block: called after each block, for example to save the costs.

    Returns:
        r * c or r * k pairs, row by row.

    A block that does not fit into memory is done in halves, and the log says so. A pointwise function's blocks are
    as tall as if there were one target, since its work does not grow with them.

    Raises:
        DataError: a value is not finite; the message names the pair.
        ModelError: a single pair does not fit into memory.
    """
    finished = folder / "labels.parquet" if folder is not None else None
    if finished is not None and finished.exists():
        _drop_blocks(finished.parent)
        return LabelledPairs.load(finished)
    columns = np.asarray(columns)
    if hasattr(function, "progress"):
        function.progress = progress
    if hasattr(function, "prepare"):
        function.prepare(pool.select(rows), target.select(np.unique(columns)), folder)
    width = columns.shape[-1]
    height = BLOCK_PAIRS if is_pointwise(function) else max(BLOCK_PAIRS // width, 1)
    blocks: list[LabelledPairs] = []
    with tqdm(total=len(rows) * width, desc="labelling", unit=" pairs", disable=not progress) as bar:
        for number, start in enumerate(range(0, len(rows), height)):
            path = folder / f"block-{number:06d}.parquet" if folder is not None else None
            if path is not None and path.exists():
                block = LabelledPairs.load(path)
            else:
                part = slice(start, start + height)
                block = _label_block(
                    function, pool, target, rows[part], columns if columns.ndim == 1 else columns[part]
                )
                if path is not None:
                    block.save(path)
                after_block()
            blocks.append(block)
            bar.update(len(block))
    pairs = LabelledPairs.joined(blocks)
    if finished is not None:
        pairs.save(finished)
        _drop_blocks(finished.parent)
    return pairs


def _drop_blocks(folder: Path) -> None:
    """Remove the blocks that `labels.parquet` holds by now."""
    for path in folder.glob("block-*.parquet"):
        path.unlink()


def _label_block(
    function: InfluenceFunction, pool: Dataset, target: Dataset, rows: np.ndarray, columns: np.ndarray
) -> LabelledPairs:
    """All pairs of some rows; those with targets of their own are asked for one by one, save for a pointwise score."""
    if columns.ndim == 1:
        values = _grid_values(function, pool, target, rows, columns)
    elif is_pointwise(function):
        distinct, place = np.unique(columns, return_inverse=True)
        whole = _grid_values(function, pool, target, rows, distinct)
        values = np.take_along_axis(whole, place.reshape(columns.shape), axis=1)
    else:
        parts = (_grid_values(function, pool, target, rows[[i]], own) for i, own in enumerate(columns))
        values = np.concatenate(list(parts))
    own = np.broadcast_to(columns, values.shape)
    return LabelledPairs(
        np.repeat(rows, values.shape[1]).astype(np.int32), own.ravel().astype(np.int32), values.ravel()
    )


def _grid_values(
    function: InfluenceFunction, pool: Dataset, target: Dataset, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """What the function says of rows x columns, (r, c) float32, checked."""
    target_rows = target.select(columns)
    values = _influence(function, pool.select(rows), target_rows)
    if values.shape != (len(rows), len(columns)):
        raise DataError(
            f"the influence function {function.name!r} gave shape {values.shape} for {len(rows)} pool samples"
            f" and {len(columns)} targets",
            "it must give one row per pool sample and one column per target",
        )
    if not np.isfinite(values).all():
        i, j = np.argwhere(~np.isfinite(values))[0]
        raise DataError(
            f"the influence of {pool[int(rows[i])]['id']!r} on {target_rows[int(j)]['id']!r} is {values[i, j]}",
            "look at these two samples; with --dtype float16, try bfloat16 or float32",
        )
    return values


def _influence(function: InfluenceFunction, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
    """The block's values, (n_pool, n_target) float32, in halves where it does not fit into memory."""
    try:
        return np.asarray(function(pool_rows, target_rows), dtype=np.float32)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    gc.collect()  # only here, after the error is gone, is nothing of its frames held any more
    height, width = len(pool_rows), len(target_rows)
    if height == width == 1:
        raise ModelError(
            f"the influence of {pool_rows[0]['id']!r} on {target_rows[0]['id']!r} does not fit into memory",
            "lower --max-length, use --dtype bfloat16, or take a smaller model",
        )
    _log.info("labels: memory ran out on a block of %d x %d pairs, which was halved", height, width)
    rows, columns = range(height), range(width)
    if height > 1:
        halves = [(rows[: height // 2], columns), (rows[height // 2 :], columns)]
    else:
        halves = [(rows, columns[: width // 2]), (rows, columns[width // 2 :])]
    parts = [_influence(function, pool_rows.select(i), target_rows.select(j)) for i, j in halves]
    return np.concatenate(parts, axis=0 if height > 1 else 1)
