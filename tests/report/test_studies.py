"""The studies on a comparison's page and in its tables, on hand-made records."""

from __future__ import annotations

from typing import Any

import numpy as np

from nncift.proof.results.tables import markdown, studies_table, text_table
from nncift.report.comparison import comparison_page
from nncift.report.studies import pictures, views

HOSTILE = "<script>alert(1)</script>|\x1b[31m"
RANK, MSE = "spearman_within_target", "mse"


def metric(value: float | None, half: float | None = 0.1) -> dict[str, Any]:
    bounds = (
        {"low": None, "high": None} if value is None or half is None else {"low": value - half, "high": value + half}
    )
    return {"value": value, **bounds, "by_seed": {"0": value}}


def record(study: str, network: str, labels: float, **more: Any) -> dict[str, Any]:
    facts = {"influence": HOSTILE, "pointwise": False, "study": study, "network": network, "labels": labels}
    facts |= {"setting": None, "subset": None, "quadrant": None, "pairs": 10}
    return facts | more


def studies() -> list[dict[str, Any]]:
    found = [
        record("labels", network, labels, quadrant=quadrant, metrics={RANK: metric(0.5 * labels), MSE: metric(0.123)})
        for network in ("process", "paper", "target mean")
        for labels in (0.01, 0.4)
        for quadrant in ("Q1", "Q2", "Q3", "Q4")
    ]
    found += [
        record(
            "labels-subset",
            "process",
            0.4,
            subset=s,
            metrics={"normalized_gain": metric(0.7, None), "overlap": metric(s)},
        )
        for s in (0.05, 0.3)
    ]
    found += [
        record("depth", "paper", 0.05, setting=d, quadrant="Q2", metrics={RANK: metric(None), MSE: metric(0.2)})
        for d in (1.0, 2.0)
    ]
    return found


def results() -> dict[str, Any]:
    return {
        "pool": {"name": "pool.jsonl", "rows": 100},
        **{"target": None, "known": None, "test": None, "tuning": {}, "cells": [], "overlaps": []},
        **{"model": {"model": "m"}, "seeds": [0], "studies": studies()},
    }


def test_tables_have_every_network_and_setting():
    labels, subset, depth = views(studies())
    assert [names for names, _ in labels.tables[0].rows] == [
        (f"{share}\u00a0%", network) for network in ("process", "paper") for share in ("1.0", "40.0")
    ]  # the target mean ranks nothing
    assert len(labels.tables[1].rows) == 6
    assert subset.tables[0].columns == ("5.0\u00a0% chosen", "30.0\u00a0% chosen")
    assert [names[1] for names, _ in depth.tables[0].rows] == ["1", "2"]


def test_a_picture_for_each_network_and_the_same_bytes():
    labels, _, depth = views(studies())
    first, again = pictures(labels, 0), pictures(labels, 0)
    assert [picture["title"] for picture in first] == ["recipe “process”", "recipe “paper”"]
    assert [line["name"] for line in first[0]["legend"]] == ["Q1", "Q2", "Q3", "Q4"]
    assert first == again
    assert len(pictures(depth, 2)) == 1  # without a single value that is defined


def test_names_are_data_on_the_page_and_in_the_tables():
    page = comparison_page(results(), {})
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count('class="plot"') == 4
    text = markdown(results(), {})
    assert "<script>" not in text
    assert "&lt;script>alert(1)&lt;/script>\\|\\x1b[31m" in text
    assert "| 40.0\u00a0% | process | 0.700 | 0.700 |" in text
    assert "\x1b" not in text_table(results())
    rows = studies_table(studies()).splitlines()
    assert len(rows) == 1 + 2 * len(studies())


def test_values_outside_the_axis_do_not_stretch_it():
    wild = [r | {"metrics": r["metrics"] | {RANK: metric(0.5, 40.0)}} for r in studies() if r["study"] == "labels"]
    plot = str(pictures(views(wild)[0], 0)[0]["plot"])
    assert np.isfinite(len(plot))
    assert ">20<" not in plot
