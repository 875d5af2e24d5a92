"""Fine-tuning that can be killed, and checkpoints: ours, and those of transformers' Trainer."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nncift.errors import ConfigError, ModelError, RunError
from nncift.models.examples import Example, response_losses
from nncift.models.language_model import LanguageModel
from nncift.training.checkpoints import read_checkpoint, read_moments
from nncift.training.lora import Lora, adapted, adapter_layers, adapter_weights
from nncift.training.trainer import Training, choose_samples, fine_tune

SMALL = Training(lora=Lora(rank=2, alpha=8), epochs=3, learning_rate=5e-3, batch_size=5)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Forty samples of random tokens, so that the only way to a lower loss is to learn them."""
    rng = np.random.default_rng(0)
    return [Example(str(k), rng.integers(100, 200, 6 + k % 7).tolist(), 2 + k % 3, False) for k in range(40)]


@pytest.fixture(scope="module")
def trained(tiny, examples, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    fine_tune(tiny, examples, SMALL, folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def shapes_of(model: LanguageModel, folder: Path) -> dict[str, tuple[int, ...]]:
    with adapted(model, folder):
        return {name: tuple(weight.shape) for name, weight in adapter_weights(model).items()}


class TestFineTune:
    def test_learns(self, tiny, examples, trained):
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

    def test_learning_rate_rises_and_falls(self, trained):
        rates = [read_checkpoint(trained / f"epoch-{epoch}").learning_rate for epoch in (1, 2, 3)]
        # 40 samples in batches of 2 (16 steps need no more than 2) are 20 steps an epoch, 60 in all, 2 of them rising
        steps = [min((step + 1) / 3, (60 - step) / 58) * SMALL.learning_rate for step in range(60)]
        np.testing.assert_allclose(rates, np.reshape(steps, (3, 20)).mean(axis=1))

    def test_moments_are_those_of_adam(self, tiny, examples, tmp_path):
        """One step: the first moment is a tenth of the gradient, the second a thousandth of its square."""
        training = dataclasses.replace(SMALL, lora=Lora(rank=2, alpha=8, dropout=0.0), epochs=1, clip=1e9)
        (point,) = fine_tune(tiny, examples[:1], training, tmp_path)
        with adapted(tiny, training.lora, trainable=True):
            response_losses(tiny, examples[:1]).sum().backward()
            gradients = {name: weight.grad.clone() for name, weight in adapter_weights(tiny).items()}
        moments = read_moments(point.folder, {name: gradient.shape for name, gradient in gradients.items()})
        for name, gradient in gradients.items():
            torch.testing.assert_close(moments[name][0], 0.1 * gradient, rtol=1e-4, atol=1e-8)
            torch.testing.assert_close(moments[name][1], 0.001 * gradient**2, rtol=1e-4, atol=1e-12)
        assert any(gradient.abs().max() > 1e-4 for gradient in gradients.values())

    def test_same_bytes_again_and_after_any_epoch(self, tiny, examples, trained, tmp_path):
        fine_tune(tiny, examples, SMALL, tmp_path / "again")
        assert content(tmp_path / "again") == content(trained)
        for done in (1, 2):
            folder = tmp_path / f"from-{done}"
            for epoch in range(1, done + 1):
                shutil.copytree(trained / f"epoch-{epoch}", folder / f"epoch-{epoch}")
            fine_tune(tiny, examples, SMALL, folder)
            assert content(folder) == content(trained)

    def test_killed_and_resumed(self, tiny, tiny_model, examples, trained, tmp_path):
        """SIGKILL after the first epoch; the same call goes on and ends with the same bytes."""
        code = f"""
from pathlib import Path
from nncift.training.lora import Lora
from nncift.models.examples import Example
from nncift.models.language_model import LanguageModel
from nncift.training.trainer import (
    Training,
    fine_tune,
)
model = LanguageModel.load({tiny_model!r}, device="cpu")
fine_tune(model, {examples!r}, {SMALL!r}, Path({str(tmp_path)!r}))
"""
        process = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
        until = time.monotonic() + 120
        while not (tmp_path / "epoch-1").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "epoch-1").exists()
        first = (tmp_path / "epoch-1" / "optimizer.safetensors").stat().st_mtime_ns
        fine_tune(tiny, examples, SMALL, tmp_path)
        assert content(tmp_path) == content(trained)
        assert (tmp_path / "epoch-1" / "optimizer.safetensors").stat().st_mtime_ns == first

    def test_a_folder_of_another_training_is_refused(self, tiny, examples, trained):
        for other, settings in ((examples[1:], SMALL), (examples, dataclasses.replace(SMALL, seed=1))):
            with pytest.raises(RunError, match="holds the training of other samples or settings"):
                fine_tune(tiny, other, settings, trained)

    def test_layers_that_are_not_there(self, tiny, examples, tmp_path):
        training = dataclasses.replace(SMALL, lora=Lora(modules=("c_attn",)))
        with pytest.raises(ModelError, match=r"an adapter on \('c_attn',\) does not fit"):
            fine_tune(tiny, examples, training, tmp_path)
        assert not adapter_layers(tiny)

    def test_settings_are_checked(self, tiny, tmp_path):
        for wrong in ({"epochs": 0}, {"batch_size": 0}, {"fewest_steps": 0}, {"fraction": 0.0}, {"fraction": 1.5}):
            with pytest.raises(ConfigError, match=next(iter(wrong))):
                Training(**wrong)
        with pytest.raises(ConfigError, match="there are no samples to train on"):
            fine_tune(tiny, [], SMALL, tmp_path)

    def test_random_numbers_of_the_caller_go_on(self, tiny, examples, tmp_path):
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
    def foreign(self, tiny, trained, tmp_path) -> Path:
        """What transformers' Trainer would have left of the last epoch."""
        folder = tmp_path / "checkpoint-60"
        shutil.copytree(trained / "epoch-3", folder)
        (folder / "state.json").unlink()
        (folder / "optimizer.safetensors").unlink()
        with adapted(tiny, trained / "epoch-3", trainable=True) as adapter:
            weights = [weight for weight in adapter.parameters() if weight.requires_grad]
            optimizer = torch.optim.AdamW([{"params": weights, "weight_decay": 0.0}, {"params": []}], lr=1e-4)
            moments = read_moments(trained / "epoch-3", {n: w.shape for n, w in adapter_weights(tiny).items()})
            for weight, (first, second) in zip(weights, moments.values(), strict=True):
                optimizer.state[weight] = {"step": torch.tensor(60.0), "exp_avg": first, "exp_avg_sq": second}
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        log = [{"learning_rate": 2e-5, "loss": 1.0}, {"learning_rate": 1e-5}, {"train_runtime": 3.0}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
        return folder

    def test_of_the_trainer(self, tiny, trained, foreign):
        assert read_checkpoint(foreign).learning_rate == pytest.approx(1.5e-5)
        shapes = shapes_of(tiny, foreign)
        own, other = read_moments(trained / "epoch-3", shapes), read_moments(foreign, shapes)
        for name in shapes:
            for first, second in zip(own[name], other[name], strict=True):
                assert torch.equal(first, second)

    def test_code_in_an_optimizer_file_does_not_run(self, tiny, foreign, tmp_path):
        shapes = shapes_of(tiny, foreign)
        torch.save({"state": _Touch(str(tmp_path / "touched"))}, foreign / "optimizer.pt")
        with pytest.raises(ModelError, match=r"optimizer.pt cannot be read as the state of an Adam"):
            read_moments(foreign, shapes)
        assert not (tmp_path / "touched").exists()

    def test_moments_that_are_missing_or_do_not_fit(self, tiny, foreign):
        shapes = shapes_of(tiny, foreign)
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

    def test_an_adapter_that_is_not_plain_lora(self, tiny, tmp_path):
        from peft import LoraConfig, get_peft_model

        adapter = get_peft_model(tiny.model, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
        adapter.save_pretrained(str(tmp_path))
        adapter.unload()
        with pytest.raises(ModelError, match=r"lora_magnitude_vector .* is not plain LoRA"), adapted(tiny, tmp_path):
            pass

    def test_an_adapter_of_another_model(self, tiny, foreign):
        config = json.loads((foreign / "adapter_config.json").read_text())
        (foreign / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
        with pytest.raises(ModelError, match="does not fit"), adapted(tiny, foreign):
            pass
        assert not adapter_layers(tiny)
        (foreign / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
        with pytest.raises(ModelError, match=r"lora_A.weight is in one of them alone"), adapted(tiny, foreign):
            pass
        assert not adapter_layers(tiny)


class _Touch:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": 0.0}, {"clip": -1.0}, {"rising": -0.1}, {"rising": 1.5}, {"seed": -1}, {"fraction": 0}]
)
def test_settings_that_cannot_be_used_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Training(**wrong)
