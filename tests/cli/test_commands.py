"""What commands print: dry runs, repair, reports."""

from __future__ import annotations

import pytest

from builders import called
from nncift.run.folder.folder import RunFolder
from nncift.run.storage.files import write_json

pytestmark = pytest.mark.usefixtures("quick_runs")


def test_repair_names_what_it_removed(capsys, pool, tmp_path):
    folder = tmp_path / "my run"
    with RunFolder(folder).open({}):
        write_json(folder / "summary.json", {"selected": 3})
    code, out, _ = called(capsys, "repair", folder)
    assert (code, out.startswith("Nothing is damaged: 2 files")) == (0, True)
    (folder / "summary.json").write_text("{}")
    code, _, err = called(capsys, "report", folder)
    assert code == 2
    assert f"run nncift repair '{folder}', then the same command again" in err
    code, out, _ = called(capsys, "repair", folder)
    assert (code, out) == (0, "summary.json was damaged and is removed: the same command writes it again.\n")
    assert called(capsys, "repair", tmp_path)[0] == 2


def test_a_dry_run_prints_the_plan_and_writes_nothing(capsys, pool, tiny_model, small_encoder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    arguments = [
        "--model",
        tiny_model,
        "--encoder",
        small_encoder,
        "--labels",
        "50",
        "--budget",
        "10%",
        "--device",
        "cpu",
    ]
    arguments += ["--influence", "delift"]
    code, out, err = called(capsys, "select", pool, "--output", tmp_path / "run", *arguments, "--dry-run", "--quiet")
    assert (code, err) == (0, "")
    assert "Pool: 40 samples" in out
    assert "to choose: 4, by facility-location" in out
    assert "LLM tokens" in out
    assert "of 1,600 pairs" in out
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    code, _, err = called(capsys, "select", pool, "--output", tmp_path / "run", *arguments, "--dry-run", "--quiet")
    assert code == 2
    assert "not a run of nncift" in err


def test_a_dry_run_of_what_has_run_is_planned(capsys, pool, small_encoder, tmp_path):
    command = [
        "select",
        pool,
        "--encoder",
        small_encoder,
        "--influence",
        "builders:EstimatedCosine",
        "--labels",
        "60",
        "--quiet",
    ]
    command += ["--budget", "4", "--device", "cpu", "--influence-option", "scaled=true", "--output", tmp_path / "run"]
    assert called(capsys, *command)[0] == 0
    code, _, err = called(capsys, *command, "--dry-run")
    assert (code, err) == (0, "")
    code, _, err = called(capsys, *command, "--dry-run", "--seed", "7")
    assert code == 2
    assert "seed: 0 there, 7 now" in err


def test_report_of_what_is_no_run(capsys, tmp_path):
    code, _, err = called(capsys, "report", tmp_path)
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", ""], "there is no folder ''"),
        (["report", "nowhere"], "there is no folder 'nowhere'"),
        (["demo", "--output", ""], "--output is empty"),
        (["pretrain", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["pretrain", ""], "--pool is empty"),
    ],
)
def test_what_other_commands_refuse(capsys, arguments, message):
    code, out, err = called(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
