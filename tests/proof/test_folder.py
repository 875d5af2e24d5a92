"""The folder that several processes share: changed models, costs that are being written, work that is shared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nncift.errors import RunError
from nncift.proof.folder import ProofFolder
from nncift.run.folder.costs import Costs
from nncift.run.folder.repair import repair
from nncift.run.storage.files import write_json


@pytest.fixture
def folder(tmp_path: Path) -> ProofFolder:
    return ProofFolder(tmp_path / "out")


def test_costs_that_another_process_writes_or_removes_are_no_damage(folder, monkeypatch):
    with folder.open({}):
        pass
    path = folder.trials / "k" / "costs.json"
    for _ in range(2):
        with Costs(path).stage("tune"):
            pass
        with folder.open({}):
            pass
    path.write_bytes(path.read_bytes().replace(b"tune", b"tone"))
    with pytest.raises(RunError, match=r"trials/k/costs\.json is damaged"), folder.open({}):
        pass
    monkeypatch.setattr("nncift.proof.folder.sealed_files", lambda _: [path])
    shutil.rmtree(path.parent)
    with folder.open({}):
        pass


def test_repair_leaves_the_costs_of_a_comparison(folder):
    with folder.open({}):
        pass
    write_json(folder.costs, {"choices": {}, "trials": {}}, sealed=True)  # as `compare` does
    assert repair(folder)[0].startswith("Nothing is damaged")
