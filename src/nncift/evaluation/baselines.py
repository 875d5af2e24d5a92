"""Baselines of estimated influence: what is predicted without a network.

A constant and each target's mean show what the labels give without looking at a pool sample. The label-free
similarities show what there is without labels: a network that predicts no better than these was not worth its labels.
They are influence functions in their own right (`LABEL_FREE`), here from the features that the network reads: the
cosine of the first block; of the language model's states over the response what `influence/response_similarity.py`
computes; of the block "gradient sketch" what `influence/gradient_sketch.py` estimates, centered as the block is not
whitened over the pool. Others, which take a pass of their own, are given by the caller.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from nncift.estimator.network import FeatureArray
from nncift.estimator.similarity import STATES, BlockSimilarity, block_similarities
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
_NAMES = {STATES: "response similarity", SKETCH: "gradient sketch"}  # of a block's similarity
_CHUNK = 1 << 23  # numbers of either side at a time


def feature_similarities(pool: FeatureArray, target: FeatureArray) -> dict[str, Similarity]:
    """The label-free similarities that features give, those of `LABEL_FREE` that there are."""
    sides = Features.of(pool), Features.of(target)
    first = next(iter(sides[0].blocks))
    found: dict[str, Similarity] = {}
    if first not in LANGUAGE_BLOCKS and sides[0].widths[first] == sides[1].widths.get(first):
        found["cosine"] = _by_chunks(_cosines, *(side.blocks[first] for side in sides))
    for name, block in block_similarities(*sides).items():
        found[_NAMES[name]] = _by_chunks(
            functools.partial(_similarities, block), *(side.blocks[name] for side in sides)
        )
    return found


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of n pairs of rows, (n,)."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: np.ndarray = np.einsum("nd,nd->n", a, b) / np.maximum(norms, 1e-12)
    return cosines


def _similarities(block: BlockSimilarity, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of n pairs of rows, (n,)."""
    return np.asarray(block.pairs(block.units(a), block.units(b)))


def _by_chunks(
    pairs: Callable[[np.ndarray, np.ndarray], np.ndarray], pool: np.ndarray, target: np.ndarray
) -> Similarity:
    """`pairs` of the rows of pool and target, a few at a time."""

    def similarity(pool_index: np.ndarray, target_index: np.ndarray) -> np.ndarray:
        found = np.empty(len(pool_index), dtype=np.float64)
        size = max(_CHUNK // pool.shape[1], 1)
        for start in range(0, len(pool_index), size):
            part = slice(start, start + size)
            found[part] = pairs(pool[pool_index[part]], target[target_index[part]])
        return found

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
