"""Sentence embeddings in shards, and features of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nncift.data.pool import load_pool
from nncift.errors import DataError, ModelError
from nncift.features import features
from nncift.features.custom import own_features
from nncift.features.features import Features, feature_facts
from nncift.features.sentence import embed
from nncift.models import encoder as embeddings
from nncift.models.encoder import embed_texts, load_encoder, sample_texts


@pytest.fixture(scope="module")
def encoder(minilm):
    return load_encoder(minilm, device="cpu")


@pytest.fixture(scope="module")
def pool():
    words = ["red", "green", "blue", "yellow", "black", "white"]
    return load_pool(
        [{"prompt": f"Name {i} {words[i % 6]} things. " * (1 + i % 7), "response": f"{i}"} for i in range(50)]
    )


def test_embeddings_equal_one_text_at_a_time(encoder, pool):
    together = embed(pool, encoder, batch_size=7)
    alone = np.concatenate([embed_texts([text], encoder) for text in sample_texts(pool)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.dtype == np.float32
    assert together.shape == (50, 384)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_shards_resume_with_the_same_bytes(encoder, pool, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(features, "SAMPLES_PER_SHARD", 16)
    whole = embed(pool, encoder, folder=tmp_path / "whole", source="minilm")
    assert isinstance(whole, np.memmap)

    class Killed(Exception):
        pass

    def killed_after_two(texts, *_):
        if len(list((tmp_path / "part").glob("*.safetensors"))) == 2:
            raise Killed
        return shard(texts, encoder, 64)

    shard = embeddings._embed_shard
    monkeypatch.setattr(embeddings, "_embed_shard", killed_after_two)
    with pytest.raises(Killed):
        embed(pool, encoder, folder=tmp_path / "part", source="minilm")
    assert not (tmp_path / "part" / "pool.npy").exists()
    calls = []
    monkeypatch.setattr(embeddings, "_embed_shard", lambda *a: calls.append(1) or shard(*a))
    embed(pool, encoder, folder=tmp_path / "part", source="minilm")
    assert len(calls) == 2  # of four shards, two were there
    for name in ("pool.npy", "pool.json"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "part").iterdir()) == ["pool.json", "pool.npy"]


def test_truncated_texts_are_counted(encoder, tmp_path: Path):
    pool = load_pool([{"prompt": "word " * n, "response": f"{n}"} for n in (3, 100, 400, 800)])
    embed(pool, encoder, folder=tmp_path, source="minilm")
    assert feature_facts(tmp_path) == {"encoder": "minilm", "truncated": 2, "width": 384, "rows": 4}


def test_out_of_memory_halves_the_batch(encoder, pool):
    sizes = []
    plain = encoder.encode

    class Small:
        def encode(self, texts, *, batch_size, **options):
            sizes.append(batch_size)
            if batch_size > 8:
                raise torch.OutOfMemoryError("injected")
            return plain(texts, batch_size=batch_size, **options)

    texts = sample_texts(pool)
    np.testing.assert_allclose(embed_texts(texts, Small(), batch_size=32), embed_texts(texts, encoder), atol=1e-5)
    assert sizes == [32, 16, 8]


def test_own_features_from_a_file_follow_the_rows_that_stay(tmp_path: Path):
    rows = [{"prompt": f"p{i % 3}", "response": "r"} for i in range(6)]  # rows 3, 4, 5 repeat 0, 1, 2
    pool = load_pool(rows)
    array = np.arange(12, dtype=np.float64).reshape(6, 2)
    np.save(tmp_path / "f.npy", array)
    found = own_features(pool, str(tmp_path / "f.npy"), folder=tmp_path / "features")
    np.testing.assert_array_equal(found, array[:3])
    assert found.dtype == np.float32
    assert feature_facts(tmp_path / "features")["width"] == 2


def test_own_features_from_a_column(tmp_path: Path):
    rows = [{"prompt": f"p{i}", "response": "r", "vector": [i, i + 0.5]} for i in range(3)]
    np.testing.assert_array_equal(own_features(load_pool(rows), "vector"), [[0, 0.5], [1, 1.5], [2, 2.5]])
    rows[2]["vector"] = [1]
    with pytest.raises(DataError, match=r"row 3, field 'vector': expected a list of numbers"):
        own_features(load_pool(rows), "vector")


def test_bad_features_are_clear_errors(tmp_path: Path):
    pool = load_pool([{"prompt": f"p{i}", "response": "r"} for i in range(3)])
    with pytest.raises(DataError, match="no such features file"):
        own_features(pool, str(tmp_path / "none.npy"))
    np.save(tmp_path / "short.npy", np.zeros((2, 4)))
    with pytest.raises(DataError, match=r"found float64 \(2, 4\)"):
        own_features(pool, str(tmp_path / "short.npy"))
    np.save(tmp_path / "long.npy", np.zeros((4, 2)))  # rows of the data may be left out, but it is known how many
    with pytest.raises(DataError, match=r"found float64 \(4, 2\).*the data has 3 rows"):
        own_features(pool, str(tmp_path / "long.npy"), source_rows=3)
    np.save(tmp_path / "nan.npy", np.array([[0.0], [np.nan], [0.0]]))
    with pytest.raises(DataError, match=r"nan\.npy, row 2: the features of this row are not finite"):
        own_features(pool, str(tmp_path / "nan.npy"))
    (tmp_path / "text.npy").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="not an array of numbers"):
        own_features(pool, str(tmp_path / "text.npy"))


def test_what_is_no_encoder_is_a_clear_error(tmp_path: Path):
    with pytest.raises(ModelError, match="not in the local cache"):
        load_encoder("nobody/no-such-encoder")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load the encoder"):
        load_encoder(str(tmp_path))


def test_blocks_stand_side_by_side():
    blocks = {"one": np.ones((5, 2), np.float32), "two": np.arange(15.0).reshape(5, 3)}
    joined = Features(blocks)
    assert joined.shape == (5, 5)
    assert joined.widths == {"one": 2, "two": 3}
    for rows in (slice(1, 4), np.array([4, 0, 4])):
        found = joined[rows]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.hstack([blocks["one"], blocks["two"]])[rows])
    with pytest.raises(ValueError, match="rows"):
        Features({"one": np.ones((2, 1)), "two": np.ones((3, 1))})
