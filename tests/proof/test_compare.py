"""Comparisons end to end on a tiny random model: choices, files, resuming, refusals, the page, the dry run."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from builders import word_rows, write_rows
from nncift import select
from nncift.cli import main
from nncift.errors import ConfigError
from nncift.evaluation.answers.results import ItemScores
from nncift.proof.compare import compare
from nncift.proof.folder import claimed
from nncift.proof.inputs.inputs import prepare
from nncift.proof.runs import opened
from nncift.proof.trials.selectors import Selector, load_ranking
from nncift.proof.trials.trials import Trial

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, small_encoder: str) -> dict[str, str]:
    """A pool, a test file and the models."""
    folder = tmp_path_factory.mktemp("proof")
    pool = write_rows(folder / "pool.jsonl", word_rows(30))
    test = write_rows(folder / "test.jsonl", word_rows(12, offset=500))
    return {"pool": pool, "test": test, "model": tiny_model, "encoder": small_encoder}


def comparison(places: dict[str, str], output: Path, **changes):
    call = {
        "test": places["test"],
        "influence": ["bm25", "builders:EstimatedCosine"],
        "budget": 6,
        "curve": ["6", "30"],
        "units": ["rows"],
        "free": ["bm25"],
        "exact": ["builders:EstimatedCosine"],
        "labels": 60,
        "features": "sentence",
        "model": places["model"],
        "encoder": places["encoder"],
        "methods": ["lora"],
        "seeds": 2,
        "epochs": 1,
        "learning_rate": 0.02,
        "progress": False,
        "output": output,
    }
    return compare(places["pool"], **(call | changes))


def test_a_comparison_of_exact_estimated_free_and_random_choices(places, tmp_path):
    free = ["bm25", "stratified-random"]
    made = comparison(places, tmp_path / "comparison", free=free)
    names = [cell["selector"] for cell in made.results["cells"] if cell["budget"] == 6 and cell["unit"] == "rows"]
    assert names == [
        "random",
        "stratified-random",
        "bm25",
        "builders:EstimatedCosine, exact",
        "builders:EstimatedCosine, estimated",
    ]
    found = {(c["selector"], c["unit"], c["budget"]): c for c in made.results["cells"]}
    assert found["full pool", "rows", 30]["curve"]
    assert found["bm25", "rows", 6]["rows"] == 6
    for name in ("results.csv", "results.md", "report.html"):
        assert "bm25" in (made.folder / name).read_text()
        assert "stratified-random" in (made.folder / name).read_text()
    draws = [np.load(made.folder / "choices" / f"stratified-random-6-{seed}.npy") for seed in (0, 1)]
    assert [sorted(draw.tolist()) for draw in draws] == [list(range(30))] * 2
    assert draws[0].tolist() != draws[1].tolist()
    for path in (made.folder / "choices").glob("*-6.npy"):  # 24 chosen one by one, then the others by their gains
        ranking = load_ranking(path)
        assert sorted(ranking.rows.tolist()) == list(range(30))
        assert np.all(np.diff(ranking.gains) <= 1e-6)
    assert set(found["stratified-random", "rows", 6]["metrics"]["loss"]["by_seed"]) == {"0", "1"}
    assert {"against_random", "equivalent"} <= found["stratified-random", "rows", 6].keys()
    assert {"against_random", "against_stratified"} <= found["bm25", "rows", 6].keys()
    assert "against_stratified" not in found["random", "rows", 6]
    assert "influence" in json.loads((made.folder / "costs.json").read_text())["choices"]["stratified-random"]
    results = (made.folder / "results.json").read_bytes()
    page = (made.folder / "report.html").read_bytes()
    (made.folder / "results.json").unlink()
    trial = sorted((made.folder / "trials").glob("*.parquet"))[3]
    scores = ItemScores.load(trial).values["loss"]
    trial.unlink()
    (made.folder / "choices" / "stratified-random-6-0.npy").unlink()
    for costs in ("trials/*.json", "choices/bm25-free.json"):  # damaged ones are removed by repair
        next(made.folder.glob(costs)).unlink()
    comparison(places, tmp_path / "comparison", free=free)
    assert (made.folder / "results.json").read_bytes() == results
    assert np.array_equal(ItemScores.load(trial).values["loss"], scores)
    page = (made.folder / "report.html").read_bytes()
    (made.folder / "report.html").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["report", str(made.folder)])
    assert not stop.value.code
    assert (made.folder / "report.html").read_bytes() == page


def test_processes_that_need_the_same_run_take_turns(places, tmp_path):
    """As those that choose by two objectives from one function's values."""
    call = {
        "influence": "bm25",
        "budget": 6,
        "methods": ["icl"],
        "model": places["model"],
        "encoder": places["encoder"],
    }
    inputs = prepare({"pool": places["pool"], "test": places["test"]}, call, output=tmp_path / "out", progress=False)
    config, order = inputs.config(Selector("free", "bm25")), []

    def other() -> None:
        with opened(inputs, config) as run:
            order.append(len(run.pool))

    with opened(inputs, config):
        thread = Thread(target=other)
        thread.start()
        thread.join(timeout=0.5)
        order.append("first")
    thread.join()
    assert order == ["first", 30]


@pytest.fixture(scope="module")
def arranged(places, tmp_path_factory) -> Path:
    """A comparison of verified choices by two objectives, trained with weights."""
    given = {"objectives": ["facility-location", "concave-cover"], "verify": 2, "methods": ["weighted"], "seeds": 1}
    given |= {"influence": "builders:EstimatedCosine", "free": [], "exact": [], "curve": []}
    return comparison(places, tmp_path_factory.mktemp("arranged"), **given).folder


def cells_of(folder: Path) -> dict[str, dict]:
    return {cell["selector"]: cell for cell in json.loads((folder / "results.json").read_text())["cells"]}


def test_verified_choices_of_each_objective_are_those_of_select(places, arranged, tmp_path):
    name, slug = "builders:EstimatedCosine", "builders-EstimatedCosine"
    kinds = [
        f"{name}, {kind}, {o}" for kind in ("estimated", "verified") for o in ("facility-location", "concave-cover")
    ]
    assert list(cells_of(arranged))[2:] == kinds
    for objective in ("facility-location", "concave-cover"):
        run = select(
            places["pool"],
            **{"influence": name, "objective": objective, "budget": 6, "verify": 2, "labels": 60},
            **{
                "features": "sentence",
                "model": places["model"],
                "encoder": places["encoder"],
                "output": tmp_path / objective,
            },
        )
        kept = np.load(arranged / "choices" / f"{slug}-verified-2-{objective}-6.npy")
        assert kept[:6].tolist() == run.indices.tolist()
        assert len(set(kept.tolist())) == len(kept) >= 12
    spent = json.loads((arranged / "costs.json").read_text())["choices"]
    assert {"labels", "verify"} <= spent[f"{name}, verified, concave-cover"].keys()
    assert "verify" not in spent[f"{name}, estimated, concave-cover"]
    assert (arranged / "runs" / f"{slug}-estimated" / "verify" / "6-2-concave-cover" / "choice").exists()


def test_the_folder_takes_phases_later(places, arranged):
    before = cells_of(arranged)
    given = {"influence": "builders:EstimatedCosine", "free": [], "exact": [], "seeds": 1}
    given |= {"methods": ["lora", "phased"], "phases": 2, "difficulty": "perplexity"}
    found = comparison(places, arranged, **given).results["cells"]
    assert before["random"]["method"] == "weighted"  # whose rows all have the weight 1
    loss = before["random"]["metrics"]["loss"]["value"]
    place = {(cell["selector"], cell["method"], cell["budget"]): cell for cell in found}
    assert place["random", "lora", 6]["metrics"]["loss"]["value"] == loss
    for name in ("random", "builders:EstimatedCosine, estimated"):
        assert place[name, "phased", 6]["against_lora"]["loss"]["value"] != 0
        assert "against_lora" not in place[name, "lora", 6]
    text = (arranged / "results.md").read_text()
    assert "## Fine-tuned in phases, 6 rows" in text
    assert "loss against one-off training" in text
    assert "One-off training" in (arranged / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectives": ["best"]}, "best"),
        ({"phases": 2}, "`phases` is of phased training: add phased to `methods`"),
        ({"weights": True}, "add weighted to `methods`"),
        ({"order": "curriculum"}, "`order` is for one run"),
        ({"verify": 5}, "`verify` would measure 30 of the pool's 30 samples"),
        ({"from_run": "run"}, "`from_run` is for one run"),
        ({"quota": "task=equal"}, "`quota` is for one run: leave it out; to compare within quotas, run `select`"),
        ({"free": ["random"]}, "random rows are in every comparison: leave `influence` random out"),
        ({"influence": "stratified-random", "studies": ["depth"]}, "stratified-random has no influence to study"),
        ({"test": None}, "there is no `test` file"),
        (
            {"budget": "6", "curve": ["6"]},
            "`curve` 6 is the budget too, .* two numbers of rows: add one, such as 6,3, or leave it out",
        ),
        ({"budget": "1", "curve": ["1"]}, "`curve` 1 is the budget too, .* two numbers of rows: add one, such as 1,2"),
        ({"budget": "1.0"}, "`budget` 1.0 is all 30 samples, so there is nothing to choose .* give a smaller one"),
    ],
)
def test_options_without_effect_or_sense_are_refused_in_one_line(places, tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said) as raised:
        comparison(places, tmp_path / "out", **changes)
    assert "\n" not in str(raised.value)


def test_a_pool_of_one_sample_is_refused(places, tmp_path):
    pool = write_rows(tmp_path / "one.jsonl", word_rows(1))
    options = {"model": places["model"], "encoder": places["encoder"], "epochs": 1, "progress": False}
    with pytest.raises(ConfigError, match=r"the pool has one sample, so there is nothing to choose .* a pool of many"):
        compare(pool, test=places["test"], output=tmp_path / "out", **options)


def test_options_of_an_estimate_without_one_are_refused(places, tmp_path):
    with pytest.raises(ConfigError, match="is estimated, so `labels` 60 has no use: leave it out"):
        comparison(places, tmp_path / "comparison", influence="bm25", exact=[])
    assert not (tmp_path / "comparison").exists()  # so that the command without it begins


def test_the_plan_of_a_comparison_counts_its_trainings(places, tmp_path, capsys):
    flags = [
        "--test",
        places["test"],
        "--influence",
        "bm25",
        "--budget",
        "3,6",
        "--free",
        "bm25,stratified-random",
        "--seeds",
        "2",
    ]
    models = ["--model", places["model"], "--encoder", places["encoder"], "--curve", "3,6,30"]
    with pytest.raises(SystemExit) as stop:
        main(["compare", places["pool"], *flags, *models, "--dry-run", "--output", str(tmp_path / "none")])
    assert not stop.value.code
    out = capsys.readouterr().out
    # rows: random at 3 and 6 and the whole pool, stratified and bm25 at 3 and 6; tokens: all at 3 and 6; two seeds each
    assert "Train: 26 times" in out
    assert "stratified-random" in out
    assert "Nothing was written." in out
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def studied(places, tmp_path_factory) -> Path:
    """A study of a function, without a test file."""
    return study(places, tmp_path_factory.mktemp("studied")).folder


def study(places: dict[str, str], output: Path):
    options = {
        "features": "sentence",
        "model": places["model"],
        "encoder": places["encoder"],
        "seeds": 1,
        "progress": False,
    }
    return compare(places["pool"], influence="embedding-similarity", studies=["depth"], output=output, **options)


def test_studies_need_no_test_file_and_train_nothing(studied, capsys):
    results = json.loads((studied / "results.json").read_text())
    assert (results["cells"], results["test"]) == ([], None)
    assert not (studied / "trials").exists()
    depths = {r["setting"] for r in results["studies"] if r["study"] == "depth" and r["network"] == "paper"}
    assert depths == {1, 2, 3, 4}
    assert "Depth of the paper's network (embedding-similarity)" in (studied / "results.md").read_text()
    rows = (studied / "studies.csv").read_text().splitlines()
    assert rows[0].startswith("study,influence,network,labels,setting")
    assert len(rows) > 100
    page = (studied / "report.html").read_text()
    assert page.count("<svg") >= 1
    assert "One study of estimated influence" in page


def test_studies_resume_with_the_same_bytes(places, studied):
    before = {name: (studied / name).read_bytes() for name in ("results.json", "report.html", "results.md")}
    networks = sorted((studied / "studies" / "embedding-similarity").glob("*.json"))
    for path in (networks[0], networks[-1], studied / "results.json"):
        path.unlink()
    study(places, studied)
    assert {name: (studied / name).read_bytes() for name in before} == before


def test_a_training_of_another_process_is_not_waited_for_unless_asked(places, tmp_path):
    options = {"model": places["model"], "encoder": places["encoder"], "budget": 6, "epochs": 1, "units": ["rows"]}
    inputs = prepare({"pool": places["pool"], "test": places["test"]}, options, output=tmp_path, progress=False)
    bench, trial = inputs.bench, Trial("lora", (0, 1))
    with claimed(bench.path(trial), wait=True):
        bench.run([trial], wait=False)
        assert not bench.path(trial).exists()
    bench.run([trial], wait=False)
    assert bench.path(trial).exists()
