"""Settings, weights and phases that fine-tuning refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from builders import samples, word_rows
from nncift.errors import ConfigError, ModelError
from nncift.models.spec import ModelSpec
from nncift.training.finetune import fine_tune
from nncift.training.settings import FineTuning

SHORT = FineTuning(epochs=2, batch_size=4, rank=2, alpha=4)
ROWS = samples(word_rows(11))


@pytest.fixture(scope="module")
def spec(tiny) -> ModelSpec:
    return ModelSpec(tiny)


@pytest.mark.parametrize(
    "option",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"batch_size": 0},
        {"warmup_ratio": 1.5},
        {"dropout": 1.0},
        {"rank": 0},
        {"modules": ()},
        {"max_length": 1},
        {"seed": -1},
    ],
)
def test_settings(option):
    with pytest.raises(ConfigError, match=f"`{next(iter(option))}`"):
        FineTuning(**option)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": np.ones(3)},
        {"weights": np.full(11, -1.0)},
        {"weights": np.zeros(11)},
        {"weights": np.full(11, np.nan)},
        {"phases": []},
        {"phases": [np.array([], np.int64)]},
        {"phases": [np.array([11])]},
    ],
    ids=str,
)
def test_weights_and_phases(spec, tmp_path, options):
    with pytest.raises(ConfigError, match=f"`{next(iter(options))}`"):
        fine_tune(spec, ROWS, SHORT, tmp_path, **options)


def test_no_rows(spec, tmp_path):
    with pytest.raises(ConfigError, match="no samples"):
        fine_tune(spec, ROWS.select([]), SHORT, tmp_path)


def test_no_such_layers(spec, tmp_path):
    with pytest.raises(ModelError, match="does not fit"):
        fine_tune(spec, ROWS, dataclasses.replace(SHORT, modules=("nowhere",)), tmp_path)


def test_unknown_tracker(spec, tmp_path):
    with pytest.raises(ConfigError, match="`report_to` nobody"):
        fine_tune(spec, ROWS, dataclasses.replace(SHORT, report_to=("nobody",)), tmp_path)


def test_quantized_model_on_the_cpu(tiny_model, tmp_path):
    pytest.importorskip("bitsandbytes")
    spec = ModelSpec(tiny_model, dtype="8bit", device="cpu")
    with pytest.raises(ConfigError, match="`dtype` 8bit"):
        fine_tune(spec, ROWS, SHORT, tmp_path)
