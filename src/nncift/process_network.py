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
from nncift.posterior import Posterior
from nncift.projection import Projection
from nncift.radial import RadialLayer, kernel

RANK = 96
MOST_ROWS, MOST_COLUMNS = 4096, 1024  # labelled samples that are learned from
_REFERENCE = 1024  # samples of a side on which the towers are cut to their rank

_log = logging.getLogger("nncift")


class ProcessNetwork:
    """Learns from labelled pairs in any pattern; its prediction is unit (F(x) . G(y) s(y) + c(y)) + mean.

    With a prior, what that says of the pair stands beside F(x) . G(y), as far as the labels bear it out.

    Args:
        pointwise: the influence is one score for each pool sample, whatever the target.
        seed: which pairs the marginal likelihood is taken on.

    Attributes:
        pool: features of a pool sample to F(x), (rank,).
        target: features of a target to G(y), (rank,).
        level: features of a target to log s(y) and c(y), (2,).
        numbers: mean and unit of the influence, and the noise of a labelled sample's profile and level.
        prior: a network that learned before, on other data or another influence.
    """

    pool: RadialLayer
    target: RadialLayer
    level: RadialLayer

    def __init__(self, *, pointwise: bool = False, seed: int = 0) -> None:
        self.pointwise, self.seed = pointwise, seed
        self.numbers: dict[str, float] = {}
        self.prior: ProcessNetwork | None = None

    def fit(
        self, pool: Features, target: Features, labels: LabelledPairs, *, prior: ProcessNetwork | None = None
    ) -> None:
        """Learn; samples without a label help to scale the features."""
        self.prior = prior
        said = None if prior is None else lambda x, y: prior.estimate(x, y).rows(slice(None))
        grid = LabelledGrid.of(pool, target, at_most(labels, self.seed), pointwise=self.pointwise, prior=said)
        weights = learn_weights(grid, seed=self.seed)
        solved = solve(weights, grid)
        wide = _pool_layer(weights, grid, solved), _target_layer(weights, grid)
        cut = _cut(wide[0](_reference(pool)), wide[1](_reference(target)), RANK)
        self.pool, self.target = (layer.times(matrix) for layer, matrix in zip(wide, cut, strict=True))
        self.level = _level_layer(weights, grid, solved)
        self.numbers = {"mean": grid.mean, "unit": grid.unit, **_noise(weights, grid)}
        if prior is not None:
            weight = _term_weights(weights, grid, solved * grid.scale)[-1]
            self.numbers |= {"prior": float(weight), "prior_mean": float(grid.cosine_mean[-1])}
        self.__dict__.pop("posterior", None)  # of an earlier fit

    def predict(self, pool: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Influence of n pairs: (n, width), (n, width) -> (n,) float32."""
        scale, level = self._level(target)
        inner = np.einsum("nk,nk->n", *self._sides(pool, target))
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
        left, right = self._sides(pool, target)
        if probes is not None:
            more = self._told_by_probes(pool, target, probes)
            left, right = np.concatenate([left, more[0]], axis=1), np.concatenate([right, more[1]], axis=1)
        if optimism:
            left = np.concatenate([left, optimism * self.posterior.spread(pool)[:, None]], axis=1)
            right = np.concatenate([right, np.ones((len(right), 1))], axis=1)
        return InfluenceMatrix.from_towers(
            left.astype(np.float32),
            (right * scale[:, None]).astype(np.float32),
            pool_bias=np.zeros(len(left), dtype=np.float32),
            target_bias=level.astype(np.float32),
            device=device,
        )

    def _sides(self, pool: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
        """F(x) and G(y), what the prior says beside them: (n, rank), (m, rank)."""
        left, right = self.pool(pool), self.target(target)
        if self.prior is None:
            return left, right
        before = self.prior._sides(pool, target)
        scale, level = self.prior._level(target)
        ones = np.ones((len(left), 1))
        more = np.concatenate([before[1] * scale[:, None], (level - self.numbers["prior_mean"])[:, None]], axis=1)
        return (
            np.concatenate([left, self.numbers["prior"] * before[0], self.numbers["prior"] * ones], axis=1),
            np.concatenate([right, more], axis=1),
        )

    def _level(self, target: Any) -> tuple[np.ndarray, np.ndarray]:
        """Of each target s(y) in units of the influence, and c(y) likewise with the mean: (n,), (n,)."""
        values, unit = self.level(target), self.numbers["unit"]
        return unit * np.exp(values[:, 0]), unit * values[:, 1] + self.numbers["mean"]

    @functools.cached_property
    def posterior(self) -> Posterior:
        """What the labels leave open."""
        return Posterior(self.pool, self.target, self.numbers)

    def _scales(self, target: Any) -> np.ndarray:
        """Spread s(y) of each target, (n,)."""
        return np.asarray(np.exp(self.level(target)[:, 0]))

    def uncertainty(self, pool: Any) -> np.ndarray:
        """Standard deviation of a pool sample's influence on a typical target, see `Posterior.spread`: (n,)."""
        return self.posterior.spread(pool) * self.numbers["unit"]

    def choose_probes(self, target: Any, count: int) -> np.ndarray:
        """The targets to measure new samples on, see `Posterior.choose_targets`."""
        return self.posterior.choose_targets(target, self._scales, count)

    def choose_samples(self, pool: Any, count: int) -> np.ndarray:
        """The samples to label next, see `Posterior.choose_samples`."""
        return self.posterior.choose_samples(pool, count)

    def _told_by_probes(self, pool: Any, target: Any, probes: Probes) -> tuple[np.ndarray, np.ndarray]:
        """What probes add to both towers: (n, k + 1), (m, k + 1)."""
        some = target[probes.columns]
        scale, level = self._level(some)
        left, right = self._sides(pool, some)
        residual = (probes.influence - (left @ (right * scale[:, None]).T + level)) / scale
        return self.posterior.completed(pool, target, some, residual)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays (float32) and JSON-able facts that `load` takes."""
        projections = [self.pool.projection, self.target.projection]
        shared = projections[0] is projections[1]
        arrays = {} if shared else projections[1].state("target.projection")
        arrays |= projections[0].state("pool.projection")
        arrays |= self.pool.state("pool") | self.target.state("target") | self.level.state("level")
        del arrays["level.landmarks"]  # the target's
        columns = [[[part.start, part.stop] for part, _ in p.weight] for p in projections]
        facts: dict[str, Any] = {"numbers": self.numbers, "columns": columns, "shared": shared}
        if self.prior is not None:
            before, facts["prior"] = self.prior.state()
            arrays |= {f"prior.{name}": array for name, array in before.items()}
        return arrays, facts

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
        if "prior" in facts:
            self.prior = ProcessNetwork()
            own = {n.removeprefix("prior."): array for n, array in arrays.items() if n.startswith("prior.")}
            self.prior.load(own, facts["prior"])
        self.__dict__.pop("posterior", None)


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
    beta = _term_weights(weights, grid, scaled)[: len(grid.shared_blocks)]
    for block, b in zip(grid.shared_blocks, beta, strict=True):
        units[block, block.start + m + 1 : block.stop + m + 1] = b * torch.eye(block.stop - block.start).double()
    constant = torch.zeros(m + 1 + width).double()
    constant[m] = -(beta * grid.cosine_mean[: len(beta)]).sum()
    own = matrices[0] * weights["profile_own"].exp() + matrices[1] * weights["pool_own"].exp()
    log_weights = torch.stack([weights["pool"], weights["pool_main"]])
    return RadialLayer(grid.projections[0], grid.pool, log_weights, matrices, own, units, constant)


def _term_weights(weights: Weights, grid: LabelledGrid, scaled: Tensor) -> Tensor:
    """Weight of each cosine, and of the prior, as they are before they are standardised."""
    return torch.einsum("bij,ij->b", grid.cosine, scaled) * (2 * weights["cosine"]).exp() / grid.cosine_spread


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
