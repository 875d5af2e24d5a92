"""The report on what training on the choice is worth, and the page of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from comparison_results import choice, results
from nncift.proof.results.tables import evaluation_text
from nncift.report.evaluation import evaluation_page
from nncift.report.sections.worth import evaluated
from nncift.run.storage.files import write_json
from report_pages import HOSTILE, Page, evaluation, make_run


@pytest.mark.parametrize(
    ("verdict", "headline", "mark"),
    [
        ("better", "Training on the choice is better than on 6 random rows", "good"),
        ("tie", "Training on the choice is no better than on 6 random rows", ""),
        ("worse", "Training on the choice is worse than on 6 random rows", "bad"),
        ("too few items to tell", "Too few test items to tell the choice from 6 random rows", ""),
    ],
)
def test_worth_against_random_rows(tmp_path: Path, verdict: str, headline: str, mark: str):
    folder = make_run(tmp_path)
    write_json(folder.path / "evaluation/one/results.json", evaluation(verdict))
    page = Page(folder)
    section = page.section("worth-1")
    assert headline in section
    assert "Test loss 2.000, against 2.250 of 6 random rows: \u22120.250 [\u22120.300, \u22120.200]." in section
    assert f"24 items of test {HOSTILE[0]}.jsonl, 3 training seeds" in section
    assert ("verdict good" in page.source.partition('id="worth-1"')[2][:60]) == (mark == "good")
    assert "Fine-tuned on 6 random rows 2.250 [2.150, 2.350]" in page.section("models-1")
    assert "not been measured" not in page.text
    assert "beat as many random ones" not in page.section("next-steps")


def test_worth_against_another_choice_or_nothing_is_no_verdict_on_choosing():
    against = evaluated("one", evaluation(influence="delift"))
    assert against.headline == "Training on the choice is better than on the choice of other (6 rows)"
    results = evaluation()
    results["sides"].pop("against")
    results["models"].pop()
    results["comparisons"] = results["comparisons"][:1]
    alone = evaluated("one", results)
    assert (alone.headline, alone.mark, alone.has_random) == ("Training on the choice improves the model", "", False)
    assert "not compared with as many random rows" in " ".join(alone.sentences)
    assert "nncift select --from RUN --influence random" in " ".join(alone.sentences)
    assert alone.short == "not yet compared with random rows"
    assert evaluated("one", results | {"comparisons": []}).headline.startswith("Nothing was trained")


def test_a_run_of_random_rows_is_told_by_what_it_is_compared_with():
    results = evaluation("worse", influence="delift")
    results["sides"]["run"]["influence"] = "random"
    found = evaluated("one", results)
    assert found.headline == "Training on 6 random rows is worse than on the choice of other (6 rows)"
    assert (found.mark, found.has_random, found.short[:5]) == ("bad", True, "worse")
    results["sides"].pop("against")
    results["comparisons"] = results["comparisons"][:1]
    alone = evaluated("one", results)
    assert (alone.mark, alone.sign, alone.has_random) == ("", "?", False)
    assert alone.headline.startswith("Training on 6 random rows")
    assert not any("random rows, which" in sentence for sentence in alone.sentences)


@pytest.mark.parametrize(("method", "how"), [("phased", "in phases"), ("weighted", "with weights")])
def test_the_only_training_decides(method: str, how: str):
    results = evaluation()
    for one in results["models"]:
        one["method"] = {"lora": method}.get(one["method"], one["method"])
    for one in results["comparisons"]:
        one["a"], one["b"] = ([{"lora": method}.get(name, name) for name in one[side]] for side in ("a", "b"))
    found = evaluated("one", results)
    assert found.headline == f"Training on the choice {how} is better than on 6 random rows"
    assert found.mark == "good"


def test_a_tie_of_an_evaluation_whose_interval_leaves_out_0_is_explained():
    facts = {"model": {"model": "org/model"}, "tuning": {"epochs": 3, "modules": ["all-linear"]}}
    found = evaluation("tie", **facts)  # its interval is [-0.3, -0.2]
    note = "while the verdict allows for all 3 comparisons made together"
    assert note in evaluation_page(found)
    assert note in evaluation_text(found).splitlines()[-1]
    assert note not in evaluation_page(evaluation("better", **facts))


def test_the_terminal_counts_the_items_with_a_grade_of_every_model():
    found = evaluation()
    for model, items in zip(found["models"], (24, 22, 23), strict=True):
        model["metrics"]["judge"] = model["metrics"]["loss"] | {"items": items}
    assert "response loss (n=24)  judge (1-5) (n=22 to 24)" in evaluation_text(found).splitlines()[0]


def test_the_page_of_an_evaluation_has_the_verdict_first_and_is_inert():
    page = evaluation_page(evaluation(model={"model": HOSTILE[1]}, tuning={"epochs": 3, "modules": ["all-linear"]}))
    assert "Training on the choice is better than on 6 random rows" in page
    assert page.index('id="answer"') < page.index('id="models"') < page.index('id="settings"')
    assert "<script" not in page
    assert "onerror=" not in page.replace("&lt;img src=x onerror=", "")


def test_a_comparison_in_the_folder_gives_the_equivalent_random_budget(tmp_path: Path):
    folder = make_run(tmp_path)
    found = results(*choice("free", "bm25", "tie", "tie"), *choice("estimated", "less", "better", "better"))
    write_json(folder.path / "evaluation/compare/results.json", found)
    section = Page(folder).section("worth-1")
    assert "less (estimated) trains better than random rows at every budget" in section
    assert "train like 150 [100, 200] random ones" in section
