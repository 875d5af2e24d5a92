"""A comparison's cells and figures on made-up results whose truth is known."""

from __future__ import annotations

import csv
import io
import itertools
import json

import numpy as np
import pytest

from nncift.evaluation.answers.results import ItemScores
from nncift.proof.results.analysis import analyse, overlaps
from nncift.proof.results.tables import as_text, long_table, markdown, text_table, with_interval
from nncift.proof.trials.cells import FULL, NONE, RANDOM, STRATIFIED, Grid, by_importance, default_curve
from nncift.proof.trials.selectors import Ranking, Selector, about_tokens, random_ranking, within_tokens
from nncift.proof.trials.trials import Trial

N, ITEMS = 100, 60
GOOD, WEAK = Selector("free", "bm25"), Selector("estimated", "less")


def ranked(rows: np.ndarray) -> Ranking:
    return Ranking(rows, 1 / np.arange(1.0, len(rows) + 1))


def grid(**changes) -> Grid:
    order = ranked(np.arange(N))
    back = ranked(np.arange(N)[::-1])
    defaults = {
        "rankings": {GOOD: {10: order, 20: order}, WEAK: {10: back, 20: back}},
        "tokens": np.where(np.arange(N) < 50, 4, 12),
        "budgets": [10, 20],
        "curve": [5, 10, 20, 40, 100],
        "methods": ["lora", "icl"],
        "units": ["rows", "tokens"],
        "seeds": range(3),
    }
    return Grid(**(defaults | changes))


def test_cells_hold_each_choice_once_and_random_ones_for_every_seed():
    cells = grid().cells()
    assert cells[0].selector == NONE
    assert [c.budget for c in cells if c.curve] == [5, 40, 100]
    assert [c.selector for c in cells if c.budget == N] == [FULL]
    random = next(c for c in cells if c.selector == RANDOM and c.budget == 20 and c.method == "lora")
    assert [trial.seed for trial in random.trials] == [0, 1, 2]
    assert len({trial.rows for trial in random.trials}) == 3  # each seed its own draw
    chosen = next(c for c in cells if c.selector == GOOD and c.budget == 20 and c.unit == "rows" and c.method == "lora")
    assert {trial.rows for trial in chosen.trials} == {tuple(range(20))}
    context = [c for c in cells if c.selector == GOOD and c.method == "icl" and c.unit == "rows"]
    assert [len(c.trials) for c in context] == [1, 1]  # examples in a context have no seed


def test_stratified_rows_are_drawn_for_every_seed_at_the_budgets_that_are_compared():
    draws = {budget: [np.roll(np.arange(N), 30 * seed) for seed in range(3)] for budget in (10, 20, N)}
    cells = grid(stratified=draws, budgets=[10, 20, N], rankings={}).cells()
    found = [(c.method, c.unit, c.budget) for c in cells if c.selector == STRATIFIED]
    rows = [(method, "rows", budget) for method in ("lora", "icl") for budget in (10, 20)]  # the pool is the full pool
    assert set(found) == {*rows, *((m, "tokens", b) for m in ("lora", "icl") for b in (10, 20, N))}
    trained = next(c for c in cells if c.selector == STRATIFIED and c.budget == 20)
    assert [(trial.seed, trial.rows[0]) for trial in trained.trials] == [(0, 0), (1, 70), (2, 40)]
    shown = next(c for c in cells if c.selector == STRATIFIED and c.method == "icl")
    assert len(shown.trials) == 3


def test_equal_tokens_give_short_rows_more_rows():
    cells = {(c.selector, c.unit): c for c in grid(methods=["lora"], budgets=[10], curve=[10]).cells()}
    assert len(cells[GOOD, "tokens"].trials[0].rows) == 20  # 10 mean rows have 80 tokens, its rows 4 each
    assert cells[WEAK, "tokens"].trials[0].rows == (99, 98, 97, 96, 95, 94, 49, 48)  # 12 each, then what still fits
    used = [sum(4 if row < 50 else 12 for row in trial.rows) for trial in cells[RANDOM, "tokens"].trials]
    assert all(74 <= tokens <= 86 for tokens in used)  # half a row off at most


def test_random_rows_of_equal_tokens_are_as_long_as_random_rows():
    tokens = np.where(np.arange(1000) % 2, 1, 301)
    chosen = [about_tokens(random_ranking(1000, 50, draw, 0), tokens, 50 * 151.0) for draw in range(200)]
    assert np.mean([tokens[rows].mean() for rows in chosen]) == pytest.approx(151, abs=5)
    assert np.mean([tokens[rows].sum() for rows in chosen]) == pytest.approx(50 * 151, rel=0.01)
    assert about_tokens(np.array([3, 1]), np.array([5, 9, 5, 90]), 2.0).tolist() == [3]


def test_within_tokens_skips_a_long_row_and_gives_at_least_one():
    tokens = np.array([5, 50, 4, 3])
    assert within_tokens(np.array([0, 1, 2, 3]), tokens, 12).tolist() == [0, 2, 3]
    assert within_tokens(np.array([1, 0]), tokens, 2).tolist() == [1]


def test_phases_order_the_same_rows_and_weights_follow_the_gains():
    difficulty = np.random.default_rng(0).permutation(N).astype(np.float32)
    made = grid(methods=["lora", "phased", "weighted"], units=["rows"], seeds=[7], difficulty=difficulty, phases=3)
    cells = {(c.selector, c.method, c.budget): c.trials for c in made.cells()}
    (phased,), (weighted,), (plain,) = (cells[GOOD, method, 10] for method in ("phased", "weighted", "lora"))
    assert {trial.method for trial in (phased, weighted, plain)} == {"lora"}
    assert sorted(phased.rows) == list(plain.rows) == list(weighted.rows) == list(range(10))
    assert phased.phases == (4, 3, 3)
    parts = np.split(np.array(phased.rows), [4, 7])
    assert all(difficulty[a].max() < difficulty[b].min() for a, b in itertools.pairwise(parts))
    assert all((np.diff(part) > 0).all() for part in parts)  # in a phase, the order chosen
    assert np.mean(weighted.weights) == pytest.approx(1)
    assert (np.diff(weighted.weights) <= 0).all()
    assert cells[RANDOM, "weighted", 10] == cells[RANDOM, "lora", 10]  # nothing tells random rows apart
    assert (FULL, "phased", N) not in cells  # the learning curve is that of one-off training


def test_random_rankings_are_permutations_that_differ_by_draw_and_budget():
    drawn = {tuple(random_ranking(30, budget, draw, 0)) for budget in (5, 10) for draw in (0, 1)}
    assert len(drawn) == 4
    assert all(sorted(order) == list(range(30)) for order in drawn)


def test_default_curve():
    assert default_curve([50, 100, 300], 1000) == [25, 50, 100, 300, 600, 1000]
    assert default_curve([1], 1) == [1]


def test_the_first_seed_of_every_cell_comes_before_the_second_of_any():
    trials = by_importance(grid(methods=["lora"]).cells())
    seeds = [trial.seed for trial in trials]
    assert seeds == sorted(seeds)


def scores(trial: Trial) -> ItemScores:
    """Loss falls with the logarithm of the rows; the first rows train like three times as many random ones."""
    rng = np.random.default_rng([trial.seed, len(trial.rows), *trial.rows[:3]])
    hard = np.random.default_rng(0).normal(0, 0.5, ITEMS)
    worth = len(trial.rows) * (3 if trial.rows[:3] == (0, 1, 2) else 1)
    loss = 3 + hard - 0.3 * np.log1p(worth) + rng.normal(0, 0.05, ITEMS)
    right = np.where(np.arange(ITEMS) % 3 == 0, (loss < 2).astype(float), np.nan)
    return ItemScores(tuple(map(str, range(ITEMS))), {"loss": loss, "exact_match": right})


@pytest.fixture(scope="module")
def results() -> dict:
    made = grid(methods=["lora"], units=["rows"])
    cells = made.cells()
    return {
        "pool": {"name": "pool|<b>.jsonl", "rows": N},
        "test": {"name": "test.jsonl", "items": ITEMS},
        "model": {"model": "m"},
        "seeds": [0, 1, 2],
        "cells": analyse(cells, scores, made.tokens),
        "overlaps": overlaps(cells),
    }


def cell(results: dict, selector: str, budget: int) -> dict:
    return next(c for c in results["cells"] if c["selector"] == selector and c["budget"] == budget)


def test_known_truth_is_found(results):
    good, weak = cell(results, "bm25", 10), cell(results, "less, estimated", 10)
    assert good["against_random"]["loss"]["verdict"] == "better"
    assert weak["against_random"]["loss"]["verdict"] == "tie"
    assert good["equivalent"]["low"] < 30 < good["equivalent"]["high"]
    assert good["equivalent"]["times"] == pytest.approx(3, abs=0.6)
    assert weak["equivalent"]["low"] < 10 < weak["equivalent"]["high"]
    assert good["against_none"]["loss"]["verdict"] == "better"
    mean = np.mean([scores(Trial("lora", tuple(range(10)), seed)).values["loss"].mean() for seed in range(3)])
    assert good["metrics"]["loss"]["value"] == pytest.approx(mean)
    assert good["metrics"]["exact_match"]["items"] == 20


def test_an_answer_without_a_grade_is_left_out_of_means_and_pairs():
    """Each of its own seed and model; results have no NaN, and count the items that there are."""
    missing = {("none", 0): [0], ("lora", 0): [1], ("lora", 1): [1, 2]}

    def graded(trial: Trial) -> ItemScores:
        grades = np.arange(ITEMS) % 4 + (2.0 if trial.method == "lora" else 1.0)
        grades[missing.get((trial.method, trial.seed), [])] = np.nan
        return ItemScores(tuple(map(str, range(ITEMS))), {"loss": scores(trial).values["loss"], "judge": grades})

    made = grid(methods=["lora"], units=["rows"], rankings={GOOD: {10: ranked(np.arange(N))}}, budgets=[10])
    untuned, *records = analyse(made.cells(), graded, made.tokens)
    chosen = next(record for record in records if record["selector"] == "bm25")
    good, against = chosen["metrics"]["judge"], chosen["against_none"]["judge"]
    assert (untuned["metrics"]["judge"]["items"], good["items"]) == (ITEMS - 1, ITEMS - 2)
    assert good["value"] == pytest.approx(np.delete(np.arange(ITEMS) % 4 + 2.0, [1, 2]).mean())
    assert (against["n_items"], against["value"], against["verdict"]) == (ITEMS - 3, 1.0, "better")
    json.dumps([untuned, *records], allow_nan=False)


def test_holm_counts_the_selectors_that_are_read_together(results):
    found = [cell(results, name, 10)["against_random"]["loss"] for name in ("bm25", "less, estimated")]
    raw = sorted(each["p_value"] for each in found)
    assert sorted(each["adjusted_p"] for each in found) == pytest.approx([min(2 * raw[0], 1), max(2 * raw[0], raw[1])])


def test_the_best_free_choice_and_the_exact_values_are_compared_with():
    order = np.arange(N)
    close, exact = Selector("free", "embedding-similarity"), Selector("exact", "less")
    orders = {GOOD: order, close: np.roll(order, 30), WEAK: order[::-1], exact: order}
    made = grid(
        rankings={s: {10: ranked(r)} for s, r in orders.items()}, budgets=[10], methods=["lora"], units=["rows"]
    )
    found = {r["selector"]: r for r in analyse(made.cells(), scores, made.tokens) if not r["curve"]}
    assert [found[name]["best_free"] for name in ("less, estimated", "less, exact")] == ["bm25", "bm25"]
    assert found["less, estimated"]["against_free"]["loss"]["verdict"] == "worse"
    assert found["less, exact"]["against_free"]["loss"]["verdict"] == "tie"
    assert found["less, estimated"]["against_exact"]["loss"]["verdict"] == "worse"
    assert not {"against_free", "against_exact", "best_free"} & found["bm25"].keys()
    assert "against_exact" not in found["less, exact"]


def test_overlaps(results):
    found = {(o["budget"], o["a"], o["b"]): o["share"] for o in results["overlaps"]}
    assert found[20, "bm25", "less, estimated"] == 0
    assert 0 <= found[20, "random", "bm25"] <= 1


def test_tables_show_every_figure_and_escape_names(results):
    rows = list(csv.DictReader(io.StringIO(long_table(results))))
    assert {row["seed"] for row in rows} == {"0", "1", "2"}
    wanted = {"selector": "bm25", "budget": "20", "metric": "loss", "seed": "1"}
    one = next(row for row in rows if wanted.items() <= row.items())
    assert float(one["value"]) == scores(Trial("lora", tuple(range(20)), 1)).values["loss"].mean()
    stage = {"labels": {"seconds": 61.0, "tokens": 5}}
    trials = {"number": 3, "tune": {"seconds": 1.0, "tokens": 2}, "measure": {"seconds": 1.0, "tokens": 2}}
    text = markdown(results, {"choices": {"bm25": stage}, "trials": trials})
    assert "pool\\|&lt;b>.jsonl" in text
    assert "| no tuning |" in text
    assert "better: -0.3" in text
    assert "1 min 1 s" in text
    assert "trains like" in text_table(results)


@pytest.mark.parametrize("limit", [None, float("inf")])  # JSON has null for infinity
def test_of_one_item_there_is_no_interval(limit):
    found = {"value": 1.5, "low": None if limit is None else -limit, "high": limit, "verdict": "too few items to tell"}
    assert with_interval(found) == "1.500"
    assert as_text(found) == "too few items to tell: +1.500"
