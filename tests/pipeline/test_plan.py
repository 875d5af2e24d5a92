"""The dry run: large pools are read in part, and the plan of a run is near to what the run takes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nncift
from builders import word_rows, write_rows
from nncift.data.sources.sampling import FirstRows
from nncift.data.sources.sources import open_source
from nncift.influence.base import InfluenceFunction, Traits
from nncift.pipeline import plan as planning
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.context import Run
from nncift.pipeline.inputs.read import read
from nncift.pipeline.learning import without_labels
from nncift.run.folder.folder import RunFolder


def varied(n: int) -> list[dict]:
    lengths = np.random.default_rng(0).integers(1, 60, n)
    return [
        {"id": f"row-{i}", "prompt": f"Say {'again ' * int(length)}{i}", "response": f"{i}"}
        for i, length in enumerate(lengths)
    ]


def write(folder: Path, kind: str, rows: list[dict]) -> Path:
    path = folder / f"pool.{kind}"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        path.write_text("id,prompt,response\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize(("kind", "tolerance"), [("jsonl", 0.03), ("csv", 0.05), ("jsonl.gz", 0.15), ("parquet", 0.0)])
def test_the_number_of_rows_is_estimated_from_the_first(kind, tolerance, tmp_path: Path):
    path = write(tmp_path, kind, varied(4000))
    first = FirstRows(open_source(str(path)), 400)
    assert len(list(first.source.rows())) == first.read == 400
    assert first.rows == pytest.approx(4000, rel=tolerance)
    whole = FirstRows(open_source(str(path)), 4000)
    assert len(list(whole.source.rows())) == whole.rows == 4000
    assert whole.ended


def test_a_large_pool_is_read_in_part(tmp_path: Path, monkeypatch):
    pool = write_rows(tmp_path / "pool.jsonl", varied(600))
    target = write_rows(tmp_path / "target.jsonl", word_rows(20))
    np.save(tmp_path / "x.npy", np.zeros((600, 4), np.float32))
    np.save(tmp_path / "y.npy", np.zeros((20, 4), np.float32))
    features = {"features": tmp_path / "x.npy", "target_features": tmp_path / "y.npy"}
    config = make_config(pool, target=target, influence="builders:EstimatedBM25", labels=200, budget="10%", **features)
    whole = planning.plan(config)
    assert (whole.samples, whole.pairs, whole.all_pairs) == (600, 196, 12_000)
    assert not whole.estimated
    monkeypatch.setattr(planning, "READ", 100)
    part = planning.plan(config)
    assert part.estimated == {"pool"}
    assert part.samples == pytest.approx(600, rel=0.1)
    assert part.selected == pytest.approx(60, rel=0.1)
    assert (part.targets, part.pairs) == (20, 196)
    assert "Pool: about " in str(part)
    assert "the first 100 rows were read" in str(part)
    own = planning.plan(make_config(pool, influence="builders:EstimatedBM25", labels=200, features=tmp_path / "x.npy"))
    assert own.all_pairs == own.samples**2


@pytest.fixture
def less(tiny_model, small_encoder) -> dict:
    """Options of a run whose labels need a training."""
    models = {"model": tiny_model, "encoder": small_encoder, "device": "cpu"}
    return {"influence": "less", "labels": 60, "budget": 6, **models}


def test_the_plan_is_near_to_the_run(tmp_path: Path, less):
    """Disk and memory within a factor of 1.5, and the tokens of the labels, of a function that trains."""
    pool = write_rows(tmp_path / "pool.jsonl", varied(60))
    options = less | {"influence_options": {"training": {"epochs": 2}}, "features": "sentence"}
    options |= {"keep_checkpoints": True, "output": tmp_path / "run"}
    planned = planning.plan(make_config(pool, **options))
    nncift.select(pool, **options)
    stages = json.loads((tmp_path / "run/costs.json").read_text())["stages"]
    assert planned.tokens == stages["labels"]["forward_tokens"]
    disk = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert planned.disk / 1.5 < disk < planned.disk * 1.5
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert planned.exact_seconds > 0
    assert summary["exact_all_pairs"]["forward_tokens"] > planned.tokens


GRID = "100 pool samples x 100 targets; the cost is that of 200 samples, not of the pairs"


@pytest.mark.parametrize(
    ("influence", "labels", "line", "pairs"),
    [
        ("EstimatedBM25", None, GRID, 10_000),
        ("EstimatedBM25", 2000, "44 pool samples x 45 targets; the cost is that of 89 samples, not of the pairs", 1980),
        ("Huge", "auto", "at least ", None),
        ("Huge", None, "44 pool samples x 45 targets", 1980),
        ("PairwiseHuge", None, "90 pool samples, each on 22 of 180 targets", 1980),
        ("PointwiseHuge", None, "375 pool samples", 375),
    ],
)
def test_the_plan_names_the_labelled_samples(tmp_path: Path, influence, labels, line, pairs):
    pool = write_rows(tmp_path / "pool.jsonl", varied(400))
    np.save(tmp_path / "x.npy", np.zeros((400, 4), np.float32))
    kind = f"{'builders' if influence == 'EstimatedBM25' else __name__}:{influence}"
    given = {"influence": kind, "features": tmp_path / "x.npy"} | ({} if labels is None else {"labels": labels})
    planned = planning.plan(make_config(pool, **given))
    assert f"Labels: {line}" in str(planned)
    assert pairs in (None, planned.pairs)


@pytest.mark.parametrize(
    ("changes", "sketched"),
    [({}, True), ({"features": "sentence,lm,gradient-sketch"}, False), ({"influence": "builders:EstimatedIFD"}, False)],
)
def test_the_sketch_of_the_labelled_samples_is_planned(tmp_path: Path, less, changes, sketched):
    """The forward passes that the labels are compared with, those of the run; none where the features give it."""
    pool = write_rows(tmp_path / "pool.jsonl", varied(60))
    options = less | {"influence_options": {"training": {"epochs": 1}}, "output": tmp_path / "run"} | changes
    if changes.get("influence"):
        del options["influence_options"]
    config = make_config(pool, **options)
    assert ("network" in planning.plan(config).seconds) is sketched
    if sketched:
        nncift.select(pool, **options)
        stages = json.loads((tmp_path / "run/costs.json").read_text())["stages"]
        run = Run.resolve(config, RunFolder(tmp_path / "planned"), {"pool": pool})
        read(run)
        assert without_labels.cost(run).tokens == stages["network"]["forward_tokens"] > 0


class Huge:
    """Influence whose squares are no float32."""

    name = "huge"

    def __call__(self, pool_rows, target_rows):
        lengths = np.array([len(prompt) for prompt in pool_rows["prompt"]], np.float32)
        return (np.float32(1e28) * lengths)[:, None] * (1 + np.arange(len(target_rows), dtype=np.float32) % 3)


class PairwiseHuge(InfluenceFunction):
    """The same; each pair is work of its own."""

    name, traits = "pairwise", Traits(per_pair=True)
    __call__ = Huge.__call__


class PointwiseHuge(PairwiseHuge):
    """Declared to be one score for all targets."""

    name, traits = "pointwise", Traits(pointwise=True)


def test_huge_values_give_no_nan_in_any_json(tmp_path: Path):
    pool = write_rows(tmp_path / "pool.jsonl", varied(60))
    target = write_rows(tmp_path / "target.jsonl", word_rows(8))
    rng = np.random.default_rng(0)
    for name, n in (("x", 60), ("y", 8)):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((n, 4)).astype(np.float32))
    features = {"features": tmp_path / "x.npy", "target_features": tmp_path / "y.npy"}
    nncift.select(
        pool, target=target, influence=Huge(), labels=200, budget=5, verify=2, output=tmp_path / "run", **features
    )
    for path in (tmp_path / "run").rglob("*.json*"):
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in {path}"))  # noqa: B023
