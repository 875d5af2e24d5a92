"""Modular upper bounds of the built-in objectives, which approach the best value within a budget from above.

A modular function that no subset's value exceeds is maximised exactly, so its maximum bounds the best value. A family
of them, searched for the smallest maximum, bounds it far more closely than the gains over greedy's subsets do:

facility location: for every vector u of at least the coverage at the start, whatever the subset O,

    value(O) <= sum over j of (u[j] - start[j]) + sum over i in O, over j of max(0, s[i, j] - u[j]),

the Lagrangian relaxation of "each target counts its best sample alone" (Cornuejols, Fisher and Nemhauser, "Location of
bank accounts to optimize float", 1977). Relevance is modular and stays as it is.
Convex in u: minimised by subgradients, each deflected by the one before (Camerini, Fratta and Maffioli, 1975), with
Polyak's step towards the value that greedy reached. At the start u is the coverage by the first half of the subset,
since at the minimum most targets have one sample above u, and greedy's targets have their best and others. For a sparse
matrix u is never below its floor, so that no visited entry that is left out counts; how much entries that were not
visited may exceed u is added to the bound, and u itself does not depend on the audit of these.

concave cover: the tangents of the roots at any coverage. The coverage follows Frank and Wolfe's method (1956) on the
continuous relaxation, from that of the subset.

Each step costs a pass over the matrix, and the rows of one subset.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.selectors import row_slices
from nncift.selection.objectives.built_in import COVERAGE
from nncift.selection.objectives.coverage import ConcaveCover, FacilityLocation
from nncift.selection.objectives.graph_cut import GraphCut, GraphCutRelaxation
from nncift.selection.objectives.log_determinant import LogDeterminant, LogDeterminantRelaxation
from nncift.selection.objectives.table import Objective

_STEP, _DEFLECTION, _PATIENCE = 0.7, 0.5, 2  # of Polyak's step; steps without a smaller bound before it is halved
_LEAST_COVERAGE = 1e-3  # of the mean: the root has no tangent at 0


class Relaxation(Protocol):
    """A modular upper bound of an objective, and steps to one with a smaller maximum."""

    n_target: int  # entries that a pass reads of a row of the matrix

    @property
    def constant(self) -> float:
        """Bound of the empty subset."""

    def weights(self, candidates: np.ndarray) -> np.ndarray:
        """What each candidate (int64) adds to the bound, float64."""

    def move(self, rows: np.ndarray, shares: np.ndarray, excess: float) -> None:
        """Go to another bound.

        Args:
            rows: the subset with the largest bound, int64 (k,).
            shares: the part of each that counts, above 0 and at most 1, float64 (k,).
            excess: that bound less the value reached.
        """


class FacilityLocationRelaxation:
    """Of facility location and what adds modular terms to it.

    Args:
        matrix: influence, (n_pool, n_target).
        start: coverage of each target by the empty subset, float32 (n_target,).
        modular: what each sample adds besides, float64 (n_pool,).
        chosen: a good subset, best first, int64 (k,).
    """

    def __init__(self, matrix: InfluenceMatrix, start: np.ndarray, modular: np.ndarray, chosen: np.ndarray) -> None:
        self._matrix, self._start, self._modular = matrix, start, modular
        self.n_target = matrix.row_width
        self._least = start if matrix.floor is None else np.maximum(start, matrix.floor)
        self._covered = self._least.copy()  # u
        matrix.cover(chosen[: len(chosen) // 2], self._covered)
        self._direction = np.zeros(matrix.shape[1])
        self._step, self._smallest, self._waited = _STEP, float("inf"), 0

    @property
    def constant(self) -> float:
        """Bound of the empty subset."""
        covered = float(np.subtract(self._covered, self._start, dtype=np.float64).sum())
        return covered + self._matrix.unseen(self._covered)

    def weights(self, candidates: np.ndarray) -> np.ndarray:
        """What each candidate adds to the bound, float64."""
        return np.asarray(self._matrix.coverage_gains(candidates, self._covered) + self._modular[candidates])

    def move(self, rows: np.ndarray, shares: np.ndarray, excess: float) -> None:
        """One subgradient step."""
        excess = max(excess - self._matrix.unseen(self._covered), 0.0)
        self._waited = 0 if excess < self._smallest else self._waited + 1
        self._smallest = min(self._smallest, excess)
        if self._waited == _PATIENCE:
            self._step, self._waited = self._step / 2, 0
        slope = 1 - self._matrix.count_above(rows, shares, self._covered)
        self._direction = slope + _DEFLECTION * self._direction
        at_edge = (self._covered <= self._least) & (self._direction > 0)
        step = np.where(at_edge, 0.0, self._direction)
        if (length := float(step @ step)) > 0:
            moved = self._covered - self._step * excess / length * step
            self._covered = np.maximum(moved, self._least).astype(np.float32)


class ConcaveCoverRelaxation:
    """Of the concave cover.

    Args:
        matrix: influence, (n_pool, n_target).
        start: coverage of each target by the empty subset, float64 (n_target,).
        chosen: a good subset, int64 (k,).
    """

    def __init__(self, matrix: InfluenceMatrix, start: np.ndarray, chosen: np.ndarray) -> None:
        self.n_target = matrix.shape[1]
        self._matrix, self._start, self._steps = matrix, start, 0
        self._set(self._sum(chosen, np.ones(len(chosen))))

    @property
    def constant(self) -> float:
        """Bound of the empty subset."""
        roots = np.sqrt(self._covered)
        return float((roots + (self._start - self._covered) / (2 * roots) - np.sqrt(self._start)).sum())

    def weights(self, candidates: np.ndarray) -> np.ndarray:
        """What each candidate adds to the bound, float64."""
        slopes = 1 / (2 * np.sqrt(self._covered))
        weights = np.empty(len(candidates))
        for part in row_slices(len(candidates), self.n_target):
            weights[part] = np.maximum(self._matrix.rows(candidates[part]), 0) @ slopes
        return weights

    def move(self, rows: np.ndarray, shares: np.ndarray, excess: float) -> None:
        """One step of Frank and Wolfe's."""
        self._steps += 1
        rate = 2 / (self._steps + 2)
        self._set((1 - rate) * self._covered + rate * self._sum(rows, shares))

    def _sum(self, rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
        total = self._start.copy()
        for part in row_slices(len(rows), self.n_target):
            total += shares[part] @ np.maximum(self._matrix.rows(rows[part]), 0)
        return total

    def _set(self, covered: np.ndarray) -> None:
        least = max(_LEAST_COVERAGE * float(covered.mean()), float(np.finfo(np.float32).tiny))
        self._covered = np.maximum(covered, least)


def relaxation_of(objective: Objective, chosen: np.ndarray) -> Relaxation | None:
    """The relaxation of a built-in objective; None of others, of those derived from a built-in one too.

    Args:
        objective: with the subset inside or without.
        chosen: a good subset, best first, int64 (k,).
    """
    if type(objective) is ConcaveCover:
        return ConcaveCoverRelaxation(objective.matrix, objective.start, chosen)
    if type(objective) is GraphCut:
        return GraphCutRelaxation(objective, chosen)
    if type(objective) is LogDeterminant:
        return LogDeterminantRelaxation(objective, chosen)
    if type(objective) in COVERAGE:
        assert isinstance(objective, FacilityLocation)
        return FacilityLocationRelaxation(objective.matrix, objective.start, objective.modular_alone, chosen)
    return None
