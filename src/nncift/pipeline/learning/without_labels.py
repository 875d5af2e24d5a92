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
from nncift.labels.design import PairPlan
from nncift.labels.pairs import LabelledPairs
from nncift.labels.rates import measure_rates
from nncift.labels.work import planned_work
from nncift.pipeline.learning.label import planned_pairs
from nncift.run.folder.costs import PlannedCost

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
    function = _sketch(run)
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


def cost(run: Run) -> PlannedCost:
    """Planned cost of the sketch of the labelled samples; with active learning, of those of the first round at least.

    Nothing where `label_free` computes none.
    """
    features, pool, target = run.features, run.pool.rows, run.target.rows
    computed = run.config.learns and run.influence is not None and not run.is_exact and not run.is_pointwise
    if not computed or features.language_model is None or features.gradient_sketch is not None:
        return PlannedCost("network")
    plan, function = planned_pairs(run), _sketch(run)
    try:
        function.check(pool, target)
        rates = measure_rates(function, pool, target, n_pool=run.size("pool"), seed=run.config.seed)
    except (DataError, ModelError):
        return PlannedCost("network")
    work = planned_work(function, pool, target, PairPlan(plan.rows, plan.targets))
    some, targets = pool.select(np.unique(plan.rows % len(pool))), target.select(np.unique(plan.targets % len(target)))
    memory = function.footprint(some, targets, len(plan.rows), len(plan.targets)).memory
    return PlannedCost("network", rates.seconds(work), tokens=work.tokens, at_least=run.config.in_rounds, memory=memory)


def _sketch(run: Run) -> GradientSketch:
    return GradientSketch.build(Setup((run.model,), run.encoder, run.config.seed))
