"""The feature cache: found by content, never wrong when damaged, within its limit, and the same bytes after a kill."""

from __future__ import annotations

import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nncift.data.pool import load_pool
from nncift.errors import ConfigError
from nncift.features import base
from nncift.features.base import FeatureSource, read_source
from nncift.features.cache import FeatureCache
from nncift.features.features import feature_facts
from nncift.features.language_model import LanguageModelFeatures
from nncift.features.sentence import SentenceFeatures
from nncift.models.encoder import load_encoder
from nncift.models.locate import model_identity
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.run.folder.parts import FeatureFolder


class Letters(FeatureSource):
    """Counts of three letters; the second block depends on which samples are computed together, as rounding does."""

    kind, name = "letters", "letters"
    setting = 1

    def __init__(self):
        self.read: list[str] = []

    def cache_settings(self):
        return {"setting": self.setting}

    def contents(self, samples):
        return samples["prompt"]

    def __call__(self, samples):
        self.read += samples["prompt"]
        counts = np.array([[text.count(letter) for letter in "aei"] for text in samples["prompt"]], np.float32)
        together = np.full((len(samples), 1), len(samples), np.float32) * 1e-6
        return {"counts": counts, "together": together, "truncated": counts[:, 0] > 1}


def pool(*numbers: int):
    words = ("banana", "pear", "fig", "apricot", "lime", "cherry", "date", "grape")
    return load_pool([{"prompt": f"{words[i % 8]} {i}", "response": "x"} for i in numbers])


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache", 10**6)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(base, "SHARD", 3)


def entries(cache: FeatureCache) -> list[Path]:
    return sorted(cache.folder.glob("*/*"))


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_run_computes_nothing(cache, tmp_path: Path):
    samples, first, second = pool(*range(8)), Letters(), Letters()
    whole = read_source(samples, first, folder=FeatureFolder(tmp_path / "a"), cache=cache)
    found = read_source(samples, second, folder=FeatureFolder(tmp_path / "b"), cache=cache)
    assert (len(first.read), second.read) == (8, [])
    assert stored(tmp_path / "a") == stored(tmp_path / "b")
    np.testing.assert_array_equal(found[:], whole[:])
    assert feature_facts(FeatureFolder(tmp_path / "b"))["truncated"] == 1
    assert found.widths == {"counts": 3, "together": 1}
    inodes = {path.stat().st_ino for path in (tmp_path / "a/pool.npy", tmp_path / "b/pool.npy")}
    assert len(inodes) == 1  # linked, not copied


def test_only_the_samples_that_are_new_are_computed(cache, tmp_path: Path, caplog):
    read_source(pool(0, 1, 2, 3), Letters(), folder=FeatureFolder(tmp_path / "a"), cache=cache)
    read_source(pool(6, 7), Letters(), folder=FeatureFolder(tmp_path / "b"), cache=cache)
    source, counted = Letters(), []
    with caplog.at_level(logging.INFO, "nncift"):
        found = read_source(
            pool(9, 7, 3, 10, 0, 8), source, folder=FeatureFolder(tmp_path / "c"), cache=cache, count=counted.append
        )
    assert source.read == ["pear 9", "fig 10", "banana 8"]
    assert sum(counted) == 3
    assert "features pool: 3 of 6 samples from the cache" in caplog.text
    alone = read_source(pool(9, 7, 3, 10, 0, 8), Letters())
    np.testing.assert_array_equal(found.blocks["counts"], alone.blocks["counts"])
    # All of them are found from now on, in any order.
    again = Letters()
    read_source(pool(8, 9), again, folder=FeatureFolder(tmp_path / "d"), cache=cache)
    assert again.read == []


def test_other_settings_are_not_mixed(cache, tmp_path: Path):
    read_source(pool(0, 1), Letters(), folder=FeatureFolder(tmp_path / "a"), cache=cache)
    other = Letters()
    other.setting = 2
    read_source(pool(0, 1), other, folder=FeatureFolder(tmp_path / "b"), cache=cache)
    assert len(other.read) == 2
    uncached = Letters()
    uncached.cache_settings = lambda: None
    read_source(pool(0, 1), uncached, folder=FeatureFolder(tmp_path / "c"), cache=cache)
    assert len(uncached.read) == 2
    assert len(entries(cache)) == 2


class Killed(Exception):
    pass


@pytest.mark.parametrize("then", ["cleared", "grown", "as it was"])
def test_killed_it_ends_with_the_same_bytes_whatever_became_of_the_cache(cache, then, tmp_path: Path):
    samples = pool(*range(8))
    read_source(pool(1, 4), Letters(), folder=FeatureFolder(tmp_path / "first"), cache=cache)
    shutil.copytree(cache.folder, tmp_path / "copy")
    read_source(samples, Letters(), folder=FeatureFolder(tmp_path / "whole"), cache=cache)

    def after_shard():
        raise Killed

    shutil.rmtree(cache.folder)
    shutil.copytree(tmp_path / "copy", cache.folder)
    folder = FeatureFolder(tmp_path / "killed")
    with pytest.raises(Killed):
        read_source(samples, Letters(), folder=folder, cache=cache, after_shard=after_shard)
    if then == "cleared":
        shutil.rmtree(cache.folder)
    elif then == "grown":
        read_source(pool(6, 7), Letters(), folder=FeatureFolder(tmp_path / "other"), cache=cache)
    resumed = Letters()
    read_source(samples, resumed, folder=folder, cache=None if then == "cleared" else cache)
    assert len(resumed.read) == 3  # of six, three were stored
    ours, theirs = stored(tmp_path / "killed"), stored(tmp_path / "whole")
    assert ours.pop("pool.npy") == theirs.pop("pool.npy")
    assert set(ours) == set(theirs) == {"pool.json"}


@pytest.mark.parametrize("file", ["keys.npy", "values.npy", "truncated.npy", "entry.json"])
@pytest.mark.parametrize("damage", ["flipped", "emptied", "gone"])
def test_a_damaged_entry_is_never_used_and_never_fatal(cache, file, damage, tmp_path: Path):
    samples = pool(*range(8))
    whole = read_source(samples, Letters(), folder=FeatureFolder(tmp_path / "a"), cache=cache)
    expected = np.array(whole[:])
    (entry,) = entries(cache)
    data = bytearray((entry / file).read_bytes())
    (entry / file).unlink()  # its other name, in the run, stays as it is
    if damage == "flipped":
        data[len(data) // 2 if file == "entry.json" else -2] ^= 1
    if damage != "gone":
        (entry / file).write_bytes(data if damage == "flipped" else b"")
    source = Letters()
    found = read_source(samples, source, folder=FeatureFolder(tmp_path / "b"), cache=cache)
    assert len(source.read) == 8
    np.testing.assert_array_equal(found[:], expected)
    after = Letters()
    read_source(samples, after, folder=FeatureFolder(tmp_path / "c"), cache=cache)
    assert after.read == []  # it was written anew


def test_the_cache_keeps_within_its_limit(tmp_path: Path):
    cache = FeatureCache(tmp_path / "cache", 10**6)
    for k in range(3):
        read_source(pool(*range(8 * k, 8 * k + 8)), Letters(), folder=FeatureFolder(tmp_path / f"{k}"), cache=cache)
    sizes = [sum(file.stat().st_size for file in entry.iterdir()) for entry in entries(cache)]
    for number, path in enumerate(sorted(entries(cache), key=lambda path: (path / "entry.json").stat().st_mtime_ns)):
        os.utime(path / "entry.json", (number, number))
    used = Letters()
    read_source(pool(*range(8)), used, folder=FeatureFolder(tmp_path / "again"), cache=cache)  # the first is used again
    assert used.read == []
    tight = FeatureCache(cache.folder, sum(sizes))
    abandoned = entries(cache)[0].parent / ".partial-old"
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    read_source(pool(*range(30, 38)), Letters(), folder=FeatureFolder(tmp_path / "new"), cache=tight)
    assert len(entries(cache)) == 3
    assert not abandoned.exists()
    for k, kept in ((0, True), (1, False)):  # the one that was used longest ago is gone
        source = Letters()
        read_source(pool(*range(8 * k, 8 * k + 8)), source, folder=FeatureFolder(tmp_path / f"check-{k}"), cache=cache)
        assert (source.read == []) is kept
    none = FeatureCache(tmp_path / "none", 10)
    read_source(pool(0, 1), Letters(), folder=FeatureFolder(tmp_path / "big"), cache=none)
    assert not none.folder.exists()


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("no folder")
    cache = FeatureCache(tmp_path / "file" / "features", 10**6)
    found = read_source(pool(0, 1), Letters(), folder=FeatureFolder(tmp_path / "run"), cache=cache)
    assert found.shape == (2, 4)
    assert "not kept for other runs" in caplog.text


def test_runs_share_the_cache_at_the_same_time(cache, tmp_path: Path):
    samples = pool(*range(8))

    def run(k: int) -> np.ndarray:
        return np.array(read_source(samples, Letters(), folder=FeatureFolder(tmp_path / f"{k}"), cache=cache)[:])

    with ThreadPoolExecutor(8) as threads:
        first, *others = threads.map(run, range(16))
    assert all(np.array_equal(first, other) for other in others)
    assert len(entries(cache)) == 1


def test_the_size_limit_is_an_amount_of_bytes(monkeypatch):
    for text, limit in (("10GB", 10**10), ("2 TiB", 2 << 40)):
        monkeypatch.setenv("NNCIFT_CACHE_SIZE", text)
        assert FeatureCache.default().limit == limit
    monkeypatch.setenv("NNCIFT_CACHE_SIZE", "much")
    with pytest.raises(ConfigError, match=r"`NNCIFT_CACHE_SIZE` 'much' is not a number of bytes"):
        FeatureCache.default()
    for text in ("0", "0 GB"):
        monkeypatch.setenv("NNCIFT_CACHE_SIZE", text)
        assert FeatureCache.default() is None


def test_models_are_known_by_their_files(tiny_model, minilm, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    plain = LanguageModelFeatures(ModelSpec(str(copy), device="cpu"))
    before = plain.cache_settings()
    assert before == LanguageModelFeatures(ModelSpec(str(copy), device="cpu")).cache_settings()
    assert before != LanguageModelFeatures(ModelSpec(str(copy), device="cpu", max_length=64)).cache_settings()
    assert before != LanguageModelFeatures(ModelSpec(str(copy), device="cpu", dtype="bfloat16")).cache_settings()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert before != plain.cache_settings()
    assert model_identity(str(copy), "language model") != model_identity(tiny_model, "language model")
    assert SentenceFeatures(EncoderSpec(minilm)).cache_settings()["kind"] == "sentence"
    assert SentenceFeatures(EncoderSpec(load_encoder(minilm, device="cpu"))).cache_settings() is None


def test_language_model_features_are_found_by_all_that_the_model_reads(tiny_model):
    source = LanguageModelFeatures(ModelSpec(tiny_model, device="cpu"))
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    rows = load_pool([{"messages": [{"role": "system", "content": "S"}, *chat]}, {"messages": chat}])
    assert len(set(source.contents(rows))) == 2
    plain = load_pool([{"prompt": "Hi", "response": "Yes"}])
    assert len({*source.contents(rows), *source.contents(plain)}) == 3
    without = plain.select_columns(["id", "prompt", "response"])
    assert source.contents(without) == source.contents(plain)
