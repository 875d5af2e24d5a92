"""What all pairs would take, as each built-in function counts it, against what labelling them all does take."""

from __future__ import annotations

import numpy as np
import pytest

from builders import dialogues, named
from nncift.influence.base import Setup
from nncift.influence.catalogue import BUILT_IN
from nncift.influence.options import make_function
from nncift.labels.collect import collect
from nncift.labels.design import PairPlan
from nncift.labels.work import grid_work, planned_work
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.run.options.registry import resolve

UNCOUNTED = {"bm25", "embedding-similarity", "lossval", "random", "stratified-random"}  # which run no language model
OPTIONS = {
    "less": {"training": {"epochs": 2, "lora.rank": 2}, "dimension": 64},
    "in-run": {"training": {"epochs": 2, "lora.rank": 2}},
    "gradient-similarity": {"dimension": 64},
    "lossval": {"epochs": 3},
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_work_of_all_pairs_is_what_they_take(name, tiny, minilm):
    pool, target = named(dialogues()[:11], "pool"), named(dialogues()[11:17], "target")
    setup = Setup((ModelSpec(tiny),), EncoderSpec(minilm))
    function = make_function(resolve(name, BUILT_IN, ""), setup, OPTIONS.get(name), name=name)
    function.check(pool, target)
    work = grid_work(function, pool, target)
    planned = planned_work(function, pool, target, PairPlan(np.arange(11), np.arange(6)))
    assert (work.samples, work.pairs) == ((11, 11) if function.traits.pointwise else (17, 66))
    before = function.forward_tokens
    function.warm_up(pool)
    pairs = collect(function, pool, target, np.arange(11), np.arange(6))
    assert len(pairs) == 66
    if name in UNCOUNTED:
        assert work.all_tokens is None
    else:
        assert function.forward_tokens - before == work.all_tokens == planned.all_tokens
        assert (work.warm_up > 0) == (name == "less")
        # Known again once it is trained, without the warm-up.
        assert grid_work(function, pool, target) == work


@pytest.mark.parametrize("name", ["less", "gradient-similarity", "representation-similarity", "ifd"])
def test_a_larger_pool_takes_more_in_proportion(name, tiny, minilm):
    """Where the work is a sample's, ten times the samples take ten times as long, not a hundred times."""
    texts = [(f"Say {'again ' * (k % 5)}{k}", f"{k}") for k in range(46)]
    pool, target = named(texts[:40], "pool"), named(texts[40:], "target")
    function = make_function(resolve(name, BUILT_IN, ""), Setup((ModelSpec(tiny),)), OPTIONS.get(name), name=name)
    work = grid_work(function, pool, target)
    part = grid_work(function, pool.select(range(0, 40, 2)), target, n_pool=40)
    assert part.tokens == pytest.approx(work.tokens, rel=0.15)
    many = grid_work(function, pool, target, n_pool=400)
    targets = 0 if function.traits.pointwise else grid_work(function, pool.select([]), target).tokens
    assert many.tokens == pytest.approx(10 * (work.tokens - targets) + targets, rel=0.01)
