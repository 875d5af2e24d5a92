"""What a person asks of a run, in its report: composition, reasons, trust, worth, next steps; hostile text is inert."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from comparison_results import choice, results
from nncift.matrix.matrix import InfluenceMatrix
from nncift.proof.tables import evaluation_text
from nncift.report.evaluation import evaluation_page
from nncift.report.files import FinishedFiles
from nncift.report.reasons import explain
from nncift.report.sections import chosen
from nncift.report.sections.next_steps import next_steps
from nncift.report.sections.trust import trust
from nncift.report.sections.worth import evaluated
from nncift.report.template import visible
from nncift.run.files import read_array, write_json
from nncift.run.folder import RunFolder
from nncift.run.records import Fidelity, Reasons, Summary, percent
from nncift.selection.selection import Selection
from report_pages import CONFIG, HOSTILE, Page, evaluation, make_run, make_samples, save_samples


def test_the_questions_come_in_order_and_the_machinery_is_folded(page: Page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    order = ["chosen", "groups", "lengths", "top", "trust", "verdict", "worth-it", "costs", "next", "machinery"]
    assert [name for name in ids if name in order] == order
    links = [attributes["href"][1:] for tag, attributes in page.elements if tag == "a"]
    assert {"chosen", "trust", "worth-it", "costs", "next"} <= {*links} <= {*ids}
    for name in ("configuration", "selection", "gains", "fidelity", "bottom", "data"):
        assert page.source.partition(f'id="{name}"')[2].partition(">")[2].lstrip().startswith("<details>")
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4", "h5")]
    assert levels[0] == 1
    assert all(now <= before + 1 for before, now in itertools.pairwise(levels))


@pytest.mark.parametrize(
    ("part", "text"),
    [(0.0, "0.0"), (1.0, "100.0"), (0.0123, "1.2"), (0.00123, "0.12"), (0.000052, "0.0052"), (-0.25, "\u221225.0")],
)
def test_every_percent_has_one_form(part: float, text: str):
    assert percent(part) == f"{text}\u00a0%"


def with_columns(path: Path) -> RunFolder:
    """A run of 60 samples with several columns, of which the first 15 are chosen."""
    folder = make_run(path, pool=60, target=8, chosen=15)
    for side, n in (("pool", 60), ("target", 8)):
        rows, _ = make_samples(n, seed=2)
        for i, row in enumerate(rows):
            facts = {"level": i % 3, "task": "<i>hard</i>" if i < 20 else "easy", "id": i, "tags": [1], "one": 1}
            row |= {"original": json.dumps(facts | {"long": "x" * 81, "note": None if i % 2 else "n"})}
        save_samples(folder, side, rows)
    rows, _ = make_samples(60, seed=2)
    selection = Selection(np.arange(15), np.ones(15), 15.0, "facility-location")
    selection.with_pool(Dataset.from_list(rows), read_array(folder.influence)).save(folder)
    return folder


def test_composition_by_every_column_of_few_values(tmp_path: Path):
    folder = with_columns(tmp_path)
    tables = {table["name"]: table for table in chosen.columns(FinishedFiles(folder))}
    assert list(tables) == ["task", "note", "level"]  # the one that differs most comes first
    task = tables["task"]["rows"]
    assert [(row["value"], row["chosen"], row["subset"], row["target"]) for row in task] == [
        ("<i>hard</i>", 15, 1.0, 1.0),
        ("easy", 0, 0.0, 0.0),
    ]
    assert [row["pool"] for row in task] == pytest.approx([1 / 3, 2 / 3])
    assert tables["task"]["differ"] == pytest.approx(2 / 3)
    assert {row["value"] for row in tables["note"]["rows"]} == {None, "n"}
    section = Page(folder).section("groups")
    sentence = "the subset has more <i>hard</i> (100.0 % instead of 33.3 %); less easy (0.0 % instead of 66.7 %)."
    assert sentence in section
    assert "1 more column" in section
    assert chosen.contrast(tables["level"]) == ""


def test_what_the_choice_lacks_of_the_target_is_named_and_comes_first_among_what_was_not_chosen(tmp_path: Path):
    folder = with_columns(tmp_path)
    for side, n, hard in (("pool", 60, 20), ("target", 20, 5)):
        rows, _ = make_samples(n, seed=2)
        for i, row in enumerate(rows):
            row["original"] = json.dumps(
                {"task": "hard" if i < hard else "easy" if i % 2 and side == "pool" else "odd"}
            )
        save_samples(folder, side, rows)
    (table,) = chosen.columns(FinishedFiles(folder))
    assert [(row["value"], row["chosen"]) for row in table["rows"]] == [("hard", 15), ("odd", 0), ("easy", 0)]
    assert chosen.contrast(table).endswith(" Nothing was chosen of odd (75.0\u00a0% of the target).")
    alike = {"differ": 0.0, "rows": table["rows"][1:2]}
    assert chosen.contrast(alike) == "Nothing was chosen of odd (75.0\u00a0% of the target)."


def test_lengths_are_quantiles_of_characters(run: RunFolder, page: Page):
    files = FinishedFiles(run)
    texts = files.pool["response"]
    own = [len(texts[i]) for i in files.chosen]
    found = chosen.lengths(files)[1]
    assert found["sides"]["subset"] == pytest.approx(np.quantile(own, [0.1, 0.5, 0.9]))
    assert found["sides"]["pool"] == pytest.approx(np.quantile([len(text) for text in texts], [0.1, 0.5, 0.9]))
    assert found["most"] == max(quantiles[-1] for quantiles in found["sides"].values())
    assert f"subset {found['sides']['subset'][0]:,.0f}" in page.section("lengths").partition("Responses")[2]


def test_samples_name_the_row_of_the_data_from_1(run: RunFolder, page: Page):
    files = FinishedFiles(run)
    first = files.pool[int(files.chosen[0])]
    assert chosen.lowest_samples(files)[0]["row"] == files.pool[int(np.argmin(files.influence))]["source_row"] + 1
    assert f"source row {first['source_row'] + 1:,}" in page.section("top")


def explained(folder: RunFolder, matrix: np.ndarray) -> Reasons:
    return explain(folder, InfluenceMatrix.from_array(matrix.astype(np.float32)), Selection.load(folder.path))


@pytest.mark.parametrize("has_target", [True, False])
def test_reasons_are_the_targets_helped_most_and_the_twin_left_out(tmp_path: Path, has_target: bool):
    folder = make_run(tmp_path, pool=60, target=7 if has_target else 0, chosen=25)
    matrix = np.random.default_rng(0).normal(size=(60, 7 if has_target else 60))
    reasons, files = explained(folder, matrix), FinishedFiles(folder)
    assert (reasons.among, reasons.left_out, len(reasons.samples)) == (35, 35, 20)
    assert Reasons.load(folder.reasons) == reasons
    features = np.asarray(files.features, dtype=np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rest = [i for i in range(60) if i not in set(files.chosen.tolist())]
    for row in files.chosen[:20].tolist():
        helped = sorted((j for j in range(matrix.shape[1]) if has_target or j != row), key=lambda j: -matrix[row, j])
        assert [j for j, _ in reasons.samples[str(row)]["targets"]] == [j for j in helped[:3] if matrix[row, j] > 0]
        twin, cosine = reasons.samples[str(row)]["twin"]
        assert twin == max(rest, key=lambda i: float(features[row] @ features[i]))
        assert cosine == pytest.approx(float(features[row] @ features[twin]), abs=1e-4)
    page = Page(folder)
    first = reasons.samples[str(files.chosen[0])]
    texts = (files.pool if not has_target else files.target)[first["targets"][0][0]]
    assert f"( {visible(texts['id'])} , influence" in page.section("top")
    assert f"( {visible(files.pool[first['twin'][0]]['id'])} , cosine {first['twin'][1]:.2f}" in page.section("top")


def test_reasons_where_one_score_holds_for_all_targets_or_there_are_no_features(tmp_path: Path):
    folder = make_run(tmp_path, pool=60, target=7, chosen=25)
    scores = np.broadcast_to(np.arange(60.0)[:, None], (60, 7)).copy()
    assert not any(one["targets"] for one in explained(folder, scores).samples.values())
    folder.features.array("pool").unlink()
    assert all(one["twin"] is None for one in explained(folder, scores).samples.values())


def test_of_many_samples_left_out_the_most_influential_are_compared(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nncift.report.reasons._BYTES", 4 * 32 * 5)
    folder = make_run(tmp_path, pool=60, target=7, chosen=25)
    reasons, files = explained(folder, np.random.default_rng(0).normal(size=(60, 7))), FinishedFiles(folder)
    influence = read_array(folder.influence)
    rest = sorted(set(range(60)) - set(files.chosen.tolist()), key=lambda i: -influence[i])
    assert {one["twin"][0] for one in reasons.samples.values()} <= set(rest[:5])
    assert "among the 5 of 35 samples left out" in Page(folder).section("top")


def with_correlation(folder: RunFolder, value: float, **changes: Any) -> None:
    fidelity = Fidelity.load(folder.fidelity)
    name = "subset_sum_correlation_within_target"
    fidelity.quadrants["Q2"]["methods"]["network"][name] = value
    fidelity.quadrants["Q2"]["intervals"] = {"network": {name: [value - 0.1, value + 0.1]}}
    dataclasses.replace(fidelity, judged_by=name, **changes).save(folder.fidelity)


@pytest.mark.parametrize(
    ("value", "outcome", "short", "plain"),
    [
        (0.85, "better than", "mostly: r = 0.85", "rely on them"),
        (0.5, "better than", "partly: r = 0.50", "not for a single sample"),
        (0.2, "better than", "hardly: r = 0.20", "verify the choice"),
        (0.2, "not better than", "no better than without labels", "What needs no labels predicts as well"),
        (0.9, "too few samples to tell", "too few samples to tell", "More labelled samples are needed"),
    ],
)
def test_trust_in_one_plain_sentence(tmp_path: Path, value: float, outcome: str, short: str, plain: str):
    folder = make_run(tmp_path)
    with_correlation(folder, value, outcome=outcome)
    found = trust(FinishedFiles(folder))
    assert found.short == short
    assert plain in found.sentence
    (figure,) = found.figures
    assert (figure.name, figure.value) == (
        "Subset-sum correlation within target",
        f"{value:.2f} [{value - 0.1:.2f}, {value + 0.1:.2f}]",
    )
    assert "on 42 new pool samples; 1 is perfect. The best baseline, target mean, has 0." in figure.meaning
    shown = Page(folder)
    assert plain in shown.section("verdict")
    assert figure.value in shown.text


def test_trust_in_exact_influence_and_in_random_rows(tmp_path: Path):
    folder = make_run(tmp_path, exact="gradient-sketch", exact_all_pairs=None, warnings=[])
    folder.fidelity.unlink()
    found = trust(FinishedFiles(folder))
    assert (found.mark, found.short, found.headline) == ("good", "exact influence", "Influence is exact for every pair")
    dataclasses.replace(Summary.load(folder.summary), exact="random").save(folder.summary)
    assert trust(FinishedFiles(folder)).headline == "These rows were drawn at random"


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


def test_a_tie_of_an_evaluation_whose_interval_leaves_out_0_is_explained():
    facts = {"model": {"model": "org/model"}, "tuning": {"epochs": 3, "modules": ["all-linear"]}}
    found = evaluation("tie", **facts)  # its interval is [-0.3, -0.2]
    note = "while the verdict allows for all 3 comparisons made together"
    assert note in evaluation_page(found)
    assert note in evaluation_text(found).splitlines()[-1]
    assert note not in evaluation_page(evaluation("better", **facts))


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


def steps(folder: RunFolder, gains: dict[str, Any] | None = None) -> dict[str, tuple[str, ...]]:
    files = FinishedFiles(folder)
    return {step.question: step.commands for step in next_steps(files, [], gains)}


def test_the_commands_that_come_next_are_filled_in_and_can_be_typed(tmp_path: Path, parsed: Callable):
    folder = make_run(tmp_path / "my run")
    found = steps(folder)
    assert len(found) == 3
    (select, evaluate), (verify,), (compare,) = found.values()
    path = str(folder.path)
    assert shlex.split(select) == [
        *("nncift", "select", "--from", path, "--influence", "random", "--output", f"{path}-random")
    ]
    assert f"--against '{path}-random' --seeds 3" in evaluate
    assert "--verify 2" in verify
    assert shlex.split(compare)[2] == CONFIG["pool"]
    for line in (select, evaluate, verify, compare):
        parsed(shlex.split(line)[1:])
    section = Page(folder).section("next-steps")
    assert visible(select) in section
    assert visible(f"nncift explore {shlex.quote(str(folder.path))}") in section


@pytest.fixture
def parsed() -> Callable:
    """Binds a command line to its command, without running it."""
    from nncift.cli import app

    return lambda tokens: app.parse_args(tokens, exit_on_error=False, print_error=False)


def test_the_next_steps_follow_from_what_the_run_lacks(tmp_path: Path, parsed: Callable):
    folder = make_run(tmp_path, good=False)
    with_correlation(folder, 0.1, outcome="not better than")
    assert any("--influence gradient-sketch" in one for commands in steps(folder).values() for one in commands)
    with_correlation(folder, 0.1, outcome="too few samples to tell")
    assert any("--labels 300" in one for commands in steps(folder).values() for one in commands)  # of 300 pairs
    folder.fidelity.unlink()
    assert any("--labels 2000" in one for commands in steps(folder).values() for one in commands)
    dataclasses.replace(Summary.load(folder.summary), exact="gradient-sketch").save(folder.summary)
    flat, steep = ({"flattens": flattens, "rank": 4} for flattens in (True, False))
    fewer, more = (" ".join(line for lines in steps(folder, g).values() for line in lines) for g in (flat, steep))
    assert "--budget 4 " in fewer
    assert "--budget 12 " in more
    for commands in steps(folder, flat).values():
        for line in commands:
            parsed(shlex.split(line)[1:])


def test_of_data_in_memory_the_next_steps_are_python(tmp_path: Path):
    folder = make_run(tmp_path)
    write_json(folder.config, CONFIG | {"pool": "dataset 0123456789", "target": "dataset 987"})
    first = next(iter(steps(folder).values()))[0]
    start = f"nncift.select(pool, target=target, from_run={str(folder.path)!r}, influence='random', output="
    assert first.startswith(start)


def test_the_page_of_ten_thousand_rows_is_small(tmp_path: Path):
    folder = make_run(tmp_path, pool=10_000, target=200, chosen=1000)
    assert len(Page(folder).source) < 3_000_000
