"""The files of a selection hold the user's rows unchanged, and give the selection back."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from datasets import Dataset

from nncift.data.pool import load_pool
from nncift.errors import ConfigError, RunError
from nncift.run.folder.folder import RunFolder
from nncift.run.storage.files import PARTIAL, read_table
from nncift.selection.certificate import Certificate
from nncift.selection.selection import Selection
from nncift.selection.served import TargetsServed

ORIGINALS = [
    '{"instruction":"Grüße 你好","output":"1.10"}',
    '{ "n" : 1.10, "big": 12345678901234567890123, "nested": {"b": [1, {"a": null}]} }',
    "{}",
    '{"half": "\\ud83d", "n": "text here, a number above"}',
    '{"nncift_rank": 99, "n": 5, "half": "\\ud83d", "text": "nncift_gain"}',
    '{\n  "pretty": "printed\\nfile"\n}',
    '{"prompt": "left out"}',
]


@pytest.fixture
def selection() -> Selection:
    pool = Dataset.from_dict({"id": [f"row-{i}" for i in range(7)], "original": ORIGINALS})
    chosen = Selection(
        indices=np.array([4, 0, 5, 1, 3, 2]),
        gains=np.array([2.5, 1 / 3, 0.25, 0.125, 0, 0]),
        value=3.2083333,
        objective="facility-location",
        objective_options={"eta": 0.5},
        served=TargetsServed(9, 6, 3, 2, 2.5, 8, 4, 3),
        certificate=Certificate(3.2083333, 4.25, 7),
    )
    return chosen.with_pool(pool, np.arange(7) / 10)


def test_original_rows_are_unchanged(selection, tmp_path):
    selection.save(tmp_path)
    lines = RunFolder(tmp_path).subset.read_text("utf-8").splitlines()
    assert len(lines) == 6
    for rank, (line, i, gain) in enumerate(zip(lines, selection.indices, selection.gains, strict=True), start=1):
        row, original = json.loads(line), json.loads(ORIGINALS[i])
        assert list(row)[-3:] == ["nncift_rank", "nncift_gain", "nncift_influence"]
        assert [row["nncift_rank"], row["nncift_gain"], row["nncift_influence"]] == [rank, gain, i / 10]
        kept = {name: value for name, value in row.items() if not name.startswith("nncift_")}
        assert list(kept.items()) == [pair for pair in original.items() if not pair[0].startswith("nncift_")]
    assert lines[1].startswith('{"instruction":"Grüße 你好","output":"1.10"')
    assert lines[3].startswith('{ "n" : 1.10, "big": 12345678901234567890123,')  # numbers keep their digits
    assert "99" not in lines[0]
    assert list(tmp_path.glob(f"{PARTIAL}*")) == []


def test_save_and_load(selection, tmp_path):
    selection.save(tmp_path)
    table = read_table(RunFolder(tmp_path).selection).to_pydict()
    assert [*table] == ["rank", "pool_index", "id", "gain", "influence"]
    assert table["rank"] == [1, 2, 3, 4, 5, 6]
    assert table["id"] == [f"row-{i}" for i in selection.indices]
    for pool in (None, selection.pool):
        loaded = Selection.load(tmp_path, pool=pool)
        assert loaded.pool is pool
        for name in ("indices", "gains", "influence", "value", "objective", "objective_options"):
            np.testing.assert_equal(getattr(loaded, name), getattr(selection, name))
        assert (loaded.served, loaded.certificate) == (selection.served, selection.certificate)
        assert loaded.indices.dtype == np.int64


def test_same_selection_same_bytes(selection, tmp_path):
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    selection.save(one)
    selection.save(two)
    assert one.selection.read_bytes() == two.selection.read_bytes()
    assert one.subset.read_bytes() == two.subset.read_bytes()


def test_dataset_columns(selection):
    dataset = selection.dataset
    assert len(dataset) == 6
    assert dataset["nncift_rank"][:] == [1, 2, 3, 4, 5, 6]
    assert dataset["instruction"][:] == [None, "Grüße 你好", None, None, None, None]
    assert dataset["n"][:] == ["5", None, None, "1.1", '"text here, a number above"', None]  # no common type: JSON text
    assert json.loads(dataset[3]["nested"]) == {"b": [1, {"a": None}]}
    assert dataset["half"][0] == '"\\ud83d"'
    assert dataset["nncift_influence"][0] == 0.4
    assert selection.dataset is dataset


PLAIN = [{"instruction": "Add", "input": "1 and 2", "output": "3"}, {"instruction": "Say no", "output": "no"}]


def subset(rows: list[dict], **options) -> Selection:
    return Selection(np.array([1, 0]), np.ones(2), 1.0).with_pool(load_pool(rows, **options))


def test_a_subset_of_a_subset_has_nothing_of_the_earlier_choice():
    stale = {"nncift_rank": 9, "nncift_weight": 3.5, "nncift_phase": 2, "nncift_difficulty": 0.1}
    chosen = subset([stale | row for row in PLAIN])
    plain = subset(PLAIN)
    assert chosen.dataset[:] == plain.dataset[:]
    weighted = dataclasses.replace(chosen, weights=np.array([1.5, 0.5])).dataset
    assert weighted["nncift_weight"][:] == [1.5, 0.5]
    assert "nncift_phase" not in weighted.column_names


def test_load_with_the_pool_of_the_run(tmp_path):
    selection = subset(PLAIN, folder=RunFolder(tmp_path).samples("pool").path)
    selection.save(tmp_path)
    assert Selection.load(tmp_path).dataset[:] == selection.dataset[:]


def test_without_influence(selection, tmp_path):
    bare = Selection(selection.indices, selection.gains, 1.0).with_pool(selection.pool)
    bare.save(tmp_path)
    assert Selection.load(tmp_path).influence is None
    assert Selection.load(tmp_path).served is None
    assert Selection.load(tmp_path).certificate is None
    assert bare.dataset["nncift_influence"][0] is None


def test_without_a_pool_or_files(selection, tmp_path):
    bare = Selection(selection.indices, selection.gains, 1.0)
    for use in (lambda: bare.save(tmp_path), lambda: bare.dataset, bare.sft_dataset):
        with pytest.raises(ConfigError, match=r"with_pool\(pool\)"):
            use()
    for pool, message in (({"id": ["a"] * 7}, "no column 'original'"), ({"original": ["{}"]}, "the pool has 1")):
        with pytest.raises(ConfigError, match=message):
            _ = selection.with_pool(Dataset.from_dict(pool)).dataset
    with pytest.raises(RunError, match=r"selection.parquet does not exist"):
        Selection.load(tmp_path)


@pytest.mark.parametrize("folder", ["", 5, None])
def test_load_from_what_is_no_folder(folder):
    with pytest.raises(RunError, match="is not a folder"):
        Selection.load(folder)
