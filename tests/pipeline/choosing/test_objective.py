"""Which objective a run maximises: by the data and by the kind of influence, or as named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nncift
from builders import word_rows, write_rows
from nncift.errors import ConfigError
from nncift.influence.base import InfluenceFunction, Traits
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.plan import plan


class Score(InfluenceFunction):
    """A score by the number in a sample's id, the same for every target."""

    name = "score"
    traits = Traits(pointwise=True)

    def __call__(self, pool_rows, target_rows):
        return np.repeat(_scores(pool_rows["id"])[:, None], len(target_rows), axis=1)


class PerTask(Score):
    """The same; that it is pointwise shows once the targets are there."""

    name = "per-task"
    traits = Traits()

    def check(self, pool, target):
        self.traits = Traits(pointwise=True)


def _scores(ids) -> np.ndarray:
    return np.array([1 + int(name.split("-")[1]) * 7 % 40 for name in ids], np.float32)


@pytest.fixture
def call(tmp_path: Path):
    """A call with 40 pool samples, all of whose scores are computed."""
    pool = write_rows(tmp_path / "pool.jsonl", word_rows(40))
    target = write_rows(tmp_path / "target.jsonl", word_rows(6, 100))
    rng = np.random.default_rng(0)
    for name, n in (("p", 40), ("t", 6)):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((n, 5)).astype(np.float32))

    def call(place: str, *, with_target: bool = False, dry: bool = False, **changes):
        sides = {"target": target, "target_features": tmp_path / "t.npy"} if with_target else {}
        given = {"influence": f"{__name__}:Score", "labels": "100%", "budget": 8, "features": tmp_path / "p.npy"}
        given |= {"output": tmp_path / place, **sides} | changes
        return plan(make_config(pool, **given)) if dry else nncift.select(pool, **given)

    return call


@pytest.mark.parametrize("with_target", [False, True])
@pytest.mark.parametrize("function", ["Score", "PerTask"])
def test_one_score_for_all_targets_is_ranked_by_itself(call, tmp_path: Path, with_target, function):
    selection = call("run", with_target=with_target, influence=f"{__name__}:{function}")
    scores = np.load(tmp_path / "run/influence.npy")
    assert selection.objective == "mean-influence"
    assert selection.indices.tolist() == np.argsort(-scores, kind="stable")[:8].tolist()
    assert selection.served is None
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert not any("no gain" in warning for warning in summary["warnings"])
    planned = call("plan", with_target=with_target, influence=f"{__name__}:{function}", dry=True)
    assert "to choose: 8, by mean-influence" in str(planned)


def test_a_network_and_imported_values_of_a_score_are_ranked_likewise(call, tmp_path: Path):
    call("run")
    applied = call("applied", influence=None, labels=None, network=tmp_path / "run/network")
    lines = [
        {"pool_id": f"row-{i}", "target_id": f"row-{j}", "influence": float(_scores([f"row-{i}"])[0])}
        for i in range(40)
        for j in range(2)
    ]
    values = write_rows(tmp_path / "values.jsonl", lines)
    imported = call("imported", influence=None, labels=None, labels_from=values)
    assert {applied.objective, imported.objective} == {"mean-influence"}
    assert applied.served is imported.served is None


@pytest.mark.parametrize("with_target", [False, True])
def test_an_objective_that_is_named_is_taken(call, with_target):
    assert call("run", with_target=with_target, objective="facility-location").objective == "facility-location"
    assert "by facility-location" in str(call("plan", dry=True, objective="facility-location"))


def test_options_of_a_cover_do_not_go_with_a_score(call):
    with pytest.raises(ConfigError, match=r"`eta` needs the `objective` .*, not mean-influence"):
        call("run", with_target=True, eta=2.0)
