"""Per-sample gradients against one backward pass per sample, Adam's formula, and what the projection preserves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reasoning_gym
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import references
from nncift.errors import DataError, ModelError
from nncift.models.examples import PLAIN, Example, encode_examples, response_losses
from nncift.models.language_model import LanguageModel
from nncift.models.onednn import frozen_linears
from nncift.training.checkpoints import read_moments
from nncift.training.gradients import Adam, batched_features, sample_features, stream_gradients
from nncift.training.lora import Lora, adapted, adapter_layers, adapter_weights, plain_name
from nncift.training.random_projection import SignSketch


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """Twelve samples with prompts and responses of unlike length."""
    families = [
        reasoning_gym.create_dataset(name, size=4, seed=1) for name in ("chain_sum", "leg_counting", "caesar_cipher")
    ]
    samples = [sample for family in families for sample in family]
    return Dataset.from_list(
        [{"id": f"s{k}", "prompt": s["question"], "response": s["answer"]} for k, s in enumerate(samples)]
    )


def gradients_of_a_batch(model, batch) -> dict[str, torch.Tensor]:
    """Each layer's gradients of each sample, (n, out, in)."""
    found = {}

    def keep(name, g, x):
        found[name] = torch.bmm(g.transpose(1, 2), x)

    stream_gradients(model, batch, adapter_layers(model), keep)
    return found


class TestExamples:
    def test_the_response_is_what_is_learned(self, tiny, rows):
        for example, row in zip(encode_examples(tiny, rows), rows, strict=True):
            text = tiny.tokenizer.decode(example.ids[: example.start])
            assert text == PLAIN.replace("{prompt}", row["prompt"])
            assert example.ids[example.start :] == [*tiny.encode([row["response"]])[0], *tiny.end_ids]
            assert not example.cut

    def test_a_chat_is_rendered_and_a_prompt_with_braces_is_not(self, tiny):
        chat = '[{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]'
        rows = Dataset.from_list(
            [
                {"id": "a", "prompt": "one", "response": "two", "messages": chat},
                {"id": "b", "prompt": "{prompt}", "response": "two", "messages": None},
            ]
        )
        first, second = encode_examples(tiny, rows)
        assert tiny.tokenizer.decode(first.ids[: first.start]) == tiny.chat([{"role": "user", "content": "one"}])
        assert tiny.tokenizer.decode(second.ids[: second.start]) == "Request:\n{prompt}\n\nResponse:\n"
        assert encode_examples(tiny, rows.select([])) == []

    def test_what_does_not_fit_loses_the_start_of_its_prompt(self, tiny_model):
        short = LanguageModel.load(tiny_model, device="cpu", max_length=64)
        row = {"id": "long", "prompt": "early " * 100 + "late", "response": "yes"}
        (example,) = encode_examples(short, Dataset.from_list([row]))
        assert example.cut
        assert len(example.ids) == 64
        assert "late\n\nResponse:\n" in short.tokenizer.decode(example.ids[: example.start])
        with pytest.raises(DataError, match=r"the response of 'long' takes 20\d tokens"):
            encode_examples(short, Dataset.from_list([{**row, "response": "so " * 200}]))

    def test_losses_are_those_of_each_sample_alone(self, tiny, rows):
        examples = encode_examples(tiny, rows)
        expected = [float(references.response_loss(tiny.model, e.ids, e.start).detach()) for e in examples]
        np.testing.assert_allclose(response_losses(tiny, examples).detach(), expected, rtol=1e-5)


class TestStreamGradients:
    def check(self, model, adapter, examples) -> None:
        """Each sample's gradient beside that of a backward pass of its own: the whole of it, and layer by layer."""
        found = gradients_of_a_batch(model, examples)
        for k, example in enumerate(examples):
            expected = references.adapter_gradients(adapter, example.ids, example.start)
            errors = {name: (found[plain_name(name)][k] - gradient).norm() for name, gradient in expected.items()}
            lengths = {name: gradient.norm() for name, gradient in expected.items()}
            assert set(map(plain_name, expected)) == set(found)
            assert torch.stack([*errors.values()]).norm() < 1e-5 * torch.stack([*lengths.values()]).norm()
            assert all(errors[name] < 1e-3 * lengths[name] for name in expected)

    def test_equal_one_backward_pass_per_sample(self, tiny, tiny_checkpoints, rows):
        examples = encode_examples(tiny, rows)
        assert len({len(example.ids) for example in examples}) > 4  # there is padding
        with adapted(tiny, tiny_checkpoints[0]) as adapter:
            self.check(tiny, adapter, examples)

    def test_equal_one_backward_pass_per_sample_on_smollm2(self, smollm2, rows):
        model = LanguageModel.load(smollm2, device="cpu")
        with adapted(model, Lora(rank=4, alpha=16)) as adapter:
            for name, weight in adapter_weights(model).items():
                if ".lora_B." in name:  # a fresh one is zero, which would hide what lora_A gets
                    torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(1))
            self.check(model, adapter, encode_examples(model, rows.select([0, 5, 9])))

    def test_the_model_is_as_before(self, tiny, tiny_model, tiny_checkpoints, rows):
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

    def test_a_layer_that_is_used_twice_is_refused(self, tiny_model, rows):
        model = LanguageModel.load(tiny_model, device="cpu")
        first, second = model.model.model.layers
        second.mlp.gate_proj = shared = first.mlp.gate_proj
        with pytest.raises(ModelError, match="gate is not used once on every token"):
            stream_gradients(model, encode_examples(model, rows), {"gate": shared}, lambda *_: None)
        assert not any(module._forward_hooks for module in model.model.modules())

    def test_counts_tokens(self, tiny_model, tiny_checkpoints, rows):
        model = LanguageModel.load(tiny_model, device="cpu")
        examples = encode_examples(model, rows)
        with adapted(model, tiny_checkpoints[0]):
            gradients_of_a_batch(model, examples)
        read = sum(len(example.ids) - 1 for example in examples)
        assert (model.forward_tokens, model.backward_tokens) == (read, read)


class TestFrozenLinears:
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (1, 1, 24)])
    def test_give_what_linear_layers_give(self, bias, shape):
        torch.manual_seed(0)
        layer = torch.nn.Linear(24, 40, bias=bias).requires_grad_(False)
        plain, fast = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for _ in range(2))
        expected = layer(plain.requires_grad_())
        with frozen_linears(layer):
            found = layer(fast.requires_grad_())
            assert "_Frozen" in type(found.grad_fn).__name__  # the other way was taken
        toward = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
        expected.backward(toward)
        found.backward(toward)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fast.grad, plain.grad, rtol=1e-5, atol=1e-5)

    def test_others_stay_as_they_are(self):
        layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4).bfloat16().requires_grad_(False))
        with frozen_linears(layers):
            assert all("forward" not in vars(layer) for layer in layers)
        layers.requires_grad_(False)
        with frozen_linears(layers):
            assert ["forward" in vars(layer) for layer in layers] == [True, False]
        with pytest.raises(RuntimeError, match="could not create a primitive"), frozen_linears(layers):
            layers(torch.zeros(2, 3))
        assert all("forward" not in vars(layer) for layer in layers)

    def test_a_block_inside_another_adds_what_was_frozen_since(self):
        layers = torch.nn.Sequential(torch.nn.Linear(4, 4).requires_grad_(False), torch.nn.Linear(4, 4))
        with frozen_linears(layers):
            layers.requires_grad_(False)
            with frozen_linears(layers):
                assert all("forward" in vars(layer) for layer in layers)
            assert ["forward" in vars(layer) for layer in layers] == [True, False]
        assert all("forward" not in vars(layer) for layer in layers)


class TestAdam:
    def test_is_the_definition(self):
        generator = torch.Generator().manual_seed(0)
        gradients = torch.randn(3, 4, 5, generator=generator) * 1e-3
        first, second = torch.randn(4, 5, generator=generator) * 1e-3, torch.rand(4, 5, generator=generator) * 1e-6
        adam = Adam({"w": (first, second)}, {"w": 7})
        padded = torch.nn.functional.pad(gradients, (0, 2))
        adam.update("w", padded)
        expected = torch.stack([references.adam_direction(g, first, second) for g in gradients])
        torch.testing.assert_close(padded[..., :5], expected, rtol=1e-5, atol=1e-7)
        assert (padded[..., 5:] == 0).all()
        padded = torch.nn.functional.pad(gradients, (0, 2))
        adam.scale("w", padded)
        torch.testing.assert_close(padded[..., :5], gradients / torch.sqrt(second + 1e-8))

    def test_other_rates(self):
        gradient, first, second = torch.tensor([[[2.0]]]), torch.tensor([[1.0]]), torch.tensor([[4.0]])
        Adam({"w": (first, second)}, {"w": 1}, betas=(0.5, 0.75), epsilon=0.0).update("w", gradient)
        assert gradient.item() == pytest.approx(1.5 / math.sqrt(4.0))


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
    def test_every_entry_goes_to_one_bucket_with_one_sign(self, shapes, dimension, seed):
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
            torch.testing.assert_close(matrix @ matrix.T, unit)  # nothing is lost

    def test_inner_products_are_right_on_average_and_spread_as_those_of_a_dense_projection(self):
        """Over 400 seeds, gradients of rank one with a few large columns."""
        generator = torch.Generator().manual_seed(3)
        shapes = {"a": (24, 16), "b": (16, 32), "c": (8, 16)}
        dimension = 64

        def draw() -> dict[str, torch.Tensor]:
            found = {}
            for name, (rows, columns) in shapes.items():
                x = torch.randn(2, 1, columns, generator=generator)
                x[..., 3] *= 5
                found[name] = torch.randn(2, rows, 1, generator=generator) * x
                found[name][1] += found[name][0]  # so that the two have something in common
            return found

        gradients = draw()
        flat = torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1).double()
        wanted = float(flat[0] @ flat[1])
        found = []
        for seed in range(400):
            features = projected(SignSketch(shapes, dimension, seed=seed), gradients).double()
            found.append(float(features[0] @ features[1]))
        dense = math.sqrt((float(flat[0] @ flat[0]) * float(flat[1] @ flat[1]) + wanted**2) / dimension)
        spread = float(np.std(found))
        assert abs(np.mean(found) - wanted) < 4 * spread / math.sqrt(len(found))
        assert 0.6 * dense < spread < 1.5 * dense

    def test_a_seed_determines_the_signs(self):
        shapes, gradient = {"a": (5, 6)}, {"a": torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(0))}
        first, again, other = (projected(SignSketch(shapes, 8, seed=seed), gradient) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert not torch.equal(
            SignSketch({"a": (5, 6), "b": (5, 6)}, 8)._signs["a"], SignSketch({"b": (5, 6)}, 8)._signs["b"][:, :1]
        )


class TestFeatures:
    def test_are_the_projection_of_what_adam_makes_of_the_gradients(self, tiny, tiny_checkpoints, rows):
        examples = encode_examples(tiny, rows)
        with adapted(tiny, tiny_checkpoints[1]):
            layers = adapter_layers(tiny)
            shapes = {name: tuple(weight.shape) for name, weight in adapter_weights(tiny).items()}
            sketch = SignSketch(shapes, 128)
            moments = read_moments(tiny_checkpoints[1], shapes)
            found = sample_features(tiny, examples, layers, sketch, Adam(moments, sketch.widths).update)
            gradients = gradients_of_a_batch(tiny, examples)
        changed = {name: references.adam_direction(g, *moments[name]) for name, g in gradients.items()}
        expected = projected(sketch, changed)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))

    def test_do_not_depend_on_batch_size_or_order(self, tiny, tiny_checkpoints, rows):
        examples = encode_examples(tiny, rows)
        with adapted(tiny, tiny_checkpoints[0]):
            layers = adapter_layers(tiny)
            sketch = SignSketch({name: tuple(w.shape) for name, w in adapter_weights(tiny).items()}, 256)
            whole = batched_features(tiny, examples, layers, sketch, batch_size=len(examples))
            for size in (1, 5):
                parts = batched_features(tiny, examples, layers, sketch, batch_size=size)
                np.testing.assert_allclose(parts, whole, atol=1e-5 * np.abs(whole).max())
            turned = batched_features(tiny, examples[::-1], layers, sketch, batch_size=5)[::-1]
            np.testing.assert_allclose(turned, whole, atol=1e-5 * np.abs(whole).max())

    def test_a_batch_that_does_not_fit_is_halved(self, tiny_model, tiny_checkpoints):
        """Out of memory is what a layer's hook says of more than three samples, as a real allocator would."""
        model = LanguageModel.load(tiny_model, device="cpu")
        rng = np.random.default_rng(0)
        examples = [Example(str(k), rng.integers(100, 200, 20).tolist(), 5, False) for k in range(12)]

        def allocate(most):
            def hook(module, arguments):
                if len(arguments[0]) > most:
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

            return model.model.get_input_embeddings().register_forward_pre_hook(hook)

        with adapted(model, tiny_checkpoints[0]):
            layers = adapter_layers(model)
            sketch = SignSketch({name: tuple(w.shape) for name, w in adapter_weights(model).items()}, 256)
            whole = batched_features(model, examples, layers, sketch)
            hook = allocate(3)
            parts = batched_features(model, examples, layers, sketch)
            np.testing.assert_allclose(parts, whole, atol=1e-5 * np.abs(whole).max())
            assert model.oom_splits == [12, 6]  # what comes after is cut small at once
            hook.remove()
            hook = allocate(0)
            with pytest.raises(ModelError, match="ran out of memory on one sequence"):
                batched_features(model, examples, layers, sketch)
            hook.remove()
