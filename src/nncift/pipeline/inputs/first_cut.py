"""The first cut of a large pool: a static encoder keeps some budgets of samples, and all later stages read only these.

From here on `run.pool` holds the samples that are kept, and the files of the run number these; the selection has the
rows of the whole pool again. The budget stays that of the whole pool. Nothing is cut from a pool that is small enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from nncift.data.facts import open_samples
from nncift.features.features import SampleSet
from nncift.features.static import drop_vectors, static_vectors
from nncift.models.static_encoder import DEFAULT_STATIC_ENCODER, StaticEncoder, check_static_encoder
from nncift.pipeline.check import check_models
from nncift.run.folder.costs import PlannedCost, StageCost, seconds_of
from nncift.run.folder.records import FirstCut
from nncift.run.options.amounts import Amount
from nncift.run.storage.files import atomic_write, read_array, write_array, write_table_parts
from nncift.selection.budget import Budget, count_tokens
from nncift.selection.first_cut import Cut, largest_similarity, most_similar, representative

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from nncift.pipeline.context import Run

_STAGE = "first cut"
_ROWS, _TABLE_ROWS = 1000, 1 << 16  # written at a time
_COUNTED = 1000  # samples whose tokens give those of all
_TRIAL, _COMPARED = 512, 2048  # samples on which the rates of embedding and comparing are measured
_BYTES = 600  # of a sample: an embedding in float16, and its line in the table


def first_cut(run: Run) -> None:
    """Keep in `run.pool` what the first cut keeps, by the files of the run where that is done.

    Raises:
        ConfigError: the budget is more than the pool.
        DependencyError: model2vec is not installed.
        ModelError: there is no such encoder, or no such model for what comes later.
    """
    if run.config.first_cut is None:
        return
    with run.costs.stage(_STAGE) as cost:
        folder, whole = run.folder.first_cut, run.pool
        if not folder.is_finished:
            _check(run)
            kept = _kept(run, len(whole))
            if kept >= len(whole):
                return
            found = _cut(run, kept, cost)
            _write(run, found)
        for side in run.samples:
            drop_vectors(folder.path, side)
        run.whole, run.kept_rows = whole, np.asarray(read_array(folder.rows))
        keep(run, SampleSet(open_samples(folder.samples), whole.facts), len(whole))


def _check(run: Run) -> None:
    check_static_encoder(_encoder(run).name)
    check_models(run)
    if run.budget.max_tokens is None:
        run.budget.check(run.size("pool"))


def _encoder(run: Run) -> StaticEncoder:
    return StaticEncoder(run.config.first_cut_encoder or DEFAULT_STATIC_ENCODER)


def keep(run: Run, kept: SampleSet, whole: int) -> None:
    """The kept samples as the pool, with the budget of the whole."""
    if run.budget.max_tokens is None:
        count = run.budget.count(whole)
        run.budget = Budget(Amount("count", count, str(run.budget.amount)))
    run.samples["pool"] = kept


def _kept(run: Run, n: int) -> int:
    """How many samples of a pool of n the cut keeps; under a token budget by the mean tokens of some of them."""
    times = float(run.config.first_cut or 1)
    if run.budget.max_tokens is None:
        return min(run.budget.count(n, times), n)
    some = np.random.default_rng(run.config.seed).choice(len(run.pool), min(_COUNTED, len(run.pool)), replace=False)
    model = replace(run.model, model=run.config.models[0])
    tokens = count_tokens(run.pool.rows.select(np.sort(some)), model)
    return min(max(round(times * run.budget.expected(n, tokens)), 1), n)


def _cut(run: Run, kept: int, cost: StageCost) -> Cut:
    """The rows that are kept."""
    encoder, progress, nu = _encoder(run), run.progress, 1.0 if run.config.nu is None else run.config.nu

    def count(samples: int) -> None:
        cost.texts += samples
        run.costs.save()

    vectors = {
        side: static_vectors(
            samples.rows, encoder, folder=run.folder.first_cut.path, name=side, progress=progress, count=count
        )
        for side, samples in run.samples.items()
    }
    centre = vectors["pool"].mean
    vectors = {side: found.around(centre) for side, found in vectors.items()}
    known = vectors["known"][:] if "known" in vectors else None
    if "target" not in vectors:
        return representative(vectors["pool"], kept, known=known, nu=nu, seed=run.config.seed, progress=progress)
    targets = vectors["target"][:]
    covered = None if known is None else nu * largest_similarity(targets, known)
    return most_similar(vectors["pool"], targets, kept, covered=covered, seed=run.config.seed, progress=progress)


def _write(run: Run, found: Cut) -> None:
    folder, pool, similarity = run.folder.first_cut, run.pool.rows, dict[str, float]()
    is_kept = np.zeros(len(pool), bool)
    is_kept[found.rows] = True
    if not run.own_target:
        parts = {"kept": found.scores[is_kept], "cut": found.scores[~is_kept]}
        similarity = {name: float(scores.mean(dtype=np.float64)) for name, scores in parts.items()}
    write_array(folder.rows, found.rows)
    write_table_parts(folder.table, _lines(pool, is_kept, found.scores if len(run.samples) > 1 else None))
    _copy_rows(run, pool, found.rows)
    FirstCut(
        rows=len(pool),
        kept=len(found.rows),
        budgets=float(run.config.first_cut or 0),
        encoder=_encoder(run).name,
        by="pool" if run.own_target else "target",
        similarity=similarity,
    ).save(folder.facts)


def _lines(pool: Dataset, is_kept: np.ndarray, scores: np.ndarray | None) -> Iterator[pa.Table]:
    """Each sample of the pool, in its order."""
    import pyarrow as pa

    ids = pool.data.column("id")
    for start in range(0, len(pool), _TABLE_ROWS):
        part = slice(start, min(start + _TABLE_ROWS, len(pool)))
        columns = {"pool_index": np.arange(part.start, part.stop), "id": ids[part]}
        columns |= {} if scores is None else {"similarity": scores[part]}
        yield pa.table(columns | {"kept": is_kept[part]})


def _copy_rows(run: Run, pool: Dataset, rows: np.ndarray) -> None:
    """The kept samples as an Arrow file of their own, which is read as fast as the pool's."""
    import pyarrow as pa

    schema = pool.data.schema.remove_metadata()
    path = run.folder.first_cut.samples
    with atomic_write(path) as temporary, open(temporary, "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        for start in range(0, len(rows), _ROWS):
            part = pool.select(rows[start : start + _ROWS]).with_format("arrow")[:]
            stream.write_table(part.replace_schema_metadata(None).combine_chunks())


def plan(run: Run) -> None:
    """For a dry run: as many samples in `run.pool` as would be kept, or their number, where fewer were read."""
    if run.config.first_cut is None:
        return
    _check(run)
    n = run.size("pool")
    if (kept := _kept(run, n)) >= n:
        return
    run.whole, run.uncut = run.pool, n
    if "pool" in run.sizes:  # estimated, so both are
        run.sizes |= {"uncut": n, "pool": kept}
    rows = run.pool.rows.select(range(min(kept, len(run.pool))))
    keep(run, SampleSet(rows, run.pool.facts), n)


def cost(run: Run) -> PlannedCost:
    """Planned cost of embedding all samples and of comparing them, at rates measured on some."""
    if run.uncut is None or run.whole is None:
        return PlannedCost(_STAGE)
    encoder, n = _encoder(run), run.uncut
    others = sum(run.size(side) for side in ("target", "known") if side in run.samples)
    rows = run.whole.rows.select(range(min(_TRIAL, len(run.whole))))
    static_vectors(rows.select([0]), encoder)  # loads the encoder
    each = seconds_of(lambda: static_vectors(rows, encoder)) / len(rows)
    vectors = np.random.default_rng(0).standard_normal((_COMPARED, encoder.width), dtype=np.float32)
    pair = seconds_of(lambda: vectors @ vectors.T) / _COMPARED**2
    seconds = each * (n + others) + pair * n * (others or np.sqrt(n))
    share = run.size("pool") / n  # of the pool's file, again for what is kept
    data = sum(path.stat().st_size for path in run.folder.samples("pool").path.iterdir()) / max(len(run.whole), 1)
    disk = round(n * (_BYTES + share * data))
    return PlannedCost(_STAGE, seconds=float(seconds), disk=disk, memory=round(n * 2 * encoder.width + 32 * n))
