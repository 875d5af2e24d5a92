"""Named columns apply to the sides that have them; a pool that is too small is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

import nncift
from builders import write_jsonl
from nncift.errors import ConfigError

POOL = [{"instruction": f"q {i}", "output": f"a {i * i}"} for i in range(12)]
TARGET = [{"ask": f"q {i}", "reply": f"a {i}"} for i in range(4)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pool.jsonl", POOL)
    write_jsonl(tmp_path / "target.jsonl", TARGET)
    np.save("pool.npy", np.random.default_rng(0).normal(size=(12, 4)))
    np.save("target.npy", np.random.default_rng(1).normal(size=(4, 4)))
    return tmp_path


def select(**options):
    given = {"features": "pool.npy", "target_features": "target.npy", "target": "target.jsonl", "labels": 40}
    return nncift.select(
        "pool.jsonl", influence="builders:EstimatedBM25", output="run", **{"budget": 3} | given | options
    )


def test_named_columns_of_one_side(folder):
    assert len(select(prompt_field="ask", response_field="reply")) == 3
    facts = {side: json.loads(Path(f"run/{side}/facts.json").read_text()) for side in ("pool", "target")}
    assert (facts["pool"]["schema"], facts["target"]["schema"]) == ("Alpaca", "ask/reply")


def test_named_columns_of_no_side(folder):
    write_jsonl(folder / "target.jsonl", POOL[:4])
    message = (
        "none of the data has the columns 'ask' and 'reply': columns that were read instead, "
        "of the pool: instruction, input, output; of the target: instruction, input, output"
    )
    with pytest.raises(ConfigError, match=message):
        select(prompt_field="ask", response_field="reply")
    assert not Path("run").exists()


@pytest.mark.parametrize("labels", ["40", "2s", "100%"])
def test_a_pool_of_two_samples_is_refused_with_advice_that_helps(folder, labels):
    write_jsonl(folder / "pool.jsonl", POOL[:2])
    np.save("pool.npy", np.ones((2, 4)))
    with pytest.raises(ConfigError, match="a pool of 2 samples is too small to fit a network: give one of at least 3"):
        select(target=None, target_features=None, labels=labels, budget=1)
    assert not Path("run").exists()
