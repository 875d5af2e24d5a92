"""Options of a run on the command line and in a config file, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from builders import called
from nncift.pipeline.configuration.options import GROUPS

pytestmark = pytest.mark.usefixtures("quick_runs")


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
    code, out, err = called(capsys, "compare", pool, "--test", pool, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"nncift: {fix}")
    assert len(err.splitlines()) == 1


def test_a_config_file_gives_options_and_the_command_line_overrides_them(capsys, pool, small_encoder, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"encoder: {small_encoder}\ninfluence: builders:EstimatedCosine\nlabels: '60'\nbudget: '4'\ndevice: cpu\n"
    )
    code, out, err = called(
        capsys, "select", pool, "--config", file, "--budget", "3", "--output", tmp_path / "run", "--quiet"
    )
    assert (code, err) == (0, "")
    assert "Selected: 3 of 40 samples" in out
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["budget"], config["labels"]) == ("3", "60")


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
    code, _, err = called(capsys, "select", pool, "--config", tmp_path / "run.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_null_in_a_config_file_is_the_default(capsys, pool, tmp_path):
    (tmp_path / "run.yaml").write_text("target: null\nseed: null\nexclude: null\nlabels: null\nbudget: lots\n")
    code, _, err = called(capsys, "select", pool, "--config", tmp_path / "run.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "--budget 'lots'" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [("report: 3", "[report]"), ("select: {budget: 3}", "[select][budget]"), ("budgets: 3", "--budget")],
)
def test_names_of_commands_in_a_config_file_are_no_options(capsys, pool, tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    code, _, err = called(capsys, "select", pool, "--config", tmp_path / "run.yaml", "--output", tmp_path / "run")
    assert (code, message in err) == (2, True)
    assert not (tmp_path / "run").exists()


def test_one_config_file(capsys, pool, tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    code, _, err = called(
        capsys, "select", pool, "--config", tmp_path / "run.yaml", f"--config={tmp_path / 'run.yaml'}"
    )
    assert (code, err) == (2, "nncift: --config is given twice: join the files\n")


def test_help_of_select_is_grouped_and_names_the_config_file(capsys):
    _, out, _ = called(capsys, "select", "--help")
    places = [out.index(f"─ {heading} ─") for heading in GROUPS]
    assert places == sorted(places)
    assert "─ Parameters ─" not in out
    assert places[-1] < out.index("--config") < out.index("--dry-run")


MISTYPED = [
    (["nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
    (["nowhere"], "nowhere: no such file or folder, nor a hub id"),
    (["pool.jsonl", "--target", "nowhere.csv"], "nowhere.csv: no such file"),
    (["pool.jsonl", "--known", "./nowhere"], "./nowhere: no such file"),
    (["pool.jsonl", "--exclude", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    (["pool.jsonl", "--labels-from", "nowhere.csv"], "nowhere.csv: no such file"),
    (["pool.jsonl", "--features", "nowhere.npy"], "--features: there is no file nowhere.npy"),
    (["pool.jsonl", "--config", "nowhere.yaml"], "there is no file 'nowhere.yaml'"),
    ([""], "--pool is empty"),
    (["pool.jsonl", "--output", ""], "--output is empty"),
    (["pool.jsonl", "--seed", "1.5"], "'1.5' is not a whole number"),
]
EACH_REFUSED = """
import contextlib, io, json, sys
import nncift.cli
for arguments in json.loads(sys.argv[1]):
    code, errors = 0, io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            nncift.cli.main(["select", *arguments])
        except SystemExit as stop:
            code = stop.code
    heavy = [name for name in ("torch", "transformers", "datasets", "numba") if name in sys.modules]
    print(json.dumps([code, errors.getvalue(), heavy]))
"""


def test_a_mistyped_path_is_refused_before_the_heavy_imports(pool, tmp_path):
    given = json.dumps([arguments for arguments, _ in MISTYPED])
    done = subprocess.run(
        [sys.executable, "-c", EACH_REFUSED, given], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    for (arguments, message), (code, errors, heavy) in zip(MISTYPED, outcomes, strict=True):
        assert (code, errors.count("\n"), heavy) == (2, 1, []), arguments
        assert message in errors
    assert [path.name for path in tmp_path.iterdir()] == [pool.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "1tok"], "less than the shortest sample has"),
        (["--budget", "10Mtok"], "is more than the pool's"),
        (["--device", "banana"], "device 'banana' cannot be used"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work_and_leaves_nothing(
    capsys, pool, small_encoder, tiny_model, tmp_path, arguments, message
):
    common = ["--encoder", small_encoder, "--model", tiny_model, "--influence", "builders:EstimatedCosine", "--quiet"]
    code, _, err = called(capsys, "select", pool, *common, "--output", tmp_path / "run", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_network_that_is_not_there(capsys, pool, tmp_path):
    for network, message in ((tmp_path / "none", "there is no folder"), (pool, "is a file")):
        code, _, err = called(capsys, "select", pool, "--network", network, "--output", tmp_path / "run")
        assert code == 2
        assert message in err


def test_options_reach_the_run_as_they_are_typed(capsys, pool, tmp_path):
    # `Config` keeps labels 0; on its way it must not become "not given", which measures 2,000 pairs.
    np.save(tmp_path / "x.npy", np.eye(40, dtype=np.float32))
    own = ("--features", tmp_path / "x.npy", "--output", tmp_path / "run", "--quiet")
    code, _, err = called(capsys, "select", pool, "--labels", "0", *own)
    assert (code, err.count("\n")) == (2, 1)
    assert "gradient-sketch is computed exactly for every pair, so --features" in err
    code, _, err = called(capsys, "select", pool, "--labels", "0", "--network", "pretrained", *own)
    assert (code, err.count("\n")) == (2, 1)
    assert "pretrained" in err


def test_options_that_complete_those_of_an_earlier_run(capsys, pool, tmp_path):
    target = tmp_path / "target.jsonl"
    target.write_text("".join(pool.read_text().splitlines(keepends=True)[:9]))
    np.save(tmp_path / "x.npy", np.eye(40, 12, dtype=np.float32))
    np.save(tmp_path / "t.npy", np.eye(9, 12, dtype=np.float32))
    options = ("--influence", "builders:EstimatedBM25", "--labels", "60", "--features", tmp_path / "x.npy", "--quiet")
    assert called(capsys, "select", pool, *options, "--output", tmp_path / "run")[0] == 0
    more = ("--target", target, "--target-features", tmp_path / "t.npy", "--output", tmp_path / "more", "--quiet")
    code, out, err = called(capsys, "select", pool, "--from", tmp_path / "run", *more)
    assert (code, err) == (0, "")
    assert "target: other samples" in out
