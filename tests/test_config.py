"""Configs: options that do not go together, the run folder; the public names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import nncift
from nncift.config import Config
from nncift.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "runs/a", "influence": "delift"}, "network"),
        ({"network": "runs/a", "labels": "10", "recipe": "paper"}, "`network` cannot be given with it"),
        ({"features": "f.npy", "encoder": "e"}, "encoder.? was given"),
        ({"features": "lm", "encoder": "e"}, "encoder.? was given"),
        ({"features": "lm,lm"}, "names one twice"),
        ({"features": "sentence,gradient-sketch"}, "comes from the pass of lm"),
        ({"features": "sentence,"}, "or none"),
        ({"features": "one,lm,two"}, "several of your own"),
        ({"features": "sentence,lm", "target": "t.jsonl", "target_features": "t.npy"}, "of your own"),
        ({"features": "lm,f.npy", "target": "t.jsonl"}, "target.features"),
        ({"features": "f.npy", "target": "t.jsonl"}, "target.features"),
        ({"prompt_field": "q"}, "response.field"),
        ({"eta": 1.0}, "`eta` 1.0 needs `target`"),
        ({"nu": 1.0}, "`nu` 1.0 needs `known`"),
        ({"known_split": "train"}, "`known_split` train needs `known`"),
        ({"known": "k.jsonl", "features": "f.npy"}, "and `known` has none"),
        ({"target": ""}, "`target` is empty"),
        ({"fidelity": 0.6}, "`fidelity` 0.6 needs `labels` auto"),
        ({"labels": "auto", "fidelity": 1.5}, "at most 1"),
        ({"verify": 0.5}, "`verify` is 0.5"),
        ({"probes": 0}, "`probes` is 0"),
        ({"probes": 2, "recipe": "paper"}, "no posterior variance, so `probes`"),
        ({"labels_from": "labels.csv", "verify": 2}, "`labels_from` provides the exact values, so `verify`"),
        ({"labels": "0", "network": "runs/a", "influence": "bm25"}, "`network` computes no influence, so `influence`"),
        ({"batch_size": 0}, "batch.size"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Config("pool.jsonl", **options)


def test_the_run_folder_defaults_to_the_pools_name():
    assert Config("data/alpaca.jsonl.gz").folder == Path("runs/alpaca")
    assert Config("a.jsonl", output="out").folder == Path("out")
    assert "output" not in Config("a.jsonl").identity()


def test_public_names_are_sorted_and_exist():
    assert nncift.__all__ == sorted(nncift.__all__)
    for name in nncift.__all__:
        assert getattr(nncift, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = nncift.no_such_name


def test_importing_the_command_line_loads_no_heavy_library():
    script = (
        "import sys, nncift.cli; "
        "print([m for m in ('torch','transformers','datasets','numba','matplotlib','numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rooms_below_the_models_and_the_report_import_no_torch():
    script = (
        "import importlib, pkgutil, sys, nncift\n"
        "for room in ('run', 'data', 'matrix', 'selection', 'report'):\n"
        "    package = importlib.import_module(f'nncift.{room}')\n"
        "    for module in pkgutil.walk_packages(package.__path__, f'nncift.{room}.'):\n"
        "        importlib.import_module(module.name)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
