"""Budgets in samples and in tokens against a pool."""

from __future__ import annotations

import numpy as np
import pytest

from builders import named
from nncift.errors import ConfigError
from nncift.models.spec import ModelSpec
from nncift.run.options.amounts import parse_budget
from nncift.selection.budget import Budget, check_shortlist, count_tokens


@pytest.mark.parametrize(
    ("budget", "times", "count"),
    [("10%", 1, 4), ("0.001", 1, 1), (7, 1, 7), ("10%", 2.1, 9), (10, 1.1, 11), (1.0, 1, 41)],
)
def test_count(budget, times, count):
    assert Budget(parse_budget(budget)).count(41, times) == count


TOKENS = np.array([3, 6, 9, 6])


@pytest.mark.parametrize(("budget", "limit", "expected"), [("8", None, 8), ("50%", None, 2), ("21tok", 21, 3.5)])
def test_expected_samples(budget, limit, expected):
    assert Budget(parse_budget(budget)).max_tokens == limit
    assert Budget(parse_budget(budget)).expected(4, TOKENS) == expected


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("5", "`budget` 5 is more than the pool's 4 samples"),
        ("2tok", "`budget` 2tok is less than the shortest sample has"),
        ("1ktok", "`budget` 1ktok is more than the pool's 24 tokens"),
    ],
)
def test_check(budget, message):
    with pytest.raises(ConfigError, match=message):
        Budget(parse_budget(budget)).check(4, TOKENS)
    for fits in ("4", "100%", "3tok", "24tok"):
        Budget(parse_budget(fits)).check(4, TOKENS)


def test_shortlist_of_the_whole_pool():
    check_shortlist(9, 10)
    with pytest.raises(ConfigError, match="`verify` would measure 10 of the pool's 10 samples"):
        check_shortlist(10, 10)


def test_token_counts(tiny, tiny_model):
    samples = named([("a b", "c"), ("", "one two three four")] * 600, "s")
    counts = count_tokens(samples, ModelSpec(tiny_model))
    assert counts.dtype == np.int64
    assert counts.tolist() == [len(tiny.tokenizer("a b\nc")["input_ids"]), *counts[1:2]] * 600
    np.testing.assert_array_equal(counts[:9], count_tokens(samples.select(range(9)), ModelSpec(tiny)))
