"""The paper's studies on a comparison's page and in its tables: the same figures in both, and a picture of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from nncift.report.plots import INK, MUTED, QUADRANTS, svg
from nncift.run.folder.records import percent

Record = Mapping[str, Any]
_TITLES = {
    "labels": "Fidelity over the labels",
    "labels-subset": "Value of the choice over the labels and the fraction chosen",
    "depth": "Depth of the paper's network",
    "width": "Width of the paper's network",
    "learning-rate": "Learning rate of the paper's network",
}
_QUADRANTS = (
    "The labels are all pairs of a fraction of the samples of each side, drawn anew for each seed. Q1 are the labelled"
    " pairs themselves, Q2 those of new pool samples, Q3 those of new targets, Q4 those of both. The target mean (each"
    " target's mean label, whatever the pool sample) has the rank correlation 0, and an error to be below."
)
_MEANINGS = {
    "labels": _QUADRANTS,
    "labels-subset": "Rows chosen by estimates, valued by exact influence: 0 is the mean of random choices, 1 the"
    " choice by exact influence. The labels are all pairs of a fraction of the samples of each side.",
} | dict.fromkeys(("depth", "width", "learning-rate"), _QUADRANTS)
_SETTINGS = {"depth": "hidden layers", "width": "hidden units", "learning-rate": "learning rate"}
_RANKS = {
    "spearman_within_target": "Rank correlation within a target",
    "spearman": "Rank correlation",  # of a pointwise function
}
_MSE = "Mean squared error after min-max scaling, the paper's metric (lower is better)"
_COLORS = {"Q1": MUTED, **QUADRANTS}
_SUBSET_COLORS = ("#1574b8", "#d9730d", "#1b9e77", "#b0439c")
_DASHES = ((None, None), (4, 2), (1, 2))


class StudyTable(NamedTuple):
    """A metric: names of the leading columns and of the others, and for each row its names and metrics."""

    title: str
    head: tuple[str, ...]
    columns: tuple[str, ...]
    rows: list[tuple[tuple[str, ...], list[Mapping[str, Any] | None]]]


@dataclass(frozen=True)
class StudyView:
    """A study of an influence function as it is shown.

    Attributes:
        study: its name.
        influence: the function.
        title: in words.
        meaning: what was done, and how to read it.
        tables: the first is of the metric that is drawn.
        records: those of the study.
    """

    study: str
    influence: str
    title: str
    meaning: str
    tables: list[StudyTable]
    records: list[Record]


def views(studies: Iterable[Record]) -> list[StudyView]:
    """The studies of a comparison's `results.json`, by function and study."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in studies:
        groups.setdefault((record["influence"], record["study"]), []).append(record)
    found = []
    for (influence, study), records in groups.items():
        metrics = {"normalized_gain": "Normalized gain", "overlap": "Share of the exact choice's rows"}
        if study != "labels-subset":
            rank = rank_metric(records)
            metrics = {rank: _RANKS[rank], "mse": _MSE}
        tables = [_table(study, records, metric, title) for metric, title in metrics.items()]
        found.append(StudyView(study, influence, _TITLES[study], _MEANINGS[study], tables, records))
    return found


def rank_metric(records: Sequence[Record]) -> str:
    """The rank correlation that a function is judged by: within a target, or, if pointwise, over all samples."""
    return "spearman" if records[0].get("pointwise") else "spearman_within_target"


def _table(study: str, records: Sequence[Record], metric: str, title: str) -> StudyTable:
    side = "subset" if study == "labels-subset" else "quadrant"
    columns = list(dict.fromkeys(record[side] for record in records))
    rows: dict[tuple[str, ...], dict[Any, Mapping[str, Any]]] = {}
    for record in records:
        if metric in _RANKS and record["network"] == "target mean":  # 0, since it ranks nothing
            continue
        setting = record["setting"]
        shape = f"{setting:g}" if setting is not None else record["network"]
        rows.setdefault((percent(record["labels"]), shape), {})[record[side]] = record["metrics"][metric]
    names = tuple(f"{percent(column)} chosen" if side == "subset" else str(column) for column in columns)
    head = ("labelled samples", _SETTINGS.get(study, "network"))
    return StudyTable(
        title, head, names, [(name, [values.get(column) for column in columns]) for name, values in rows.items()]
    )


class _Line(NamedTuple):
    """A line of a picture: its color and dashes, and its points, (k,) each."""

    name: str
    color: str
    dashes: tuple[float | None, float | None]
    x: np.ndarray
    values: np.ndarray  # (k, 3): value, low, high


def pictures(view: StudyView, number: int) -> list[dict[str, Any]]:
    """The pictures of a study, the `number`-th of its page.

    Each has "plot", "title" and "legend": the "name", "color" and whether it is "dashed" of each line.
    """
    subset = view.study == "labels-subset"
    metric = "normalized_gain" if subset else rank_metric(view.records)
    setting = view.study in _SETTINGS
    networks = list(dict.fromkeys(r["network"] for r in view.records if r["network"] != "target mean"))
    found: list[dict[str, Any]] = []
    drawn = {n: _lines([r for r in view.records if r["network"] == n], metric, setting=setting) for n in networks}
    shown = np.concatenate([line.values.ravel() for lines in drawn.values() for line in lines] or [np.zeros(1)])
    limits = (max(float(shown.min(initial=0.0)), -1.0) - 0.03, min(float(shown.max(initial=0.1)), 1.0) + 0.03)
    for network, lines in drawn.items():
        label = _SETTINGS.get(view.study, "labelled fraction of each side's samples")
        name = f"study-{number}-{len(found)}"
        found.append(
            {
                "title": "" if setting else f"recipe “{network}”",
                "plot": _draw(name, lines, label, "normalized gain" if subset else "rank correlation", limits),
                "legend": [
                    {"name": line.name, "color": line.color, "dashed": line.dashes[0] is not None} for line in lines
                ],
            }
        )
    return found


def _lines(records: Sequence[Record], metric: str, *, setting: bool) -> list[_Line]:
    """A line for each quadrant or fraction chosen, and in studies of the network's shape for each label fraction."""
    groups: dict[tuple[Any, float | None], list[Record]] = {}
    for record in records:
        which = record["quadrant"] if record["subset"] is None else record["subset"]
        groups.setdefault((which, record["labels"] if setting else None), []).append(record)
    kinds, labels = (list(dict.fromkeys(key[place] for key in groups)) for place in (0, 1))
    lines = []
    for (kind, fraction), group in groups.items():
        color = _COLORS[kind] if isinstance(kind, str) else _SUBSET_COLORS[kinds.index(kind) % len(_SUBSET_COLORS)]
        name = kind if isinstance(kind, str) else f"{percent(kind)} chosen"
        points = [(r["setting"] if setting else r["labels"], r["metrics"][metric]) for r in group]
        known = sorted((float(x), *_bounds(found)) for x, found in points if found["value"] is not None)
        table = np.array(known, dtype=np.float64).reshape(-1, 4)
        more = "" if fraction is None else f", {percent(fraction)} labelled"
        dashes = _DASHES[labels.index(fraction)]
        lines.append(_Line(f"{name}{more}", color, dashes, table[:, 0], table[:, 1:]))
    return lines


def _bounds(metric: Mapping[str, Any]) -> tuple[float, float, float]:
    value = float(metric["value"])
    low, high = (value if metric[side] is None else float(metric[side]) for side in ("low", "high"))
    return value, low, high


def _draw(name: str, lines: Sequence[_Line], label: str, metric: str, limits: tuple[float, float]) -> Markup:
    ticks = sorted({x for line in lines for x in line.x.tolist()})

    def paint(axes: Any) -> None:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.axhline(0, color=INK, linewidth=0.8)
        for line in lines:
            axes.fill_between(line.x, line.values[:, 1], line.values[:, 2], color=line.color, alpha=0.12, linewidth=0)
            style = {} if line.dashes[0] is None else {"dashes": line.dashes}
            axes.plot(line.x, line.values[:, 0], color=line.color, linewidth=1.6, marker="o", markersize=3, **style)
        axes.set(xlabel=label, ylabel=metric, ylim=limits)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])

    return svg(name, (5.0, 3.4), paint)
