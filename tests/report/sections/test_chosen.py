"""The report on what was chosen: columns, lengths, reasons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from nncift.matrix.matrix import InfluenceMatrix
from nncift.report.files import FinishedFiles
from nncift.report.reasons import explain
from nncift.report.sections import chosen
from nncift.report.template import visible
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import Reasons
from nncift.run.storage.files import read_array
from nncift.selection.selection import Selection
from report_pages import Page, make_run, make_samples, save_samples


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
