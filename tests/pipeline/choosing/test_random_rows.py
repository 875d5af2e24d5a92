"""Runs that draw random rows: duplicates and test rows stay out, any budget is a fair draw, and no model is asked."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import nncift
from builders import named, word_rows, write_rows
from nncift.cli import main
from nncift.errors import ConfigError
from nncift.influence.random_rows import Random, StratifiedRandom, kmeans_seconds, stratified_values
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.plan import plan
from nncift.report.terminal import summary_text

NAMES = ("random", "stratified-random")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """60 distinct rows, the first five twice, and a test file with the next five."""
    folder, rows = tmp_path_factory.mktemp("files"), word_rows(60)
    return {
        "pool": write_rows(folder / "pool.jsonl", [*rows, *rows[:5]]),
        "test": write_rows(folder / "test.jsonl", rows[5:10]),
        "known": write_rows(folder / "known.jsonl", word_rows(4, 300)),
    }


@pytest.fixture
def call(files, small_encoder, tmp_path):
    def call(name: str, place: str, **changes):
        given = {"influence": name, "encoder": small_encoder, "device": "cpu", "budget": 12, "output": tmp_path / place}
        if name == "stratified-random":
            given["influence_options"] = {"clusters": 12}
        return nncift.select(files["pool"], **(given | changes))

    return call


@pytest.mark.parametrize("name", NAMES)
def test_a_draw_is_reproducible_and_leaves_duplicates_and_test_rows_out(files, call, tmp_path: Path, name):
    first = call(name, "one", exclude=(files["test"],))
    ids = [json.loads(line)["id"] for line in (tmp_path / "one/subset.jsonl").read_text().splitlines()]
    assert len(set(ids)) == 12
    assert not {f"row-{k}" for k in range(5, 10)} & {*ids}
    facts = json.loads((tmp_path / "one/summary.json").read_text())
    assert (facts["pool"]["rows"], facts["pool"]["duplicates"], facts["objective"]) == (55, 5, "mean-influence")
    assert facts["warnings"] == []
    assert facts["served"] is None
    assert "12 of 55 samples" in summary_text(tmp_path / "one")
    assert call(name, "again", exclude=(files["test"],)).indices.tolist() == first.indices.tolist()
    assert call(name, "other", exclude=(files["test"],), seed=1).indices.tolist() != first.indices.tolist()
    assert "Map of the pool" not in (tmp_path / "one/report.html").read_text()


def test_random_rows_need_no_model_whatever_the_target(files, call, tmp_path: Path, capsys):
    first = call("random", "one", model="/no/such/model", encoder="/no/such/encoder")
    with_target = call("random", "two", target=files["test"], model="/no/such/model", encoder="/no/such/encoder")
    assert with_target.indices.tolist() == first.indices.tolist()
    with pytest.raises(SystemExit) as stop:
        main(["select", files["pool"], "--influence", "random", "--dry-run", "--output", str(tmp_path / "none")])
    assert not stop.value.code
    assert "Nothing was written" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_token_budget_takes_the_same_order_as_far_as_it_fits(call, tiny_model, tmp_path: Path, name):
    order = call(name, "all", budget="60").indices
    chosen = call(name, "tokens", budget="100tok", model=tiny_model).indices.tolist()
    tokens, room, expected = np.load(tmp_path / "tokens/tokens.npy"), 100, []
    for row in order.tolist():
        if tokens[row] <= room:
            expected.append(row)
            room -= tokens[row]
    assert chosen == expected
    assert len(chosen) > 2


@pytest.mark.parametrize("name", NAMES)
def test_what_a_draw_cannot_count_is_refused(files, call, name):
    with pytest.raises(ConfigError, match="`known` needs the `objective` facility-location-conditional-gain") as raised:
        call(name, "run", known=files["known"])
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match=f"{name} is computed exactly for every pair, so `labels` 50 has no use"):
        call(name, "run", labels=50)


@pytest.mark.parametrize("name", NAMES)
def test_random_rows_have_no_weights(call, small_encoder, tmp_path: Path, name):
    with pytest.raises(ConfigError, match=f"the gains of {name} rows are random numbers, so `weights`"):
        call(name, "refused", weights=True)
    assert call("bm25", "weighted", weights=True).weights is not None
    drawn = nncift.select(
        from_run=tmp_path / "weighted", influence=name, encoder=small_encoder, output=tmp_path / "drawn"
    )
    assert drawn.weights is None


def test_every_row_has_the_same_chance_and_a_draw_of_its_own():
    rows = named([(f"prompt {k}", "response") for k in range(30)], "row")
    numbers = np.array([Random(draw=draw, seed=3).vectors(rows)[:, 0] for draw in range(400)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    chosen = np.argsort(-numbers, axis=1)[:, :10]
    counts = np.bincount(chosen.ravel(), minlength=30)  # binomial: 400 of 1/3
    assert abs(counts - 400 / 3).max() < 4.5 * np.sqrt(400 * 2 / 9)
    assert abs(np.corrcoef(numbers[:, :2].T)[0, 1]) < 0.2
    np.testing.assert_array_equal(Random(seed=3).vectors(rows.select([7, 2])), Random(seed=3).vectors(rows)[[7, 2]])


SIZES = (50, 30, 15, 5)


def blobs() -> np.ndarray:
    """Four clusters far from each other, of `SIZES` rows."""
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(4, 6) * 10, SIZES, axis=0)
    return (centres + rng.normal(size=centres.shape) * 0.05).astype(np.float32)


def test_every_budget_takes_its_share_of_each_cluster():
    embeddings, cluster = blobs(), np.repeat(range(4), SIZES)
    values = stratified_values(embeddings, 4, 0)
    order = np.argsort(-values)
    for budget in range(1, 101):
        taken = np.bincount(cluster[order[:budget]], minlength=4)
        assert (abs(taken - budget * np.array(SIZES) / 100) < 2).all()  # up to one row, and one of the budget itself
    np.testing.assert_array_equal(stratified_values(embeddings, 4, 0), values)
    assert not np.array_equal(stratified_values(embeddings, 4, 1), values)


def test_rows_of_small_and_large_clusters_have_the_same_chance():
    embeddings, draws = blobs(), 150
    counts = np.zeros(100)
    for draw in range(draws):
        counts[np.argsort(-stratified_values(embeddings, 4, [draw, 7]))[:10]] += 1
    by_cluster = np.array([part.mean() for part in np.split(counts, np.cumsum(SIZES)[:-1])]) / draws
    np.testing.assert_allclose(by_cluster, 0.1, atol=0.03)
    assert abs(counts / draws - 0.1).max() < 0.11


def test_fewer_rows_than_clusters_and_equal_rows():
    assert sorted(stratified_values(np.ones((3, 2), np.float32), 9, 0)) != [1, 1, 1]
    assert stratified_values(np.ones((0, 2), np.float32), 9, 0).shape == (0,)


@pytest.mark.parametrize(("n", "clusters", "times"), [(2048, 128, 1), (16384, 1280, 80), (8, 100, 1), (0, 5, 0)])
def test_planned_time_of_clusters_grows_with_samples_and_clusters(monkeypatch, n, clusters, times):
    ticks = itertools.count()
    monkeypatch.setattr("nncift.run.folder.costs.time.perf_counter", lambda: next(ticks))  # a trial takes one second
    assert kmeans_seconds(n, clusters, 4) == times


class Joint(Random):
    """Takes a minute for every sample, for all at once."""

    name = "joint"

    def joint_seconds(self, pool_rows, samples):
        return 60.0 * samples


def test_a_dry_run_counts_what_is_done_for_all_samples_at_once(files):
    planned = plan(make_config(files["pool"], influence=f"{__name__}:Joint", budget=5))
    assert planned.seconds["influence"] > 60 * planned.samples
    planned = plan(make_config(files["pool"], influence="random", budget=5))
    assert planned.seconds["influence"] < 60 * planned.samples


def test_clusters_are_of_the_pool_alone(small_encoder):
    rows = named([(f"prompt {k}", "response") for k in range(8)], "row")
    function = StratifiedRandom(small_encoder, clusters=3)
    function.prepare(rows, rows)
    values = function.vectors(rows)
    function.prepare(rows, rows.select([1]))
    np.testing.assert_array_equal(function.vectors(rows), values)
