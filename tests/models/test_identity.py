"""What identifies a model in a folder: the files that it is loaded from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nncift.errors import ModelError
from nncift.models.identity import identify, is_own_folder
from nncift.models.spec import DEFAULT_MODEL, ModelSpec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json"):
        (folder / name).write_text(name)
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "1_Pooling/config.json", "tokenizer.json"])
def test_other_content_is_another_model(model, name):
    before = identify(str(model))
    (model / name).write_text("other")
    assert identify(str(model), before)["content"] != before["content"]


def test_other_times_another_place_and_texts_about_it_are_the_same_model(model, tmp_path):
    before = identify(str(model))
    os.utime(model / "model.safetensors", (1, 1))
    (model / "README.md").write_text("a card")
    (model / "checkpoint-500").mkdir()
    (model / "checkpoint-500" / "model.safetensors").write_text("another model")
    again = identify(str(model), before)
    assert again["content"] == before["content"]
    assert again["stamp"] != before["stamp"]
    shutil.copytree(model, tmp_path / "copy")
    assert identify(str(tmp_path / "copy"))["content"] == before["content"]


def test_files_that_stay_as_they_are_are_read_once(model, monkeypatch):
    before = identify(str(model))
    monkeypatch.setattr("nncift.models.identity.content_hash", lambda path: pytest.fail(f"{path} is read again"))
    assert identify(str(model), before) == before


def test_a_file_that_cannot_be_read_is_one_line(model, monkeypatch):
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("nncift.models.identity.content_hash", refuse)
    with pytest.raises(ModelError, match=r"cannot be read .Permission denied.: make them readable"):
        identify(str(model))


def test_models_of_the_hub_and_the_embedded_ones_are_known_by_their_names(model):
    assert ModelSpec(str(model)).files == identify(str(model))["content"]
    for name in (DEFAULT_MODEL, "embedded", ""):
        assert not is_own_folder(name)
        assert ModelSpec(name).files is None
