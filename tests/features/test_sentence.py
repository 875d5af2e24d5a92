"""Sentence embeddings, and features of the user's own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nncift.data.pool import load_pool
from nncift.errors import DataError, ModelError, RunError
from nncift.features.base import read_source
from nncift.features.custom import OwnFeatures
from nncift.features.features import feature_facts
from nncift.features.sentence import embed
from nncift.models.encoder import embed_texts, load_encoder, sample_texts
from nncift.run.folder.parts import FeatureFolder


@pytest.fixture(scope="module")
def encoder(minilm):
    return load_encoder(minilm, device="cpu")


@pytest.fixture(scope="module")
def pool():
    return load_pool([{"prompt": f"Name {i} red things. " * (1 + i % 7), "response": f"{i}"} for i in range(50)])


def test_embeddings_equal_one_text_at_a_time(encoder, pool):
    together = embed(pool, encoder, batch_size=7)
    alone = np.concatenate([embed_texts(texts, encoder) for texts in sample_texts(pool)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.dtype == np.float32
    assert together.shape == (50, 384)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_truncated_texts_are_counted(minilm, tmp_path: Path):
    pool = load_pool([{"prompt": "word " * n, "response": f"{n}"} for n in (3, 100, 400, 800)])
    embed(pool, minilm, folder=tmp_path)
    facts = {"encoder": minilm, "truncated": 2, "width": 384, "rows": 4}
    found = feature_facts(FeatureFolder(tmp_path))
    assert found.pop("settings")  # by which another run takes them
    assert [*found.items()] == [*facts.items()]


def test_out_of_memory_halves_the_batch(encoder, pool):
    sizes = []

    class Small:
        def encode(self, texts, *, batch_size, **options):
            sizes.append(batch_size)
            if batch_size > 8:
                raise torch.OutOfMemoryError("injected")
            return encoder.encode(texts, batch_size=batch_size, **options)

    texts = [text for (text,) in sample_texts(pool)]
    np.testing.assert_allclose(embed_texts(texts, Small(), batch_size=32), embed_texts(texts, encoder), atol=1e-5)
    assert sizes == [32, 16, 8]


def test_what_is_no_encoder_is_a_clear_error(tmp_path: Path):
    with pytest.raises(ModelError, match="not in the local cache"):
        load_encoder("nobody/no-such-encoder")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load the encoder"):
        load_encoder(str(tmp_path))


def test_own_features_follow_the_rows_that_are_not_duplicates(tmp_path: Path):
    rows = [{"prompt": f"p{i % 3}", "response": "r", "v": [i, i + 0.5]} for i in range(6)]  # 3, 4, 5 repeat 0, 1, 2
    pool, array = load_pool(rows), np.array([row["v"] for row in rows])
    np.save(tmp_path / "f.npy", array)
    for source in (OwnFeatures(str(tmp_path / "f.npy"), source_rows=6), OwnFeatures("v")):
        found = read_source(pool, source)[:]
        np.testing.assert_array_equal(found, array[:3])
        assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("none.npy", None, "no such features file"),
        ("short.npy", np.zeros((2, 4)), "found float64 (2, 4): the data has at least 3 rows"),
        ("long.npy", np.zeros((4, 2)), "found float64 (4, 2): the data has 3 rows"),
        ("nan.npy", np.array([[0.0], [np.nan], [0.0]]), "nan.npy, row 2: the features of this row are not finite"),
        ("text.npy", "[1]", "not an array of numbers"),
        ("v", None, "row 3, field 'v': expected a list of numbers"),
    ],
)
def test_own_features_that_do_not_fit_are_refused(name, array, message, tmp_path: Path):
    pool = load_pool([{"prompt": f"p{i}", "response": "r", "v": [0] * (2 - i // 2)} for i in range(3)])
    path = tmp_path / name
    if isinstance(array, str):
        path.write_text(array)
    elif array is not None:
        np.save(path, array)
    source = OwnFeatures(str(path) if path.suffix else name, 3 if name == "long.npy" else None)
    with pytest.raises(DataError, match=re.escape(message)):
        read_source(pool, source)


@pytest.mark.parametrize("array", [np.zeros((3, 0)), np.float32(3), np.zeros((3, 2), bool), np.zeros((3, 2, 1))])
def test_arrays_that_are_no_table_of_numbers_are_refused(array, tmp_path: Path):
    pool = load_pool([{"prompt": f"p{i}", "response": "r"} for i in range(3)])
    np.save(tmp_path / "f.npy", array)
    with pytest.raises(DataError, match="expected numbers of shape"):
        read_source(pool, OwnFeatures(str(tmp_path / "f.npy")))


def test_shards_and_features_of_a_file_belong_to_its_content(tmp_path: Path):
    pool = load_pool([{"prompt": f"p{i}", "response": "r"} for i in range(3)])
    source, folder = OwnFeatures(str(tmp_path / "f.npy")), FeatureFolder(tmp_path / "features")
    np.save(source.name, np.eye(3))
    read_source(pool, source, folder=folder)
    source.check_same(folder, "pool")
    np.save(source.name, 2 * np.eye(3))
    with pytest.raises(RunError, match=r"f\.npy has changed since this run read it"):
        source.check_same(folder, "pool")
    folder.facts("pool").unlink()
    np.testing.assert_array_equal(read_source(pool, source, folder=folder)[:], 2 * np.eye(3))
    source.check_same(folder, "pool")


def test_pickled_weights_are_refused_before_they_are_opened(minilm, tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    shutil.copytree(minilm, tmp_path / "encoder")
    (weights,) = (tmp_path / "encoder").glob("model*.safetensors")
    weights.unlink()
    torch.save(Harm(), tmp_path / "encoder" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no weights in safetensors format, but pytorch_model\.bin: pickles can run"):
        load_encoder(str(tmp_path / "encoder"))
    assert not (tmp_path / "harm").exists()
