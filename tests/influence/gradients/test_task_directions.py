"""Influence along directions that targets share, against whole per-sample gradients."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

import references
from builders import families, prepared
from nncift.errors import ConfigError, DataError, RunError
from nncift.influence.gradients.less import Less
from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import encode_examples
from nncift.training.checkpoints import read_checkpoint, read_moments
from nncift.training.directional_derivatives import combined_gradients, directional_derivatives
from nncift.training.lora import Lora, adapted, adapter_layers, adapter_weights, plain_name
from nncift.training.trainer import Training, fine_tune

WHOLE = 2**16  # more than the weights of the tiny model's adapters: no projection


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return families("chain_sum", "caesar_cipher", size=3).remove_columns("task")


@pytest.fixture(scope="module")
def target() -> Dataset:
    return families("chain_sum", "caesar_cipher", size=3, seed=9).remove_columns("task")


@pytest.fixture(scope="module")
def tiny_checkpoints(tiny, pool, tmp_path_factory) -> list[Path]:
    """Of a warm-up on the pool, as LESS has them.

    A central difference needs a loss that is nearly linear within its step. Where training never met a sample's kind,
    Adam's moments are near zero, and preconditioned directions take this sample far from linear.
    """
    training = Training(lora=Lora(rank=4, alpha=16), epochs=2, learning_rate=3e-3)
    points = fine_tune(tiny, encode_examples(tiny, pool), training, tmp_path_factory.mktemp("checkpoints"))
    return [point.folder for point in points]


@pytest.fixture(scope="module")
def exact(tiny, pool, target):
    """Whole gradients at a checkpoint: the pool's over their estimated lengths, the first targets' over their own."""
    sides = [encode_examples(tiny, rows) for rows in (pool, target)]

    @functools.cache
    def by_weight(folder):
        with adapted(tiny, folder) as adapter:
            moments = read_moments(folder, {name: tuple(w.shape) for name, w in adapter_weights(tiny).items()})
            found = [[references.adapter_gradients(adapter, e.ids, e.start) for e in side] for side in sides]
        return found, {name: torch.sqrt(moments[plain_name(name)][1] + 1e-8) for name in found[0][0]}

    def exact(folder, preconditioned: str, *, within: str = "", targets: int = 6) -> tuple[np.ndarray, np.ndarray]:
        (of_pool, of_target), roots = by_weight(folder)

        def rows(samples) -> np.ndarray:
            scaled = [{n: g / roots[n] if preconditioned == "both" else g for n, g in of.items()} for of in samples]
            return np.stack(
                [np.concatenate([g.double().flatten() for n, g in of.items() if within in n]) for of in scaled]
            )

        tokens = [np.array([[len(example.ids) - example.start] for example in side]) for side in sides]
        found = rows(of_target[:targets])
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        scale = np.exp(np.log(lengths * np.sqrt(tokens[1][:targets])).mean())
        return rows(of_pool) * np.sqrt(tokens[0]) / scale, found / lengths

    return exact


def along_leading(of_pool: np.ndarray, unit: np.ndarray, count: int) -> np.ndarray:
    """By the definition, with the singular value decomposition of the targets' whole gradients."""
    leading = np.linalg.svd(unit, full_matrices=False)[2][:count]
    return (of_pool @ leading.T) @ (leading @ unit.T)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


class TestDirections:
    @pytest.mark.parametrize(("preconditioned", "count"), [("both", 1), ("both", 4), ("no", 2)])
    def test_equal_the_definition(self, tiny, tiny_checkpoints, pool, target, exact, preconditioned, count):
        given = {"checkpoints": tiny_checkpoints[1:], "dimension": WHOLE, "preconditioned": preconditioned}
        function = prepared(Less(tiny, directions=count, **given), pool, target)
        expected = along_leading(*exact(tiny_checkpoints[1], preconditioned), count)
        close(function(pool, target), expected, 1e-2)

    def test_all_directions_are_whole_gradients_of_another_length(self, tiny, tiny_checkpoints, pool, target):
        """With as many directions as targets, a row differs from its cosines by a factor alone."""
        given = {"checkpoints": tiny_checkpoints[:1], "dimension": WHOLE, "preconditioned": "no"}
        found = prepared(Less(tiny, directions=99, **given), pool, target)(pool, target)
        cosines = Less(tiny, **given)(pool, target)
        factors = (found * cosines).sum(1, keepdims=True) / (cosines**2).sum(1, keepdims=True)
        assert (factors > 0).all()
        close(found, factors * cosines, 1e-2)

    def test_over_checkpoints_and_of_chosen_layers(self, tiny, tiny_checkpoints, pool, target, exact):
        given = {"checkpoints": tiny_checkpoints, "dimension": WHOLE, "preconditioned": "both", "layers": "middle"}
        function = prepared(Less(tiny, directions=2, **given), pool, target)
        rates = np.array([read_checkpoint(folder).learning_rate for folder in tiny_checkpoints])
        parts = [along_leading(*exact(folder, "both", within=".layers.1."), 2) for folder in tiny_checkpoints]
        close(function(pool, target), np.tensordot(rates / rates.sum(), parts, 1), 1e-2)

    def test_take_forward_passes_alone_over_the_pool(self, tiny_model, tiny_checkpoints, pool, target):
        model = LanguageModel.load(tiny_model, device="cpu")
        function = Less(model, checkpoints=tiny_checkpoints, preconditioned="both", directions=2)
        expected = function.tokens(pool, target)
        function.prepare(pool, target)
        of_pool, of_target = (sum(len(e.ids) - 1 for e in encode_examples(model, rows)) for rows in (pool, target))
        assert function.backward_tokens == 2 * 2 * of_target
        assert function.forward_tokens == expected == 2 * (2 * 2 * of_pool + 2 * of_target)
        function(pool, target)
        assert function.forward_tokens == expected  # cached

    def test_do_not_depend_on_batches_or_blocks(self, tiny_model, tiny_checkpoints, pool, target):
        given = {"checkpoints": tiny_checkpoints[1:], "preconditioned": "both", "directions": 2, "device": "cpu"}
        whole = prepared(Less(tiny_model, **given), pool, target)
        small = prepared(Less(tiny_model, batch_size=1, **given), pool, target)
        influence = whole(pool, target)
        close(small(pool, target), influence, 1e-3)
        close(whole(pool.select([4, 1]), target.select([2])), influence[[4, 1]][:, [2]], 1e-5)
        other = families("leg_counting", size=2).remove_columns("task")  # a sample that was not prepared
        close(whole(other, target)[:1], whole(other.select([0]), target), 1e-3)

    def test_tasks_are_aggregated(self, tiny, tiny_checkpoints, pool, target):
        of_tasks = target.add_column("task", ["a"] * 3 + ["b"] * 3)
        given = {"checkpoints": tiny_checkpoints[1:], "preconditioned": "both", "directions": 2}
        pairwise = prepared(Less(tiny, **given), pool, target)(pool, target)
        found = prepared(Less(tiny, aggregate="task", **given), pool, of_tasks)(pool, of_tasks)
        expected = np.maximum(pairwise[:, :3].mean(1), pairwise[:, 3:].mean(1))
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)

    def test_the_description_and_traits(self, tiny, tiny_checkpoints):
        function = Less(tiny, checkpoints=tiny_checkpoints, preconditioned="both", directions=4)
        assert function.describe()["directions"] == 4
        assert function.traits.relative
        assert not function.traits.pointwise
        assert "directions" not in Less(tiny).describe()

    def test_options_that_do_not_go_together(self, tiny, tiny_checkpoints, pool, target):
        with pytest.raises(ConfigError, match="an Adam update is not linear in the gradient: give `preconditioned`"):
            Less(tiny, directions=2)
        with pytest.raises(ConfigError, match="does not go with `sharpness`, which needs cosines"):
            Less(tiny, directions=2, preconditioned="no", sharpness=3)
        with pytest.raises(ConfigError, match="`directions` 0 is too small: give at least 1"):
            Less(tiny, directions=0, preconditioned="no")
        with pytest.raises(ConfigError, match=r"needs all targets .*: call prepare\(pool, target\) first"):
            Less(tiny, checkpoints=tiny_checkpoints, directions=2, preconditioned="no")(pool, target)

    def test_a_value_that_is_not_finite_is_refused(self, fresh, tiny_checkpoints, pool, target):
        with torch.no_grad():
            token = fresh.encode([pool[5]["prompt"]])[0][-1]
            fresh.model.get_input_embeddings().weight[token] = float("nan")
        with pytest.raises(DataError, match="is not finite"):
            Less(fresh, checkpoints=tiny_checkpoints, directions=2, preconditioned="no").prepare(pool, target)


class TestTasks:
    @pytest.mark.parametrize(("preconditioned", "tasks"), [("both", "aababb"), ("no", "bbbabb"), ("both", None)])
    def test_equal_the_definition(self, tiny, tiny_checkpoints, pool, target, exact, preconditioned, tasks):
        """LESS's mean over a task's targets of <g_i, g_j> / |g_j|, over the estimated length of g_i."""
        rows = target if tasks is None else target.add_column("task", [*tasks])
        given = {"checkpoints": tiny_checkpoints[1:], "dimension": WHOLE, "preconditioned": preconditioned}
        found = prepared(Less(tiny, directions="task", **given), pool, rows)(pool, rows)
        of_pool, unit = exact(tiny_checkpoints[1], preconditioned)
        names = np.array([*(tasks or "aaaaaa")])
        expected = np.stack([(of_pool @ unit[names == name].T).mean(axis=1) for name in names], axis=1)
        close(found, expected, 1e-2)
        for name in set(names):
            assert (np.ptp(found[:, names == name], axis=1) == 0).all()

    def test_over_checkpoints_with_a_target_twice_and_a_new_sample(self, tiny, tiny_checkpoints, pool, target, exact):
        """A row that occurs twice counts twice, and in each of its tasks; targets without a task form one."""
        rows = target.select([0, 1, 1, 2, 1]).add_column("task", ["a", "a", "a", None, "b"])
        given = {"checkpoints": tiny_checkpoints, "dimension": WHOLE, "preconditioned": "both"}
        function = prepared(Less(tiny, directions="task", **given), pool.select([0, 1, 2, 3]), rows)
        rates = np.array([read_checkpoint(folder).learning_rate for folder in tiny_checkpoints])
        shares = np.array([[1, 2, 0], [0, 3, 0], [0, 0, 3]]) / 3  # of tasks a, b and none
        parts = []
        for folder in tiny_checkpoints:
            of_pool, unit = exact(folder, "both", targets=3)
            parts.append(of_pool @ unit.T @ shares.T)
        expected = np.tensordot(rates / rates.sum(), parts, 1)
        found = function(pool, rows.select([4, 3, 0]))  # the last two of the pool were not prepared
        close(found, expected[:, [1, 2, 0]], 1e-2)
        assert function(pool.select([]), rows).shape == (0, 5)

    def test_the_largest_of_a_sample(self, tiny, tiny_checkpoints, pool, target):
        rows = target.add_column("task", ["a", "b", "c"] * 2)
        given = {"checkpoints": tiny_checkpoints[1:], "preconditioned": "both", "directions": "task"}
        of_tasks = prepared(Less(tiny, **given), pool, rows)(pool, rows)
        found = prepared(Less(tiny, aggregate="task", **given), pool, rows)(pool, rows.select([4, 0]))
        np.testing.assert_array_equal(found, np.repeat(of_tasks.max(axis=1, keepdims=True), 2, axis=1))

    def test_cost_two_forward_passes_for_each(self, tiny_model, tiny_checkpoints, pool, target):
        rows = target.add_column("task", ["a", "a", "b", "b", "c", "c"])
        given = {"checkpoints": tiny_checkpoints[1:], "preconditioned": "both", "device": "cpu"}
        function = Less(tiny_model, directions="task", **given)
        expected = function.tokens(pool, rows)
        function.prepare(pool, rows)
        of_pool, of_target = (
            sum(len(e.ids) - 1 for e in encode_examples(function.language_model, some)) for some in (pool, target)
        )
        assert function.forward_tokens == expected == 2 * 3 * of_pool + 2 * of_target
        assert function.backward_tokens == 2 * of_target
        function(pool, rows)
        assert function.forward_tokens == expected  # cached

    def test_what_is_kept_belongs_to_the_tasks(self, tiny, tiny_checkpoints, pool, target, tmp_path):
        given = {"checkpoints": tiny_checkpoints[1:], "preconditioned": "both", "directions": "task"}
        some, rows = pool.select([0, 5]), target.add_column("task", [*"aaabbb"])
        first = prepared(Less(tiny, **given), some, rows, tmp_path)(some, rows)
        again = prepared(Less(tiny, **given), some, rows, tmp_path)
        np.testing.assert_array_equal(again(some, rows), first)
        with pytest.raises(RunError, match="other samples or settings"):
            Less(tiny, **given).prepare(some, target.add_column("task", [*"aabbbb"]), tmp_path)

    def test_one_task_is_pointwise(self, tiny, tiny_checkpoints, pool, target):
        given = {"checkpoints": tiny_checkpoints, "preconditioned": "no"}
        function = Less(tiny, directions="task", **given)
        for tasks, pointwise in (("aaaaaa", True), ("aaaaab", False)):
            function.check(pool, target.add_column("task", [*tasks]))
            assert function.traits.pointwise == pointwise
            assert function.traits.relative
        function.check(pool, target)
        assert function.traits.pointwise
        assert function.describe()["directions"] == "task"

    def test_errors(self, tiny, tiny_checkpoints, pool, target):
        given = {"checkpoints": tiny_checkpoints[1:], "preconditioned": "no"}
        with pytest.raises(ConfigError, match=r"`directions` 'tasks' is unknown: give \"task\" or a number"):
            Less(tiny, directions="tasks", **given)
        function = Less(tiny, directions="task", **given)
        with pytest.raises(ConfigError, match=r"needs all targets .*: call prepare\(pool, target\) first"):
            function(pool, target)
        with pytest.raises(ConfigError, match="less has no targets to find `directions`: give a target"):
            function.prepare(pool, target.select([]))
        function.prepare(pool.select([0]), target.select([0, 1]))
        with pytest.raises(ConfigError, match=r"without the task of 'caesar_cipher-2': call prepare\(pool, target\)"):
            function(pool, target.add_column("task", ["", "", "", "", "", "b"]))


class TestDerivatives:
    """Against inner products of whole gradients, along a sum of two samples' gradients."""

    def test_on_smollm2(self, smollm2_model, pool):
        derivatives, expected = derivatives_and_products(smollm2_model, pool, 0.002)
        close(derivatives, expected, 0.01)

    def test_of_a_model_in_bfloat16(self, tiny_model, pool):
        model = LanguageModel.load(tiny_model, dtype="bfloat16", device="cpu")
        derivatives, expected = derivatives_and_products(model, pool, 0.05)
        close(derivatives, expected, 0.1)


def derivatives_and_products(model: LanguageModel, pool: Dataset, change: float) -> tuple[np.ndarray, np.ndarray]:
    examples = encode_examples(model, pool.select([0, 1]))
    with adapted(model, Lora(rank=2, alpha=4)):
        layers, weights = adapter_layers(model), adapter_weights(model)
        for name, weight in weights.items():
            if ".lora_B." in name:  # a fresh one is zero, and so is lora_A's gradient then
                torch.nn.init.normal_(weight, std=0.01, generator=torch.Generator().manual_seed(len(name)))
        before = {name: weight.clone() for name, weight in weights.items()}
        directions = combined_gradients(model, examples, layers, np.array([[1.0, 0.0], [0.5, 1.0]]))
        alone = [combined_gradients(model, [example], layers, np.ones((1, 1))) for example in examples]
        expected = np.array(
            [[sum((own[n] * d[k]).sum() for n, d in directions.items()) for k in (0, 1)] for own in alone]
        )
        steps = change / np.abs(expected).max(axis=0)
        found = directional_derivatives(model, examples, layers, directions, steps.tolist())
        assert all(torch.equal(weight, before[name]) for name, weight in weights.items())
    return found, expected
