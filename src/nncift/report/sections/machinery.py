"""How the choice was made: fidelity by quadrant, the rounds of labelling, the verified shortlist, and the costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from nncift.report import plots
from nncift.report.files import FinishedFiles
from nncift.report.terminal import correlation_name, ending, measured_metrics, target_fidelity
from nncift.run.folder.costs import Costs
from nncift.run.folder.records import Fidelity, LabelHistory, Verification

_QUADRANTS = ("Q2", "Q4", "Q3", "Q1")  # most relevant to selection first
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
_COLUMNS = {"forward_tokens": "LLM tokens forward", "backward_tokens": "LLM tokens backward", "texts": "Texts encoded"}


def costs(run: FinishedFiles) -> dict[str, Any]:
    """Each stage and the total, and what labelling all pairs would have cost beside it, as far as that is known."""
    table, exact = Costs(run.folder.costs).stages, run.summary.exact_all_pairs
    stages = [asdict(stage) for stage in table.values()]
    total = {name: sum(stage[name] for stage in stages) for name in ("seconds", *_COLUMNS)}
    total["peak_memory"] = max((stage["peak_memory"] for stage in stages), default=0)
    return {
        "stages": table,
        "total": total,
        "tokens": total["forward_tokens"] + total["backward_tokens"],
        "columns": {name: title for name, title in _COLUMNS.items() if total[name]},
        "exact": exact,
        "times": exact["seconds"] / total["seconds"] if exact and total["seconds"] else None,
        "labelled": run.summary.labelled_pairs / max(1, run.summary.all_pairs),
    }


def fidelity(run: FinishedFiles) -> dict[str, Any] | None:
    """The record, new samples first and the training pairs last, with a scatter plot of the finite pairs."""
    found = run.fidelity
    if found is None:
        return None
    both = _scatter(found)
    finite, quadrant = np.isfinite(both).all(axis=0), np.array(found.scatter["quadrant"], dtype=str)
    clouds = {name: both[:, finite & (quadrant == name)] for name in plots.QUADRANTS}
    clouds = {name: cloud for name, cloud in clouds.items() if cloud.size}
    return vars(found) | {
        "metrics": measured_metrics(found, _METRICS_POINTWISE if found.is_pointwise else _METRICS),
        "quadrants": {name: found.quadrants[name] for name in _QUADRANTS if name in found.quadrants},
        "points": sum(cloud.shape[1] for cloud in clouds.values()),
        "plot": plots.scatter(clouds) if clouds else None,
    }


def history(run: FinishedFiles) -> dict[str, Any] | None:
    """The rounds of active learning with their learning curve; None without them."""
    if (found := LabelHistory.find(run.folder.labels.history)) is None:
        return None
    points = [(one["pairs"], one["reached"]) for one in found.rounds if one["reached"] is not None]
    target, correlation = target_fidelity(run.folder, found), correlation_name(found)
    labels, reached = [pairs for pairs, _ in points], [value for _, value in points]
    return vars(found) | {
        "target_fidelity": target,
        "ended": ending(found, target),
        "correlation": correlation,
        "plot": plots.learning_curve(labels, reached, correlation) if points else None,
    }


def verification(run: FinishedFiles) -> dict[str, Any] | None:
    """The record of a verified shortlist with its scatter plot; None without one."""
    found = run.verification
    return None if found is None else vars(found) | {"plot": plots.scatter({"shortlist": _scatter(found)})}


def _scatter(record: Fidelity | Verification) -> np.ndarray:
    """Exact and predicted influence of the record's pairs, (2, n_pairs)."""
    return np.array([record.scatter[side] for side in ("exact", "predicted")], dtype=np.float64)
