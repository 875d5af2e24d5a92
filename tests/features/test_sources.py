"""Feature sources: pickled, resumed after a kill, refused, and named by a run or a network."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from nncift.data.pool import load_pool
from nncift.errors import ConfigError, DataError, ModelError
from nncift.features import base
from nncift.features.base import FeatureSource, read_source
from nncift.features.custom import OwnFeatures
from nncift.features.features import Features, feature_facts
from nncift.features.gradient_sketch import GradientSketchFeatures
from nncift.features.language_model import LanguageModelFeatures
from nncift.features.sentence import SentenceFeatures
from nncift.features.sources import FeatureReader, FeatureSources, SketchSettings
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.run.executors.base import computing_with
from nncift.run.folder.parts import FeatureFolder
from nncift.run.storage.files import write_tensors
from worker_jobs import Elsewhere

N = 7
SOURCES = ("sentence", "lm", "sketch", "file", "column", "class")


class Lengths(FeatureSource):
    """A source of the user's own, with two blocks."""

    name = "lengths"
    bad: str | None = None

    def __call__(self, samples):
        characters = np.array([[len(text)] for text in samples["prompt"]], np.float64)
        if self.bad == "nan":
            characters[-1] = np.nan
        if self.bad == "ragged" and len(samples) > 1:
            characters = np.tile(characters, 2)
        return {"z": characters[1:] if self.bad == "rows" else characters, "a": characters * [[1, 2]]}


@pytest.fixture(scope="module")
def pool():
    return load_pool(
        [{"prompt": f"Name {i} things. " * (1 + i % 4), "response": f"{i}", "v": [i, 0.5]} for i in range(N)]
    )


@pytest.fixture(scope="module")
def sources(minilm, tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "f.npy"
    np.save(path, np.arange(2.0 * N).reshape(N, 2))
    made = (
        SentenceFeatures(EncoderSpec(minilm, device="cpu")),
        LanguageModelFeatures(ModelSpec(tiny_model, device="cpu")),
        GradientSketchFeatures(ModelSpec(tiny_model, device="cpu"), SketchSettings(dimension=64)),
        *(OwnFeatures(str(path)), OwnFeatures("v"), Lengths()),
    )
    return dict(zip(SOURCES, made, strict=True))


def files(folder: FeatureFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir()}


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", SOURCES)
def test_killed_and_resumed_elsewhere_with_the_same_bytes(pool, sources, kind, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(base, "SHARD", 2)
    source, whole, part = sources[kind], FeatureFolder(tmp_path / "whole"), FeatureFolder(tmp_path / "part")
    found = read_source(pool, source, folder=whole)
    assert all(isinstance(block, np.memmap) for block in found.blocks.values())
    in_memory = read_source(pool, source)
    assert in_memory.widths == found.widths
    np.testing.assert_array_equal(in_memory[:], found[:])
    computed = []

    def after_shard():
        computed.append(1)
        if len(computed) == 2:
            raise Killed

    with pytest.raises(Killed):
        read_source(pool, source, folder=part, after_shard=after_shard)
    assert not part.array("pool").exists()
    if source.settings():  # as shards of earlier versions have none
        resumed = pickle.loads(pickle.dumps(source))
        with monkeypatch.context() as patch:
            patch.setattr(type(source), "settings", lambda self: {"dtype": "other"})
            with pytest.raises(ConfigError, match=r"begun with .* now it is \{'dtype': 'other'\}"):
                read_source(pool, resumed, folder=part)
    with computing_with(Elsewhere()):
        read_source(pool, pickle.loads(pickle.dumps(source)), folder=part, after_shard=after_shard)
    assert len(computed) == 4  # of four shards, two were stored
    assert files(part) == files(whole)
    assert set(files(part)) == {"pool.npy", "pool.json"}
    again = read_source(pool, Lengths(), folder=part)  # computes nothing
    np.testing.assert_array_equal(again[:], found[:])


def test_shards_of_earlier_versions_resume(pool, sources, tmp_path: Path):
    """They have no facts; the precision that they were begun with has a file of its own."""
    source, folder = sources["lm"], FeatureFolder(tmp_path)
    whole = read_source(pool, source)
    write_tensors(tmp_path / "pool-000000.safetensors", {"features": whole[:], "truncated": np.zeros(N, bool)})
    folder.begun("pool").write_text(json.dumps({"dtype": "bfloat16", "max_length": 512}))
    with pytest.raises(ConfigError, match="bfloat16"):
        read_source(pool, source, folder=folder)
    folder.begun("pool").write_text(json.dumps(source.settings()))
    found = read_source(pool, source, folder=folder, after_shard=lambda: pytest.fail("computed again"))
    np.testing.assert_array_equal(found[:], whole[:])
    assert found.widths == whole.widths
    assert set(files(folder)) == {"pool.npy", "pool.json"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("nan", r"'lengths' gives features that are not finite for '\w+'"),
        ("rows", r"gave blocks of shape .*'z': \(1, 1\).* for 2 samples"),
        ("ragged", "differ between samples"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(pool, bad, message, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(base, "SHARD", 2)
    monkeypatch.setattr(Lengths, "bad", bad)
    with pytest.raises(DataError, match=message):
        read_source(pool, Lengths(), folder=FeatureFolder(tmp_path))
    assert not (tmp_path / "pool.npy").exists()


def test_a_reader_reads_all_sources_of_a_side(pool, minilm, tiny_model, tmp_path: Path):
    sources = FeatureSources.named(["lm", f"{__name__}:Lengths", "sentence"], encoder=minilm, model=tiny_model)
    assert sources == FeatureSources(minilm, f"{__name__}:Lengths", tiny_model)
    assert sources.names("target") == {"sentence": "target", "own": "target.own", "lm": "target.lm"}
    assert str(sources) == f"sentence ({minilm}), own ({__name__}:Lengths), lm ({tiny_model})"
    reader = FeatureReader(sources, EncoderSpec(device="cpu"), ModelSpec(device="cpu"), target_features="v")
    found = {side: reader.read(pool, side, FeatureFolder(tmp_path)) for side in ("pool", "target")}
    assert [*found["pool"].widths] == ["sentence", "z", "a", "prompt states", "response states", "scalars"]
    widths = {"sentence": 384, "own": 2, "prompt states": 32, "response states": 32, "scalars": 6}
    assert found["target"].widths == widths
    assert found["pool"].shape == (N, 384 + 3 + 70)
    assert "blocks" not in feature_facts(FeatureFolder(tmp_path), "target.own")


def test_names_that_are_no_source_are_refused(pool, minilm, tmp_path: Path):
    for name, error in (("builtins:dict", "not a feature source"), ("none:Such", "cannot import")):
        reader = FeatureReader(FeatureSources(own=name), EncoderSpec(minilm), ModelSpec())
        with pytest.raises(ConfigError, match=error):
            reader.read(pool, "pool", FeatureFolder(tmp_path))


def test_sources_that_a_network_needs():
    default, model = "HuggingFaceTB/SmolLM2-135M-Instruct", {"model": "org/other"}
    asked, needed = FeatureSources("minilm"), FeatureSources("other", None, default)
    assert asked.for_network("n", needed, **model) == needed
    assert asked.for_network("n", needed, encoder="minilm", **model) == FeatureSources("minilm", None, default)
    assert asked.for_network("pretrained", needed, model="embedded").language_model == "embedded"
    with pytest.raises(ModelError, match=f"was fitted to {default}, not org/other: make one"):
        asked.for_network("pretrained", needed, **model)
    with pytest.raises(ModelError, match=r"needs the features sentence \(other\), lm \("):
        asked.for_network("n", needed, explicit=True, **model)
    with pytest.raises(ModelError, match="features of your own"):
        asked.for_network("n", FeatureSources.described({}), **model)
    own = FeatureSources(own="f.npy")
    assert own.for_network("n", FeatureSources.described({"features": {"own": "g.npy"}}), **model) == own


def test_blocks_stand_side_by_side():
    blocks = {"one": np.ones((5, 2), np.float32), "two": np.arange(15.0).reshape(5, 3)}
    joined = Features(blocks)
    assert (joined.shape, joined.widths) == ((5, 5), {"one": 2, "two": 3})
    for rows in (slice(1, 4), np.array([4, 0, 4])):
        assert joined[rows].dtype == np.float32
        np.testing.assert_array_equal(joined[rows], np.hstack([*blocks.values()])[rows])
    with pytest.raises(ValueError, match="rows"):
        Features({"one": np.ones((2, 1)), "two": np.ones((3, 1))})


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (7, 2", "not an array of numbers"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-7, 2), }", "not an array of numbers"),
    ],
)
def test_a_file_with_a_damaged_header(pool, tmp_path, header, message):
    path = tmp_path / "f.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00" + header.ljust(117).encode() + b"\n" + bytes(56))
    with pytest.raises(DataError, match=message):
        read_source(pool, OwnFeatures(str(path)))


def test_features_that_vanish_beside_others_are_zero(pool, tmp_path):
    np.save(tmp_path / "f.npy", np.array([[1, 0.5]] + [[-8.8e-44, 0]] * (N - 1), np.float32))
    features = read_source(pool, OwnFeatures(str(tmp_path / "f.npy")))
    assert not features[1:].any()


@pytest.mark.parametrize("scale", [1e-43, 1e25])
def test_features_whose_squares_single_precision_cannot_hold(pool, tmp_path, scale):
    np.save(tmp_path / "f.npy", np.full((N, 2), scale, np.float32))
    with pytest.raises(DataError, match="scale them"):
        read_source(pool, OwnFeatures(str(tmp_path / "f.npy")))
