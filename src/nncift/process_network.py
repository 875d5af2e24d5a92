"""Our network: two towers of radial units around the labelled samples, with weights in closed form.

The hidden units of a side are its labelled samples, the output is bilinear, and all weights follow from a Gaussian
process (`pair_process`): no learning rate, no epochs, and as much weight as there is evidence for. The posterior tells
what the labels have not told: `uncertainty`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncift.features import Features
from nncift.labelled_grid import LabelledGrid, smooth_scales
from nncift.matrix import InfluenceMatrix
from nncift.pair_process import Weights, learn_weights, solve
from nncift.pairs import LabelledPairs, Probes
from nncift.projection import Projection
from nncift.radial import RadialLayer, block_kernels, kernel, same_samples

RANK = 96
MOST_ROWS, MOST_COLUMNS = 4096, 1024  # labelled samples that are learned from
_REFERENCE = 1024  # samples of a side on which the towers are cut to their rank
_PROBED = 8192  # samples at a time

_log = logging.getLogger("nncift")


class ProcessNetwork:
    """Learns from labelled pairs in any pattern; its prediction is unit (F(x) . G(y) s(y) + c(y)) + mean.

    Args:
        pointwise: the influence is one score for each pool sample, whatever the target.
        seed: which pairs the marginal likelihood is taken on.

    Attributes:
        pool: features of a pool sample to F(x), (rank,).
        target: features of a target to G(y), (rank,).
        level: features of a target to log s(y) and c(y), (2,).
        numbers: mean and unit of the influence, and the noise of a labelled sample's profile and level.
    """

    pool: RadialLayer
    target: RadialLayer
    level: RadialLayer

    def __init__(self, *, pointwise: bool = False, seed: int = 0) -> None:
        self.pointwise, self.seed = pointwise, seed
        self.numbers: dict[str, float] = {}

    def fit(self, pool: Features, target: Features, labels: LabelledPairs) -> None:
        """Learn; samples without a label help to scale the features."""
        grid = LabelledGrid.of(pool, target, at_most(labels, self.seed), pointwise=self.pointwise)
        weights = learn_weights(grid, seed=self.seed)
        solved = solve(weights, grid)
        wide = _pool_layer(weights, grid, solved), _target_layer(weights, grid)
        cut = _cut(wide[0](_reference(pool)), wide[1](_reference(target)), RANK)
        self.pool, self.target = (layer.times(matrix) for layer, matrix in zip(wide, cut, strict=True))
        self.level = _level_layer(weights, grid, solved)
        self.numbers = {"mean": grid.mean, "unit": grid.unit, **_noise(weights, grid)}
        self.__dict__.pop("_factors", None)  # of an earlier fit

    def predict(self, pool: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Influence of n pairs: (n, width), (n, width) -> (n,) float32."""
        scale, level = self._level(target)
        inner = np.einsum("nk,nk->n", self.pool(pool), self.target(target))
        return np.asarray(inner * scale + level, dtype=np.float32)

    def estimate(
        self, pool: Any, target: Any, *, device: str | None = None, optimism: float = 0.0, probes: Probes | None = None
    ) -> InfluenceMatrix:
        """The influence of all pairs, computed where it is looked at.

        Args:
            pool: features of n samples.
            target: features of m targets.
            device: where pairs are scored.
            optimism: add so many standard deviations of what is not known of a pool sample.
            probes: exact influence of every pool sample on a few targets, which completes what the network says.
        """
        scale, level = self._level(target)
        left, right = self.pool(pool), self.target(target)
        if probes is not None:
            more = self._told_by_probes(pool, target, probes)
            left, right = np.concatenate([left, more[0]], axis=1), np.concatenate([right, more[1]], axis=1)
        if optimism:
            spread = self.uncertainty(pool)[:, None] / self.numbers["unit"]
            left = np.concatenate([left, optimism * spread], axis=1)
            right = np.concatenate([right, np.ones((len(right), 1))], axis=1)
        return InfluenceMatrix.from_towers(
            left.astype(np.float32),
            (right * scale[:, None]).astype(np.float32),
            pool_bias=np.zeros(len(left), dtype=np.float32),
            target_bias=level.astype(np.float32),
            device=device,
        )

    def _level(self, target: Any) -> tuple[np.ndarray, np.ndarray]:
        """Of each target s(y) in units of the influence, and c(y) likewise with the mean: (n,), (n,)."""
        values, unit = self.level(target), self.numbers["unit"]
        return unit * np.exp(values[:, 0]), unit * values[:, 1] + self.numbers["mean"]

    def uncertainty(self, pool: Any) -> np.ndarray:
        """Standard deviation of a pool sample's influence on a typical target, given the labels, (n,) float64.

        The label pattern is taken for a full grid, and the influence's profile over targets for one of the typical
        spread: an order among samples, not a calibrated error of each pair.
        """
        profile, level = self._open(pool)
        return np.asarray(np.sqrt(profile * self.numbers["profile"] + level) * self.numbers["unit"])

    def _open(self, pool: Any) -> tuple[np.ndarray, np.ndarray]:
        """Variance that the labels leave in each sample's profile and in its level, (n,), (n,)."""
        prior = self.pool.log_weights.exp().sum(1)
        out = np.empty((2, len(pool)))
        step = max((1 << 24) // (len(self.pool.landmarks) * self.pool.log_weights.shape[1]), 1)
        for start in range(0, len(pool), step):
            told = self._told(self.pool.coordinates(pool[start : start + step]))
            for k, part in enumerate(told):
                out[k, start : start + step] = (prior[k] - part.square().sum(0)).clamp(min=0).numpy()
        return out[0], out[1]

    def _told(self, x: Tensor) -> list[Tensor]:
        """For profile and level, (labelled, n) numbers whose squares sum up to the variance that the labels take."""
        return [
            torch.linalg.solve_triangular(factor, values.T, upper=False)
            for factor, values in zip(self._factors, self.pool.kernels(x), strict=True)
        ]

    @functools.cached_property
    def _factors(self) -> list[Tensor]:
        """Cholesky factors of the labelled samples' covariance, noise included."""
        among = self.pool.kernels(self.pool.landmarks)
        noise = self.numbers["profile_noise"], self.numbers["level_noise"]
        identity = torch.eye(len(self.pool.landmarks), dtype=torch.float64)
        return [torch.linalg.cholesky(k + n * identity) for k, n in zip(among, noise, strict=True)]

    def choose_probes(self, target: Any, count: int) -> np.ndarray:
        """The targets whose exact influence tells most of a new sample's influence on all: (count,) int64, greedily.

        Args:
            target: features of all targets; of more than 1,024, some are looked at.
            count: how many.
        """
        looked_at = np.unique(np.linspace(0, len(target) - 1, _REFERENCE).astype(np.int64))
        scale = torch.from_numpy(self._level(target)[0][looked_at] / self.numbers["unit"])
        y = self.target.coordinates(target[looked_at])
        # Of a typical new sample: half of what the prior leaves open, as after a few labels.
        open_ = self.pool.log_weights.exp().sum(1) / 2
        left = (open_[0] * self._target_kernel(y, y) + open_[1]) * scale[:, None] * scale
        return np.asarray(looked_at[_most_telling(left, self.numbers["noise"] * scale.square(), count)])

    def choose_samples(self, pool: Any, count: int) -> np.ndarray:
        """The samples whose labels would tell most of the influence of all of these, (count,) int64, greedily."""
        coordinates = self.pool.coordinates(pool[:])
        blocks = block_kernels(coordinates, coordinates, self.pool.projection.slices)
        left = torch.zeros((len(coordinates), len(coordinates)), dtype=torch.float64)
        shares = self.numbers["profile"], 1.0
        for weights, told, share in zip(self.pool.log_weights, self._told(coordinates), shares, strict=True):
            left += share * (kernel(blocks, weights) - told.T @ told)
        noise = shares[0] * self.numbers["profile_noise"] + self.numbers["level_noise"]
        return _most_telling(left, torch.full((len(left),), noise, dtype=torch.float64), count)

    def _target_kernel(self, y: Tensor, z: Tensor) -> Tensor:
        """Covariance of the profile between targets, given their coordinates: (n, m)."""
        smooth = kernel(block_kernels(y, z, self.target.projection.slices), self.target.log_weights[0])
        return smooth + self.numbers["target_own"] * same_samples(y, z)

    def _told_by_probes(self, pool: Any, target: Any, probes: Probes) -> tuple[np.ndarray, np.ndarray]:
        """What probes add to both towers: (n, k + 1), (m, k + 1).

        Each sample's residuals at the probes are completed by its own open variance, times the kernel over targets.
        """
        chosen = probes.columns
        y = self.target.coordinates(target[chosen])
        scale, level = (value[chosen] for value in self._level(target))
        own = self.pool(pool) @ (self.target(target[chosen]) * scale[:, None]).T + level
        residual = torch.from_numpy((probes.influence - own) / scale)
        profile, main = (torch.from_numpy(part)[:, None, None] for part in self._open(pool))
        among = self._target_kernel(y, y)
        noise = self.numbers["noise"] * torch.eye(len(chosen), dtype=torch.float64)
        weight = torch.empty_like(residual)
        for some in torch.split(torch.arange(len(residual)), _PROBED):
            covariance = main[some] + profile[some] * among + noise
            weight[some] = torch.linalg.solve(covariance, residual[some])
        left = torch.cat([profile[:, :, 0] * weight, main[:, :, 0] * weight.sum(1, keepdim=True)], dim=1)
        right = np.ones((len(target), len(chosen) + 1))
        for start in range(0, len(target), _PROBED):
            part = self.target.coordinates(target[start : start + _PROBED])
            right[start : start + _PROBED, :-1] = self._target_kernel(part, y).numpy()
        return left.numpy(), right

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays (float32) and JSON-able facts that `load` takes."""
        projections = [self.pool.projection, self.target.projection]
        shared = projections[0] is projections[1]
        arrays = {} if shared else projections[1].state("target.projection")
        arrays |= projections[0].state("pool.projection")
        arrays |= self.pool.state("pool") | self.target.state("target") | self.level.state("level")
        del arrays["level.landmarks"]  # the target's
        columns = [[[part.start, part.stop] for part, _ in p.weight] for p in projections]
        return arrays, {"numbers": self.numbers, "columns": columns, "shared": shared}

    def load(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """What `state` gave."""
        projection = Projection.from_state(arrays, "pool.projection", facts["columns"][0])
        other = projection
        if not facts["shared"]:
            other = Projection.from_state(arrays, "target.projection", facts["columns"][1])
        self.pool = RadialLayer.from_state(arrays, "pool", projection)
        self.target = RadialLayer.from_state(arrays, "target", other)
        self.level = RadialLayer.from_state({**arrays, "level.landmarks": arrays["target.landmarks"]}, "level", other)
        self.numbers = dict(facts["numbers"])
        self.__dict__.pop("_factors", None)


def _most_telling(covariance: Tensor, noise: Tensor, count: int) -> np.ndarray:
    """What to measure, one after the other, so that least variance is left in all: (count,) int64."""
    left = covariance.clone()
    chosen: list[int] = []
    for _ in range(min(count, len(left))):
        told = left.square().sum(0) / (left.diagonal() + noise)
        told[chosen] = -1
        best = int(told.argmax())
        chosen.append(best)
        left -= torch.outer(left[:, best], left[best]) / (left[best, best] + noise[best])
    return np.array(chosen, dtype=np.int64)


def at_most(labels: LabelledPairs, seed: int) -> LabelledPairs:
    """The labels, without some of the samples where there are more than can be learned from."""
    for name, index, most in (
        ("pool samples", labels.pool_index, MOST_ROWS),
        ("targets", labels.target_index, MOST_COLUMNS),
    ):
        distinct = np.unique(index)
        if len(distinct) > most:
            _log.warning("network: it learns from %d of the %d labelled %s", most, len(distinct), name)
            kept = np.random.default_rng(seed).permutation(distinct)[:most]
            return at_most(labels.take(np.isin(index, kept)), seed)
    return labels


def _reference(side: Features) -> np.ndarray:
    """Features of some samples, evenly spread."""
    return side[np.unique(np.linspace(0, len(side) - 1, _REFERENCE).astype(np.int64))]


def _pool_layer(weights: Weights, grid: LabelledGrid, solved: Tensor) -> RadialLayer:
    """The pool's tower before it is cut: profile over the labelled targets, level, and the cosines' half."""
    scaled = solved * grid.scale
    n, m, width = len(grid.pool), len(grid.target), grid.projections[0].width
    matrices, units = torch.zeros((2, n, m + 1 + width)).double(), torch.zeros((width, m + 1 + width)).double()
    matrices[0, :, :m], matrices[1, :, m] = scaled, scaled.sum(1)
    beta = torch.einsum("bij,ij->b", grid.cosine, scaled) * (2 * weights["cosine"]).exp() / grid.cosine_spread
    for block, b in zip(grid.shared_blocks, beta, strict=True):
        units[block, block.start + m + 1 : block.stop + m + 1] = b * torch.eye(block.stop - block.start).double()
    constant = torch.zeros(m + 1 + width).double()
    constant[m] = -(beta * grid.cosine_mean).sum()
    own = matrices[0] * weights["profile_own"].exp() + matrices[1] * weights["pool_own"].exp()
    log_weights = torch.stack([weights["pool"], weights["pool_main"]])
    return RadialLayer(grid.projections[0], grid.pool, log_weights, matrices, own, units, constant)


def _target_layer(weights: Weights, grid: LabelledGrid) -> RadialLayer:
    """The targets' tower before it is cut: kernels to the labelled targets, 1, and the cosines' half."""
    m, width = len(grid.target), grid.projections[1].width
    outputs = m + 1 + grid.projections[0].width
    matrices, units = torch.zeros((1, m, outputs)).double(), torch.zeros((width, outputs)).double()
    matrices[0, :, :m] = torch.eye(m)
    for block in grid.shared_blocks:
        units[block, block.start + m + 1 : block.stop + m + 1] = torch.eye(block.stop - block.start).double()
    constant = torch.zeros(outputs).double()
    constant[m] = 1
    own = matrices[0] * weights["target_own"].exp()
    return RadialLayer(grid.projections[1], grid.target, weights["target"][None], matrices, own, units, constant)


def _level_layer(weights: Weights, grid: LabelledGrid, solved: Tensor) -> RadialLayer:
    """Logarithm of s(y), and c(y)."""
    mean, smooth, left = smooth_scales(grid)
    m, blocks = len(grid.target), len(grid.among_targets)
    matrices, own = torch.zeros((2, m, 2)).double(), torch.zeros((m, 2)).double()
    matrices[0, :, 0], matrices[1, :, 1] = smooth, solved.sum(0)
    own[:, 0], own[:, 1] = left, solved.sum(0) * weights["mean_own"].exp()
    log_weights = torch.stack([torch.full((blocks,), 1 / blocks).double().log(), weights["target_main"]])
    units = torch.zeros((grid.projections[1].width, 2)).double()
    return RadialLayer(
        grid.projections[1], grid.target, log_weights, matrices, own, units, torch.tensor([mean, 0.0]).double()
    ).times(torch.eye(2).double())


def _cut(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[Tensor, Tensor]:
    """P and Q, (p, rank), such that (a P) (b Q)^T is the best approximation of a b^T of that rank."""
    left, right = torch.from_numpy(a.T @ a), torch.from_numpy(b.T @ b)
    values, directions = torch.linalg.eigh(right)
    kept = values > 1e-10 * values[-1].clamp(min=1e-30)
    values, directions = values[kept], directions[:, kept]
    root = directions * values.sqrt()
    strength, turn = torch.linalg.eigh(root.T @ left @ root)
    turn = turn[:, -rank:][:, strength[-rank:] > 1e-12 * strength[-1].clamp(min=1e-30)]
    # Both sides at like size, since they are kept as float32.
    size = strength[-turn.shape[1] :].clamp(min=1e-30).pow(0.25) if turn.shape[1] else torch.ones(0).double()
    return root @ turn / size, directions / values.sqrt() @ turn * size


def _noise(weights: Weights, grid: LabelledGrid) -> dict[str, float]:
    """What the labels leave open of a labelled sample's level and profile, as noise on either.

    A profile is seen through noise in each direction of the kernel over targets; the directions count by their size.
    """
    noise, per_row = float(weights["noise"].exp()), len(grid.value) / len(grid.pool)
    targets = kernel(grid.among_targets, weights["target"]) + weights["target_own"].exp() * torch.eye(len(grid.target))
    strength = float(targets.square().sum() / targets.diagonal().sum().clamp(min=1e-12))
    seen = max(strength * per_row / len(grid.target), 1e-12)
    return {
        "noise": noise,
        "target_own": float(weights["target_own"].exp()),
        "profile": float(targets.diagonal().mean()),
        "profile_noise": min(noise / seen, 1e6) + float(weights["profile_own"].exp()) + 1e-9,
        "level_noise": noise / per_row + float(weights["pool_own"].exp()) + 1e-9,
    }
