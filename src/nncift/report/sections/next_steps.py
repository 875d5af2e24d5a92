"""What to do next: the commands that would tell most about a run, filled in with its own paths."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncift.report.files import FinishedFiles
from nncift.report.sections.worth import Evaluated
from nncift.run.folder.naming import IN_MEMORY
from nncift.run.folder.records import DRAWN, NOT_BETTER, TOO_FEW, counted
from nncift.run.storage.files import read_json

_MOST = 3
_LABELS = 2000  # pairs, to measure fidelity where nothing was labelled
_TEST = "TEST.jsonl"  # where no evaluation names one
_READ_BY = (  # options that a comparison shares with the run, so that it reads the same
    *("target", "known", "split", "target_split", "known_split", "prompt_field", "response_field", "messages_field"),
    *("turns", "exclude", "exclude_fields", "skip_bad_rows", "keep_duplicates", "max_row_bytes"),
    *("model", "encoder", "dtype", "max_length", "wording"),
)


@dataclass(frozen=True)
class Step:
    """A question and the commands that answer it."""

    question: str
    commands: tuple[str, ...]
    note: str = ""


def next_steps(run: FinishedFiles, found: Sequence[Evaluated], gains: dict[str, Any] | None) -> list[Step]:
    """At most three steps, those that would tell most first.

    Args:
        run: the run.
        found: its evaluations.
        gains: `plots.gain_curve` of its gains.
    """
    test = _test_of(run)
    steps = [*_evaluation(run, found, test), *_fidelity(run), *_comparison(run, found, test), *_budget(run, gains)]
    return steps[:_MOST]


def command(run: FinishedFiles, name: str, **changes: object) -> str:
    """`nncift select --from RUN` with these options; in Python where the run's data were in memory.

    Args:
        run: the run.
        name: what its folder is called after the run's.
        **changes: options as Python has them.
    """
    path = str(run.folder.path)
    options = {**changes, "output": f"{path.rstrip('/')}-{name}"}
    if not _in_memory(run):
        flags = " ".join(f"--{option.replace('_', '-')} {shlex.quote(str(v))}" for option, v in options.items())
        return f"nncift select --from {shlex.quote(path)} {flags}"
    sides = ["pool", *(f"{side}={side}" for side in ("target", "known") if _is_in_memory(run.config.get(side)))]
    given = ", ".join(f"{option}={value!r}" for option, value in options.items())
    return f"nncift.select({', '.join(sides)}, from_run={path!r}, {given})"


def _evaluation(run: FinishedFiles, found: Sequence[Evaluated], test: str) -> list[Step]:
    """The comparison with random rows, unless there is one."""
    if any(one.has_random for one in found) or run.summary.exact in DRAWN:
        return []
    path = str(run.folder.path)
    evaluate = f"nncift evaluate {shlex.quote(path)} --test {shlex.quote(test)}"
    evaluate += f" --against {shlex.quote(path.rstrip('/') + '-random')} --seeds 3"
    note = f"{_TEST}: prompts with reference responses that are not in the pool." if test == _TEST else ""
    among = " of those that the first cut kept" if run.summary.first_cut is not None else ""
    question = f"Does training on these {counted(run.summary.selected, 'row')} beat as many random ones{among}?"
    return [Step(question, (command(run, "random", influence="random"), evaluate), note)]


def _fidelity(run: FinishedFiles) -> list[Step]:
    """What would show or mend the accuracy of estimates."""
    summary, fidelity = run.summary, run.fidelity
    if summary.exact:
        return []
    if fidelity is None:
        question = "How accurate are the estimates on this data?"
        return [Step(question, (command(run, "labelled", labels=_LABELS),))]
    if fidelity.conclusion == TOO_FEW:
        more = 4 * max(summary.labelled_pairs, 1)
        question = "How accurate are the estimates? With more labels that can be told:"
        return [Step(question, (command(run, "more-labels", labels=min(more, summary.all_pairs)),))]
    if fidelity.conclusion == NOT_BETTER:
        question = "The labels bought nothing here: what does the influence choose that needs none?"
        return [Step(question, (command(run, "gradient-sketch", influence="gradient-sketch"),))]
    if run.verification is None and summary.known is None:
        question = "Which of the chosen samples does exact influence confirm?"
        return [Step(question, (command(run, "verified", verify=2),))]
    return []


def _comparison(run: FinishedFiles, found: Sequence[Evaluated], test: str) -> list[Step]:
    """How many random rows the choice is worth, and whether another influence function chooses better."""
    config, summary = run.config, run.summary
    if _in_memory(run) or any(not one.models for one in found) or config.get("append"):
        return []
    pool = config["pool"]
    parts = ["nncift", "compare", *([pool] if isinstance(pool, str) else pool)]
    for option in _READ_BY:
        value = config.get(option)
        if value is True:
            parts.append(f"--{option.replace('_', '-')}")
        elif value not in (None, False):
            for one in value if isinstance(value, list) else [value]:
                parts += [f"--{option.replace('_', '-')}", str(one)]
    other = "gradient-sketch" if config.get("influence") == "less" else "less"
    parts += ["--test", test, "--budget", str(summary.selected), "--influence", other]
    parts += ["--output", str(run.folder.path / "evaluation" / "compare")]
    question = "How many random rows is the choice worth, and would another influence function choose better?"
    return [Step(question, (shlex.join(parts),), "Trains many models: add --dry-run to see what it would cost.")]


def _budget(run: FinishedFiles, gains: dict[str, Any] | None) -> list[Step]:
    """The choice with another budget, as the gain curve suggests."""
    summary = run.summary
    if gains is None or summary.exact in DRAWN:
        return []
    if gains["flattens"]:
        question = f"Would {counted(gains['rank'], 'row')} do? They reach 90\u00a0% of the value."
        return [Step(question, (command(run, f"{gains['rank']}", budget=gains["rank"]),))]
    larger = min(2 * summary.selected, summary.pool["rows"])
    if larger == summary.selected:
        return []
    question = f"What would {counted(larger, 'row')} add? The value still grows with the budget."
    return [Step(question, (command(run, f"{larger}", budget=larger),))]


def _test_of(run: FinishedFiles) -> str:
    """The test file of an evaluation in the run's folder."""
    for path in sorted((run.folder.path / "evaluation").glob("*/results.json")):
        name = str((read_json(path).get("test") or {}).get("name", IN_MEMORY))
        if not _is_in_memory(name):
            return name
    return _TEST


def _in_memory(run: FinishedFiles) -> bool:
    return any(_is_in_memory(run.config.get(side)) for side in ("pool", "target", "known"))


def _is_in_memory(source: object) -> bool:
    return isinstance(source, str) and source.startswith(IN_MEMORY) and not Path(source).exists()
