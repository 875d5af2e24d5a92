"""A run keeps its precision, whatever the default of the machine that it goes on on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import nncift
from builders import write_rows
from nncift.errors import ConfigError
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.plan import plan
from nncift.run.storage.files import write_json

NATIVE, OTHER = {"avx512_bf16": True}, {"avx512_f": True}


@pytest.fixture
def machine(monkeypatch):
    return lambda capabilities: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.fixture
def options(tmp_path: Path, tiny_model):
    rows = [{"id": f"{i}", "question": f"What is {i} plus {i % 7}?", "answer": f"{i + i % 7}"} for i in range(24)]
    return {
        "pool": write_rows(tmp_path / "pool.jsonl", rows),
        "target": write_rows(tmp_path / "target.jsonl", [row | {"id": f"t{row['id']}"} for row in rows[:4]]),
        "influence": "delift",
        "features": "lm",
        "labels": 60,
        **{"model": tiny_model, "budget": 0.2, "device": "cpu"},
    }


def precisions(run: Path) -> tuple[str, str]:
    """In the run's config, and of its exact values."""
    config, function = (json.loads((run / name).read_text()) for name in ("config.json", "function.json"))
    assert config["dtype"] is None
    return config["precision"], function["dtype"]


@pytest.mark.parametrize(("first", "then"), [(NATIVE, OTHER), (OTHER, NATIVE)])
def test_an_interrupted_run_goes_on_in_its_precision(machine, options, tmp_path: Path, caplog, first, then):
    precision = "bfloat16" if first is NATIVE else "float32"
    machine(first)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    selection = nncift.select(output=whole, **options)
    assert precisions(whole) == (precision, precision)
    shutil.copytree(whole, cut)
    for name in ("features/target.npy", "labels/labels.parquet", "network/model.safetensors", "selection.parquet"):
        (cut / name).unlink()
    machine(then)
    plan(make_config(output=cut, **options))
    again = nncift.select(output=cut, **options)
    assert precisions(cut) == (precision, precision)
    assert ("goes on in bfloat16" in caplog.text) == (first is NATIVE)
    for name in ("features/target.npy", "labels/labels.parquet", "network/model.safetensors", "selection.parquet"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert again.indices.tolist() == selection.indices.tolist()
    nncift.select(output=cut, dtype=precision, **options)  # its default by name
    other = "float32" if precision == "bfloat16" else "bfloat16"
    with pytest.raises(ConfigError, match=f"dtype: None there, '{other}' now, precision: '{precision}' there"):
        nncift.select(output=cut, dtype=other, **options)


def test_a_run_of_an_earlier_version_goes_on_in_float32(machine, options, tmp_path: Path):
    machine(OTHER)
    run = tmp_path / "run"
    nncift.select(output=run, **options)
    config = json.loads((run / "config.json").read_text())
    del config["precision"]
    write_json(run / "config.json", config)
    (run / "labels/labels.parquet").unlink()
    machine(NATIVE)
    nncift.select(output=run, **options)
    assert json.loads((run / "config.json").read_text()) == config
    assert json.loads((run / "function.json").read_text())["dtype"] == "float32"
    nncift.select(options["pool"], from_run=run, output=tmp_path / "second", budget=0.3)
    assert "labels: 60 pairs taken" in (tmp_path / "second/taken.json").read_text()
