"""What a run was made of and how good its choice is, in words that may be published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import nncift
from nncift.handover.public_names import public_name, without_paths
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.report.terminal import optimality
from nncift.run.folder.records import Fidelity, Summary, Verification, counted
from nncift.run.storage.files import read_json

_OPTIONS = (  # of a config, that say how was chosen, beside those that have lines of their own
    "eta", "nu", "redundancy", "quota", "cap", "near_duplicates", "maximizer", "turns", "probes", "verify", "recipe"
)  # fmt: skip
Line = tuple[str, str]
"""A title and what is said under it."""


def lines_of(run: FinishedRun) -> list[Line]:
    """How the subset was chosen, a line for each fact."""
    summary, options = Summary.load(run.folder.summary), run.options
    pool = ", ".join(public_name(name) for name in (*_several(options["pool"]), *options.get("append", ())))
    target = "the pool itself" if run.own_target else _side(options["target"], summary.target)
    lines = [
        ("pool", f"{pool} ({counted(summary.pool['rows'], 'sample')})"),
        ("target", target),
        ("samples known before", _side(options["known"], summary.known) if summary.known is not None else ""),
        ("test sets excluded", ", ".join(public_name(name) for name in options.get("exclude") or ())),
        ("influence", _influence(run, summary)),
        ("fidelity of the estimates", _fidelity(run)),
        ("objective", summary.objective.replace("-", " ")),
        ("budget", f"{options['budget']} ({counted(summary.selected, 'sample')})"),
        ("certificate", optimality(summary) or ""),
        ("verified value", _verified(run, summary)),
        ("arrangement", summary.arrangement),
        ("other options", _options(run)),
        ("seed", str(options["seed"])),
        ("made with", f"nncift {nncift.__version__}"),
    ]
    return [(title, text) for title, text in lines if text]


def facts_of(run: FinishedRun) -> dict[str, Any]:
    """The same for programs, ready for JSON."""
    return {"nncift": nncift.__version__, **{title.replace(" ", "_"): text for title, text in lines_of(run)}}


def model_name(run: FinishedRun) -> str:
    """The language model that influence was computed with, or empty where none was."""
    described = read_json(run.folder.function) if run.folder.function.is_file() else {}
    model = described.get("model")
    return public_name(model) if isinstance(model, str) else ""


def _several(name: str | Sequence[str]) -> Sequence[str]:
    return (name,) if isinstance(name, str) else name


def _side(name: str | None, facts: dict[str, Any] | None) -> str:
    rows = f" ({counted(facts['rows'], 'sample')})" if facts else ""
    return f"{public_name(str(name or '<dataset>'))}{rows}"


def _influence(run: FinishedRun, summary: Summary) -> str:
    name, model = run.influence_name, model_name(run)
    if not run.folder.function.is_file():
        option = next((option for option in ("labels_from", "network") if run.options[option]), None)
        name = f"of {public_name(run.options[option])}" if option else name
    kind = (
        "exact for every pair" if summary.exact else f"estimated from {counted(summary.labelled_pairs, 'exact pair')}"
    )
    measured = f"; a shortlist of it measured by {summary.measured_by}" if summary.measured_by else ""
    return f"{name}{f' of {model}' if model else ''}, {kind}{measured}"


def _fidelity(run: FinishedRun) -> str:
    found = Fidelity.find(run.folder.fidelity)
    return "" if found is None else str(found)


def _verified(run: FinishedRun, summary: Summary) -> str:
    found = Verification.find(run.folder.verification)
    if found is None:
        return ""
    value = found.value
    text = f"best influence in the subset, mean over {counted(found.targets, 'target')}: {value['exact']:.4g} exact"
    return text if summary.measured_by else f"{text} ({value['estimated']:.4g} estimated before)"


def _options(run: FinishedRun) -> str:
    given = {name: run.options.get(name) for name in _OPTIONS}
    shown = {name: value for name, value in given.items() if value not in (None, [], (), {}, "process", "lazy")}
    return ", ".join(f"{name} {json.dumps(without_paths(value))}" for name, value in shown.items())
