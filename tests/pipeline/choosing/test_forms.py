"""The option `matrix`: the same choice stored and streamed, a bounded one sparse; refused where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nncift
from builders import word_rows, write_rows
from nncift.errors import ConfigError
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.plan import plan
from nncift.report.terminal import summary_text
from nncift.run.folder.folder import RunFolder


@pytest.fixture
def common(tmp_path: Path, small_encoder) -> dict:
    pool = write_rows(tmp_path / "pool.jsonl", word_rows(60))
    shared = {"encoder": small_encoder, "device": "cpu", "budget": 12, "influence": "embedding-similarity"}
    return {"pool": pool, "no_cache": True, **shared}


def test_stored_streamed_and_sparse(common: dict, tmp_path: Path):
    chosen = {}
    for form in ("stored", "streamed", "sparse"):
        folder = tmp_path / form
        chosen[form] = nncift.select(**common, matrix=form, output=folder)
    assert chosen["stored"].indices.tolist() == chosen["streamed"].indices.tolist()
    assert chosen["stored"].sparseness is None
    found = chosen["sparse"]
    assert found.sparseness.helpers == 20  # four times 60 / 12
    assert 0 <= found.sparseness.understated <= 0.01
    assert found.value >= 0.97 * chosen["stored"].value
    assert found.certificate.bound >= chosen["stored"].value - 1e-4
    folder = tmp_path / "sparse"
    assert nncift.Selection.load(folder).sparseness == found.sparseness
    assert json.loads((folder / "summary.json").read_text())["sparseness"]["helpers"] == 20
    assert "Sparse: the 20 strongest helpers of each target" in summary_text(RunFolder(folder))
    assert "20 strongest helpers" in (folder / "report.html").read_text()


def test_few_helpers_are_doubled_until_they_are_enough(common: dict, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nncift.pipeline.choosing.forms.first_helpers", lambda *_: 1)
    found = nncift.select(**common, matrix="sparse", output=tmp_path / "run")
    assert found.sparseness.helpers > 1
    assert found.sparseness.understated <= 0.01


def test_the_dry_run_states_the_form(common: dict, tmp_path: Path, monkeypatch):
    def lines(**options) -> str:
        return str(plan(make_config(**common, output=tmp_path / "run", **options)))

    assert "all pairs are stored in memory" in lines()
    assert "all pairs are streamed" in lines(matrix="streamed")
    assert "all pairs are sparse: the 20 strongest helpers" in lines(matrix="sparse")
    monkeypatch.setattr("nncift.matrix.planning.forms.STORED", 1000)
    assert "all pairs are streamed" in lines()  # few targets
    monkeypatch.setattr("nncift.matrix.planning.forms.FEW_TARGETS", 50)
    assert "all pairs are sparse" in lines()
    assert "all pairs are streamed" in lines(objective="concave-cover")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "concave-cover"}, "needs a form of facility location as `objective`"),
        ({"influence": "bm25"}, "not of dense vectors"),
    ],
)
def test_what_has_no_sparse_form_is_refused(common: dict, tmp_path: Path, options, message):
    with pytest.raises(ConfigError, match=message):
        nncift.select(**(common | options), matrix="sparse", output=tmp_path / "run")


def test_of_an_estimate(common: dict, tmp_path: Path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.standard_normal((60, 5)).astype(np.float32))
    rows = [
        {"pool_id": f"row-{i}", "target_id": f"row-{j}", "influence": float(rng.random())}
        for i in range(0, 60, 2)
        for j in range(1, 40, 2)
    ]
    options = {"labels_from": write_rows(tmp_path / "labels.jsonl", rows), "features": tmp_path / "x.npy"}
    given = {name: value for name, value in common.items() if name not in ("influence", "encoder")} | options
    found = nncift.select(**given, matrix="sparse", output=tmp_path / "run")
    assert found.sparseness.helpers == 20
    assert len(found) == 12
