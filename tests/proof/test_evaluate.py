"""Evaluations end to end on a tiny random model: files, resuming, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from builders import word_rows, write_rows
from nncift import load_pool, select
from nncift.cli import main
from nncift.cli.messages import as_typed
from nncift.errors import ConfigError, DataError, ModelError, RunError
from nncift.evaluation.datamodels import mean_losses
from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import encode_examples
from nncift.proof.evaluate import evaluate
from nncift.proof.inputs.held_out import refuse_overlap
from nncift.run.folder.repair import repair
from nncift.training.lora import adapted

pytestmark = pytest.mark.usefixtures("quick_runs")

QUICK = {"methods": "lora", "metrics": "loss", "epochs": "1"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, small_encoder: str) -> dict[str, str]:
    """A pool, a test file, a finished run, and the models."""
    folder = tmp_path_factory.mktemp("proof")
    rng = np.random.default_rng(0)
    features = folder / "features.npy"
    np.save(features, rng.normal(size=(30, 6)).astype(np.float32))
    pool = write_rows(folder / "pool.jsonl", word_rows(30))
    test = write_rows(folder / "test.jsonl", word_rows(12, offset=500))
    options = {"influence": "builders:EstimatedBM25", "labels": 60, "features": features, "model": tiny_model}
    for name, seed in (("run", 0), ("other", 1)):
        select(pool, budget=6, output=folder / name, seed=seed, **options)
    return {"folder": str(folder), "pool": pool, "test": test, "model": tiny_model, "encoder": small_encoder}


def options(places: dict[str, str], **changes) -> dict:
    given = {
        "encoder": places["encoder"],
        "methods": ["lora", "icl"],
        "metrics": ["loss"],
        "epochs": 1,
        "learning_rate": 0.02,
        "shots": 2,
    }
    given["progress"] = False
    return given | changes


@pytest.fixture(scope="module")
def evaluated(places: dict[str, str]) -> Path:
    run = Path(places["folder"], "run")
    return evaluate(
        run, test=places["test"], seeds=2, against=Path(places["folder"], "other"), **options(places)
    ).folder


def test_an_evaluation_measures_what_its_adapter_does(places, evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    assert [(m["run"], m["method"]) for m in results["models"]] == [
        *(("", "none"), ("run", "lora"), ("run", "icl"), ("against", "lora"), ("against", "icl"))
    ]
    from nncift import load_pool

    model, test = LanguageModel.load(places["model"]), load_pool(places["test"])
    examples = encode_examples(model, test, wording="chat")
    found = {(m["run"], m["method"]): m["metrics"]["loss"] for m in results["models"]}
    assert found["", "none"]["value"] == pytest.approx(mean_losses(model, examples).mean(), rel=1e-5)
    assert abs(found["run", "lora"]["value"] - found["", "none"]["value"]) > 0.01
    with adapted(model, evaluated / "adapter"):
        assert found["run", "lora"]["by_seed"]["0"] == pytest.approx(mean_losses(model, examples).mean(), rel=1e-5)
    assert found["run", "lora"]["items"] == 12
    assert (evaluated / "adapter" / "README.md").exists()
    pairs = {(tuple(c["a"]), tuple(c["b"])) for c in results["comparisons"]}
    assert (("run", "lora"), ("against", "lora")) in pairs
    assert (("run", "icl"), ("", "none")) in pairs


def test_the_same_call_resumes_with_the_same_bytes(places, evaluated, tmp_path):
    whole = (evaluated / "results.json").read_bytes()
    trials = sorted((evaluated / "trials").glob("*.parquet"))
    for path in (evaluated / "results.json", trials[0], trials[0].with_suffix(".json"), evaluated / "adapter"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = Path(places["folder"], "run")
    evaluate(run, test=places["test"], seeds=2, against=Path(places["folder"], "other"), **options(places))
    assert (evaluated / "results.json").read_bytes() == whole
    assert (evaluated / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "training.json"])
def test_the_same_call_writes_again_what_repair_removes_of_the_adapter(places, evaluated, name):
    path = evaluated / "adapter" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert repair(evaluated) == [f"adapter/{name} was damaged and is removed: the same command writes it again."]
    run = Path(places["folder"], "run")
    evaluate(run, test=places["test"], seeds=2, against=Path(places["folder"], "other"), **options(places))
    assert path.read_bytes() == whole


def test_a_model_that_was_trained_further_is_refused(places, tmp_path):
    model = Path(shutil.copytree(places["model"], tmp_path / "checkpoint"))
    given = {"encoder": places["encoder"], "methods": ["icl"], "metrics": ["loss"], "model": str(model)}
    given |= {"output": tmp_path / "out", "progress": False}
    evaluate(Path(places["folder"], "run"), test=places["test"], **given)
    weights = load_file(model / "model.safetensors")
    save_file({name: weight + 0.1 for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=r"files of the model .*checkpoint' have changed since .*out was written"):
        evaluate(Path(places["folder"], "run"), test=places["test"], **given)


def test_a_killed_evaluation_resumes(places, evaluated, tmp_path):
    call = {"test": places["test"], "output": tmp_path / "killed", "seeds": 2, **options(places)}
    run = Path(places["folder"], "run")
    child = os.fork()
    if not child:
        import nncift.proof.trials.trials as trials

        torch.set_num_threads(1)  # others are not there after a fork, and would be waited for
        measured = trials.measure
        trials.measure = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL) if k["adapter"] else measured(*a, **k)
        evaluate(run, **call)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / "killed" / "results.json").exists()
    again = evaluate(run, **call).results
    whole = evaluate(run, **(call | {"output": tmp_path / "whole"})).results
    assert again == whole
    assert not list((tmp_path / "killed" / "trials").glob("*/"))


def test_seeds_and_another_run_add_to_what_a_folder_has(places, tmp_path):
    run, other = (Path(places["folder"], name) for name in ("run", "other"))
    call = {"test": places["test"], "output": tmp_path / "out", **options(places)}
    first = evaluate(run, **call)
    begun = {path: path.stat().st_mtime_ns for path in (first.folder / "trials").glob("*.parquet")}
    more = evaluate(run, seeds=2, against=other, **call).results
    assert {path: path.stat().st_mtime_ns for path in begun} == begun
    assert (more["seeds"], set(more["sides"])) == (2, {"run", "against"})
    assert (tmp_path / "out/config.json").read_text().count('"seeds": 1') == 1  # as it was begun
    assert evaluate(run, **call).results == first.results


def test_other_options_in_one_folder_are_refused(places, evaluated):
    run, changed = Path(places["folder"], "run"), options(places) | {"epochs": 3}
    with pytest.raises(ConfigError, match=r"epochs: \d there, 3 now"):
        evaluate(run, test=places["test"], output=evaluated, **changed)


def test_a_refused_judge_leaves_no_folder(places, tmp_path):
    judge = {"judge": "m", "judge_url": "http://127.0.0.1:9/v1", "output": tmp_path / "out"}
    with pytest.raises(ModelError):
        evaluate(Path(places["folder"], "run"), test=places["test"], **judge, **options(places))
    assert not (tmp_path / "out").exists()


def test_the_columns_of_a_test_file_are_named_on_the_command_line(places, tmp_path, capsys):
    rows = [{"q": row["prompt"], "a": row["response"]} for row in word_rows(6, offset=900)]
    test = write_rows(tmp_path / "test.jsonl", [*rows, {"q": "Empty?", "a": ""}])
    call = ["evaluate", str(Path(places["folder"], "run")), "--test", test, "--output", str(tmp_path / "out")]
    call += ["--methods", "icl", "--metrics", "loss", "--quiet", "--encoder", places["encoder"]]
    with pytest.raises(SystemExit) as stop:
        main(call)
    assert stop.value.code == 2
    assert "--prompt-field" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*call, "--prompt-field", "q", "--response-field", "a", "--skip-bad-rows"])
    assert not stop.value.code
    assert json.loads((tmp_path / "out/results.json").read_text())["test"]["items"] == 6


def test_test_rows_in_the_subset_are_refused_by_name(places, tmp_path):
    run = Path(places["folder"], "run")
    subset = [json.loads(line) for line in (run / "subset.jsonl").read_text().splitlines()]
    rows = [{key: row[key] for key in ("prompt", "response")} for row in subset]
    test = write_rows(tmp_path / "test.jsonl", [*word_rows(3, offset=700), *rows[:2]])
    with pytest.raises(DataError, match=r"test.jsonl, row 4: 2 of 5 test prompts are also in the subset") as raised:
        evaluate(run, test=test, output=tmp_path / "out", **options(places))
    assert "`allow_overlap`" in str(raised.value)
    assert not (tmp_path / "out").exists()
    icl = {
        name: value
        for name, value in options(places, methods=["icl"]).items()
        if name not in ("epochs", "learning_rate")
    }
    kept = evaluate(run, test=test, output=tmp_path / "out", allow_overlap=True, **icl)
    assert kept.results["test"]["items"] == 5


def test_prompts_of_symbols_alone_are_no_overlap():
    test, chosen = (load_pool([{"id": "a", "prompt": prompt, "response": "x"}]) for prompt in ("+ - ?", "=>"))
    refuse_overlap(test, chosen, "test.jsonl")


@pytest.mark.parametrize(("asked", "trained"), [("2 * 2 =", "2 + 2 = ?"), ("C", "C++?")])
def test_prompts_that_differ_in_symbols_are_no_overlap(asked, trained):
    test, chosen = (load_pool([{"prompt": prompt, "response": "x"}]) for prompt in (asked, trained))
    refuse_overlap(test, chosen, "test.jsonl")
    with pytest.raises(DataError, match="1 of 1 test prompts"):
        refuse_overlap(test, load_pool([{"prompt": f"{asked}?", "response": "y"}]), "test.jsonl")


QUESTION, SYSTEM = {"role": "user", "content": "Why is the sky blue?"}, {"role": "system", "content": "Be brief."}
FIRST = [{"role": "user", "content": "Hello there!"}, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize("chosen", [[QUESTION], [SYSTEM, QUESTION], [*FIRST, QUESTION], None])
@pytest.mark.parametrize("asked", [[QUESTION], [SYSTEM, QUESTION], None])
def test_a_question_of_a_chat_is_an_overlap_in_any_form(chosen, asked):
    def pool(turns: list[dict] | None, answer: str) -> Dataset:
        if turns is None:
            return load_pool([{"prompt": QUESTION["content"], "response": answer}])
        return load_pool([{"messages": [*turns, {"role": "assistant", "content": answer}]}])

    with pytest.raises(DataError, match="1 of 1 test prompts are also in the subset"):
        refuse_overlap(pool(asked, "x"), pool(chosen, "y"), "test.jsonl")


def test_a_question_before_the_last_is_an_overlap_and_one_of_a_long_test_chat_is_none():
    answer = {"role": "assistant", "content": "Scattering."}
    asked_first = load_pool([{"messages": [QUESTION, answer, {"role": "user", "content": "Go on."}, answer]}])
    with pytest.raises(DataError, match="also in the subset"):
        refuse_overlap(load_pool([{"messages": [QUESTION, answer]}]), asked_first, "test.jsonl")
    other = load_pool([{"messages": [*FIRST, {"role": "user", "content": "Go on."}, answer]}])
    refuse_overlap(other, asked_first, "test.jsonl")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"test": "missing.jsonl"}, DataError, "missing.jsonl"),
        ({"methods": ["sft"]}, ConfigError, "`methods`"),
        ({"seeds": 0}, ConfigError, "`seeds` is 0"),
        ({"learning_rate": 0.0}, ConfigError, "`learning_rate`"),
        ({"judge_url": "http://localhost:1/v1"}, ConfigError, "`judge`"),
        ({"speed": 3}, ConfigError, "there is no option 'speed'"),
        ({"metrics": ["rouge"]}, ConfigError, "`metrics` rouge applies to no reference"),
    ],
)
def test_bad_options_are_one_line(places, tmp_path, changes, error, said):
    call = {"test": places["test"], "output": tmp_path / "out", **options(places)} | changes
    with pytest.raises(error, match=said) as raised:
        evaluate(Path(places["folder"], "run"), **call)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_compared_with_itself(places, tmp_path):
    run = Path(places["folder"], "run")
    with pytest.raises(ConfigError, match=r"`against` .* is the run itself") as raised:
        evaluate(run, test=places["test"], against=run / ".." / "run", output=tmp_path / "out", **options(places))
    assert as_typed(raised.value).startswith("--against ")
    assert not (tmp_path / "out").exists()


def test_phases_and_weights_of_the_run_are_two_more_trainings(places, tmp_path):
    run = Path(places["folder"], "run")
    arranged = {"from_run": run, "phases": 2, "weights": True, "difficulty": "perplexity", "output": tmp_path / "run"}
    select(places["pool"], **arranged)
    done = evaluate(tmp_path / "run", test=places["test"], **(options(places) | {"methods": []}))
    found = {m["method"]: m["metrics"]["loss"]["value"] for m in done.results["models"]}
    assert list(found) == ["none", "lora", "phased", "weighted", "icl"]
    assert len(set(found.values())) == 5
    pairs = [(c["a"][1], c["b"][1]) for c in done.results["comparisons"]]
    assert ("phased", "lora") in pairs
    assert ("weighted", "lora") in pairs
    with pytest.raises(ConfigError, match="`methods` phased needs a run with phases"):
        evaluate(run, test=places["test"], output=tmp_path / "none", methods=["phased"])
    assert not (tmp_path / "none").exists()


def test_a_folder_that_is_no_finished_run_is_refused(places, tmp_path):
    with pytest.raises(RunError, match="not the folder of a finished run"):
        evaluate(tmp_path, test=places["test"], **options(places))


def test_a_test_file_of_another_schema_is_one_line(places, tmp_path):
    test = write_rows(tmp_path / "odd.jsonl", [{"score": 3}, {"score": 4}])
    with pytest.raises(DataError, match=r"odd.jsonl"):
        evaluate(Path(places["folder"], "run"), test=test, output=tmp_path / "out", **options(places))


def test_command_line(places, evaluated, capsys, tmp_path):
    run = str(Path(places["folder"], "run"))
    flags = [part for name, value in QUICK.items() for part in (f"--{name}", value)]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", run, "--test", places["test"], *flags, "--output", str(tmp_path / "out"), "--quiet"])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "fine-tuned against as it is, response loss" in out
    assert "results.json" in out
    page = (tmp_path / "out/report.html").read_bytes()
    assert b"Training on the choice" in page
    (tmp_path / "out/report.html").unlink()
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(tmp_path / "out")])
    assert (tmp_path / "out/report.html").read_bytes() == page
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", run, "--test", places["test"], "--methods", "sft"])
    assert stop.value.code == 2
    assert "--methods" in capsys.readouterr().err
