"""Quotas and caps per value of a column, as users write them, brought into one form.

    task=proportional            each value has its share of the pool
    task=equal                   each value has equally much
    task=gsm8k:0.5,alpaca:200    these values have this much, the rest goes to the others
    source=0.3                   (a cap) no value has more than this
    none                         no rules, instead of those of an earlier run

An amount is written as in `budget`, and a fraction is of the budget. A comma in a value needs no escape: an amount ends
an entry. In Python and YAML the same is a mapping, {"task": {"gsm8k": 0.5, "alpaca": 200}}, which is also the form that
a config stores.
"""

from __future__ import annotations

import json
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from nncift.errors import ConfigError
from nncift.run.options.amounts import Amount, parse_share

Rules: TypeAlias = dict[str, str | dict[str, str]]
"""Column to "equal", "proportional" or an amount for each value, or to an amount by value."""
MOST_COLUMNS = 2  # with quotas or caps: with three it would be NP-hard to know whether they can be met
NONE = "none"
SPREADS = ("proportional", "equal")
AT_LEAST = "+"  # after the amount of a quota: more is allowed
_ENTRY = re.compile(r"(?P<value>.*?):\s*(?P<amount>[\d.][^,:]*?)\s*(?:,|$)", re.DOTALL)
_EXAMPLES = {
    "quota": "task=proportional, task=equal or task=gsm8k:0.5,alpaca:0.2",
    "cap": "source=0.3 or task=gsm8k:0.1",
}


def parse_rules(option: str, given: object) -> Rules | None:
    """The rules of `quota` or `cap`, checked as far as that is possible without data; None without any.

    Args:
        option: "quota" or "cap", for messages.
        given: a text, several texts, or a mapping of column to rule.

    Raises:
        ConfigError: it is none of these, or an amount or a word in it is none.
    """
    texts: Any = [given] if isinstance(given, str) else given
    if texts is None or (isinstance(texts, Sequence | Mapping) and (not texts or [*texts] == [NONE])):
        return None
    if isinstance(given, Mapping):
        rules = {value_text(column): _plain_rule(option, rule) for column, rule in given.items()}
    else:
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"`{option}` is {repr(given)[:100]}", f"give {_EXAMPLES[option]}, or a mapping")
        rules = {}
        for text in texts:
            column, rule = _parsed(option, text)
            rules[column] = rule if column not in rules else _merged(option, column, rules[column], rule)
    for column, rule in rules.items():
        _check(option, column, rule)
    return rules


def parse_all_rules(quota: object, cap: object) -> dict[str, Rules | None]:
    """The rules of both by option; raises as `parse_rules`, and where they are on more columns than can be checked."""
    rules = {"quota": parse_rules("quota", quota), "cap": parse_rules("cap", cap)}
    columns = dict.fromkeys(column for each in rules.values() for column in each or ())
    if len(columns) > MOST_COLUMNS:
        problem = f"`quota` and `cap` are on {len(columns)} columns: {', '.join(columns)}"
        raise ConfigError(problem, f"give at most {MOST_COLUMNS}")
    return rules


def value_text(value: Any) -> str:
    """A value as it is written in a rule: text as it is, anything else as JSON has it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def parse_amount(option: str, amount: str) -> Amount:
    """The amount of a rule; 0 where a cap leaves a value out."""
    return parse_share(option, amount.removesuffix(AT_LEAST) if option == "quota" else amount, zero=option == "cap")


def rule_text(option: str, column: str, value: str | None, amount: str) -> str:
    """A rule for messages: `quota` task=gsm8k:0.5."""
    return f"`{option}` {column}={amount if value is None else f'{value}:{amount}'}"


def rule_texts(option: str, rules: Mapping[str, Any]) -> list[str]:
    """A mapping of rules as the texts of the command line."""
    return [
        f"{column}={rule if isinstance(rule, str) else ','.join(f'{value}:{part}' for value, part in rule.items())}"
        for column, rule in (parse_rules(option, rules) or {}).items()
    ]


def _parsed(option: str, text: str) -> tuple[str, str | dict[str, str]]:
    column, equals, rest = (part.strip() for part in text.partition("="))
    if not column or not equals or not rest:
        raise ConfigError(f"`{option}` {text!r} is not COLUMN=RULE", f"give {_EXAMPLES[option]}")
    if ":" not in rest:
        return column, rest
    amounts: dict[str, str] = {}
    place = 0
    while place < len(rest):
        entry = _ENTRY.match(rest, place)
        if entry is None or not (value := entry["value"].strip()):
            raise ConfigError(f"`{option}` {text!r} has no amount in {rest[place:]!r}", f"give {_EXAMPLES[option]}")
        if value in amounts:
            raise ConfigError(f"`{option}` {text!r} names {value!r} twice", "give one amount")
        amounts[value] = entry["amount"]
        place = entry.end()
    return column, amounts


def _merged(option: str, column: str, one: str | dict[str, str], other: str | dict[str, str]) -> dict[str, str]:
    if isinstance(one, str) or isinstance(other, str) or one.keys() & other.keys():
        raise ConfigError(f"`{option}` has two rules for {column}", "join them")
    return one | other


def _plain_rule(option: str, rule: Any) -> str | dict[str, str]:
    if isinstance(rule, Mapping):
        return {value_text(value): _amount_text(option, amount) for value, amount in rule.items()}
    return _amount_text(option, rule)


def _amount_text(option: str, amount: Any) -> str:
    if isinstance(amount, str):
        return amount.strip()
    if isinstance(amount, numbers.Real) and not isinstance(amount, bool):  # of numpy too
        return str(int(amount) if isinstance(amount, numbers.Integral) else float(amount))
    raise ConfigError(f"`{option}` has the amount {amount!r}", f"give {_EXAMPLES[option]}")


def _check(option: str, column: str, rule: str | dict[str, str]) -> None:
    if not column or not rule:
        raise ConfigError(f"`{option}` has no {'rule' if column else 'column'}", f"give {_EXAMPLES[option]}")
    if isinstance(rule, dict):
        for amount in rule.values():
            parse_amount(option, amount)
    elif option == "cap":
        parse_amount(option, rule)
    elif rule not in SPREADS:
        raise ConfigError(f"`quota` {column}={rule} is no rule", f"give {_EXAMPLES[option]}")
