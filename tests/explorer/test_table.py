"""The explorer's table: its columns and charts, on real runs."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import nncift
from builders import EstimatedCosine, json_objects, word_rows, write_rows
from nncift.errors import RunError
from nncift.explorer.origin import source_columns
from nncift.explorer.page import chart_columns, page_props
from nncift.explorer.space import sample_space
from nncift.explorer.table import read_facts, write_table
from nncift.pipeline.earlier_runs.finished import FinishedRun

ROWS, TARGETS = 50, 6
INSTALLED = all(importlib.util.find_spec(name) for name in ("umap", "embedding_atlas"))
needs_packages = pytest.mark.skipif(not INSTALLED, reason="the packages of the extra `explore` are not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {**row, "task": ("sums", "words")[i % 2], "level": i % 7, "Rank": i} for i, row in enumerate(word_rows(ROWS))
    ]
    rows[7] |= {"prompt": rows[3]["prompt"], "response": rows[3]["response"] + "."}  # almost the same
    sides = {"pool": rows, "target": word_rows(TARGETS, 100)}
    return {name: write_rows(folder / f"{name}.jsonl", some) for name, some in sides.items()}


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = {name: folder / name for name in ("exact", "own", "estimated", "pointwise")}
    nncift.select(data["pool"], target=data["target"], influence="bm25", budget=9, output=made["exact"])
    nncift.select(data["pool"], influence="bm25", budget=9, output=made["own"])
    own = {"labels": 80, "probes": 2, "encoder": "embedded", "features": "sentence", "near_duplicates": 0.95}
    cosine = EstimatedCosine("embedded")
    nncift.select(data["pool"], target=data["target"], influence=cosine, budget=9, output=made["estimated"], **own)
    nncift.select(data["pool"], target=data["target"], influence="random", budget=9, output=made["pointwise"])
    return made


def table_of(run: Path) -> tuple[FinishedRun, list[dict]]:
    opened = FinishedRun.open(run)
    return opened, pq.read_table(write_table(opened)).to_pylist()


@pytest.mark.parametrize("name", ["exact", "own", "estimated", "pointwise"])
def test_table_has_each_row_with_its_choice(data, runs, name):
    run, rows = table_of(runs[name])
    source = [json.loads(line) for line in Path(data["pool"]).read_text(encoding="utf-8").splitlines()]
    assert [row["row"] for row in rows] == list(range(ROWS))
    assert [(row["prompt"], row["response"]) for row in rows] == [(row["prompt"], row["response"]) for row in source]
    assert [(row["task"], row["level"]) for row in rows] == [(row["task"], row["level"]) for row in source]
    assert [row["source Rank"] for row in rows] == [row["Rank"] for row in source]
    assert [row["prompt_characters"] for row in rows] == [len(row["prompt"]) for row in source]
    ranks = dict(zip(run.selection.indices.tolist(), run.selection.ranks.tolist(), strict=True))
    gains = dict(zip(run.selection.indices.tolist(), run.selection.gains.tolist(), strict=True))
    for i, row in enumerate(rows):
        assert row["chosen"] == ("chosen" if i in ranks else "left out")
        assert (row["rank"], row["gain"]) == (ranks.get(i), gains.get(i))
        neighbours = row["__neighbours"]
        assert len(neighbours["ids"]) == len(neighbours["distances"]) == 10
        assert neighbours["distances"] == sorted(neighbours["distances"])
        assert i not in neighbours["ids"]


@pytest.mark.parametrize("name", ["exact", "own"])
def test_table_says_why(runs, name):
    run, rows = table_of(runs[name])
    matrix, space = run.matrix().rows(slice(None)).copy(), sample_space(run)
    chosen = run.selection.indices.tolist()
    texts = [f"{p} → {r}" for p, r in zip(*(run.pool[c] for c in ("prompt", "response")), strict=True)]
    for i, row in enumerate(rows):
        assert row["influence_measured"] == pytest.approx(matrix[i].mean(), rel=1e-5)
        own = matrix[i].copy()
        if name == "own":
            own[i] = 0
        best = np.sort(own)[::-1][:3]
        shown = [row[f"helps_{k}_influence"] or 0 for k in (1, 2, 3)]
        np.testing.assert_allclose(shown, best, rtol=1e-5)
        if i in chosen:
            assert row["covered_by"] is None
            left_out = [k for k in range(ROWS) if k not in chosen]
            assert row["left_out_twin_cosine"] == pytest.approx((space[left_out] @ space[i]).max(), abs=1e-6)
            assert row["left_out_twin"] == texts[row["left_out_twin_row"]]
            assert row["left_out_twin_row"] in left_out
        else:
            assert row["left_out_twin"] is None
            assert row["covered_by_row"] in chosen
            assert row["covered_by"] == texts[row["covered_by_row"]]
            if name == "own":
                assert row["covered_by_influence"] == pytest.approx(matrix[chosen, i].max(), rel=1e-5)


def test_estimated_and_measured_influence_stand_side_by_side(runs):
    run, rows = table_of(runs["estimated"])
    measured: dict[int, dict[int, float]] = {}
    for file in sorted(runs["estimated"].rglob("labels.parquet")):
        for pair in pq.read_table(file).to_pylist():
            measured.setdefault(pair["pool_index"], {})[pair["target_index"]] = pair["influence"]
    for i, row in enumerate(rows):
        values = [*measured[i].values()]
        assert row["influence_estimated"] == pytest.approx(float(run.influence[i]))
        assert row["influence_measured"] == pytest.approx(np.mean(values), abs=1e-6)
        assert row["measured_targets"] == len(values)


def test_near_duplicates_have_a_group(runs):
    lines = (runs["estimated"] / "pool" / "near_duplicates.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    _, rows = table_of(runs["estimated"])
    assert found
    groups = {entry["pool_row"]: entry["same_as"] for entry in found}
    for i, row in enumerate(rows):
        kept = row["id"] if row["id"] in groups.values() else None
        assert row["near_duplicate_group"] == groups.get(i, kept)


def test_pointwise_influence_is_explained_as_such(runs):
    run, rows = table_of(runs["pointwise"])
    assert "helps_1" not in rows[0]
    assert "alike" in read_facts(run.folder.explorer.table)["notes"][0]


def test_influence_that_cannot_be_computed_again_is_noted(runs, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(runs["exact"], copy)
    shutil.rmtree(copy / "explorer", ignore_errors=True)
    shutil.rmtree(copy / "vectors")
    run, rows = table_of(copy)
    assert "helps_1" not in rows[0]
    assert "cannot be computed again" in read_facts(run.folder.explorer.table)["notes"][0]


def test_table_is_written_once_and_again_after_a_kill_with_the_same_bytes(runs):
    run = FinishedRun.open(runs["own"])
    files = run.folder.explorer
    whole = write_table(run).read_bytes()
    stamp = files.table.stat().st_mtime_ns
    assert write_table(run).stat().st_mtime_ns == stamp
    files.table.unlink()  # as if killed after the map
    assert write_table(run).read_bytes() == whole
    files.table.write_bytes(whole[:100] + b"x" + whole[101:])  # damaged
    assert write_table(run).read_bytes() == whole
    files.map.unlink()
    files.table.unlink()
    assert write_table(run).read_bytes() == whole


def test_folder_in_use_is_left_alone(runs):
    run = FinishedRun.open(runs["exact"])
    write_table(run).unlink()
    with run.folder.locked(), pytest.raises(RunError, match="another process"):
        write_table(run)


def originals(rows: list) -> Dataset:
    return Dataset.from_dict({"original": [json.dumps(row) for row in rows]})


def test_source_columns_are_short_values_under_free_names():
    rows = [
        {"id": 1, "Chosen": i, "text": "x", "long": "y" * 100, "list": [], '"; drop': "a", "mixed": i} for i in range(3)
    ]
    rows[2] |= {"mixed": "two", "late": True}
    rows = [{**row, "large": 10**400, "part": [1.5, np.nan, -np.inf][i]} for i, row in enumerate(rows)]
    found = source_columns(originals(rows), ["chosen"], ["text"])
    assert {name: column.to_pylist() for name, column in found.items()} == {
        "source Chosen": [0, 1, 2],
        "drop": ["a", "a", "a"],
        "mixed": ["0", "1", "two"],
        "late": [None, None, "true"],
        "large": [str(10**400)] * 3,  # beyond float64
        "part": [1.5, None, None],
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(json_objects, max_size=5))
def test_source_columns_of_any_rows_have_names_that_differ(rows):
    found = source_columns(originals(rows), ["row", "__map_x"])
    names = ["row", "__map_x", *found]
    assert len({name.casefold() for name in names}) == len(names)
    assert all(len(column) == len(rows) for column in found.values())
    assert not any(name.startswith("_") or '"' in name for name in found)


@needs_packages
def test_charts_are_of_few_values_and_of_numbers():
    columns = {"task": ["a", "b"] * 20, "id": [f"x{i}" for i in range(40)], "level": [*range(40)], "same": [1] * 40}
    charts = chart_columns({name: np.array(values) for name, values in columns.items()})
    assert charts == {"counted": ["task"], "binned": ["level"]}
    state = page_props(charts)["initialState"]["charts"]
    assert [chart.get("type") for chart in state.values()][:4] == ["embedding", "predicates", "instances", "count-plot"]


@needs_packages
def test_a_few_measured_values_are_no_categories():
    columns = {"score": [0.5, 0.25] * 20, "stars": [4.0, 5.0] * 20, "left_out_twin": ["a", "b"] * 20}
    columns["left_out_twin_row"] = [3, 5] * 20
    charts = chart_columns({name: np.array(values) for name, values in columns.items()})
    assert charts == {"counted": ["stars"], "binned": ["score"]}
