"""What a choice is planned to cost, by a clock on which every measured call lasts one second."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from nncift.matrix.cells import CELL, SMALL_NODE, work_to_divide
from nncift.matrix.compiled.entries import LISTED
from nncift.matrix.planning import costs
from nncift.matrix.planning.costs import planned_choice
from nncift.matrix.planning.forms import control_group_limits, first_helpers, form_memory, memory_bytes
from nncift.matrix.products import product_matrix
from nncift.matrix.sparse import AUDITED, visits_of

TRIAL = product_matrix(np.eye(32, dtype=np.float32), np.eye(32, dtype=np.float32), held=0)
PAIRS = 32 * 32


def plan(form, shape, expected, **options):
    return planned_choice(form, shape, expected, TRIAL, clock=count().__next__, **options)


def test_streamed_pairs_cost_their_passes():
    found = plan("streamed", (5000, 300), 50, known=7, passes=2.0, certified=3.0)
    assert found == (pytest.approx((5 * 5000 + 7) * 300 / PAIRS), 0)


def test_stored_pairs_are_computed_once_and_read_while_rows_have_no_lists(monkeypatch):
    evaluated = []
    rate = costs._queue_rate
    monkeypatch.setattr(costs, "_queue_rate", lambda *given: evaluated.append(rate(*given)) or evaluated[0])
    found = plan("stored", (32, 32), 4, certified=1.0)  # as small as the trial, so that it is read once
    lists = 8 * 32 * (32 // LISTED)
    queue = 8 * 32 * evaluated[0]  # seconds of eight evaluations of each sample
    assert found == (pytest.approx(1 + 1 + 5 + 2 + 1 + queue), 4 * PAIRS + lists)  # computed, new memory, read


def test_new_memory_counts_by_what_the_last_of_it_takes():
    times = iter([0, 1, 1, 2, 2, 12])  # two pieces that were given back before, then the host's
    some = 3 * costs._MEASURED * costs._PIECE
    assert costs._new_memory_seconds(some, times.__next__) == 12 + 10 * (3 * costs._MEASURED - 3)


@pytest.mark.parametrize("n", [60_000, 1_000_000])
def test_each_stage_of_the_sparse_form_has_its_operations_and_a_rate(n):
    helpers = first_helpers(n, n, n // 10)
    visited = visits_of(n, helpers)
    found = plan("sparse", (n, n), n // 10)
    sorted_at_once = ((1 << 22) // helpers) * helpers
    entries = (1 + 6) * helpers * n / sorted_at_once  # sorted, and read six times
    if visited is None:
        expected = n * n / PAIRS + entries
    else:
        pairs, small = work_to_divide(n)
        cells = 2 * (pairs / PAIRS + small / 32)
        expected = cells + (1.3 * n * (visited + CELL / 4) + AUDITED * n) / PAIRS + entries
    assert found.seconds == pytest.approx(expected)
    assert found.memory == form_memory("sparse", n, n, n // 10)


def test_cells_cost_hardly_more_for_each_sample_of_a_larger_pool():
    assert work_to_divide(CELL) == (0, 0)
    few, many = work_to_divide(1_000_000), work_to_divide(10_000_000)
    assert many[0] < 1.5 * 10 * few[0]
    assert few[1] == 1_000_000  # each of its 1,024 nodes is divided once more
    assert work_to_divide(SMALL_NODE)[0] > 0  # the first node, whatever its size


def test_memory_is_limited_by_the_control_groups_of_a_container(tmp_path):
    process = tmp_path / "cgroup"
    for line, file in (
        ("0::/job/step", "job/memory.max"),  # of a group around it
        ("0::/", "memory.max"),
        ("4:memory:/job", "memory/job/memory.limit_in_bytes"),
        ("4:memory:/of/the/host", "memory/memory.limit_in_bytes"),  # as a container sees it
    ):
        root = tmp_path / line.replace("/", "-").replace(":", "-")
        (root / file).parent.mkdir(parents=True)
        (root / file).write_text("1000\n")
        process.write_text(f"9:name=systemd:/\n{line}\n")
        assert min(control_group_limits(process, root)) == 1000
        (root / file).write_text("max\n")
        assert min(control_group_limits(process, root)) > 1 << 60
    assert control_group_limits(tmp_path / "none")
    assert 1 << 20 < memory_bytes() < 1 << 60
