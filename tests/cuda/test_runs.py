"""Whole runs of the command line on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nncift.cli import main

pytestmark = pytest.mark.filterwarnings("default")  # the libraries' warnings on a GPU are no failures


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert not stop.value.code


@pytest.fixture
def select(files, model_folder, encoder_folder, tmp_path):
    """Runs `nncift select` on a device."""

    def select(place: str, *arguments: object) -> Path:
        output = tmp_path / f"run-{place}"
        models = ("--model", model_folder, "--encoder", encoder_folder, "--device", place)
        run(
            "select", files["pool"], "--target", files["target"], *models, "--budget", 5, "--output", output, *arguments
        )
        return output

    return select


@pytest.mark.parametrize("dtype", [("--dtype", "float32"), ()], ids=["float32", "default"])
def test_exact_influence(dtype, select, device):
    folders = [select(place, "--influence", "gradient-sketch", *dtype, "--quiet") for place in ("cpu", device)]
    cpu, found = (np.load(folder / "influence.npy") for folder in folders)
    if dtype:
        np.testing.assert_allclose(found, cpu, rtol=2e-3)
    assert np.corrcoef(found, cpu)[0, 1] > 0.9
    assert len((folders[1] / "subset.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("features", ["sentence", "sentence,lm"])
@pytest.mark.parametrize("dtype", [("--dtype", "float32"), ()], ids=["float32", "default"])
def test_estimated_influence(dtype, features, select, device):
    options = ("--influence", "delift", "--labels", 100, "--features", features, "--quiet", *dtype)
    folders = [select(place, *options) for place in ("cpu", device)]
    cpu, found = (np.load(folder / "influence.npy") for folder in folders)
    assert np.isfinite(found).all()
    if dtype:
        assert np.corrcoef(found, cpu)[0, 1] > 0.95
    assert len((folders[1] / "subset.jsonl").read_text().splitlines()) == 5


def test_a_comparison(files, model_folder, encoder_folder, device, tmp_path):
    """In the default dtype; the trainings and measurements that it is made of are compared with the CPU's elsewhere."""
    models = ("--model", model_folder, "--encoder", encoder_folder, "--device", device)
    options = ("--influence", "bm25", "--budget", 6, "--curve", "3,6", "--units", "rows", "--methods", "lora")
    trained = ("--seeds", 1, "--epochs", 1, "--max-new-tokens", 12, "--quiet", "--output", tmp_path / "comparison")
    run("compare", files["pool"], "--test", files["test"], *models, *options, *trained)
    cells = json.loads((tmp_path / "comparison/results.json").read_text())["cells"]
    assert {"random", "bm25"} <= {cell["selector"] for cell in cells}
