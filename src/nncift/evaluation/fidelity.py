"""Fidelity of estimated influence: predictions against exact values of held-out samples.

It is judged by the subset-sum correlation within a target (`metrics`), which is what training on a subset sees, against
each target's mean and the best similarity that needs no label at all (`baselines`): a network that does not beat these
was not worth its labels, and the verdict says so. Recall of the top tenth, rank correlation and R2 stand beside. The
paper reports the mean squared error after min-max scaling, which hides failure: exact values are close together, so a
constant scores as well.

A few held-out samples prove nothing, so every metric has a 95 % interval over resamples of them (`intervals`), and the
verdict follows from the intervals of the differences to the baselines: "better than" where all of the correlation are
above 0, "not better than" where one of the correlation or of R2 is at most negligible (R2 shows sooner than the
correlation that a network learned nothing), else, or with fewer than ten held-out samples, "too few samples to tell".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nncift.estimator.network import FeatureArray, InfluenceNetwork
from nncift.evaluation.baselines import LABEL_FREE, Similarity, feature_similarities, predict_baselines
from nncift.evaluation.intervals import interval, resampled
from nncift.evaluation.metrics import measures
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs
from nncift.run.folder.records import BETTER, MIN_SAMPLES, NOT_BETTER, TOO_FEW, Fidelity

_SCATTER = 2000
_NEGLIGIBLE = 0.02  # improvement of a correlation or of R2
_HELD_OUT = {"Q2": (True, False), "Q3": (False, True), "Q4": (True, True)}  # whether pool samples and targets are new
_METRICS = {
    "subset_sum_correlation_within_target": "subset-sum correlation within target",
    "recall_of_top_tenth_within_target": "recall of the top tenth within target",
    "spearman_within_target": "rank correlation within target",
    "r2": "R2",
    "r2_over_target_mean": "R2 over target mean",
}
_METRICS_POINTWISE = {  # of a score that is the same for all targets
    "subset_sum_correlation": "subset-sum correlation",
    "recall_of_top_tenth": "recall of the top tenth",
    "spearman": "rank correlation",
    "r2": "R2",
}


def measure_fidelity(
    network: InfluenceNetwork,
    pool_features: FeatureArray,
    target_features: FeatureArray,
    held_out: LabelledPairs,
    train: LabelledPairs,
    similarities: Mapping[str, Similarity] | None = None,
) -> Fidelity:
    """Metrics of the network and the baselines against exact influence.

    Args:
        network: fitted to `train`.
        pool_features: (n_pool, d) float32.
        target_features: (n_target, d) float32.
        held_out: pairs with a sample that is not in `train`.
        train: the pairs that the network and the baselines are fitted to.
        similarities: label-free similarities by name, besides those that the features give.
    """
    free = feature_similarities(pool_features, target_features) | dict(similarities or {})
    matrix = network.estimate(pool_features, target_features)  # the low-rank form, which the selection uses
    predictions = {
        part: {
            "network": matrix.entries(pairs.pool_index, pairs.target_index),
            **predict_baselines(len(target_features), train, pairs, free),
        }
        for part, pairs in (("train", train), ("held_out", held_out))
        if len(pairs)
    }
    scale = float(np.ptp(np.concatenate([train.influence, held_out.influence]).astype(np.float64))) or 1.0
    quadrants = {"Q1": _compare(train, predictions["train"], scale)}
    where = held_out.quadrants(train)
    for name, (pool, target) in _HELD_OUT.items():
        if (mask := where == name).any():
            part = {method: values[mask] for method, values in predictions["held_out"].items()}
            quadrants[name] = _compare(held_out.take(mask), part, scale)
            quadrants[name] |= _intervals(held_out.take(mask), part, scale, pool=pool, target=target)
    metrics = _METRICS_POINTWISE if network.options.get("pointwise") else _METRICS
    shown = np.linspace(0, len(held_out) - 1, min(len(held_out), _SCATTER)).astype(int)
    predicted = predictions["held_out"]["network"] if len(held_out) else np.zeros(0)
    record = Fidelity(
        quadrants=quadrants,
        beats_baselines=False,
        verdict="",
        judged_by=next(iter(metrics)),
        pairs={"train": len(train), "held_out": len(held_out)},
        held_out={
            "pool": len(np.setdiff1d(held_out.pool_index, train.pool_index)),
            "target": len(np.setdiff1d(held_out.target_index, train.target_index)),
        },
        scatter={
            "exact": [float(v) for v in held_out.influence[shown]],
            "predicted": [float(v) for v in predicted[shown]],
            "quadrant": where[shown].tolist(),
        },
    )
    outcome = _outcome(record)
    record = replace(record, outcome=outcome, beats_baselines=outcome == BETTER)
    blocks = Features.of(pool_features).blocks
    functions = {name: function for name, function in LABEL_FREE.items() if name != "cosine" or "sentence" in blocks}
    facts = _facts(record, metrics, {name: functions.get(name) for name in free})
    return replace(record, verdict=f"{record.headline}: {facts}" if facts else f"{record.headline}.")


def _compare(pairs: LabelledPairs, predictions: dict[str, np.ndarray], scale: float) -> dict[str, Any]:
    return {
        "pairs": len(pairs),
        "samples": {"pool": len(np.unique(pairs.pool_index)), "target": len(np.unique(pairs.target_index))},
        "methods": {name: measures(pairs, values, scale=scale) for name, values in predictions.items()},
    }


def _intervals(
    pairs: LabelledPairs, predictions: dict[str, np.ndarray], scale: float, *, pool: bool, target: bool
) -> dict[str, Any]:
    """95 % intervals of every metric, and of the network's difference to every baseline."""
    values = resampled(pairs, predictions, scale=scale, pool=pool, target=target)
    own = values["network"]
    return {
        "intervals": {name: {m: interval(v) for m, v in found.items()} for name, found in values.items()},
        "differences": {
            name: {metric: interval(own[metric] - found[metric]) for metric in found}
            for name, found in values.items()
            if name != "network"
        },
    }


def _outcome(record: Fidelity) -> str:
    """Whether the network beats every baseline on new pool samples, which a selection consists of."""
    if record.judged is None or record.samples < MIN_SAMPLES:
        return TOO_FEW
    differences = record.quadrants[record.judged]["differences"].values()
    gains, of_r2 = ([row[m] for row in differences if row[m] is not None] for m in (record.judged_by, "r2"))
    if gains and all(low > 0 for low, _ in gains):
        return BETTER
    return NOT_BETTER if any(high <= _NEGLIGIBLE for _, high in (*gains, *of_r2)) else TOO_FEW


def _facts(record: Fidelity, metrics: Mapping[str, str], free: Mapping[str, str | None]) -> str:
    """The figures that the outcome follows from and those beside it, as sentences.

    Args:
        record: with its outcome.
        metrics: name to label, the judged one first.
        free: label-free similarity to the influence function that computes it for every pair; None without one.
    """
    if record.judged is None:
        return ""
    quadrant, facts, advice = record.quadrants[record.judged], [], ""
    for metric, label in metrics.items():
        own, span = (quadrant[kind]["network"][metric] for kind in ("methods", "intervals"))
        if own is None or span is None:
            continue
        fact, kind = f"{label} {own:.2f} [{span[0]:.2f}, {span[1]:.2f}]", "best baseline"
        differences = {name: row[metric] for name, row in quadrant["differences"].items() if row[metric]}
        if metric == record.judged_by and free.keys() & differences.keys():  # a constant's is 0
            differences, kind = {name: differences[name] for name in free}, "best without labels"
        if differences and metric != "r2_over_target_mean":  # of which 0 is as good as the exact mean of each target
            values = {name: quadrant["methods"][name][metric] for name in differences}
            best = max(values, key=lambda name: values[name])
            low, high = differences[best]
            fact += f" ({kind}: {best} {values[best]:.2f}; difference {low:.2f} to {high:.2f})"
            as_good = record.outcome == NOT_BETTER and values[best] >= own - _NEGLIGIBLE
            if kind == "best without labels" and as_good and not record.is_pointwise and free[best]:
                advice = f" Without labels, `influence` {free[best]} predicts as well."
        facts.append(fact)
    return f"{', '.join(facts)}.{advice}" if facts else ""
