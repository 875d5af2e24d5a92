"""Near-duplicates of a run's pool, which are not chosen: found by the cosine of sentence embeddings.

The embeddings are those of the network's features where it reads some, else computed for this, or found in the cache.
The samples stay in the pool, where they count as targets and may be labelled; only the choice is among the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from nncift.data.cleaning.near_duplicates import EXACT, PROBES, NearDuplicates, find_near_duplicates
from nncift.data.rows import json_text
from nncift.errors import ConfigError
from nncift.features.cache import FeatureCache
from nncift.features.sources import FeatureReader, FeatureSources
from nncift.pipeline.earlier_runs.growing import samples_budgeted, selection_kept
from nncift.pipeline.inputs.featurize import cost_of_features
from nncift.run.folder.costs import PlannedCost, seconds_of
from nncift.run.folder.records import counted
from nncift.run.storage.checksums import verify
from nncift.run.storage.files import atomic_write, remove
from nncift.run.storage.refusals import refuse_damaged

if TYPE_CHECKING:
    from pathlib import Path

    from nncift.pipeline.context import Run

_STAGE = "near-duplicates"
_BATCH = 1000
_TRIAL = 2048


def leave_out_near_duplicates(run: Run) -> None:
    """Find the near-duplicates, list each with its twin, and keep in `run.kept` what may be chosen.

    Raises:
        ConfigError: too few samples remain for the budget, or in tokens none that fits it.
    """
    threshold = run.config.near_duplicates
    if threshold is None:
        return
    with run.costs.stage(_STAGE) as cost:
        path = run.folder.samples("pool").near_duplicates
        if not path.exists():

            def count(samples: int) -> None:
                cost.texts += samples

            embeddings = _embeddings(run, count)
            found = find_near_duplicates(embeddings, threshold, seed=run.config.seed, progress=run.progress)
            _write(path, run, found)
            remove(run.folder.embeddings.path)
        numbers = run.pool_rows(np.arange(len(run.pool)))
        run.kept = np.flatnonzero(np.isin(numbers, listed_rows(path), invert=True))
        _check_budget(run)


def _embeddings(run: Run, count: Callable[[int], None]) -> np.ndarray:
    features = run.pool.features
    if features is not None and "sentence" in features.blocks:
        return features.blocks["sentence"]
    after_shard = run.costs.counter(_STAGE, run.model)
    facts = run.pool.facts
    found = _reader(run).read(
        run.pool.rows,
        "pool",
        run.folder.embeddings,
        source_rows=facts.read if facts else None,
        progress=run.progress,
        after_shard=after_shard,
        count=count,
    )
    return found.blocks["sentence"]


def _reader(run: Run) -> FeatureReader:
    cache = None if run.config.no_cache else FeatureCache.default()
    return FeatureReader(FeatureSources(encoder=run.encoder.name), run.encoder, run.model, cache=cache)


def _write(path: Path, run: Run, found: NearDuplicates) -> None:
    """List the samples in the order of the pool."""
    pool = run.pool.rows.select_columns(["id"])
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for start in range(0, len(found.rows), _BATCH):
            part = slice(start, start + _BATCH)
            rows, twins = found.rows[part], found.twins[part]
            own, others = pool[rows]["id"], pool[twins]["id"]
            numbers = run.pool_rows(rows).tolist()
            for row, cosine, identity, twin in zip(numbers, found.cosines[part], own, others, strict=True):
                entry = {"id": identity, "pool_row": row, "same_as": twin, "cosine": round(float(cosine), 4)}
                file.write(json_text(entry) + "\n")


def listed_rows(path: Path) -> np.ndarray:
    """The pool rows that a run's list has, int64."""
    verify(path)
    with refuse_damaged(path, "is damaged", KeyError, ValueError), open(path, encoding="utf-8") as file:
        return np.array([json.loads(line)["pool_row"] for line in file], np.int64)


def _check_budget(run: Run) -> None:
    assert run.kept is not None
    tokens, left, of = run.tokens, len(run.kept), counted(len(run.pool), "sample")
    free = np.setdiff1d(run.kept, selection_kept(run))
    if tokens is None:
        wanted, there, unit = run.budget.count(samples_budgeted(run)), len(free), "sample"
    else:
        wanted, there, unit = int(run.budget.max_tokens or 0), int(tokens[free].sum()), "token"
    if wanted > there:
        problem = f"without near-duplicates {left:,} of the pool's {of} remain, and `budget` is {counted(wanted, unit)}"
        more = f" ({counted(there, unit)} there are)" if tokens is not None else ""
        raise ConfigError(problem + more, "lower `budget`, or raise `near_duplicates`")
    run.budget.check(len(free), None if tokens is None else tokens[free])


def cost(run: Run) -> PlannedCost:
    """Planned cost of embeddings, where the run has none, and of comparing them."""
    if run.config.near_duplicates is None:
        return PlannedCost(_STAGE)
    n, has_them = run.size("pool"), "sentence" in run.features.names("pool")
    embedding = PlannedCost(_STAGE) if has_them else cost_of_features(run, _reader(run), ("pool",))
    vectors = np.random.default_rng(0).standard_normal((_TRIAL, 384), dtype=np.float32)
    each = seconds_of(lambda: vectors @ vectors.T) / _TRIAL**2
    compared = n / 2 if n <= EXACT else (1 + PROBES / 2) * np.sqrt(n)
    seconds = embedding.seconds + each * n * compared
    return PlannedCost(_STAGE, seconds=float(seconds), disk=embedding.disk, memory=embedding.memory)
