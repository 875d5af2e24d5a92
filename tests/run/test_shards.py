"""Shards: stored, resumed after a kill, and computed in other processes with the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from nncift.run.executors.base import LocalExecutor
from nncift.run.shards import Shards, once_per_sample
from worker_jobs import Elsewhere, squares


def lengths(samples: list[int]) -> np.ndarray:
    return np.array(samples, np.float64)[:, None] * [1, 0.5]


@pytest.mark.parametrize(("n", "lost"), [(10, ()), (10, (1,)), (8, (0, 1)), (3, (0,))])
@pytest.mark.parametrize("executor", [LocalExecutor(), Elsewhere()])
@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".parquet"])
def test_missing_shards_are_computed_with_the_same_bytes(suffix, executor, n, lost, tmp_path: Path):
    shards, computed = Shards(n, 4, tmp_path, "pool", suffix), []

    def compute() -> dict[str, bytes]:
        with tqdm(total=n, disable=True) as bar:
            shards.compute(squares, bar=bar, after_shard=lambda: computed.append(1), executor=executor)
        np.testing.assert_array_equal(np.concatenate([found["values"] for found in shards]), np.square(np.arange(n)))
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    whole = compute()
    for number in lost:
        (tmp_path / f"pool-{number:06d}{suffix}").unlink()
    assert compute() == whole
    assert len(computed) == len(whole) + len(lost)
    other = tmp_path / f"pool.lm-000000{suffix}"
    other.touch()
    shards.drop()
    assert [*tmp_path.iterdir()] == [other]


def test_shards_in_memory_are_computed_once():
    shards, computed = Shards(5, 2, None, "pool"), []
    for _ in range(2):
        shards.compute(squares, bar=tqdm(disable=True), after_shard=lambda: computed.append(1), executor=Elsewhere())
    assert [arrays["values"].tolist() for arrays in shards] == [[0, 1], [4, 9], [16]]
    assert len(computed) == 3


def test_values_are_computed_once_per_distinct_sample(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nncift.run.shards.SHARD", 2)
    keys, asked = ["aa", "bb", "aa", "cc"], []

    def compute(samples: list[int]) -> np.ndarray:
        asked.append(samples)
        return lengths(samples)

    found = once_per_sample(keys, [0, 1, 2, 3], compute, name="f", folder=tmp_path)
    assert {key: value.tolist() for key, value in found.items()} == {"aa": [0, 0], "bb": [1, 0.5], "cc": [3, 1.5]}
    assert asked == [[0, 1], [3]]
    once_per_sample([*keys, "dd"], range(5), compute, name="f", folder=tmp_path)  # the second shard has another sample
    assert asked == [[0, 1], [3], [3, 4]]
    (tmp_path / "f-000000.safetensors").write_bytes(b"broken")
    once_per_sample(keys, range(4), compute, name="f", folder=tmp_path)  # a damaged shard is computed again
    assert asked[3:] == [[0, 1], [3]]
