"""Amounts as users write them."""

from __future__ import annotations

import pytest

from nncift.errors import ConfigError
from nncift.run.options.amounts import Amount, parse_budget, parse_labels


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("0.1", "fraction", 0.1),
        ("10%", "fraction", 0.1),
        (0.25, "fraction", 0.25),
        ("1.0", "fraction", 1.0),
        ("2000", "count", 2000),
        (1, "count", 1),
        ("20_000", "count", 20000),
        ("500ktok", "tokens", 500_000),
        ("2Mtok", "tokens", 2_000_000),
        ("1.5Mtokens", "tokens", 1_500_000),
    ],
)
def test_budgets(text, kind, value):
    assert parse_budget(text) == Amount(kind, value)
    assert str(parse_budget(text)) == str(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "120%", "ten", "", "nan", "inf", "90s", "1e400", True])
def test_bad_budgets(text):
    with pytest.raises(ConfigError, match=f"`budget` {text!r} is"):
        parse_budget(text)


def test_labels_may_be_a_time_and_not_tokens():
    assert [parse_labels(text).value for text in ("90s", "15m")] == [90, 900]
    assert parse_labels("200samples") == parse_labels("200 samples") == Amount("samples", 200)
    with pytest.raises(ConfigError, match="`budget`"):
        parse_budget("200samples")
    assert parse_labels("0.01") == Amount("fraction", 0.01)
    with pytest.raises(ConfigError, match="`labels`"):
        parse_labels("2Mtok")
