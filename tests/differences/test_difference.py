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
from builders import EstimatedBM25, prepared, word_rows, write_rows
from nncift.cli import main
from nncift.data.composition import count_values
from nncift.data.pool import load_pool
from nncift.differences.composition import joined_counts
from nncift.differences.correlation import correlate
from nncift.differences.difference import overlap_of
from nncift.differences.pools import matched
from nncift.errors import ConfigError, RunError
from nncift.influence.bm25 import BM25
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.run.files import write_array

COMMON = 50
"""Rows that both pools have."""


def shared_letters(pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
    """Share of the target's letters that the sample has, less a half."""
    samples, targets = ([{*row["prompt"], *row["response"]} for row in rows] for rows in (pool_rows, target_rows))
    return np.array([[len(a & b) / len(b) - 0.5 for b in targets] for a in samples], np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """Two pools that share 50 rows in another order, and a target."""
    folder = tmp_path_factory.mktemp("data")
    first = [{**row, "task": ("left", "right")[i % 2]} for i, row in enumerate(word_rows(60))]
    second = [{**row, "id": f"other-{i}"} for i, row in enumerate([*first[:COMMON][::-1]])]
    more = {"prompt": "Say \x1b[31mred <script>alert(1)</script> | stone", "response": "stone river", "task": "left"}
    second += [more, *({**row, "task": "middle"} for row in word_rows(9, 200))]
    np.save(folder / "features.npy", np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32))
    np.save(folder / "targets.npy", np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32))
    sides = {"first": first, "second": second, "target": word_rows(6, 100)}
    return {name: write_rows(folder / f"{name}.jsonl", rows) for name, rows in sides.items()} | {
        name: str(folder / f"{name}.npy") for name in ("features", "targets")
    }


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Path]:
    """An exact run with a target, an estimated one of the other pool, and one that is its own target."""
    folder = tmp_path_factory.mktemp("runs")
    made = {name: folder / name for name in ("exact", "estimated", "own")}
    own = {"features": data["features"], "target_features": data["targets"], "labels": 80, "probes": 2}
    nncift.select(data["first"], target=data["target"], influence="bm25", budget=12, output=made["exact"])
    nncift.select(
        data["second"],
        target=data["target"],
        influence=shared_letters,
        budget=15,
        output=made["estimated"],
        **own,
    )
    nncift.select(data["first"], influence="bm25", budget=9, output=made["own"])
    return made


@pytest.fixture(scope="module")
def found(runs) -> nncift.RunDiff:
    return nncift.diff(runs["exact"], runs["estimated"])


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


def test_intervals_are_those_of_a_bootstrap_with_long_tails_too():
    rng = np.random.default_rng(0)
    x = rng.standard_t(6, 800)
    y = 0.6 * x + rng.standard_t(6, 800)
    found = correlate(x, y)
    draws = [rng.integers(0, 800, 800) for _ in range(400)]
    for interval, metric in ((found.pearson_interval, pearsonr), (found.spearman_interval, spearmanr)):
        low, high = np.quantile([metric(x[some], y[some])[0] for some in draws], [0.025, 0.975])
        assert interval[1] - interval[0] == pytest.approx(high - low, rel=0.25)
        assert low - 0.03 < interval[0] < interval[1] < high + 0.03


def test_correlation_of_few_equal_and_constant_values():
    values = np.arange(20.0)
    assert correlate(values[:9], values[:9]) is None
    equal = correlate(values, 2 * values)
    assert (equal.pearson, equal.spearman) == (pytest.approx(1), pytest.approx(1))
    assert all(np.isfinite([*equal.pearson_interval, *equal.spearman_interval]))
    constant = correlate(values, np.ones(20))
    assert (constant.pearson, constant.spearman) == (0, 0)


def mutual_information(influence: np.ndarray, rows: list[int], eta: float) -> float:
    positive = np.maximum(influence, 0)[rows]
    return float(positive.max(axis=0).sum() + eta * positive.max(axis=1).sum())


def test_a_subsets_value_is_that_by_the_other_runs_influence(data, runs, found):
    pool, target = load_pool(data["first"]), load_pool(data["target"])
    influence = prepared(BM25(), pool, target)(pool, target)
    prompts = {prompt: row for row, prompt in enumerate(pool["prompt"])}
    own = [prompts[prompt] for prompt, _ in texts(runs["exact"])]
    other = [prompts[prompt] for prompt, _ in texts(runs["estimated"]) if prompt in prompts]
    value = found.values[0]
    assert (value.rows, value.other_rows, value.unavailable) == (12, len(other), "")
    assert value.value == pytest.approx(mutual_information(influence, own, 6 / 12), rel=1e-5)
    assert value.value == pytest.approx(nncift.Selection.load(runs["exact"]).value, rel=1e-5)
    assert value.other_value == pytest.approx(mutual_information(influence, other, 6 / 12), rel=1e-5)
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


def called(capsys, *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        main(["diff", *map(str, arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_the_command_prints_and_writes(capsys, runs, tmp_path):
    code, out, err = called(capsys, runs["exact"], runs["estimated"], "--output", tmp_path / "diff.json", "--quiet")
    assert (code, err) == (0, "")
    for part in ("Overlap", "Only in subset 1", "Composition", "Pearson", "By the influence of run 2"):
        assert part in out
    assert json.loads((tmp_path / "diff.json").read_text())["overlap"]["common_rows"] == COMMON


def unfinished(folder: Path) -> None:
    (folder / "selection.parquet").unlink()


def damaged(folder: Path) -> None:
    path = folder / "selection.parquet"
    path.write_bytes(path.read_bytes()[:-40])


def damaged_pool(folder: Path) -> None:
    path = folder / "pool" / "samples.arrow"
    path.write_bytes(path.read_bytes()[:200])


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


def comparison(folder: Path) -> None:
    for file in folder.rglob("*.jsonl"):
        file.unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"test": {"name": "test.jsonl"}}))


def config_of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unfinished, "is not finished: run its command again"),
        (damaged, "selection.parquet"),
        (damaged_pool, "samples.arrow"),
        (emptied, "is not the folder of a run"),
        (removed, "there is no folder"),
        (comparison, "holds an evaluation or comparison"),
        (config_of_another_kind, "config.json"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_one_line_and_exit_code_2(capsys, runs, tmp_path, spoil, message):
    copy = tmp_path / "run"
    shutil.copytree(runs["own"], copy)
    spoil(copy)
    code, out, err = called(capsys, runs["own"], copy)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
