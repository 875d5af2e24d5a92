"""LESS and gradient similarity against the definition: one backward pass per sample, no projection."""

from __future__ import annotations

import json
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

import nncift
import references
from builders import families
from nncift.errors import ConfigError, DataError, ModelError
from nncift.influence.gradients.gradient_similarity import GradientSimilarity
from nncift.influence.gradients.less import Less
from nncift.influence.gradients.target_tasks import by_task, read_tasks
from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import encode_examples
from nncift.training.checkpoints import read_checkpoint, read_moments
from nncift.training.lora import Lora, adapted, adapter_weights, plain_name
from nncift.training.trainer import Training

WARM_UP = Training(lora=Lora(rank=2, alpha=8), epochs=2, learning_rate=5e-3)
WHOLE = 2**16  # more than the weights of the tiny model's adapters of rank 4: no projection


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return families("chain_sum", "caesar_cipher", size=3).remove_columns("task")


@pytest.fixture(scope="module")
def target() -> Dataset:
    return families("chain_sum", "caesar_cipher", size=2, seed=9).remove_columns("task")


def expected_less(
    model: LanguageModel, folders: list[Path], pool: Dataset, target: Dataset, preconditioned: str, within: str = ""
):
    """LESS by its definition, of the weights with `within` in their name."""
    moments = []
    for folder in folders:
        with adapted(model, folder) as adapter:
            names = [name for name, _ in adapter.named_parameters() if ".lora_" in name and within in name]
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
        assert expected.std() > 0.01  # not trivially equal

    def test_one_pass_of_a_target_gives_it_as_a_pool_sample_too(self, fresh, tiny, tiny_checkpoints, pool, target):
        function = Less(fresh, checkpoints=tiny_checkpoints, dimension=WHOLE)
        function.prepare(pool, target)
        tokens = function.tokens(pool, target)
        expected = expected_less(tiny, tiny_checkpoints, target, target, "pool")
        np.testing.assert_allclose(function(target, target), expected, atol=1e-4)
        assert function.forward_tokens == function.backward_tokens == tokens

    def test_of_a_layer_equals_the_definition(self, tiny, tiny_checkpoints, pool, target):
        """A projection of the layer's gradients alone, as if the adapter had no others."""
        given = {"checkpoints": tiny_checkpoints[1:], "dimension": WHOLE}
        alone = [expected_less(tiny, tiny_checkpoints[1:], pool, target, "both", f".layers.{k}.") for k in (0, 1)]
        for k, layers in ((0, [0]), (1, "last:1"), (1, "middle"), (1, (1,))):
            found = Less(tiny, layers=layers, preconditioned="both", **given)(pool, target)
            np.testing.assert_allclose(found, alone[k], atol=1e-4)
        assert np.abs(alone[0] - alone[1]).max() > 0.01
        both = Less(tiny, layers=[1, 0], **given)
        np.testing.assert_array_equal(both(pool, target), Less(tiny, **given)(pool, target))
        assert both.describe()["layers"] == [0, 1]
        assert "layers" not in Less(tiny).describe()

    def test_layers_that_do_not_exist(self, tiny, tiny_checkpoints, pool, target, tmp_path):
        for layers in ("last:0", "first:2", "", [], [0, 0], [-1]):
            with pytest.raises(ConfigError, match="is no choice of layers: give numbers from 0"):
                Less(tiny, layers=layers)
        for layers in ("last:3", [1, 2]):
            with pytest.raises(ConfigError, match="does not exist: the model has 2 layers, from 0: give"):
                Less(tiny, checkpoints=tiny_checkpoints, layers=layers)(pool, target)
        alone = Lora(rank=2, modules=("0.self_attn.q_proj",))
        assert GradientSimilarity(tiny, adapter=alone, layers=[0])(pool, target).shape == (6, 4)
        with pytest.raises(ConfigError, match="the adapter has no weights in the chosen `layers`: choose others"):
            GradientSimilarity(tiny, adapter=alone, layers=[1])(pool, target)

    def test_exponentials(self, tiny, tiny_checkpoints, pool, target):
        cosines = Less(tiny, checkpoints=tiny_checkpoints)(pool, target)
        function = Less(tiny, checkpoints=tiny_checkpoints, sharpness=3)
        np.testing.assert_allclose(function(pool, target), np.exp(3 * (cosines - 1)), rtol=1e-6)
        assert function.describe()["sharpness"] == 3
        assert "sharpness" not in Less(tiny).describe()

    def test_equals_the_definition_on_smollm2(self, smollm2, pool, target, tmp_path):
        model = LanguageModel.load(smollm2, device="cpu")
        training = Training(lora=Lora(rank=2, alpha=8), epochs=1, learning_rate=1e-3)
        function = Less(model, training=training, dimension=2**18)
        few, targets = pool.select([0, 1]), target.select([0])
        (point,) = function.warm_up(few, tmp_path)
        found = function(few, targets)
        np.testing.assert_allclose(found, expected_less(model, [point.folder], few, targets, "pool"), atol=1e-3)
        projected = Less(model, checkpoints=[point.folder], dimension=8192)(few, targets)
        np.testing.assert_allclose(projected, found, atol=5 / np.sqrt(8192))

    def test_prepare_warms_up(self, tiny, pool, target, tmp_path):
        kept, fresh = Less(tiny, training=WARM_UP), Less(tiny, training=WARM_UP)
        kept.prepare(pool, target, tmp_path)
        folders = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        assert folders == {"less", "less-warm-up/epoch-1", "less-warm-up/epoch-2"}
        fresh.prepare(pool, target)  # in a temporary folder
        np.testing.assert_array_equal(fresh(pool, target), kept(pool, target))

    def test_warm_up_trains_on_the_whole_pool(self, tiny, pool, target, tmp_path):
        function = Less(tiny, training=WARM_UP)
        points = function.warm_up(pool, tmp_path / "warm-up")
        assert [point.state["samples"] for point in points] == [6, 6]
        function.prepare(pool.select([0, 1]), target, tmp_path)
        assert not (tmp_path / "less-warm-up").exists()
        given = Less(tiny, checkpoints=[point.folder for point in points])
        np.testing.assert_array_equal(function(pool.select([0, 1]), target), given(pool.select([0, 1]), target))

    def test_a_training_without_a_folder_is_removed(self, tiny, pool, target):
        function = Less(tiny, training=WARM_UP)
        first = function.warm_up(pool)[0].folder
        second = function.warm_up(pool.select([0, 1]))[0].folder
        assert not first.exists()
        assert function(pool, target).shape == (6, 4)
        del function
        assert not second.exists()


def test_by_task():
    influence = np.array([[1, 3, 0, 4], [5, 1, 2, 2]], np.float32)
    np.testing.assert_array_equal(by_task(influence, ["a", "a", "b", "b"]), [2, 3])
    np.testing.assert_allclose(by_task(influence, ["a", "b", "b", "b"]), [7 / 3, 5])
    for tasks in ([], ["a"] * 3):
        with pytest.raises(ConfigError, match="tasks were given for 4 targets"):
            by_task(influence, tasks)


class TestTasks:
    """LESS's own score: the maximum over tasks of the mean over a task's targets."""

    @pytest.fixture
    def of_tasks(self, target) -> Dataset:
        return target.add_column("task", ["sums", "sums", "ciphers", "ciphers"])

    def test_one_score_for_all_targets(self, tiny, tiny_checkpoints, pool, of_tasks):
        pairwise = Less(tiny, checkpoints=tiny_checkpoints)(pool, of_tasks)
        function = Less(tiny, checkpoints=tiny_checkpoints, aggregate="task")
        assert function.traits.pointwise
        assert not Less(tiny).traits.pointwise
        function.prepare(pool, of_tasks)
        found = function(pool, of_tasks.select([1]))
        expected = np.maximum(pairwise[:, :2].mean(axis=1), pairwise[:, 2:].mean(axis=1))
        np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)
        np.testing.assert_array_equal(function(pool, of_tasks), np.repeat(found, 4, axis=1))
        assert function(pool.select([]), of_tasks).shape == (0, 4)
        assert function.describe()["aggregate"] == "task"
        assert "aggregate" not in Less(tiny).describe()

    def test_the_task_of_a_row_from_a_file(self, tmp_path):
        rows = [{"question": f"q{k}", "answer": "a", "task": task} for k, task in enumerate(["x", 7, "y"])]
        path = tmp_path / "target.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert read_tasks(nncift.load_pool(path)) == read_tasks(nncift.load_pool(rows)) == ["x", "7", "y"]

    def test_missing_tasks_and_checkpoints_are_errors(self, tiny, tiny_checkpoints, pool, target, of_tasks):
        function = Less(tiny, checkpoints=tiny_checkpoints, aggregate="task")
        with pytest.raises(ConfigError, match=r"needs the targets of all tasks: call prepare\(pool, target\)"):
            function(pool, of_tasks)
        missing = Less(tiny, checkpoints=["/no/such"])
        for hook in (function.prepare, function.check):
            with pytest.raises(DataError, match="the target 'chain_sum-0' has no task"):
                hook(pool, target)
        for hook in (missing.check, missing):
            with pytest.raises(ModelError, match=r"the checkpoint '/no/such' has no adapter_config.json"):
                hook(pool, target)


class TestGradientSimilarity:
    def test_equals_the_reference(self, tiny, pool, target):
        shape = Lora(rank=4, alpha=8, seed=3)
        found = GradientSimilarity(tiny, adapter=shape, dimension=WHOLE)(pool, target)
        vectors = []
        with adapted(tiny, shape) as adapter:
            for example in encode_examples(tiny, Dataset.from_list([*pool, *target])):
                gradients = references.adapter_gradients(adapter, example.ids, example.start)
                vectors.append(torch.cat([gradient.flatten() for gradient in gradients.values()]).double())
        unit = torch.nn.functional.normalize(torch.stack(vectors)).numpy()
        np.testing.assert_allclose(found, unit[:6] @ unit[6:].T, atol=1e-4)

    def test_a_duplicate_and_its_family_are_most_similar(self, smollm2):
        names = "chain_sum", "spell_backward"  # short ones
        pool = families(*names, size=2)
        target = Dataset.from_list([pool[3], *families(*names, size=1, seed=4)])
        influence = GradientSimilarity(smollm2, device="cpu", adapter=Lora(rank=8))(pool, target)
        assert influence[3, 0] == pytest.approx(1, abs=1e-4)
        assert (influence.argmax(axis=0)[:1] == [3]).all()
        assert influence[:2, 1].mean() > influence[2:, 1].mean()
        assert influence[2:, 2].mean() > influence[:2, 2].mean()

    def test_footprint_is_what_is_kept(self, tiny, pool, target, tmp_path):
        """On disk, or in memory without a folder; a target is kept as a pool sample too."""
        function = GradientSimilarity(tiny, dimension=2**15)
        planned, empty = (function.footprint(pool, target, *counts) for counts in ((6, 4), (0, 0)))
        function.prepare(pool, target, tmp_path)
        stored = sum(path.stat().st_size for path in tmp_path.rglob("*.npy"))
        assert stored == pytest.approx(planned.disk, rel=0.02)
        tracemalloc.start()
        function.prepare(pool, target)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept == pytest.approx(planned.memory - empty.memory, rel=0.1)

    def test_at_a_trained_adapter(self, tiny, tiny_checkpoints, pool, target):
        found = GradientSimilarity(tiny, adapter=str(tiny_checkpoints[0]))(pool, target)
        plain = Less(tiny, checkpoints=tiny_checkpoints[:1], preconditioned="no")(pool, target)
        np.testing.assert_array_equal(found, plain)

    def test_the_seed_draws_the_adapter_and_the_projection(self, tiny, pool, target):
        first, again, other = (GradientSimilarity(tiny, seed=seed)(pool, target) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max() > 1e-4


def test_progress_while_features_are_computed(tiny, pool, target, capsys, monkeypatch):
    monkeypatch.setattr("nncift.run.progress.interactive", lambda: True)
    function = Less(tiny, training=WARM_UP)
    function.progress = True
    function.prepare(pool, target)
    shown = capsys.readouterr().err
    assert "training, epoch 2" in shown
    assert "20/20" in shown.rpartition("less")[2]  # two checkpoints, six and four samples
    function.progress = False
    function.prepare(pool, target)
    assert capsys.readouterr().err == ""
