"""Estimated influence: entries computed from factors whenever they are read, by compiled kernels or on a device."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from nncift.matrix.cells import Products
from nncift.matrix.compiled import kernels
from nncift.matrix.compiled.factored import LANES, Factors, pack, tower_row_means
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.selectors import indices_of, length


class FactoredMatrix(InfluenceMatrix):
    """Estimated influence by the compiled `kernels`; made by `InfluenceMatrix.from_factors`."""

    def __init__(self, factors: Factors) -> None:
        super().__init__((len(factors.rows), factors.n_columns), self._score)
        self._factors = factors

    def _score(self, rows: Any, columns: Any) -> np.ndarray:
        return kernels.score(self.of_columns(columns), indices_of(rows))

    def of_columns(self, columns: Any) -> Factors:
        """The factors of some columns: a view of whole blocks, else a packed copy."""
        packed, n, whole = self._factors.columns, self._factors.n_columns, LANES
        if (
            isinstance(columns, slice)
            and columns.start % whole == 0
            and (columns.stop % whole == 0 or columns.stop == n)
        ):
            packed = packed[columns.start // whole : -(-columns.stop // whole)]
        else:
            columns = indices_of(columns)
            packed = pack(packed[columns // whole, :, columns % whole])
        return self._factors._replace(columns=packed, n_columns=length(columns))

    def of_rows(self, rows: np.ndarray) -> FactoredMatrix:
        """The matrix of some pool samples, int64 (k,), whose factors are copied."""
        factors = self._factors
        return FactoredMatrix(factors._replace(rows=factors.rows[rows], constants=factors.constants[rows]))

    def coverage_gains(self, rows: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """Fused: no entry is stored."""
        return kernels.coverage_gains(self._factors, *self._checked(rows, covered))

    def row_means(self) -> np.ndarray:
        """For the two-tower form linear in the samples of either side."""
        return super().row_means() if self._factors.n_relu else tower_row_means(self._factors)

    @functools.cached_property
    def _row_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        return kernels.row_statistics(self._factors)

    @property
    def is_inner_product(self) -> bool:
        """Whether it is the two-tower form."""
        return not self._factors.n_relu

    def products(self) -> tuple[Products, None] | None:
        """Those of the two-tower form; the targets' side is copied."""
        rows, constants, packed, n, _, n_relu = self._factors
        columns = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:n]
        return None if n_relu else (Products(rows, constants, columns), None)


class DeviceMatrix(InfluenceMatrix):
    """Estimated influence by torch on a device; made by `InfluenceMatrix.from_factors(..., device=...)`."""

    def __init__(self, factors: Factors, device: str) -> None:
        from nncift.matrix.device import DeviceFactors  # torch, which most runs do without here

        self._factors = DeviceFactors(factors, device)
        super().__init__(
            (len(factors.rows), factors.n_columns), lambda *block: self._factors.score(*block).cpu().numpy()
        )

    def coverage_gains(self, rows: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """Tiles stay on the device."""
        return self._factors.coverage_gains(*self._checked(rows, covered))


def on_device(device: str | None, factors: Factors) -> InfluenceMatrix:
    """The matrix of these factors, computed on a device."""
    on_cpu = device is None or str(device).partition(":")[0] == "cpu"
    return FactoredMatrix(factors) if on_cpu else DeviceMatrix(factors, str(device))
