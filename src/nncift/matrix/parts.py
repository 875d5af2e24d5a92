"""Some of the targets of an influence matrix, as a matrix of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from nncift.matrix.estimated import FactoredMatrix
from nncift.matrix.matrix import InfluenceMatrix


def of_targets(matrix: InfluenceMatrix, columns: np.ndarray) -> InfluenceMatrix:
    """Influence of every pool sample on the targets `columns`, int64 (k,): computed as that of all, none is stored."""
    if type(matrix) is FactoredMatrix:
        return FactoredMatrix(matrix.of_columns(columns))

    def function(rows: Any, some: Any) -> np.ndarray:
        return matrix.block(rows, columns[some])

    return InfluenceMatrix((matrix.shape[0], len(columns)), function)
