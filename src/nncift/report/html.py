"""The HTML report of a finished run folder: configuration, selection, fidelity, cost.

One self-contained file: pictures are inline SVG, there is no script and no outside link, and a Content-Security-Policy
forbids the browser to fetch any. The data may be hostile, so the template escapes everything it prints, and invisible
characters (control characters, bidirectional overrides) are written as escapes. Only files of the run folder are read;
without labels, network or target their sections state so, and without features there is no map. The same folder gives
the same bytes. Costs about a second, and four more per million samples, whose original rows are read.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.data.facts import open_samples
from nncift.errors import RunError
from nncift.report import plots
from nncift.report.template import template
from nncift.report.terminal import (
    correlation_name,
    ending,
    known_coverage,
    limit_text,
    measured_metrics,
    optimality,
    target_fidelity,
    unmeasured,
    value_name,
)
from nncift.run.checksums import verify_folder
from nncift.run.costs import Costs
from nncift.run.files import atomic_write, read_array, read_json, read_table
from nncift.run.folder import RunFolder
from nncift.run.records import BETTER, NOT_BETTER, TOO_FEW, Fidelity, LabelHistory, Summary, Verification

if TYPE_CHECKING:
    from datasets import Dataset

_SHOWN = 20  # samples at either end
_SHORT, _LINES, _LONG = 400, 12, 20_000  # characters and lines of a text at first, and characters on demand
_QUADRANTS = ("Q2", "Q4", "Q3", "Q1")  # most relevant to selection first
_GROUP_KEYS, _MOST_GROUPS = ("family", "task", "category", "source"), 100
_METRICS = (  # columns of the table
    "subset_sum_correlation_within_target",
    "recall_of_top_tenth_within_target",
    "spearman_within_target",
    "r2",
    "r2_over_target_mean",
    "spearman_row_mean",
    "mse",
)
_METRICS_POINTWISE = ("subset_sum_correlation", "recall_of_top_tenth", "spearman", "r2", "mse")
_MARKS = {BETTER: ("good", "✓"), NOT_BETTER: ("bad", "!"), TOO_FEW: ("", "?")}  # class and sign of the verdict
_COLUMNS = {"forward_tokens": "LLM tokens forward", "backward_tokens": "LLM tokens backward", "texts": "Texts encoded"}


class _Run:
    """The files of a finished run."""

    def __init__(self, folder: RunFolder) -> None:
        verify_folder(folder.path, but=folder.report)
        pool, target = folder.candidates, folder.samples("target").samples
        features = [] if folder.vectors.is_finished("pool") else [folder.features.array("pool")]
        required = (folder.config, folder.costs, folder.summary, pool, *features, folder.influence, folder.selection)
        if missing := [_relative(path, folder) for path in required if not path.is_file()]:
            problem = f"{folder.path} is not the folder of a finished run: it lacks {', '.join(missing)}"
            raise RunError(problem, "run the same `nncift select` command again, which resumes it")
        self.folder = folder
        self.config: dict[str, Any] = read_json(folder.config)
        self.summary = Summary.load(folder.summary)
        self.fidelity = Fidelity.find(folder.fidelity)
        self.pool = open_samples(pool)
        self.target = open_samples(target) if target.is_file() else None
        self.features = _array(folder, "pool")  # (n_pool, d)
        self.target_features = _array(folder, "target")  # (n_target, d)
        self.influence = read_array(folder.influence)  # (n_pool,)
        selection = read_table(folder.selection).sort_by("rank")  # a row per selected sample, best first
        self.chosen: np.ndarray = selection["pool_index"].to_numpy()
        if folder.first_cut.is_finished:  # what numbers samples here numbers those that it kept
            self.chosen = np.searchsorted(read_array(folder.first_cut.rows), self.chosen)
        self.gains: np.ndarray = selection["gain"].to_numpy()
        lengths = {pool: len(self.pool), **{path: len(read_array(path)) for path in features}}
        lengths[folder.influence] = len(self.influence)
        if len({*lengths.values()}) > 1 or np.any(self.chosen >= len(self.influence)):
            found = ", ".join(f"{_relative(path, folder)} has {n} rows" for path, n in lengths.items())
            raise RunError(f"the files of {folder.path} do not belong together ({found})", "run into a new folder")


def _array(folder: RunFolder, side: str) -> np.ndarray | None:
    """Features of a side, or the vectors that give the influence; None of sparse ones, scores, and without any."""
    paths = (folder.features.array(side), folder.vectors.array(side))
    found = next((path for path in paths if path.is_file()), None)
    array = None if found is None else read_array(found)
    return None if array is None or array.shape[1] < 2 else array


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write the report into a run folder and return its path.

    Raises:
        RunError: the folder is not a finished run (the message names what is missing), or is damaged.
    """
    run = _Run(RunFolder(folder))
    facts = {side: found for side in ("pool", "target", "known") if (found := getattr(run.summary, side))}
    filters = {"relative": lambda path: _relative(path, run.folder)}
    page = template("report.html.jinja", filters).render(
        config=run.config,
        summary=run.summary,
        folder=run.folder,
        cost=_cost(run),
        fidelity=_fidelity(run.fidelity),
        verification=_verification(run.folder),
        history=_history(run.folder),
        known_coverage=known_coverage(run.summary),
        limit_text=limit_text,
        value_name=value_name,
        optimality=optimality(run.summary),
        warnings=[
            w for w in run.summary.warnings if not run.fidelity or w not in (run.fidelity.verdict, str(run.fidelity))
        ],
        influence={
            side: values.mean(dtype=np.float64)
            for side, values in (("pool", run.influence), ("subset", run.influence[run.chosen]))
        },
        gains=plots.gain_curve(run.gains),
        map=None if run.features is None else plots.embedding_map(run.features, run.chosen, run.target_features),
        groups=_groups(run),
        best=_samples(run, run.chosen[:_SHOWN]),
        worst=_samples(run, np.argsort(run.influence, kind="stable")[:_SHOWN]),
        sides=facts,
        schemas=sorted({name for f in facts.values() for name in f.get("schemas") or {f.get("schema"): 0} if name}),
        unmeasured=unmeasured(run.summary, run.config),
        version=importlib.metadata.version("nncift"),
    )
    with atomic_write(run.folder.report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run.folder.report


def _relative(path: Path, folder: RunFolder) -> str:
    return path.relative_to(folder.path).as_posix()


def _cost(run: _Run) -> dict[str, Any]:
    table, exact = Costs(run.folder.costs).stages, run.summary.exact_all_pairs
    stages = [asdict(stage) for stage in table.values()]
    total = {name: sum(stage[name] for stage in stages) for name in ("seconds", *_COLUMNS)}
    total["peak_memory"] = max((stage["peak_memory"] for stage in stages), default=0)
    return {
        "stages": table,
        "total": total,
        "columns": {name: title for name, title in _COLUMNS.items() if total[name]},
        "exact": exact,
        "times": exact["seconds"] / total["seconds"] if exact and total["seconds"] else None,
        "labelled": run.summary.labelled_pairs / max(1, run.summary.all_pairs),
    }


def _fidelity(fidelity: Fidelity | None) -> dict[str, Any] | None:
    """The record, new samples first and the training pairs last, with a scatter plot of the finite pairs."""
    if fidelity is None:
        return None
    facts = fidelity.facts
    both = _scatter(fidelity)
    finite, quadrant = np.isfinite(both).all(axis=0), np.array(fidelity.scatter["quadrant"], dtype=str)
    clouds = {name: both[:, finite & (quadrant == name)] for name in plots.QUADRANTS}
    clouds = {name: cloud for name, cloud in clouds.items() if cloud.size}
    return vars(fidelity) | {
        "metrics": measured_metrics(fidelity, _METRICS_POINTWISE if fidelity.is_pointwise else _METRICS),
        "headline": fidelity.headline,
        "mark": _MARKS[fidelity.conclusion],
        "facts": facts[:1].upper() + facts[1:],
        "quadrants": {name: fidelity.quadrants[name] for name in _QUADRANTS if name in fidelity.quadrants},
        "points": sum(cloud.shape[1] for cloud in clouds.values()),
        "plot": plots.scatter(clouds) if clouds else None,
    }


def _history(folder: RunFolder) -> dict[str, Any] | None:
    """The rounds of active learning with their learning curve; None without them."""
    if (history := LabelHistory.find(folder.labels.history)) is None:
        return None
    points = [(one["pairs"], one["reached"]) for one in history.rounds if one["reached"] is not None]
    target, correlation = target_fidelity(folder, history), correlation_name(history)
    labels, reached = [pairs for pairs, _ in points], [value for _, value in points]
    return vars(history) | {
        "target_fidelity": target,
        "ended": ending(history, target),
        "correlation": correlation,
        "plot": plots.learning_curve(labels, reached, correlation) if points else None,
    }


def _verification(folder: RunFolder) -> dict[str, Any] | None:
    """The record of a verified shortlist with its scatter plot; None without one."""
    if (verification := Verification.find(folder.verification)) is None:
        return None
    return vars(verification) | {"plot": plots.scatter({"shortlist": _scatter(verification)})}


def _scatter(record: Fidelity | Verification) -> np.ndarray:
    """Exact and predicted influence of the record's pairs, (2, n_pairs)."""
    return np.array([record.scatter[side] for side in ("exact", "predicted")], dtype=np.float64)


def _groups(run: _Run) -> dict[str, Any] | None:
    """Shares of each value of the first grouping key found in the original rows, most selected first."""
    chosen = np.isin(np.arange(len(run.pool)), run.chosen)
    rest, subset, targets = _count(run.pool, ~chosen), _count(run.pool, chosen), _count(run.target)
    for key in _GROUP_KEYS:
        pool = rest[key] + subset[key]
        if not 2 <= len(pool.keys() - {None}) <= min(_MOST_GROUPS, len(run.pool) // 2):
            continue
        target = targets[key] if 1 <= len(targets[key].keys() - {None}) <= _MOST_GROUPS else None
        rows = [
            {
                "value": value,
                "chosen": subset[key][value],
                "pool": pool[value] / pool.total(),
                "subset": subset[key][value] / max(1, subset[key].total()),
                "target": target[value] / target.total() if target else None,
            }
            for value in sorted(pool, key=lambda value: (-subset[key][value], -pool[value], str(value)))
        ]
        return {"key": key, "rows": rows, "target": target is not None}
    return None


def _count(rows: Dataset | None, which: np.ndarray | None = None) -> dict[str, Counter[str | None]]:
    """Occurrences of each value of each grouping key in the rows, or in those of the mask `which`."""
    import pyarrow as pa

    counts: dict[str, Counter[str | None]] = {key: Counter() for key in _GROUP_KEYS}
    if rows is None:
        return counts
    column = rows.data.column("original")
    for chunk in (column if which is None else column.filter(pa.array(which))).chunks:
        for text in chunk.to_pylist():
            original = json.loads(text)
            for key, count in counts.items():
                value = original.get(key)
                if len(count) <= _MOST_GROUPS + 1:  # with more it is not a grouping
                    count[str(value)[:80] if isinstance(value, (str, int)) else None] += 1
    return counts


def _samples(run: _Run, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    rank = {row: position for position, row in enumerate(run.chosen.tolist(), 1)}
    return [
        {
            "id": sample["id"],
            "row": sample["source_row"],
            "rank": rank.get(row),
            "gain": float(run.gains[rank[row] - 1]) if row in rank else None,
            "influence": float(run.influence[row]),
            "texts": {name: _cut(sample[name]) for name in ("prompt", "response")},
        }
        for row, sample in zip(map(int, rows), run.pool.select(rows), strict=True)
    ]


def _cut(text: str) -> dict[str, Any]:
    text = text.replace("\r\n", "\n")
    head = "\n".join(text[:_SHORT].split("\n")[:_LINES])
    whole = len(text) <= len(head) + 40  # not worth a click
    return {"head": text if whole else head, "full": None if whole else text[:_LONG], "characters": len(text)}
