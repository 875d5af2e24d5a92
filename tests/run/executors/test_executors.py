"""Processes on this machine: the same arrays as in this process, whatever becomes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

import worker_jobs
from nncift.errors import ConfigError, DataError, RunError
from nncift.run.executors.base import LOCAL, computing_with, workers
from nncift.run.executors.processes import ProcessExecutor
from nncift.run.shards import Shards


@pytest.fixture(scope="module")
def deaths(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("deaths")


@pytest.fixture(scope="module")
def processes(deaths: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(worker_jobs.DEATHS, str(deaths))
        executor = ProcessExecutor(2, threads=1)
        with computing_with(executor):
            assert workers() is executor
            yield executor
    assert workers() is LOCAL


def compute(work, executor, folder: Path | None = None) -> np.ndarray:
    shards = Shards(10, 3, folder, "pool", ".npy")
    shards.compute(work, bar=tqdm(disable=True), executor=executor)
    return np.concatenate([arrays["values"] for arrays in shards])


def test_a_killed_process_is_replaced(processes, deaths: Path, tmp_path: Path):
    (deaths / "worker").touch()
    values = compute(worker_jobs.squares_once_killed, processes, tmp_path)
    assert not [*deaths.iterdir()]
    np.testing.assert_array_equal(values, np.square(np.arange(10)))
    assert len([*tmp_path.iterdir()]) == 4


def test_work_that_kills_every_worker_ends_in_one_line(processes, tmp_path: Path):
    with pytest.raises(RunError, match=r"died 3 times on rows \d to \d of .*pool \(SIGKILL, as when memory runs out\)"):
        compute(worker_jobs.die_on_the_second, processes, tmp_path)
    np.testing.assert_array_equal(compute(worker_jobs.squares, processes), np.square(np.arange(10)))  # it goes on


def test_the_working_folder_hides_no_module_of_the_library(tmp_path: Path, monkeypatch):
    (tmp_path / "random.py").write_text("raise RuntimeError('a file of the user')")
    monkeypatch.chdir(tmp_path)
    executor = ProcessExecutor(1, threads=1)
    try:
        np.testing.assert_array_equal(compute(worker_jobs.squares, executor), np.square(np.arange(10)))
    finally:
        executor.close()


def test_errors_of_the_work_come_back(processes):
    with pytest.raises(DataError, match=r"pool.jsonl, row \d+: cannot be used: correct it"):
        compute(worker_jobs.refuse, processes)
    with pytest.raises(ZeroDivisionError) as caught:
        compute(worker_jobs.fail, processes)
    assert "in a worker on" in caught.value.__notes__[0]
    with pytest.raises(ConfigError, match="cannot be sent to other processes"):
        compute(lambda rows: worker_jobs.squares(rows), processes)
