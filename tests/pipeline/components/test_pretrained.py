"""The network that comes with nncift, and making one for another language model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import nncift
from builders import write_rows
from nncift.cli import main
from nncift.config import Config
from nncift.errors import ModelError
from nncift.estimator.network import InfluenceNetwork
from nncift.models.locate import network_folder
from nncift.models.spec import DEFAULT_MODEL
from nncift.pipeline.context import Run
from nncift.run.folder.folder import RunFolder


def qa(pairs: list[tuple[str, str]]) -> list[dict]:
    return [{"prompt": prompt, "response": response} for prompt, response in pairs]


def test_it_is_small_and_describes_itself():
    folder = Path(network_folder("pretrained"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    network = InfluenceNetwork.from_pretrained(folder)
    assert network.description_["influence"]["name"] == "less"
    assert network.description_["pairs"] == 240 * 160
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "linear datamodeling score" in card
    assert "benchmarks/pretrain.py" in card


def test_it_ranks_a_pool_without_labels(tmp_path: Path):
    sums = [(f"What is {i} plus {i + 3}?", str(2 * i + 3)) for i in range(12)]
    reviews = [
        (f"Is this review of a {thing} positive? I {verb} it.", answer)
        for thing in ("film", "book", "phone", "hotel", "meal", "song")
        for verb, answer in (("loved", "positive"), ("hated", "negative"))
    ]
    pool = write_rows(tmp_path / "pool.jsonl", qa(sums + reviews))
    target = write_rows(
        tmp_path / "target.jsonl", qa([("Is this review of a play positive? I adored it.", "positive")])
    )
    run = tmp_path / "run"
    selection = nncift.select(
        pool,
        target=target,
        network="pretrained",
        budget=6,
        output=run,
        model="embedded",
        encoder="embedded",
        device="cpu",
    )
    assert (selection.indices >= 12).mean() > 0.8
    assert not (run / "labels").exists()
    assert not (run / "fidelity.json").exists()
    assert np.isfinite(np.load(run / "influence.npy")).all()
    assert json.loads((run / "config.json").read_text())["network"] == "pretrained"


def test_it_is_for_one_language_model(tmp_path: Path):
    def language_model(**options):
        return Run.resolve(
            Config("pool.jsonl", network="pretrained", **options), RunFolder(tmp_path), {}
        ).features.language_model

    assert language_model() == DEFAULT_MODEL
    assert language_model(model="embedded") == "embedded"
    with pytest.raises(ModelError, match=r"fitted to HuggingFaceTB.*not org/other: make one: nncift pretrain --model"):
        language_model(model="org/other")


@pytest.mark.parametrize(
    ("options", "labels", "network"),
    [
        ({}, "0", None),  # gradient-sketch
        ({"influence": "less"}, "0", None),
        ({"network": "pretrained"}, None, "pretrained"),
        ({"network": "runs/mine"}, None, "runs/mine"),
        ({"influence": "less", "verify": 2}, "0", None),  # less measures the shortlist of gradient-sketch
        ({"influence": "less", "probes": 2}, None, "pretrained"),  # which complete a network's estimate
        ({"influence": "less", "probes": 2, "verify": 2}, None, "pretrained"),
    ],
)
def test_it_is_taken_without_labels_only_where_it_is_named_or_completed(options, labels, network):
    made = Config("pool.jsonl", labels="0", **options)
    assert (made.labels, made.network) == (labels, network)
    assert made.unlabelled == (network is None)
    assert replace(made, seed=1) == Config("pool.jsonl", labels=" 0 ", seed=1, **options)


def test_pretrain_makes_one_for_another_language_model(tmp_path: Path, minilm, tiny_model, capsys):
    pool = write_rows(
        tmp_path / "pool.jsonl", qa([(f"Say {i} and {i * 7 % 5}", f"{i} {i * 7 % 5}") for i in range(60)])
    )
    options = ["--model", tiny_model, "--encoder", minilm, "--device", "cpu", "--quiet"]
    with pytest.raises(SystemExit, match="0"):
        main(["pretrain", pool, *options, "--labels", "200", "--output", str(tmp_path / "made")])
    said = capsys.readouterr().out
    assert f"Use it: nncift select POOL --network {tmp_path / 'made'}" in said
    network = InfluenceNetwork.from_pretrained(tmp_path / "made/network")
    assert network.description_["influence"]["preconditioned"] == "both"
    new = write_rows(tmp_path / "new.jsonl", qa([(f"Name {i}", f"{i}") for i in range(20)]))
    common = ["--network", str(tmp_path / "made"), "--budget", "3", "--device", "cpu", "--quiet"]
    with pytest.raises(SystemExit, match="0"):
        main(["select", new, *common, "--output", str(tmp_path / "chosen")])
    assert len((tmp_path / "chosen/subset.jsonl").read_text().splitlines()) == 3
