"""Graph cut: utility of the samples minus their redundancy, in memory that grows with the samples alone.

With u_i = max(0, mean influence of pool sample i over the targets), unit vectors x_i of the features and the similarity
r_ik = (1 + x_i . x_k) / 2, which is an inner product too and never negative,

    f(S) = sum over i in S of u_i - lambda * sum over i, k in S of r_ik.

The redundancy of a sample with the subset is one inner product with the sum of the subset's vectors, so a gain costs
O(d) and nothing is kept of pairs ("graph cut" in submodlib, whose utility is the sum of the similarities to all).

lambda is given in units that keep its meaning over budgets and influence functions: at `redundancy` 1, a subset of the
expected size that is as similar to the pool as the pool to itself costs the mean sample all its utility. Where utility
is similarity to the pool itself, maximising f is then minimising the squared maximum mean discrepancy between subset
and pool (Gretton et al., "A kernel two-sample test", 2012; kernel herding: Chen, Welling and Smola 2010).

f is submodular, and monotone only for a lambda so small that redundancy hardly counts; whether it is, is computed.
"""

from __future__ import annotations

import numpy as np

from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.objectives.feature_kernel import FeatureKernel
from nncift.selection.objectives.table import ObjectiveOptions, checked_weight


class GraphCut:
    """sum over i in S of u_i - lambda * sum over i, k in S of (1 + cosine of the features of i and k) / 2.

    Args:
        matrix: influence, (n_pool, n_target).
        options: `features`, `redundancy` and `expected` are used.

    Raises:
        ConfigError: there are no features of the samples, or `redundancy` is negative or not finite.
    """

    name = "graph-cut"
    submodular = True
    normalised = True

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        options = options or ObjectiveOptions()
        self.n = matrix.shape[0]
        self.kernel = FeatureKernel(options.features, self.n)
        self.utility = np.maximum(matrix.row_means(), 0).astype(np.float64)
        weight = 1.0 if options.redundancy is None else checked_weight("redundancy", options.redundancy)
        similarity = (1 + float(self.kernel.total @ self.kernel.total) / self.n**2) / 2  # mean over all pairs
        self.weight = weight * float(self.utility.mean()) / (2 * max(options.expected, 1.0) * similarity)  # lambda
        self.options: dict[str, float] = {"redundancy": weight, "lambda": self.weight}
        self.monotone = self._is_monotone()
        self.chosen = np.zeros(self.n, bool)
        self._sum = np.zeros(self.kernel.width)  # of the subset's vectors
        self._utility_chosen, self._redundancy = 0.0, 0.0

    def _is_monotone(self) -> bool:
        """Whether even the last sample of the whole pool adds something."""
        if self.weight == 0:
            return True
        with_all = self.n - 0.5 + self.kernel.products(None, self.kernel.total)  # 2 * sum of r_ik, less r_ii
        return bool((self.utility >= self.weight * with_all).all())

    @property
    def value(self) -> float:
        """Value of the subset so far."""
        return self._utility_chosen - self.weight * self._redundancy

    def redundancy(self, candidates: np.ndarray) -> np.ndarray:
        """What the redundancy grows by with each candidate, float64: r_ii + 2 * sum over k in S of r_ik."""
        grows = np.empty(len(candidates))
        size = int(self.chosen.sum())
        for part, rows in self.kernel.blocks(candidates):
            own = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
            grows[part] = (1 + own) / 2 + size + np.einsum("ij,j->i", rows, self._sum, dtype=np.float64)
        return grows

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Marginal gain of each candidate, float64."""
        gains = self.utility[candidates] - self.weight * self.redundancy(candidates)
        gains[self.chosen[candidates]] = 0.0
        return np.asarray(gains)

    def add(self, i: int) -> None:
        """Add sample `i`."""
        if not self.chosen[i]:
            self._redundancy += float(self.redundancy(np.array([i]))[0])
            self._utility_chosen += float(self.utility[i])
            self._sum += self.kernel.rows(np.array([i]))[0]
            self.chosen[i] = True


class GraphCutRelaxation:
    """Modular upper bounds of graph cut, monotone or not (`selection.relaxation.Relaxation`).

    With v_i = (1, x_i) / sqrt(2) redundancy is the squared length of the subset's sum of v_i, a convex function, which
    is nowhere below its tangent: for every vector y, whatever the subset O,

        f(O) <= lambda |y|^2 + sum over i in O of (u_i - 2 lambda v_i . y).

    y follows Frank and Wolfe's method (1956) on the continuous relaxation, from the subset's sum, with exact steps.

    Args:
        objective: the function.
        chosen: a good subset, int64 (k,).
    """

    def __init__(self, objective: GraphCut, chosen: np.ndarray) -> None:
        self._objective, self._weight = objective, objective.weight
        self.n_target = objective.kernel.width  # numbers that a row is made of
        self._utility, self._point = self._sums(chosen, np.ones(len(chosen)))

    @property
    def constant(self) -> float:
        """Bound of the empty subset."""
        return self._weight * float(self._point @ self._point)

    def weights(self, candidates: np.ndarray) -> np.ndarray:
        """What each candidate adds to the bound, float64."""
        products = self._objective.kernel.products(candidates, self._point[1:]) + self._point[0]
        return np.asarray(self._objective.utility[candidates] - self._weight * np.sqrt(2) * products)

    def move(self, rows: np.ndarray, shares: np.ndarray, excess: float) -> None:
        """One step towards the subset with the largest bound."""
        useful = self.weights(rows) > 0
        utility, point = self._sums(rows[useful], shares[useful])
        step, more = point - self._point, utility - self._utility
        curvature = 2 * self._weight * float(step @ step)
        slope = more - 2 * self._weight * float(self._point @ step)
        rate = 1.0 if curvature <= slope else max(slope / curvature, 0.0)
        self._point = self._point + rate * step
        self._utility += rate * more

    def _sums(self, rows: np.ndarray, shares: np.ndarray) -> tuple[float, np.ndarray]:
        """Utility and sum of v_i of the samples, each in part."""
        total = np.zeros(self.n_target)
        for part, vectors in self._objective.kernel.blocks(rows):
            total += shares[part] @ vectors.astype(np.float64)
        point = np.concatenate([[shares.sum()], total]) / np.sqrt(2)
        return float(shares @ self._objective.utility[rows]), point
