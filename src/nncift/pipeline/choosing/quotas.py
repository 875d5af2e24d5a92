"""Quotas and caps of a run: the values of the pool's columns, the limits on them, and the table of what is chosen.

A column is one of the pool's original rows, read where a rule names it: about 4 seconds a million rows, and 4 bytes a
row. `source` is that of a mixture where the pool is one. Only the choice depends on them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.data.facts import open_samples
from nncift.errors import ConfigError, DataError
from nncift.run.options.quotas import value_text
from nncift.run.options.registry import suggest
from nncift.selection.groups import GroupLimits, Groups
from nncift.selection.quotas import group_counts, group_limits

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.pipeline.context import Run
    from nncift.selection.selection import Selection

_BATCH = 1000
_NESTED = (dict, list)
_SOURCE = "source"


def check_quotas(run: Run) -> None:
    """Refuse quotas and caps that the pool or the budget cannot fill.

    Raises:
        ConfigError: a column or a value is unknown, or the limits cannot all be met.
        DataError: a value is a list or a mapping.
    """
    _check_source(run)
    limits_of(run)


def _check_source(run: Run) -> None:
    """Refuse rules on `source` that an earlier run had on a column of the data: here it is where rows were read from.

    Raises:
        ConfigError: there are such rules.
    """
    earlier = run.earlier
    if earlier is None or not earlier.kept:
        return
    for option in ("quota", "cap"):
        both = all(_SOURCE in (given.get(option) or {}) for given in (vars(run.config), earlier.config))
        if both and not _is_mixture(open_samples(earlier.folder.samples("pool").samples)):
            raise ConfigError(
                f"`{option}` source was on a column of the data in {earlier.folder.path}, and of a pool with appended"
                " data `source` is the file that a row is from",
                f"give another `{option}`, or none, or choose from all data under another name of the column",
            )


def _is_mixture(pool: Dataset) -> bool:
    """Whether the pool's own column `source` has where its samples are from."""
    return _SOURCE in pool.column_names and pool.data.column(_SOURCE).null_count < len(pool)


def limits_of(run: Run, *, rows: np.ndarray | None = None, times: float = 1.0) -> list[GroupLimits]:
    """The limits of the choice, none without quotas and caps.

    Args:
        run: the run.
        rows: of these pool rows alone, int64 (k,).
        times: for a shortlist of so many budgets: its upper limits are as many times larger, and it has no lower ones,
            since the choice itself is in it.
    """
    config, budget, complete = run.config, run.budget, not run.sizes.get("pool")
    columns = dict.fromkeys([*(config.quota or ()), *(config.cap or ())])
    if not columns:
        return []
    tokens = run.tokens
    total = budget.count(run.size("pool")) if budget.max_tokens is None else int(budget.max_tokens)
    groups = {column: _groups(run, column, complete) for column in columns}
    kept = slice(None) if run.kept is None else run.kept  # near-duplicates fill no quota
    limits = group_limits(
        rules(config.quota),
        rules(config.cap),
        {column: dataclasses.replace(each, codes=each.codes[kept]) for column, each in groups.items()},
        total,
        None if tokens is None else tokens[kept],
        complete=complete,
    )
    limits = [dataclasses.replace(each, groups=groups[each.groups.column]) for each in limits]
    limits = limits if rows is None else [each.take(rows) for each in limits]
    return limits if times == 1 else [each.loosened(times) for each in limits]


def rules(given: Any) -> dict[str, Any] | None:
    """Rules as a config stores them."""
    return None if given is None else dict(given)


def with_groups(run: Run, selection: Selection) -> Selection:
    """The selection with the table of its groups."""
    limits = limits_of(run)
    counts = group_counts(limits, selection.indices, run.tokens) if limits else None
    return dataclasses.replace(selection, groups=counts)


def _groups(run: Run, column: str, complete: bool) -> Groups:
    """The pool's values of a column, read once."""
    if column not in run.groups:
        run.groups[column] = read_groups(run.pool.rows, column, complete=complete)
    return run.groups[column]


def read_groups(pool: Dataset, column: str, *, complete: bool = True) -> Groups:
    """Group a pool's samples by a column of their original rows, or by the source in a mixture.

    Args:
        pool: as `load_pool` returns it.
        column: its name; null is the same as a row without it.
        complete: these are all samples, so that one of them has to have the column.

    Raises:
        ConfigError: no row has the column.
        DataError: a value is a list or a mapping.
    """
    mixture = column == _SOURCE and _is_mixture(pool)
    codes, places, names = np.empty(len(pool), np.int32), dict[str | None, int](), dict[str, None]()
    found = False
    for start in range(0, len(pool), _BATCH):
        for i, text in enumerate(pool[start : start + _BATCH][_SOURCE if mixture else "original"], start):
            if mixture:
                value, found = text, True
            else:
                row = json.loads(text)
                found = found or column in row
                if not found:
                    names |= dict.fromkeys(row)
                value = _text(pool, i, column, row)
            codes[i] = places.setdefault(value, len(places))
    if not found and complete:
        raise ConfigError(f"the pool has no column {column!r} for `quota` or `cap`", suggest(column, [*names]))
    return Groups(column, tuple(places), codes)


def _text(pool: Dataset, i: int, column: str, row: Mapping[str, Any]) -> str | None:
    value = row.get(column)
    if isinstance(value, _NESTED):
        sources = pool[i][_SOURCE] if _SOURCE in pool.column_names else None
        problem = "a column with a quota or a cap has one value in a row, and this is a list or a mapping"
        raise DataError(problem, "name another", file=sources, row=pool[i]["source_row"] + 1, field=column)
    return None if value is None else value_text(value)
