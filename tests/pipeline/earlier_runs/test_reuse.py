"""Choosing again: from an earlier run, with its exclusions, and from the feature cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import nncift
from builders import word_rows, write_rows
from nncift.cli import main
from nncift.errors import ConfigError, DataError, RunError
from nncift.influence.base import InfluenceFunction, Traits
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.select import select
from pipeline_runs import contents, stopped_at

RUN_FILES = ("labels/labels.parquet", "labels/plan.json", "network/model.safetensors", "fidelity.json", "influence.npy")


class Overlap(InfluenceFunction):
    """Shared letters; counts the pairs that it is asked for."""

    name = "overlap"
    traits = Traits(per_pair=True)

    def __init__(self) -> None:
        self.pairs = 0

    def __call__(self, pool_rows, target_rows):
        self.pairs += len(pool_rows) * len(target_rows)
        sides = [[set(text) for text in rows["prompt"]] for rows in (pool_rows, target_rows)]
        return np.array([[len(a & b) / len(a | b) for b in sides[1]] for a in sides[0]], np.float32)


class Length(Overlap):
    """One score for all targets."""

    name = "length"
    traits = Traits(pointwise=True)

    def __call__(self, pool_rows, target_rows):
        self.pairs += len(pool_rows)
        lengths = np.array([len(text) + len(answer) for text, answer in zip(*_texts(pool_rows), strict=True)])
        return np.repeat(lengths[:, None], len(target_rows), axis=1).astype(np.float32)


def _texts(rows):
    return rows["prompt"], rows["response"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A pool, a target, and features of both."""
    rng, tmp_path = np.random.default_rng(0), tmp_path_factory.mktemp("files")
    np.save(tmp_path / "p.npy", rng.standard_normal((60, 5)).astype(np.float32))
    np.save(tmp_path / "t.npy", rng.standard_normal((12, 5)).astype(np.float32))
    return {
        "pool": write_rows(tmp_path / "pool.jsonl", word_rows(60)),
        "target": write_rows(tmp_path / "target.jsonl", word_rows(12, offset=100)),
        "features": str(tmp_path / "p.npy"),
        "target_features": str(tmp_path / "t.npy"),
    }


@pytest.fixture(scope="module")
def earlier(files, tmp_path_factory) -> Path:
    """A run that tests only read."""
    run = tmp_path_factory.mktemp("earlier") / "run"
    select(**files, influence="builders:EstimatedBM25", labels=120, budget=6, seed=3, output=run)
    return run


def notes(folder: Path) -> dict[str, str]:
    return json.loads((folder / "taken.json").read_text())["notes"]


def test_another_budget_gives_the_subset_of_a_fresh_run(files, earlier, tmp_path: Path):
    before = contents(earlier)
    select(files["pool"], from_run=earlier, budget=9, output=tmp_path / "again")
    select(**files, influence="builders:EstimatedBM25", labels=120, budget=9, seed=3, output=tmp_path / "fresh")
    for name in (*RUN_FILES, "subset.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name
    tables = [pq.read_table(tmp_path / name / "selection.parquet") for name in ("again", "fresh")]
    assert tables[0].equals(tables[1])  # but for the bound, which each finds on its own way
    assert notes(tmp_path / "again") == {
        "pool": "pool: the same samples",
        "target": "target: the same samples",
        "labels": "labels: 110 pairs taken",
        "network": "network and fidelity: taken",
        "selection": "selection: 6 samples taken",
    }
    assert contents(earlier) == before  # untouched


def test_the_command_line_says_what_was_taken(files, earlier, tmp_path: Path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["select", files["pool"], "--from", str(earlier), "--budget", "0.1", "--quiet"])
    made = Path(f"{earlier}-budget-0.1")  # by default beside it, named after what differs
    assert len((made / "subset.jsonl").read_text().splitlines()) == 6
    assert json.loads((made / "config.json").read_text())["budget"] == "0.1"  # given, though it is the default
    assert json.loads((made / "config.json").read_text())["seed"] == 3
    out = capsys.readouterr().out
    assert f"From {earlier}: pool: the same samples; target: the same samples; labels: 110 pairs taken" in out
    for arguments in (["--output", str(earlier)], ["--from", str(tmp_path)]):
        with pytest.raises(SystemExit, match="2"):
            main(["select", files["pool"], "--from", str(earlier), *arguments, "--quiet"])
    assert "is the run that --from names: choose another --output" in capsys.readouterr().err


def test_what_differs_is_computed_anew_and_says_why(files, earlier, tmp_path: Path):
    run = tmp_path / "again"
    select(files["pool"], from_run=earlier, objective="facility-location", labels=150, output=run)
    assert notes(run)["labels"] == "labels: computed anew (`labels` 120 there)"
    assert notes(run)["network"] == "network: fitted anew (the labels differ)"
    fresh = tmp_path / "fresh"
    select(
        **files,
        influence="builders:EstimatedBM25",
        labels=150,
        objective="facility-location",
        budget=6,
        seed=3,
        output=fresh,
    )
    assert (run / "subset.jsonl").read_bytes() == (fresh / "subset.jsonl").read_bytes()
    # Other samples, or another function: nothing of the labels holds.
    target = write_rows(tmp_path / "target.jsonl", word_rows(12, offset=200))
    features = {"target_features": files["target_features"]}
    select(files["pool"], from_run=earlier, target=target, output=tmp_path / "other", **features)
    assert notes(tmp_path / "other")["target"] == "target: other samples"
    assert notes(tmp_path / "other")["labels"] == "labels: computed anew (other target samples)"
    select(files["pool"], from_run=earlier, influence=Overlap(), output=tmp_path / "function")
    assert notes(tmp_path / "function")["labels"].startswith("labels: computed anew (the influence function differs")


@pytest.mark.parametrize("kind", [Overlap, Length])
def test_pairs_that_were_measured_are_not_measured_again(files, kind, tmp_path: Path):
    first, more, fresh = kind(), kind(), kind()
    run = {"labels": 40, "budget": 5, "output": tmp_path / "run"}
    select(**files, influence=first, **run)
    select(files["pool"], from_run=tmp_path / "run", influence=more, labels=55, output=tmp_path / "more")
    select(**files, influence=fresh, labels=55, budget=5, output=tmp_path / "fresh")
    assert more.pairs < fresh.pairs
    assert kind is Overlap or more.pairs == fresh.pairs - first.pairs  # rows are the first of one permutation
    for name in ("labels/labels.parquet", "subset.jsonl"):
        assert (tmp_path / "more" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_a_shortlist_is_measured_where_it_is_new(files, tmp_path: Path):
    options = {"labels": 60, "budget": 5, "verify": 1}
    first, again, fresh = Overlap(), Overlap(), Overlap()
    select(**files, influence=first, output=tmp_path / "run", **options)
    select(files["pool"], from_run=tmp_path / "run", influence=again, budget=8, output=tmp_path / "again")
    select(**files, influence=fresh, output=tmp_path / "fresh", **{**options, "budget": 8})
    assert 0 < again.pairs < fresh.pairs - first.pairs / 2
    assert (tmp_path / "again/subset.jsonl").read_bytes() == (tmp_path / "fresh/subset.jsonl").read_bytes()


def test_labels_in_rounds_and_probes_are_taken(files, tmp_path: Path):
    options = {"labels": "auto", "fidelity": 0.1, "probes": 3, "budget": 5}
    first, again = Overlap(), Overlap()
    select(**files, influence=first, output=tmp_path / "run", **options)
    select(files["pool"], from_run=tmp_path / "run", influence=again, budget=7, output=tmp_path / "again")
    assert again.pairs == 0
    assert notes(tmp_path / "again")["probes"] == "probes: taken"
    for name in (*RUN_FILES, "labels/rounds.json", "probes/labels.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_targets_in_memory_are_taken(files, tmp_path: Path):
    listed = word_rows(12, offset=100)
    select(
        **{**files, "target": listed}, influence="builders:EstimatedBM25", labels=60, budget=5, output=tmp_path / "run"
    )
    chosen = select(files["pool"], from_run=tmp_path / "run", budget=4, output=tmp_path / "again")
    assert len(chosen.indices) == 4
    assert notes(tmp_path / "again")["labels"] == "labels: 56 pairs taken"


def test_killed_while_taking_over_it_ends_with_the_same_bytes(files, earlier, tmp_path: Path):
    select(files["pool"], from_run=earlier, budget=9, output=tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    for stop in ("function.json", "labels/plan.json", "network", "fidelity.json"):
        with stopped_at(tmp_path / "killed" / stop, after=False):
            select(files["pool"], from_run=earlier, budget=9, output=tmp_path / "killed")
    select(files["pool"], from_run=earlier, budget=9, output=tmp_path / "killed")
    killed = contents(tmp_path / "killed")
    assert set(killed) == set(whole)
    for name in (*RUN_FILES, "taken.json", "subset.jsonl", "selection.parquet"):
        assert killed[name] == whole[name], name


def test_a_relative_path_of_the_earlier_run_is_explained_elsewhere(tmp_path: Path, monkeypatch):
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    other.mkdir()
    write_rows(here / "pool.jsonl", word_rows(12))
    monkeypatch.chdir(here)
    nncift.select("./pool.jsonl", influence="random", budget=3, output=tmp_path / "run")
    monkeypatch.chdir(other)
    message = r"\./pool\.jsonl: no such file or folder: it is relative to the folder in which .*run was made: .* `pool`"
    with pytest.raises(DataError, match=message):
        nncift.select(from_run=tmp_path / "run", budget=4, output=tmp_path / "larger")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "q", "response": 5}\n')
    for append, advice in (
        ([{"prompt": "q", "response": 5}], "a number, not text: correct it$"),
        (str(bad), "a number, not text: correct it$"),
        ("./missing.jsonl", r"\./missing\.jsonl: no such file or folder: check the path$"),
    ):
        with pytest.raises(DataError, match=advice):
            nncift.select(from_run=tmp_path / "run", append=append, output=tmp_path / "grown")
    nncift.select(here / "pool.jsonl", from_run=tmp_path / "run", budget=4, output=tmp_path / "larger")


def test_exclusions_of_the_earlier_run_apply(files, tmp_path: Path):
    test = write_rows(tmp_path / "test.jsonl", word_rows(10))
    other = write_rows(tmp_path / "other.jsonl", word_rows(5, offset=20))
    run = tmp_path / "run"
    own = {"features": files["features"]}
    select(files["pool"], influence="builders:EstimatedBM25", labels=60, budget=5, exclude=test, output=run, **own)
    for name, options in (
        ("from", {"from_run": run}),
        ("network", {"network": run, "budget": 20, **own}),
    ):
        folder = tmp_path / name
        select(files["pool"], exclude=other, output=folder, **options)
        assert sorted(json.loads((folder / "config.json").read_text())["exclude"]) == sorted([test, other])
        chosen = {json.loads(line)["id"] for line in (folder / "subset.jsonl").read_text().splitlines()}
        assert not chosen & {row["id"] for row in [*word_rows(10), *word_rows(5, offset=20)]}
    # A network of a network: the exclusions go on.
    assert set(make_config(files["pool"], network=tmp_path / "network").exclude) == {test, other}
    assert make_config(files["pool"], network=run / "network").exclude == (test,)
    Path(test).unlink()
    for option in ("network", "from_run"):
        with pytest.raises(ConfigError, match=r"excluded .*test\.jsonl from .* \(no such file .*\): restore it"):
            make_config(files["pool"], **{option: run})


def test_options_that_do_not_go_together_are_replaced(files, earlier, tmp_path: Path):
    made = make_config(files["pool"], from_run=earlier, labels="auto", fidelity=0.4)
    assert (made.labels, made.fidelity, made.seed, made.influence) == ("auto", 0.4, 3, "builders:EstimatedBM25")
    free = make_config(files["pool"], from_run=earlier, labels=0)  # what stands in reads no features
    assert (free.labels, free.network, free.influence, free.features) == ("0", None, "builders:EstimatedBM25", None)
    again = make_config(files["pool"], from_run=earlier, network=earlier)
    assert (again.labels, again.influence) == (None, None)
    with pytest.raises(RunError, match=r"config\.json does not exist"):
        make_config(files["pool"], from_run=tmp_path / "none")
    select(**files, influence=Overlap(), labels=60, budget=5, output=tmp_path / "object")
    with pytest.raises(ConfigError, match=r"the influence function of .* was an object: give it again: `influence`"):
        make_config(files["pool"], from_run=tmp_path / "object")


def test_features_come_from_the_cache_and_from_the_earlier_run(files, small_encoder, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("NNCIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NNCIFT_CACHE_SIZE", "1GB")
    options = {
        "influence": "builders:EstimatedBM25",
        "labels": 60,
        "encoder": small_encoder,
        "budget": 5,
        "device": "cpu",
    }

    def run(name: str, pool: str = files["pool"], **more) -> tuple[int, bytes]:
        nncift.select(pool, output=tmp_path / name, **{**options, **more})
        costs = json.loads((tmp_path / name / "costs.json").read_text())["stages"]
        return costs["features"]["texts"], (tmp_path / name / "features/pool.npy").read_bytes()

    read, first = run("first")
    assert read == 60
    grown = write_rows(tmp_path / "grown.jsonl", [*word_rows(5, offset=300), *word_rows(60)])
    assert run("grown", grown)[0] == 5
    assert "features pool: 60 of 65 samples from the cache" in (tmp_path / "grown/run.log").read_text()
    monkeypatch.setenv("NNCIFT_CACHE_SIZE", "0")
    select(files["pool"], from_run=tmp_path / "first", budget=6, no_cache=True, output=tmp_path / "again")
    assert notes(tmp_path / "again")["features pool"] == "features pool: taken"
    assert (tmp_path / "again/features/pool.npy").read_bytes() == first


def test_damaged_samples_of_the_earlier_run_are_named(files, earlier, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(earlier, run)
    samples = run / "pool/samples.arrow"
    samples.write_bytes(samples.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"samples\.arrow is damaged .*: run nncift repair"):
        select(files["pool"], from_run=run, budget=9, output=tmp_path / "again")
    samples.unlink()
    with pytest.raises(RunError, match=r"samples\.arrow"):
        select(files["pool"], from_run=run, budget=9, output=tmp_path / "again")


def test_code_of_a_model_is_allowed_anew(tmp_path: Path):
    nncift.select(word_rows(6), influence="bm25", budget=2, trust_remote_code=True, output=tmp_path / "run")
    assert make_config(from_run=tmp_path / "run", trust_remote_code=True).trust_remote_code
    assert not make_config(from_run=tmp_path / "run").trust_remote_code


@pytest.mark.parametrize("config", [{"test": "test.jsonl"}, {"pool": "pool.jsonl", "test": "test.jsonl"}, []])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="not the config of a run"):
        make_config(from_run=tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"known": "known"},
        {"known": "known", "nu": 0.5},
        {"target": "known", "eta": 0.3},
        {"objective": "graph-cut", "redundancy": 0.5},
        {"objective": "facility-location"},
    ],
)
def test_random_rows_beside_any_choice(tmp_path: Path, options):
    pool, known = (write_rows(tmp_path / f"{n}.jsonl", word_rows(n, offset=n)) for n in (40, 9))
    given = {name: known if value == "known" else value for name, value in options.items()}
    nncift.select(pool, influence="bm25", budget=5, output=tmp_path / "run", **given)
    drawn = nncift.select(from_run=tmp_path / "run", influence="random", output=tmp_path / "random")
    plain = nncift.select(pool, influence="random", budget=5, output=tmp_path / "plain")
    assert drawn.indices.tolist() == plain.indices.tolist()


def test_random_rows_beside_a_grown_pool(tmp_path: Path):
    pool, new = (write_rows(tmp_path / f"{n}.jsonl", word_rows(n, offset=n)) for n in (40, 9))
    nncift.select(pool, influence="bm25", budget=5, output=tmp_path / "run")
    nncift.select(from_run=tmp_path / "run", append=new, output=tmp_path / "grown")
    drawn = nncift.select(from_run=tmp_path / "grown", influence="random", output=tmp_path / "random")
    assert len(drawn.pool) == 49
