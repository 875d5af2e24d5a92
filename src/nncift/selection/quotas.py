"""What quotas and caps amount to for a pool and a budget: how much of each value has to be and may be selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nncift.errors import ConfigError
from nncift.run.folder.records import counted
from nncift.run.options.quotas import AT_LEAST, Rules, parse_amount, rule_text
from nncift.run.options.registry import suggest
from nncift.selection.groups import Admission, GroupLimits, Groups

NO_VALUE = "(none)"  # stands for samples without the column in reports
_UNLIMITED = 2**62
_NAMED = 10  # values that a message lists


@dataclass(frozen=True)
class GroupCount:
    """A value of a column with a quota or a cap, and how much of it is selected."""

    column: str
    value: str | None  # None of samples without one
    pool: int  # samples
    chosen: int  # samples
    least: int  # to be selected, in samples or, under a token budget, in tokens
    most: int | None  # that may be; None without a limit
    tokens: int | None = None  # selected, under a token budget


def group_limits(
    quota: Rules | None,
    cap: Rules | None,
    groups: Mapping[str, Groups],
    total: int,
    costs: np.ndarray | None = None,
    *,
    complete: bool = True,
) -> list[GroupLimits]:
    """The limits of each column with a rule.

    Fractions are of the budget. Those of quotas are rounded by largest remainder, so that they add up to what they
    should; those of caps are rounded down. A cap on each value is none on samples without one. With `equal`, a value
    with less than its part has all it has, and the others share the rest equally.

    Args:
        quota: rules of quotas, as `run.options.quotas.parse_rules` returns them.
        cap: rules of caps.
        groups: of each column that they name.
        total: the budget, in samples or tokens.
        costs: tokens of each sample under a token budget, (n,).
        complete: the samples are all that there are; of a part no limit is refused because of its samples.

    Raises:
        ConfigError: a value is unknown, an amount is not of the budget's kind, the limits cannot all be met, or in
            tokens a quota is less than any of its samples has.
    """
    unit, limits = "sample" if costs is None else "token", []
    for column in dict.fromkeys([*(quota or ()), *(cap or ())]):
        here = groups[column]
        sizes = here.sizes(costs)
        amounts = _Amounts(here, total, costs is None, complete)
        least, most = _quotas(amounts, (quota or {}).get(column), sizes)
        highest = _caps(amounts, (cap or {}).get(column))
        _check_column(here, (quota or {}).get(column), (least, highest, sizes if complete else least), (total, unit))
        limits.append(GroupLimits(here, least, np.maximum(np.minimum(most, highest), least)))
    if complete and limits:
        each = np.ones(len(limits[0].groups.codes)) if costs is None else costs.astype(np.float64)
        admission = Admission(limits, np.arange(len(each)), each, total)
        given = " and ".join(name for name, rules in (("`quota`", quota), ("`cap`", cap)) if rules)
        if admission.reach < total:
            raise ConfigError(
                f"within {given} at most {counted(admission.reach, unit)} can be selected, and `budget` is {total:,}",
                "allow more, or lower `budget`",
            )
        if costs is not None:
            for one in limits:
                _check_shortest(one, (quota or {}).get(one.groups.column), costs, total)
            if not any(admission.admit(int(i)) for i in np.argsort(costs, kind="stable")):
                problem = f"within {given} no sample fits the `budget` of {counted(total, unit)}"
                raise ConfigError(f"{problem}: the shortest has {int(costs.min()):,}", "allow more, or raise `budget`")
    return limits


def group_counts(
    limits: Sequence[GroupLimits], chosen: np.ndarray, tokens: np.ndarray | None = None
) -> tuple[GroupCount, ...]:
    """The table of the groups: limits, and what rows are selected, int64 (k,); the largest groups first."""
    counts = []
    for each in limits:
        groups, pool = each.groups, each.groups.sizes()
        number = np.bincount(groups.codes[chosen], minlength=len(pool))
        used = None if tokens is None else np.bincount(groups.codes[chosen], tokens[chosen], minlength=len(pool))
        counts += [
            GroupCount(
                column=groups.column,
                value=groups.values[k],
                pool=int(pool[k]),
                chosen=int(number[k]),
                least=int(each.least[k]),
                most=int(each.most[k]) if each.most[k] < _UNLIMITED else None,
                tokens=None if used is None else int(used[k]),
            )
            for k in np.argsort(-pool, kind="stable").tolist()
        ]
    return tuple(counts)


@dataclass(frozen=True)
class _Amounts:
    """Turns amounts of rules into samples or tokens."""

    groups: Groups
    total: int
    in_samples: bool
    complete: bool

    def of(self, option: str, value: str | None, amount: str) -> float:
        """The amount, not rounded."""
        parsed = parse_amount(option, amount)
        if parsed.kind == "fraction":
            return parsed.value * self.total
        if (parsed.kind == "count") != self.in_samples:
            unit = "samples" if self.in_samples else "tokens"
            raise ConfigError(
                f"{rule_text(option, self.groups.column, value, amount)} is not in {unit}, as `budget` is",
                "give a fraction of the budget, such as 0.1",
            )
        return parsed.value

    def place(self, option: str, value: str) -> int | None:
        """The place of a value; None of one that a part of the samples lacks."""
        values = ["" if name is None else name for name in self.groups.values]
        if value in self.groups.values:
            return self.groups.values.index(value)
        if value == NO_VALUE and None in self.groups.values:
            return self.groups.values.index(None)
        if not self.complete:
            return None
        column = self.groups.column
        known = suggest(value, values if len(values) <= _NAMED else [*_closest(value, values)])
        raise ConfigError(f"`{option}` names {value!r}, which is no value of {column}", known)


def _closest(value: str, values: Sequence[str]) -> Sequence[str]:
    import difflib

    return [*difflib.get_close_matches(value, values, n=1), *values[:_NAMED], "..."]


def _quotas(
    amounts: _Amounts, rule: str | Mapping[str, str] | None, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limits of a column by its quota."""
    if isinstance(rule, str):
        exact = _equal(amounts.total, sizes) if rule == "equal" else _rounded(amounts.total * sizes / sizes.sum())
        return exact, exact
    least, most = np.zeros(len(sizes), np.int64), np.full(len(sizes), _UNLIMITED)
    given = [(amounts.place("quota", value), value, amount) for value, amount in (rule or {}).items()]
    given = [each for each in given if each[0] is not None]
    parts = _rounded(np.array([amounts.of("quota", value, amount) for _, value, amount in given]))
    for (place, _, amount), part in zip(given, parts, strict=True):
        least[place] = part
        if not amount.endswith(AT_LEAST):
            most[place] = part
    return least, most


def _caps(amounts: _Amounts, rule: str | Mapping[str, str] | None) -> np.ndarray:
    """Upper limits of a column by its cap."""
    most = np.full(len(amounts.groups.values), _UNLIMITED)
    if isinstance(rule, str):
        having = np.array([value is not None for value in amounts.groups.values])
        most[having] = int(amounts.of("cap", None, rule) + 1e-9)
    for value, amount in {} if rule is None or isinstance(rule, str) else rule.items():
        if (place := amounts.place("cap", value)) is not None:
            most[place] = int(amounts.of("cap", value, amount) + 1e-9)
    return most


def _rounded(parts: np.ndarray) -> np.ndarray:
    """Whole numbers that add up to the rounded sum, by largest remainder; of equal ones the larger, then the first."""
    whole = np.floor(parts + 1e-9).astype(np.int64)
    missing = round(float(parts.sum())) - int(whole.sum())
    order = np.lexsort((-parts, -np.round(parts - whole, 9)))
    whole[order[:missing]] += 1
    return whole


def _equal(total: int, sizes: np.ndarray) -> np.ndarray:
    """As equal parts of `total` as the sizes allow; what remains of a division goes to the largest."""
    parts, left = np.zeros(len(sizes), np.int64), min(total, int(sizes.sum()))
    order = np.argsort(-sizes, kind="stable")[::-1]  # smallest first
    for done, k in enumerate(order):
        parts[k] = min(left // (len(order) - done), sizes[k])
        left -= parts[k]
    return parts


def _check_column(
    groups: Groups,
    quota: str | Mapping[str, str] | None,
    amounts: tuple[np.ndarray, np.ndarray, np.ndarray],
    budget: tuple[int, str],
) -> None:
    """Refuse quotas that the pool, the caps or the budget cannot fill; `amounts` are quotas, caps and sizes."""
    (least, highest, sizes), (total, unit) = amounts, budget

    def named(k: int) -> str:
        return _named(groups, quota, k, counted(int(least[k]), unit))

    if len(short := np.flatnonzero(least > sizes)):
        k = int(short[0])
        raise ConfigError(f"{named(k)}, and the pool has {int(sizes[k]):,}", "lower it, or `budget`")
    if len(capped := np.flatnonzero(least > highest)):
        k = int(capped[0])
        raise ConfigError(f"{named(k)}, and `cap` allows {int(highest[k]):,}", "lower the quota, or raise the cap")
    if least.sum() > total:
        problem = f"the quotas of {groups.column} add up to {counted(int(least.sum()), unit)}"
        raise ConfigError(f"{problem}, more than the `budget` of {total:,}", "lower them, or raise `budget`")


def _check_shortest(limits: GroupLimits, quota: str | Mapping[str, str] | None, costs: np.ndarray, total: int) -> None:
    """Refuse a quota in tokens that no sample of its value fits.

    Not of `proportional`, whose parts of rare values may well be less than a sample: none of these is selected then.
    """
    if quota is None or quota == "proportional":
        return
    groups, least = limits.groups, limits.least
    shortest = np.full(len(least), _UNLIMITED)
    np.minimum.at(shortest, groups.codes, costs.astype(np.int64))
    room = np.minimum(limits.most, total - int(least.sum()) + least)
    if len(unmet := np.flatnonzero((least > 0) & (shortest > room))):
        k = int(unmet[0])
        named = _named(groups, quota, k, counted(int(least[k]), "token"))
        raise ConfigError(f"{named}, and the shortest sample there has {int(shortest[k]):,}", "raise it, or `budget`")


def _named(groups: Groups, quota: str | Mapping[str, str] | None, k: int, amount: str) -> str:
    """The quota of a value, and what it amounts to."""
    value = groups.values[k] or NO_VALUE
    if quota is None or isinstance(quota, str):
        return f"`quota` {groups.column}={quota} gives {value!r} {amount}"
    return f"{rule_text('quota', groups.column, value, quota[value])} is {amount}"
