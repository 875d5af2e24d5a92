"""The folder that several processes share: changed models, costs that are being written, work that is shared."""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import numpy as np
import pytest

from nncift.errors import RunError
from nncift.proof import compare, stratified
from nncift.proof.folder import Group, ProofFolder, share_groups
from nncift.proof.trials.selectors import Ranking, Selector, save_ranking
from nncift.run.folder.costs import Costs
from nncift.run.folder.repair import repair
from nncift.run.storage.files import write_json


@pytest.fixture
def folder(tmp_path: Path) -> ProofFolder:
    return ProofFolder(tmp_path / "out")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"epoch one")
    return path


def test_a_model_whose_files_have_changed_is_refused(folder, model):
    name = str(model.parent)
    for models in ([name, "org/model"], [name], ["embedded"], []):
        with folder.open({}, models):
            pass
    model.write_bytes(b"epoch two")
    problem = rf"the files of the model '{name}' have changed since {folder.path} was written: restore them"
    with pytest.raises(RunError, match=problem), folder.open({}, [name]):
        pass
    model.write_bytes(b"epoch one")  # at another time
    with folder.open({}, [name]):
        pass


def test_a_folder_of_an_earlier_version_is_of_the_model_as_it_is(folder, model):
    with folder.open({}):
        assert not folder.run.models.exists()
    with folder.open({}, [str(model.parent)]):
        pass
    model.write_bytes(b"epoch two")
    with pytest.raises(RunError, match="have changed"), folder.open({}, [str(model.parent)]):
        pass


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


def test_what_another_process_leaves_out_is_made_and_nothing_anew(tmp_path):
    files, made, begun, end = {k: tmp_path / str(k) for k in (10, 20)}, [], Event(), Event()

    def make(keys: list[int]) -> None:
        begun.set()
        end.wait()
        made.append(keys)
        for key in keys:
            files[key].touch()

    def work(*keys: int) -> Thread:
        group = Group({key: files[key] for key in keys}, make)
        thread = Thread(target=share_groups, args=({tmp_path / "group": group},))
        thread.start()
        return thread

    threads = [work(20)]
    begun.wait()
    threads.append(work(10, 20))
    end.set()
    for thread in threads:
        thread.join()
    assert made == [[20], [10]]


@pytest.mark.parametrize("first", [[20], [10], [20, 10]])
def test_processes_with_other_budgets_make_what_each_needs(tmp_path, monkeypatch, first):
    selector, made = Selector("free", "bm25"), []

    def inputs(budgets: list[int]) -> SimpleNamespace:
        place = SimpleNamespace(choices=tmp_path)
        shared = {"proof": SimpleNamespace(methods=()), "folder": place, "draws_stratified": True, "seeds": range(2)}
        return SimpleNamespace(budgets=budgets, selectors=[selector], **shared)

    def choose(given: SimpleNamespace, _: Selector, budgets: list[int]) -> None:
        made.extend(budgets)
        for budget in budgets:
            save_ranking(compare._ranking(given, selector, budget), Ranking(np.arange(budget), np.ones(budget)))

    def draw(given: SimpleNamespace, draws: list[tuple[int, int]]) -> None:
        made.extend(draws)
        for each in draws:
            np.save(stratified._path(given, each), np.arange(3))

    monkeypatch.setattr(compare, "_choose", choose)
    monkeypatch.setattr(stratified, "_make", draw)
    compare.choose(inputs(first))
    stratified.stratified_draws(inputs(first))
    assert set(compare.choose(inputs([10, 20]))[selector]) == {10, 20}
    assert set(stratified.stratified_draws(inputs([10, 20]))) == {10, 20}
    assert len(made) == len({*made}) == 2 + 4
