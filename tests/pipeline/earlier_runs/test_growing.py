"""Data appended to an earlier run's pool, and selections that go on where an earlier one ended."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

import nncift
from builders import named, word_rows, write_rows
from nncift.errors import ConfigError
from nncift.influence.base import InfluenceFunction, Setup, Traits
from nncift.influence.catalogue import BUILT_IN
from nncift.labels.pairs import LabelledPairs
from nncift.models.spec import ModelSpec
from nncift.pipeline.choosing import exact, forms, near_duplicates
from nncift.pipeline.choosing.near_duplicates import listed_rows
from nncift.run.options.registry import resolve
from nncift.selection.selection import Selection

ENDS = ("influence.npy", "selection.parquet", "subset.jsonl")


class Counted(InfluenceFunction):
    """Products of letter counts; counts the samples that it is asked for."""

    name = "counted"
    traits = Traits(factored=True)

    def __init__(self) -> None:
        self.asked: list[str] = []

    def vectors(self, rows) -> np.ndarray:
        self.asked += rows["id"]
        texts = [f"{p} {r}".lower() for p, r in zip(rows["prompt"], rows["response"], strict=True)]
        counts = np.array([[text.count(letter) for letter in "aeioulnrst"] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True).clip(1)


class Centred(Counted):
    """The same around the mean of all samples, which it can keep."""

    name = "centred"
    traits = Traits(relative=True, factored=True)
    mean: np.ndarray | None = None
    restored = False

    def prepare(self, pool, target, folder=None) -> None:
        if not self.restored:
            self.mean = super().vectors(pool).mean(axis=0)
            self.asked.clear()

    def vectors(self, rows) -> np.ndarray:
        return np.maximum(super().vectors(rows) - self.mean, 0)

    def statistics(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean}

    def restore(self, statistics) -> None:
        self.mean, self.restored = statistics["mean"], True


def notes(folder: Path) -> dict[str, str]:
    return json.loads((folder / "taken.json").read_text())["notes"]


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(folder: Path, other: Path) -> None:
    one, two = (Selection.load(each) for each in (folder, other))
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_allclose(one.gains, two.gains, rtol=1e-5, atol=1e-7)
    assert (folder / "subset.jsonl").read_text() == (other / "subset.jsonl").read_text()


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("name", ["bm25", "counted"])
def test_the_choice_is_that_from_both_sources(sides, tmp_path: Path, name, target):
    given = {"budget": 8, "target": sides["target"] if target else None}
    make = (lambda: "bm25") if name == "bm25" else Counted
    nncift.select(sides["pool"], influence=make(), output=tmp_path / "first", **given)
    before, function = state(tmp_path / "first"), make()
    nncift.select(from_run=tmp_path / "first", append=sides["new"], influence=function, output=tmp_path / "grown")
    nncift.select([sides["pool"], sides["new"]], influence=make(), output=tmp_path / "whole", **given)
    assert_same(tmp_path / "grown", tmp_path / "whole")
    assert state(tmp_path / "first") == before
    taken = notes(tmp_path / "grown")
    assert taken["pool"] == "pool: 40 samples taken, 12 appended"
    if name == "bm25":
        assert taken["vectors pool"] == "vectors of the pool: computed anew (the values of bm25 depend on all samples)"
    else:
        assert taken["vectors pool"] == "vectors of the pool: 40 taken, 12 computed"
        assert len(function.asked) == 12  # and no target
    config = json.loads((tmp_path / "grown/config.json").read_text())
    assert (config["pool"], config["append"]) == (sides["pool"], [sides["new"]])


def test_a_grown_run_grows_and_is_chosen_from_again(sides, tmp_path: Path):
    nncift.select(sides["pool"], influence=Counted(), budget=5, output=tmp_path / "first")
    for number, (earlier, new) in enumerate([("first", "new"), ("1", "third")], 1):
        function = Counted()
        nncift.select(from_run=tmp_path / earlier, append=sides[new], influence=function, output=tmp_path / str(number))
    assert len(function.asked) == 8
    sources = [sides[name] for name in ("pool", "new", "third")]
    nncift.select(sources, influence=Counted(), budget=9, output=tmp_path / "whole")
    function = Counted()
    nncift.select(from_run=tmp_path / "2", influence=function, budget=9, output=tmp_path / "again")
    assert_same(tmp_path / "again", tmp_path / "whole")
    assert not function.asked
    assert notes(tmp_path / "again")["selection"] == "selection: 5 samples taken"
    assert json.loads((tmp_path / "again/config.json").read_text())["pool"] == sources


def test_a_relative_function_puts_new_samples_on_the_scale_of_the_first(sides, tmp_path: Path):
    first, function = Centred(), Centred()
    nncift.select(sides["pool"], influence=first, budget=5, output=tmp_path / "first")
    nncift.select(from_run=tmp_path / "first", append=sides["new"], influence=function, output=tmp_path / "grown")
    assert len(function.asked) == 12
    assert function.restored
    vectors = [np.load(tmp_path / run / "vectors/pool.npy") for run in ("first", "grown")]
    np.testing.assert_array_equal(vectors[1][:40], vectors[0])
    new = nncift.Selection.load(tmp_path / "grown").pool.select(range(40, 52))
    np.testing.assert_array_equal(vectors[1][40:], first.vectors(new))
    # With another target the statistics are others.
    nncift.select(
        from_run=tmp_path / "first",
        append=sides["new"],
        target=sides["target"],
        influence=Centred(),
        output=tmp_path / "other",
    )
    assert "computed anew (other target samples)" in notes(tmp_path / "other")["vectors pool"]


@pytest.mark.parametrize("name", ["gradient-sketch", "response-similarity"])
def test_a_restored_function_gives_the_vectors_that_it_gave_new_samples(tiny_model, name):
    rows = [
        named([(row["prompt"], row["response"]) for row in word_rows(4, offset)], f"{offset}-") for offset in (0, 40)
    ]
    function, other = (
        resolve(name, BUILT_IN, "nncift.influence").build(Setup((ModelSpec(tiny_model, device="cpu"),)))
        for _ in range(2)
    )
    function.prepare(rows[0], rows[0])
    other.restore(function.statistics())
    other.prepare(rows[1], rows[1])
    np.testing.assert_allclose(other.vectors(rows[1]), function.vectors(rows[1]), rtol=1e-4, atol=1e-6)
    for key, values in function.statistics().items():
        np.testing.assert_array_equal(other.statistics()[key], values)
    other.prepare(rows[1], rows[1])  # by its own samples again
    assert not np.allclose(other.vectors(rows[1]), function.vectors(rows[1]), atol=1e-3)


def test_features_labels_and_network_are_taken(sides, tmp_path: Path, small_encoder):
    given = {
        "influence": "builders:EstimatedCosine",
        "encoder": small_encoder,
        "device": "cpu",
        "labels": 60,
        "budget": 6,
    }
    nncift.select(sides["pool"], output=tmp_path / "first", no_cache=True, probes=2, **given)
    nncift.select(from_run=tmp_path / "first", append=sides["new"], no_cache=True, output=tmp_path / "grown")
    taken = notes(tmp_path / "grown")
    assert taken["features pool"] == "features pool: 40 taken, 12 computed"
    assert taken["labels"].endswith("pairs taken")
    assert taken["network"] == "network and fidelity: taken"
    arrays = [np.load(tmp_path / run / "features/pool.npy") for run in ("first", "grown")]
    np.testing.assert_array_equal(arrays[1][:40], arrays[0])
    assert {path.name for path in (tmp_path / "grown/features").iterdir()} == {"pool.npy", "pool.json"}
    assert taken["probes"] == "probes: its targets taken"
    values = [LabelledPairs.load(tmp_path / run / "probes/labels.parquet") for run in ("first", "grown")]
    assert len(values[1]) == 52 * 2
    np.testing.assert_array_equal(values[1].influence[:80], values[0].influence)
    weights = [(tmp_path / run / "network/model.safetensors").read_bytes() for run in ("first", "grown")]
    assert weights[0] == weights[1]
    assert np.load(tmp_path / "grown/influence.npy").shape == (52,)


@pytest.mark.parametrize("budget", ["5", "0.5"])
def test_a_selection_is_kept_and_added_to(sides, tmp_path: Path, budget):
    nncift.select(sides["pool"], influence=Counted(), budget=7, output=tmp_path / "first")
    selection = nncift.select(
        from_run=tmp_path / "first",
        append=sides["new"],
        influence=Counted(),
        keep_selection=True,
        budget=budget,
        output=tmp_path / "grown",
    )
    kept = Selection.load(tmp_path / "first").indices
    assert len(selection) == 7 + (5 if budget == "5" else 6)  # half of the 12 new samples
    np.testing.assert_array_equal(selection.indices[:7], kept)
    function = Counted()
    vectors = function.vectors(selection.pool)
    influence = np.maximum(vectors @ vectors.T, 0)
    covered = influence[kept].max(axis=0)
    for row in selection.indices[7:]:  # each the best there is beside those before
        gains = np.maximum(influence, covered).sum(axis=1) - covered.sum()
        assert gains[row] == pytest.approx(gains.max(), rel=1e-5)
        covered = np.maximum(covered, influence[row])
    assert selection.value == pytest.approx(covered.sum(), rel=1e-5)
    assert notes(tmp_path / "grown")["selection"] == "selection: 7 samples taken"


def test_near_duplicates_that_were_selected_stay(sides, tmp_path: Path, small_encoder):
    given = {"from_run": tmp_path / "first", "append": sides["new"], "keep_selection": True, "encoder": small_encoder}
    nncift.select(sides["pool"], influence="bm25", budget=20, output=tmp_path / "first")
    nncift.select(**given, near_duplicates=0.75, budget=1, output=tmp_path / "one")
    kept, listed = Selection.load(tmp_path / "first").indices, listed_rows(tmp_path / "one/pool/near_duplicates.jsonl")
    assert len(np.intersect1d(kept, listed))
    free = np.setdiff1d(np.arange(52), np.union1d(kept, listed))
    found = nncift.select(**given, near_duplicates=0.75, budget=len(free), output=tmp_path / "all").indices
    assert (found[:20].tolist(), sorted(found[20:])) == (kept.tolist(), free.tolist())
    with pytest.raises(ConfigError, match="without near-duplicates"):
        nncift.select(**given, near_duplicates=0.75, budget=len(free) + 1, output=tmp_path / "more")


def test_tokens_are_of_samples_beside_those_kept(sides, tmp_path: Path, tiny_model):
    given = {"influence": "bm25", "model": tiny_model, "device": "cpu"}
    nncift.select(sides["pool"], budget=6, output=tmp_path / "first", **given)
    nncift.select(
        from_run=tmp_path / "first", append=sides["new"], keep_selection=True, budget="60tok", output=tmp_path / "grown"
    )
    grown, tokens = Selection.load(tmp_path / "grown"), np.load(tmp_path / "grown/tokens.npy")
    np.testing.assert_array_equal(grown.indices[:6], Selection.load(tmp_path / "first").indices)
    added = tokens[grown.indices[6:]].sum()
    left = np.setdiff1d(np.arange(52), grown.indices)
    assert 0 < added <= 60 < added + tokens[left].min()
    rows = [*word_rows(20), {"id": "short", "prompt": "a", "response": "b"}]
    nncift.select(write_rows(tmp_path / "short.jsonl", rows), budget=21, output=tmp_path / "all", **given)
    with pytest.raises(ConfigError, match="`budget` 4tok is less than the shortest sample has"):
        nncift.select(
            from_run=tmp_path / "all", append=sides["new"], keep_selection=True, budget="4tok", output=tmp_path / "none"
        )


@pytest.mark.parametrize(
    ("first", "then", "reason"),
    [
        ({}, {"budget": 9}, ""),
        ({}, {"budget": 2}, ""),
        ({"order": "curriculum", "difficulty": "score"}, {"budget": 9, "order": "gain", "difficulty": None}, ""),
        ({}, {"budget": 9, "objective": "concave-cover"}, "the objective is concave-cover"),
        ({"target": "target"}, {"budget": 9}, ""),
        ({"target": "target"}, {"budget": 9, "eta": 1}, "`eta` is 1"),
        ({"target": "target", "eta": 0.5}, {"budget": 9}, ""),
        ({}, {"budget": 9, "cap": "source=0.9"}, "choices with `cap` are not nested"),
        ({}, {"budget": "100tok"}, "choices by tokens are not nested"),
        ({}, {"budget": 9, "target": "target", "objective": "facility-location"}, "other target samples"),
        ({}, {"budget": 9, "influence_options": ["k1=3"]}, "the influence differs"),
    ],
)
def test_another_budget_goes_on_where_choices_are_nested(sides, tmp_path: Path, tiny_model, first, then, reason):
    rows = [
        json.loads(line) | {"score": i % 7, "source": "a" if i % 2 else "b"}
        for i, line in enumerate(Path(sides["pool"]).read_text().splitlines())
    ]
    pool = write_rows(tmp_path / "pool.jsonl", rows)
    first, then = (
        {name: sides["target"] if name == "target" else value for name, value in some.items()} for some in (first, then)
    )
    given = {"influence": "bm25", "budget": 5, "model": tiny_model, "device": "cpu"} | first
    nncift.select(pool, output=tmp_path / "first", **given)
    nncift.select(from_run=tmp_path / "first", output=tmp_path / "then", **then)
    found = notes(tmp_path / "then")["selection"]
    if reason:
        assert found.startswith(f"selection: chosen anew ({reason}")
        return
    assert found == f"selection: {min(5, then['budget'])} samples taken"
    nncift.select(pool, output=tmp_path / "fresh", **given | then)
    assert_same(tmp_path / "then", tmp_path / "fresh")


def test_a_choice_is_not_the_beginning_of_one_without_other_near_duplicates(sides, tmp_path: Path, monkeypatch):
    same: list[tuple[int, int]] = []

    def embeddings(run, count) -> np.ndarray:
        found = np.eye(len(run.pool), dtype=np.float32)
        for one, other in same:
            found[other] = found[one]
        return found

    monkeypatch.setattr(near_duplicates, "_embeddings", embeddings)
    given = {"influence": "bm25", "near_duplicates": 0.95}
    first = nncift.select(sides["pool"], budget=5, output=tmp_path / "first", encoder="embedded", **given).indices
    nncift.select(from_run=tmp_path / "first", budget=9, output=tmp_path / "then")
    assert notes(tmp_path / "then")["selection"] == "selection: 5 samples taken"
    same.append((int(first.min()), int(first.max())))  # by another encoder
    found = nncift.select(from_run=tmp_path / "first", budget=9, encoder="other", output=tmp_path / "other")
    assert notes(tmp_path / "other")["selection"] == "selection: chosen anew (other samples are near-duplicates)"
    assert first.max() not in found.indices


def test_a_choice_from_a_sparse_matrix_is_no_beginning(sides, tmp_path: Path, monkeypatch, small_encoder):
    given = {"influence": "embedding-similarity", "encoder": small_encoder, "budget": 12}
    with monkeypatch.context() as patch:  # as for a pool whose pairs have no room
        patch.setattr(exact, "HELD", 0)
        patch.setattr(forms, "choose_form", lambda *_, may_be_sparse: "sparse" if may_be_sparse else "streamed")
        first = nncift.select(sides["pool"], output=tmp_path / "first", **given)
    assert first.sparseness is not None
    nncift.select(from_run=tmp_path / "first", budget=15, output=tmp_path / "then")
    reason = "which pairs a sparse matrix has depends on the budget"
    assert notes(tmp_path / "then")["selection"] == f"selection: chosen anew ({reason})"


def test_killed_while_it_grows_it_ends_with_the_same_bytes(sides, tmp_path: Path, monkeypatch):
    nncift.select(sides["pool"], influence=Centred(), budget=5, output=tmp_path / "first")

    def grow(output: Path) -> None:
        nncift.select(
            from_run=tmp_path / "first",
            append=sides["new"],
            influence=Centred(),
            keep_selection=True,
            budget=4,
            output=output,
        )

    grow(tmp_path / "whole")
    whole, replace = state(tmp_path / "whole"), Path.replace
    finished = [name for name in whole if not name.endswith((".lock", ".log", "costs.json", "checksums.jsonl"))]
    for stop in (2, 5, 7, 9):
        output, left = tmp_path / f"killed-{stop}", [stop]

        def dying(self, target, left=left):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying)
            with contextlib.suppress(KeyboardInterrupt):
                grow(output)
        grow(output)
        for name in ("pool/samples.arrow", "vectors/pool.npy", "vectors/statistics.safetensors", "prefix.npy", *ENDS):
            assert (output / name).read_bytes() == whole[name], (stop, name)
        assert {*state(output)} >= {*finished}
