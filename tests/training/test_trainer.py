"""Fine-tuning that resumes after a kill, and checkpoints: ours, and those of transformers' Trainer."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nncift.errors import ConfigError, ModelError, RunError
from nncift.models.text.examples import Example, response_losses
from nncift.run.storage.files import PARTIAL, fingerprint
from nncift.training import gradient_products, trainer
from nncift.training.checkpoints import read_checkpoint, read_moments
from nncift.training.gradient_products import InnerProducts
from nncift.training.lora import Lora, adapted, adapter_layers, adapter_weights
from nncift.training.trainer import Training, choose_samples, fine_tune

SMALL = Training(lora=Lora(rank=2, alpha=8), epochs=3, learning_rate=5e-3, batch_size=5)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Forty samples of random tokens: a lower loss means that they were memorized."""
    rng = np.random.default_rng(0)
    return [Example.single(str(k), rng.integers(100, 200, 6 + k % 7).tolist(), 2 + k % 3) for k in range(40)]


@pytest.fixture(scope="module")
def trained(tiny, examples, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    fine_tune(tiny, examples, SMALL, folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def shapes(tiny, trained) -> dict[str, torch.Size]:
    """Of the adapter's weights."""
    with adapted(tiny, trained / "epoch-1"):
        return {name: weight.shape for name, weight in adapter_weights(tiny).items()}


class TestFineTune:
    def test_the_loss_falls(self, tiny, examples, trained):
        points = [read_checkpoint(trained / f"epoch-{epoch}") for epoch in (1, 2, 3)]
        losses = [point.state["loss"] for point in points]
        assert losses == sorted(losses, reverse=True)
        with torch.no_grad():
            before = response_losses(tiny, examples).mean()
            with adapted(tiny, points[-1].folder):
                after = response_losses(tiny, examples).mean()
            assert response_losses(tiny, examples).mean() == before
        assert after < before - 0.01
        assert not tiny.model.training

    def test_learning_rate_has_linear_warmup_and_decay(self, trained):
        rates = [read_checkpoint(trained / f"epoch-{epoch}").learning_rate for epoch in (1, 2, 3)]
        # 40 samples in batches of 2 (at least 16 steps an epoch) are 20 steps an epoch, 60 in all, 2 of them warm-up
        steps = [min((step + 1) / 3, (60 - step) / 58) * SMALL.learning_rate for step in range(60)]
        np.testing.assert_allclose(rates, np.reshape(steps, (3, 20)).mean(axis=1))

    def test_moments_are_those_of_adam(self, tiny, examples, tmp_path):
        """One step: the first moment is a tenth of the gradient, the second a thousandth of its square."""
        training = dataclasses.replace(SMALL, lora=Lora(rank=2, alpha=8, dropout=0.0), epochs=1, max_grad_norm=1e9)
        (point,) = fine_tune(tiny, examples[:1], training, tmp_path)
        with adapted(tiny, training.lora, trainable=True):
            response_losses(tiny, examples[:1]).sum().backward()
            gradients = {name: weight.grad.clone() for name, weight in adapter_weights(tiny).items()}
        moments = read_moments(point.folder, {name: gradient.shape for name, gradient in gradients.items()})
        for name, gradient in gradients.items():
            torch.testing.assert_close(moments[name][0], 0.1 * gradient, rtol=1e-4, atol=1e-8)
            torch.testing.assert_close(moments[name][1], 0.001 * gradient**2, rtol=1e-4, atol=1e-12)
        assert any(gradient.abs().max() > 1e-4 for gradient in gradients.values())

    @pytest.mark.parametrize("done", [0, 1, 2])
    def test_a_killed_training_resumes_with_the_same_bytes(self, tiny, examples, trained, tmp_path, done):
        """Killed while it writes the epoch after `done` finished ones, which are not trained again."""
        for epoch in range(1, done + 1):
            shutil.copytree(trained / f"epoch-{epoch}", tmp_path / f"epoch-{epoch}")
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
        (tmp_path / f"{PARTIAL}epoch-{done + 1}" / "unfinished").mkdir(parents=True)
        fine_tune(tiny, examples, SMALL, tmp_path)
        assert content(tmp_path) == content(trained)
        assert times == {path: path.stat().st_mtime_ns for path in times}

    def test_a_folder_of_another_training_is_refused(self, tiny, examples, trained):
        for other, settings in ((examples[1:], SMALL), (examples, dataclasses.replace(SMALL, seed=1))):
            with pytest.raises(RunError, match="holds the training of other samples or settings"):
                fine_tune(tiny, other, settings, trained)

    def test_missing_layers_or_samples_are_an_error(self, tiny, examples, tmp_path):
        training = dataclasses.replace(SMALL, lora=Lora(modules=("c_attn",)))
        with pytest.raises(ModelError, match=r"an adapter on \('c_attn',\) does not fit"):
            fine_tune(tiny, examples, training, tmp_path)
        assert not adapter_layers(tiny)
        with pytest.raises(ConfigError, match="there are no samples to train on"):
            fine_tune(tiny, [], SMALL, tmp_path)

    def test_a_folder_from_before_the_options_were_renamed_resumes(self, tiny, examples, trained):
        options = json.loads(
            '{"lora": {"rank": 2, "alpha": 8, "dropout": 0.1, "modules": ["q_proj", "k_proj", "v_proj", "o_proj"],'
            ' "seed": 0}, "fraction": 0.05, "epochs": 3, "learning_rate": 5e-3, "rising": 0.03, "batch_size": 5,'
            ' "fewest_steps": 16, "clip": 1.0, "seed": 0}'
        )
        assert SMALL.describe() == options
        keys = sorted(example.key for example in examples)
        state = read_checkpoint(trained / "epoch-1").state
        assert state["fingerprint"] == fingerprint(tiny.name, "float32", options, keys)

    def test_running_out_of_memory_names_the_work(self, tiny, examples, tmp_path, monkeypatch):
        def exhausted(*arguments):
            raise torch.OutOfMemoryError("CUDA out of memory")

        callback = InnerProducts(4, examples[4:], [0] * 36, size=2, steps=3, preconditioned=True)
        for module, name, work in (
            (gradient_products, "stream_gradients", "computing target gradients"),
            (trainer, "response_losses", "training on 1 samples"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(module, name, exhausted)
                with pytest.raises(ModelError, match=f"ran out of memory while {work}: lower `max_length`"):
                    fine_tune(tiny, examples[:4], SMALL, tmp_path / work, callback=callback)

    def test_the_random_state_of_the_caller_is_restored(self, tiny, examples, tmp_path):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        fine_tune(tiny, examples[:2], dataclasses.replace(SMALL, epochs=1), tmp_path)
        assert torch.equal(torch.rand(3), expected)


def test_choose_samples():
    chosen = choose_samples(1000, Training())
    assert len(chosen) == len(set(chosen.tolist())) == 50
    assert (np.diff(chosen) > 0).all()
    assert chosen.tolist() == choose_samples(1000, Training()).tolist()
    assert chosen.tolist() != choose_samples(1000, Training(seed=1)).tolist()
    assert choose_samples(100, Training()).shape == (32,)
    assert choose_samples(5, Training()).tolist() == [0, 1, 2, 3, 4]


class TestCheckpoints:
    @pytest.fixture
    def foreign(self, tiny, trained, shapes, tmp_path) -> Path:
        """The last epoch as a checkpoint of transformers' Trainer."""
        folder = tmp_path / "checkpoint-60"
        shutil.copytree(trained / "epoch-3", folder)
        (folder / "state.json").unlink()
        (folder / "optimizer.safetensors").unlink()
        with adapted(tiny, trained / "epoch-3", trainable=True) as adapter:
            weights = [weight for weight in adapter.parameters() if weight.requires_grad]
            optimizer = torch.optim.AdamW([{"params": weights, "weight_decay": 0.0}, {"params": []}], lr=1e-4)
            moments = read_moments(trained / "epoch-3", shapes)
            for weight, (first, second) in zip(weights, moments.values(), strict=True):
                optimizer.state[weight] = {"step": torch.tensor(60.0), "exp_avg": first, "exp_avg_sq": second}
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        log = [{"learning_rate": 2e-5, "loss": 1.0}, {"learning_rate": 1e-5}, {"train_runtime": 3.0}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
        return folder

    def test_of_transformers_trainer(self, trained, foreign, shapes):
        assert read_checkpoint(foreign).learning_rate == pytest.approx(1.5e-5)
        own, other = read_moments(trained / "epoch-3", shapes), read_moments(foreign, shapes)
        assert all(torch.equal(own[name][k], other[name][k]) for name in shapes for k in (0, 1))

    def test_code_in_an_optimizer_file_does_not_run(self, foreign, shapes, tmp_path):
        torch.save({"state": _Touch(str(tmp_path / "touched"))}, foreign / "optimizer.pt")
        with pytest.raises(ModelError, match=r"optimizer.pt cannot be read as the state of an Adam"):
            read_moments(foreign, shapes)
        assert not (tmp_path / "touched").exists()

    def test_missing_or_misshapen_moments_are_errors(self, foreign, shapes):
        name = next(iter(shapes))
        with pytest.raises(ModelError, match=f"has no exp_avg of shape .* for {name}"):
            read_moments(foreign, {**shapes, name: (1, 1)})
        with pytest.raises(ModelError, match=r"optimizer.pt cannot be read"):
            read_moments(foreign, {name: shapes[name]})
        (foreign / "optimizer.pt").unlink()
        with pytest.raises(ModelError, match=r"has no optimizer.safetensors and no optimizer.pt"):
            read_moments(foreign, shapes)

    def test_pickled_weights_are_refused(self, tiny, foreign):
        (foreign / "adapter_model.safetensors").rename(foreign / "adapter_model.bin")
        for use in (read_checkpoint, lambda folder: adapted(tiny, folder).__enter__()):
            with pytest.raises(ModelError, match=r"has no adapter_model.safetensors: give a folder that peft saved"):
                use(foreign)

    def test_an_adapter_that_is_not_plain_lora_is_refused(self, tiny, tmp_path):
        from peft import LoraConfig, get_peft_model

        adapter = get_peft_model(tiny.model, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
        adapter.save_pretrained(str(tmp_path))
        adapter.unload()
        with pytest.raises(ModelError, match=r"lora_magnitude_vector .* is not plain LoRA"), adapted(tiny, tmp_path):
            pass

    def test_an_adapter_of_another_model_is_refused(self, tiny, foreign):
        config = json.loads((foreign / "adapter_config.json").read_text())
        for change, message in (
            ({"r": 3}, "does not fit"),
            ({"target_modules": ["q_proj"]}, r"lora_A.weight is in one of them alone"),
        ):
            (foreign / "adapter_config.json").write_text(json.dumps({**config, **change}))
            with pytest.raises(ModelError, match=message), adapted(tiny, foreign):
                pass
            assert not adapter_layers(tiny)


class _Touch:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, 0) for name in ("epochs", "batch_size", "min_steps_per_epoch", "learning_rate", "fraction")],
        *[("max_grad_norm", -1.0), ("warmup_ratio", -0.1), ("warmup_ratio", 1.5), ("fraction", 1.5), ("seed", -1)],
    ],
)
def test_unusable_options_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"`training.{name}` {value} "):
        Training(**{name: value})
