"""What is pushed: the hub's layout, read again by its own libraries; and nothing that is local or secret."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

import nncift
from builders import word_rows, write_rows
from nncift.cli import main
from nncift.errors import ConfigError, RunError
from nncift.handover.public_names import public_name, without_paths

REPO = "ada/subset"


@pytest.fixture(scope="module")
def pushed(network_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pushed") / "up"
    assert set(nncift.push(network_run, REPO, to_folder=folder, license="apache-2.0").places) == {"data", "network"}
    return folder


def test_the_data_set_is_read_as_the_rows_of_the_subset(pushed, network_run, tmp_path):
    selection = nncift.Selection.load(network_run)
    rows = load_dataset(str(pushed / "dataset"), split="train", cache_dir=tmp_path)
    assert rows.to_list() == selection.dataset.to_list()
    sft = load_dataset(str(pushed / "dataset"), "sft", split="train", cache_dir=tmp_path)
    assert sft.to_list() == selection.sft_dataset().to_list()


def test_chats_with_tools_and_phases_survive(chat_run, phased_run, tmp_path):
    nncift.push(chat_run, REPO, to_folder=tmp_path / "chats")
    sft = load_dataset(str(tmp_path / "chats" / "dataset"), "sft", split="train", cache_dir=tmp_path)
    assert sft.to_list() == nncift.Selection.load(chat_run).sft_dataset(weights=True).to_list()
    nncift.push(phased_run, REPO, to_folder=tmp_path / "phases")
    splits = load_dataset(str(tmp_path / "phases" / "dataset"), "sft", cache_dir=tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"phase_1": 4, "phase_2": 4}


def test_a_folder_is_not_mistaken_for_another_in_the_cache(tmp_path):
    """`load_dataset` finds a local data set in its cache by the card; and {} is no type of Parquet."""
    rows = [{**row, "meta": {}, "nncift_weight": 7} for row in word_rows(12)]
    for seed in ("1", "2"):
        nncift.select(rows, influence="random", seed=int(seed), budget=4, output=str(tmp_path / f"run-{seed}"))
        nncift.push(tmp_path / f"run-{seed}", REPO, to_folder=tmp_path / seed)
        ids = nncift.Selection.load(tmp_path / f"run-{seed}").dataset["id"]
        found = load_dataset(str(tmp_path / seed / "dataset"), split="train", cache_dir=tmp_path / "cache")
        assert (found["id"], set(found["meta"])) == (ids, {"{}"})
        sft = load_dataset(str(tmp_path / seed / "dataset"), "sft", split="train", cache_dir=tmp_path / "cache")
        assert len(sft) == 4
    assert "its weight" not in (tmp_path / "1/dataset/README.md").read_text()  # of the data, not ours


def test_the_network_is_loaded_from_its_folder_and_estimates_as_before(pushed, network_run):
    import numpy as np

    ours, theirs = (nncift.InfluenceNetwork.from_pretrained(at) for at in (network_run / "network", pushed / "network"))
    features = np.random.default_rng(0).standard_normal((3, ours.widths[0]), dtype=np.float32)
    assert np.array_equal(ours.predict(features, features), theirs.predict(features, features))


def test_the_cards_have_the_metadata_that_the_hub_expects(pushed):
    data = DatasetCard.load(pushed / "dataset" / "README.md").data.to_dict()
    assert [each["config_name"] for each in data["configs"]] == ["default", "sft"]
    assert (data["license"], data["size_categories"]) == ("apache-2.0", ["n<1K"])
    model = ModelCard.load(pushed / "network" / "README.md").data.to_dict()
    assert (model["library_name"], model["license"]) == ("nncift", "apache-2.0")
    card = (pushed / "dataset" / "README.md").read_text()
    for said in ("30 samples", "gradient-similarity", "facility location", "of the optimal value", "new pool samples"):
        assert said in card


def test_no_path_and_no_user_is_in_a_card_or_a_config(pushed, network_run):
    texts = [path.read_text() for path in pushed.rglob("*") if path.suffix in (".md", ".json")]
    assert len(texts) >= 6
    stored = json.loads((network_run / "network" / "config.json").read_text())["description"]
    secret = [str(Path.home()), "a secret folder", str(Path(stored["features"]["language_model"]).parent)]
    assert secret[2] in json.dumps(stored)  # so there is something to hide
    assert not [part for part in secret for text in texts if part in text]


def test_text_of_the_data_is_inert_in_a_card(tmp_path):
    rows = [{**row, "kind": "<script>|`x`" if number % 2 else "b"} for number, row in enumerate(word_rows(8))]
    pool = write_rows(tmp_path / "pool <b>|`.jsonl", rows)
    nncift.select(pool, influence="bm25", budget=2, quota={"kind": "equal"}, output=str(tmp_path / "run"))
    nncift.push(tmp_path / "run", REPO, to_folder=tmp_path / "up")
    line = next(line for line in (tmp_path / "up/dataset/README.md").read_text().splitlines() if "| pool |" in line)
    assert line == "| pool | pool &lt;b&gt;\\|\\`.jsonl (8 samples) |"


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("/home/ada/pool.jsonl", "pool.jsonl"),
        ("data/pool.jsonl", "pool.jsonl"),
        ("../ada/models/tiny/", "tiny"),
        ("~/pool.parquet", "pool.parquet"),
        (r"C:\Users\ada\pool.csv", "pool.csv"),
        ("s3://ada:secret@bucket/pool.jsonl?token=x", "pool.jsonl"),
        ("hf://datasets/org/name/train.parquet", "org/name"),
        ("org/name", "org/name"),
        ("org/name:main", "org/name:main"),
        ("dataset 0123abcd", "data in memory"),
    ],
)
def test_names_are_public(name, public):
    assert public_name(name) == public


def test_paths_are_found_wherever_they_are():
    given = {"model": "/home/ada/tiny", "quota": {"data/a.jsonl": 0.5}, "layers": [1, "org/name", "a/b of text"]}
    assert without_paths(given) == {
        "model": "tiny",
        "quota": {"a.jsonl": 0.5},
        "layers": [1, "org/name", "a/b of text"],
    }


class RecordedHub:
    """The calls that a hub would get, and what it holds."""

    def __init__(self, files: list[str] | None = None, error: Exception | None = None) -> None:
        self.files, self.error, self.uploads, self.made = files, error, [], []

    def whoami(self) -> dict:
        if self.error is not None:
            raise self.error
        return {"name": "ada"}

    def list_repo_files(self, repo, *, repo_type, revision):
        if self.files is None:
            raise RepositoryNotFoundError("none", response=_response(404))
        if revision == "new":
            raise RevisionNotFoundError("none", response=_response(404))
        return self.files

    def create_repo(self, repo, **options) -> str:
        self.made.append(options)
        return f"https://hub/{options['repo_type']}s/{repo}"

    def create_branch(self, repo, **options) -> None:
        self.made.append(options)

    def upload_folder(self, *, folder_path, **options) -> None:
        self.uploads.append((options, sorted(path.name for path in Path(folder_path).iterdir())))


def _response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub"))


def test_both_parts_are_uploaded_in_a_commit_each(network_run):
    hub = RecordedHub()
    found = nncift.push(network_run, REPO, private=True, revision="v2", api=hub)
    assert found.places == {
        "data": "https://hub/datasets/ada/subset/tree/v2",
        "network": "https://hub/models/ada/subset/tree/v2",
    }
    (data, data_files), (model, model_files) = hub.uploads
    assert (data["repo_type"], model["repo_type"], data["revision"]) == ("dataset", "model", "v2")
    assert data_files == ["README.md", "data", "nncift.json", "sft"]
    assert model_files == ["README.md", "config.json", "model.safetensors", "nncift.json"]
    assert hub.made[0]["private"] is True
    assert data["delete_patterns"]  # shards of an earlier push


def test_a_repository_of_others_is_left_alone(phased_run):
    with pytest.raises(RunError, match=r"has files of others \(data/train-00000-of-00001.parquet\)"):
        nncift.push(phased_run, REPO, api=RecordedHub(["README.md", "data/train-00000-of-00001.parquet"]))
    with pytest.raises(RunError, match="has files of others"):  # which a new branch would begin with
        nncift.push(phased_run, REPO, revision="new", api=RecordedHub(["mine.parquet"]))
    hub = RecordedHub([".gitattributes", "README.md", "nncift.json", "data/old.parquet"])
    nncift.push(phased_run, REPO, api=hub)
    assert len(hub.uploads) == 1


@pytest.mark.parametrize("given", [{"private": True}, {"revision": "v2"}])
def test_options_of_the_hub_are_refused_beside_a_folder(phased_run, tmp_path, given):
    with pytest.raises(ConfigError, match=f"`{next(iter(given))}` is for the hub"):
        nncift.push(phased_run, REPO, to_folder=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (HfHubHTTPError("no", response=_response(401)), "the hub refuses the login"),
        (HfHubHTTPError("no", response=_response(403)), "may not write to ada/subset"),
        (HfHubHTTPError("500 down", response=_response(500)), "the hub refuses ada/subset"),
        (httpx.ConnectError("no route"), r"cannot reach the Hugging Face hub \(no route\)"),
    ],
)
def test_errors_of_the_hub_are_one_line(error, message, phased_run):
    with pytest.raises(RunError, match=message) as raised:
        nncift.push(phased_run, REPO, api=RecordedHub(error=error))
    assert "\n" not in str(raised.value)


def test_without_a_login_or_a_hub_there_is_one_line(phased_run, monkeypatch, tmp_path, capsys):
    import huggingface_hub.constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for token, message in (("", "not logged in"), ("hf_secret", "HF_HUB_OFFLINE): unset it, or give --to-folder")):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(SystemExit):
            main(["push", str(phased_run), REPO])
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.count("\n") == 1
        assert "hf_secret" not in shown


def test_options_that_cannot_be_used_are_refused(phased_run, network_run, tmp_path, capsys):
    for repo in ("subset", "/ada/x", "ada/../x", "ada/x/y", ""):
        with pytest.raises(ConfigError, match="not the name of a repository"):
            nncift.push(phased_run, repo, to_folder=tmp_path / "up")
    with pytest.raises(ConfigError, match="no name of a license"):
        nncift.push(phased_run, REPO, license="Apache 2.0", to_folder=tmp_path / "up")
    with pytest.raises(RunError, match="has no network of its own"):
        nncift.push(phased_run, REPO, only="network", to_folder=tmp_path / "up")
    assert not (tmp_path / "up").exists()
    with pytest.raises(SystemExit, match="0"):
        main(["push", str(network_run), REPO, "--only", "network", "--to-folder", str(tmp_path / "up")])
    assert "InfluenceNetwork" in capsys.readouterr().out
    assert not (tmp_path / "up" / "dataset").exists()
