"""Baselines of estimated influence: what is predicted without a network.

A constant and each target's mean show what the labels give without looking at a pool sample. The label-free
similarities show what there is without labels: a network that predicts no better than these was not worth its labels.
They are influence functions in their own right (`LABEL_FREE`), here from the features that the network reads: the
cosine of the first block; of the language model's states over the response what `influence/response_similarity.py`
computes; of the block "gradient sketch" what `influence/gradient_sketch.py` estimates, centered as the block is not
whitened over the pool. Others, which take a pass of their own, are given by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from nncift.estimator.network import FeatureArray
from nncift.features.features import Features
from nncift.features.language_model import LANGUAGE_BLOCKS
from nncift.features.sources import SKETCH
from nncift.labels.pairs import LabelledPairs

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Label-free similarity of pool samples and targets, aligned indices (n,) and (n,), to values (n,)."""

LABEL_FREE = {
    "cosine": "embedding-similarity",
    "response similarity": "response-similarity",
    "gradient sketch": "gradient-sketch",
}
"""Name of a baseline to the influence function that computes it exactly for every pair without labels."""
_SHARPNESS = 5.0  # that of response-similarity and gradient-sketch
_CHUNK = 1 << 23  # numbers of either side at a time
_SAMPLES = 4096  # of either side, for mean and deviation of a language model's states


def feature_similarities(pool: FeatureArray, target: FeatureArray) -> dict[str, Similarity]:
    """The label-free similarities that features give, those of `LABEL_FREE` that there are."""
    pool_blocks, target_blocks = Features.of(pool).blocks, Features.of(target).blocks
    first, states = next(iter(pool_blocks)), "response states"
    found: dict[str, Similarity] = {}
    if first not in LANGUAGE_BLOCKS and pool_blocks[first].shape[1] == target_blocks[first].shape[1]:
        found["cosine"] = _similarity(pool_blocks[first], target_blocks[first])
    if states in pool_blocks and states in target_blocks:
        sides = pool_blocks[states], target_blocks[states]
        some = _some(*sides)
        deviation = some.std(axis=0)
        varies = deviation > 1e-6 * deviation.max(initial=0)  # constant dimensions become 0
        scale = np.where(varies, deviation, np.inf)
        found["response similarity"] = _similarity(*sides, some.mean(axis=0), scale, sharpness=_SHARPNESS)
    if SKETCH in pool_blocks and SKETCH in target_blocks:
        sides = pool_blocks[SKETCH], target_blocks[SKETCH]
        found[SKETCH] = _similarity(*sides, _some(*sides).mean(axis=0), sharpness=_SHARPNESS)
    return found


def _some(*sides: np.ndarray) -> np.ndarray:
    return np.concatenate([side[:_SAMPLES] for side in sides]).astype(np.float64)


def _similarity(
    pool: np.ndarray,
    target: np.ndarray,
    mean: np.ndarray | float = 0.0,
    scale: np.ndarray | float = 1.0,
    *,
    sharpness: float = 0.0,
) -> Similarity:
    """Cosines of standardized features, or exp(sharpness (cosine - 1))."""

    def similarity(pool_index: np.ndarray, target_index: np.ndarray) -> np.ndarray:
        cosines = np.empty(len(pool_index), dtype=np.float64)
        size = max(_CHUNK // pool.shape[1], 1)
        for start in range(0, len(pool_index), size):
            part = slice(start, start + size)
            a, b = (pool[pool_index[part]] - mean) / scale, (target[target_index[part]] - mean) / scale
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosines[part] = np.einsum("nd,nd->n", a, b) / np.maximum(norms, 1e-12)
        return np.exp(sharpness * (cosines - 1)) if sharpness else cosines

    return similarity


def predict_baselines(
    n_target: int, train: LabelledPairs, pairs: LabelledPairs, similarities: Mapping[str, Similarity]
) -> dict[str, np.ndarray]:
    """Predictions of the baselines for `pairs`, fitted to `train`: (n,) each.

    Similarities are scaled by least squares, so that errors compare; a positive slope keeps the order.

    Args:
        n_target: number of targets.
        train: exact values of the training pairs.
        pairs: those to predict.
        similarities: by name.
    """
    exact = train.influence.astype(np.float64)
    mean = float(exact.mean())
    sums = np.bincount(train.target_index, exact, minlength=n_target)
    counts = np.bincount(train.target_index, minlength=n_target)
    target_mean = np.where(counts > 0, sums / np.maximum(counts, 1), mean)
    baselines = {}
    for name, similarity in similarities.items():
        seen, new = (similarity(some.pool_index, some.target_index) for some in (train, pairs))
        slope = np.cov(seen, exact)[0, 1] / max(float(seen.var(ddof=1)), 1e-12) if len(train) > 1 else 0.0
        baselines[name] = mean + max(slope, 1e-6 * float(np.ptp(exact))) * (new - seen.mean())
    return baselines | {"target mean": target_mean[pairs.target_index], "constant": np.full(len(pairs), mean)}
