"""The HTML page of `nncift compare`: the answer, the pictures behind it, every figure with its interval, and the costs.

One self-contained file like that of html.py, and as safe: no script, no outside link, everything escaped. It shows what
the results hold and derives no statistics of its own; what was not measured is stated. The same results give the same
bytes.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nncift.evaluation.answers.results import METRICS
from nncift.report import comparison_plots as plots
from nncift.report.answer import answer, main_place
from nncift.report.choices import CHOICES, Cell, loss_against, notes_on_ties
from nncift.report.studies import pictures, views
from nncift.report.template import template
from nncift.run.storage.files import atomic_write

_SHOWN = ("stratified", *CHOICES)
_MARKS = {"good": ("good", "✓"), "mixed": ("", "≈"), "bad": ("bad", "!"), "unknown": ("", "?")}
_METHODS = {
    **{"lora": "Fine-tuned", "phased": "Fine-tuned in phases", "weighted": "Fine-tuned with weights"},
    **{"icl": "In context"},
}
_UNITS = {"rows": "equal rows", "tokens": "equal response tokens"}
_AXES = {"rows": "rows", "tokens": "budget: response tokens of so many mean rows"}
_STAGES = {
    "influence": "Influence",
    "labels": "Labels",
    "probes": "Labels",
    "verify": "Labels",
    "features": "Features",
    "network": "Learning",
    "estimate": "Estimating",
    "select": "Selecting",
}
_OTHER = "Reading"  # and every stage that is not in the table
_COLUMNS = ("Influence", "Labels", "Features", "Learning", "Estimating", "Selecting", _OTHER)


def write_comparison_report(path: str | os.PathLike[str], results: Mapping[str, Any], costs: Mapping[str, Any]) -> Path:
    """Write the page of a comparison to a file and return its path; arguments as of `comparison_page`."""
    page = comparison_page(results, costs)
    with atomic_write(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def comparison_page(results: Mapping[str, Any], costs: Mapping[str, Any]) -> str:
    """The page of a comparison.

    Args:
        results: the content of its `results.json`.
        costs: "choices" (by selector and stage, "seconds" and language-model "tokens") and "trials" ("number", and of
            "tune" and "measure" the same two); empty if they were not recorded.
    """
    cells = results["cells"]
    studied = [(view, pictures(view, k)) for k, view in enumerate(views(results.get("studies", ())))]
    version = importlib.metadata.version("nncift")
    if not cells and studied:
        page = template("studies_page.html.jinja", listed)
        return page.render(results=results, studies=studied, version=version)
    choices = {c["selector"]: (c["kind"], _function(c)) for c in cells if c["kind"] in _SHOWN}
    look, found = plots.looks(choices), answer(results)
    return template("comparison.html.jinja", listed).render(
        results=results,
        answer=found,
        mark=_MARKS[found.mark],
        choices=choices,
        looks=look,
        pictures=_pictures(cells, look),
        tables=_tables(cells),
        metrics=METRICS,
        costs=_costs(costs, choices),
        savings=_savings(costs, choices),
        trials=costs.get("trials"),
        overlaps=_overlaps(results["overlaps"]),
        seeds_counted=[d["seeds_counted"] for c in cells if (d := loss_against(c, "random")) and c["method"] != "icl"],
        studies=studied,
        version=version,
    )


def _function(cell: Cell) -> str:
    """The influence function of a choice, with the objective where there are several."""
    return ", ".join(filter(None, [cell["influence"], cell.get("objective", "")]))


def listed(value: Any) -> Any:
    """A setting as the page shows it: the parts of a list joined by commas."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _pictures(cells: Sequence[Cell], look: Mapping[str, plots.Look]) -> dict[str, Any]:
    """The pictures of the method and unit that the answer is of; None where there is nothing to draw."""
    place = main_place(cells)
    if place is None:
        return {"place": None, "losses": None, "differences": None}
    here = [cell for cell in cells if (cell["method"], cell["unit"]) == place]
    random = _points([(cell, cell["metrics"].get("loss")) for cell in here if cell["kind"] in ("random", "full")])
    losses, differences = {}, {}
    for name in look:
        own = [cell for cell in here if cell["selector"] == name]
        losses[name] = _points([(cell, cell["metrics"].get("loss")) for cell in own])
        differences[name] = _points([(cell, loss_against(cell, "random")) for cell in own])
    losses, differences = ({n: p for n, p in each.items() if len(p.value)} for each in (losses, differences))
    untuned = [cell["metrics"]["loss"]["value"] for cell in cells if cell["kind"] == "none"]
    full = [cell["budget"] for cell in here if cell["kind"] == "full"]
    ends = {"untuned": untuned[0] if untuned else None, "full": full[0] if full and len(random.value) else None}
    label = _AXES[place[1]]
    return {
        "place": f"{_METHODS[place[0]].lower()}, {_UNITS[place[1]]}",
        "random": len(random.value),
        "untuned": ends["untuned"],
        "losses": plots.loss_curve(random, losses, look, **ends, label=label) if losses else None,
        "differences": plots.differences(differences, look, label=label) if differences else None,
    }


def _points(found: Sequence[tuple[Cell, Mapping[str, Any] | None]]) -> plots.Points:
    """The values with their intervals by budget, ascending, where they were measured."""
    rows = sorted(
        (float(cell["budget"]), *(one[side] if one[side] is not None else np.nan for side in ("value", "low", "high")))
        for cell, one in found
        if one is not None and one["value"] is not None
    )
    return plots.Points(*np.array(rows, dtype=np.float64).reshape(-1, 4).T)


def _tables(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A table for each method and unit, a group of rows for each budget, lowest test loss first."""
    found: dict[tuple[str, str], dict[int, list[Cell]]] = {}
    for cell in cells:
        if cell["kind"] != "none" and not cell["curve"]:
            found.setdefault((cell["method"], cell["unit"]), {}).setdefault(cell["budget"], []).append(cell)
    tables: list[dict[str, Any]] = [
        {
            "title": f"{_METHODS[method]}, {_UNITS[unit]}",
            "slug": f"{method}-{unit}",
            "unit": unit,
            "groups": {budget: sorted(groups[budget], key=_by_loss) for budget in sorted(groups)},
            "equivalent": any("equivalent" in cell for group in groups.values() for cell in group),
            "one_off": any("against_lora" in cell for group in groups.values() for cell in group),
            "references": _references(cells, method, unit, groups),
            "notes": list(dict.fromkeys(note for group in groups.values() for note in notes_on_ties(group))),
            "others": [
                name
                for name in METRICS
                if name != "loss"
                and any(c["metrics"].get(name, {}).get("items") for group in groups.values() for c in group)
            ],
        }
        for (method, unit), groups in found.items()
    ]
    for table in tables:
        table["columns"] = 6 + table["one_off"] + 2 * table["equivalent"]
    return tables


def _references(cells: Sequence[Cell], method: str, unit: str, shown: Mapping[int, Sequence[Cell]]) -> list[Cell]:
    """The model as it is, and trained on the full pool where that is not among the budgets."""
    none = [cell for cell in cells if cell["kind"] == "none"]
    full = [c for c in cells if c["kind"] == "full" and (c["method"], c["unit"]) == (method, unit)]
    return none + [cell for cell in full if cell["budget"] not in shown]


def _by_loss(cell: Cell) -> tuple[bool, float]:
    value = cell["metrics"].get("loss", {}).get("value")
    return value is None, value or 0.0


def _costs(costs: Mapping[str, Any], choices: Mapping[str, tuple[str, str]]) -> dict[str, Any] | None:
    """Seconds of each choice by column, and its language-model tokens, cheapest first."""
    rows = []
    for name, stages in costs.get("choices", {}).items():
        seconds = dict.fromkeys(_COLUMNS, 0.0)
        for stage, cost in stages.items():
            seconds[_STAGES.get(stage, _OTHER)] += cost["seconds"]
        kind = choices.get(name, ("", ""))[0]
        rows.append({"name": name, "kind": kind, "seconds": seconds} | _total(stages))
    if not rows:
        return None
    rows.sort(key=lambda row: (row["total"], row["name"]))
    columns = [column for column in _COLUMNS if any(row["seconds"][column] for row in rows)]
    return {"rows": rows, "columns": columns, "most": max(row["total"] for row in rows)}


def _total(stages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {
        "total": sum(cost["seconds"] for cost in stages.values()),
        "tokens": sum(cost["tokens"] for cost in stages.values()),
    }


def _savings(costs: Mapping[str, Any], choices: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """What estimating saves against exact influence of the same function, as shares of the latter."""
    names = {both: name for name, both in choices.items()}
    made, found = costs.get("choices", {}), []
    for (kind, influence), name in names.items():
        other = names.get(("exact", influence))
        if kind in ("estimated", "verified") and name in made and other in made:
            estimated, exact = _total(made[name]), _total(made[other])
            saved = {k: 1 - estimated[k] / exact[k] if exact[k] else None for k in ("total", "tokens")}
            found.append({"name": name, "estimated": estimated, "exact": exact, "saved": saved})
    return found


def _overlaps(overlaps: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """For each budget the names of the choices and their symmetric table of shares, in the order of the results."""
    found: dict[int, dict[str, Any]] = {}
    for one in overlaps:
        group = found.setdefault(one["budget"], {"names": {}, "shares": {}})
        group["names"] |= dict.fromkeys((one["a"], one["b"]))
        group["shares"] |= {(one["a"], one["b"]): one["share"], (one["b"], one["a"]): one["share"]}
    return found
