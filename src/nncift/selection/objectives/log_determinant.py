"""Log-determinant: the volume that the subset's feature vectors span, each as long as its sample is useful.

With u_i = max(0, mean influence of pool sample i over the targets) and unit vectors x_i of the features,

    f(S) = log det(I + Z Z^T), Z with the rows z_i = sqrt(u_i / mean u) * x_i for i in S:

the determinantal point process with quality and diversity (Kulesza and Taskar, "Determinantal point processes for
machine learning", 2012, section 3.1), as submodlib's LogDeterminant with lambda 1. A sample is worth little beside
those that are like it, and more where it is useful; f is monotone and submodular whatever the features.

By det(I + Z Z^T) = det(I + Z^T Z) only a d x d matrix is kept, M = (I + Z^T Z)^-1, updated for each sample (Sherman and
Morrison 1950): a gain is log(1 + z_i . M z_i), O(d^2), whatever the size of the subset. Vectors of more than `WIDEST`
numbers are projected to as many at random, which keeps cosines up to about 0.04.
"""

from __future__ import annotations

import numpy as np

from nncift.matrix.compiled.quadratic_forms import quadratic_forms
from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.objectives.feature_kernel import FeatureKernel
from nncift.selection.objectives.table import ObjectiveOptions

WIDEST = 512


class LogDeterminant:
    """log det(I + K_S), K_ik = sqrt(u_i u_k) / mean u * cosine of the features of i and k.

    Args:
        matrix: influence, (n_pool, n_target).
        options: `features` is used.

    Raises:
        ConfigError: there are no features of the samples.
    """

    name = "log-determinant"
    monotone = True
    submodular = True
    normalised = True

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        options = options or ObjectiveOptions()
        self.options: dict[str, float] = {}
        self.n, self.value = matrix.shape[0], 0.0
        self.kernel = FeatureKernel(options.features, self.n, widest=WIDEST)
        utility = np.maximum(matrix.row_means(), 0).astype(np.float64)
        mean = float(utility.mean())
        self.quality = utility / mean if mean > 0 else utility  # the square of a vector's length
        self._inverse = np.eye(self.kernel.width)  # M
        self._chosen = np.zeros(self.n, bool)

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Marginal gain of each candidate, float64."""
        gains = np.empty(len(candidates))
        for part, rows in self.kernel.blocks(candidates):
            gains[part] = quadratic_forms(rows, self._inverse)
        gains = np.log1p(np.maximum(gains, 0) * self.quality[candidates])
        gains[self._chosen[candidates]] = 0.0
        return np.asarray(gains)

    def add(self, i: int) -> None:
        """Add sample `i`."""
        if not self._chosen[i]:
            self.value += float(self.gains(np.array([i]))[0])
            row = np.sqrt(self.quality[i]) * self.kernel.rows(np.array([i]))[0].astype(np.float64)
            image = self._inverse @ row
            self._inverse -= np.outer(image, image) / (1 + row @ image)
            self._chosen[i] = True


class LogDeterminantRelaxation:
    """Modular upper bounds of the log-determinant (`selection.relaxation.Relaxation`).

    log det(I + sum over i of w_i z_i z_i^T) is concave in the weights w, so its tangent at any w bounds it from above,
    as for D-optimal designs: with A the matrix there, whatever the subset O,

        f(O) <= log det A + trace(A^-1) - d + sum over i in O of z_i . A^-1 z_i.

    w follows Frank and Wolfe's method (1956), from the subset.

    Args:
        objective: the function.
        chosen: a good subset, int64 (k,).
    """

    def __init__(self, objective: LogDeterminant, chosen: np.ndarray) -> None:
        self.n_target = objective.kernel.width**2  # operations of a row
        self._objective, self._steps = objective, 0
        self._set(self._sum(chosen, np.ones(len(chosen))))

    def _set(self, matrix: np.ndarray) -> None:
        """A, less the identity."""
        values, vectors = np.linalg.eigh(matrix)
        values = 1 + np.maximum(values, 0)
        self._matrix, self._inverse = matrix, np.ascontiguousarray(vectors / values @ vectors.T)
        self.constant = float(np.log(values).sum() + (1 / values).sum() - len(values))

    def weights(self, candidates: np.ndarray) -> np.ndarray:
        """What each candidate adds to the bound, float64."""
        weights = np.empty(len(candidates))
        for part, rows in self._objective.kernel.blocks(candidates):
            weights[part] = quadratic_forms(rows, self._inverse)
        return np.asarray(np.maximum(weights, 0) * self._objective.quality[candidates])

    def move(self, rows: np.ndarray, shares: np.ndarray, excess: float) -> None:
        """One step of Frank and Wolfe's."""
        self._steps += 1
        rate = 2 / (self._steps + 2)
        self._set((1 - rate) * self._matrix + rate * self._sum(rows, shares))

    def _sum(self, rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
        total = np.zeros((self._objective.kernel.width,) * 2)
        for part, vectors in self._objective.kernel.blocks(rows):
            weights = shares[part] * self._objective.quality[rows[part]]
            total += (vectors.T * weights) @ vectors.astype(np.float64)
        return total
