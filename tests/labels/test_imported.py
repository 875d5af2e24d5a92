"""Imported exact influence: tables and matrices, refused ones, and a whole run from them."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nncift
from builders import named
from nncift.config import Config
from nncift.errors import ConfigError, DataError, RunError
from nncift.labels.imported import read_labels
from nncift.labels.pairs import LabelledPairs
from nncift.pipeline.plan import plan

ROWS = [("x2", "t1", 0.5), ("x0", "t0", -1.0), ("x0", "t1", 2)]


@pytest.fixture
def block():
    return named([("a", "b")] * 3, "x"), named([("c", "d")] * 2, "t")


def table(path: Path, rows=ROWS) -> Path:
    columns = dict(zip(("pool_id", "target_id", "influence"), map(list, zip(*rows, strict=True)), strict=True))
    dicts = [dict(zip(columns, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".csv":
        path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, dicts)).encode()))
    else:
        path.write_text("\n".join(map(json.dumps, dicts)))
    return path


def matrix(path: Path, values, pool_ids=("x1", "x0"), target_ids=("t1", "t0")) -> Path:
    np.save(path, np.asarray(values))
    for side, ids in (("pool", pool_ids), ("target", target_ids)):
        path.with_suffix(f".{side}_ids.json").write_text(json.dumps(ids))
    return path


@pytest.mark.parametrize("name", ["l.parquet", "l.csv", "l.jsonl", "l.jsonl.gz"])
def test_tables(block, tmp_path, name):
    pairs = read_labels(table(tmp_path / name), *block)
    assert pairs.pool_index.tolist() == [0, 0, 2]
    assert pairs.target_index.tolist() == [0, 1, 1]
    assert pairs.influence.tolist() == [-1.0, 2.0, 0.5]
    assert (pairs.pool_index.dtype, pairs.influence.dtype) == (np.int32, np.float32)


def test_a_matrix(block, tmp_path):
    pairs = read_labels(matrix(tmp_path / "m.npy", [[1.0, 2.0], [3.0, 4.0]]), *block)
    assert pairs.pool_index.tolist() == [0, 0, 1, 1]
    assert pairs.target_index.tolist() == [0, 1, 0, 1]
    assert pairs.influence.tolist() == [4.0, 3.0, 2.0, 1.0]


def test_ids_that_are_numbers(tmp_path):
    samples = named([("a", "b")] * 3, "")
    for name in ("l.parquet", "l.jsonl", "l.csv"):
        pairs = read_labels(table(tmp_path / name, [(1, 0, 0.5), (2, 1, 1.5)]), samples, samples)
        assert pairs.pool_index.tolist() == [1, 2]
    pairs = read_labels(matrix(tmp_path / "m.npy", [[1, 2]], [2], [0, "1"]), samples, samples)
    assert pairs.pool_index.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("x9", "t0", 1.0), "row 4, field 'pool_id': there is no sample 'x9' in the pool"),
        (("x0", "t9", 1.0), "row 4, field 'target_id': there is no sample 't9' in the target"),
        (("x1", "t0", None), "row 4, field 'influence': there is no value"),
        ((None, "t0", 1.0), "row 4, field 'pool_id': there is no value"),
        (("x1", "t0", float("nan")), "row 4, field 'influence': 'nan' is not a finite number"),
        (("x1", "t0", 1e300), "row 4, field 'influence': '1e+300' is not a finite number"),
        (("x0", "t0", 1.0), "row 4: this pair is also in row 2: give each once"),
    ],
)
@pytest.mark.parametrize("name", ["l.jsonl", "l.parquet"])
def test_rows_that_are_refused(block, tmp_path, row, message, name):
    with pytest.raises(DataError, match=re.escape(message)):
        read_labels(table(tmp_path / name, [*ROWS, row]), *block)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "pool_id,target_id,value\nx0,t0,1", "row 1, field 'influence': there is no value"),
        ("l.csv", "pool_id,target_id,influence\nx0,t0,much\nx1,t0,2", "'much' is not a finite number"),
        ("l.csv", "pool_id,target_id,influence\nx0,t0,\nx1,t0,2", "row 1, field 'influence': there is no value"),
        ("l.csv", "pool_id,target_id,influence\nx0,t0,1", "at least two pairs"),
        ("l.csv", None, r"l\.csv: no such file"),
        ("l.xlsx", "x", r"l\.xlsx: unknown format"),
        ("l.jsonl", "{", r"l\.jsonl, row 1: invalid JSON"),
    ],
)
def test_files_that_are_refused(block, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / name, *block)


@pytest.mark.parametrize(
    ("values", "ids", "message"),
    [
        ([[1.0, 2.0]], {}, r"expected numbers of shape \(2, 2\), as many as there are ids, found float64 \(1, 2\)"),
        ([[1.0, np.nan], [1.0, 1.0]], {}, "the influence of 'x1' on 't0' is nan"),
        ([[1.0, 1e300], [1.0, 1.0]], {}, r"the influence of 'x1' on 't0' is 1e\+300"),
        ([["a", "b"], ["c", "d"]], {}, "found <U1"),
        ([[1.0, 2.0]] * 2, {"pool_ids": ["x1", "x9"]}, r"m\.pool_ids\.json, field 'pool_id': there is no sample 'x9'"),
        ([[1.0, 2.0]] * 2, {"target_ids": ["t1", "t1"]}, r"m\.target_ids\.json: the id 't1' is listed twice"),
        ([[1.0, 2.0]] * 2, {"target_ids": {"t1": 0, "t0": 1}}, r"m\.target_ids\.json: this is not a list of ids"),
    ],
)
def test_matrices_that_are_refused(block, tmp_path, values, ids, message):
    with pytest.raises(DataError, match=message):
        read_labels(matrix(tmp_path / "m.npy", values, **ids), *block)


def test_a_matrix_without_ids_or_numbers(block, tmp_path):
    np.save(tmp_path / "m.npy", np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"m\.pool_ids\.json: the list of ids cannot be read"):
        read_labels(tmp_path / "m.npy", *block)
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="this is not an array of numbers"):
        read_labels(tmp_path / "o.npy", *block)


@pytest.mark.usefixtures("quick_runs")
class TestRun:
    @pytest.fixture
    def options(self, small_encoder, tmp_path) -> dict:
        """A pool whose even samples help every target, by imported values."""
        pool, target = tmp_path / "pool.jsonl", tmp_path / "target.jsonl"
        for path, n in ((pool, 40), (target, 6)):
            rows = [
                {"id": f"{path.stem}-{i}", "prompt": f"{'Sing of' if i % 2 else 'Add to'} {i}", "response": str(i)}
                for i in range(n)
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        labels = [(f"pool-{i}", f"target-{j}", float(i % 2 == 0) + 0.01 * j) for i in range(30) for j in range(6)]
        # The language model does not exist: none is loaded.
        given = {"labels_from": table(tmp_path / "exact.parquet", labels), "model": "./none", "budget": 4}
        return {"pool": pool, "target": target, "encoder": small_encoder, "device": "cpu", **given}

    def test_estimates_selects_and_reports(self, options, tmp_path):
        run = tmp_path / "run"
        selection = nncift.select(**options, output=run)
        assert len(selection.indices) == 4
        pairs = LabelledPairs.load(run / "labels/labels.parquet")
        assert len(pairs) == 180
        fidelity = json.loads((run / "fidelity.json").read_text())
        assert fidelity["influence"] == "exact.parquet"
        assert fidelity["quadrants"]["Q2"]["pairs"] > 0
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["labelled_pairs"], summary["exact_all_pairs"]) == (180, None)
        assert "exact.parquet" in (run / "report.html").read_text()
        again = nncift.select(**options, output=run)
        np.testing.assert_array_equal(again.indices, selection.indices)
        os.utime(options["labels_from"])  # another time alone is no change
        nncift.select(**options, output=run)
        table(options["labels_from"], [("pool-0", "target-0", 1.0), ("pool-1", "target-0", 0.0)])
        with pytest.raises(RunError, match=r"exact\.parquet has changed since this run read it"):
            nncift.select(**options, output=run)

    def test_a_file_that_is_refused_costs_nothing_else(self, options, tmp_path):
        table(options["labels_from"], [("pool-0", "target-9", 1.0)])
        with pytest.raises(DataError, match="there is no sample 'target-9' in the target"):
            nncift.select(**options, output=tmp_path / "run")
        assert not (tmp_path / "run/features").exists()
        table(options["labels_from"], [(f"pool-{i}", "target-0", float(i % 3)) for i in range(9)])
        assert len(nncift.select(**options, output=tmp_path / "run").indices) == 4  # once it is corrected

    def test_the_pool_as_its_own_target(self, options, tmp_path):
        del options["target"]
        options["labels_from"] = table(
            tmp_path / "own.csv", [(f"pool-{i}", f"pool-{j}", i * j) for i in range(9) for j in range(20, 25)]
        )
        assert len(nncift.select(**options, output=tmp_path / "run").indices) == 4

    def test_its_plan_counts_the_given_pairs(self, options):
        options = {name: str(value) for name, value in options.items()}
        planned = plan(Config(options.pop("pool"), **options))
        assert (planned.pairs, planned.tokens) == (180, None)
        assert "labels" not in planned.seconds

    @pytest.mark.parametrize("other", [{"influence": "delift"}, {"labels": 100}, {"network": "runs/a"}])
    def test_options_that_do_not_go_with_it(self, options, other):
        with pytest.raises(ConfigError, match="`labels_from` provides the exact values, so `"):
            nncift.select(**options, **other)
