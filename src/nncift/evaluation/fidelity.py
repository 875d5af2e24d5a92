"""Fidelity of estimated influence: predictions against exact values of held-out samples.

The paper reports the mean squared error after min-max scaling, which hides failure: exact values are close together, so
a constant scores as well. Every metric here is compared with baselines that need no extra computation (a constant, each
target's mean, cosines of the features), and the verdict states whether the network beats them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nncift.estimator.network import FeatureArray, InfluenceNetwork
from nncift.evaluation.metrics import measures
from nncift.features.features import Features
from nncift.features.language_model import LANGUAGE_BLOCKS
from nncift.labels.pairs import LabelledPairs
from nncift.run.records import Fidelity

_SCATTER = 2000
_CHUNK = 1 << 14  # pairs at a time
_MEAN_SAMPLES = 4096  # of either side, for the mean of a language model's states


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
    scale = float(np.ptp(np.concatenate([train.influence, held_out.influence]))) or 1.0
    quadrants = {"Q1": _compare(train, predictions["train"], np.ones(len(train), bool), scale)}
    where = held_out.quadrants(train)
    for name in ("Q2", "Q3", "Q4"):
        if (where == name).any():
            quadrants[name] = _compare(held_out, predictions["held_out"], where == name, scale)
    beats, verdict = _judge(quadrants)
    shown = np.linspace(0, len(held_out) - 1, min(len(held_out), _SCATTER)).astype(int)
    predicted = predictions["held_out"]["network"] if len(held_out) else np.zeros(0)
    return Fidelity(
        quadrants=quadrants,
        beats_baselines=beats,
        verdict=verdict,
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


def _baselines(
    pool_features: FeatureArray, target_features: FeatureArray, train: LabelledPairs, pairs: LabelledPairs
) -> dict[str, np.ndarray]:
    """Predictions of the baselines for `pairs`, fitted to `train`: (n,) each."""
    mean = float(train.influence.mean())
    sums = np.bincount(train.target_index, train.influence, minlength=len(target_features))
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
        slope = np.cov(seen, train.influence)[0, 1] / max(float(seen.var(ddof=1)), 1e-12) if len(train) > 1 else 0.0
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


def _compare(
    pairs: LabelledPairs, predictions: dict[str, np.ndarray], mask: np.ndarray, scale: float
) -> dict[str, Any]:
    part = pairs.take(mask)
    return {
        "pairs": len(part),
        "methods": {name: measures(part, values[mask], scale=scale) for name, values in predictions.items()},
    }


def _judge(quadrants: dict[str, dict[str, Any]]) -> tuple[bool, str]:
    """Whether the network beats every baseline on new pool samples, which a selection consists of, and the verdict."""
    name = next((q for q in ("Q2", "Q4", "Q3") if q in quadrants), None)
    if name is None:
        return False, "Fidelity is unknown: too few samples were labelled to hold any out."
    methods = quadrants[name]["methods"]
    samples = {"Q2": "new pool samples", "Q4": "new pool samples and targets", "Q3": "new targets"}[name]
    lost, found = [], []
    for metric, label in (("r2", "R2"), ("spearman_within_target", "rank correlation within a target")):
        values = {method: row[metric] for method, row in methods.items() if row[metric] is not None}
        if "network" not in values:
            continue
        own = values.pop("network")
        best = max(values, key=lambda method: values[method], default=None)
        found.append(f"{label} {own:.2f}" + (f" (best baseline: {best} {values[best]:.2f})" if best else ""))
        if own <= 0 or (best is not None and own <= values[best]):
            lost.append(label)
    facts = " and ".join(found)
    if not found:
        return False, f"Fidelity is unknown: too few {samples} were held out."
    if lost:
        return False, f"The network does not beat the baselines on {samples}: {facts}. Do not trust its ranking yet."
    return True, f"The network beats the baselines on {samples}: {facts}."
