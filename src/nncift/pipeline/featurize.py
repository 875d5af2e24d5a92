"""Features of every sample, one pass each, unless an earlier run computed them (`features.cache`)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from nncift.features.cache import FeatureCache
from nncift.features.sources import FeatureReader
from nncift.run.costs import PlannedCost, seconds_of

if TYPE_CHECKING:
    from nncift.pipeline.context import Run

_TRIALS = {"sentence": 64, "lm": 16}  # samples on which the rate is measured


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
    return FeatureReader(run.features, run.encoder, run.model, run.config.target_features, cache, take)


def cost(run: Run) -> PlannedCost:
    """Planned cost of the features, from a rate measured on a few samples; nothing for the user's own."""
    rows, seconds, width = run.pool.rows, 0.0, 0
    for kind, source in _reader(run).models.items():
        some = rows.select(np.linspace(0, len(rows) - 1, min(_TRIALS[kind], len(rows))).astype(int))
        width += sum(block.shape[1] for block in source(some.select([0])).values() if block.ndim == 2)  # warms up
        seconds += seconds_of(lambda: source(some)) / len(some)  # noqa: B023
    samples = sum(map(len, run.samples.values()))
    return PlannedCost("features", seconds=seconds * samples, disk=4 * width * samples)
