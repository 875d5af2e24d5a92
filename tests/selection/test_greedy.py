"""Lazy greedy chooses what plain greedy would, under counts and under tokens; the files hold the user's rows."""

from __future__ import annotations

import itertools
import json
import warnings

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.data.pool import load_pool
from nncift.errors import ConfigError, RunError
from nncift.matrix.matrix import InfluenceMatrix
from nncift.run import files as storage
from nncift.selection import greedy
from nncift.selection.greedy import lazy_greedy
from nncift.selection.objectives import (
    FacilityLocation,
    FacilityLocationConditionalGain,
    FacilityLocationMutualInformation,
)
from nncift.selection.selection import Selection

OBJECTIVES = {
    "facility location": FacilityLocation,
    "mutual information": lambda matrix: FacilityLocationMutualInformation(matrix, eta=0.5),
    "conditional gain": lambda matrix: FacilityLocationConditionalGain(
        matrix, InfluenceMatrix.from_array(matrix.rows(slice(0, 1)) / 2)
    ),
}


def plain_greedy(objective, budget, costs=None, max_cost=float("inf"), tie_break=None):
    """Every gain measured at every step; a copy of the definition."""
    n = objective.n
    costs = np.ones(n) if costs is None else np.asarray(costs, dtype=float)
    tie_break = objective.gains(np.arange(n)) if tie_break is None else tie_break
    chosen, gains = [], []
    while len(chosen) < budget:
        left = [i for i in range(n) if i not in chosen and costs[i] <= max_cost]
        if not left:
            break
        now = objective.gains(np.array(left))
        gain, i = max(
            zip(now, left, strict=True), key=lambda pair: (pair[0] / costs[pair[1]], tie_break[pair[1]], -pair[1])
        )
        objective.add(i)
        chosen.append(i)
        gains.append(gain)
        max_cost -= costs[i]
    return chosen, gains


@st.composite
def matrices(draw) -> np.ndarray:
    """Small matrices: of few levels, so that gains tie and become 0 early, or of many."""
    n, m = draw(st.integers(1, 30)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    levels = draw(st.sampled_from([1, 2, 4, 1_000_000]))
    return (rng.integers(-levels, levels + 1, (n, m)) / levels).astype(np.float32)


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
@given(entries=matrices(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_lazy_is_plain(make, entries, data):
    matrix = InfluenceMatrix.from_array(entries)
    budget = data.draw(st.integers(1, len(entries)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy, "_FIRST_BATCH", data.draw(st.sampled_from([1, 2, 5, 100])))
        selection = lazy_greedy(make(matrix), budget)
    chosen, gains = plain_greedy(make(matrix), budget)
    assert selection.indices.tolist() == chosen
    assert selection.gains.tolist() == gains
    assert selection.indices.dtype == np.int64
    assert selection.value == pytest.approx(sum(gains), abs=1e-5)


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
@given(entries=matrices(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_lazy_is_plain_under_a_token_budget(make, entries, data):
    matrix = InfluenceMatrix.from_array(entries)
    costs = np.array(data.draw(st.lists(st.integers(1, 9), min_size=len(entries), max_size=len(entries))))
    max_cost = data.draw(st.integers(int(costs.min()), int(costs.sum()) + 3))
    selection = lazy_greedy(make(matrix), costs=costs, max_cost=max_cost)
    chosen, gains = plain_greedy(make(matrix), len(entries), costs, max_cost)
    singles = np.where(costs <= max_cost, make(matrix).gains(np.arange(len(entries))), -1)
    if singles.max() > selection.value - 1e-6 and len(selection.indices) == 1:
        assert selection.value == pytest.approx(max(singles.max(), sum(gains)), abs=1e-5)
    else:
        assert selection.indices.tolist() == chosen
        assert selection.gains.tolist() == gains
    assert costs[selection.indices].sum() <= max_cost


@pytest.mark.parametrize("budget", [1, 7, 40])
@given(tie_break=st.lists(st.integers(0, 2), min_size=40, max_size=40))
@settings(deadline=None, max_examples=20)
def test_ties_go_to_tie_break_then_to_the_lower_index(budget, tie_break):
    entries = np.random.default_rng(0).integers(0, 2, (40, 5)).astype(np.float32)
    matrix = InfluenceMatrix.from_array(entries)
    selection = lazy_greedy(FacilityLocation(matrix), budget, tie_break=np.array(tie_break))
    assert selection.indices.tolist() == plain_greedy(FacilityLocation(matrix), budget, tie_break=tie_break)[0]


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
@given(entries=matrices(), data=st.data())
@settings(deadline=None, max_examples=40)
def test_candidates_alone_are_chosen_as_if_there_were_no_others(make, entries, data):
    matrix = InfluenceMatrix.from_array(entries)
    some = np.array(sorted(data.draw(st.sets(st.integers(0, len(entries) - 1), min_size=1))))
    shuffled = np.array(data.draw(st.permutations(some.tolist())))
    budget = data.draw(st.integers(1, len(some)))
    selection = lazy_greedy(make(matrix), budget, candidates=shuffled)
    left_out = np.ones(len(entries), dtype=np.int64)
    left_out[some] = 0
    too_dear = 1 + left_out * len(entries)
    chosen, gains = plain_greedy(make(matrix), budget, costs=too_dear, max_cost=budget)
    assert selection.indices.tolist() == chosen
    assert selection.gains.tolist() == gains
    with pytest.raises(ConfigError, match="choose between 1 and"):
        lazy_greedy(make(matrix), len(some) + 1, candidates=some)


def test_once_all_is_covered_the_first_gains_decide():
    entries = np.array([[5, 5], [1, 1], [3, 3], [1, 1], [2, 0]], dtype=np.float32)
    selection = lazy_greedy(FacilityLocation(InfluenceMatrix.from_array(entries)), 5)
    assert selection.indices.tolist() == [0, 2, 1, 3, 4]
    assert selection.gains.tolist() == [10, 0, 0, 0, 0]


@pytest.fixture(scope="module")
def estimated() -> InfluenceMatrix:
    """A network that measures nearness: per dimension a triangle around 0 of x - y, out of three units."""
    x = np.random.default_rng(0).random((300, 4), dtype=np.float32) * 4
    return InfluenceMatrix.from_factors(
        np.hstack([x + 1, x, x - 1]),
        np.hstack([-x, -x, -x]),
        output_weight=np.repeat(np.float32([1, -2, 1]), 4),
        output_bias=-1.0,
    )


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_smaller_budget_is_a_prefix(estimated, make):
    whole = lazy_greedy(make(estimated), 300)
    assert sorted(whole.indices.tolist()) == list(range(300))
    for budget in (1, 50, 299):
        part = lazy_greedy(make(estimated), budget)
        assert part.indices.tolist() == whole.indices[:budget].tolist()
        assert part.gains.tolist() == whole.gains[:budget].tolist()


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_estimated_and_exact_and_any_tile_choose_the_same(estimated, make, monkeypatch):
    expected = lazy_greedy(make(estimated), 60)
    exact = InfluenceMatrix.from_array(estimated.rows(slice(None)))
    for tile in (1, 1000, 1 << 22):
        monkeypatch.setattr("nncift.matrix.matrix.TILE", tile)
        selection = lazy_greedy(make(exact), 60)
        assert selection.indices.tolist() == expected.indices.tolist()
        assert selection.gains.tolist() == expected.gains.tolist()
        assert selection.value == expected.value


def test_the_set_is_that_of_submodlib(estimated):
    function = pytest.importorskip("submodlib.functions.facilityLocation").FacilityLocationFunction
    s = np.maximum(estimated.rows(slice(None)), 0)
    peer = function(n=300, mode="dense", separate_rep=True, n_rep=300, sijs=np.ascontiguousarray(s.T))
    theirs = peer.maximize(budget=60, optimizer="LazyGreedy", show_progress=False)
    ours = lazy_greedy(FacilityLocation(estimated), 60)
    positive = int((ours.gains > 1e-4).sum())
    assert positive > 20
    assert ours.indices[:positive].tolist() == [i for i, _ in theirs][:positive]
    np.testing.assert_allclose(ours.gains, [gain for _, gain in theirs], rtol=1e-3, atol=1e-4)
    assert ours.value == pytest.approx(peer.evaluate({i for i, _ in theirs}), rel=1e-5)


def test_far_fewer_gains_are_measured_than_by_plain_greedy(estimated):
    class Counting(FacilityLocation):
        measured = 0

        def gains(self, candidates):
            self.measured += len(candidates)
            return super().gains(candidates)

    objective = Counting(estimated)
    lazy_greedy(objective, 30)
    assert objective.measured < 300 * 30 / 3


def best_value(objective_of, entries, costs, max_cost) -> float:
    best = 0.0
    for size in range(1, len(entries) + 1):
        for subset in itertools.combinations(range(len(entries)), size):
            if costs[list(subset)].sum() <= max_cost:
                objective = objective_of(InfluenceMatrix.from_array(entries))
                for i in subset:
                    objective.add(i)
                best = max(best, objective.value)
    return best


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_a_token_budget_keeps_its_guarantee(seed):
    rng = np.random.default_rng(seed)
    entries = (rng.random((8, 6)) ** 3).astype(np.float32)
    costs = rng.integers(1, 30, 8)
    max_cost = int(rng.integers(costs.min(), costs.sum()))
    value = lazy_greedy(FacilityLocation(InfluenceMatrix.from_array(entries)), costs=costs, max_cost=max_cost).value
    assert value >= (1 - 1 / np.e) / 2 * best_value(FacilityLocation, entries, costs, max_cost) - 1e-6


def test_one_long_sample_that_beats_the_rest_is_chosen():
    entries = np.array([[0.2, 0, 0], [2, 2, 2]], dtype=np.float32)  # the short one has more gain per token
    matrix = InfluenceMatrix.from_array(entries)
    selection = lazy_greedy(FacilityLocation(matrix), costs=np.array([1, 100]), max_cost=100)
    assert selection.indices.tolist() == [1]
    assert selection.gains.tolist() == [6]
    assert selection.value == 6


def test_a_count_caps_a_token_budget():
    matrix = InfluenceMatrix.from_array(np.eye(6, dtype=np.float32))
    selection = lazy_greedy(FacilityLocation(matrix), 2, costs=np.full(6, 3), max_cost=12)
    assert len(selection) == 2
    assert len(lazy_greedy(FacilityLocation(matrix), costs=np.full(6, 3), max_cost=12)) == 4


class Dispersion:
    """Sum of pairwise distances: gains rise while the subset grows, so bounds would mislead."""

    name, options, n = "dispersion", {}, 12
    monotone, submodular, normalised = True, False, True
    value = 0.0

    def __init__(self) -> None:
        points = np.random.default_rng(3).random((12, 2))
        self.distance = np.linalg.norm(points[:, None] - points, axis=-1)
        self.chosen: list[int] = []

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        return self.distance[np.ix_(candidates, self.chosen)].sum(axis=1)

    def add(self, i: int) -> None:
        self.value += float(self.gains(np.array([i]))[0])
        self.chosen.append(i)


def test_an_objective_that_is_not_submodular_is_evaluated_in_full():
    selection = lazy_greedy(Dispersion(), 6)
    assert selection.indices.tolist() == plain_greedy(Dispersion(), 6)[0]
    assert selection.objective == "dispersion"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is no budget"),
        ({"budget": 0}, "budget is 0 samples: choose between 1 and 4"),
        ({"budget": 5}, "budget is 5 samples"),
        ({"budget": 2, "costs": np.ones(4)}, "go together"),
        ({"max_cost": 3}, "go together"),
        ({"costs": np.ones(3), "max_cost": 3}, "costs must hold 4 finite numbers"),
        ({"costs": np.array([1, 2, np.nan, 1]), "max_cost": 3}, "costs must hold 4 finite numbers"),
        ({"costs": np.array([1, 0, 2, 2]), "max_cost": 3}, "sample 1 costs 0"),
        ({"costs": np.full(4, 7), "max_cost": 6}, "budget is 6 tokens: the shortest sample has 7"),
        ({"costs": np.full(4, 7), "max_cost": 0}, "budget is 0 tokens"),
        ({"costs": np.full(4, 7), "max_cost": float("nan")}, "budget is nan tokens"),
        ({"budget": 2, "tie_break": np.zeros(5)}, "tie_break must hold 4"),
    ],
)
def test_a_bad_budget_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        lazy_greedy(FacilityLocation(InfluenceMatrix.from_array(np.eye(4))), **options)


ORIGINALS = [
    '{"instruction":"Grüße 你好","output":"1.10"}',
    '{ "n" : 1.10, "big": 12345678901234567890123, "nested": {"b": [1, {"a": null}]} }',
    "{}",
    '{"half": "\\ud83d", "n": "text here, a number above"}',
    '{"nncift_rank": 99, "n": 5, "half": "\\ud83d", "text": "nncift_gain"}',
    '{\n  "pretty": "printed\\nfile"\n}',
    '{"prompt": "left out"}',
]


@pytest.fixture
def selection() -> Selection:
    pool = Dataset.from_dict({"id": [f"row-{i}" for i in range(7)], "original": ORIGINALS})
    chosen = Selection(
        indices=np.array([4, 0, 5, 1, 3, 2]),
        gains=np.array([2.5, 1 / 3, 0.25, 0.125, 0, 0]),
        value=3.2083333,
        objective="facility-location",
        objective_options={"eta": 0.5},
    )
    return chosen.with_pool(pool, np.arange(7) / 10)


def test_the_original_rows_come_out_unchanged(selection, tmp_path):
    selection.save(tmp_path)
    lines = (tmp_path / "subset.jsonl").read_bytes().decode("utf-8").splitlines()
    assert len(lines) == 6
    for rank, (line, i, gain) in enumerate(zip(lines, selection.indices, selection.gains, strict=True), start=1):
        row, original = json.loads(line), json.loads(ORIGINALS[i])
        assert list(row)[-3:] == ["nncift_rank", "nncift_gain", "nncift_influence"]
        assert [row["nncift_rank"], row["nncift_gain"], row["nncift_influence"]] == [rank, gain, i / 10]
        kept = {name: value for name, value in row.items() if not name.startswith("nncift_")}
        assert list(kept.items()) == [pair for pair in original.items() if not pair[0].startswith("nncift_")]
    assert lines[1].startswith('{"instruction":"Grüße 你好","output":"1.10"')
    assert lines[3].startswith('{ "n" : 1.10, "big": 12345678901234567890123,')  # not even a number is printed anew
    assert "99" not in lines[0]
    assert list(tmp_path.glob(".partial-*")) == []


def test_save_then_load(selection, tmp_path):
    selection.save(tmp_path)
    table = storage.read_table(tmp_path / "selection.parquet")
    assert table.column_names == ["rank", "pool_index", "id", "gain", "influence"]
    assert table["rank"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert table["id"].to_pylist() == ["row-4", "row-0", "row-5", "row-1", "row-3", "row-2"]
    for pool in (None, selection.pool):
        loaded = Selection.load(tmp_path, pool=pool)
        assert loaded.pool is pool
        assert loaded.indices.tolist() == selection.indices.tolist()
        assert loaded.indices.dtype == np.int64
        assert loaded.gains.tolist() == selection.gains.tolist()
        np.testing.assert_array_equal(loaded.influence, selection.influence)
        for name in ("value", "objective", "objective_options"):
            assert getattr(loaded, name) == getattr(selection, name)


def test_saving_again_gives_the_same_bytes(selection, tmp_path):
    for name in ("one", "two"):
        selection.save(tmp_path / name)
    for file in ("selection.parquet", "subset.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_dataset_has_the_original_columns(selection):
    dataset = selection.dataset
    assert len(dataset) == 6
    assert dataset["nncift_rank"][:] == [1, 2, 3, 4, 5, 6]
    assert dataset["instruction"][:] == [None, "Grüße 你好", None, None, None, None]
    assert dataset["n"][:] == ["5", None, None, "1.1", '"text here, a number above"', None]  # no common type: JSON text
    assert json.loads(dataset[3]["nested"]) == {"b": [1, {"a": None}]}
    assert dataset["half"][0] == '"\\ud83d"'
    assert dataset["nncift_influence"][0] == 0.4
    assert selection.dataset is dataset


CHATS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"messages": [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you"}]},
]
PLAIN = [{"instruction": "Add", "input": "1 and 2", "output": "3"}, {"instruction": "Say no", "output": "no"}]


@pytest.mark.parametrize("rows", [CHATS, PLAIN])
def test_trl_trains_on_the_subset(rows, tiny_model, tmp_path):
    pytest.importorskip("trl")
    from trl import SFTConfig, SFTTrainer

    selection = Selection(np.array([1, 0]), np.ones(2), 1.0).with_pool(load_pool(rows))
    arguments = SFTConfig(output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True, bf16=False)
    for chat in (True, False):
        dataset = selection.sft_dataset(chat=chat)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # trl's own
            trainer = SFTTrainer(tiny_model, args=arguments, train_dataset=dataset)
            assert trainer.train().global_step == 1
        read = trainer.processing_class.decode(trainer.train_dataset[0]["input_ids"])
        assert "See you" in read if rows is CHATS else "no" in read


def test_samples_for_trl_are_chats_as_they_are_or_text(tmp_path):
    selection = Selection(np.array([1, 0]), np.ones(2), 1.0).with_pool(load_pool(PLAIN))
    assert selection.sft_dataset()[1]["messages"] == [
        {"role": "user", "content": "Add\n\n1 and 2"},
        {"role": "assistant", "content": "3"},
    ]
    assert selection.sft_dataset(chat=False)[0] == {"prompt": "Say no", "completion": "no"}
    chats = Selection(np.array([1]), np.ones(1), 1.0).with_pool(load_pool(CHATS))
    assert chats.sft_dataset()[0] == CHATS[1]
    with pytest.raises(ConfigError, match=r"with_pool\(pool\)"):
        Selection(np.array([1]), np.ones(1), 1.0).sft_dataset()


def test_a_whole_run_brings_its_pool(selection, tmp_path):
    selection.save(tmp_path)
    (tmp_path / "pool").mkdir()
    import pyarrow as pa

    table = selection.pool.data.table
    with (
        pa.OSFile(str(tmp_path / "pool" / "samples.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    assert Selection.load(tmp_path).dataset[:] == selection.dataset[:]


def test_a_selection_without_influence(selection, tmp_path):
    bare = Selection(selection.indices, selection.gains, 1.0).with_pool(selection.pool)
    bare.save(tmp_path)
    assert Selection.load(tmp_path).influence is None
    assert bare.dataset["nncift_influence"][0] is None


def test_what_is_missing_is_said(selection, tmp_path):
    bare = Selection(selection.indices, selection.gains, 1.0)
    with pytest.raises(ConfigError, match=r"with_pool\(pool\)"):
        bare.save(tmp_path)
    with pytest.raises(ConfigError, match=r"with_pool\(pool\)"):
        _ = bare.dataset
    with pytest.raises(RunError, match=r"selection.parquet does not exist"):
        Selection.load(tmp_path)
