"""Two finished runs compared: overlap, composition, correlation of influence, value of each subset by the other run."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import pearsonr, spearmanr

import nncift
import references
from builders import EstimatedBM25, prepared
from nncift.data.composition import count_values
from nncift.data.pool import load_pool
from nncift.differences.composition import joined_counts
from nncift.differences.difference import overlap_of
from nncift.differences.pools import matched
from nncift.errors import ConfigError, RunError
from nncift.influence.bm25 import BM25
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.run.storage.files import write_array

COMMON = 50  # rows that both pools have


def texts(run: Path) -> list[tuple[str, str]]:
    return [(row["prompt"], row["response"]) for row in rows_of(run / "subset.jsonl")]


def rows_of(file: Path | str) -> list[dict]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def test_overlap_is_that_of_the_subsets_contents(runs, found):
    first, second = ({*texts(runs[name])} for name in ("exact", "estimated"))
    overlap, alone = found.overlap, found.alone
    assert overlap.common_rows == COMMON
    assert overlap.shared == len(first & second)
    assert overlap.jaccard == pytest.approx(len(first & second) / len(first | second))
    assert overlap.expected == pytest.approx(12 / 60 * 15 / 60 * COMMON)
    assert [side.rows for side in alone] == [len(first - second), len(second - first)]
    assert {(row.prompt, row.response) for row in alone[0].examples} <= first - second
    outside = {(row["prompt"], row["response"]) for row in load_pool(str(found.runs[1].pool))} - {
        (row["prompt"], row["response"]) for row in load_pool(str(found.runs[0].pool))
    }
    assert alone[1].not_in_pool == len(second & outside)
    assert [row.rank for row in alone[1].examples] == sorted(row.rank for row in alone[1].examples)


@pytest.mark.parametrize(("n", "m", "common", "k", "size"), [(5, 4, 3, 2, 2), (4, 4, 4, 3, 2), (5, 3, 1, 4, 3)])
def test_overlap_by_chance_is_that_over_all_pairs_of_subsets(n, m, common, k, size):
    first = itertools.combinations(range(n), k)  # of 0 .. n - 1, where the first `common` rows are in both pools
    second = [{*some} for some in itertools.combinations([*range(common), *range(100, 100 + m - common)], size)]
    shared = [len(other & {*some}) for some in first for other in second]
    overlap = overlap_of(1, common, (n, m), (k, size))
    assert overlap.expected == pytest.approx(np.mean(shared))
    assert overlap.deviation == pytest.approx(np.std(shared))


def test_rows_are_matched_by_content_each_once():
    rows = [
        {"prompt": p, "response": r, "original": f"{p} {r} {k}"} for k, (p, r) in enumerate(["ab", "cd", "ab", "ef"])
    ]
    other = [rows[3], rows[0], rows[2], {**rows[0], "original": "x"}, {**rows[1], "prompt": "read otherwise"}]
    assert matched(Dataset.from_list(rows), Dataset.from_list(other)).tolist() == [3, 0, 2, -1, 1]
    assert matched(Dataset.from_list(rows), Dataset.from_list(rows)).tolist() == [0, 1, 2, 3]


def test_composition_counts_each_value(data, runs, found):
    task = next(column for column in found.columns if column.column == "task")
    for value in task.values:
        for k, (pool, run) in enumerate((("first", "exact"), ("second", "estimated"))):
            in_pool = Counter(row["task"] for row in rows_of(data[pool]))
            in_subset = Counter(row["task"] for row in rows_of(runs[run] / "subset.jsonl"))
            assert (value.pools[k], value.subsets[k]) == (in_pool[value.value], in_subset[value.value])
    assert [sum(value.subsets[k] for value in task.values) for k in (0, 1)] == [12, 15]


def test_columns_of_lists_ids_and_texts_are_left_out():
    rows = [{"id": i, "tags": [1], "long": "x" * 81, "level": i % 2 or None, "one": 1} for i in range(40)]
    pool = Dataset.from_list([{"original": json.dumps(row)} for row in rows])
    counts = count_values(pool, np.array([0, 1, 3]))
    columns = {column.column: column.values for column in joined_counts(counts, counts)}
    assert [*columns] == ["level"]
    assert {value.value: (value.pools, value.subsets) for value in columns["level"]} == {
        None: ((20, 20), (1, 1)),
        "1": ((20, 20), (2, 2)),
    }


def test_lengths_are_quantiles_in_characters(data, found):
    prompts = [len(row["prompt"]) for row in load_pool(data["first"])]
    assert found.lengths[0].text == "prompt"
    assert found.lengths[0].pools[0] == tuple(np.quantile(prompts, [0.1, 0.5, 0.9]))


def test_influence_is_correlated_over_the_common_rows(data, runs, found):
    pools = [load_pool(data[name])["prompt"] for name in ("first", "second")]
    means = [
        dict(zip(prompts, np.load(runs[name] / "influence.npy"), strict=True))
        for prompts, name in zip(pools, ("exact", "estimated"), strict=True)
    ]
    common = [prompt for prompt in pools[0] if prompt in means[1]]
    values = [[mean[prompt] for prompt in common] for mean in means]
    correlation = found.correlation
    assert correlation.rows == COMMON == len(common)
    assert correlation.pearson == pytest.approx(pearsonr(*values)[0], abs=1e-6)
    assert correlation.spearman == pytest.approx(spearmanr(*values)[0], abs=1e-6)


def test_a_subsets_value_is_that_by_the_other_runs_influence(data, runs, found):
    pool, target = load_pool(data["first"]), load_pool(data["target"])
    influence = prepared(BM25(), pool, target)(pool, target)
    prompts = {prompt: row for row, prompt in enumerate(pool["prompt"])}
    own = [prompts[prompt] for prompt, _ in texts(runs["exact"])]
    other = [prompts[prompt] for prompt, _ in texts(runs["estimated"]) if prompt in prompts]
    value = found.values[0]
    assert (value.rows, value.other_rows, value.unavailable) == (12, len(other), "")
    assert value.value == pytest.approx(references.coverage_and_ranks(influence, own), rel=1e-5)
    assert value.value == pytest.approx(nncift.Selection.load(runs["exact"]).value, rel=1e-5)
    assert value.other_value == pytest.approx(references.coverage_and_ranks(influence, other), rel=1e-5)
    assert value.share == pytest.approx(value.other_value / value.value)
    assert value.random_value < value.value
    assert value.other_mean == pytest.approx(influence.mean(axis=1)[other].mean(), rel=1e-5)


@pytest.mark.parametrize("name", ["exact", "estimated", "own"])
def test_a_finished_run_gives_its_influence_and_value_again(runs, name):
    run = FinishedRun.open(runs[name])
    matrix = run.matrix()
    np.testing.assert_allclose(matrix.row_means(), np.load(runs[name] / "influence.npy"), rtol=1e-4, atol=1e-6)
    objective = run.objective(matrix)
    for row in run.selection.indices:
        objective.add(int(row))
    assert objective.value == pytest.approx(run.selection.value, rel=1e-5)


@pytest.mark.parametrize("objective", ["graph-cut", "log-determinant"])
def test_objectives_that_compare_samples_have_values_too(data, tmp_path, objective):
    options = {"influence": "bm25", "objective": objective, "budget": 9, "output": str(tmp_path / "run")}
    options |= {"redundancy": 2} if objective == "graph-cut" else {}
    selection = nncift.select(data["first"], **options)
    value, _ = nncift.diff(tmp_path / "run", tmp_path / "run").values
    assert value.unavailable == ""
    assert value.value == pytest.approx(selection.value, rel=1e-5)


def test_the_same_run_twice(runs):
    found = nncift.diff(runs["own"], runs["own"])
    assert (found.overlap.shared, found.overlap.jaccard, found.overlap.common_rows) == (9, 1, 60)
    assert found.options == {}
    assert found.correlation.pearson == pytest.approx(1)
    assert [value.share for value in found.values] == [pytest.approx(1), pytest.approx(1)]
    assert "Only in subset" not in str(found).replace("Only in subset 1\n  0", "")


def test_the_precision_that_a_run_takes_over_is_no_difference(runs, tmp_path):
    nncift.select(from_run=runs["exact"], budget=6, output=tmp_path / "smaller")
    assert nncift.diff(runs["exact"], tmp_path / "smaller").options.keys() == {"budget", "from_run"}


def test_influence_that_cannot_be_computed_again_is_no_error(runs, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(runs["estimated"], copy)
    shutil.rmtree(copy / "features")
    value = nncift.diff(copy, runs["exact"]).values[0]
    assert value.value is value.other_value is value.share is None
    assert "features" in value.unavailable
    assert value.other_mean is not None
    assert "no value of the objective" in str(nncift.diff(copy, runs["exact"]))


def test_influence_that_comes_out_otherwise_is_refused(runs, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(runs["exact"], copy)
    write_array(copy / "influence.npy", np.load(copy / "influence.npy") + np.float32(1))  # as if by another version
    with pytest.raises(RunError, match="comes out otherwise"):
        FinishedRun.open(copy).matrix()


def test_an_object_as_influence_function_has_no_name_to_compute_by(data, tmp_path):
    class Own(EstimatedBM25):
        name, traits = "own", BM25.traits

    nncift.select(data["first"], target=data["target"], influence=Own(), budget=5, output=tmp_path / "run")
    with pytest.raises(RunError, match="given as an object"):
        FinishedRun.open(tmp_path / "run").matrix()


@pytest.mark.parametrize("suffix", ["json", "md"])
def test_it_is_written_for_machines_and_people(found, tmp_path, suffix):
    file = tmp_path / f"diff.{suffix}"
    found.save(file)
    text = file.read_text()
    if suffix == "json":
        stored = json.loads(text)
        assert stored["overlap"]["shared"] == found.overlap.shared
        assert stored["values"][0]["share"] == pytest.approx(found.values[0].share)
        assert stored["runs"][0]["selected"] == 12
    else:
        assert "## Overlap" in text
        assert "<script>" not in text
        assert "\x1b" not in text
    with pytest.raises(ConfigError, match=r"neither \.json nor \.md"):
        found.save(tmp_path / "diff.txt")


def test_hostile_texts_stay_inert_in_the_terminal(data, runs, tmp_path):
    copy = tmp_path / "evil\x1b[31m"
    shutil.copytree(runs["estimated"], copy)
    text = str(nncift.diff(runs["exact"], copy))
    assert "\x1b" not in text
    assert "\\x1b" in text
