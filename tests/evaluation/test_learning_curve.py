"""The equivalent random budget: known answers, laws, censoring, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.errors import ConfigError
from nncift.evaluation.learning_curve import EquivalentBudget, equivalent_budget

BUDGETS = (25, 50, 100, 200, 400, 1000)


def curve(rows: float) -> float:
    return float(1 + (1 + rows / 5) ** -0.25)


def flat(loss: float, seeds: int = 3, items: int = 20) -> np.ndarray:
    """Losses without any noise."""
    return np.full((seeds, items), loss)


def exact_curve() -> dict[int, np.ndarray]:
    return {rows: flat(curve(rows)) for rows in BUDGETS}


def noisy(mean: float, rng: np.random.Generator, *, seeds: int = 3, items: int = 100, over_seeds: float = 0.5):
    """Losses whose difference to others varies over items with a standard deviation of about 0.2."""
    item = 0.2 / np.sqrt(2) * rng.standard_t(4, items) / np.sqrt(2)
    seed = over_seeds * 0.2 / np.sqrt(items) * rng.standard_normal((seeds, 1))
    return mean + item + seed + 0.05 * rng.standard_normal((seeds, items))


class TestWithoutNoise:
    @pytest.mark.parametrize("rows", BUDGETS)
    def test_random_rows_are_worth_their_own_number(self, rows):
        found = equivalent_budget(exact_curve(), flat(curve(rows)), untuned=flat(curve(0), 1)[0])
        assert (found.value, found.low, found.high) == pytest.approx((rows, rows, rows))
        assert (found.below, found.above) == ((), ("high",) if rows == 1000 else ())  # nothing excludes more than 1,000

    def test_interpolates_in_the_logarithm(self):
        found = equivalent_budget({10: flat(2.0), 1000: flat(1.0)}, flat(1.5))
        assert found.value == pytest.approx(100)

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.floats(0.5, 2.5), min_size=2, max_size=6), st.integers(0, 1000))
    def test_never_falls_as_the_loss_falls(self, chosen, seed):
        """Of any learning curve, monotone or not."""
        rng = np.random.default_rng(seed)
        random = {rows: flat(float(rng.uniform(1, 2))) for rows in BUDGETS[:4]}
        values = [equivalent_budget(random, flat(loss)).value for loss in sorted(chosen, reverse=True)]
        assert values == sorted(values)

    def test_a_curve_that_rises_is_made_flat(self):
        found = equivalent_budget({10: flat(2.0), 100: flat(1.0), 1000: flat(1.2), 10_000: flat(0.5)}, flat(1.1))
        assert found.value == pytest.approx(np.sqrt(100 * 1000))  # the middle of the flat part

    def test_says_what_lies_outside_the_curve(self):
        random, untuned = exact_curve(), flat(curve(0), 1)[0]
        assert str(equivalent_budget(random, flat(1.0))) == (
            "more than 1,000 [more than 1,000, more than 1,000] random rows"
        )
        assert str(equivalent_budget(random, flat(1.9))) == "fewer than 25 [fewer than 25, fewer than 25] random rows"
        worse = equivalent_budget(random, flat(2.5), untuned=untuned)
        assert str(worse) == "0 [0, 0] random rows"
        between = equivalent_budget(random, flat(1.9), untuned=untuned)
        assert str(between) == "fewer than 25 [fewer than 25, fewer than 25] random rows"

    def test_leaves_items_without_a_loss_out(self):
        random = exact_curve()
        random[50] = random[50].copy()
        random[50][1, :4] = np.nan
        assert equivalent_budget(random, flat(curve(100))).value == pytest.approx(100)

    def test_refuses_what_is_no_curve(self):
        with pytest.raises(ConfigError, match="two numbers of rows"):
            equivalent_budget({100: flat(1.0)}, flat(1.0))
        with pytest.raises(ConfigError, match="same items"):
            equivalent_budget(exact_curve(), flat(1.0, items=7))
        with pytest.raises(ConfigError, match="no item"):
            equivalent_budget(exact_curve(), flat(np.nan))


class TestInterval:
    def test_holds_the_value_and_is_wider_with_fewer_items(self):
        widths = []
        for items in (400, 40):
            rng = np.random.default_rng(0)
            random = {rows: noisy(curve(rows), rng, items=items) for rows in BUDGETS}
            found = equivalent_budget(random, noisy(curve(200), rng, items=items))
            assert found.low <= found.value <= found.high
            widths.append(found.high / found.low)
        assert widths[0] < widths[1]

    def test_of_one_seed_is_measured_by_the_others(self):
        rng = np.random.default_rng(0)
        random = {rows: noisy(curve(rows), rng, over_seeds=2.0) for rows in BUDGETS}
        several = noisy(curve(200), rng, over_seeds=0.0)
        one, three = (equivalent_budget(random, several[:k]) for k in (1, 3))
        assert one.high / one.low > three.high / three.low

    @pytest.mark.parametrize("over_seeds", [0.35, 1.1])
    def test_covers_the_truth(self, over_seeds):
        """Three seeds, one at the largest budget; 300 repeats have a standard error of 1.3 %."""
        rng = np.random.default_rng(1)
        covered, repeats, true = 0, 300, 340
        for _ in range(repeats):
            random = {k: noisy(curve(k), rng, seeds=1 if k == 1000 else 3, over_seeds=over_seeds) for k in BUDGETS}
            found = equivalent_budget(random, noisy(curve(true), rng), untuned=noisy(curve(0), rng, seeds=1)[0])
            covered += found.low <= true and (found.high >= true or "high" in found.above)
        assert covered / repeats > 0.92


def test_round_trip(tmp_path):
    found = equivalent_budget(exact_curve(), flat(1.0))
    found.save(tmp_path / "budget.json")
    assert str(EquivalentBudget.load(tmp_path / "budget.json")) == str(found)
