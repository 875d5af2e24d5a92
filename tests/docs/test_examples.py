"""The scripts of examples/: each runs on its own data, with a tiny model, and leaves what it promises."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import nncift

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("default")  # a user's script does not turn warnings into errors


def run(name: str, *arguments: object) -> dict:
    """Run a script as `python examples/NAME` does, but in this process; what it defines."""
    scope = runpy.run_path(str(EXAMPLES / name))
    scope["main"]([str(argument) for argument in arguments])
    return scope


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_choice_for_a_task(tmp_path, tiny_model, capsys):
    run("task_target.py", "--model", tiny_model, "--output", tmp_path / "run")
    excluded = {row["prompt"] for row in rows(EXAMPLES / "data" / "test.jsonl")}
    chosen = rows(tmp_path / "run" / "subset.jsonl")
    assert len(chosen) == 12
    assert excluded.isdisjoint(row["prompt"] for row in chosen)
    out = capsys.readouterr().out
    assert "12 rows" in out
    assert "of the best possible value" in out


def test_a_choice_beside_what_was_chosen_before(tmp_path, tiny_model, capsys):
    run("continual.py", "--model", tiny_model, "--output", tmp_path)
    assert len(rows(tmp_path / "further" / "subset.jsonl")) == 8
    assert nncift.Selection.load(tmp_path / "further").objective == "facility-location-conditional-gain"
    assert "of them would be chosen without --known" in capsys.readouterr().out


def test_an_influence_function_of_ones_own(tmp_path, monkeypatch, capsys):
    scope = run("own_influence.py", "--output", tmp_path / "run")
    assert len(capsys.readouterr().out.splitlines()) == len(rows(tmp_path / "run" / "subset.jsonl")) == 6
    function = scope["CharacterNgrams"](n=2, sharpness=0.0)
    data = nncift.load_pool(str(EXAMPLES / "data" / "target.jsonl"))
    assert (function(data, data) == 1).all()
    exact = scope["CharacterNgrams"](n=3)(data, data)
    assert exact.diagonal() == pytest.approx(1, abs=1e-5)

    monkeypatch.syspath_prepend(EXAMPLES)
    named = nncift.select(
        str(EXAMPLES / "data" / "pool.jsonl"),
        target=str(EXAMPLES / "data" / "target.jsonl"),
        influence="own_influence:CharacterNgrams",
        influence_options=["n=4"],
        budget=6,
        output=str(tmp_path / "named"),
    )
    sys.modules.pop("own_influence")
    assert [row["id"] for row in rows(tmp_path / "run" / "subset.jsonl")] == named.dataset["id"][:]


def test_training_on_a_choice_with_trl(tmp_path, tiny_model, capsys):
    run("train_with_trl.py", "--model", tiny_model, "--output", tmp_path, "--budget", 4)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert "over 4 rows" in capsys.readouterr().out


def test_the_slurm_job_gives_its_arguments_to_select_on_the_cluster(tmp_path):
    stand_ins = {"scontrol": "printf 'node7\\nnode8\\n'", "srun": 'echo "$SRUN_CPUS_PER_TASK"; printf "%s\\n" "$@"'}
    for name, line in stand_ins.items():  # of Slurm's commands
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    job = {
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "12345",
        "SLURM_CPUS_ON_NODE": "6",
    }
    given = ["a pool.jsonl", "--budget", "0.1"]
    done = subprocess.run(
        ["bash", EXAMPLES / "slurm.sh", *given],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **job},
        capture_output=True,
        text=True,
        check=True,
    )
    ray = [
        "ray",
        "symmetric-run",
        "--address",
        "node7:22345",
        "--min-nodes",
        "2",
        "--num-cpus",
        "6",
        "--num-gpus",
        "0",
        "--",
    ]
    expected = ["6", *ray, "nncift", "select", *given, "--ray-address", "node7:22345"]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_training_of_the_first_page(page, tmp_path, tiny_model):
    code = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / page).read_text(encoding="utf-8"), re.DOTALL)[0]
    here = {
        '"HuggingFaceTB/SmolLM2-135M-Instruct"': repr(tiny_model),
        '"sft"': f"{str(tmp_path / 'sft')!r}, report_to='none', save_strategy='no', disable_tqdm=True",
    }
    for name in ("pool.jsonl", "alpaca.jsonl", "task.jsonl"):
        data = "target" if name == "task.jsonl" else "pool"
        here[f'"{name}"'] = repr(str(EXAMPLES / "data" / f"{data}.jsonl"))
    output = re.search(r'output="[^"]+"', code)[0]
    here[output] = f"model={tiny_model!r}, output={str(tmp_path / 'run')!r}"
    for text, other in here.items():
        code = code.replace(text, other)
    scope: dict = {}
    exec(code, scope)
    assert scope["trainer"].state.global_step > 0
