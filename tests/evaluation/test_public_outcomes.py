"""Training outcomes in the public layout (benchmarks/public_outcomes.py): round trip, and lines that are none."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from nncift.data.pool import load_pool
from nncift.errors import DataError
from nncift.evaluation.datamodels import TrainingOutcomes, draw_subsets, linear_datamodeling_score

FILE = Path(__file__).parents[2] / "benchmarks" / "public_outcomes.py"


@pytest.fixture(scope="module")
def public():
    spec = importlib.util.spec_from_file_location("public_outcomes", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def written(public, tmp_path):
    """A folder with outcomes, and the outcomes."""
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    rows = [{"id": f"r{k}", "prompt": f"Say {k}", "response": "same words"} for k in range(7)] + [
        {"id": "chat", **chat}
    ]
    pool, target = load_pool(rows), load_pool(rows[:3])
    after = np.random.default_rng(0).random((2, 6, 3)).astype(np.float32)
    ids = tuple(pool["id"]), tuple(target["id"])
    outcomes = TrainingOutcomes(*ids, draw_subsets(8, 6), np.full(3, 2, np.float32), after, {})
    public.write_public(tmp_path, outcomes, pool, target)
    return tmp_path, outcomes


def test_round_trip(public, written):
    folder, outcomes = written
    pool, target, found = public.read_public(folder)
    assert (found.pool_ids, found.target_ids) == (outcomes.pool_ids, outcomes.target_ids)
    assert (found.subsets == outcomes.subsets).all()
    assert found.after.tobytes() == outcomes.after.tobytes()
    assert (pool["messages"][-1] is None, target["messages"]) == (False, [None] * 3)
    influence = np.random.default_rng(1).standard_normal((8, 3))  # the score does not depend on the losses before
    scores = [linear_datamodeling_score(influence, one).per_target for one in (outcomes, found)]
    assert scores[0] == pytest.approx(scores[1])


def test_reads_ids_and_a_subset_that_is_repeated_now_and_then(public, written):
    folder, _ = written
    lines = [{"train_subset": ["r1", "r3"], "test_loss": [1, 2, 3]}, {"train_subset": ["r0"], "test_loss": [3, 2, 1]}]
    lines.append({"train_subset": [3, 1], "test_loss": [3, 2, 1]})
    (folder / "lds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    _, _, found = public.read_public(folder)
    assert [np.flatnonzero(subset).tolist() for subset in found.subsets] == [[1, 3], [0]]
    assert found.after.tolist() == [[[2, 2, 2], [3, 2, 1]]]  # the mean over its seeds


@pytest.mark.parametrize(
    "line",
    [
        '{"train_subset": [0, 8], "test_loss": [1, 2, 3]}',
        '{"train_subset": [-1], "test_loss": [1, 2, 3]}',
        '{"train_subset": ["r99"], "test_loss": [1, 2, 3]}',
        '{"train_subset": [0], "test_loss": [1, 2]}',
        '{"train_subset": [true, false], "test_loss": [1, 2, 3]}',
        '{"train_subset": [], "test_loss": [1, 2, 3]}',
        '{"test_loss": [1, 2, 3]}',
        "[1, 2]",
        "nothing",
    ],
)
def test_a_line_of_another_layout_is_named(public, written, line):
    folder, _ = written
    with (folder / "lds.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"lds\.jsonl.* 13") as caught:
        public.read_public(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_outcomes_is_named(public, written):
    (written[0] / "lds.jsonl").unlink()
    with pytest.raises(DataError, match=r"lds\.jsonl"):
        public.read_public(written[0])
