"""What cannot work is refused before any work, in a line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

import nncift
import nncift.pipeline.plan
from builders import write_rows
from nncift.errors import ConfigError, DataError, ModelError
from pipeline_runs import arithmetic


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
    options = {**options, "influence": "builders:EstimatedIFD", "probes": 4}
    with pytest.raises(ConfigError, match=r"estimated-ifd gives a sample one score for all targets.*`labels` 100%"):
        nncift.select(pool, target=target, output=tmp_path / "run", **options)


@pytest.mark.parametrize("influence", ["delift", "gradient-similarity", "builders:EstimatedIFD"])
def test_an_overlong_response_is_refused_before_any_work(influence, pool, target, options, tmp_path: Path):
    rows = [*arithmetic(59), {"id": "endless", "question": "Count", "answer": "one two three " * 400}]
    data = write_rows(tmp_path / "long.jsonl", rows)
    with pytest.raises(DataError, match=r"row 60: its response takes \d+ tokens .* skip it with `skip_bad_rows`"):
        nncift.select(data, target=target, output=tmp_path / "run", influence=influence, **options)
    assert not (tmp_path / "run/features").exists()


def test_every_language_model_is_located_before_any_work(pool, target, options, tmp_path: Path):
    options = {**options, "influence": "selectit", "model": f"{options['model']},nobody/none"}
    with pytest.raises(ModelError, match="'nobody/none'"):
        nncift.select(pool, target=target, output=tmp_path / "run", **options)
    assert not (tmp_path / "run/features").exists()


def test_a_response_longer_than_the_context_is_named(target, options, tmp_path: Path):
    rows = [*arithmetic(59), {"id": "epic", "question": "Tell me all.", "answer": "and then " * 2000}]
    pool = write_rows(tmp_path / "long.jsonl", rows)
    with pytest.raises(DataError, match=r"long\.jsonl, row 60"):
        nncift.select(pool, target=target, output=tmp_path / "run", influence="delift", **{**options, "labels": 480})
    assert not list((tmp_path / "run").glob("labels/block-*"))


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
