"""The answer of a comparison on hand-made results: its rules, and where it stands."""

from __future__ import annotations

from comparison_results import HOSTILE, Page, cell, choice, costs, results
from nncift.evaluation.comparisons import TOO_FEW
from nncift.proof.results.tables import markdown, text_table
from nncift.report.answer import answer
from nncift.report.comparison import comparison_page


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
        "At 100 rows no choice is better than random rows, so take random rows:"
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
        "At every budget no choice is better than random rows, so take random rows:"
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
        "At 50 rows no choice is better than random rows, so take random rows:"
        " nncift select POOL --influence random --budget 50.",
        "At 100 rows no choice is better than stratified random rows, so take stratified random rows:"
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


def test_a_tie_whose_interval_leaves_out_0_is_explained_wherever_it_is_shown():
    cells = choice("free", "bm25", "tie", "worse") + choice("exact", "less", "tie", "tie", free=("tie", "tie"))
    note = "the verdict allows for all 2 comparisons made together"
    made = results(*cells)
    assert note not in text_table(made) + markdown(made, {}) + comparison_page(made, costs(bm25=0.1))
    cells[0]["against_random"]["loss"] |= {"low": -0.02, "high": -0.001}
    made = results(*cells)
    assert note in answer(made).sentences[0]  # the figures there are of this difference
    for text in (text_table(made).partition("100 rows")[0], markdown(made, {}).partition("## Fine-tuned, 100")[0]):
        assert f"A tie whose interval leaves out 0: the interval is of that comparison alone, while {note}" in text
    assert note in Page(comparison_page(made, costs(bm25=0.1))).section("lora-rows")
    cells[0]["against_random"]["loss"]["verdict"] = "better"
    assert note not in text_table(results(*cells))
