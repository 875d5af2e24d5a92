"""The cost model of labelling: rates from a few short trials, work as the functions count it."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from builders import named
from nncift.influence.base import InfluenceFunction, Traits
from nncift.labels.design import PairPlan
from nncift.labels.rates import abridged, mean_rate, measure_rates
from nncift.labels.work import grid_work, planned_work
from nncift.run.folder.costs import Rates, StageCost, Work

MS = 0.001


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("nncift.labels.rates.time.perf_counter", lambda: now[0])
    return now


class Slow(InfluenceFunction):
    """Two milliseconds per pair or pointwise score."""

    name = "slow"
    loaded = False

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def load(self, seconds: float) -> float:
        first, self.loaded = not self.loaded, True
        return seconds * first

    def __call__(self, pool_rows, target_rows):
        self.clock[0] += 2 * MS * len(pool_rows) * (1 if self.traits.pointwise else len(target_rows))
        return np.zeros((len(pool_rows), len(target_rows)), np.float32)


ROWS = Dataset.from_list([{"id": str(i)} for i in range(20)])


@pytest.mark.parametrize(("pointwise", "fixed"), [(False, 0), (True, 0), (True, 60), (False, 60)])
def test_the_rates_separate_samples_pairs_and_fixed_cost(clock, pointwise, fixed):
    """Five seconds to load; in `prepare` three milliseconds per sample, and a fixed cost."""

    class Prepared(Slow):
        traits = Traits(pointwise=pointwise)

        def prepare(self, pool, target, folder=None):
            clock[0] += self.load(5) + MS * (fixed + 3 * (len(pool) + (0 if pointwise else len(target))))

    function = Prepared(clock)
    rates = measure_rates(function, ROWS, ROWS)
    assert (rates.warm_up, rates.unit, rates.pair) == pytest.approx((MS * fixed, 3 * MS, 2 * MS))
    rate = mean_rate(function, rates, ROWS, ROWS)
    expected = (5, 0, 0) if pointwise else (3, 3, 2)
    assert (rate.row, rate.target, rate.pair) == pytest.approx([MS * each for each in expected])
    assert rate.warm_up == pytest.approx(MS * fixed)
    both = grid_work(function, ROWS, ROWS.select(range(5)))
    assert rates.seconds(both) == pytest.approx(rate.seconds(20, 5) if not pointwise else rate.warm_up + 20 * rate.row)


def test_the_rates_include_the_warm_up_on_the_whole_pool(clock):
    """Ten seconds to load; in `warm_up` five milliseconds, and seven per sample."""

    class WarmedUp(Slow):
        def warm_up(self, pool, folder=None, *, progress=False):
            clock[0] += self.load(10) + MS * (5 + 7 * len(pool))

        def tokens(self, pool_rows, target_rows, pool=None):
            return 100 * len(pool)

    function = WarmedUp(clock)
    function.load(10)
    rates = measure_rates(function, ROWS, ROWS)
    assert (rates.unit, rates.pair) == (0, pytest.approx(2 * MS))
    assert rates.warm_up == pytest.approx(MS * (5 + 7 * 20))
    assert measure_rates(function, ROWS, ROWS, n_pool=2000).warm_up == pytest.approx(MS * (5 + 7 * 2000))
    assert grid_work(function, ROWS, ROWS, n_pool=2000) == Work(2020, 40_000, 0, 200_000)


class Trained(Slow):
    """Trains for three epochs; a shortened copy for one."""

    epochs = 3

    def shortened(self):
        short = Trained(self.clock)
        short.epochs = 1
        return short

    def warm_up(self, pool, folder=None, *, progress=False):
        self.clock[0] += MS * self.epochs * (50 + 7 * len(pool))

    def tokens(self, pool_rows, target_rows, pool=None):
        return self.epochs * len(pool)


def test_a_training_is_measured_on_one_epoch_over_a_few_samples(clock):
    rates = measure_rates(Trained(clock), ROWS, ROWS, n_pool=1000)
    assert clock[0] < 1.0
    assert rates.warm_up == pytest.approx(MS * 3 * (50 + 7 * 1000))


class Stepping(Trained):
    """Tells the time of its steps."""

    def shortened(self):
        self.short = Stepping(self.clock)
        self.short.epochs, self.short.trainings = 1, 0
        return self.short

    def warm_up(self, pool, folder=None, *, progress=False):
        super().warm_up(pool)
        self.training_seconds += MS * self.epochs * 7 * len(pool)
        self.trainings += 1


def test_one_training_is_enough_where_the_time_of_its_steps_is_told(clock):
    function = Stepping(clock)
    rates = measure_rates(function, ROWS, ROWS, n_pool=1000)
    assert function.short.trainings == 1
    assert rates.warm_up == pytest.approx(MS * 3 * (50 + 7 * 1000))


class Words(InfluenceFunction):
    """Counts a token per word of each sample, and per word of both for each pair."""

    name = "words"
    traits = Traits(per_pair=True)

    def __call__(self, pool_rows, target_rows):
        return np.zeros((len(pool_rows), len(target_rows)), np.float32)

    def tokens(self, pool_rows, target_rows, pool=None):
        rows, targets = (
            [len(f"{p} {r}".split()) for p, r in zip(side["prompt"], side["response"], strict=True)]
            if len(side)
            else []
            for side in (pool_rows, target_rows)
        )
        return sum(rows) * bool(targets) + sum(targets) + len(rows) * sum(targets)


def test_the_work_of_a_part_is_extrapolated_to_all():
    sides = [named([(f"say {'word ' * (k % 3)}{k}", "yes") for k in range(60)], name) for name in "ab"]
    function = Words()
    whole = grid_work(function, *sides)
    assert whole == Work(120, 3600, function.tokens(*sides), 0)
    part = grid_work(function, sides[0].select(range(15)), sides[1].select(range(30)), 60, 60)
    assert part.pairs == 3600
    assert part.tokens == pytest.approx(whole.tokens, rel=0.02)
    plan = PairPlan(np.arange(40), np.arange(60))
    planned = planned_work(function, sides[0].select(range(15)), sides[1].select(range(30)), plan, n_pool=60)
    assert planned.tokens == pytest.approx(planned_work(function, *sides, plan).tokens, rel=0.02)
    own = PairPlan(np.arange(20), np.stack([np.arange(k, k + 6) for k in range(20)]))
    expected = sum(function.tokens(sides[0].select([k]), sides[1].select(own.columns[k])) for k in range(20))
    alone = sum(function.tokens(sides[0].select([]), sides[1].select(own.columns[k])) for k in range(20))
    once = function.tokens(sides[0].select([]), sides[1].select(own.targets))
    assert planned_work(function, *sides, own).tokens == once + expected - alone


def test_the_rates_of_a_finished_run_extrapolate_it():
    cost = StageCost(seconds=100.0, warm_up_seconds=10.0, sample_seconds=40.0, pair_seconds=2.0)
    rates = Rates.of(cost, Work(samples=20, pairs=100, tokens=400))
    assert rates == Rates(10.0, 0.1, 0.02)
    assert rates.seconds(Work(samples=200, pairs=10_000, tokens=4000)) == pytest.approx(10 + 400 + 200)
    assert Rates.of(cost, Work(samples=20, pairs=100)).unit == 2.0


def test_trials_do_not_grow_with_the_samples():
    """Long samples are abridged to plain text; short ones stay as they are."""
    long = {"prompt": "p" * 5000 + "?", "response": "r" * 9000, "messages": "[]", "turns": [1, 3]}
    short = {"prompt": "p", "response": "r", "messages": None, "turns": None}
    rows = Dataset.from_list([{"id": "a", **long}, {"id": "b", **short}])
    first, second = abridged(rows, 100).to_list()
    assert first == {"id": "a", "prompt": "p" * 49 + "?", "response": "r" * 50, "messages": None, "turns": None}
    assert second == {"id": "b", **short}
    assert abridged(rows, 100).features == rows.features
