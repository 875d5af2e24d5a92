"""Per-sample gradients against one backward pass per sample, Adam's formula, and the random projection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import references
from builders import families
from nncift.errors import ModelError
from nncift.models.text.examples import encode_examples
from nncift.training.checkpoints import read_moments
from nncift.training.gradients import Adam, batched_features, stream_gradients
from nncift.training.lora import Lora, adapted, adapter_layers, adapter_weights, plain_name
from nncift.training.random_projection import SignSketch


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """Twelve samples with prompts and responses of different lengths."""
    return families("chain_sum", "leg_counting", "caesar_cipher", size=4, seed=1)


def sketch_of(model, dimension: int) -> SignSketch:
    """A projection for the layers of the adapter on the model."""
    return SignSketch({name: tuple(weight.shape) for name, weight in adapter_weights(model).items()}, dimension)


def gradients_of_a_batch(model, batch, within=None) -> dict[str, torch.Tensor]:
    """Each layer's gradients of each sample, (n, out, in)."""
    found = {}

    def keep(name, g, x):
        found[name] = torch.bmm(g.transpose(1, 2), x)

    stream_gradients(model, batch, adapter_layers(model, within), keep)
    return found


class TestStreamGradients:
    def check(self, model, adapter, examples) -> None:
        """Each sample's gradient beside that of a backward pass of its own: the whole of it, and layer by layer."""
        found = gradients_of_a_batch(model, examples)
        for k, example in enumerate(examples):
            expected = references.adapter_gradients(adapter, example.ids, example.start)
            errors = {name: (found[plain_name(name)][k] - gradient).norm() for name, gradient in expected.items()}
            lengths = {name: gradient.norm() for name, gradient in expected.items()}
            assert set(map(plain_name, expected)) == set(found)
            # Rounding of 30 layers in float32, which differs between CPUs: up to 1.1e-5 was seen.
            assert torch.stack([*errors.values()]).norm() < 5e-5 * torch.stack([*lengths.values()]).norm()
            assert all(errors[name] < 1e-3 * lengths[name] for name in expected)

    def test_equal_one_backward_pass_per_sample(self, tiny, tiny_checkpoints, rows):
        examples = encode_examples(tiny, rows)
        assert len({len(example.ids) for example in examples}) > 4  # there is padding
        with adapted(tiny, tiny_checkpoints[0]) as adapter:
            before = np.array([tiny.forward_tokens, tiny.backward_tokens])
            self.check(tiny, adapter, examples)
        read = sum(len(example.ids) - 1 for example in examples)
        assert (tiny.forward_tokens, tiny.backward_tokens) == tuple(before + read)

    def test_equal_one_backward_pass_per_sample_on_smollm2(self, smollm2_model, rows):
        with adapted(smollm2_model, Lora(rank=4, alpha=16)) as adapter:
            for name, weight in adapter_weights(smollm2_model).items():
                if ".lora_B." in name:  # a fresh one is zero, and so is lora_A's gradient then
                    torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(1))
            self.check(smollm2_model, adapter, encode_examples(smollm2_model, rows.select([0, 5])))

    def test_the_backward_pass_ends_at_the_lowest_layer(self, tiny, tiny_checkpoints, rows):
        """Gradients of a layer are the same without those below, which keep no activations then."""
        examples, recorded = encode_examples(tiny, rows), {}

        def record(number):
            def hook(module, arguments, output):
                states = output[0] if isinstance(output, tuple) else output
                recorded[number] = states.requires_grad

            return hook

        with adapted(tiny, tiny_checkpoints[0]):
            whole = gradients_of_a_batch(tiny, examples)
            hooks = [layer.register_forward_hook(record(k)) for k, layer in enumerate(tiny.model.model.layers)]
            found = gradients_of_a_batch(tiny, examples, within=[1])
            for hook in hooks:
                hook.remove()
        assert recorded == {0: False, 1: True}
        assert set(found) == {name for name in whole if name.startswith("model.layers.1.")}
        assert all(torch.equal(gradients, whole[name]) for name, gradients in found.items())

    def test_the_model_is_restored(self, tiny, tiny_checkpoints, rows):
        example = encode_examples(tiny, rows)[0]
        assert all(weight.requires_grad for weight in tiny.model.parameters())
        before = references.response_loss(tiny.model, example.ids, example.start)
        with adapted(tiny, tiny_checkpoints[1]):
            assert references.response_loss(tiny.model, example.ids, example.start) != before
            gradients_of_a_batch(tiny, [example])
        assert references.response_loss(tiny.model, example.ids, example.start) == before
        assert not adapter_layers(tiny)
        assert all(weight.requires_grad for weight in tiny.model.parameters())
        assert not any(module._forward_hooks for module in tiny.model.modules())

    def test_a_shared_layer_is_refused(self, fresh, rows):
        first, second = fresh.model.model.layers
        second.mlp.gate_proj = shared = first.mlp.gate_proj
        with pytest.raises(ModelError, match="gate is not used exactly once on every token"):
            stream_gradients(fresh, encode_examples(fresh, rows), {"gate": shared}, lambda *_: None)
        assert not any(module._forward_hooks for module in fresh.model.modules())


def test_adam_equals_the_definition():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(3, 4, 5, generator=generator) * 1e-3
    first, second = torch.randn(4, 5, generator=generator) * 1e-3, torch.rand(4, 5, generator=generator) * 1e-6
    adam = Adam({"w": (first, second)}, {"w": 7})
    updated, scaled = (torch.nn.functional.pad(gradients, (0, 2)) for _ in range(2))
    adam.update("w", updated)
    expected = torch.stack([references.adam_direction(g, first, second) for g in gradients])
    torch.testing.assert_close(updated[..., :5], expected, rtol=1e-5, atol=1e-7)
    assert (updated[..., 5:] == 0).all()
    adam.scale("w", scaled)
    torch.testing.assert_close(scaled[..., :5], gradients / torch.sqrt(second + 1e-8))


def projected(sketch: SignSketch, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    """The projection of layers' gradients (n, out, in), (n, dimension)."""
    features = torch.zeros(len(next(iter(gradients.values()))), sketch.dimension)
    for name, gradient in gradients.items():
        padding = sketch.widths[name] - gradient.shape[2]
        sketch.add(features, name, torch.nn.functional.pad(gradient, (0, padding)))
    return features


class TestSignSketch:
    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
        st.integers(1, 40),
        st.integers(0, 5),
    )
    def test_every_entry_has_one_bucket_and_one_sign(self, shapes, dimension, seed):
        """The matrix of the projection, column by column: one entry of +1 or -1, and the buckets are balanced."""
        named = {str(k): shape for k, shape in enumerate(shapes)}
        sketch = SignSketch(named, dimension, seed=seed)
        total = sum(rows * columns for rows, columns in shapes)
        unit = torch.eye(total)
        parts = torch.split(unit, [rows * columns for rows, columns in shapes], dim=1)
        gradients = {name: part.reshape(total, *named[name]) for name, part in zip(named, parts, strict=True)}
        matrix = projected(sketch, gradients)
        assert (matrix.abs().sum(dim=1) == 1).all()
        assert set(matrix.unique().tolist()) <= {-1.0, 0.0, 1.0}
        padded = sum(rows * sketch.widths[str(k)] for k, (rows, _) in enumerate(shapes))
        assert matrix.abs().sum(dim=0).max() <= math.ceil(padded / dimension)
        if padded <= dimension:
            torch.testing.assert_close(matrix @ matrix.T, unit)  # preserved exactly

    def test_inner_products_are_unbiased_with_the_variance_of_a_dense_projection(self):
        """Over 400 seeds, gradients of rank one with a few large columns."""
        generator = torch.Generator().manual_seed(3)
        shapes = {"a": (24, 16), "b": (16, 32), "c": (8, 16)}
        dimension, gradients = 64, {}
        for name, (rows, columns) in shapes.items():
            x = torch.randn(2, 1, columns, generator=generator)
            x[..., 3] *= 5
            gradients[name] = torch.randn(2, rows, 1, generator=generator) * x
            gradients[name][1] += gradients[name][0]  # so that their inner product is not 0
        flat = torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1).double()
        expected = float(flat[0] @ flat[1])
        found = []
        for seed in range(400):
            features = projected(SignSketch(shapes, dimension, seed=seed), gradients).double()
            found.append(float(features[0] @ features[1]))
        dense = math.sqrt((float(flat[0] @ flat[0]) * float(flat[1] @ flat[1]) + expected**2) / dimension)
        spread = float(np.std(found))
        assert abs(np.mean(found) - expected) < 4 * spread / math.sqrt(len(found))
        assert 0.6 * dense < spread < 1.5 * dense

    def test_a_seed_determines_the_signs(self):
        shapes, gradient = {"a": (5, 6)}, {"a": torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(0))}
        first, again, other = (projected(SignSketch(shapes, 8, seed=seed), gradient) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class TestFeatures:
    def test_are_the_projection_of_preconditioned_gradients(self, tiny, tiny_checkpoints, rows):
        examples = encode_examples(tiny, rows)
        with adapted(tiny, tiny_checkpoints[1]):
            layers, sketch = adapter_layers(tiny), sketch_of(tiny, 128)
            moments = read_moments(tiny_checkpoints[1], {n: w.shape for n, w in adapter_weights(tiny).items()})
            found = batched_features(tiny, examples, layers, sketch, Adam(moments, sketch.widths).update)
            gradients = gradients_of_a_batch(tiny, examples)
        changed = {name: references.adam_direction(g, *moments[name]) for name, g in gradients.items()}
        expected = projected(sketch, changed)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))

    def test_do_not_depend_on_batch_size_or_order(self, tiny, tiny_checkpoints, rows):
        examples = encode_examples(tiny, rows)
        with adapted(tiny, tiny_checkpoints[0]):
            layers, sketch = adapter_layers(tiny), sketch_of(tiny, 256)
            whole = batched_features(tiny, examples, layers, sketch)
            found = [batched_features(tiny, examples, layers, sketch, batch_size=size) for size in (1, 5)]
            found.append(batched_features(tiny, examples[::-1], layers, sketch, batch_size=5)[::-1])
        for parts in found:
            np.testing.assert_allclose(parts, whole, atol=1e-5 * np.abs(whole).max())
