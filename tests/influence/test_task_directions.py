"""Influence along the leading directions of the targets' gradients, against whole per-sample gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

import references
from builders import families, prepared
from nncift.errors import ConfigError, DataError
from nncift.influence.less import Less
from nncift.models.examples import encode_examples
from nncift.models.language_model import LanguageModel
from nncift.training.checkpoints import read_checkpoint, read_moments
from nncift.training.directional_derivatives import combined_gradients, directional_derivatives
from nncift.training.lora import Lora, adapted, adapter_layers, adapter_weights, plain_name

WHOLE = 2**16  # more than the weights of the tiny model's adapters: no projection


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return families("chain_sum", "caesar_cipher", size=3).remove_columns("task")


@pytest.fixture(scope="module")
def target() -> Dataset:
    return families("chain_sum", "caesar_cipher", size=3, seed=9).remove_columns("task")


def gradients(model, folder, rows: Dataset, preconditioned: str, within: str = "") -> np.ndarray:
    """Whole gradients of the samples, (n, weights), divided by the root of Adam's second moment or plain."""
    with adapted(model, folder) as adapter:
        moments = read_moments(folder, {name: tuple(w.shape) for name, w in adapter_weights(model).items()})
        found = []
        for example in encode_examples(model, rows):
            of_sample = references.adapter_gradients(adapter, example.ids, example.start)
            if preconditioned == "both":
                roots = {name: torch.sqrt(moments[plain_name(name)][1] + 1e-8) for name in of_sample}
                of_sample = {name: g / roots[name] for name, g in of_sample.items()}
            found.append(torch.cat([g.flatten().double() for name, g in of_sample.items() if within in name]))
    return torch.stack(found).numpy()


def expected_influence(model, folder, pool, target, count: int, preconditioned: str, within: str = "") -> np.ndarray:
    """By the definition, with the singular value decomposition of the targets' whole gradients."""
    of_pool, of_target = (gradients(model, folder, rows, preconditioned, within) for rows in (pool, target))
    tokens, of_targets = (
        np.array([[len(example.ids) - example.start] for example in encode_examples(model, rows)])
        for rows in (pool, target)
    )
    lengths = np.linalg.norm(of_target, axis=1, keepdims=True)
    leading = np.linalg.svd(of_target / lengths, full_matrices=False)[2][:count]
    products = (of_pool @ leading.T) @ (leading @ (of_target / lengths).T)
    return products * np.sqrt(tokens) / np.exp(np.log(lengths * np.sqrt(of_targets)).mean())


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


class TestDirections:
    @pytest.mark.parametrize(("preconditioned", "count"), [("both", 1), ("both", 4), ("no", 2)])
    def test_equal_the_definition(self, tiny, tiny_checkpoints, pool, target, preconditioned, count):
        given = {"checkpoints": tiny_checkpoints[1:], "dimension": WHOLE, "preconditioned": preconditioned}
        function = prepared(Less(tiny, directions=count, **given), pool, target)
        expected = expected_influence(tiny, tiny_checkpoints[1], pool, target, count, preconditioned)
        close(function(pool, target), expected, 1e-2)

    def test_all_directions_are_whole_gradients_of_another_length(self, tiny, tiny_checkpoints, pool, target):
        """With as many directions as targets, a row differs from its cosines by a factor alone."""
        given = {"checkpoints": tiny_checkpoints[:1], "dimension": WHOLE, "preconditioned": "no"}
        found = prepared(Less(tiny, directions=99, **given), pool, target)(pool, target)
        cosines = Less(tiny, **given)(pool, target)
        factors = (found * cosines).sum(1, keepdims=True) / (cosines**2).sum(1, keepdims=True)
        assert (factors > 0).all()
        close(found, factors * cosines, 1e-2)

    def test_over_checkpoints_and_of_chosen_layers(self, tiny, tiny_checkpoints, pool, target):
        given = {"checkpoints": tiny_checkpoints, "dimension": WHOLE, "preconditioned": "both", "layers": "middle"}
        function = prepared(Less(tiny, directions=2, **given), pool, target)
        rates = np.array([read_checkpoint(folder).learning_rate for folder in tiny_checkpoints])
        parts = [expected_influence(tiny, folder, pool, target, 2, "both", ".layers.1.") for folder in tiny_checkpoints]
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
        given = {"checkpoints": tiny_checkpoints, "preconditioned": "both", "directions": 2, "device": "cpu"}
        whole = prepared(Less(tiny_model, **given), pool, target)
        small = prepared(Less(tiny_model, batch_size=1, **given), pool, target)
        influence = whole(pool, target)
        close(small(pool, target), influence, 1e-3)
        close(whole(pool.select([4, 1]), target.select([2])), influence[[4, 1]][:, [2]], 1e-5)
        other = families("leg_counting", size=2).remove_columns("task")  # a sample that was not prepared
        close(whole(other, target)[:1], whole(other.select([0]), target), 1e-3)

    def test_a_killed_preparation_resumes_with_the_same_bytes(
        self, tiny, tiny_checkpoints, pool, target, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("nncift.influence.gradient_similarity.SHARD", 2)

        def made() -> Less:
            return Less(tiny, checkpoints=tiny_checkpoints, preconditioned="both", directions=2)

        first = prepared(made(), pool, target, tmp_path)(pool, target)
        kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for path in kept:
            if "pool" in path.name:
                path.unlink()
        again = prepared(made(), pool, target, tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
        np.testing.assert_array_equal(again(pool, target), first)

    def test_tasks_are_aggregated(self, tiny, tiny_checkpoints, pool, target):
        of_tasks = target.add_column("task", ["a"] * 3 + ["b"] * 3)
        given = {"checkpoints": tiny_checkpoints, "preconditioned": "both", "directions": 2}
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


@pytest.mark.parametrize(("dtype", "change", "tolerance"), [("float32", 0.002, 0.01), ("bfloat16", 0.2, 0.3)])
def test_derivatives_equal_inner_products_of_gradients(smollm2, pool, dtype, change, tolerance):
    """On SmolLM2, also in bfloat16, along a sum of two samples' gradients."""
    model = LanguageModel.load(smollm2, dtype=dtype, device="cpu")
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
    close(found, expected, tolerance)
