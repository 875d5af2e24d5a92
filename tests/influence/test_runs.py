"""Whole runs with influence functions and their options, from Python, the command line and YAML."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import nncift
from builders import write_rows
from nncift.cli import main
from nncift.config import Config
from nncift.errors import ConfigError, DataError
from nncift.influence.bm25 import BM25
from nncift.influence.gradients.less import Less
from nncift.pipeline.components.influences import make_influence
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.plan import plan
from nncift.report.terminal import summary_text

pytestmark = pytest.mark.usefixtures("quick_runs")

ROWS = [{"prompt": f"What is {i} plus {i % 5}?", "response": f"{i + i % 5}"} for i in range(50)]


@pytest.fixture
def pool(tmp_path) -> Path:
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def options(tiny_model, small_encoder) -> dict:
    return {"model": tiny_model, "encoder": small_encoder, "device": "cpu", "labels": 60, "budget": 5}


def stage_costs(run: Path) -> dict:
    return json.loads((run / "costs.json").read_text())["stages"]["labels"]


@pytest.mark.parametrize("influence", ["in-run", "lossval"])
def test_a_run(influence, options, tmp_path):
    assert len(nncift.select(ROWS, influence=influence, output=tmp_path / "run", **options).indices) == 5


class TestLess:
    @pytest.fixture
    def options(self, options) -> dict:
        return options | {"influence": "less"}

    def test_a_run_warms_up_on_the_whole_pool(self, options, tmp_path, monkeypatch):
        """The labelled rows are few; the warm-up draws its fraction from all."""
        sizes, plain = [], Less.warm_up
        monkeypatch.setattr(
            Less, "warm_up", lambda self, pool, *a, **k: sizes.append(len(pool)) or plain(self, pool, *a, **k)
        )
        assert len(nncift.select(ROWS, output=tmp_path / "run", **options).indices) == 5
        assert sizes == [50]
        assert stage_costs(tmp_path / "run")["backward_tokens"] > 0
        assert not (tmp_path / "run/labels/less-warm-up").exists()

    def test_all_values_of_a_run_are_by_one_adapter(self, options, tmp_path):
        """Labels, shortlist and values that a resumed run computes again."""
        options |= {"budget": 4, "verify": 2, "keep_checkpoints": True}
        options["influence_options"] = {"training": {"fraction": 0.3, "epochs": 1, "learning_rate": 1e-2}}
        runs = [tmp_path / "run", tmp_path / "unlabelled"]
        nncift.select(ROWS, output=runs[0], **options)
        subset = (runs[0] / "subset.jsonl").read_bytes()
        shutil.rmtree(runs[0] / "verify")
        for name in ("subset.jsonl", "selection.parquet"):
            (runs[0] / name).unlink()
        nncift.select(ROWS, output=runs[0], **options)
        assert (runs[0] / "subset.jsonl").read_bytes() == subset
        nncift.select(ROWS, output=runs[1], network=runs[0], **{k: v for k, v in options.items() if k != "labels"})
        for run in runs:
            adapters = {path.parent for path in run.rglob("epoch-1") if path.is_dir()}
            assert adapters == {run / "labels/warm-up"}

    def test_checkpoints_are_removed_when_all_is_measured(self, options, tmp_path, monkeypatch):
        """A finished run that is called again trains nothing, and one that lost its shortlist ends with the same."""
        options |= {"budget": 4, "verify": 1, "output": tmp_path / "run"}
        options["influence_options"] = {"training": {"epochs": 1, "lora.rank": 2}}
        nncift.select(ROWS, **options)
        assert not list((tmp_path / "run").rglob("epoch-*"))
        subset = (tmp_path / "run/subset.jsonl").read_bytes()
        for name in ("subset.jsonl", "selection.parquet", "verify/choice/labels.parquet"):
            (tmp_path / "run" / name).unlink()
        nncift.select(ROWS, **options)
        assert (tmp_path / "run/subset.jsonl").read_bytes() == subset
        monkeypatch.setattr(Less, "warm_up", lambda *_, **__: pytest.fail("trained again"))
        nncift.select(ROWS, **options, keep_checkpoints=True)  # which is no other run

    def test_a_plan_counts_the_warm_up_on_the_whole_pool(self, options, pool, tmp_path):
        options |= {"labels": "20", "budget": "5", "influence_options": {"training": {"epochs": 2, "lora.rank": 2}}}
        planned = plan(make_config(pool, **options))
        nncift.select(pool, output=tmp_path / "run", **options)
        costs = stage_costs(tmp_path / "run")
        assert planned.tokens == costs["forward_tokens"] == costs["backward_tokens"]
        assert planned.seconds["labels"] > 0

    @pytest.mark.parametrize(("directions", "labels"), [(2, "30"), ("task", "12")])
    def test_along_directions_of_the_target(self, options, pool, tiny_checkpoints, tmp_path, directions, labels):
        target = tmp_path / "target.jsonl"
        target.write_text("".join(json.dumps({"prompt": f"Say {i}.", "response": f"{i}"}) + "\n" for i in range(6)))
        folders = [str(folder) for folder in tiny_checkpoints]
        own = {"directions": directions, "preconditioned": "both", "layers": "middle", "checkpoints": folders}
        options |= {"labels": labels, "budget": "5", "influence_options": own, "target": str(target)}
        planned = plan(make_config(pool, **options))
        nncift.select(pool, output=tmp_path / "run", **options)
        costs = stage_costs(tmp_path / "run")
        assert planned.tokens == costs["forward_tokens"] > 2 * costs["backward_tokens"] > 0
        assert planned.seconds["labels"] > 0
        if directions == "task":  # a single one: each label is a sample's score
            assert len(np.unique(nncift.LabelledPairs.load(tmp_path / "run/labels/labels.parquet").pool_index)) == 12

    def test_one_score_for_the_tasks_of_a_target(self, options, tiny_checkpoints, tmp_path):
        target = [{"prompt": f"Say {i}.", "response": f"{i}", "task": f"task {i % 2}"} for i in range(6)]
        folders = [str(folder) for folder in tiny_checkpoints]
        options |= {"labels": 20, "influence_options": {"aggregate": "task", "checkpoints": folders}}
        with pytest.raises(DataError, match="has no task"):
            nncift.select(ROWS, output=tmp_path / "refused", **options)
        assert not (tmp_path / "refused/features").exists()
        nncift.select(ROWS, target=target, output=tmp_path / "run", **options)
        labels = nncift.LabelledPairs.load(tmp_path / "run/labels/labels.parquet")
        assert len(labels) == len(np.unique(labels.pool_index)) == 20  # one score per label
        assert len(np.unique(labels.target_index)) == 6
        summary = json.loads((tmp_path / "run/summary.json").read_text())
        assert (summary["labelled_pairs"], summary["all_pairs"], summary["scored"]) == (20, len(ROWS), True)
        assert f"20 of {len(ROWS)} samples labelled" in summary_text(tmp_path / "run")
        files = [write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in (("pool", ROWS), ("target", target))]
        planned = plan(make_config(files[0], target=files[1], **options))
        assert (planned.pairs, planned.all_pairs) == (20, len(ROWS))
        assert f"Measure exactly: 20 of {len(ROWS)} samples" in str(planned)
        nncift.select(ROWS, target=target, output=tmp_path / "all", **options | {"labels": "100%"})
        tokens = stage_costs(tmp_path / "all")["forward_tokens"]  # those of the targets once
        assert summary["exact_all_pairs"]["forward_tokens"] == tokens


class TestOptions:
    def test_an_error_comes_before_any_work(self, tmp_path):
        given = {"influence": "less", "influence_options": ["trainin.epochs=1"], "output": tmp_path / "run"}
        with pytest.raises(ConfigError, match=r"did you mean 'training.epochs'"):
            nncift.select("none.jsonl", **given)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("other", [{"network": "runs/a"}, {"labels_from": "exact.parquet"}])
    def test_they_need_a_named_function(self, other):
        with pytest.raises(ConfigError, match="cannot be given with it"):
            Config("pool.jsonl", influence_options={"alpha": 1}, **other)
        with pytest.raises(ConfigError, match="give them to the object itself"):
            make_config("pool.jsonl", influence=BM25(), influence_options={"k1": 2})

    @pytest.mark.parametrize(
        "options",
        [
            ["training.epochs=2", "preconditioned=no", "checkpoints=a,b"],
            {"preconditioned": False, "training": {"epochs": 2}, "checkpoints": ("a", Path("b"))},
            {"checkpoints": ["a", "b"], "training.epochs": "2", "preconditioned": "no"},
        ],
    )
    def test_the_config_has_them_in_one_form(self, options):
        config = make_config("pool.jsonl", influence="less", influence_options=options)
        expected = {"checkpoints": ["a", "b"], "preconditioned": "no", "training": {"epochs": 2}}
        assert config.identity()["influence_options"] == expected
        with pytest.raises(ConfigError, match="both `checkpoints` and `training`"):
            make_influence(config)

    @pytest.mark.parametrize("nothing", [None, (), {}])
    def test_no_options_are_none(self, nothing):
        assert make_config("pool.jsonl", influence_options=nothing).influence_options is None

    def test_a_run_from_the_command_line_a_file_and_python(self, pool, tmp_path, capsys):
        file, folder = tmp_path / "run.yaml", tmp_path / "run"
        file.write_text(
            f"pool: {pool}\noutput: {folder}\ndevice: cpu\nbudget: '4'\n"
            "influence: bm25\ninfluence_options:\n  k1: 2\n  b: 0.5\n"
        )
        assert run("select", "--config", str(file), "--quiet") == 0
        assert json.loads((folder / "config.json").read_text())["influence_options"] == {"b": 0.5, "k1": 2.0}
        assert json.loads((folder / "function.json").read_text())["k1"] == 2.0
        given = f"select {pool} --output {folder} --device cpu --budget 4"
        given += " --influence bm25 --quiet"
        assert run(*given.split(), "--influence-option", "b=0.50", "--influence-option", "k1=2") == 0  # resumes it
        options = {"device": "cpu", "budget": 4, "influence": "bm25"}
        nncift.select(pool, output=folder, influence_options={"k1": 2, "b": "0.5"}, **options)
        with pytest.raises(ConfigError, match=r"influence_options: .*2\.0.* there, None now"):
            nncift.select(pool, output=folder, **options)
        capsys.readouterr()
        assert run(*given.split(), "--influence-option", "k=2", "--dry-run") == 2
        assert capsys.readouterr().err == "nncift: bm25 has no option 'k': did you mean 'k1'? Known: b, k1\n"

    def test_a_dry_run_takes_them(self, pool, tiny_model, small_encoder, capsys):
        given = f"select {pool} --model {tiny_model} --encoder {small_encoder} --device cpu --influence ifd"
        assert run(*given.split(), "--dry-run", "--quiet", "--influence-option", "zero_above_one=true") == 0
        assert "LLM tokens" in capsys.readouterr().out


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    return stop.value.code
