"""The summary of a run from the records of its stages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nncift.data.facts import PoolFacts
from nncift.report.summary import write_summary
from nncift.report.terminal import summary_text
from nncift.report.warnings import warnings_of
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import Summary
from nncift.run.storage.files import write_array, write_json
from nncift.selection.certificate import Certificate
from nncift.selection.selection import Selection
from report_pages import save_samples


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A run without labels, with known samples and two kinds of features."""
    folder = RunFolder(tmp_path)
    write_json(folder.config, {"model": "org/model", "labels_from": None})
    write_json(folder.costs, {"stages": {}})
    for side, rows in (("pool", 40), ("target", 1), ("known", 9)):
        facts = PoolFacts(f"{side}.jsonl", "qa", ("q", "a"), rows, rows, 0, 0, 0)
        write_json(folder.samples(side).facts, facts.to_dict() | {"split": None})
        save_samples(folder, side, [{"id": f"{k}", "prompt": "x", "response": "x" * 30} for k in range(rows)])
    for name, facts in {
        "pool.lm": {"encoder": "org/model", "width": 6, "truncated": 5, "rows": 40, "blocks": {"states": 6}},
        "pool.own": {"encoder": "mine.npy", "width": 3, "truncated": 0, "rows": 40},
        "pool": {"encoder": "org/encoder", "width": 4, "truncated": 4, "rows": 40},
    }.items():
        write_json(folder.features.facts(name), facts)
        write_array(folder.features.array(name), np.zeros((1, 1)))
    write_json(folder.features.begun("pool"), {})
    write_json(folder.features.facts("pool.unfinished"), {})
    return folder


@pytest.mark.parametrize(
    ("gains", "warning"),
    [
        ([2.0, 1.0], None),
        ([2.0, 0.0], "1 of the 2 selected samples has no gain: the objective is saturated"),
        ([0.0, 0.0], "All estimated gains are 0: the selection is arbitrary."),
        ([2.0, -1.0], "1 of the 2 selected samples lowers the value: a smaller `budget` has a larger one."),
        ([0.0, -1.0], "1 of the 2 selected samples lowers the value"),
    ],
)
def test_warnings(folder, gains, warning):
    selection = Selection(np.array([3, 1]), np.array(gains), 3.0, "facility-location-conditional-gain", {"nu": 1.0})
    write_array(folder.known, np.array([0.25, 0.75, -1.0]))
    write_summary(folder, selection, all_pairs=40)
    summary = Summary.load(folder.summary)
    assert summary.encoder == {"name": "org/encoder + mine.npy + org/model", "truncated": 5, "width": 13}
    assert (summary.pool["source"], summary.pool["rows"]) == ("pool.jsonl", 40)
    assert "split" not in summary.pool
    assert (summary.labelled_pairs, summary.exact_all_pairs, summary.language_model) == (0, None, None)
    expected = [
        "The target is one sample",
        "5 of 40 texts exceed the context of org/model and were truncated.",
        *([warning] if warning else []),
    ]
    assert len(summary.warnings) == len(expected)
    assert all(found.startswith(start) for found, start in zip(summary.warnings, expected, strict=True))
    known = (
        "facility location conditional gain over 9 known samples; of the value they provide 25.0 %, the subset the rest"
    )
    assert f"Objective: {known}." in summary_text(folder)


def test_gains_of_0_are_not_arbitrary_where_scores_order_them(folder):
    assert warnings_of(None, None, [], None, np.zeros(0)) == []
    write_array(folder.known, np.zeros(3))
    largest = "no score is above 0, and the largest were selected"
    for scores, reason in ((np.arange(-40.0, 0), largest), (np.zeros(40), "the selection is arbitrary")):
        write_array(folder.influence, scores.astype(np.float32))
        write_summary(folder, Selection(np.array([39, 38]), np.zeros(2), 0.0, "mean-influence", {}), all_pairs=40)
        warning = Summary.load(folder.summary).warnings[-1]
        assert warning.startswith(f"All estimated gains are 0: {reason}.")


@pytest.mark.parametrize("side", ["target", "pool"])
def test_a_target_that_dominates_is_a_warning_with_its_id(side):
    served = {"selected": 30, "most": 22.0, "largest_share": 22 / 30, "id": "gsm8k-\x1b7", "is_dominated": True}
    target = {"rows": 30} if side == "target" else None
    (warning,) = warnings_of(target, None, [], None, np.ones(30), served=served)
    assert warning.startswith("22 of the 30 selected samples have the same top target, 'gsm8k-\\x1b7' (73.3\u00a0%), ")
    assert warning.endswith(f"remove it from `{side}`.")
    assert warnings_of(target, None, [], None, np.ones(30), served=served | {"is_dominated": False}) == []


@pytest.mark.parametrize("side", ["target", "pool"])
def test_short_responses_are_a_warning(side):
    target = {"rows": 30} if side == "target" else None
    (warning,) = warnings_of(target, None, [], None, np.ones(30), lengths=(299.0, 600.0))
    assert warning.startswith(f"The selected responses are short: 299 characters on average, those of the {side} 600.")
    assert warnings_of(target, None, [], None, np.ones(30), lengths=(300.0, 600.0)) == []


@pytest.mark.parametrize(
    ("rows", "unit", "warned"), [([0, 2], "", True), ([1, 3], "", False), ([0, 2], "tokens", False)]
)
def test_lengths_are_those_of_the_responses(folder, rows, unit, warned):
    for side, lengths in (("pool", [10, 100] * 20), ("target", [50])):
        samples = [{"id": f"{k}", "prompt": "x" * 70, "response": "x" * length} for k, length in enumerate(lengths)]
        save_samples(folder, side, samples)
    if unit:
        write_array(folder.tokens, np.full(40, 3))
    selection = Selection(np.array(rows), np.array([2.0, 1.0]), 3.0, "facility-location", {})
    write_summary(folder, selection, all_pairs=40)
    found = [warning for warning in Summary.load(folder.summary).warnings if "responses are short" in warning]
    expected = "The selected responses are short: 10 characters on average, those of the target 50."
    assert [warning[: len(expected)] for warning in found] == [expected] * warned


@pytest.mark.parametrize(
    ("certificate", "line"),
    [
        (None, None),
        (
            Certificate(3.0, 4.0, 40),
            "Optimality: value 3, at least 75 % of the optimal value for these estimates (upper bound 4).",
        ),
        (
            Certificate(-16.8, 10.9, 40),
            "no proven share of the optimal value for these estimates (upper bound 10.9).",
        ),
        (
            Certificate(3.0, 3.0, 40),
            "Optimality: value 3, 100 % of the optimal value for these estimates (upper bound 3).",
        ),
        (
            Certificate(3.0, 3.1, 12),
            "at least 96.7 % of the optimal value among subsets of the 12 shortlisted samples (upper bound 3.1)",
        ),
        (
            Certificate(3.0, None, 40, "the objective \x1b is not submodular"),
            r"Optimality: value 3, unknown: the objective \x1b is not submodular.",
        ),
    ],
)
def test_certificate(folder, certificate, line):
    selection = Selection(np.array([3, 1]), np.ones(2), 3.0, "facility-location", certificate=certificate)
    write_summary(folder, selection, all_pairs=40)
    stored, text = Summary.load(folder.summary).certificate, summary_text(folder)
    if certificate is None:
        assert stored is None
        assert "Optimality" not in text
    else:
        assert stored["percent"] == certificate.percent
        assert line in text


def test_means_over_a_sample_of_the_targets_are_said_to_be(folder):
    selection = Selection(np.array([3, 1]), np.ones(2), 3.0, "facility-location")
    summary = write_summary(folder, selection, all_pairs=40)
    assert "nncift_influence" not in summary_text(folder)
    dataclasses.replace(summary, averaged=[10, 4000]).save(folder.summary)
    assert "nncift_influence: mean over a random sample of 10 of the 4,000 targets." in summary_text(folder)


def test_rows_drawn_at_random_have_neither_influence_nor_optimality(folder):
    selection = Selection(np.array([3, 1]), np.ones(2), 2.0, "mean-influence", certificate=Certificate(2.0, 2.0, 40))
    dataclasses.replace(write_summary(folder, selection, all_pairs=40), exact="random").save(folder.summary)
    text = summary_text(folder)
    assert "Influence: none was computed; the rows were drawn at random (random)." in text
    assert "Optimality" not in text
