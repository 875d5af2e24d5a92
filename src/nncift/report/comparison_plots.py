"""The pictures of a comparison as inline SVG: test loss over rows, and differences to random rows.

Each influence function has a color and a marker of its own, safe for the color-blind; its exact values are hollow, a
verified choice has an outline. The names stand in the page's legend, not in the pictures: they may come from data. See
plots.py for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from nncift.report.plots import INK, MUTED, OTHER, svg

_COLORS = ("#1574b8", "#d9730d", "#1b9e77", "#b0439c", "#7b73d6", "#a6761d", "#4aa3c7", "#c0392b")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p")  # as matplotlib names them; the page draws the same
_FREE_SPACE = 0.62  # of the distance between two budgets, for the choices beside each other


@dataclass(frozen=True)
class Look:
    """How a choice is drawn.

    Attributes:
        color: of its influence function.
        marker: of its influence function.
        hollow: of exact influence.
        outlined: of estimated influence with a measured shortlist.
        thin: of functions beyond the eighth, which share a gray.
    """

    color: str
    marker: str
    hollow: bool
    outlined: bool
    thin: bool


class Points(NamedTuple):
    """Values of one choice at its budgets, (k,) float64 each; an infinite bound is not drawn."""

    budgets: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def looks(choices: Mapping[str, tuple[str, str]]) -> dict[str, Look]:
    """The look of each choice, by name.

    Args:
        choices: kind and influence function of each.
    """
    functions = list(dict.fromkeys(influence for _, influence in choices.values()))
    found = {}
    for name, (kind, influence) in choices.items():
        number = functions.index(influence)
        thin = number >= len(_COLORS)
        color, marker = (OTHER, "o") if thin else (_COLORS[number], _MARKERS[number])
        found[name] = Look(color, marker, kind == "exact", kind == "verified", thin)
    return found


def loss_curve(
    random: Points,
    choices: Mapping[str, Points],
    look: Mapping[str, Look],
    *,
    untuned: float | None,
    full: int | None,
    label: str,
) -> Markup:
    """Test loss over the budget, logarithmic: the learning curve of random rows with its band, and the choices.

    Args:
        random: of random rows and the full pool; may be empty.
        choices: by name.
        look: of each choice.
        untuned: loss of the model as it is.
        full: rows of the full pool, if it is the end of the curve.
        label: of the axis of budgets.
    """  # fmt: skip

    def paint(axes: Any) -> None:
        axes.set_xscale("log")
        axes.minorticks_off()
        if untuned is not None:
            axes.axhline(untuned, color=MUTED, linewidth=1, dashes=(2, 2))
            axes.annotate("untuned model", (1, untuned), (0, 3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", ha="right", color=MUTED)  # fmt: skip
        axes.fill_between(random.budgets, random.low, random.high, color=OTHER, alpha=0.22, linewidth=0)
        axes.plot(random.budgets, random.value, color=INK, linewidth=1.6, marker="o", markersize=3.5, zorder=2)
        if full is not None:
            end = (random.budgets[-1], random.value[-1])
            axes.annotate("full pool", end, (0, -6), textcoords="offset points", ha="right", va="top", color=MUTED)
        spaces = np.diff(np.log(sorted({b for points in choices.values() for b in points.budgets})))
        _paint_choices(axes, choices, look, min([math.log(2.5), *spaces]), logarithmic=True)
        axes.set(xlabel=label, ylabel="test loss")
        ticks = _apart([*random.budgets, *(b for points in choices.values() for b in points.budgets)])
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.locator_params(axis="y", nbins=6)

    return svg("losses", (6.2, 4.1), paint)


def differences(choices: Mapping[str, Points], look: Mapping[str, Look], *, label: str) -> Markup:
    """Differences to random rows at each budget, with their intervals.

    Args:
        choices: by name.
        look: of each choice.
        label: of the axis of budgets.
    """
    budgets = sorted({budget for points in choices.values() for budget in points.budgets})

    def paint(axes: Any) -> None:
        axes.axhline(0, color=INK, linewidth=1.6, zorder=1)
        placed = {name: p._replace(budgets=np.searchsorted(budgets, p.budgets)) for name, p in choices.items()}
        _paint_choices(axes, placed, look, 1.3, logarithmic=False)
        axes.grid(False, axis="x")
        axes.set(xlabel=label, ylabel="test loss minus that of random rows", xlim=(-0.5, len(budgets) - 0.5))
        axes.set_xticks(range(len(budgets)), [f"{budget:,.0f}" for budget in budgets])
        for text, height, align in (("worse", 0.99, "top"), ("better", 0.01, "bottom")):
            axes.annotate(text, (0.99, height), xycoords="axes fraction", ha="right", va=align, color=MUTED)
        axes.locator_params(axis="y", nbins=6)

    return svg("differences", (6.2, 4.1), paint)


def _paint_choices(
    axes: Any, choices: Mapping[str, Points], look: Mapping[str, Look], space: float, *, logarithmic: bool
) -> None:
    """Points with bars, side by side within a share of the `space` between two budgets."""
    steps = (np.arange(len(choices)) - (len(choices) - 1) / 2) * min(_FREE_SPACE / max(len(choices), 1), 0.12) * space
    for (name, points), step in zip(choices.items(), steps, strict=True):
        places = points.budgets * np.exp(step) if logarithmic else points.budgets + step
        one = look[name]
        bars = np.nan_to_num([points.value - points.low, points.high - points.value], posinf=0, nan=0)
        axes.errorbar(
            places,
            points.value,
            yerr=np.maximum(bars, 0),
            fmt=one.marker,
            color=one.color,
            markersize=3 if one.thin else 6,
            elinewidth=0.7 if one.thin else 1.2,
            markerfacecolor="none" if one.hollow else one.color,
            markeredgewidth=1.3 if one.hollow or one.outlined else 0,
            markeredgecolor=INK if one.outlined else one.color,
            zorder=3,
        )


def _apart(ticks: Sequence[float]) -> list[float]:
    """Those of the ticks that have room for a label on a logarithmic axis, the largest first."""
    least = 0.075 * math.log(max(ticks) / min(ticks)) if ticks else 0
    kept: list[float] = []
    for tick in sorted(set(ticks), reverse=True):
        if not kept or math.log(kept[-1] / tick) >= least:
            kept.append(tick)
    return kept[::-1]
