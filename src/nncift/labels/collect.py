"""Collecting exact influence in blocks that resume.

The pairs to label are rows of the pool, each with several targets, the same for all rows or its own: an influence
function can share an example's work over them. A block is a few rows with all their targets: what a block holds is
fixed by the plan, never by timing. A pointwise function gives a row the same value for every target, so one pair of
each row is enough.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from nncift.errors import DataError, ModelError
from nncift.influence.base import is_pointwise
from nncift.models.loading import out_of_memory

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.influence.base import InfluenceFunction
from nncift.labels.pairs import LabelledPairs

BLOCK_PAIRS = 128

_log = logging.getLogger("nncift")


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
