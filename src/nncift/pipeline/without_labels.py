"""What the labels of a run have to beat: gradient-sketch, which needs none, on the labelled samples.

Most label-free similarities are free of cost in a run, since its features give them. The sketch takes a forward pass of
the language model, here over the labelled samples alone: to be labelled, each of these took at least one. Whitening is
over them too, where a run with the sketch takes the pool. Where the features have a sketch of every sample,
`evaluation.baselines.feature_similarities` reads that, and nothing is computed here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from nncift.errors import DataError, ModelError
from nncift.evaluation.baselines import Similarity
from nncift.features.sources import SKETCH
from nncift.influence.base import Setup
from nncift.influence.gradient_sketch import GradientSketch
from nncift.labels.pairs import LabelledPairs

if TYPE_CHECKING:
    from nncift.pipeline.context import Run

_log = logging.getLogger("nncift")


def label_free(run: Run, labels: LabelledPairs) -> dict[str, Similarity]:
    """The similarity by its name in `evaluation.baselines`; empty where the run has no use for it.

    That is where labels were measured by another tool or are one score for all targets, where the features come from no
    language model or have the sketch themselves, and where the model or a sample has no sketch, which is logged.
    """
    blocks = run.pool.features.blocks
    by_model = "response states" in blocks and SKETCH not in blocks
    if run.influence is None or run.influence.traits.pointwise or not by_model:
        return {}
    rows, columns = np.unique(labels.pool_index), np.unique(labels.target_index)
    pool, target = run.pool.rows.select(rows), run.target.rows.select(columns)
    function = GradientSketch.build(Setup((run.model,), run.encoder, run.config.seed))
    function.progress = run.progress
    count = run.costs.counter("network", function)
    try:
        function.check(run.pool.rows, run.target.rows)
        function.prepare(pool, target, run.folder.labels.without_labels)
        values = function(pool, target)
    except (DataError, ModelError) as error:
        _log.warning("fidelity: no gradient sketch to compare with: %s", error)
        return {}
    finally:
        count()

    def similarity(pool_index: np.ndarray, target_index: np.ndarray) -> np.ndarray:
        found: np.ndarray = values[np.searchsorted(rows, pool_index), np.searchsorted(columns, target_index)]
        return found.astype(np.float64)

    return {SKETCH: similarity}
