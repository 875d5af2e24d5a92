"""A run folder belongs to one config and one process."""

from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path

import pytest

from nncift.errors import ConfigError, DataError, RunError
from nncift.run.folder.folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_run_folder_belongs_to_one_config(run, tmp_path: Path):
    for _ in range(2):
        with run.open({"budget": "0.1", "seed": 0}):
            pass
    with pytest.raises(ConfigError, match=r"seed: 0 there, 1 now"):
        run.check({"budget": "0.1", "seed": 1})
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"not a run of nncift \(it holds 'run'\)"), RunFolder(tmp_path).open({}):
        pass
    with pytest.raises(RunError, match="cannot make"), RunFolder(tmp_path / "thesis.tex" / "run").open({}):
        pass


def test_a_run_refused_before_any_work_leaves_its_folder_to_another_config(run):
    def refused(config: dict, folder: Path) -> None:
        with run.open(config):
            folder.mkdir()
            (folder / "rows.json").write_text("half")
            raise DataError("row 2 is broken", "correct it")

    for config, folder in (({"skip": False}, run.samples("pool").path), ({"skip": True}, run.features.path)):
        with pytest.raises(DataError):
            refused(config, folder)
    with pytest.raises(ConfigError, match="skip: True there"), run.open({"skip": False}):
        pass


def test_a_field_that_a_stored_config_lacks_has_its_default(run):
    with run.open({"budget": "0.1"}):
        pass
    defaults = {"turns": None, "exclude": ()}
    run.check({"budget": "0.1", "turns": None, "exclude": ()}, defaults)
    with pytest.raises(ConfigError, match="turns: None there, 'all' now"):
        run.check({"budget": "0.1", "turns": "all", "exclude": ()}, defaults)


def test_a_refused_run_leaves_neither_lock_nor_folder(run):
    for made in (False, True):
        if made:
            run.path.mkdir()
        with pytest.raises(DataError), run.open({}):
            raise DataError("row 2 is broken")
        assert run.path.exists() == made
    assert list(run.path.iterdir()) == []


def test_a_log_that_a_full_disk_cuts_short_ends_nothing(run, capsys):
    with run.open({}):
        pass
    run.log.unlink()
    run.log.symlink_to("/dev/full")
    with run.open({}):
        logging.getLogger("nncift").info("a stage has ended")
    assert capsys.readouterr().err == ""


def _hold(folder: Path, held, release) -> None:
    with RunFolder(folder).open({}):
        held.set()
        release.wait(30)


def test_a_second_process_is_refused_until_the_first_is_dead(run):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(run.path, held, release))
    process.start()
    assert held.wait(30)
    with pytest.raises(RunError, match="another process is working in"), run.open({}):
        pass
    process.kill()
    process.join()
    with run.open({}):
        pass
