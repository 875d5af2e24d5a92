"""LESS and gradient similarity against the definition: one backward pass per sample, no projection."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import reasoning_gym
import torch
from datasets import Dataset

import nncift
import references
from nncift.errors import ConfigError, DataError, ModelError, RunError
from nncift.influence.gradient_similarity import GradientSimilarity
from nncift.influence.less import Less, by_task, read_tasks
from nncift.labels.collect import collect
from nncift.models.examples import encode_examples
from nncift.models.language_model import LanguageModel
from nncift.pipeline.context import make_config
from nncift.pipeline.plan import plan
from nncift.training.checkpoints import read_checkpoint, read_moments
from nncift.training.lora import Lora, adapted, adapter_weights, plain_name
from nncift.training.trainer import Training

WARM_UP = Training(lora=Lora(rank=2, alpha=8), epochs=2, learning_rate=5e-3)
WHOLE = 2**16  # more than the tiny model's adapters of rank 4 have weights: nothing is lost in the projection


def of_families(*names: str, size: int, seed: int = 0) -> Dataset:
    families = [reasoning_gym.create_dataset(name, size=size, seed=seed) for name in names]
    rows = [
        {"id": f"{name}-{k}", "prompt": sample["question"], "response": sample["answer"]}
        for name, family in zip(names, families, strict=True)
        for k, sample in enumerate(family)
    ]
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return of_families("chain_sum", "caesar_cipher", size=3)


@pytest.fixture(scope="module")
def target() -> Dataset:
    return of_families("chain_sum", "caesar_cipher", size=2, seed=9)


def expected_less(model: LanguageModel, folders: list[Path], pool: Dataset, target: Dataset, preconditioned: str):
    """LESS of the rows by its definition."""
    moments = []
    for folder in folders:
        with adapted(model, folder) as adapter:
            names = [name for name, _ in adapter.named_parameters() if ".lora_" in name]
            stored = read_moments(folder, {n: tuple(w.shape) for n, w in adapter_weights(model).items()})
        moments.append({name: stored[plain_name(name)] for name in names})
    sides = [[(e.ids, e.start) for e in encode_examples(model, rows)] for rows in (pool, target)]
    rates = [read_checkpoint(folder).learning_rate for folder in folders]
    return references.less(
        [partial(adapted, model, folder) for folder in folders], moments, rates, *sides, preconditioned
    )


class TestLess:
    @pytest.mark.parametrize("preconditioned", ["pool", "both", "no"])
    def test_equals_the_definition(self, tiny, tiny_checkpoints, pool, target, preconditioned):
        function = Less(tiny, checkpoints=tiny_checkpoints, preconditioned=preconditioned, dimension=WHOLE)
        expected = expected_less(tiny, tiny_checkpoints, pool, target, preconditioned)
        np.testing.assert_allclose(function(pool, target), expected, atol=1e-4)
        assert expected.std() > 0.01  # there was something to get wrong

    def test_equals_the_definition_on_smollm2(self, smollm2, pool, target, tmp_path):
        model = LanguageModel.load(smollm2, device="cpu")
        training = Training(lora=Lora(rank=2, alpha=8), epochs=1, learning_rate=1e-3)
        function = Less(model, training=training, dimension=2**18)
        (point,) = function.warm_up(pool, tmp_path)
        few, targets = pool.select([0, 4]), target.select([0, 2])
        found = function(few, targets)
        np.testing.assert_allclose(found, expected_less(model, [point.folder], few, targets, "pool"), atol=1e-3)
        projected = Less(model, checkpoints=[point.folder], dimension=8192)(few, targets)
        np.testing.assert_allclose(projected, found, atol=5 / np.sqrt(8192))

    def test_direction(self, tiny, tiny_checkpoints, pool, target):
        """Row i is the pool sample seen through Adam, column j the target's plain gradient: not symmetric."""
        function = Less(tiny, checkpoints=tiny_checkpoints)
        both = Dataset.from_list([*pool, *target])
        square = function(both, both)
        np.testing.assert_allclose(square[:6, 6:], function(pool, target), atol=1e-5)
        assert np.abs(square - square.T).max() > 1e-3
        plain = Less(tiny, checkpoints=tiny_checkpoints, preconditioned="no")(both, both)
        np.testing.assert_allclose(plain, plain.T, atol=1e-5)

    def test_prepare_warms_up_and_resumes(self, tiny, pool, target, tmp_path):
        first = Less(tiny, training=WARM_UP)
        first.prepare(pool, target, tmp_path)
        influence = first(pool, target)
        files = {path.relative_to(tmp_path): path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        assert {str(path.parent) for path in files} == {"less", "less-warm-up/epoch-1", "less-warm-up/epoch-2"}
        (tmp_path / "less" / "pool-2-000000.npy").unlink()  # as if killed before it was written
        again = Less(tiny, training=WARM_UP)
        again.prepare(pool, target, tmp_path)
        np.testing.assert_array_equal(again(pool, target), influence)
        for path, time in files.items():
            if path.name != "pool-2-000000.npy":
                assert (tmp_path / path).stat().st_mtime_ns == time
        fresh = Less(tiny, training=WARM_UP)
        fresh.prepare(pool, target)  # in a temporary folder
        np.testing.assert_array_equal(fresh(pool, target), influence)

    def test_nothing_is_computed_twice(self, tiny_model, pool, target, tmp_path):
        function = Less(tiny_model, training=WARM_UP, device="cpu")
        foretold = function.tokens(pool, target)
        function.prepare(pool, target, tmp_path)
        assert function.forward_tokens == foretold
        read = function.forward_tokens
        assert read == function.backward_tokens > 0
        function(pool.select([1, 0]), target)
        assert function.forward_tokens == read
        resumed = Less(tiny_model, training=WARM_UP, device="cpu")
        resumed.prepare(pool, target, tmp_path)
        resumed(pool, target)
        assert (resumed.forward_tokens, resumed.backward_tokens) == (0, 0)

    def test_warm_up_sees_the_whole_pool(self, tiny, pool, target, tmp_path):
        function = Less(tiny, training=WARM_UP)
        points = function.warm_up(pool, tmp_path / "warm-up")
        assert [point.state["samples"] for point in points] == [6, 6]
        function.prepare(pool.select([0, 1]), target, tmp_path)
        assert not (tmp_path / "less-warm-up").exists()
        given = Less(tiny, checkpoints=[point.folder for point in points])
        np.testing.assert_array_equal(function(pool.select([0, 1]), target), given(pool.select([0, 1]), target))

    def test_what_was_trained_without_a_folder_is_removed(self, tiny, pool, target):
        function = Less(tiny, training=WARM_UP)
        first = function.warm_up(pool)[0].folder
        second = function.warm_up(pool.select([0, 1]))[0].folder
        assert not first.exists()
        assert function(pool, target).shape == (6, 4)
        del function
        assert not second.exists()

    def test_collect(self, tiny, pool, target, tmp_path):
        pairs = collect(Less(tiny, training=WARM_UP), pool, target, np.array([1, 4]), np.array([0, 3]), folder=tmp_path)
        assert pairs.influence.shape == (4,)
        assert np.isfinite(pairs.influence).all()

    def test_other_samples_or_settings_in_the_folder(self, tiny, tiny_checkpoints, pool, target, tmp_path):
        Less(tiny, checkpoints=tiny_checkpoints).prepare(pool, target, tmp_path)
        for change, rows in (({"dimension": 64}, pool), ({}, pool.select([0]))):
            with pytest.raises(RunError, match="holds gradients of other samples or settings"):
                Less(tiny, checkpoints=tiny_checkpoints, **change).prepare(rows, target, tmp_path)

    def test_without_checkpoints(self, tiny, pool, target):
        with pytest.raises(ConfigError, match="less has no checkpoints yet: call prepare"):
            Less(tiny)(pool, target)

    @pytest.mark.parametrize("wrong", [{"preconditioned": "targets"}, {"dimension": 0}, {"batch_size": 0}])
    def test_options_are_checked(self, wrong):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} .*: give"):
            Less("embedded", **wrong)

    def test_a_checkpoint_that_is_not_there(self, tiny, pool, target):
        with pytest.raises(ModelError, match=r"the checkpoint '/no/such' has no adapter_config.json"):
            Less(tiny, checkpoints=["/no/such"])(pool, target)

    def test_a_gradient_that_is_not_finite_is_refused(self, tiny_model, tiny_checkpoints, pool, target):
        model = LanguageModel.load(tiny_model, device="cpu")
        token = model.encode([target[2]["response"]])[0][0]
        with torch.no_grad():
            model.model.get_input_embeddings().weight[token] = float("nan")
        with pytest.raises(DataError, match=r"the gradient of .* is not finite"):
            Less(model, checkpoints=tiny_checkpoints)(pool, target)


def test_by_task():
    influence = np.array([[1, 3, 0, 4], [5, 1, 2, 2]], np.float32)
    np.testing.assert_array_equal(by_task(influence, ["a", "a", "b", "b"]), [2, 3])
    np.testing.assert_allclose(by_task(influence, ["a", "b", "b", "b"]), [7 / 3, 5])
    for tasks in ([], ["a"] * 3):
        with pytest.raises(ConfigError, match="tasks were given for 4 targets"):
            by_task(influence, tasks)


class TestTasks:
    """LESS's own score: the mean over the targets of a task, and of those means the largest."""

    @pytest.fixture
    def of_tasks(self, target) -> Dataset:
        return target.add_column("task", ["sums", "sums", "ciphers", "ciphers"])

    def test_one_score_for_all_targets(self, tiny, tiny_checkpoints, pool, of_tasks):
        pairwise = Less(tiny, checkpoints=tiny_checkpoints)(pool, of_tasks)
        function = Less(tiny, checkpoints=tiny_checkpoints, aggregate="task")
        assert function.pointwise
        assert not Less(tiny).pointwise
        function.prepare(pool, of_tasks)
        found = function(pool, of_tasks.select([1]))
        expected = np.maximum(pairwise[:, :2].mean(axis=1), pairwise[:, 2:].mean(axis=1))
        np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)
        np.testing.assert_array_equal(function(pool, of_tasks), np.repeat(found, 4, axis=1))
        assert function(pool.select([]), of_tasks).shape == (0, 4)
        assert function.describe()["aggregate"] == "task"
        assert "aggregate" not in Less(tiny).describe()

    def test_the_task_of_a_row_that_was_read_from_a_file(self, tmp_path):
        rows = [{"question": f"q{k}", "answer": "a", "task": task} for k, task in enumerate(["x", 7, "y"])]
        path = tmp_path / "target.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert read_tasks(nncift.load_pool(path)) == read_tasks(nncift.load_pool(rows)) == ["x", "7", "y"]

    def test_what_is_missing_is_named(self, tiny, tiny_checkpoints, pool, target, of_tasks):
        function = Less(tiny, checkpoints=tiny_checkpoints, aggregate="task")
        with pytest.raises(ConfigError, match=r"needs the targets of all tasks: call prepare\(pool, target\)"):
            function(pool, of_tasks)
        with pytest.raises(DataError, match="the target 'chain_sum-0' has no task"):
            function.prepare(pool, target)
        with pytest.raises(DataError, match="the target 'chain_sum-0' has no task"):
            function.check(pool, target)
        with pytest.raises(ConfigError, match="aggregate 'mean' is not known"):
            Less(tiny, aggregate="mean")
        with pytest.raises(ModelError, match="the checkpoint '/no/such'"):
            Less(tiny, checkpoints=["/no/such"]).check(pool, target)

    def test_a_run(self, tiny_model, tiny_checkpoints, minilm, tmp_path):
        rows = [{"prompt": f"What is {i} plus {i % 5}?", "response": f"{i + i % 5}"} for i in range(50)]
        target = [{"prompt": f"Say {i}.", "response": f"{i}", "task": f"task {i % 2}"} for i in range(6)]
        folders = [str(folder) for folder in tiny_checkpoints]
        options = {"model": tiny_model, "encoder": minilm, "device": "cpu", "labels": 20, "budget": 5}
        options |= {"influence": "less", "influence_options": {"aggregate": "task", "checkpoints": folders}}
        with pytest.raises(DataError, match="has no task"):
            nncift.select(rows, output=tmp_path / "refused", **options)
        assert not (tmp_path / "refused/features").exists()
        nncift.select(rows, target=target, output=tmp_path / "run", **options)
        labels = nncift.LabelledPairs.load(tmp_path / "run/labels/labels.parquet")
        assert len(labels) == len(np.unique(labels.pool_index)) == 20  # as many scores as labels
        assert len(np.unique(labels.target_index)) == 6
        summary = json.loads((tmp_path / "run/summary.json").read_text())
        costs = json.loads((tmp_path / "run/costs.json").read_text())["stages"]["labels"]
        assert summary["labelled_pairs"] == 20
        assert summary["exact_all_pairs"]["forward_tokens"] == round(costs["forward_tokens"] * 50 / 20)


class TestGradientSimilarity:
    @pytest.fixture
    def shape(self) -> Lora:
        return Lora(rank=4, alpha=8, seed=3)

    def test_equals_the_reference(self, tiny, pool, target, shape):
        found = GradientSimilarity(tiny, adapter=shape, dimension=WHOLE)(pool, target)
        vectors = []
        with adapted(tiny, shape) as adapter:
            for example in encode_examples(tiny, Dataset.from_list([*pool, *target])):
                gradients = references.adapter_gradients(adapter, example.ids, example.start)
                vectors.append(torch.cat([gradient.flatten() for gradient in gradients.values()]).double())
        unit = torch.nn.functional.normalize(torch.stack(vectors)).numpy()
        np.testing.assert_allclose(found, unit[:6] @ unit[6:].T, atol=1e-4)

    def test_a_sample_is_most_like_its_twin_and_its_family(self, smollm2):
        pool = of_families("chain_sum", "caesar_cipher", size=2)
        target = Dataset.from_list([pool[3], *of_families("chain_sum", "caesar_cipher", size=1, seed=4)])
        influence = GradientSimilarity(smollm2, device="cpu", adapter=Lora(rank=8))(pool, target)
        assert influence[3, 0] == pytest.approx(1, abs=1e-4)
        assert (influence.argmax(axis=0)[:1] == [3]).all()
        assert influence[:2, 1].mean() > influence[2:, 1].mean()
        assert influence[2:, 2].mean() > influence[:2, 2].mean()

    def test_at_a_trained_adapter(self, tiny, tiny_checkpoints, pool, target):
        found = GradientSimilarity(tiny, adapter=str(tiny_checkpoints[0]))(pool, target)
        plain = Less(tiny, checkpoints=tiny_checkpoints[:1], preconditioned="no")(pool, target)
        np.testing.assert_array_equal(found, plain)

    def test_the_seed_draws_the_adapter_and_the_projection(self, tiny, pool, target):
        first, again, other = (GradientSimilarity(tiny, seed=seed)(pool, target) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max() > 1e-4

    def test_a_damaged_description_of_the_features(self, tiny, pool, target, tmp_path):
        function = GradientSimilarity(tiny)
        function.prepare(pool, target, tmp_path)
        (tmp_path / function.name / "samples.json").write_text("{")
        with pytest.raises(RunError, match="not valid JSON"):
            function.prepare(pool, target, tmp_path)


def test_a_run_warms_up_on_the_whole_pool(tiny_model, minilm, tmp_path, monkeypatch):
    """The labelled rows are few; the warm-up draws its fraction from all."""
    seen = []
    plain = Less.warm_up
    monkeypatch.setattr(
        Less, "warm_up", lambda self, pool, *a, **k: seen.append(len(pool)) or plain(self, pool, *a, **k)
    )
    rows = [{"prompt": f"What is {i} plus {i % 5}?", "response": f"{i + i % 5}"} for i in range(50)]
    options = {"model": tiny_model, "encoder": minilm, "device": "cpu", "labels": 60, "budget": 5}
    selection = nncift.select(rows, influence="less", output=tmp_path / "run", **options)
    assert seen == [50]
    assert len(selection.indices) == 5
    costs = json.loads((tmp_path / "run/costs.json").read_text())["stages"]["labels"]
    assert costs["backward_tokens"] > 0
    assert not (tmp_path / "run/labels/less-warm-up").exists()


def test_all_that_a_run_measures_is_by_one_adapter(tiny_model, minilm, tmp_path):
    """Labels, shortlist and what a resumed run measures anew."""
    rows = [{"prompt": f"What is {i} plus {i % 5}?", "response": f"{i + i % 5}"} for i in range(50)]
    options = {"model": tiny_model, "encoder": minilm, "device": "cpu", "budget": 4, "influence": "less", "verify": 2}
    options |= {"influence_options": {"training": {"fraction": 0.3, "epochs": 1, "learning_rate": 1e-2}}}
    runs = [tmp_path / "run", tmp_path / "unlabelled"]
    nncift.select(rows, output=runs[0], labels=60, **options)
    subset = (runs[0] / "subset.jsonl").read_bytes()
    shutil.rmtree(runs[0] / "verify")
    for name in ("subset.jsonl", "selection.parquet"):
        (runs[0] / name).unlink()
    nncift.select(rows, output=runs[0], labels=60, **options)
    assert (runs[0] / "subset.jsonl").read_bytes() == subset
    nncift.select(rows, output=runs[1], network=runs[0], **options)
    for run in runs:
        adapters = {path.parent for path in run.rglob("epoch-1") if path.is_dir()}
        assert adapters == {run / "labels/warm-up"}


def test_a_plan_counts_the_warm_up_on_the_whole_pool(tiny_model, minilm, tmp_path):
    path = tmp_path / "pool.jsonl"
    rows = [{"prompt": f"What is {i} plus {i % 5}?", "response": f"{i + i % 5}"} for i in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"model": tiny_model, "encoder": minilm, "device": "cpu", "labels": "20", "influence": "less"}
    options["influence_options"] = {"training": {"epochs": 2, "lora": {"rank": 2}}}
    planned = plan(make_config(path, **options))
    nncift.select(path, output=tmp_path / "run", **options)
    costs = json.loads((tmp_path / "run/costs.json").read_text())["stages"]["labels"]
    assert planned.tokens == costs["forward_tokens"] == costs["backward_tokens"]
    assert planned.seconds["labels"] > 0


def test_progress_while_features_are_computed(tiny, pool, target, capsys):
    function = Less(tiny, training=WARM_UP)
    function.progress = True
    function.prepare(pool, target)
    shown = capsys.readouterr().err
    assert "training, epoch 2" in shown
    assert "20/20" in shown.rpartition("less")[2]  # two checkpoints, six and four samples
    function.progress = False
    function.prepare(pool, target)
    assert capsys.readouterr().err == ""
