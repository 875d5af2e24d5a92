"""x . M x of many vectors, compiled: each in the same order of sums, whatever the others are, unlike a BLAS product."""

from __future__ import annotations

import numpy as np

from nncift.matrix.compiled.factored import compiled


def quadratic_forms(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """X . M x of each row x.

    Args:
        rows: float32 (n, d).
        matrix: M, float64 (d, d), C-contiguous.

    Returns:
        float64 (n,).
    """
    out = np.empty(len(rows))
    _quadratic_forms(rows, matrix, out)
    return out


@compiled
def _quadratic_forms(rows: np.ndarray, matrix: np.ndarray, out: np.ndarray) -> None:
    d = rows.shape[1]
    product = np.empty(d)
    for i in range(rows.shape[0]):
        product[:] = 0.0
        for j in range(d):
            x = np.float64(rows[i, j])
            line = matrix[j]
            for k in range(d):  # vectorised: no sum is reordered
                product[k] += x * line[k]
        total = 0.0
        for k in range(d):
            total += rows[i, k] * product[k]
        out[i] = total
