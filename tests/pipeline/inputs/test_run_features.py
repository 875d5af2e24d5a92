"""The features of a run: the language model's beside the sentence embedding, alone, and of a fitted network."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import nncift
import nncift.pipeline.plan
from builders import EstimatedBM25, write_rows
from nncift.config import Config
from nncift.data.pool import load_pool
from nncift.errors import ModelError
from nncift.estimator.network import InfluenceNetwork
from nncift.features.base import read_source
from nncift.features.language_model import LanguageModelFeatures
from nncift.features.sources import SketchSettings
from nncift.influence.delift import Delift
from nncift.influence.gradient_sketch import GradientSketch
from nncift.models.language_model import LanguageModel
from nncift.models.spec import ModelSpec
from nncift.models.text.examples import encode_examples
from nncift.pipeline.components.influences import default_features
from pipeline_runs import arithmetic

LAZY = ModelSpec("embedded")  # loaded on first use, so never here


def test_a_fitted_network_selects_new_data_without_influence(pool, target, options, tmp_path: Path):
    learned = tmp_path / "learned"
    nncift.select(pool, target=target, output=learned, influence="delift", **options)
    new = write_rows(tmp_path / "new.jsonl", arithmetic(30, offset=200))
    run = tmp_path / "new-run"
    # A language model that does not exist shows that none is loaded; the encoder is the one it learned with.
    selection = nncift.select(new, network=learned, budget=3, output=run, model="./none", device="cpu")
    assert len(selection.indices) == 3
    assert not (run / "labels").exists()
    assert (run / "report.html").exists()
    np.testing.assert_array_equal(np.load(run / "features/target.npy"), np.load(learned / "features/target.npy"))
    again = nncift.select(new, network=learned, budget=3, output=run, model="./none", device="cpu")
    np.testing.assert_array_equal(again.indices, selection.indices)
    plan = nncift.pipeline.plan.plan(Config(new, network=str(learned), budget="3", device="cpu"))
    assert (plan.pairs, plan.targets, plan.all_pairs, plan.tokens) == (0, 8, 30 * 8, None)
    # A target of its own takes the place of the learned one.
    other = nncift.select(
        new, network=learned / "network", target=target, budget=3, output=tmp_path / "other", device="cpu"
    )
    np.testing.assert_array_equal(other.indices, selection.indices)
    np.save(tmp_path / "narrow.npy", np.zeros((30, 5), np.float32))
    with pytest.raises(ModelError, match=r"needs the features sentence \("):
        nncift.select(
            new, network=learned, features=tmp_path / "narrow.npy", budget=3, output=tmp_path / "narrow", device="cpu"
        )
    with pytest.raises(ModelError, match="holds no learned network"):
        nncift.select(new, network=tmp_path, budget=3, output=tmp_path / "nothing")


def test_language_model_features_beside_the_sentence_embedding(pool, target, options, tmp_path: Path):
    run = tmp_path / "run"
    options = {**options, "influence": "delift", "features": "sentence,lm"}
    selection = nncift.select(pool, target=target, output=run, **options)
    model = LanguageModel.load(options["model"], device="cpu")
    for side, samples in (("pool", load_pool(pool)), ("target", load_pool(target))):
        found = np.load(run / f"features/{side}.lm.npy")
        np.testing.assert_allclose(
            found, read_source(samples, LanguageModelFeatures(ModelSpec(model)))[:], rtol=1e-3, atol=1e-3
        )
        assert np.load(run / f"features/{side}.npy").shape == (len(samples), 384)
    network = InfluenceNetwork.from_pretrained(run / "network")
    assert network.widths[0] == 384 + found.shape[1]
    assert network.description_["features"] == {
        "encoder": options["encoder"],
        "own": None,
        "language_model": options["model"],
    }
    stages = json.loads((run / "costs.json").read_text())["stages"]
    examples = [encode_examples(model, load_pool(part)) for part in (pool, target)]
    assert stages["features"]["forward_tokens"] == sum(len(example.ids) for part in examples for example in part)
    plain = nncift.select(pool, target=target, output=tmp_path / "plain", **{**options, "features": None})
    labels = json.loads((tmp_path / "plain/costs.json").read_text())["stages"]["labels"]
    assert stages["labels"]["forward_tokens"] == labels["forward_tokens"]  # not counted twice
    methods = json.loads((run / "fidelity.json").read_text())["quadrants"]["Q2"]["methods"]
    without_labels = ("gradient sketch", "response similarity", "cosine")
    assert set(methods) == {"network", *without_labels, "target mean", "constant"}
    assert '<th scope="row">response similarity</th>' in (run / "report.html").read_text()
    assert "gradient sketch, the default influence function" in (run / "report.html").read_text()
    labelled = pq.read_table(run / "labels/labels.parquet")
    numbers = [np.unique(labelled[name].to_numpy()) for name in ("pool_index", "target_index")]
    ids = {tuple(part[int(i)].ids) for part, some in zip(examples, numbers, strict=True) for i in some}
    assert stages["network"]["forward_tokens"] == sum(len(one) - 1 for one in ids)  # the sketch of the labelled samples
    assert not (run / "labels/without-labels").exists()
    assert len(plain.indices) == len(selection.indices)
    assert nncift.pipeline.plan.plan(Config(str(pool), target=str(target), **options)).seconds["features"] > 0
    # New data for the network that it learned get the same features, or a clear word.
    new = write_rows(tmp_path / "new.jsonl", arithmetic(20, offset=200))
    nncift.select(new, network=run, budget=3, output=tmp_path / "new", device="cpu")
    assert np.load(tmp_path / "new/features/pool.lm.npy").shape == (20, found.shape[1])
    with pytest.raises(ModelError, match=r"needs the features sentence \(.*, lm \("):
        nncift.select(new, network=run, features="sentence", budget=3, output=tmp_path / "other", device="cpu")


def test_a_sketch_among_the_features_needs_no_pass_of_its_own(pool, target, options, tmp_path: Path):
    run = tmp_path / "run"
    options = {**options, "influence": "delift", "features": "sentence,lm,gradient-sketch"}
    nncift.select(pool, target=target, output=run, **options)
    stages = json.loads((run / "costs.json").read_text())["stages"]
    assert stages["network"]["forward_tokens"] == 0
    network = InfluenceNetwork.from_pretrained(run / "network")
    assert network.description_["features"]["gradient_sketch"] == asdict(SketchSettings())
    methods = json.loads((run / "fidelity.json").read_text())["quadrants"]["Q2"]["methods"]
    assert {"gradient sketch", "response similarity", "cosine"} < set(methods)
    assert "gradient sketch, the default influence function" in (run / "report.html").read_text()
    new = write_rows(tmp_path / "new.jsonl", arithmetic(20, offset=200))
    nncift.select(new, network=run, budget=3, output=tmp_path / "new", device="cpu")
    assert np.load(tmp_path / "new/features/pool.lm.npy").shape == (20, network.widths[0] - 384)


@pytest.mark.parametrize(
    ("influence", "given", "names"),
    [
        (Delift(LAZY), {}, ("lm",)),
        (Delift(LAZY), {"encoder": "embedded"}, ("sentence", "lm")),  # which is named, so it is used
        (Delift(LAZY), {"recipe": "paper"}, ("sentence",)),
        (EstimatedBM25(), {}, ("sentence",)),
        (GradientSketch(LAZY), {"encoder": "embedded"}, ()),  # exact for every pair
    ],
)
def test_default_features(influence, given, names):
    assert default_features(Config("pool.jsonl", **given), influence) == names


def test_the_language_models_features_alone(pool, target, options, tmp_path: Path):
    del options["encoder"]
    run = tmp_path / "run"
    nncift.select(pool, target=target, output=run, features="lm", influence="builders:EstimatedBM25", **options)
    assert not (run / "features/pool.lm.npy").exists()
    assert InfluenceNetwork.from_pretrained(run / "network").widths[0] == np.load(run / "features/pool.npy").shape[1]
    assert (run / "report.html").exists()


def test_fidelity_leaves_out_samples_that_the_prior_was_fitted_to(
    pool, target, options, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    before, run = tmp_path / "before", tmp_path / "run"
    nncift.select(pool, target=target, output=before, influence="delift", **options)
    nncift.select(pool, target=target, output=run, network=before, influence="delift", **options)
    judged = [json.loads((folder / "fidelity.json").read_text())["held_out"]["pool"] for folder in (before, run)]
    assert judged[0] > judged[1]  # the same seed draws the same samples
    assert "among those that the prior was fitted to" in caplog.text
