"""A factored influence matrix on a GPU; equal to the CPU kernels up to float32 rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.matrix.compiled.factored import Factors
from nncift.matrix.selectors import TILE, row_slices

if TYPE_CHECKING:
    import torch


class DeviceFactors:
    """`Factors` on a device; rows and columns are chosen as `selectors.bounded` returns them."""

    def __init__(self, factors: Factors, device: str) -> None:
        import torch

        columns = factors.columns.transpose(0, 2, 1).reshape(-1, factors.columns.shape[1])[: factors.n_columns]
        self._rows, self._constants, self._columns = (
            torch.from_numpy(np.ascontiguousarray(part)).to(device)
            for part in (factors.rows, factors.constants, columns)
        )
        self._n_positive, self._n_relu = factors.n_positive, factors.n_relu

    def score(self, rows: Any, columns: Any) -> torch.Tensor:
        """Entries float32 (rows, columns), on the device."""
        import torch

        rows, columns = (
            part if isinstance(part, slice) else torch.from_numpy(part).to(self._rows.device)
            for part in (rows, columns)
        )
        left, right = self._rows[rows], self._columns[columns]
        out = torch.empty((len(left), len(right)), dtype=torch.float32, device=right.device)
        step = max(1, (TILE << 3) // max(1, right.numel()))  # rows at a time: 128 MiB of hidden units
        p, n_relu = self._n_positive, self._n_relu
        for top in range(0, len(left), step):
            part = left[top : top + step, None]
            out[top : top + step] = torch.maximum(part[..., :p], right[:, :p]).sum(-1)
            out[top : top + step] += torch.minimum(part[..., p:n_relu], right[:, p:n_relu]).sum(-1)
        out += left[:, n_relu:] @ right[:, n_relu:].T
        return out.add_(self._constants[rows][:, None])

    def coverage_gains(self, rows: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """As `InfluenceMatrix.coverage_gains`; tiles stay on the device."""
        import torch

        threshold = torch.from_numpy(covered).to(self._rows.device)
        gains = np.empty(len(rows), dtype=np.float64)
        for part in row_slices(len(rows), len(self._columns)):
            entries = self.score(rows[part], slice(None))
            gains[part] = (entries - threshold).clamp_(min=0).sum(1, dtype=torch.float64).cpu().numpy()
        return gains
