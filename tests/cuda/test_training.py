"""Training, per-sample gradients and measurements on a GPU, beside the same on the CPU, in float32 without dropout."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from builders import samples, word_rows
from nncift.evaluation.answers.items import Items
from nncift.evaluation.answers.measurement import measure
from nncift.models.language_model import LanguageModel
from nncift.models.spec import ModelSpec
from nncift.models.text.examples import encode_examples, response_losses
from nncift.run.progress import moving
from nncift.training import trainer
from nncift.training.finetune import fine_tune
from nncift.training.gradients import Adam, batched_features
from nncift.training.lora import Lora, adapted, adapter_layers, adapter_weights
from nncift.training.random_projection import SignSketch
from nncift.training.settings import FineTuning
from nncift.training.trainer import Training

pytestmark = pytest.mark.filterwarnings("default")  # the libraries' warnings on a GPU are no failures

ROWS = samples(word_rows(11))
SHORT = FineTuning(epochs=2, learning_rate=1e-2, batch_size=4, rank=2, alpha=4)
WARM_UP = Training(lora=Lora(rank=4, alpha=16, dropout=0.0), epochs=2, learning_rate=1e-3, min_steps_per_epoch=3)
OPTIONS = {
    "plain": {},
    "weights": {"weights": np.linspace(0, 2, 11)},
    "phases": {"phases": [np.arange(5), np.arange(3, 11)]},
}


def losses(model: LanguageModel, adapter: Path) -> np.ndarray:
    """Of the rows, (n,), with an adapter."""
    with torch.no_grad(), adapted(model, adapter):
        found: np.ndarray = response_losses(model, encode_examples(model, ROWS, wording="chat")).cpu().numpy()
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_fine_tuning(name, on_cpu, on_device, tmp_path):
    before = {key: weight.clone() for key, weight in on_device.model.state_dict().items()}
    cpu, found = (
        losses(on_cpu, fine_tune(ModelSpec(model), ROWS, SHORT, tmp_path / str(k), **OPTIONS[name]))
        for k, model in enumerate((on_cpu, on_device))
    )
    np.testing.assert_allclose(found, cpu, rtol=0.02)
    after = on_device.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], weight) for key, weight in before.items())


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_fine_tuning_in_another_precision(dtype, model_folder, on_cpu, device, tmp_path):
    spec = ModelSpec(model_folder, device=device, dtype=dtype)
    if device != "cuda" and dtype is not None:
        pytest.skip("float16 is trained on CUDA alone")
    settings = FineTuning(epochs=3, learning_rate=1e-2, batch_size=4, rank=2, alpha=4, dropout=0.1)
    found = losses(on_cpu, fine_tune(spec, ROWS, settings, tmp_path / "trained"))
    with torch.no_grad():
        untrained = response_losses(on_cpu, encode_examples(on_cpu, ROWS, wording="chat")).numpy()
    assert found.mean() < untrained.mean()


class Interrupt(Exception):
    """Stops a training as a kill does."""


class Limit:
    """A progress bar that interrupts after so many samples."""

    def __init__(self, count: int) -> None:
        self.left = count

    def update(self, count: int) -> None:
        self.left -= count
        if self.left <= 0:
            raise Interrupt


def test_a_killed_fine_tuning_is_resumed(on_device, tmp_path):
    spec = ModelSpec(on_device)
    whole = losses(on_device, fine_tune(spec, ROWS, SHORT, tmp_path / "whole"))
    with pytest.raises(Interrupt), moving(Limit(16), 1000):
        fine_tune(spec, ROWS, SHORT, tmp_path / "resumed")
    np.testing.assert_allclose(losses(on_device, fine_tune(spec, ROWS, SHORT, tmp_path / "resumed")), whole, rtol=1e-3)


def test_activations_are_computed_anew_where_they_do_not_fit(on_device, tmp_path):
    spec = ModelSpec(on_device)
    whole = losses(on_device, fine_tune(spec, ROWS, SHORT, tmp_path / "whole"))
    full = iter([True])

    def fail_once(module, arguments):
        if next(full, False):
            raise torch.OutOfMemoryError("out of memory")

    hook = on_device.model.get_input_embeddings().register_forward_pre_hook(fail_once)
    try:
        found = losses(on_device, fine_tune(spec, ROWS, SHORT, tmp_path / "little memory"))
    finally:
        hook.remove()
    np.testing.assert_allclose(found, whole, rtol=1e-3)


def test_the_random_numbers_of_the_device_are_restored(on_device, device, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(4, device=device)
    torch.manual_seed(3)
    fine_tune(ModelSpec(on_device), ROWS, FineTuning(epochs=1, rank=2, dropout=0.1), tmp_path / "trained")
    assert torch.equal(torch.rand(4, device=device), expected)


def test_a_warm_up_and_its_resumption(on_cpu, on_device, tmp_path):
    examples = encode_examples(on_cpu, ROWS)
    cpu = trainer.fine_tune(on_cpu, examples, WARM_UP, tmp_path / "cpu")
    whole = trainer.fine_tune(on_device, examples, WARM_UP, tmp_path / "device")
    np.testing.assert_allclose(losses(on_cpu, whole[-1].folder), losses(on_cpu, cpu[-1].folder), rtol=0.01)
    shutil.copytree(tmp_path / "device/epoch-1", tmp_path / "resumed/epoch-1")
    resumed = trainer.fine_tune(on_device, examples, WARM_UP, tmp_path / "resumed")
    np.testing.assert_allclose(losses(on_cpu, resumed[-1].folder), losses(on_cpu, whole[-1].folder), rtol=1e-3)


@pytest.mark.parametrize("change", [None, "update", "scale"])
@pytest.mark.parametrize("dimension", [100, 10**6])
def test_projected_gradients_of_each_sample(dimension, change, on_cpu, on_device):
    examples, found = encode_examples(on_cpu, ROWS), []
    for model in (on_cpu, on_device):
        with adapted(model, Lora(rank=3, alpha=6)):
            weights = adapter_weights(model)
            shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
            sketch = SignSketch(shapes, dimension, device=model.device)
            moments = {name: (torch.full(shape, 1e-4), torch.full(shape, 1e-6)) for name, shape in shapes.items()}
            adam = Adam(moments, sketch.widths, device=model.device)
            preconditioned = None if change is None else getattr(adam, change)
            found.append(batched_features(model, examples, adapter_layers(model), sketch, preconditioned))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-3 * np.abs(found[0]).max())


def test_a_measurement_with_an_adapter(on_cpu, on_device, tmp_path):
    adapter = fine_tune(ModelSpec(on_cpu), ROWS, SHORT, tmp_path / "adapter")
    cpu, found = (
        measure(model, Items.read(ROWS, model), folder=tmp_path / str(k), adapter=adapter, max_new_tokens=12)
        for k, model in enumerate((on_cpu, on_device))
    )
    assert found.values.keys() == cpu.values.keys()
    np.testing.assert_allclose(found.values["loss"], cpu.values["loss"], rtol=1e-3)
    assert found.answers == cpu.answers
