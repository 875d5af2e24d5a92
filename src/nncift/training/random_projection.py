"""A random projection of per-sample gradients: a count sketch with random signs and balanced buckets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

Shapes = Mapping[str, tuple[int, int]]


class SignSketch:
    """A count sketch with random signs and balanced buckets.

    Coordinate k of the projection is the sum of s_e g_e over the entries e of the gradient that fall into bucket
    k, with independent random signs s_e. The expected inner product of two projections is that of the gradients,
    and its variance is that of a dense projection with random signs: the sum of (g_e h_f)^2 + g_e h_e g_f h_f over
    pairs e, f that share a bucket, about (|g|^2 |h|^2 + <g, h>^2) / dimension. It costs one multiplication and
    one addition per entry, and stores one sign per entry. A gradient with no more entries than
    `dimension` is preserved exactly.

    Entries are assigned to the buckets cyclically. A layer's rows are padded to a length coprime to `dimension`, so
    that entries of one row or one column collide as rarely as possible: outlier features are large columns.

    Args:
        shapes: (out, in) of each layer's weight.
        dimension: width of the projection.
        seed: of the signs.
        device: of the signs, float32.

    Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams" (2002); Weinberger et al.,
    "Feature hashing for large scale multitask learning" (2009).
    """

    def __init__(self, shapes: Shapes, dimension: int, *, seed: int = 0, device: Any = "cpu") -> None:
        self.dimension = dimension
        self.widths: dict[str, int] = {}
        self._start: dict[str, int] = {}
        self._signs: dict[str, torch.Tensor] = {}
        total = 0
        for number, (name, (rows, columns)) in enumerate(shapes.items()):
            width = next(w for w in range(columns, columns + dimension + 1) if math.gcd(w, dimension) == 1)
            bits = np.random.Generator(np.random.PCG64([seed, number])).bytes((rows * width + 7) // 8)
            signs = np.unpackbits(np.frombuffer(bits, np.uint8))[: rows * width].astype(np.float32) * 2 - 1
            self.widths[name], self._start[name] = width, total % dimension
            self._signs[name] = torch.from_numpy(signs).view(rows, width).to(device)
            total += rows * width

    def gradients(self, name: str, g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """A layer's gradients of each sample with padded rows, (n, out, width) float32."""
        padded = pad(x.float(), (0, self.widths[name] - x.shape[-1]))
        return torch.bmm(g.float().transpose(1, 2), padded)

    def add(self, features: torch.Tensor, name: str, gradients: torch.Tensor) -> None:
        """Add the projection of a layer's gradients (n, out, width), which are overwritten, to features (n, d)."""
        signed = gradients.mul_(self._signs[name]).flatten(1)
        start, size = self._start[name], signed.shape[1]
        head = min(self.dimension - start, size)
        features[:, start : start + head] += signed[:, :head]
        rounds = (size - head) // self.dimension
        whole = signed[:, head : head + rounds * self.dimension]
        features += whole.reshape(len(whole), rounds, self.dimension).sum(1)
        rest = signed[:, head + rounds * self.dimension :]
        features[:, : rest.shape[1]] += rest
