"""Exact influence of every pair, where it is a function of two samples' vectors: no labels and no network.

A vector takes what a feature takes, one pass per sample, and every pair then costs an inner product, less than the
labels that an estimate would need. The vectors are kept, so that a resumed run computes the missing ones alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from nncift.config import default_fields
from nncift.errors import ConfigError, DataError
from nncift.influence.base import InfluenceFunction
from nncift.labels.rates import abridged
from nncift.labels.work import grid_work
from nncift.matrix.products import HELD, product_matrix
from nncift.models.text.chats import chunks
from nncift.pipeline.configuration.options import ESTIMATION
from nncift.pipeline.earlier_runs.growing import first_vectors, joined_blocks, restore_from_taken_pool, share_computed
from nncift.pipeline.learning.measure import describe_once, keep_description, note_cut
from nncift.run.folder.costs import PlannedCost, seconds_of
from nncift.run.progress import drawn, moving
from nncift.run.storage.files import remove, write_array, write_tensors
from nncift.run.storage.vectors import read_vectors, write_vectors

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.config import Config
    from nncift.matrix.matrix import InfluenceMatrix
    from nncift.pipeline.context import Run

_TRIAL = 2048  # samples on which the rate of a matrix product is measured
_FEW = 4  # samples that these repeat
_MEASURED = 512  # samples of which a dry run finds the longest


def refuse_estimation(config: Config, name: str, fitted: str | None = None, *, verifies: bool = False) -> None:
    """Refuse options of labels and network for a function that is computed exactly for every pair.

    Args:
        config: the run's.
        name: of the function.
        fitted: the name of the function that the run's network was fitted to.
        verifies: another function measures a shortlist.

    Raises:
        ConfigError: one is given.
    """
    if (option := estimation_of(config, verifies=verifies)) is not None:
        problem = f"{name} is computed exactly for every pair, so {option} has no use"
        other = f"give `influence` {fitted or 'less'} to estimate that" if config.influence is None else ""
        raise ConfigError(problem, ", or ".join(filter(None, ["leave it out", other])))


def estimation_of(config: Config, *, verifies: bool = False) -> str | None:
    """The first option given that only an estimate has a use for, as a message names it; None without any.

    With `verifies`, a shortlist is measured.
    """
    defaults = default_fields()
    given = {option: getattr(config, option) for option in ESTIMATION}
    if config.unlabelled:  # which an exact function is anyway
        del given["labels"]
    if verifies:
        del given["verify"]
    return next((f"`{option}` {value}" for option, value in given.items() if value != defaults[option]), None)


def refuse_beside_known(config: Config, exact: str | None) -> None:
    """Refuse exact values of a part of the pool where there are known samples, of which none are measured.

    Args:
        config: the run's.
        exact: the name of the function by which the known samples count, where it is exact; None where it is estimated.

    Raises:
        ConfigError: `probes` or `verify` is given with `known`.
    """
    given = next((name for name in ("probes", "verify") if getattr(config, name) is not None), None)
    if config.known is None or given is None:
        return
    influence = "estimated" if exact is None else f"by {exact}"
    problem = (
        f"the influence of `known` samples is {influence}, which exact values by `{given}` {getattr(config, given):g}"
        " do not compare with"
    )
    raise ConfigError(problem, "leave one of them out")


def check_not_estimated(run: Run) -> None:
    """Refuse the folder of an earlier version's run, which estimated what is exact now.

    Raises:
        ConfigError: the folder has labels.
    """
    if run.folder.labels.path.exists():
        raise ConfigError(
            f"{run.folder.path} holds a run that estimated {run.function.name} from labels; now it is exact for every"
            " pair",
            "choose another `output`",
        )


def exact_matrix(run: Run) -> InfluenceMatrix:
    """Influence of every pool sample on every target; its row means and the known samples' coverage are kept."""
    with run.costs.stage("influence"):
        _compute_vectors(run)
        found, function = {side: read_vectors(run.folder.vectors, side) for side in _sides(run)}, run.function
        targets = found.get("target", found["pool"])
        held = 0 if run.is_chosen or run.config.matrix in ("streamed", "sparse") else HELD  # finished: only the shape
        matrix = product_matrix(found["pool"], targets, function.from_products, held=held)
        if not run.folder.influence.exists():
            n = len(run.pool)
            bar = tqdm(total=n, desc="mean influence", unit=" samples", **drawn(run.progress))
            with bar, moving(bar, n):
                write_array(run.folder.influence, matrix.row_means().astype(np.float32))
        if run.known is not None and not run.folder.known.exists():
            known = product_matrix(found["known"], targets, function.from_products, held=0)
            write_array(run.folder.known, known.column_max().astype(np.float32))
        return matrix


def _sides(run: Run) -> list[str]:
    """The sides that have vectors of their own: a pool that is its own target may serve as both."""
    two_forms = type(run.function).target_vectors is not InfluenceFunction.target_vectors
    known = ["known"] if run.known is not None else []
    return ["pool", *(["target"] if two_forms or not run.own_target else []), *known]


def _compute_vectors(run: Run) -> None:
    """Write the vectors of the sides that lack them."""
    folder, function, sides = run.folder.vectors, run.function, _sides(run)
    if missing := [side for side in sides if not folder.is_finished(side)]:
        describe_once(run)
        if run.earlier is not None:
            run.earlier.take_vectors(missing)
            missing = [side for side in sides if not folder.is_finished(side)]
    else:
        keep_description(run)
    if missing:
        count = run.costs.counter("influence", function)
        function.progress = run.progress
        function.on_cut = functools.partial(note_cut, run, folder.notes)
        note_cut(run, folder.notes)
        first = first_vectors(run.earlier, missing)
        restored = restore_from_taken_pool(run.earlier)
        together = function.traits.relative and not (first or restored)
        new = {side: _rows(run, side, after=first.get(side)) for side in (sides if together else missing)}
        rows = _joined([each for side, each in new.items() if side != "target"] or [new["target"]])
        targets = run.target.rows if together else new.get("target", rows)
        function.prepare(rows, targets, folder.prepared)
        count()
        if (statistics := function.statistics()) and not folder.statistics.exists():
            write_tensors(folder.statistics, statistics)
        for side in missing:
            with tqdm(total=len(new[side]), desc=f"vectors {side}", unit=" samples", **drawn(run.progress)) as bar:
                blocks = joined_blocks(first.get(side), _blocks(function, new[side], side, bar))
                write_vectors(folder, side, len(_rows(run, side)), blocks)
            count()
        function.on_cut = None
    remove(folder.prepared)


def _rows(run: Run, side: str, *, after: Any | None = None) -> Dataset:
    """The samples of a side, or those after the ones that have these vectors."""
    rows = run.target.rows if side == "target" else run.samples[side].rows
    return rows if after is None else rows.select(range(after.shape[0], len(rows)))


def _joined(parts: Sequence[Dataset]) -> Dataset:
    from datasets import concatenate_datasets

    return parts[0] if len(parts) == 1 else concatenate_datasets([*parts])


def _blocks(function: InfluenceFunction, rows: Dataset, side: str, bar: tqdm) -> Iterator[Any]:
    """Vectors of the rows in order, some at a time, which move a bar.

    Raises:
        DataError: one is not finite; the message names the sample.
    """
    for part in chunks(rows):
        block = function.target_vectors(part) if side == "target" else function.vectors(part)
        values = block if isinstance(block, np.ndarray) else block.sum(axis=1)[:, None]
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise DataError(
                f"the vector of {part[int(bad[0])]['id']!r} by {function.name} is not finite",
                "check this sample; with `dtype` float16, use bfloat16 or float32",
            )
        yield block
        bar.update(len(part))


def cost(run: Run) -> PlannedCost:
    """Planned cost of the vectors, and of reading every pair once."""
    if not run.is_exact:
        return PlannedCost("influence")
    function, pool, own = run.function, run.pool.rows, run.own_target
    target = pool if own else run.target.rows
    work = grid_work(function, pool, target, run.size("pool"), run.size("target"))
    n_target = 0 if own else run.size("target")
    samples = run.size("pool") + n_target
    more = run.size("known") / samples
    some, targets = (rows.select(range(min(_MEASURED, len(rows)))) for rows in (pool, target))
    vectors, once = _bytes_of(run.trial_vectors[0]) / _TRIAL, selection_cost(run)
    read = run.size("pool") + run.size("known")
    joint = function.joint_seconds(some, read)
    taken, share = function.footprint(some, targets, read, n_target), share_computed(run)
    return PlannedCost(
        "influence",
        run.rates.warm_up + share * run.rates.unit * work.units * (1 + more) + joint + once.seconds,
        work.pairs,
        None if work.all_tokens is None else round(share * work.all_tokens),
        memory=taken.memory + once.memory + round(2 * vectors * samples),  # also as `prepare` holds them
        disk=taken.disk + round(vectors * samples * (1 + more)),
    )


def selection_cost(run: Run) -> PlannedCost:
    """Planned cost of a pass over all pairs, from a small matrix that is held in memory if the run's will be."""
    pairs = (run.size("pool") + run.size("known")) * run.size("target")
    streamed = 4 * run.size("pool") * run.size("target") > HELD
    matrix = product_matrix(*run.trial_vectors, run.function.from_products, held=0 if streamed else HELD)
    seconds = seconds_of(matrix.row_means) / _TRIAL**2 * pairs
    return PlannedCost("select", seconds=seconds, memory=0 if streamed else 4 * pairs)


def trial_vectors(function: InfluenceFunction, pool: Dataset) -> tuple[Any, Any]:
    """Vectors of both sides, (2048, d), repeated from a few samples of a pool."""
    rows = abridged(pool.select(range(min(_FEW, len(pool)))))
    function.prepare(rows, rows)
    again = np.resize(np.arange(len(rows)), _TRIAL)
    return function.vectors(rows)[again], function.target_vectors(rows)[again]


def _bytes_of(vectors: Any) -> int:
    return int(vectors.nbytes if isinstance(vectors, np.ndarray) else 2 * vectors.data.nbytes)
