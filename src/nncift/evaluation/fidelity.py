"""Fidelity of estimated influence: predictions against exact values of held-out samples.

The paper reports the mean squared error after min-max scaling, which hides failure: exact values are close together, so
a constant scores as well. Every metric here is compared with baselines that need no extra computation (a constant, each
target's mean, cosines of the features).

A few held-out samples prove nothing, so every metric has a 95 % interval over resamples of them (`intervals`), and the
verdict follows from the intervals of the differences to each baseline: "better than" where all are above 0, "not better
than" where one leaves at most a negligible improvement, else, or with fewer than ten held-out samples, "too few samples
to tell".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from nncift.estimator.network import FeatureArray, InfluenceNetwork
from nncift.evaluation.intervals import interval, resampled
from nncift.evaluation.metrics import measures
from nncift.features.features import Features
from nncift.features.language_model import LANGUAGE_BLOCKS
from nncift.labels.pairs import LabelledPairs
from nncift.run.records import BETTER, MIN_SAMPLES, NOT_BETTER, TOO_FEW, Fidelity

_SCATTER = 2000
_CHUNK = 1 << 14  # pairs at a time
_MEAN_SAMPLES = 4096  # of either side, for the mean of a language model's states
_NEGLIGIBLE = 0.02  # improvement of R2 or of a rank correlation
_HELD_OUT = {"Q2": (True, False), "Q3": (False, True), "Q4": (True, True)}  # whether pool samples and targets are new
_JUDGED = {
    "r2": "R2",
    "r2_over_target_mean": "R2 over target mean",
    "spearman_within_target": "rank correlation within a target",
}
_JUDGED_POINTWISE = {"r2": "R2", "spearman": "rank correlation"}  # a score that is the same for all targets


def measure_fidelity(
    network: InfluenceNetwork,
    pool_features: FeatureArray,
    target_features: FeatureArray,
    held_out: LabelledPairs,
    train: LabelledPairs,
) -> Fidelity:
    """Metrics of the network and the baselines against exact influence.

    Args:
        network: fitted to `train`.
        pool_features: (n_pool, d) float32.
        target_features: (n_target, d) float32.
        held_out: pairs with a sample that is not in `train`.
        train: the pairs that the network and the baselines are fitted to.
    """
    matrix = network.estimate(pool_features, target_features)  # the low-rank form, which the selection uses
    predictions = {
        part: {
            "network": matrix.entries(pairs.pool_index, pairs.target_index),
            **_baselines(pool_features, target_features, train, pairs),
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
    judged = _JUDGED_POINTWISE if network.options.get("pointwise") else _JUDGED
    shown = np.linspace(0, len(held_out) - 1, min(len(held_out), _SCATTER)).astype(int)
    predicted = predictions["held_out"]["network"] if len(held_out) else np.zeros(0)
    record = Fidelity(
        quadrants=quadrants,
        beats_baselines=False,
        verdict="",
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
    outcome, facts = _judge(record, judged)
    record = replace(record, outcome=outcome, beats_baselines=outcome == BETTER)
    return replace(record, verdict=f"{record.headline}: {facts}." if facts else f"{record.headline}.")


def _baselines(
    pool_features: FeatureArray, target_features: FeatureArray, train: LabelledPairs, pairs: LabelledPairs
) -> dict[str, np.ndarray]:
    """Predictions of the baselines for `pairs`, fitted to `train`: (n,) each."""
    exact = train.influence.astype(np.float64)
    mean = float(exact.mean())
    sums = np.bincount(train.target_index, exact, minlength=len(target_features))
    counts = np.bincount(train.target_index, minlength=len(target_features))
    target_mean = np.where(counts > 0, sums / np.maximum(counts, 1), mean)
    baselines = {"target mean": target_mean[pairs.target_index], "constant": np.full(len(pairs), mean)}
    pool_blocks, target_blocks = Features.of(pool_features).blocks, Features.of(target_features).blocks
    first = next(iter(pool_blocks))
    cosines = {"cosine": (first, False)} if first not in LANGUAGE_BLOCKS else {}
    if "response states" in pool_blocks:
        cosines["response similarity"] = ("response states", True)
    for name, (block, centered) in cosines.items():
        sides = pool_blocks[block], target_blocks[block]
        if sides[0].shape[1] != sides[1].shape[1]:
            continue
        seen, new = (_cosine(*sides, some, centered=centered) for some in (train, pairs))
        # Least-squares scaling to the influence, so that errors compare; a positive slope keeps the ranks.
        slope = np.cov(seen, exact)[0, 1] / max(float(seen.var(ddof=1)), 1e-12) if len(train) > 1 else 0.0
        baselines[name] = mean + max(slope, 1e-6) * (new - seen.mean())
    return baselines


def _cosine(
    pool_features: np.ndarray, target_features: np.ndarray, pairs: LabelledPairs, *, centered: bool
) -> np.ndarray:
    """Cosine of each pair, (n,) float64; `centered`: after subtracting the mean, large in a language model's states."""
    some = np.concatenate([pool_features[:_MEAN_SAMPLES], target_features[:_MEAN_SAMPLES]])
    mean = some.mean(axis=0) if centered else 0.0
    cosines = np.empty(len(pairs), dtype=np.float64)
    for start in range(0, len(pairs), _CHUNK):
        part = slice(start, start + _CHUNK)
        a, b = pool_features[pairs.pool_index[part]] - mean, target_features[pairs.target_index[part]] - mean
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines[part] = np.einsum("nd,nd->n", a, b) / np.maximum(norms, 1e-12)
    return cosines


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


def _judge(record: Fidelity, judged: dict[str, str]) -> tuple[str, str]:
    """The outcome on new pool samples, which a selection consists of, and the figures that it follows from."""
    name = record.judged
    if name is None:
        return TOO_FEW, ""
    quadrant, facts = record.quadrants[name], []
    gains: list[list[float]] = []  # intervals of the improvements
    for metric, label in judged.items():
        own, span = (quadrant[kind]["network"][metric] for kind in ("methods", "intervals"))
        if own is None or span is None:
            continue
        fact = f"{label} {own:.2f} [{span[0]:.2f}, {span[1]:.2f}]"
        if metric == "r2_over_target_mean":  # 0 is as good as the exact mean of each target
            gains.append(span)
        else:
            differences = {name: row[metric] for name, row in quadrant["differences"].items() if row[metric]}
            gains += differences.values()
            if differences:
                values = {name: quadrant["methods"][name][metric] for name in differences}
                best = max(values, key=lambda name: values[name])
                low, high = differences[best]
                fact += f" (best baseline: {best} {values[best]:.2f}; difference {low:.2f} to {high:.2f})"
        facts.append(fact)
    if record.samples < MIN_SAMPLES or not gains:
        outcome = TOO_FEW
    elif all(low > 0 for low, _ in gains):
        outcome = BETTER
    else:
        outcome = NOT_BETTER if any(high <= _NEGLIGIBLE for _, high in gains) else TOO_FEW
    return outcome, ", ".join(facts)
