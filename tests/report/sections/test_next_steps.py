"""The commands that a report proposes next."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nncift.report.files import FinishedFiles
from nncift.report.sections.next_steps import next_steps
from nncift.report.template import visible
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import Summary
from nncift.run.storage.files import write_json
from report_pages import CONFIG, Page, make_run, with_correlation


def steps(folder: RunFolder, gains: dict[str, Any] | None = None) -> dict[str, tuple[str, ...]]:
    files = FinishedFiles(folder)
    return {step.question: step.commands for step in next_steps(files, [], gains)}


def test_the_commands_that_come_next_are_filled_in_and_can_be_typed(tmp_path: Path, parsed: Callable):
    folder = make_run(tmp_path / "my run")
    found = steps(folder)
    assert len(found) == 3
    (select, evaluate), (verify,), (compare,) = found.values()
    path = str(folder.path)
    assert shlex.split(select) == [
        *("nncift", "select", "--from", path, "--influence", "random", "--output", f"{path}-random")
    ]
    assert f"--against '{path}-random' --seeds 3" in evaluate
    assert "--verify 2" in verify
    assert shlex.split(compare)[2] == CONFIG["pool"]
    for line in (select, evaluate, verify, compare):
        parsed(shlex.split(line)[1:])
    section = Page(folder).section("next-steps")
    assert visible(select) in section
    assert visible(f"nncift explore {shlex.quote(str(folder.path))}") in section


def test_the_comparison_reads_as_the_run_did(tmp_path: Path, parsed: Callable):
    folder = make_run(tmp_path)
    read = {"prompt_field": "my q", "response_field": "a", "skip_bad_rows": True, "exclude": ["t.jsonl", "u.jsonl"]}
    write_json(folder.config, CONFIG | read | {"influence": "less", "wording": "chat", "keep_duplicates": False})
    line = next(one for commands in steps(folder).values() for one in commands if "compare" in one)
    assert "--prompt-field 'my q' --response-field a" in line
    assert "--exclude t.jsonl --exclude u.jsonl --skip-bad-rows" in line
    assert "--wording chat" in line
    assert "--keep-duplicates" not in line
    assert "--influence gradient-sketch" in line
    parsed(shlex.split(line)[1:])


@pytest.fixture
def parsed() -> Callable:
    """Binds a command line to its command, without running it."""
    from nncift.cli import app

    return lambda tokens: app.parse_args(tokens, exit_on_error=False, print_error=False)


def test_the_next_steps_follow_from_what_the_run_lacks(tmp_path: Path, parsed: Callable):
    folder = make_run(tmp_path, good=False)
    with_correlation(folder, 0.1, outcome="not better than")
    assert any("--influence gradient-sketch" in one for commands in steps(folder).values() for one in commands)
    with_correlation(folder, 0.1, outcome="too few samples to tell")
    assert any("--labels 300" in one for commands in steps(folder).values() for one in commands)  # of 300 pairs
    folder.fidelity.unlink()
    assert any("--labels 2000" in one for commands in steps(folder).values() for one in commands)
    dataclasses.replace(Summary.load(folder.summary), exact="gradient-sketch").save(folder.summary)
    flat, steep = ({"flattens": flattens, "rank": 4} for flattens in (True, False))
    fewer, more = (" ".join(line for lines in steps(folder, g).values() for line in lines) for g in (flat, steep))
    assert "--budget 4 " in fewer
    assert "--budget 12 " in more
    for commands in steps(folder, flat).values():
        for line in commands:
            parsed(shlex.split(line)[1:])


def test_of_data_in_memory_the_next_steps_are_python(tmp_path: Path):
    folder = make_run(tmp_path)
    write_json(folder.config, CONFIG | {"pool": "dataset 0123456789", "target": "dataset 987"})
    first = next(iter(steps(folder).values()))[0]
    start = f"nncift.select(pool, target=target, from_run={str(folder.path)!r}, influence='random', output="
    assert first.startswith(start)
