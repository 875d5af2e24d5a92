"""What a comparison shows: metrics with intervals, differences, the equivalent random budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nncift.evaluation.answers.results import METRICS, ItemScores
from nncift.evaluation.comparisons import Difference, Trained, adjust, compare, contrast
from nncift.evaluation.learning_curve import EquivalentBudget, equivalent_budget
from nncift.proof.trials.cells import DRAWN, FULL, NONE, RANDOM, STRATIFIED, TUNED, Cell, Method, Unit
from nncift.proof.trials.selectors import Kind, Selector
from nncift.proof.trials.trials import UNTRAINED, Trial

Place = tuple[Selector, Method, Unit, int]
"""What tells a cell from the others: selector, method, unit and budget."""
Scores = Callable[[Trial], ItemScores]
_AGAINST = (
    *("against_random", "against_stratified", "against_none"),
    *("against_free", "against_exact", "against_estimated", "against_lora"),
)


def analyse(cells: Sequence[Cell], scores: Scores, tokens: np.ndarray) -> list[dict[str, Any]]:
    """A record of each cell, ready for JSON.

    Args:
        cells: those of `Grid.cells`.
        scores: the result of a finished trial.
        tokens: response tokens of each pool row, (n,).

    Returns:
        Of each: "selector", "kind", "influence", "objective", "method", "unit", "budget", "rows" and "tokens" (means
        over the seeds), "curve", "metrics" (by name: "value", "low", "high", "items", "by_seed"), and of tunings
        "equivalent" (`EquivalentBudget`).
        Differences by metric, as `Difference`, p values corrected by Holm over the selectors of the same method, unit,
        budget and metric: "against_random"; "against_stratified", stratified random rows; "against_none"; of exact,
        estimated and verified influence "against_free", the free choice of the lowest loss, which "best_free" names; of
        estimated and verified influence
        "against_exact", the exact values of the same function; of verified influence "against_estimated"; and of rows
        in phases or with weights "against_lora", the one-off training on the same rows.
    """
    tables = [table_of(cell.trials, scores) for cell in cells]
    place = {(cell.selector, cell.method, cell.unit, cell.budget): k for k, cell in enumerate(cells)}
    records = [
        {
            "selector": cell.selector.name,
            "kind": cell.selector.kind,
            "influence": cell.selector.influence,
            "objective": cell.selector.objective,
            "method": cell.method,
            "unit": cell.unit,
            "budget": cell.budget,
            "rows": _mean(len(trial.rows) for trial in cell.trials),
            "tokens": _mean(int(tokens[list(trial.rows)].sum()) for trial in cell.trials),
            "curve": cell.curve,
            "metrics": _metrics(tables[k], cell),
        }
        for k, cell in enumerate(cells)
    ]
    for k, cell in enumerate(cells):
        if cell.selector != NONE:
            records[k]["against_none"] = differences(tables[k], tables[0], fixed=(_is_fixed(cell), True))
        for name, drawn in (("random", RANDOM), ("stratified", STRATIFIED)):
            other = place.get((drawn, cell.method, cell.unit, cell.budget))
            if cell.selector not in (NONE, FULL, drawn, RANDOM) and other is not None:
                records[k][f"against_{name}"] = _between(cells, tables, k, other)
        free = _best_free(cells, records, cell)
        if cell.selector.kind in ("estimated", "exact", "verified") and free is not None:
            records[k]["best_free"] = cells[free].selector.name
            records[k]["against_free"] = _between(cells, tables, k, free)
        for name, key in _others(cell).items():
            there = place.get(key)
            if there is not None and not (name == "lora" and cells[there].trials == cell.trials):
                records[k][f"against_{name}"] = _between(cells, tables, k, there)
    _correct(records)
    _equivalents(cells, tables, records)
    return records


def _others(cell: Cell) -> dict[str, Place]:
    """Where the cells lie that show what an estimate, a shortlist, phases or weights are worth."""
    selector = cell.selector
    kinds: dict[str, tuple[Kind, ...]] = {"estimated": ("exact",), "verified": ("exact", "estimated")}
    found: dict[str, Place] = {
        kind: (Selector(kind, selector.influence, selector.objective), cell.method, cell.unit, cell.budget)
        for kind in kinds.get(selector.kind, ())
    }
    if cell.method in TUNED[1:]:
        found["lora"] = (selector, "lora", cell.unit, cell.budget)
    return found


def table_of(trials: Sequence[Trial], scores: Scores) -> dict[str, np.ndarray]:
    """Metric to its values in trials of different seeds, (n_seeds, n_items)."""
    found = [scores(trial).values for trial in trials]
    return {name: np.stack([values[name] for values in found]) for name in found[0]}


def _metrics(tables: Mapping[str, np.ndarray], cell: Cell) -> dict[str, Any]:
    seeds = [trial.seed for trial in cell.trials]
    return {name: metric_record(table, cell.method, seeds) for name, table in tables.items()}


def _is_fixed(cell: Cell) -> bool:
    """Whether nothing random is in a cell: examples in a context are fixed unless they were drawn."""
    return cell.method in UNTRAINED and cell.selector not in DRAWN


def _between(cells: Sequence[Cell], tables: Sequence[dict[str, np.ndarray]], a: int, b: int) -> dict[str, Difference]:
    return differences(tables[a], tables[b], fixed=(_is_fixed(cells[a]), _is_fixed(cells[b])))


def _best_free(cells: Sequence[Cell], records: Sequence[dict[str, Any]], like: Cell) -> int | None:
    """The cell of the free choice with the lowest loss, among those of one method, unit and budget."""
    same = (like.method, like.unit, like.budget)
    free = {
        k: records[k]["metrics"]["loss"]["value"]
        for k, cell in enumerate(cells)
        if cell.selector.kind == "free" and (cell.method, cell.unit, cell.budget) == same
    }
    return min((k for k, loss in free.items() if loss is not None), key=free.__getitem__, default=None)


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def metric_record(table: np.ndarray, method: str, seeds: Sequence[int] = (0,)) -> dict[str, Any]:
    """A metric of a model, (n_seeds, n_items): its mean with the interval, and the mean of each seed.

    Examples in a context have no seed of their own: there, each random choice counts as one.
    """
    kept = table[:, ~np.isnan(table).any(axis=0)]
    if not kept.size:
        return {"value": None, "low": None, "high": None, "items": 0, "by_seed": {}}
    found = contrast([Trained(kept, fixed=method in UNTRAINED and len(table) == 1)], np.ones((1, 1)))
    names = seeds if method not in UNTRAINED and len(seeds) == len(table) else range(len(table))
    return {
        "value": float(found.value[0]),
        "low": float(found.low[0]),
        "high": float(found.high[0]),
        "items": kept.shape[1],
        "by_seed": dict(zip(map(str, names), kept.mean(axis=1).tolist(), strict=True)),
    }


def differences(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], *, fixed: Sequence[bool]
) -> dict[str, Difference]:
    """The difference of two models by metric; `fixed` says which of the two were not trained."""
    found = {}
    for name in a:
        metric = METRICS[name]
        if name in b and not (np.isnan(a[name]).any(axis=0) | np.isnan(b[name]).any(axis=0)).all():
            found[name] = compare(
                a[name],
                b[name],
                larger_is_better=metric.larger_is_better,
                binary=metric.binary,
                fixed_a=fixed[0],
                fixed_b=fixed[1],
            )
    return found


def _correct(records: Sequence[dict[str, Any]]) -> None:
    """Holm over the comparisons that are read together; then the differences as plain values."""
    groups: dict[tuple[Any, ...], list[tuple[dict[str, Any], str, str]]] = {}
    for record in records:
        for against in _AGAINST:
            for name in record.get(against, ()):
                group = (against, name, record["method"], record["unit"], record["budget"])
                groups.setdefault(group, []).append((record, against, name))
    for members in groups.values():
        for (record, against, name), found in zip(
            members, adjust([record[against][name] for record, against, name in members]), strict=True
        ):
            record[against][name] = as_record(found)


def as_record(difference: Difference) -> dict[str, Any]:
    """A difference ready for JSON, with its verdict in words."""
    return asdict(difference) | {"n_seeds": list(difference.n_seeds), "verdict": difference.verdict}


def _equivalents(
    cells: Sequence[Cell], tables: Sequence[dict[str, np.ndarray]], records: Sequence[dict[str, Any]]
) -> None:
    """The equivalent random budget of each choice that was trained on."""
    curve = {
        cell.budget: tables[k]["loss"]
        for k, cell in enumerate(cells)
        if cell.selector in (RANDOM, FULL) and cell.method == "lora" and cell.unit == "rows"
    }
    if not curve:
        return
    untuned = tables[0]["loss"][0]
    for k, cell in enumerate(cells):
        if cell.method in TUNED and cell.unit == "rows" and cell.selector not in (NONE, RANDOM, FULL):
            found: EquivalentBudget = equivalent_budget(curve, tables[k]["loss"], untuned=untuned)
            records[k]["equivalent"] = asdict(found) | {"text": str(found), "times": found.value / cell.budget}


def overlaps(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Share of rows that two selectors' choices of the same budget in rows have in common; random ones of one draw."""
    chosen: dict[int, dict[str, set[int]]] = {}
    for cell in cells:
        if cell.unit == "rows" and cell.method != "none" and not cell.curve:
            chosen.setdefault(cell.budget, {})[cell.selector.name] = set(cell.trials[0].rows)
    return [
        {"budget": budget, "a": a, "b": b, "share": len(rows[a] & rows[b]) / max(min(len(rows[a]), len(rows[b])), 1)}
        for budget, rows in chosen.items()
        for at, a in enumerate(rows)
        for b in list(rows)[at + 1 :]
    ]
