"""Quotas and caps as they are written, in one form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncift.errors import ConfigError
from nncift.run.options.quotas import parse_all_rules, parse_rules, rule_texts


@pytest.mark.parametrize(
    ("option", "given", "rules"),
    [
        ("quota", None, None),
        ("quota", (), None),
        ("quota", "none", None),
        ("cap", ("none",), None),
        ("quota", "task=equal", {"task": "equal"}),
        ("quota", {"task": "proportional"}, {"task": "proportional"}),
        ("quota", ["task=a:0.5, b:200", "task=p3:5%+"], {"task": {"a": "0.5", "b": "200", "p3": "5%+"}}),
        ("quota", {"task": {"gsm8k": 0.5, "alpaca": 200}}, {"task": {"gsm8k": "0.5", "alpaca": "200"}}),
        ("quota", "url=https://a.b/c,d:0.5,e: f:2ktok", {"url": {"https://a.b/c,d": "0.5", "e: f": "2ktok"}}),
        ("quota", {"level": {3: 1.0, True: "10"}}, {"level": {"3": "1.0", "true": "10"}}),
        ("cap", "source=0.3", {"source": "0.3"}),
        ("cap", {"source": 0.3}, {"source": "0.3"}),
        ("cap", ("source=web:0", "task=30%"), {"source": {"web": "0"}, "task": "30%"}),
    ],
)  # fmt: skip
def test_every_way_to_write_rules_gives_one_form(option, given, rules):
    assert parse_rules(option, given) == rules
    assert parse_rules(option, rules) == rules


@given(st.dictionaries(st.sampled_from(["a", "b,c", "d:e", "f g", "1", "h=i"]), st.sampled_from(["0.5", "20", "5%"])))
def test_mappings_are_texts_too(amounts):
    rules = {"task": amounts} if amounts else None
    assert parse_rules("cap", rule_texts("cap", rules or {})) == rules


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        ("quota", "task", "`quota` 'task' is not COLUMN=RULE: give task=proportional, task=equal or"),
        ("quota", "=equal", "not COLUMN=RULE"),
        ("quota", "task=fair", "`quota` task=fair is no rule"),
        ("quota", "task=a:0.5,b", "has no amount in 'b'"),
        ("quota", "task=a:0.5,a:0.2", "names 'a' twice"),
        ("quota", ["task=a:0.5", "task=equal"], "two rules for task: join them"),
        ("quota", "task=a:0", "'0' is zero"),
        ("quota", "task=a:1.5", "more than everything"),
        ("quota", 3, "`quota` is 3: give"),
        ("quota", {"task": {}}, "has no rule"),
        ("quota", {"task": [1]}, r"has the amount \[1\]"),
        ("quota", {"task": True}, "has the amount True"),
        ("cap", "task=equal", "`cap` 'equal' is not an amount: give a fraction of the budget"),
        ("cap", "task=a:0.5+", "not an amount"),
    ],
)
def test_rules_that_cannot_be_read(option, given, message):
    with pytest.raises(ConfigError, match=message):
        parse_rules(option, given)


def test_two_columns_at_most():
    assert parse_all_rules("a=equal", ["a=0.5", "b=0.5"]) == {"quota": {"a": "equal"}, "cap": {"a": "0.5", "b": "0.5"}}
    with pytest.raises(ConfigError, match="`quota` and `cap` are on 3 columns: a, b, c: give at most 2"):
        parse_all_rules("a=equal", ["b=0.5", "c=0.5"])
