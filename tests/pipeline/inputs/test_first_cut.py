"""The first cut: later stages read what it keeps, and the selection has the rows of the whole pool."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import nncift
from builders import write_rows
from nncift.errors import ConfigError, DependencyError, ModelError
from nncift.features.static import static_vectors
from nncift.models.static_encoder import StaticEncoder
from nncift.pipeline import plan as planning
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.report.html import write_report
from nncift.report.terminal import summary_text
from nncift.run.folder.folder import RunFolder
from nncift.run.storage.files import read_array, read_json
from nncift.selection.selection import Selection
from static_encoders import write_static_encoder

TOPICS = {"sea": "fish wave salt boat", "town": "street house car shop", "sky": "cloud star bird moon"}
WORDS = [word for words in TOPICS.values() for word in words.split()]


def rows_of(topics: list[str], *, first: int = 0) -> list[dict]:
    rng = np.random.default_rng(first)
    return [
        {
            "id": f"{topic}-{first + k}",
            "prompt": " ".join(rng.choice(TOPICS[topic].split(), 6)) + f" number {first + k}",
            "response": " ".join(rng.choice(TOPICS[topic].split(), 3)),
        }
        for k, topic in enumerate(topics)
    ]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return write_static_encoder(tmp_path_factory.mktemp("static"), WORDS)


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, str]:
    pool = write_rows(tmp_path / "pool.jsonl", rows_of(["sea", "town", "sky", "town"] * 25))
    return pool, write_rows(tmp_path / "target.jsonl", rows_of(["sea", "sky"] * 4, first=500))


@pytest.fixture
def options(encoder: str) -> dict:
    return {"influence": "bm25", "budget": 6, "first_cut": 4, "first_cut_encoder": encoder, "no_cache": True}


def test_only_what_is_kept_is_read(sources, options, tmp_path: Path):
    pool, target = sources
    selection = nncift.select(pool, target=target, output=tmp_path / "run", **options)
    folder = RunFolder(tmp_path / "run")
    table = pq.read_table(folder.first_cut.table).to_pydict()
    kept = np.flatnonzero(table["kept"])
    assert table["pool_index"] == list(range(100))
    assert len(kept) == 24
    assert np.array_equal(kept, read_array(folder.first_cut.rows))
    assert not any(table["id"][row].startswith("town") for row in kept)
    assert {table["id"][row].partition("-")[0] for row in kept} == {"sea", "sky"}
    for name in ("samples.arrow", "rows.npy", "rows.parquet", "facts.json"):
        assert (folder.first_cut.path / name).is_file()
    assert not list(folder.first_cut.path.glob("pool-*"))
    assert len(read_array(folder.influence)) == 24
    lines = [json.loads(line) for line in Path(pool).read_text().splitlines()]
    assert selection.dataset["id"] == [lines[row]["id"] for row in selection.indices]
    assert np.isin(selection.indices, kept).all()
    assert len(selection) == 6
    assert len(selection.pool) == len(Selection.load(folder).pool) == 100
    text = summary_text(folder)
    assert "First cut: 24 of 100 samples kept (4 budgets)" in text
    assert "the most similar to each target" in text
    assert "Selected: 6 of 100 samples" in text
    assert "24 of 100 samples kept" in folder.report.read_text()
    finished = FinishedRun.open(folder.path)
    assert finished.pool[finished.selection.indices]["id"] == selection.dataset["id"]
    assert finished.matrix().shape == (24, 8)


def test_the_choice_is_that_from_the_kept_rows_alone(sources, options, tmp_path: Path):
    pool, target = sources
    cut = nncift.select(pool, target=target, output=tmp_path / "cut", **options)
    kept = set(read_array(RunFolder(tmp_path / "cut").first_cut.rows).tolist())
    lines = Path(pool).read_text().splitlines()
    alone = write_rows(tmp_path / "alone.jsonl", [json.loads(line) for i, line in enumerate(lines) if i in kept])
    plain = {name: value for name, value in options.items() if not name.startswith("first_cut")}
    assert cut.dataset["id"] == nncift.select(alone, target=target, output=tmp_path / "plain", **plain).dataset["id"]


def test_a_killed_run_ends_with_the_same_bytes(sources, options, tmp_path: Path):
    pool, target = sources

    def chosen() -> list[bytes]:
        nncift.select(pool, target=target, output=tmp_path / "run", **options)
        folder = RunFolder(tmp_path / "run")
        files = (folder.first_cut.samples, folder.first_cut.table, folder.influence, folder.selection, folder.subset)
        return [path.read_bytes() for path in files]

    before, folder = chosen(), RunFolder(tmp_path / "run")
    folder.subset.unlink()
    folder.selection.unlink()
    assert chosen() == before
    for path in (folder.first_cut.facts, folder.first_cut.samples, folder.subset, folder.selection):
        path.unlink()
    assert chosen() == before
    folder.report.unlink()
    assert write_report(folder.path).is_file()


def test_without_a_target_it_represents_the_pool(sources, options, tmp_path: Path):
    pool, target = sources
    towns = {}
    for name, more in (("plain", {}), ("known", {"known": target})):  # which are of the sea and the sky
        nncift.select(pool, output=tmp_path / name, **more, **options)
        table = pq.read_table(RunFolder(tmp_path / name).first_cut.table).to_pydict()
        kept = [identity for identity, is_kept in zip(table["id"], table["kept"], strict=True) if is_kept]
        assert len(kept) == 24
        assert ("similarity" in table) == bool(more)
        towns[name] = sum(identity.startswith("town") for identity in kept)
        assert "representative of the pool" in summary_text(tmp_path / name)
    assert 4 < towns["plain"] < towns["known"]


def test_nothing_is_cut_from_a_small_pool(sources, options, tmp_path: Path):
    pool, target = sources
    whole = nncift.select(pool, target=target, output=tmp_path / "run", **options | {"first_cut": 50})
    plain = {name: value for name, value in options.items() if not name.startswith("first_cut")}
    assert whole.dataset["id"] == nncift.select(pool, target=target, output=tmp_path / "plain", **plain).dataset["id"]
    assert not RunFolder(tmp_path / "run").first_cut.path.exists()
    assert "First cut" not in summary_text(tmp_path / "run")


def test_fractions_and_tokens_are_of_the_whole_pool(sources, options, tiny_model, tmp_path: Path):
    pool, target = sources
    part = nncift.select(pool, target=target, output=tmp_path / "part", **options | {"budget": 0.05})
    assert len(part) == 5
    assert read_json(RunFolder(tmp_path / "part").first_cut.facts)["kept"] == 20
    tokens = options | {"budget": "150tok", "model": tiny_model}
    selection = nncift.select(pool, target=target, output=tmp_path / "tokens", **tokens)
    folder = RunFolder(tmp_path / "tokens")
    kept = read_json(folder.first_cut.facts)["kept"]
    assert 4 * len(selection) * 0.5 < kept < 4 * len(selection) * 2
    assert 75 < read_json(folder.summary)["tokens_selected"] <= 150
    with pytest.raises(ConfigError, match="less than the shortest sample"):
        nncift.select(pool, target=target, output=tmp_path / "few", **tokens | {"budget": "2tok", "first_cut": 1})


def test_near_duplicates_are_listed_by_their_row_in_the_pool(sources, options, minilm, tmp_path: Path):
    pool, target = sources
    run = tmp_path / "run"
    selection = nncift.select(
        pool, target=target, output=run, near_duplicates=0.9, encoder=minilm, device="cpu", **options | {"budget": 3}
    )
    listed = [json.loads(line) for line in RunFolder(run).samples("pool").near_duplicates.read_text().splitlines()]
    ids = [json.loads(line)["id"] for line in Path(pool).read_text().splitlines()]
    assert listed
    assert all(ids[entry["pool_row"]] == entry["id"] for entry in listed)
    assert not np.isin(selection.indices, [entry["pool_row"] for entry in listed]).any()


def test_an_estimated_run_with_a_verified_shortlist(sources, options, minilm, tmp_path: Path):
    given = options | {"influence": "builders:EstimatedCosine", "labels": 100, "verify": 2, "budget": 4}
    run = tmp_path / "run"
    selection = nncift.select(sources[0], target=sources[1], output=run, encoder=minilm, device="cpu", **given)
    folder = RunFolder(run)
    assert len(read_array(folder.features.array("pool"))) == read_json(folder.first_cut.facts)["kept"] == 16
    assert np.isin(selection.indices, read_array(folder.first_cut.rows)).all()
    finished = FinishedRun.open(run)
    assert finished.pool[finished.selection.indices]["id"] == selection.dataset["id"]


def test_an_earlier_run_gives_what_holds(sources, options, tmp_path: Path):
    pool, target = sources
    nncift.select(pool, target=target, output=tmp_path / "run", **options)
    same = nncift.select(from_run=tmp_path / "run", objective="mean-influence", output=tmp_path / "same")
    assert "vectors of the pool: taken" in summary_text(tmp_path / "same")
    assert len(same) == 6
    nncift.select(from_run=tmp_path / "run", budget=8, output=tmp_path / "more")
    assert read_json(RunFolder(tmp_path / "more").first_cut.facts)["kept"] == 32
    more = write_rows(tmp_path / "new.jsonl", rows_of(["sea", "town"] * 10, first=200))
    form = {"objective": "facility-location-mutual-information", "eta": 2}
    grown = nncift.select(append=more, from_run=tmp_path / "run", output=tmp_path / "grown", **form)
    anew = nncift.select([pool, more], target=target, output=tmp_path / "anew", **form, **options)
    assert len(grown.pool) == 120
    assert grown.dataset["id"] == anew.dataset["id"]
    assert max(grown.indices) >= 100


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"quota": "source=equal"}, "`quota` cannot be given"),
        ({"labels_from": "values.parquet", "influence": None}, "`labels_from` cannot be given"),
        ({"verify": 5, "influence": "less"}, "more than the 4 budgets"),
        ({"first_cut": 0.5}, "at least 1"),
        ({"first_cut": None}, "`first_cut_encoder` is the encoder"),
        ({"budget": 1000}, "more than the pool's 100 samples"),
    ],
)
def test_what_does_not_go_with_it_is_refused(more, message, sources, options, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        nncift.select(sources[0], target=sources[1], output=tmp_path / "run", **options | more)
    assert not (tmp_path / "run").exists()


def test_encoders_that_cannot_be_loaded_are_one_line(sources, options, tmp_path: Path, monkeypatch):
    pool, target = sources
    for name, message in (("./missing", "there is no folder"), (str(tmp_path), "cannot load the static encoder")):
        with pytest.raises(ModelError, match=message):
            nncift.select(pool, target=target, output=tmp_path / "run", **options | {"first_cut_encoder": name})
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(DependencyError, match=r"needs the package model2vec: pip install 'nncift\[first-cut\]'"):
        nncift.select(pool, target=target, output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_dry_run_counts_it(sources, options, tmp_path: Path, monkeypatch):
    pool, target = sources
    planned = planning.plan(make_config(pool, target=target, output=str(tmp_path / "run"), **options))
    assert (planned.uncut, planned.samples, planned.selected) == (100, 24, 6)
    assert planned.all_pairs == 24 * 8
    assert planned.seconds["first cut"] > 0
    assert "100 samples, of which the first cut keeps 24; targets: 8" in str(planned)
    monkeypatch.setattr(planning, "READ", 20)
    planned = planning.plan(make_config(pool, target=target, output=str(tmp_path / "run"), **options | {"budget": 0.1}))
    assert abs(planned.uncut - 100) <= 10
    assert planned.samples == 4 * planned.selected
    assert f"about {planned.uncut} samples, of which the first cut keeps about {planned.samples}" in str(planned)
    assert not (tmp_path / "run").exists()


def test_texts_are_embedded_shard_by_shard(encoder, tmp_path: Path):
    from builders import samples

    rows = samples(rows_of(["sea", "sky", "town"] * 5))
    whole = static_vectors(rows, StaticEncoder(encoder))
    texts = [f"{prompt}\n{response}" for prompt, response in zip(rows["prompt"], rows["response"], strict=True)]
    assert np.allclose(whole[:], StaticEncoder(encoder).embed(texts), atol=1e-3)
    computed: list[int] = []
    for _ in range(2):
        found = static_vectors(rows, StaticEncoder(encoder), folder=tmp_path / "f", size=4, count=computed.append)
        assert np.array_equal(found[:], whole[:])
        (tmp_path / "f" / "pool-000001.npy").unlink()
    assert computed == [4, 4, 4, 3, 4]
    shutil.rmtree(tmp_path / "f")


def test_the_embedded_encoder_finds_the_topic():
    encoder = StaticEncoder("embedded")
    sea, boat, tax = encoder.embed(["fish in the sea", "a boat on the ocean", "the tax on income"])
    assert sea.shape == (encoder.width,) == (384,)
    assert sea @ boat > sea @ tax + 0.1
    assert np.linalg.norm(sea) == pytest.approx(1, abs=1e-5)
    assert encoder.embed(["", "."]).shape == (2, 384)
