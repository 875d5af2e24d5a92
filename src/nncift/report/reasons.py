"""Why the first samples of a subset were chosen: the targets that each helps most, and what was left out beside it.

This takes the influence of these samples on all targets and their similarity to the samples left out, which a run has
at hand and its report has not. So they are stored (`reasons.json`) as `Reasons`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nncift.matrix.matrix import InfluenceMatrix
from nncift.report.files import dense_features
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import Reasons
from nncift.run.storage.files import read_array
from nncift.selection.selection import Selection

SHOWN = 20  # samples that the report shows
_TARGETS = 3  # of each
_BYTES = 1 << 28  # of the features that are read to find similar samples
_BLOCK = 1024  # samples whose features are read at a time


def explain(folder: RunFolder, matrix: InfluenceMatrix, selection: Selection) -> Reasons:
    """Find the reasons for the first samples of a run's subset, and store them in its folder.

    It takes their rows of the matrix, and the features of samples left out as far as 256 MiB hold them, those of the
    highest mean influence. So the cost hardly grows with the pool.

    Args:
        folder: of the run.
        matrix: influence of every pair, (n_pool, n_target); without a target on the pool itself.
        selection: the subset.
    """
    rows = selection.indices[np.argsort(selection.ranks, kind="stable")[:SHOWN]]
    own_target = not folder.samples("target").samples.is_file()
    rest = np.setdiff1d(np.arange(matrix.shape[0]), selection.indices)
    features, twins, among = dense_features(folder, "pool"), [None] * len(rows), 0
    if features is not None and len(rest) and len(rows):
        compared = _most_influential(rest, read_array(folder.influence), _BYTES // (4 * features.shape[1]))
        twins, among = _nearest(features, rows, compared), len(compared)
    helped = _helped(matrix.rows(rows), rows if own_target else None)
    samples = {
        str(row): {"targets": targets, "twin": twin}
        for row, targets, twin in zip(rows.tolist(), helped, twins, strict=True)
    }
    reasons = Reasons(samples, among, len(rest))
    reasons.save(folder.reasons)
    return reasons


def _helped(block: np.ndarray, own: np.ndarray | None) -> list[list[list[Any]]]:
    """Of each row of a block of the matrix, (k, n_target), the targets with the largest positive influence.

    None where one score holds for all targets. Samples that are targets themselves, `own` (k,), count not for
    themselves.
    """
    if not block.size or not np.ptp(block, axis=1).any():
        return [[] for _ in block]
    block = block.copy()
    if own is not None:
        block[np.arange(len(own)), own] = -np.inf
    order = np.argsort(-block, axis=1, kind="stable")[:, :_TARGETS]
    return [[[int(j), float(row[j])] for j in some if row[j] > 0] for row, some in zip(block, order, strict=True)]


def _most_influential(rows: np.ndarray, influence: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the pool rows, at least one, those of the highest mean influence, ascending."""
    return np.sort(rows[np.argsort(-influence[rows], kind="stable")[: max(1, most)]])


def _nearest(features: np.ndarray, rows: np.ndarray, others: np.ndarray) -> list[Any]:
    """Of each of the `rows`, that of the `others` with the largest cosine, and the cosine."""
    own = _normalised(features[rows])
    best, place = np.full(len(rows), -np.inf, np.float32), np.zeros(len(rows), np.int64)
    for start in range(0, len(others), _BLOCK):
        some = others[start : start + _BLOCK]
        cosines = own @ _normalised(features[some]).T
        nearest = cosines.argmax(axis=1)
        found = cosines[np.arange(len(rows)), nearest]
        better = found > best
        best[better], place[better] = found[better], some[nearest[better]]
    return [[int(row), round(float(cosine), 4)] for row, cosine in zip(place, best, strict=True)]


def _normalised(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32 (n, d); zeros stay as they are."""
    rows: np.ndarray = np.asarray(features, dtype=np.float32)
    lengths: np.ndarray = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.asarray(rows / lengths)
