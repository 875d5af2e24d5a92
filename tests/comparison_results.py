"""Hand-made results of a comparison, and its page as a reader sees it."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from typing import Any

from nncift.evaluation.comparisons import TOO_FEW

HOSTILE = [
    "<script>alert(1)</script>",
    "</svg></style></title><img src=x onerror=alert(2)>",
    "\"'><a href=\"javascript:alert(3)\" onmouseover='alert(4)'>x</a>",
    "\x1b[31mred\x1b[0m \x07 {{ 7 * 7 }} {% raw %}",
    "abc\u202egnp.exe $x_1^2$",
]
POOL, ITEMS = 1000, 150
STAGES = {
    "read": 1.0,
    "features": 60.0,
    "labels": 300.0,
    "probes": 60.0,
    "network": 4.0,
    "estimate": 0.5,
    "select": 0.5,
}


def metric(value: float, half: float = 0.1) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "items": ITEMS, "by_seed": {"0": value}}


def against(value: float, verdict: str, seeds_counted: bool = True) -> dict[str, Any]:
    facts = {"value": value, "low": value - 0.02, "high": value + 0.02, "verdict": verdict, "n_items": ITEMS}
    return {"loss": facts | {"seeds_counted": seeds_counted}}


def cell(kind: str, influence: str = "", *, budget: int, loss: float, **more: Any) -> dict[str, Any]:
    """A record as `proof.results.analysis.analyse` makes them."""
    name = {"none": "no tuning", "full": "full pool", "random": "random", "free": influence, "stratified": influence}
    facts = {"selector": name.get(kind, f"{influence}, {kind}"), "kind": kind, "influence": influence}
    facts |= {"method": "none" if kind == "none" else "lora", "unit": "rows", "budget": budget, "curve": False}
    facts |= {"rows": float(budget), "tokens": 20.0 * budget, "metrics": {"loss": metric(loss)}}
    return facts | more


def results(*cells: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Results of those choices, beside the model as it is, random rows at 25, 50 and 100, and the full pool."""
    always = [cell("none", budget=0, loss=2.5)]
    for budget, loss, curve in ((25, 2.3, True), (50, 2.2, False), (100, 2.1, False)):
        always.append(cell("random", budget=budget, loss=loss, curve=curve))
    always.append(cell("full", budget=POOL, loss=1.8, curve=True))
    facts = {
        "pool": {"name": "pool.jsonl", "rows": POOL},
        "target": "target.jsonl",
        "known": None,
        "test": {"name": "test.jsonl", "items": ITEMS},
        "model": {"model": "org/model", "dtype": "float32"},
        "tuning": {"epochs": 3, "target_modules": ["q_proj", "v_proj"]},
        "seeds": [0, 1, 2],
        "cells": [*always, *cells],
        "overlaps": [],
    }
    return facts | more


def choice(
    kind: str,
    influence: str,
    *verdicts: str,
    free: tuple[str, ...] = (),
    exact: tuple[str, ...] = (),
    stratified: tuple[str, ...] = (),
    **more: Any,
) -> list[dict[str, Any]]:
    """A choice at 50 and 100 rows with its verdicts against random rows, the free choice bm25 and exact influence."""
    size = {"better": -0.1, "tie": -0.01, "worse": 0.1, TOO_FEW: -0.1}
    found = []
    for k, verdict in enumerate(verdicts):
        budget, seeds = (50, 100)[k], more.get("seeds_counted", True)
        loss = 2.2 - 0.1 * k + size[verdict]
        one = cell(kind, influence, budget=budget, loss=loss, against_random=against(size[verdict], verdict, seeds))
        if free:
            one |= {"best_free": "bm25", "against_free": against(size[free[k]], free[k])}
        if exact:
            one["against_exact"] = against(size[exact[k]], exact[k])
        if stratified:
            one["against_stratified"] = against(size[stratified[k]], stratified[k])
        same = {"text": f"{3 * budget} [{2 * budget}, {4 * budget}] random rows", "times": 3.0}
        found.append(one | {"equivalent": same})
    return found


def costs(**names: float) -> dict[str, Any]:
    """Costs of choices, scaled by a factor each."""
    choices = {
        name: {stage: {"seconds": s * times, "tokens": int(1000 * s * times)} for stage, s in STAGES.items()}
        for name, times in names.items()
    }
    one = {"seconds": 100.0, "tokens": 5000}
    return {"choices": choices, "trials": {"number": 12, "tune": one, "measure": one}}


class Page(HTMLParser):
    """What a browser would make of a page: its elements and attributes, and the text of its sections."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.source = source
        self.feed(source)
        self.close()
        self.ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def section(self, name: str) -> str:
        """The text of the section with that id, spaces folded."""
        inside = self.source[self.source.index(f'id="{name}"') :].partition(">")[2].partition("</section>")[0]
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", inside)).split())
