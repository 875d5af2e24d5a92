"""The report's pictures as inline SVG, with the figures shown beside them: scatter, curves, embedding map.

Each takes arrays and draws one `<svg>` element without prolog, style sheet, metadata or date, so the same numbers give
the same bytes, whatever the display and matplotlibrc. Colors become CSS variables with the printed color as fallback,
so the page decides on light or dark. Clouds of more than `MOST_MARKS` points become a PNG inside the SVG, since a
browser draws (and a file stores) every vector mark. No text from data is drawn. About 0.2 s a picture.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from nncift.run.folder.records import percent

MOST_MARKS = 2_000  # more points than this are rasterised
DRAWN, FITTED = 5_000, 2_000  # points of a kind on the map, and samples for its principal components

INK, MUTED, LINE = "#1d2733", "#66717f", "#dfe3e8"
OTHER, SELECTED, TARGET = "#9aa5b1", "#1574b8", "#d9730d"
QUADRANTS = {"Q2": "#1574b8", "Q3": "#1b9e77", "Q4": "#d9730d"}  # of held-out pairs; safe for the color-blind
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line"}
_THEMED = {**_VARIABLES, SELECTED: "chosen", OTHER: "left", TARGET: "target"}  # of pictures with their own legends
_STYLE = {
    "svg.fonttype": "none",  # real text: it can be read aloud, searched and copied
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    **dict.fromkeys(("xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
}


def scatter(groups: Mapping[str, np.ndarray]) -> Markup:
    """Predicted influence against exact, on equal axes with the diagonal.

    Args:
        groups: quadrant or "shortlist" -> exact and predicted influence, (2, n_pairs).
    """
    both = np.concatenate([*groups.values()], axis=1)
    low, high = float(both.min()), float(both.max())
    margin = 0.04 * (high - low) or 1.0
    look = {"s": 9, "alpha": 0.55, "linewidths": 0, "rasterized": both.shape[1] > MOST_MARKS}

    def paint(axes: Any) -> None:
        axes.plot([low, high], [low, high], color=MUTED, linewidth=0.8, dashes=(4, 3), zorder=1)
        for name, pairs in groups.items():
            axes.scatter(*pairs, color=QUADRANTS.get(name, SELECTED), label=name, **look)
        axes.set(xlabel="exact influence", ylabel="predicted influence")
        axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
        axes.locator_params(nbins=5)
        _legend(axes, len(groups))

    return svg("scatter", (4.3, 4.3), paint, _THEMED)


def learning_curve(labels: Sequence[int], reached: Sequence[float], name: str = "rank correlation") -> Markup:
    """The held-out correlation, `name`, `reached` after each round against the number of `labels` by then."""

    def paint(axes: Any) -> None:
        axes.plot(labels, reached, color=SELECTED, linewidth=1.6, marker="o", markersize=4)
        axes.set(xlabel="labels", ylabel=name, ylim=(min(0.0, *reached), 1.02))
        axes.locator_params(nbins=5)

    return svg("rounds", (4.3, 3.0), paint, _THEMED)


def gain_curve(gains: np.ndarray) -> dict[str, Any] | None:
    """Value of the first r selected samples over the rank r, from the gains (n_selected,) in order.

    Returns `plot`; the `value` of all `ranks`; the `rank` that reaches 90% of it; whether the curve `flattens` (that
    rank is at most 80% of `ranks`; for a straight line it is 90%); `tail_share`, the share of the value from the last
    `tail` samples (a tenth). None without a positive value.
    """
    cumulative = np.cumsum(gains, dtype=np.float64)
    if not len(gains) or cumulative[-1] <= 0:
        return None
    rank = int(np.argmax(cumulative >= 0.9 * cumulative[-1])) + 1
    tail = max(1, round(0.1 * len(gains)))
    return {
        "plot": _draw_gains(cumulative, rank),
        "value": float(cumulative[-1]),
        "rank": rank,
        "ranks": len(gains),
        "flattens": rank <= 0.8 * len(gains),
        "tail": tail,
        "tail_share": float(gains[-tail:].sum() / cumulative[-1]),
    }


def _draw_gains(cumulative: np.ndarray, rank: int) -> Markup:
    shown = np.unique(np.linspace(0, len(cumulative) - 1, 400).astype(np.int64))
    ranks, values = np.concatenate([[0], shown + 1]), np.concatenate([[0.0], cumulative[shown]])
    height = float(cumulative[rank - 1])

    def paint(axes: Any) -> None:
        axes.fill_between(ranks, values, color=SELECTED, alpha=0.1, linewidth=0)
        axes.plot(ranks, values, color=SELECTED, linewidth=1.8)
        axes.plot([rank, rank, 0], [0, height, height], color=MUTED, linewidth=0.8, dashes=(4, 3))
        axes.plot([rank], [height], "o", color=SELECTED, markersize=5)
        axes.set(xlabel="rank", ylabel="value of the samples up to that rank", xlim=(0, len(cumulative)))
        axes.set_ylim(min(0.0, float(values.min())), 1.06 * float(values.max()))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.locator_params(axis="x", integer=True, nbins=5)
        axes.locator_params(axis="y", nbins=5)

    return svg("gains", (4.7, 3.7), paint, _THEMED)


def embedding_map(features: np.ndarray, chosen: np.ndarray, target_features: np.ndarray | None) -> dict[str, Any]:
    """Samples on the pool's first two principal components: not selected, selected over them, targets on top.

    The components are fitted to at most `FITTED` samples, and at most `DRAWN` points of a kind are drawn, both with a
    fixed seed, so the cost does not grow with the pool. `features` are (n_pool, d), perhaps memory-mapped, and `chosen`
    pool rows. Returns `plot`, the points `drawn` and in `all` of each kind, and the share of variance `explained` by
    each component.
    """
    rng = np.random.default_rng(0)

    def some(rows: np.ndarray, most: int) -> np.ndarray:
        return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))

    centre, axes, explained = _principal_axes(features[some(np.arange(len(features)), FITTED)])
    rest = np.ones(len(features), dtype=bool)
    rest[chosen] = False
    kinds = {"not selected": (features, np.flatnonzero(rest)), "selected": (features, np.sort(chosen))}
    if target_features is not None:
        kinds["target"] = (target_features, np.arange(len(target_features)))
    shown = {kind: matrix[some(rows, DRAWN)] for kind, (matrix, rows) in kinds.items() if len(rows)}
    points = {kind: (np.asarray(part, dtype=np.float64) - centre) @ axes.T for kind, part in shown.items()}  # (n, 2)
    return {
        "plot": _draw_map(points, explained),
        "drawn": {kind: len(coordinates) for kind, coordinates in points.items()},
        "all": {kind: len(rows) for kind, (_, rows) in kinds.items()},
        "explained": explained.tolist(),
    }


def _principal_axes(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre (d,), unit axes (2, d) whose largest entry is positive, and share of the variance along each (2,)."""
    sample = np.asarray(sample, dtype=np.float64)
    centre = sample.mean(axis=0)
    _, scale, directions = np.linalg.svd(sample - centre, full_matrices=False)
    directions = directions[:2]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    axes = np.zeros((2, sample.shape[1]))  # one sample or one dimension leaves the second axis 0
    axes[: len(directions)] = np.where(largest < 0, -directions, directions)
    return centre, axes, np.append(scale**2, 0.0)[:2] / max(float((scale**2).sum()), 1e-30)


def _draw_map(points: Mapping[str, np.ndarray], explained: np.ndarray) -> Markup:
    rasterised = sum(map(len, points.values())) > MOST_MARKS
    looks = {
        "not selected": {"color": OTHER, "s": 7, "alpha": 0.5},
        "selected": {"color": SELECTED, "s": 14, "alpha": 0.9},
        "target": {"color": TARGET, "s": 20, "alpha": 0.9, "marker": "D"},
    }

    def paint(axes: Any) -> None:
        for kind in (kind for kind in looks if kind in points):
            axes.scatter(*points[kind].T, label=kind, linewidths=0, rasterized=rasterised, **looks[kind])
        axes.set(xticks=[], yticks=[])
        first, second = map(percent, explained)
        axes.set(xlabel=f"component 1 ({first} of the variance)", ylabel=f"component 2 ({second})")
        _legend(axes, len(points))

    return svg("map", (4.7, 3.7), paint, _THEMED)


def _legend(axes: Any, columns: int) -> None:
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "ncols": columns}
    legend = axes.legend(frameon=False, handletextpad=0.2, columnspacing=1.2, **place)
    for handle in legend.legend_handles:
        handle.set(alpha=1.0, sizes=[28], rasterized=False)


def svg(
    name: str, size: tuple[float, float], paint: Callable[[Any], None], variables: Mapping[str, str] = _VARIABLES
) -> Markup:
    """A picture of that size in inches.

    Args:
        name: begins its ids.
        size: width and height.
        paint: draws on its axes numbers and fixed words alone, no text from data.
        variables: colour to the CSS variable that takes its place.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():  # neither the user's matplotlibrc nor our settings leave this block
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = name
        figure = Figure(figsize=size, layout="constrained", dpi=200)
        paint(figure.add_subplot())
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(text, metadata=nothing)  # `savefig` would draw it twice
    return Markup(_inline(text.getvalue(), name, variables))


def _inline(svg: str, name: str, variables: Mapping[str, str]) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # which would apply to the whole page
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)  # the page sets the size
    svg = svg.replace(' id="', f' id="{name}-')  # ids are the page's: three pictures must not share them
    svg = svg.replace('href="#', f'href="#{name}-')
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for color, variable in variables.items():
        svg = svg.replace(f" {color}", f" var(--{variable}, {color})")
    return svg
