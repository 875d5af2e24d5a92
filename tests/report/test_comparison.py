"""The page of a comparison on hand-made results: the rules of its answer, what it shows, hostile names, same bytes."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift.evaluation.comparisons import TOO_FEW
from nncift.proof.tables import markdown, text_table
from nncift.report import comparison_plots
from nncift.report.answer import answer
from nncift.report.comparison import comparison_page, write_comparison_report
from nncift.report.template import visible

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
    """A record as `proof.analysis.analyse` makes them."""
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


def test_better_than_random_and_than_what_needs_no_labels():
    cells = choice("free", "bm25", "tie", "tie") + choice(
        "estimated", "less", "better", "better", free=("better", "tie")
    )
    found = answer(results(*cells))
    assert (found.headline, found.mark) == ("less (estimated) trains better than random rows at every budget", "good")
    assert found.sentences == (
        "Its 50 rows (5.0\u00a0% of the pool) train like 150 [100, 200] random ones,"
        " its 100 (10.0\u00a0%) like 300 [200, 400].",
        "Against the best choice without labels it is better than bm25 at 50 rows and a tie with bm25 at 100 rows.",
    )
    assert found.reservations == ("Not better than random rows at any budget: bm25.",)


def test_better_than_random_but_not_than_what_needs_no_labels():
    cells = choice("free", "bm25", "better", "tie") + choice(
        "estimated", "less", "better", "better", free=("tie", "tie")
    )
    found = answer(results(*cells))
    assert found.mark == "mixed"
    assert found.sentences[1] == "Against the best choice without labels it is a tie with bm25 at every budget."
    cells = choice("free", "bm25", "better", "better") + choice("exact", "less", "better", "tie", free=("tie", "worse"))
    found = answer(results(*cells))
    assert (found.headline, found.mark) == ("bm25 trains better than random rows at every budget", "good")
    no = "no exact or estimated influence is better than the best such choice"
    assert found.sentences[1] == f"It needs no labels; {no}."


def test_better_at_one_budget_only():
    found = answer(results(*choice("free", "bm25", "better", "worse")))
    assert found.headline == "bm25 trains better than random rows at 50 rows, but not at 100"
    assert found.mark == "mixed"
    assert found.reservations == ("Worse than random rows: bm25 at 100 rows.",)
    assert found.offer == (
        "At 100 rows no choice is better than random rows by its interval, so take random rows:"
        " nncift select POOL --influence random --budget 100.",
        STAY_OUT,
    )


def test_nothing_better():
    found = answer(results(*choice("free", "bm25", "tie", "worse"), *choice("estimated", "less", "tie", "tie")))
    assert (found.headline, found.mark) == ("No way of choosing is better than random rows here", "bad")
    assert found.sentences == (
        "At 50 rows, bm25 has a test loss of 2.190, random rows have 2.200 (a tie, \u22120.010 [\u22120.030, +0.010]).",
        "Random rows cost nothing.",
    )
    assert found.reservations == ("Worse than random rows: bm25 at 100 rows.",)
    assert found.offer == (
        "At every budget no choice is better than random rows by its interval, so take random rows:"
        " nncift select POOL --influence random --budget 50.",
        STAY_OUT,
    )
    assert found.lines == [f"{found.headline}.", " ".join(found.sentences), *found.reservations, " ".join(found.offer)]


STAY_OUT = "Duplicates and the rows of --exclude stay out of them."
STRATIFIED = "nncift select POOL --influence stratified-random --influence-option clusters="


def test_only_stratified_random_rows_are_better():
    drawn = choice("stratified", "stratified-random", "tie", "better")
    found = answer(results(*drawn, *choice("free", "bm25", "tie", "tie", stratified=("tie", "worse"))))
    headline = "No way of choosing is better than random rows here; stratified random rows are at 100 rows"
    assert (found.headline, found.mark) == (headline, "bad")
    assert found.offer == (
        "At 50 rows no choice is better than random rows by its interval, so take random rows:"
        " nncift select POOL --influence random --budget 50.",
        "At 100 rows no choice is better than stratified random rows by its interval, so take stratified random rows:"
        f" {STRATIFIED}100 --budget 100.",
        STAY_OUT,
    )


def test_better_than_random_but_not_than_stratified_random_rows():
    drawn = choice("stratified", "stratified-random", "tie", "tie")
    found = answer(results(*drawn, *choice("free", "bm25", "better", "better", stratified=("tie", "tie"))))
    at = "trains better than random rows at every budget"
    assert (found.headline, found.mark) == (f"bm25 {at}, and no better than stratified random rows", "mixed")
    assert found.sentences[1] == "Beside stratified random rows it is a tie with them at every budget."
    assert found.offer[0].endswith(f"so take stratified random rows: {STRATIFIED}50 --budget 50.")
    found = answer(results(*drawn, *choice("free", "bm25", "better", "better", stratified=("better", "tie"))))
    assert (found.headline, found.mark) == (f"bm25 {at}", "good")
    assert (
        found.sentences[1] == "Beside stratified random rows it is better than them at 50 rows and a tie with them"
        " at 100 rows."
    )
    assert found.offer[0].startswith("At 100 rows no choice is better than stratified random rows")
    found = answer(results(*drawn, *choice("free", "bm25", "better", "better", stratified=("better", "better"))))
    assert found.offer == ()


def test_random_rows_are_offered_on_the_page_in_the_terminal_and_in_markdown():
    cells = [*choice("stratified", "stratified-random", "tie", "tie"), *choice("free", HOSTILE[0], "tie", "worse")]
    made = results(*cells)
    offer = " ".join(answer(made).offer)
    page = Page(comparison_page(made, costs(**{"stratified-random": 0.1})))
    assert offer in page.section("answer")
    assert "stratified-random" in page.section("pictures").partition("Lower is better")[0]
    assert "stratified-random 2.190" in page.section("lora-rows")
    assert "stratified-random" in page.section("cost")
    assert text_table(made).endswith(offer)
    text = markdown(made, {})
    assert "\n\n**No way of choosing is better than random rows here.**\n\n" in text
    assert text.index(offer) < text.index("## Fine-tuned, 50 rows")


def test_worse_than_random():
    found = answer(results(*choice("estimated", "delift", "worse", "worse")))
    assert (found.headline, found.mark) == ("Every way of choosing is worse than random rows here", "bad")
    assert found.reservations == ("Worse than random rows: delift (estimated) at every budget.",)


def test_the_estimate_of_an_exact_leader_is_named():
    cells = choice("exact", "less", "better", "better") + choice(
        "estimated", "less", "better", "tie", exact=("tie", "worse")
    )
    found = answer(results(*cells))
    assert "less (estimated) is a tie with it at 50 rows and worse than it at 100 rows." in found.sentences
    assert "No choice that needs no labels was compared." in found.sentences


def test_equal_response_tokens_and_a_single_seed_qualify_the_answer():
    cells = choice("free", "bm25", "better", "better", seeds_counted=False)
    other = [c | {"unit": "tokens"} for c in choice("free", "bm25", "better", "tie")]
    random = [cell("random", budget=b, loss=2.2, unit="tokens") for b in (50, 100)]
    found = answer(results(*cells, *random, *other, seeds=[0]))
    tokens = "it is better at 50 mean rows' tokens and a tie at 100 mean rows' tokens."
    assert found.reservations == (
        f"With as many response tokens as random rows {tokens}",
        "Each model was trained with one seed, so chance in the training is not in these verdicts.",
    )


def test_what_cannot_be_decided():
    assert answer(results()).headline == "No way of choosing was compared"
    assert answer(results(*choice("free", "bm25", TOO_FEW, TOO_FEW))).headline == "Too few test items to tell"
    lonely = results(cell("free", "bm25", budget=50, loss=2.0))
    lonely["cells"] = [c for c in lonely["cells"] if c["kind"] != "random"]
    found = answer(lonely)
    assert (found.headline, found.mark) == ("There are no random rows to compare with", "unknown")
    assert found.sentences[0] == "At 50 rows, bm25 has a test loss of 2.000."


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
