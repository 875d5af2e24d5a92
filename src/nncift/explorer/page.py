"""What embedding-atlas shows: the map coloured by the choice, the table, and charts that filter each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nncift.explorer.columns import CHOSEN, LEFT_OUT

ROW, X, Y, NEIGHBOURS = "row", "__map_x", "__map_y", "__neighbours"
_MOST_VALUES, _MOST_NUMBERS = 100, 10  # of a column that is counted by its values: texts, whole numbers
_SHOWN = 30  # values of a chart, the most frequent ones
_MOST_COUNTED, _MOST_BINNED = 8, 12  # charts
_NEVER_BINNED = {ROW, X, Y, "rank", "covered_by_row", "left_out_twin", "left_out_twin_row"}
_LENGTHS = {"prompt_characters", "response_characters", "tokens"}
_NEVER_COUNTED = {"rank", "gain", "measured_targets", "left_out_twin"} | _LENGTHS | (_NEVER_BINNED - {ROW, X, Y})
_DISPLAYED_WHOLE = ("prompt", "response", "helps_1", "helps_2", "helps_3", "covered_by", "left_out_twin")


def chart_columns(columns: Mapping[str, Any]) -> dict[str, list[str]]:
    """The columns that have a chart: "counted" by their few values, and "binned" numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    counted, binned = [], []
    for name, values in columns.items():
        column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        distinct = pc.count_distinct(column).as_py()
        is_text, is_measured = pa.types.is_string(column.type), _is_measured(column)
        few = max(2, min(_MOST_VALUES, len(column) // 2)) if is_text else _MOST_NUMBERS
        if 2 <= distinct <= few and not is_measured and name not in _NEVER_COUNTED:
            counted.append(name)
        elif not is_text and distinct > 1 and name not in _NEVER_BINNED:
            binned.append(name)
    return {"counted": counted[:_MOST_COUNTED], "binned": binned[:_MOST_BINNED]}


def _is_measured(column: Any) -> bool:
    """Whether it has fractions: in a small pool these are few values, too, but no categories."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pa.types.is_floating(column.type) and not pc.all(pc.equal(pc.floor(column), column)).as_py()


def page_props(columns: Mapping[str, list[str]]) -> dict[str, Any]:
    """Arguments of embedding-atlas for a table of the explorer.

    Args:
        columns: as `chart_columns` returns them.
    """
    from embedding_atlas.options import make_embedding_atlas_props

    charts = [_map(), _questions(), {"type": "instances", "title": "Samples"}]
    charts += [_counts(name) for name in columns["counted"]] + [_histogram(name) for name in columns["binned"]]
    state = {
        "charts": {str(number): chart for number, chart in enumerate(charts, 1)},
        "columnStyles": {name: {"display": "full"} for name in _DISPLAYED_WHOLE},
    }
    props: dict[str, Any] = make_embedding_atlas_props(
        row_id=ROW, x=X, y=Y, text="prompt", neighbors=NEIGHBOURS, initial_state=state
    )
    return props


def _map() -> dict[str, Any]:
    data = {"x": X, "y": Y, "text": "prompt", "category": "chosen", "neighbors": NEIGHBOURS}
    return {"type": "embedding", "title": "Map of the pool", "data": data}


def _questions() -> dict[str, Any]:
    """Filters that answer a first question each."""
    items = [
        ("Chosen", f"chosen = '{CHOSEN}'"),
        ("Left out", f"chosen = '{LEFT_OUT}'"),
        ("Chosen, with a near twin left out (cosine 0.9)", "left_out_twin_cosine >= 0.9"),
    ]
    return {
        "type": "predicates",
        "title": "Questions",
        "items": [{"name": name, "predicate": predicate} for name, predicate in items],
    }


def _counts(name: str) -> dict[str, Any]:
    return {"type": "count-plot", "title": name, "data": {"field": name}, "labels": "#/#", "limit": _SHOWN}


def _histogram(name: str) -> dict[str, Any]:
    """All samples behind those that the other charts have filtered."""
    axes = {"x": {"field": name}, "y": {"aggregate": "count"}}
    return {
        "title": name,
        "layers": [
            {"mark": "bar", "style": {"fillColor": "$markColorFade"}, "encoding": axes},
            {"mark": "bar", "filter": "$filter", "encoding": axes},
        ],
        "selection": {"brush": {"encoding": "x"}},
        "widgets": [{"type": "scale.type", "channel": "x"}],
    }
