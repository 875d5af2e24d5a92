"""What an evaluation makes of its options before anything costly: the judge's check, and metrics without an item."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from builders import samples
from nncift.errors import ConfigError
from nncift.proof.folder import ProofFolder
from nncift.proof.inputs import setup
from nncift.proof.inputs.setup import check_metrics, judge_of
from nncift.proof.options import ProofOptions
from nncift.run.storage.files import read_json

LONG = "seven words that no one would ever repeat"


def test_a_judge_is_checked_again_when_anything_of_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checked: list[tuple[str, str]] = []

    def check(judge, items):
        checked.append((judge.url, judge.rubric.text[:5]))
        return SimpleNamespace(describe=lambda: {"reference": 4.5})

    monkeypatch.setattr(setup, "check_judge", check)
    folder, rubric = ProofFolder(tmp_path), tmp_path / "rubric.txt"

    def ask(text: str = "First", port: int = 1) -> None:
        rubric.write_text(f"{text} {{prompt}} {{reference}} {{answer}}")
        url = f"http://localhost:{port}/v1"
        options = ProofOptions(test="test.jsonl", judge="grader", judge_url=url, rubric=str(rubric))
        found = judge_of(options, SimpleNamespace(model="model"), None, folder)
        assert found is not None
        found.close()

    for _ in range(2):
        ask()
    assert len(checked) == 1
    ask("Other")
    ask("Other", port=2)
    assert checked[1:] == [("http://localhost:1/v1", "Other"), ("http://localhost:2/v1", "Other")]
    assert read_json(folder.judge)["reference"] == 4.5


@pytest.mark.parametrize(
    ("metrics", "response", "idle"),
    [
        (("exact_match", "loss"), LONG, "`metrics` exact_match applies to no reference"),
        (("rouge", "similarity"), "yes", "`metrics` rouge applies to no reference"),
        (("exact_match", "rouge"), LONG, "`metrics` exact_match applies to no reference"),
        (("exact_match",), "yes", ""),
        ((), LONG, ""),  # all that can be measured
    ],
)
def test_a_metric_that_applies_to_no_item_is_named(metrics, response, idle, caplog):
    rows = samples([{"id": str(k), "prompt": f"p {k}", "response": response} for k in range(3)])
    check_metrics(ProofOptions(test="test.jsonl", metrics=metrics), rows)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * bool(idle)
    assert idle in caplog.text


def test_metrics_none_of_which_applies_are_refused():
    rows = samples([{"id": "a", "prompt": "p", "response": LONG}])
    with pytest.raises(ConfigError, match="`metrics` exact_match applies to no reference of the test file"):
        check_metrics(ProofOptions(test="test.jsonl", metrics=("exact_match",)), rows)
    check_metrics(ProofOptions(test="test.jsonl", metrics=("exact_match",), judge="embedded"), rows)  # which remains
