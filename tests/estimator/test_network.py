"""The InfluenceNetwork: recipes, determinism, and its stored folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from builders import labelled, random_labels
from nncift.errors import ConfigError, ModelError
from nncift.estimator.network import RECIPES, InfluenceNetwork
from nncift.evaluation.fidelity import measure_fidelity
from nncift.features.sources import FeatureSources, SketchSettings
from nncift.labels.pairs import LabelledPairs, Probes

EVERY = slice(None)


def features(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)


def test_the_recipe_paper_is_the_papers_network():
    zeros = np.zeros((3, 1024), np.float32)
    model = InfluenceNetwork("paper").fit(zeros, zeros, random_labels(3, 3)).model
    assert sum(p.numel() for p in model.parameters()) == 2048 * 100 + 100 + 100 + 1  # 204,900 weights and biases
    assert (model.learning_rate, model.epochs, model.batch_size, model.hidden) == (1e-4, 20, 64, 100)
    assert len(model.losses_) == 20


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 100),
    st.sampled_from([0.01, 1.0, 300.0]),
    st.sampled_from([1, 1, 3]),
)
def test_the_factored_mlp_equals_its_forward_pass(n_pool, n_target, seed, scale, depth):
    a, b = features(n_pool, seed), features(n_target, seed + 1)
    pairs = random_labels(n_pool, n_target, seed)
    pairs = LabelledPairs(pairs.pool_index, pairs.target_index, pairs.influence * np.float32(scale))
    network = InfluenceNetwork("paper", hidden=16, depth=depth, epochs=2, learning_rate=0.05, seed=seed).fit(
        a, b, pairs
    )
    matrix = network.estimate(a, b)
    assert matrix.shape == (n_pool, n_target)
    rows = a[pairs.pool_index], b[pairs.target_index]
    with torch.no_grad():
        plain = network.model(*map(torch.from_numpy, rows)).numpy()
    low, size = float(network.model.low), float(network.model.range)
    close = {"rtol": 0, "atol": 1e-5 * size + 1e-6 * abs(low)}  # on the network's scale, and float32 rounding
    estimated = matrix.block(EVERY, EVERY).ravel()
    np.testing.assert_allclose(estimated, plain * size + low, **close)
    np.testing.assert_allclose(network.predict(*rows), estimated, **close)


def test_the_mlp_fits_an_additive_function_and_is_seeded():
    a, b = features(120), features(90, 1)
    train, held_out = labelled(np.tanh(a[:, :1] + b[:, 1])).split(0.8)
    network = InfluenceNetwork("paper", learning_rate=1e-3).fit(a, b, train)
    result = measure_fidelity(network, a, b, held_out, train)
    assert result.beats_baselines
    assert result.quadrants["Q2"]["methods"]["network"]["r2"] > 0.9
    assert result.quadrants["Q4"]["methods"]["network"]["spearman_within_target"] > 0.9
    assert network.model.losses_[-1] < network.model.losses_[0]
    first, second, other = (
        InfluenceNetwork("paper", epochs=1, seed=seed).fit(a, b, train.take(np.arange(300))) for seed in (0, 0, 1)
    )
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)
    drawn, another = first.model.first.weight, other.model.first.weight  # which five steps move by 0.0005 at most
    assert not torch.allclose(drawn, another, atol=0.01)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fit_does_not_change_the_global_random_state(recipe):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    InfluenceNetwork(recipe).fit(features(4), features(4), random_labels(4, 4))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"recipe": "paper", "hidden": 5, "epochs": 1},
        {"recipe": "paper", "hidden": 5, "depth": 3, "epochs": 1},
        {"recipe": "process"},
    ],
)
def test_a_saved_network_is_safetensors_and_loads(tmp_path: Path, options):
    a, b = features(9), features(8, 1)
    network = InfluenceNetwork(**options, seed=3).fit(a, b, random_labels(9, 8))
    network.description_ = {"features": {"encoder": "some/encoder", "own": None}}
    network.save_pretrained(tmp_path / "net")
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    back = InfluenceNetwork.from_pretrained(tmp_path / "net")
    assert back.description_ == network.description_
    assert back.options == network.options
    np.testing.assert_array_equal(back.estimate(a, b).block(EVERY, EVERY), network.estimate(a, b).block(EVERY, EVERY))
    if back.recipe == "process":
        np.testing.assert_array_equal(back.uncertainty(a), network.uncertainty(a))
    with pytest.raises(ModelError, match=r"7 wide, the network is fitted to 6.*some/encoder"):
        back.estimate(np.zeros((3, 7), np.float32), b)


def test_pickle_and_other_configs_are_refused(tmp_path: Path):
    network = InfluenceNetwork("paper", epochs=1).fit(features(4), features(4), random_labels(4, 4))
    network.save_pretrained(tmp_path)
    torch.save(network.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").rename(tmp_path / "kept")
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        InfluenceNetwork.from_pretrained(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="no InfluenceNetwork"):
        InfluenceNetwork.from_pretrained(tmp_path)


PAPER, LABELS = InfluenceNetwork("paper", epochs=1), random_labels(4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, folder: InfluenceNetwork().predict(x, x), ModelError, "not fitted"),
        (lambda x, folder: InfluenceNetwork().uncertainty(x), ModelError, "not fitted"),
        (lambda x, folder: InfluenceNetwork().save_pretrained(folder), ModelError, "not fitted"),
        (lambda x, folder: InfluenceNetwork().fit(x, x, random_labels(0, 0)), ModelError, "no labelled pair"),
        (lambda x, folder: InfluenceNetwork("bigger"), ConfigError, "no recipe 'bigger'"),
        (lambda x, folder: InfluenceNetwork(hidden=5), ConfigError, "no such option.*hidden"),
        (lambda x, folder: PAPER.fit(x, x, LABELS, prior=InfluenceNetwork()), ConfigError, "takes no prior"),
        (lambda x, folder: PAPER.uncertainty(x), ConfigError, "no posterior variance"),
        (lambda x, folder: PAPER.choose_probes(x, 2), ConfigError, "no posterior variance"),
        (
            lambda x, folder: PAPER.fit(x, x, LABELS).estimate(x, x, probes=Probes(np.zeros(1, np.int64), x[:, :1])),
            ConfigError,
            "no posterior variance",
        ),
    ],
)
def test_misuse_is_refused(tmp_path: Path, call, error, message):
    with pytest.raises(error, match=message):
        call(features(4), tmp_path)


FITTED = """
from pathlib import Path
import numpy as np
from nncift.estimator.network import RECIPES, InfluenceNetwork
from nncift.labels.pairs import LabelledPairs
x, labels = np.load("features.npy"), LabelledPairs.load(Path("labels.parquet"))
for recipe in RECIPES:
    InfluenceNetwork(recipe).fit(x, x, labels).save_pretrained(Path(folder, recipe))
"""


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("features.npy", features(9))
    random_labels(9, 9).save(Path("labels.parquet"))
    exec(FITTED, {"folder": "one"})
    subprocess.run([sys.executable, "-c", f"folder = 'two'{FITTED}"], check=True)  # with few imports
    files = [[(path.name, path.read_bytes()) for path in sorted((tmp_path / n).glob("*/*"))] for n in ("one", "two")]
    assert files[0] == files[1]
    assert len(files[0]) == 3 * len(RECIPES)


@pytest.fixture(scope="module", params=RECIPES)
def stored(request, tmp_path_factory) -> Path:
    """A network with a prior, or the paper's."""
    folder, x = tmp_path_factory.mktemp(request.param), features(9)
    prior = InfluenceNetwork().fit(x, x, random_labels(9, 9)) if request.param == "process" else None
    network = InfluenceNetwork(request.param).fit(x, x, random_labels(9, 9, 1), prior=prior)
    sources = FeatureSources("some/encoder", None, "some/model", SketchSettings())
    network.description_ = {"features": sources.describe(), "influence": {}}
    network.save_pretrained(folder)
    return folder


def wrong_values(value):
    """Values of other types, signs and shapes in the place of one of a config."""
    yield from (None, "x", [], {}, True, -1, 1.5, 10**9, [["a"]], float("nan"))
    if isinstance(value, list):
        yield from (value[:-1], [*value, *value])
    if isinstance(value, dict):
        yield from ({name: item for name, item in value.items() if name != left_out} for left_out in value)


def places(value, *path):
    """Every place in a config, as keys and indices."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, *path, key)


def replaced(config, path, value):
    """The config with another value in a place."""
    if not path:
        return value
    copy = dict(config) if isinstance(config, dict) else list(config)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


def test_any_other_config_is_loaded_or_refused_in_one_line(stored, tmp_path: Path):
    config = json.loads((stored / "config.json").read_text())
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    refused = 0
    for path in places(config):
        value = config
        for key in path:
            value = value[key]
        for wrong in wrong_values(value):
            (tmp_path / "config.json").write_text(json.dumps(replaced(config, path, wrong)))
            try:
                assert np.isfinite(InfluenceNetwork.from_pretrained(tmp_path).predict(features(2), features(2))).all()
            except ModelError as error:
                refused += "\n" not in str(error)
    assert refused > 100
    for text in ("", "[" * 99_999, "\udcff".encode("utf-8", "surrogatepass"), "[]", "nul"):
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ModelError, match="no InfluenceNetwork of this version"):
            InfluenceNetwork.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", [lambda a: a * np.nan, lambda a: a[:-1], lambda a: a[None], lambda a: a.astype(int)])
def test_damaged_weights_are_refused(stored, tmp_path: Path, change):
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    weights = load_file(stored / "model.safetensors")
    for name, array in weights.items():
        if array.size and array.ndim:
            save_file(weights | {name: np.ascontiguousarray(change(array))}, tmp_path / "model.safetensors")
            with pytest.raises(ModelError, match="no InfluenceNetwork of this version"):
                InfluenceNetwork.from_pretrained(tmp_path)
    data = (stored / "model.safetensors").read_bytes()
    for cut in (b"", data[:-5], data[:40]):
        (tmp_path / "model.safetensors").write_bytes(cut)
        with pytest.raises(ModelError, match="no InfluenceNetwork of this version"):
            InfluenceNetwork.from_pretrained(tmp_path)
