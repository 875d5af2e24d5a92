"""Features of every sample, one pass each, unless an earlier run computed them (`features.cache`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from nncift.features.cache import FeatureCache
from nncift.features.sources import FeatureReader
from nncift.labels.rates import abridged
from nncift.pipeline.earlier_runs.growing import features_held, first_features
from nncift.run.folder.costs import PlannedCost, seconds_of

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.pipeline.context import Run

_TRIALS = {"sentence": 16, "lm": 2}  # samples on which the rate is measured
_MEASURED = 512  # samples of which a dry run finds the longest


def featurize(run: Run) -> None:
    """Compute the features of every side; what is in the folder already is only opened."""
    with run.costs.stage("features") as cost:
        reader, after_shard = _reader(run), run.costs.counter("features", run.model)

        def count(samples: int) -> None:
            cost.texts += samples

        for side, samples in run.samples.items():
            features = reader.read(
                samples.rows,
                side,
                run.folder.features,
                source_rows=samples.facts.read if samples.facts else None,
                progress=run.progress,
                after_shard=after_shard,
                count=count,
            )
            run.samples[side] = replace(samples, features=features)


def _reader(run: Run) -> FeatureReader:
    cache = None if run.config.no_cache else FeatureCache.default()
    take = None if run.earlier is None else run.earlier.take_features
    first = None if run.earlier is None else functools.partial(first_features, run.earlier)
    return FeatureReader(run.features, run.encoder, run.model, run.config.target_features, cache, take, first)


def _some(rows: Dataset) -> Dataset:
    return rows.select(np.linspace(0, len(rows) - 1, min(_MEASURED, len(rows))).astype(int))


def _characters(rows: Dataset) -> list[int]:
    return [len(p) + len(r) + 1 for p, r in zip(rows["prompt"], rows["response"], strict=True)]


def cost(run: Run) -> PlannedCost:
    """Planned cost of the features, from a rate measured on a few samples; nothing for the user's own."""
    return cost_of_features(run, _reader(run), tuple(run.samples))


def cost_of_features(run: Run, reader: FeatureReader, sides: Sequence[str]) -> PlannedCost:
    """Planned cost of what a reader computes for some sides of a run: of "pool", "target" and "known"."""
    rows, seconds, width, memory = run.pool.rows, 0.0, 0, 0
    some = _some(rows)
    lengths = np.array(_characters(some))
    samples = sum(run.size(side) for side in sides)
    for kind, source in reader.models.items():
        computed = samples - sum(features_held(run, side, source) for side in sides)
        order = np.argsort(lengths, kind="stable")[: max(len(lengths) // 2, 1)][::-1]
        trial = some.select(order[: _TRIALS[kind]])  # of the shorter half the longest
        trial = abridged(trial) if kind == "lm" else trial  # an encoder truncates texts itself
        source(some.select(order[-1:]))  # the shortest: loads the model
        blocks: dict[str, np.ndarray] = {}
        taken = seconds_of(lambda: blocks.update(source(trial)))  # noqa: B023
        width += sum(block.shape[1] for block in blocks.values() if block.ndim == 2)
        characters = sum(_characters(trial))
        seconds += taken / characters * lengths.mean() * computed
        memory = max(memory, *(source.memory(_some(run.samples[side].rows)) for side in sides))
    return PlannedCost("features", seconds=float(seconds), disk=4 * width * samples, memory=memory)
