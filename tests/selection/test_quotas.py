"""What quotas and caps amount to, and those that cannot be met."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncift.errors import ConfigError
from nncift.run.options.quotas import parse_rules
from nncift.selection.groups import GroupLimits, Groups
from nncift.selection.quotas import GroupCount, group_counts, group_limits

SIZES = {"gsm8k": 50, "alpaca": 30, "p3": 17, None: 3}


def groups(column: str = "task", **sizes: int) -> Groups:
    sizes = sizes or SIZES
    return Groups(column, tuple(sizes), np.repeat(np.arange(len(sizes)), list(sizes.values())).astype(np.int32))


def limits(quota=None, cap=None, total: int = 40, costs=None, **options) -> list[GroupLimits]:
    both = {"task": groups(), "source": groups("source", web=60, book=40)}
    return group_limits(parse_rules("quota", quota), parse_rules("cap", cap), both, total, costs, **options)


def spans(quota=None, cap=None, total: int = 40, costs=None) -> dict[str | None, tuple[int, int]]:
    (found,) = limits(quota, cap, total, costs)
    pairs = zip(found.least.tolist(), [min(most, 999) for most in found.most.tolist()], strict=True)
    return dict(zip(found.groups.values, pairs, strict=True))


@pytest.mark.parametrize(
    ("quota", "cap", "total", "expected"),
    [
        ("task=proportional", None, 40, [(20, 20), (12, 12), (7, 7), (1, 1)]),  # 6.8 and 1.2 are rounded
        ("task=equal", None, 40, [(13, 13), (12, 12), (12, 12), (3, 3)]),  # three have no value, the rest is divided
        ("task=gsm8k:0.5,alpaca:10", None, 40, [(20, 20), (10, 10), (0, 999), (0, 999)]),
        ("task=gsm8k:0.5+", None, 40, [(20, 999), (0, 999), (0, 999), (0, 999)]),
        ("task=gsm8k:0.25,alpaca:0.25,(none):1", None, 10, [(3, 3), (2, 2), (0, 999), (1, 1)]),
        ("task=gsm8k:0.5,alpaca:0.5", None, 7, [(4, 4), (3, 3), (0, 999), (0, 999)]),  # not 4 and 4
        (None, "task=0.4", 37, [(0, 14), (0, 14), (0, 14), (0, 999)]),  # 14.8
        ("task=alpaca:20+", {"task": {"gsm8k": 0, "alpaca": 0.6}}, 40, [(0, 0), (20, 24), (0, 999), (0, 999)]),
    ],
)
def test_amounts(quota, cap, total, expected):
    assert list(spans(quota, cap, total).values()) == expected


def test_amounts_in_tokens():
    costs = np.full(100, 10)
    assert spans("task=gsm8k:0.5,alpaca:100tok", None, 400, costs)["alpaca"] == (100, 100)
    assert spans("task=proportional", None, 401, costs) == {
        "gsm8k": (201, 201),
        "alpaca": (120, 120),
        "p3": (68, 68),
        None: (12, 12),
    }


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8), data=st.data(), kind=st.sampled_from(["equal", "prop"])
)
def test_parts_of_all_values_add_up_and_fit(sizes, data, kind):
    total = data.draw(st.integers(1, sum(sizes)))
    rule = {"task": "equal" if kind == "equal" else "proportional"}
    (found,) = group_limits(rule, None, {"task": groups(**{str(k): n for k, n in enumerate(sizes)})}, total)
    assert found.least.sum() == total
    assert (found.least <= sizes).all()
    exact = np.array(sizes) * total / sum(sizes)
    if kind == "equal":
        rest = found.least[found.least < sizes]
        assert np.ptp(rest) <= 1 if len(rest) else True
    else:
        assert (np.abs(found.least - exact) < 1).all()


@pytest.mark.parametrize(
    ("quota", "cap", "message"),
    [
        ("task=gsm8:0.5", None, "names 'gsm8', which is no value of task: did you mean 'gsm8k'.*Known: gsm8k, alpaca"),
        (None, "task=zzz:0.5", "`cap` names 'zzz', which is no value of task: known: gsm8k"),
        ("task=p3:0.5", None, "`quota` task=p3:0.5 is 20 samples, and the pool has 17: lower it, or `budget`"),
        ("task=gsm8k:0.5", "task=gsm8k:0.1", "is 20 samples, and `cap` allows 4: lower the quota"),
        ("task=proportional", "task=0.3", "task=proportional gives 'gsm8k' 20 samples, and `cap` allows 12"),
        ("task=gsm8k:0.8,alpaca:0.3", None, "quotas of task add up to 44 samples, more than the `budget` of 40"),
        (None, "source=0.3", "within `cap` at most 24 samples can be selected, and `budget` is 40: allow more"),
        ("task=equal", "source=book:0.1,web:0.1", "within `quota` and `cap` at most 8 samples"),
        ("task=gsm8k:0.5", "source=web:0.2", "at most 28 samples"),  # the first 50 are of both: web 8, book 0 of them
        ("task=gsm8k:2ktok", None, "task=gsm8k:2ktok is not in samples, as `budget` is: give a fraction"),
    ],
)
def test_limits_that_cannot_be_met(quota, cap, message):
    with pytest.raises(ConfigError, match=message):
        limits(quota, cap)


def test_a_number_of_samples_under_a_token_budget_is_refused():
    with pytest.raises(ConfigError, match="`cap` task=5 is not in tokens"):
        limits(cap="task=5", costs=np.ones(100))


@pytest.mark.parametrize(
    ("quota", "cap", "total", "message"),
    [
        ("task=equal", None, 12, "`quota` task=equal gives 'gsm8k' 3 tokens, and the shortest sample there has 9"),
        ("task=p3:8tok", None, 40, "`quota` task=p3:8tok is 8 tokens, and the shortest sample there has 9: raise it"),
        ("task=proportional", None, 12, "within `quota` no sample fits the `budget` of 12 tokens: the shortest has 9"),
        (None, {"task": "5tok", "source": "8tok"}, 13, "within `cap` no sample fits the `budget` of 13 tokens"),
    ],
)
def test_limits_in_tokens_that_no_sample_fits_are_refused(quota, cap, total, message):
    costs = np.full(100, 9)
    with pytest.raises(ConfigError, match=message):
        limits(quota, cap, total, costs)
    limits("task=p3:8tok+", None, 40, costs)  # the rest of the budget has room for one
    limits("task=proportional", None, 90, costs)  # of which three samples without a value have 3 tokens


def test_of_a_part_of_the_samples_only_the_sum_is_checked():
    limits("task=unseen:0.5,p3:0.5", "source=0.2", complete=False)
    with pytest.raises(ConfigError, match="add up to 44 samples"):
        limits("task=gsm8k:0.8,alpaca:0.3", complete=False)


def test_the_table_of_groups():
    found = limits("task=p3:0.1")
    chosen = np.array([0, 1, 60, 80, 81])
    assert group_counts(found, chosen)[2] == GroupCount("task", "p3", 17, 2, 4, 4)
    counts = group_counts(found, chosen, np.arange(100))
    assert [(each.value, each.chosen, each.tokens) for each in counts] == [
        ("gsm8k", 2, 1),
        ("alpaca", 1, 60),
        ("p3", 2, 161),
        (None, 0, 0),
    ]
