"""The page of a comparison on hand-made results: what it shows, hostile names, same bytes."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comparison_results import HOSTILE, ITEMS, POOL, Page, against, cell, choice, costs, metric, results
from nncift.report import comparison_plots
from nncift.report.comparison import comparison_page, write_comparison_report
from nncift.report.template import visible


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Results of five choices, two of one function."""
    cells = choice("free", "bm25", "tie", "better") + choice("free", HOSTILE[0], "worse", "worse")
    cells += choice("exact", "less", "better", "better", free=("better", "tie"))
    cells += choice("estimated", "less", "better", "better", free=("tie", "tie"), exact=("tie", "tie"))
    cells += choice("estimated", HOSTILE[4], "tie", "tie")
    for one in cells:
        one["metrics"]["exact_match"] = metric(0.4)
        one["against_random"]["exact_match"] = against(0.05, "tie")["loss"]
    shares = [("random", "bm25", 0.2), ("bm25", "less, exact", 0.25), ("random", "less, exact", 0.0)]
    overlaps = [{"budget": 50, "a": a, "b": b, "share": share} for a, b, share in shares]
    return results(*cells, overlaps=overlaps)


@pytest.fixture(scope="module")
def page(found) -> Page:
    return Page(comparison_page(found, costs(**{"bm25": 0.01, "less, exact": 10.0, "less, estimated": 1.0})))


def test_the_answer_and_the_picture_come_first(page: Page):
    order = ["answer", "pictures", "lora-rows", "cost", "overlap", "reading", "settings"]
    assert [name for name in page.ids if name in order] == order
    assert len(page.ids) == len(set(page.ids))
    assert page.section("answer").startswith(
        "✓ less (exact) trains better than random rows at every budget Its 50 rows"
    )
    assert [tag for tag, a in page.elements if tag == "svg" and a.get("class") != "marker"] == ["svg", "svg"]
    legend = page.section("pictures").partition("Lower is better")[0]
    assert all(
        visible(name) in legend for name in ("random rows", "bm25", "less, exact", "less, estimated", HOSTILE[4])
    )


def test_tables_show_every_choice_lowest_loss_first(page: Page):
    text = page.section("lora-rows").partition("Other metrics")[0]
    assert text.index("less, exact 2.100 [2.000, 2.200] \u22120.100 [\u22120.120, \u22120.080] better") < text.index(
        "bm25 2.190 [2.090, 2.290] \u22120.010 [\u22120.030, +0.010] tie 150 [100, 200] 3.0\u00d7 50 1,000"
    )
    assert "random 2.200 [2.100, 2.300] \u2013 \u2013 \u2013 \u2013 50 1,000" in text
    assert text.index("random 2.200") < text.index(f"{HOSTILE[0]} 2.300") < text.index("100 rows (10.0 % of the pool)")
    assert "no tuning 2.500" in text
    assert "full pool 1.800" in text
    assert "25 500" not in text  # a point of the curve only
    assert "bm25 0.400 [0.300, 0.500] tie" in page.section("lora-rows").partition("Other metrics")[2]


@pytest.mark.parametrize(("beyond", "words"), [("above", "more than 20.0\u00d7"), ("below", "fewer than 20.0\u00d7")])
def test_a_bound_on_the_equivalent_rows_is_shown_as_one(beyond: str, words: str):
    cells = choice("free", "bm25", "better")
    cells[0]["equivalent"] = {"text": "1,000 [90, 1,000] random rows", "times": 20.0, beyond: ["value"]}
    assert words in Page(comparison_page(results(*cells), costs(bm25=0.01))).section("lora-rows")


def test_costs_savings_and_trials(page: Page):
    text = page.section("cost")
    assert "less, estimated 6 min 0 s 1 min 0 s 4.0 s 0.5 s 0.5 s 1.0 s 7 min 6 s 426,000" in text
    assert text.index("bm25 3.6 s") < text.index("less, estimated 6 min") < text.index("less, exact 1 h 0 min")
    assert "less, estimated 1 h 11 min 7 min 6 s 90.0 % 4,260,000 426,000 90.0 %" in text
    assert "12 trials to compare them: training took 1 min 40 s and 5,000 tokens" in text


def test_influence_that_is_exact_for_every_pair_is_a_cost_of_its_own(found):
    spent = costs()
    stages = {"read": 1.0, "influence": 40.0, "select": 2.0}
    spent["choices"]["bm25"] = {stage: {"seconds": seconds, "tokens": 0} for stage, seconds in stages.items()}
    text = Page(comparison_page(found, spent)).section("cost")
    assert "Influence Selecting Reading Total LLM tokens bm25 40.0 s 2.0 s 1.0 s 43.0 s 0" in text


def test_an_estimate_that_costs_more_is_called_that(found):
    page = Page(comparison_page(found, costs(**{"less, exact": 1.0, "less, estimated": 1.5})))
    assert "50.0 % more" in page.section("cost")


def test_overlaps_are_a_symmetric_table(page: Page):
    text = page.section("overlap")
    assert "50 rows; two random choices share 5.0 % on average" in text
    assert "1 random · 20 0 2 bm25 20 · 25 3 less, exact 0 25 ·" in text


def test_how_to_read_it(page: Page):
    text = page.section("reading")
    assert "150 items with a reference response" in text
    assert "3 seeds (0, 1, 2)" in text
    assert "cover other test items and other seeds" in text
    assert "Target modules q_proj, v_proj" in page.section("settings")


def test_what_is_missing_is_stated():
    cells = choice("free", "bm25", "tie", "tie", seeds_counted=False)
    page = Page(comparison_page(results(*cells, seeds=[0]), {}))
    assert "The costs of choosing were not recorded" in page.section("cost")
    assert "no two choices" in page.section("overlap")
    assert "No other metric was measured" in page.section("lora-rows")
    assert "1 seed (0)" in page.section("reading")
    assert "cover other test items only" in page.section("reading")
    page = Page(comparison_page(results(*cells), costs(bm25=1.0)))
    assert "what estimating saves was not measured" in page.section("cost")


def test_without_random_rows_or_choices_there_still_is_a_page():
    lonely = results(cell("free", "bm25", budget=50, loss=2.0, method="icl"))
    lonely["cells"] = [c for c in lonely["cells"] if c["kind"] not in ("random", "full")]
    page = Page(comparison_page(lonely, {}))
    assert "There are no random rows to compare with" in page.section("answer")
    assert "there are no differences to show" in page.section("pictures")
    assert "bm25 2.000 [1.900, 2.100] \u2013 \u2013 50 1,000" in page.section("icl-rows")
    assert "There is no test loss of a choice to draw" in Page(comparison_page(results(), {})).section("pictures")


def test_losses_that_were_not_measured_are_dashes():
    cells = choice("free", "bm25", "tie", "tie")
    cells[0]["metrics"]["loss"] = dict.fromkeys(("value", "low", "high")) | {"items": 0, "by_seed": {}}
    cells[1]["metrics"]["loss"] |= {"low": -np.inf, "high": np.inf}
    text = Page(comparison_page(results(*cells), {})).section("lora-rows")
    assert "bm25 \u2013 \u22120.010" in text
    assert "bm25 2.090 [\u2013, \u2013]" in text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_escaped(text: str):
    cells = choice("free", text, "better", "better") + choice(
        "estimated", text, "better", "better", free=("tie", "tie")
    )
    names = {"pool": {"name": text, "rows": POOL}, "target": text, "test": {"name": text, "items": ITEMS}}
    overlaps = [{"budget": 50, "a": text, "b": f"{text}, estimated", "share": 0.5}]
    page = Page(
        comparison_page(
            results(*cells, **names, overlaps=overlaps, model={"model": text}, tuning={"notes": text}),
            costs(**{text: 1.0}),
        )
    )
    assert text not in page.source or html.escape(text) == text == visible(text)
    assert visible(text).split() == page.section("answer").split(" trains better")[0].split()[1:]
    assert {c for c in page.source if not c.isprintable()} <= {"\n", "\u00a0"}
    assert not {tag for tag, _ in page.elements} & {
        "script",
        "iframe",
        "img",
        "link",
        "base",
        "form",
        "a",
        "foreignobject",
    }
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in {"href", "src", "xlink:href"} or value.startswith("#"), (tag, value)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    pictures = re.findall(r"<svg (?!class).*?</svg>", page.source, flags=re.DOTALL)
    assert len(pictures) == 2
    assert not any("alert" in picture or "gnp" in picture for picture in pictures)  # no names inside


def test_the_same_results_give_the_same_bytes(tmp_path: Path, found):
    again = json.loads(json.dumps(found))
    first = write_comparison_report(tmp_path / "a.html", found, costs(bm25=1.0)).read_bytes()
    assert write_comparison_report(tmp_path / "b.html", again, costs(bm25=1.0)).read_bytes() == first


def test_functions_have_looks_of_their_own_and_those_beyond_the_eighth_are_thin():
    choices = {f"f{k}": ("free", f"f{k}") for k in range(10)} | {"f0, exact": ("exact", "f0")}
    found = comparison_plots.looks(choices)
    assert len({(look.color, look.marker) for name, look in found.items() if name != "f0, exact"}) == 9
    assert [name for name, look in found.items() if look.thin] == ["f8", "f9"]
    assert (found["f0, exact"].color, found["f0, exact"].hollow, found["f0"].hollow) == (found["f0"].color, True, False)


def test_points_of_one_budget_do_not_cover_each_other_or_reach_the_next_budget():
    places: list[np.ndarray] = []

    class Axes:
        def errorbar(self, x, y, **options):
            places.append(x)

    one = np.array([1.0, 1.0])
    points = comparison_plots.Points(np.array([50.0, 100.0]), one, one, one)
    choices = {f"f{k}": points for k in range(9)}
    look = comparison_plots.looks({name: ("free", name) for name in choices})
    comparison_plots._paint_choices(Axes(), choices, look, np.log(2), logarithmic=True)
    at_50, at_100 = np.array(places).T
    assert len(set(at_50)) == 9
    assert at_50.max() < at_100.min()
