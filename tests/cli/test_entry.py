"""The command line as a whole: help, one-line errors with exit code 2, interrupts, a full disk."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from builders import called
from nncift.cli import main
from nncift.cli.messages import as_typed

SIMILARITY = ("--influence", "builders:EstimatedCosine", "--encoder", "MINILM")


@pytest.mark.parametrize("command", ["select", "demo", "diff", "report", "repair", "influences", "doctor"])
def test_every_command_has_help_with_examples(capsys, command):
    code, out, _ = called(capsys, command, "--help")
    assert code == 0
    assert "Examples:" in out
    assert f"nncift {command}" in out


def test_help_and_version(capsys):
    code, out, _ = called(capsys, "--help")
    assert code == 0
    assert all(command in out for command in ("select", "demo", "diff", "report", "influences", "doctor", "env"))
    code, out, _ = called(capsys, "--version")
    assert (code, out.strip()) == (0, "0.1.0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0"], "--budget '0' is zero"),
        (["--budget", "41", *SIMILARITY], "--budget 41 is more than the pool's 40 samples"),
        (["--budget", "lots"], "--budget 'lots' is not an amount"),
        (["--influence", "embedding-similarity", "--encoder", "nobody/no-such-encoder"], "'nobody/no-such-encoder'"),
        (["--encoder", "MINILM", "--model", "nobody/no-such-model"], "'nobody/no-such-model'"),
        (["--influence", "delfit"], "did you mean 'delift'?"),
        (["--target", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["--buget", "3"], "Unknown option"),
        (["--seed", "one"], "--seed"),
        (["--config", "no-such.yaml"], "no-such.yaml"),
        (["--network", "no-such-run"], "no-such-run"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(capsys, pool, minilm, tmp_path, arguments, message):
    arguments = [minilm if argument == "MINILM" else argument for argument in arguments]
    code, out, err = called(
        capsys, "select", pool, "--output", tmp_path / "run", "--device", "cpu", "--quiet", *arguments
    )
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("nncift: ")
    assert message in lines[0]
    assert not list(tmp_path.rglob(".partial-*"))


def test_hostile_file_names_do_not_reach_the_terminal(capsys, tmp_path):
    code, _, err = called(capsys, "select", tmp_path / "evil\x1b[31m.jsonl", "--output", tmp_path / "run")
    assert code == 2
    assert "\x1b" not in err


def test_a_reader_that_stops_early_gets_no_traceback():
    command = f"{sys.executable} -u -m nncift influences | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "delift\n"
    assert done.stderr == ""


def test_a_bug_keeps_its_traceback(monkeypatch, pool, tmp_path):
    monkeypatch.setattr("nncift.pipeline.inputs.read.read_pool", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["select", str(pool), "--output", str(tmp_path / "run")])


def test_modules_in_the_working_folder_are_found_by_the_installed_command(tmp_path):
    (tmp_path / "mine.py").write_text("class Mine:\n    name = 'mine'\n\n    def __call__(self, pool, target): ...\n")
    script = "import sys; sys.path.remove(''); from nncift.cli import main; main()"  # as a script: its folder is first
    done = subprocess.run(
        [sys.executable, "-c", script, "influences", "mine:Mine"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_options_in_messages_areas_typed():
    for name, typed in {"skip_bad_rows": "--skip-bad-rows", "influence_options": "--influence-option"}.items():
        assert as_typed(f"give `{name}`") == f"give {typed}"
    assert as_typed("set `wrap` to 1") == "set `wrap` to 1"


def test_an_interrupt_names_the_way_to_resume(capsys, pool, minilm, tmp_path, monkeypatch):
    (tmp_path / "stop.py").write_text(
        "class Stop:\n    name = 'stop'\n    def __call__(self, pool, target):\n        raise KeyboardInterrupt\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = called(
        capsys, "select", pool, "--influence", "stop:Stop", "--encoder", minilm, "--output", tmp_path / "run", "--quiet"
    )
    assert code == 130
    assert "the same command resumes from here" in err


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(capsys, pool, minilm, tmp_path):
    """On a file system of 256 KiB, where the features do not fit."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        rows = [{"prompt": f"p{i}", "response": "r"} for i in range(300)]
        pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = f"select {pool} --output {small / 'run'} --encoder {minilm} --influence embedding-similarity"
        code, _, err = called(capsys, *given.split(), "--device", "cpu", "--quiet")
        assert code == 2, err
        assert err.startswith("nncift: no space left on the disk while writing")
        assert err.count("\n") == 1
        assert not list(small.rglob(".partial-*"))
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)  # the pool may still be mapped
