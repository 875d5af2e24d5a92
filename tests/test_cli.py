"""The command line: help, one-line errors with exit code 2, the plan of a run, a full disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nncift.cli import main
from nncift.cli.messages import as_typed
from nncift.pipeline.configuration.options import GROUPS
from nncift.run.files import write_json
from nncift.run.folder import RunFolder

SIMILARITY = ("--influence", "builders:EstimatedCosine", "--encoder", "MINILM")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.jsonl"
    rows = [{"prompt": f"What is {i} plus {i % 5}?", "response": f"{i + i % 5}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("command", ["select", "demo", "diff", "report", "repair", "influences", "doctor"])
def test_every_command_has_help_with_examples(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "Examples:" in out
    assert f"nncift {command}" in out


def test_help_and_version(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(command in out for command in ("select", "demo", "diff", "report", "influences", "doctor", "env"))
    code, out, _ = run(capsys, "--version")
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
    code, out, err = run(capsys, "select", pool, "--output", tmp_path / "run", "--device", "cpu", "--quiet", *arguments)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("nncift: ")
    assert message in lines[0]
    assert not list(tmp_path.rglob(".partial-*"))


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["--quota", "task=equal"], "--quota is for one run: leave it out; to compare within quotas, run"),
        (["--weights"], "--weights is for one run: add weighted to --methods instead"),
        (["--from", "runs/one"], "--from is for one run: leave it out"),
        (["--append", "new.jsonl"], "--append is for one run: leave it out"),
        (["--keep-selection"], "--keep-selection is for one run: leave it out"),
        (["--first-cut-encoder", "embedded"], "--first-cut-encoder is for one run: leave it out"),
    ],
)
def test_an_option_of_one_run_is_refused_by_compare_with_a_reason(capsys, pool, arguments, fix):
    code, out, err = run(capsys, "compare", pool, "--test", pool, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"nncift: {fix}")
    assert len(err.splitlines()) == 1


def test_hostile_file_names_do_not_reach_the_terminal(capsys, tmp_path):
    code, _, err = run(capsys, "select", tmp_path / "evil\x1b[31m.jsonl", "--output", tmp_path / "run")
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


def test_a_config_file_gives_options_and_the_command_line_overrides_them(capsys, pool, minilm, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"encoder: {minilm}\ninfluence: builders:EstimatedCosine\nlabels: '60'\nbudget: '4'\ndevice: cpu\n")
    code, out, err = run(
        capsys, "select", pool, "--config", file, "--budget", "3", "--output", tmp_path / "run", "--quiet"
    )
    assert (code, err) == (0, "")
    assert "Selected: 3 of 40 samples" in out
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["budget"], config["labels"]) == ("3", "60")


def test_repair_names_what_it_removed(capsys, pool, tmp_path):
    folder = tmp_path / "my run"
    with RunFolder(folder).open({}):
        write_json(folder / "summary.json", {"selected": 3})
    code, out, _ = run(capsys, "repair", folder)
    assert (code, out.startswith("Nothing is damaged: 2 files")) == (0, True)
    (folder / "summary.json").write_text("{}")
    code, _, err = run(capsys, "report", folder)
    assert code == 2
    assert f"run nncift repair '{folder}', then the same command again" in err
    code, out, _ = run(capsys, "repair", folder)
    assert (code, out) == (0, "summary.json was damaged and is removed: the same command writes it again.\n")
    assert run(capsys, "repair", tmp_path)[0] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budget: [1,\n", "run.yaml is not a YAML file of options"),
        ("- budget\n", "run.yaml is not a YAML file of options"),
        ("budget: !!python/object/apply:os.system ['x']\n", "run.yaml is not a YAML file of options"),
        ("[" * 5000, "run.yaml is not a YAML file of options"),
        ("1: 2\n", "has the option 1, which is not a name"),
        ("budgte: 4\n", "budgte"),
        ("seed: 1.5\n", "'1.5' is not a whole number"),
        ("batch_size: 2.0\n", "'2.0' is not a whole number"),
        ("seed: {a: 1}\n", "seed"),
        ("seed: {1: 2}\n", "no plain value for 'seed'"),
        ("target: !!set {a}\n", "no plain value for 'target'"),
        ("influence_options: {1: 2}\n", "no plain value for 'influence_options'"),
        ("exclude: [a.jsonl, null]\n", "exclude"),
        ("influence_options: 3\n", "--influence-option 3 is neither"),
        ("verify: [1]\n", "verify"),
        ("labels: true\n", "--labels 'True' is not an amount"),
        ("dtype: fp8\n", 'Choose from: "float32"'),
        ("output: ''\n", "--output is empty"),
        ("config: other.yaml\n", "names another file of options: join the files"),
    ],
)
def test_a_config_file_that_cannot_be_used(capsys, pool, tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    code, _, err = run(capsys, "select", pool, "--config", tmp_path / "run.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_null_in_a_config_file_is_the_default(capsys, pool, tmp_path):
    (tmp_path / "run.yaml").write_text("target: null\nseed: null\nexclude: null\nlabels: null\nbudget: lots\n")
    code, _, err = run(capsys, "select", pool, "--config", tmp_path / "run.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "--budget 'lots'" in err


def test_one_config_file(capsys, pool, tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    code, _, err = run(capsys, "select", pool, "--config", tmp_path / "run.yaml", f"--config={tmp_path / 'run.yaml'}")
    assert (code, err) == (2, "nncift: --config is given twice: join the files\n")


def test_help_of_select_is_grouped_and_names_the_config_file(capsys):
    _, out, _ = run(capsys, "select", "--help")
    places = [out.index(f"─ {heading} ─") for heading in GROUPS]
    assert places == sorted(places)
    assert "─ Parameters ─" not in out
    assert places[-1] < out.index("--config") < out.index("--dry-run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        (["nowhere"], "nowhere: no such file or folder, nor a hub id"),
        (["POOL", "--target", "nowhere.csv"], "nowhere.csv: no such file"),
        (["POOL", "--known", "./nowhere"], "./nowhere: no such file"),
        (["POOL", "--exclude", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["POOL", "--labels-from", "nowhere.csv"], "nowhere.csv: no such file"),
        (["POOL", "--features", "nowhere.npy"], "--features: there is no file nowhere.npy"),
        (["POOL", "--config", "nowhere.yaml"], "there is no file 'nowhere.yaml'"),
        ([""], "--pool is empty"),
        (["POOL", "--output", ""], "--output is empty"),
        (["POOL", "--seed", "1.5"], "'1.5' is not a whole number"),
    ],
)
def test_a_mistyped_path_is_refused_before_the_heavy_imports(pool, tmp_path, arguments, message):
    script = (
        "import sys, nncift.cli\n"
        "try:\n    nncift.cli.main()\n"
        "finally:\n    print([m for m in ('torch', 'transformers', 'datasets', 'numba') if m in sys.modules])"
    )
    arguments = [str(pool) if argument == "POOL" else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", script, "select", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [pool.name]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "1tok"], "less than the shortest sample has"),
        (["--budget", "10Mtok"], "is more than the pool's"),
        (["--device", "banana"], "device 'banana' cannot be used"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work_and_leaves_nothing(
    capsys, pool, minilm, tiny_model, tmp_path, arguments, message
):
    common = ["--encoder", minilm, "--model", tiny_model, "--influence", "builders:EstimatedCosine", "--quiet"]
    code, _, err = run(capsys, "select", pool, *common, "--output", tmp_path / "run", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_network_that_is_not_there(capsys, pool, tmp_path):
    for network, message in ((tmp_path / "none", "there is no folder"), (pool, "is a file")):
        code, _, err = run(capsys, "select", pool, "--network", network, "--output", tmp_path / "run")
        assert code == 2
        assert message in err


def test_an_interrupt_names_the_way_to_resume(capsys, pool, minilm, tmp_path, monkeypatch):
    (tmp_path / "stop.py").write_text(
        "class Stop:\n    name = 'stop'\n    def __call__(self, pool, target):\n        raise KeyboardInterrupt\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = run(
        capsys, "select", pool, "--influence", "stop:Stop", "--encoder", minilm, "--output", tmp_path / "run", "--quiet"
    )
    assert code == 130
    assert "the same command resumes from here" in err


def test_a_dry_run_prints_the_plan_and_writes_nothing(capsys, pool, tiny_model, minilm, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    arguments = ["--model", tiny_model, "--encoder", minilm, "--labels", "50", "--budget", "10%", "--device", "cpu"]
    arguments += ["--influence", "delift"]
    code, out, err = run(capsys, "select", pool, "--output", tmp_path / "run", *arguments, "--dry-run", "--quiet")
    assert (code, err) == (0, "")
    assert "Pool: 40 samples" in out
    assert "to choose: 4, by facility-location" in out
    assert "LLM tokens" in out
    assert "of 1,600 pairs" in out
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    code, _, err = run(capsys, "select", pool, "--output", tmp_path / "run", *arguments, "--dry-run", "--quiet")
    assert code == 2
    assert "not a run of nncift" in err


def test_a_dry_run_of_what_has_run_is_planned(capsys, pool, minilm, tmp_path):
    command = [
        "select",
        pool,
        "--encoder",
        minilm,
        "--influence",
        "builders:EstimatedCosine",
        "--labels",
        "60",
        "--quiet",
    ]
    command += ["--budget", "4", "--device", "cpu", "--influence-option", "scaled=true", "--output", tmp_path / "run"]
    assert run(capsys, *command)[0] == 0
    code, _, err = run(capsys, *command, "--dry-run")
    assert (code, err) == (0, "")
    code, _, err = run(capsys, *command, "--dry-run", "--seed", "7")
    assert code == 2
    assert "seed: 0 there, 7 now" in err


def test_report_of_what_is_no_run(capsys, tmp_path):
    code, _, err = run(capsys, "report", tmp_path)
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
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


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
        code, _, err = run(capsys, *given.split(), "--device", "cpu", "--quiet")
        assert code == 2, err
        assert err.startswith("nncift: no space left on the disk while writing")
        assert err.count("\n") == 1
        assert not list(small.rglob(".partial-*"))
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)  # the pool may still be mapped


def test_options_reach_the_run_as_they_are_typed(capsys, pool, tmp_path):
    # `Config` keeps labels 0; on its way it must not become "not given", which measures 2,000 pairs.
    np.save(tmp_path / "x.npy", np.eye(40, dtype=np.float32))
    own = ("--features", tmp_path / "x.npy", "--output", tmp_path / "run", "--quiet")
    code, _, err = run(capsys, "select", pool, "--labels", "0", *own)
    assert (code, err.count("\n")) == (2, 1)
    assert "gradient-sketch is computed exactly for every pair, so --features" in err
    code, _, err = run(capsys, "select", pool, "--labels", "0", "--network", "pretrained", *own)
    assert (code, err.count("\n")) == (2, 1)
    assert "pretrained" in err


def test_options_that_complete_those_of_an_earlier_run(capsys, pool, tmp_path):
    target = tmp_path / "target.jsonl"
    target.write_text("".join(pool.read_text().splitlines(keepends=True)[:9]))
    np.save(tmp_path / "x.npy", np.eye(40, 12, dtype=np.float32))
    np.save(tmp_path / "t.npy", np.eye(9, 12, dtype=np.float32))
    options = ("--influence", "builders:EstimatedBM25", "--labels", "60", "--features", tmp_path / "x.npy", "--quiet")
    assert run(capsys, "select", pool, *options, "--output", tmp_path / "run")[0] == 0
    more = ("--target", target, "--target-features", tmp_path / "t.npy", "--output", tmp_path / "more", "--quiet")
    code, out, err = run(capsys, "select", pool, "--from", tmp_path / "run", *more)
    assert (code, err) == (0, "")
    assert "target: other samples" in out
