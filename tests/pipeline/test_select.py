"""The main job end to end: what it writes, that it survives being killed at every file, and fitted networks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

import nncift
import nncift.pipeline.plan
from builders import word_rows, write_rows
from nncift.config import Config
from nncift.data.pool import load_pool
from nncift.errors import ConfigError, DataError, ModelError, RunError
from nncift.estimator.network import InfluenceNetwork
from nncift.features.base import read_source
from nncift.features.features import stored_features
from nncift.features.language_model import LanguageModelFeatures
from nncift.features.sources import SketchSettings
from nncift.influence.catalogue import BUILT_IN, is_factored
from nncift.labels.design import PairPlan
from nncift.models.examples import encode_examples
from nncift.models.language_model import LanguageModel
from nncift.models.spec import ModelSpec
from nncift.pipeline.configure import make_config
from nncift.run.files import write_json
from nncift.run.folder import RunFolder

# The files that must be the same bytes after a resume; the log, costs and what is drawn from them are exempt.
SAME_BYTES = (
    "config.json",
    "pool/samples.arrow",
    "target/samples.arrow",
    "features/pool.npy",
    "features/target.npy",
    "labels/plan.json",
    "labels/labels.parquet",
    "network/config.json",
    "network/model.safetensors",
    "fidelity.json",
    "influence.npy",
    "selection.parquet",
    "subset.jsonl",
)


def arithmetic(n: int, offset: int = 0) -> list[dict]:
    return [
        {"id": f"sum-{i}", "question": f"What is {i} plus {i % 7}?", "answer": f"{i + i % 7}", "family": "sums"}
        for i in range(offset, offset + n)
    ]


@pytest.fixture
def pool(tmp_path: Path) -> str:
    return write_rows(tmp_path / "pool.jsonl", arithmetic(60))


@pytest.fixture
def target(tmp_path: Path) -> str:
    return write_rows(tmp_path / "target.jsonl", arithmetic(8, offset=100))


@pytest.fixture
def options(tiny_model, minilm):
    return {"model": tiny_model, "encoder": minilm, "budget": 0.1, "labels": 300, "device": "cpu"}


def test_the_main_job_with_the_real_models(pool, target, smollm2, minilm, tmp_path: Path):
    run = tmp_path / "run"
    selection = nncift.select(
        pool,
        target=target,
        budget=5,
        output=run,
        model=smollm2,
        encoder=minilm,
        influence="delift",
        labels=24,
        device="cpu",
    )
    assert len(selection.indices) == 5
    assert all((run / name).exists() for name in (*SAME_BYTES, "report.html", "costs.json", "summary.json"))
    originals = {row["id"]: row for row in arithmetic(60)}
    rows = [json.loads(line) for line in (run / "subset.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["nncift_rank"] for row in rows] == [1, 2, 3, 4, 5]
    for row in rows:
        added = {key: row.pop(key) for key in list(row) if key.startswith("nncift_")}
        assert set(added) == {"nncift_rank", "nncift_gain", "nncift_influence"}
        assert row == originals[row["id"]]
        assert list(row) == list(originals[row["id"]])
    assert selection.dataset["id"] == [row["id"] for row in rows]
    # The influence beside a row is its mean over the targets, as the saved network estimates it.
    network = nncift.InfluenceNetwork.from_pretrained(run / "network")
    features, target_features = (
        stored_features(RunFolder(run).features, {"sentence": side, "lm": f"{side}.lm"}) for side in ("pool", "target")
    )
    means = network.estimate(features, target_features).row_means()
    table = pq.read_table(run / "selection.parquet").to_pydict()
    np.testing.assert_allclose(table["influence"], means[table["pool_index"]], rtol=1e-5)
    labels = nncift.LabelledPairs.load(run / "labels/labels.parquet")
    assert 2 <= len(labels) <= 24
    costs = json.loads((run / "costs.json").read_text())["stages"]
    assert costs["labels"]["forward_tokens"] > 24 * 10
    # The same call again recomputes nothing.
    before = {name: (run / name).stat().st_mtime_ns for name in SAME_BYTES}
    again = nncift.select(
        pool,
        target=target,
        budget=5,
        output=run,
        model=smollm2,
        encoder=minilm,
        influence="delift",
        labels=24,
        device="cpu",
    )
    np.testing.assert_array_equal(again.indices, selection.indices)
    assert again.value == pytest.approx(selection.value)
    assert {name: (run / name).stat().st_mtime_ns for name in SAME_BYTES} == before


# Runs nncift in a child process for each file, which kills itself, as `kill -9` would, just before or after the rename
# that completes the file; then to the end.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import datasets, numba, sentence_transformers, torch, transformers  # once for all children
from nncift.cli import main
folder, points, arguments = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
def deadly(plain, file, when):
    def rename(self, destination):
        if Path(destination) == file and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = plain(self, destination)
        if Path(destination) == file and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return rename
for name, when in points:
    if (child := os.fork()) == 0:
        Path.replace, Path.rename = (deadly(plain, folder / name, when) for plain in (Path.replace, Path.rename))
        main(arguments)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (name, status)
    assert not (folder / "report.html").exists()
main(arguments)
"""
KILLED_AT = (
    ("config.json", "before"),
    ("pool/samples.arrow", "before"),
    ("pool/facts.json", "before"),
    ("target/samples.arrow", "after"),
    ("features/pool-000000.safetensors", "after"),
    ("features/pool.npy", "after"),
    ("features/pool.json", "after"),
    ("features/target.json", "before"),
    ("labels/plan.json", "after"),
    ("labels/delift-baseline.npy", "after"),
    ("labels/block-000000.parquet", "after"),
    ("labels/block-000001.parquet", "before"),
    ("labels/labels.parquet", "after"),
    ("fidelity.json", "before"),
    ("network", "before"),
    ("network", "after"),
    ("influence.npy", "after"),
    ("selection.parquet", "after"),
    ("subset.jsonl", "before"),
    ("summary.json", "after"),
    ("report.html", "before"),
)


def test_killed_in_every_stage_it_ends_with_the_same_bytes(pool, target, tiny_model, minilm, tmp_path: Path):
    def arguments(run: Path) -> list[str]:
        given = f"select {pool} --target {target} --output {run} --model {tiny_model} --encoder {minilm}"
        return f"{given} --influence delift --labels 300 --budget 10% --device cpu --quiet".split()

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    one = {"capture_output": True, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    subprocess.run([sys.executable, "-m", "nncift", *arguments(whole)], check=True, **one)
    script = [sys.executable, "-c", KILLED, str(killed), json.dumps(KILLED_AT), *arguments(killed)]
    done = subprocess.run(script, **one)
    assert done.returncode == 0, done.stderr
    for name in SAME_BYTES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    left = {path.relative_to(killed) for path in killed.rglob("*") if path.is_file()}
    assert left == {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}


def test_another_config_or_a_changed_pool_in_the_same_folder_is_refused(pool, target, options, tmp_path: Path):
    options = {**options, "target": target, "output": tmp_path / "run", "influence": "builders:EstimatedCosine"}
    nncift.select(pool, **options)
    with pytest.raises(ConfigError, match=r"budget: '0\.1' there, '0\.2' now"):
        nncift.select(pool, **{**options, "budget": 0.2})
    write_rows(Path(pool), arithmetic(61))
    with pytest.raises(RunError, match=r"pool\.jsonl"):
        nncift.select(pool, **options)


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


def test_the_language_models_features_alone(pool, target, options, tmp_path: Path):
    del options["encoder"]
    run = tmp_path / "run"
    nncift.select(pool, target=target, output=run, features="lm", influence="builders:EstimatedBM25", **options)
    assert not (run / "features/pool.lm.npy").exists()
    assert InfluenceNetwork.from_pretrained(run / "network").widths[0] == np.load(run / "features/pool.npy").shape[1]
    assert (run / "report.html").exists()


def test_without_a_target_the_pool_is_represented(pool, options, tmp_path: Path):
    selection = nncift.select(pool, output=tmp_path / "run", influence="delift", **options)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["objective"] == "facility-location"
    assert summary["target"] is None
    assert summary["all_pairs"] == 60 * 60
    assert len(selection.indices) == 6


@pytest.mark.parametrize("own", [True, False])
def test_delift_labels_each_row_on_targets_of_its_own(tiny_model, minilm, own, pool, tmp_path: Path):
    """As many tokens as planned; the held-out samples are the planned ones."""
    target = None if own else write_rows(tmp_path / "target.jsonl", arithmetic(40, offset=100))
    options = {"model": tiny_model, "encoder": minilm, "budget": "5", "labels": "120", "device": "cpu"}
    planned = nncift.pipeline.plan.plan(make_config(pool, target=target, influence="delift", **options))
    nncift.select(pool, target=target, output=tmp_path / "run", influence="delift", **options)
    plan = PairPlan.from_dict(json.loads((tmp_path / "run/labels/plan.json").read_text()))
    assert plan.columns.shape == (15, 8)
    assert len(plan.targets) == 30
    labels = nncift.LabelledPairs.load(tmp_path / "run/labels/labels.parquet")
    np.testing.assert_array_equal(labels.pool_index, np.repeat(plan.rows, 8))
    np.testing.assert_array_equal(labels.target_index, plan.columns.ravel())
    costs = json.loads((tmp_path / "run/costs.json").read_text())["stages"]["labels"]
    assert (planned.pairs, planned.tokens) == (120, costs["forward_tokens"])
    fidelity = json.loads((tmp_path / "run/fidelity.json").read_text())
    rows, targets = plan.held_out
    assert fidelity["held_out"] == {"pool": len(rows), "target": len(targets)}
    seen = ~np.isin(labels.pool_index, rows) & ~np.isin(labels.target_index, targets)
    assert fidelity["pairs"]["train"] == seen.sum()
    samples = load_pool(pool)
    others = samples if own else load_pool(target)
    for k in (0, 17, len(labels) - 1):
        i, j = int(labels.pool_index[k]), int(labels.target_index[k])
        exact = nncift.Delift(tiny_model, device="cpu")(samples.select([i]), others.select([j]))
        np.testing.assert_allclose(labels.influence[k], exact[0, 0], atol=1e-5)


def test_a_budget_in_tokens_is_kept(pool, target, options, tmp_path: Path):
    options = {**options, "budget": "100tok", "influence": "builders:EstimatedCosine"}
    nncift.select(pool, target=target, output=tmp_path / "run", **options)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert 60 < summary["tokens_selected"] <= 100


def test_datasets_and_own_influence_functions_are_taken_as_objects(options, tmp_path: Path):
    class ShorterIsBetter:
        name = "shorter"

        def __call__(self, pool_rows, target_rows):
            lengths = np.array([len(text) for text in pool_rows["prompt"]], dtype=np.float32)
            return np.repeat(-lengths[:, None], len(target_rows), axis=1)

    listed = [{"prompt": f"Say {i}.", "response": str(i)} for i in range(20)]
    nncift.select(listed, influence=ShorterIsBetter(), output=tmp_path / "list", **options)
    rows = Dataset.from_list([{"prompt": "word " * (1 + i % 9) + str(i), "response": "yes"} for i in range(40)])
    del options["model"]
    nncift.select(rows, influence=ShorterIsBetter(), output=tmp_path / "run", **options)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert json.loads(config["influence"]) == {"name": "shorter"}
    assert json.loads((tmp_path / "run/fidelity.json").read_text())["influence"] == "shorter"


@pytest.mark.parametrize(  # delift is what the others use
    "influence", [name for name in BUILT_IN if name != "delift" and not is_factored(name)]
)
def test_every_influence_function_serves_a_run(pool, target, options, tmp_path: Path, influence):
    run = tmp_path / "run"
    selection = nncift.select(pool, target=target, influence=influence, output=run, **{**options, "labels": 60})
    assert len(selection.indices) == 6
    labels = nncift.LabelledPairs.load(run / "labels/labels.parquet")
    assert np.ptp(labels.influence) > 0
    assert json.loads((run / "fidelity.json").read_text())["influence"] == influence
    if influence != "lossval":
        assert json.loads((run / "costs.json").read_text())["stages"]["labels"]["forward_tokens"] > 0
    again = nncift.select(pool, target=target, influence=influence, output=run, **{**options, "labels": 60})
    np.testing.assert_array_equal(again.indices, selection.indices)


def test_labels_begun_in_another_precision_are_not_resumed(pool, target, options, tmp_path: Path):
    run = tmp_path / "run"
    options = {**options, "target": target, "labels": 60, "influence": "ifd"}
    nncift.select(pool, output=run, **options)
    function = json.loads((run / "function.json").read_text())
    write_json(run / "function.json", function | {"dtype": "bfloat16"})
    nncift.select(pool, output=run, **options)  # nothing is left to label
    (run / "labels/labels.parquet").unlink()
    with pytest.raises(ConfigError, match=r"bfloat16.*`dtype`"):
        nncift.select(pool, output=run, **options)


def test_the_number_of_cut_samples_survives_a_kill(pool, target, options, tmp_path: Path):
    run = tmp_path / "run"
    rows = [{"id": f"long-{i}", "question": f"river {i} " * 200, "answer": "stone"} for i in range(30)]
    options = {**options, "target": target, "labels": 60, "output": run}
    nncift.select(write_rows(tmp_path / "long.jsonl", rows), influence="delift", **options)
    noted, summary = (run / "labels/notes.json").read_bytes(), json.loads((run / "summary.json").read_text())
    assert summary["language_model"]["cut"] == len(json.loads(noted)["cut"]) > 2
    for name in ("summary.json", "report.html"):
        (run / name).unlink()
    nncift.select(tmp_path / "long.jsonl", influence="delift", **options)
    assert json.loads((run / "summary.json").read_text())["language_model"] == summary["language_model"]
    assert (run / "labels/notes.json").stat().st_mtime_ns <= (run / "labels/labels.parquet").stat().st_mtime_ns


@pytest.mark.parametrize(
    ("influence", "name"),
    [("builders:EstimatedBM25", "estimated-bm25"), ("in-run", "in-run"), ("lossval", "lossval")],
)
@pytest.mark.parametrize("more", [{"verify": 2}, {"labels": "auto"}])
def test_relative_influence_is_measured_once(influence, name, more, pool, target, options, tmp_path: Path):
    with pytest.raises(ConfigError, match=rf"values of {name} depend on all.*`{next(iter(more))}`"):
        nncift.select(pool, target=target, output=tmp_path / "run", influence=influence, **{**options, **more})
    assert not (tmp_path / "run/features").exists()


def test_probes_of_a_pointwise_function_are_refused(pool, target, options, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"ifd gives a sample one score for all targets.*`labels` 100%"):
        nncift.select(pool, target=target, output=tmp_path / "run", influence="ifd", probes=4, **options)


@pytest.mark.parametrize("influence", ["delift", "gradient-similarity", "ifd"])
def test_an_overlong_response_is_refused_before_any_work(influence, pool, target, options, tmp_path: Path):
    rows = [*arithmetic(59), {"id": "endless", "question": "Count", "answer": "one two three " * 400}]
    data = write_rows(tmp_path / "long.jsonl", rows)
    with pytest.raises(DataError, match=r"row 60: its response takes \d+ tokens .* skip it with `skip_bad_rows`"):
        nncift.select(data, target=target, output=tmp_path / "run", influence=influence, **options)
    assert not (tmp_path / "run/features").exists()


def test_fidelity_leaves_out_samples_that_the_prior_was_fitted_to(
    pool, target, options, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    before, run = tmp_path / "before", tmp_path / "run"
    nncift.select(pool, target=target, output=before, influence="delift", **options)
    nncift.select(pool, target=target, output=run, network=before, influence="delift", **options)
    judged = [json.loads((folder / "fidelity.json").read_text())["held_out"]["pool"] for folder in (before, run)]
    assert judged[0] > judged[1]  # the same seed draws the same samples
    assert "among those that the prior was fitted to" in caplog.text


def test_every_language_model_is_located_before_any_work(pool, target, options, tmp_path: Path):
    options = {**options, "influence": "selectit", "model": f"{options['model']},nobody/none"}
    with pytest.raises(ModelError, match="'nobody/none'"):
        nncift.select(pool, target=target, output=tmp_path / "run", **options)
    assert not (tmp_path / "run/features").exists()


def test_a_time_budget_for_labels_becomes_a_stored_plan(pool, target, options, tmp_path: Path):
    options = {**options, "labels": "2s", "influence": "builders:EstimatedCosine", "target": target}
    nncift.select(pool, output=tmp_path / "run", **options)
    plan = json.loads((tmp_path / "run/labels/plan.json").read_text())
    assert plan["rate"]["row"] > 0
    assert plan["rate"]["pair"] > 0
    labels = nncift.LabelledPairs.load(tmp_path / "run/labels/labels.parquet")
    assert set(labels.pool_index) == set(plan["rows"])
    assert set(labels.target_index) == set(plan["columns"])


def test_a_target_of_one_sample_warns(pool, options, tmp_path: Path):
    one = write_rows(tmp_path / "one.jsonl", arithmetic(1, offset=300))
    nncift.select(pool, target=one, output=tmp_path / "run", influence="delift", **options)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert any("one sample" in warning for warning in summary["warnings"])
    fidelity = json.loads((tmp_path / "run/fidelity.json").read_text())
    assert set(fidelity["quadrants"]) == {"Q1", "Q2"}


def test_a_response_longer_than_the_context_is_named(target, options, tmp_path: Path):
    rows = [*arithmetic(59), {"id": "epic", "question": "Tell me all.", "answer": "and then " * 2000}]
    pool = write_rows(tmp_path / "long.jsonl", rows)
    with pytest.raises(DataError, match=r"long\.jsonl, row 60"):
        nncift.select(pool, target=target, output=tmp_path / "run", influence="delift", **{**options, "labels": 480})
    assert not list((tmp_path / "run").glob("labels/block-*"))


def test_known_samples_leave_what_they_cover_to_others(pool, options, tmp_path: Path):
    """Continual selection: the conditional gain over known samples, with and without a target."""

    def other(n: int, offset: int = 0) -> list[dict]:
        rows = word_rows(n, offset)
        return [{"id": row["id"], "question": row["prompt"], "answer": row["response"]} for row in rows]

    options = {**options, "influence": "builders:EstimatedCosine", "budget": 6}
    known = write_rows(tmp_path / "known.jsonl", arithmetic(30, offset=300))
    mixed = write_rows(tmp_path / "mixed.jsonl", [*arithmetic(30), *other(30)])
    run = tmp_path / "run"
    selection = nncift.select(mixed, known=known, output=run, **options)
    plain = nncift.select(mixed, output=tmp_path / "plain", **options)
    new = [np.mean(chosen.indices >= 30) for chosen in (selection, plain)]
    assert new[0] > max(new[1], 0.5)
    assert selection.objective == "facility-location-conditional-gain"
    features = [np.load(run / f"features/{side}.npy") for side in ("known", "pool")]
    network = InfluenceNetwork.from_pretrained(run / "network")
    covered = network.estimate(*features).column_max()
    np.testing.assert_allclose(np.load(run / "known.npy"), covered, rtol=1e-5)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["known"]["rows"] == 30
    assert "Known" in (run / "report.html").read_text()
    plan = nncift.pipeline.plan.plan(Config(mixed, known=known, **{**options, "budget": "6", "labels": "300"}))
    assert plan.known == 30
    assert "known: 30" in str(plan)
    again = nncift.select(mixed, known=known, output=run, **options)
    np.testing.assert_array_equal(again.indices, selection.indices)
    target = write_rows(tmp_path / "target.jsonl", [*arithmetic(4, offset=500), *other(4, 500)])
    both = nncift.select(mixed, known=known, target=target, output=tmp_path / "both", nu=0.5, **options)
    assert both.objective_options == {"nu": 0.5}


def test_known_samples_have_a_split_of_their_own(pool, options, tmp_path: Path):
    DatasetDict(
        {"old": Dataset.from_list(arithmetic(9, 300)), "new": Dataset.from_list(arithmetic(9, 400))}
    ).save_to_disk(tmp_path / "known")
    options = {
        **options,
        "influence": "builders:EstimatedBM25",
        "known": tmp_path / "known",
        "output": tmp_path / "run",
    }
    with pytest.raises(DataError, match="`known_split`"):
        nncift.select(pool, **options)
    nncift.select(pool, known_split="old", **options)
    assert json.loads((tmp_path / "run/summary.json").read_text())["known"]["rows"] == 9


def test_what_cannot_work_is_refused_before_any_work(pool, options, tmp_path: Path):
    class Unfinished(nncift.InfluenceFunction):
        name = "unfinished"

    for wrong, message in (
        ({"influence": Unfinished()}, "Unfinished is incomplete"),
        ({"influence": Unfinished}, "Unfinished is a class"),
        ({"influence": "builders:EstimatedBM25", "objective": "json:loads"}, "cannot be made"),
        ({"influence": "builders:EstimatedBM25", "labels": 1}, "too few"),
    ):
        with pytest.raises(ConfigError, match=message):
            nncift.select(pool, output=tmp_path / "run", **{**options, **wrong})
        assert not (tmp_path / "run/config.json").exists()


def test_the_objective_can_be_chosen(pool, target, options, tmp_path: Path):
    options = {**options, "influence": "builders:EstimatedCosine", "target": target}
    selection = nncift.select(pool, objective="facility-location", output=tmp_path / "run", **options)
    assert selection.objective == "facility-location"
    with pytest.raises(ConfigError, match="did you mean 'facility-location'"):
        nncift.select(pool, objective="facility-locaton", output=tmp_path / "none", **options)
    with pytest.raises(ConfigError, match="known"):
        nncift.select(pool, objective="facility-location-conditional-gain", output=tmp_path / "none", **options)
    assert not (tmp_path / "none/features").exists()


class SharedWords:
    """How many words two samples share."""

    name = "shared-words"

    def __call__(self, pool_rows, target_rows):
        sides = (
            [set(f"{p} {r}".split()) for p, r in zip(rows["prompt"], rows["response"], strict=True)]
            for rows in (pool_rows, target_rows)
        )
        pool, target = sides
        return np.array([[len(i & j) for j in target] for i in pool], np.float32).reshape(len(pool), len(target))


def test_a_run_of_version_0_1_is_resumed_reported_and_reused(tmp_path: Path, monkeypatch):
    """The folder `stored` was written before files were typed records; it has rounds, probes and a shortlist."""
    shutil.copytree(Path(__file__).parent / "stored", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for side in ("pool", "target"):  # as when the run read them
        (stamp,) = json.loads(Path(f"run/{side}/facts.json").read_text())["files"]
        os.utime(f"{side}.jsonl", ns=(stamp["modified"],) * 2)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    options = {"target": "target.jsonl", "features": "pool.npy", "target_features": "target.npy", "device": "cpu"}
    options |= {"labels": "auto", "fidelity": 0.9, "verify": 2, "probes": 2, "budget": 4, "influence": SharedWords()}
    selection, stored = nncift.select("pool.jsonl", output="run", **options), pq.read_table("run/selection.parquet")
    assert selection.indices.tolist() == [1, 2, 4, 6]
    exempt = {Path("run") / name for name in ("costs.json", "summary.json")}
    assert {path: path.read_bytes() for path in before if path not in exempt} == {
        path: content for path, content in before.items() if path not in exempt
    }
    assert "0.9" in Path("run/report.html").read_text()
    for name in ("selection.parquet", "subset.jsonl", "verify/verify.json", "fidelity.json", "influence.npy"):
        Path("run", name).unlink()
    again = nncift.select("pool.jsonl", output="run", **options)  # from the stored labels and network
    assert again.indices.tolist() == selection.indices.tolist()
    assert pq.read_table("run/selection.parquet").equals(stored)  # whose metadata have grown since
    reused = nncift.select("pool.jsonl", network="run", features="pool.npy", budget=4, output="reused", device="cpu")
    assert len(reused.indices) == 4
    assert len(nncift.LabelledPairs.load(Path("run/labels/labels.parquet"))) > 0
