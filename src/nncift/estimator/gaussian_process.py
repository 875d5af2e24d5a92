"""Our network: two towers of radial units around the labelled samples, with weights in closed form.

The hidden units of a side are its labelled samples, the output is bilinear, and all weights follow from a Gaussian
process (`pair_process`): no learning rate, no epochs, and as much weight as there is evidence for. The posterior tells
what the labels have not told: `uncertainty`.

What is estimated for all pairs has the rank that it needs on samples of the pool and of the targets at hand.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.acquisition import Posterior
from nncift.estimator.covariance import SHARPNESS, Side, kernel, rounded, same_samples, similarities, unit_blocks
from nncift.estimator.likelihood import Weights, learn_weights, solve
from nncift.estimator.pca import Projection
from nncift.estimator.training_data import LabelledGrid, at_most, shared_terms, smooth_scales
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.matrix.matrix import InfluenceMatrix

RANK = 128  # of the estimate, at most
_ANCHORS = 512  # targets through which similarities are told; of no more than so many, all, and nothing is lost
_REFERENCE = 1024  # samples of a side on which the estimate is cut to its rank
_LOST = 1e-7  # share of the squared estimate that the cut may lose
_CHUNK = 2048  # samples at a time

_log = logging.getLogger("nncift")


class ProcessNetwork:
    """Learns from labelled pairs in any pattern; its prediction is unit (inner(x, y) s(y) + c(y)) + mean.

    With a prior, it learns what that leaves over of the labels, and adds `numbers["prior"]` times what that says.

    Args:
        pointwise: the influence is one score for each pool sample, whatever the target.
        seed: which pairs the marginal likelihood is taken on.

    Attributes:
        pool: labelled pool samples; kernels of profile and level.
        target: labelled targets; kernels of profile, c(y) and s(y).
        arrays: `profile` (n, m), the weights of g; `bias` (m,) of c; `scale` (2, m) of log s, smooth and own; `terms`
            (terms,) of the likenesses.
        numbers: mean and unit of the influence, and what else is one number.
        prior: a network that learned before, on other data or another influence.
        sharpness: of the similarities, see `radial.similarities`.
    """

    pool: Side
    target: Side

    def __init__(self, *, pointwise: bool = False, seed: int = 0) -> None:
        self.pointwise, self.seed = pointwise, seed
        self.arrays: dict[str, Tensor] = {}
        self.numbers: dict[str, float] = {}
        self.prior: ProcessNetwork | None = None
        self.sharpness = SHARPNESS

    def fit(
        self, pool: Features, target: Features, labels: LabelledPairs, *, prior: ProcessNetwork | None = None
    ) -> None:
        """Learn; samples without a label help to scale the features."""
        labels, slope = at_most(labels, self.seed), 0.0
        if prior is not None:
            labels, slope = _left_over(labels, pool, target, prior)
        grid = LabelledGrid.of(pool, target, labels, pointwise=self.pointwise)
        weights = learn_weights(grid, seed=self.seed)
        solved = solve(weights, grid)
        scaled = solved * grid.scale
        terms = torch.einsum("tij,ij->t", grid.terms, scaled) * (2 * weights["terms"]).exp() / grid.term_spread
        most = float((grid.value / grid.scale[grid.column]).abs().max())
        terms.clamp_(-most, most)  # what is alike says no more than the largest label
        mean, *scale = smooth_scales(grid)
        even = torch.full((len(grid.among_targets),), -np.log(len(grid.among_targets)), dtype=torch.float64)
        self.pool = _side(grid.projections[0], grid.pool, weights, ("pool", "profile_own"), ("pool_main", "pool_own"))
        self.target = _side(
            grid.projections[1],
            grid.target,
            weights | {"even": even, "none": torch.tensor(-np.inf, dtype=torch.float64)},
            ("target", "target_own"),
            ("target_main", "mean_own"),
            ("even", "none"),
        )
        arrays = {"profile": scaled, "bias": solved.sum(0), "scale": torch.stack(scale), "terms": terms}
        self.arrays = {name: rounded(array) for name, array in arrays.items()}
        self.numbers = {"mean": grid.mean, "unit": grid.unit, "scale_mean": mean, **_noise(weights, grid)}
        self.numbers["constant"] = -float((terms * grid.term_mean).sum())
        self.numbers["prior"] = slope
        self.prior, self.sharpness = prior, SHARPNESS
        self.__dict__.pop("posterior", None)  # of an earlier fit

    def predict(self, pool: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Influence of n pairs: (n, width), (n, width) -> (n,) float32."""
        out = np.empty(len(pool), dtype=np.float32)
        for start in range(0, len(pool), _CHUNK):
            part = slice(start, start + _CHUNK)
            x, y = self.pool.coordinates(pool[part]), self.target.coordinates(target[part])
            profile, level = self._of_pool(x)
            inner = (profile * self.target.kernels(y)[0]).sum(1) + level
            if len(self.arrays["terms"]):
                units = zip(unit_blocks(x, self.pool.projection), unit_blocks(y, self.pool.projection), strict=True)
                cosines = torch.stack([(u * v).sum(1) for u, v in units])
                inner += self.arrays["terms"] @ torch.cat([cosines, *similarities(cosines, self.sharpness)])
            scale, bias = self._of_targets(y)
            out[part] = inner.numpy() * scale + bias
            if self.prior is not None:
                out[part] += self.numbers["prior"] * self.prior.predict(pool[part], target[part])
        return out

    def all_pairs(self, pool: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Influence of all pairs of a few samples, as `predict` has it: (n, width), (m, width) -> (n, m) float64."""
        x, y = self.pool.coordinates(pool), self.target.coordinates(target)
        profile, level = self._of_pool(x)
        inner = profile @ self.target.kernels(y)[0].T + level[:, None]
        if len(self.arrays["terms"]):
            likenesses = torch.stack(shared_terms(x, y, self.pool.projection, self.sharpness))
            inner += torch.einsum("t,tij->ij", self.arrays["terms"], likenesses)
        scale, bias = self._of_targets(y)
        own = np.asarray(inner.numpy() * scale + bias)
        return own if self.prior is None else own + self.numbers["prior"] * self.prior.all_pairs(pool, target)

    def _of_pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A sample's profile over the labelled targets, before their kernel, and its level: (n, m), (n,).

        The level is a(x) and the constant of the likenesses.
        """
        profile, level = self.pool.kernels(x)
        weights = self.arrays["profile"]
        return profile @ weights, level @ weights.sum(1) + self.numbers["constant"]

    def _of_targets(self, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Of each target s(y) in units of the influence, and c(y) likewise with the mean: (n,), (n,)."""
        _, level, even = self.target.kernels(y)
        smooth, own = self.arrays["scale"]
        scale = torch.exp(self.numbers["scale_mean"] + even @ smooth + same_samples(y, self.target.landmarks) @ own)
        unit = self.numbers["unit"]
        return (unit * scale).numpy(), (unit * (level @ self.arrays["bias"]) + self.numbers["mean"]).numpy()

    def estimate(
        self, pool: Any, target: Any, *, device: str | None = None, probes: Probes | None = None
    ) -> InfluenceMatrix:
        """The influence of all pairs, computed where it is looked at.

        Args:
            pool: features of n samples.
            target: features of m targets.
            device: where pairs are scored.
            probes: exact influence of every pool sample on a few targets, which completes what the network says.
        """
        left, right, bias = self._towers(pool, target)
        if probes is not None:
            some = target[probes.columns]
            scale, _ = self._in_chunks(target, self._of_targets)
            own = [self.all_pairs(pool[start : start + _CHUNK], some) for start in range(0, len(pool), _CHUNK)]
            residual = np.nan_to_num((probes.influence - np.concatenate(own)) / scale[probes.columns])
            more = self.posterior.completed(pool, target, some, residual)
            left = np.concatenate([left, more[0]], axis=1)
            right = np.concatenate([right, more[1] * scale[:, None]], axis=1)
        return InfluenceMatrix.from_towers(
            left.astype(np.float32, copy=False),
            right.astype(np.float32, copy=False),
            pool_bias=np.zeros(len(left), dtype=np.float32),
            target_bias=bias.astype(np.float32),
            device=device,
        )

    def _towers(self, pool: Any, target: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Both towers and c(y), with the prior's beside: (n, rank), (m, rank), (m,)."""
        left, right = self._cut(pool, target)
        scale, bias = self._in_chunks(target, self._of_targets)
        right = right * scale[:, None]
        if self.prior is None:
            return left, right, bias
        before, weight = self.prior._towers(pool, target), self.numbers["prior"]
        left, right = np.concatenate([left, weight * before[0]], axis=1), np.concatenate([right, before[1]], axis=1)
        return left, right, bias + weight * before[2]

    def _cut(self, pool: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
        """What is in the brackets as a product, cut to the rank that matters: (n, rank), (m, rank) float32."""
        anchors = self.target.coordinates(target[_spread(len(target), _ANCHORS)])
        left = self._wide_pool(self.pool.coordinates(pool[_spread(len(pool), _REFERENCE)]), anchors)
        right = self._wide_target(self.target.coordinates(target[_spread(len(target), _REFERENCE)]), anchors)
        u, size, v = torch.linalg.svd(left @ right.T, full_matrices=False)
        lost = 1 - size.square().cumsum(0) / size.square().sum().clamp(min=1e-300)
        rank = min(int((lost > _LOST).sum()) + 1, RANK, len(size))
        root = size[:rank].clamp(min=1e-12 * float(size[0]) + 1e-30).sqrt()
        cut = right.T @ v[:rank].T / root, left.T @ u[:, :rank] / root
        return (
            self._in_chunks(pool, lambda x: ((self._wide_pool(x, anchors) @ cut[0]).float().numpy(),), self.pool)[0],
            self._in_chunks(target, lambda y: ((self._wide_target(y, anchors) @ cut[1]).float().numpy(),))[0],
        )

    def _wide_pool(self, x: Tensor, anchors: Tensor) -> Tensor:
        """The pool's tower before the cut: profile, level, the cosines' half, weighed similarities to the anchors."""
        profile, level = self._of_pool(x)
        columns = [profile, level[:, None]]
        if len(self.arrays["terms"]):
            projection = self.pool.projection
            weights = self.arrays["terms"].reshape(1 + len(self.sharpness), -1)
            units = unit_blocks(x, projection)
            columns += [b * u for b, u in zip(weights[0], units, strict=True)]
            for u, v, own in zip(units, unit_blocks(anchors, projection), weights[1:].T, strict=True):
                columns.append(torch.einsum("k,kij->ij", own, torch.stack(similarities(u @ v.T, self.sharpness))))
        return torch.cat(columns, dim=1)

    def _wide_target(self, y: Tensor, anchors: Tensor) -> Tensor:
        """The targets' tower before the cut; a target is told by the anchors it resembles (Nystrom's approximation)."""
        columns = [self.target.kernels(y)[0], torch.ones((len(y), 1), dtype=torch.float64)]
        if len(self.arrays["terms"]):
            projection, identity = self.pool.projection, torch.eye(len(anchors), dtype=torch.float64)
            units = unit_blocks(y, projection)
            columns += units
            for u, v in zip(units, unit_blocks(anchors, projection), strict=True):
                to_anchors, among = (similarities(w @ v.T, self.sharpness[:1])[0] for w in (u, v))
                columns.append(torch.linalg.solve(among + 1e-6 * identity, to_anchors.T).T)
        return torch.cat(columns, dim=1)

    def _in_chunks(self, rows: Any, work: Any, side: Side | None = None) -> tuple[np.ndarray, ...]:
        """What `work` makes of samples' coordinates, put together."""
        side = self.target if side is None else side
        starts = range(0, max(len(rows), 1), _CHUNK)
        parts = [work(side.coordinates(rows[start : start + _CHUNK])) for start in starts]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    @functools.cached_property
    def posterior(self) -> Posterior:
        """What the labels leave open."""
        return Posterior(self.pool, self.target, self.numbers)

    def uncertainty(self, pool: Any) -> np.ndarray:
        """Standard deviation of a pool sample's influence on a typical target, see `Posterior.spread`: (n,)."""
        return self.posterior.spread(pool) * self.numbers["unit"]

    def choose_probes(self, target: Any, count: int) -> np.ndarray:
        """The targets to measure new samples on, see `Posterior.choose_targets`."""
        return self.posterior.choose_targets(
            target, lambda rows: self._of_targets(self.target.coordinates(rows))[0] / self.numbers["unit"], count
        )

    def choose_samples(self, pool: Any, count: int) -> np.ndarray:
        """The samples to label next, see `Posterior.choose_samples`."""
        return self.posterior.choose_samples(pool, count)

    def learned_from(self, pool: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which samples it, or what it started from, has learned from: (n, width), (m, width) -> (n,), (m,) bool."""
        sides = (self.pool, pool), (self.target, target)
        own = [same_samples(side.coordinates(rows), side.landmarks).any(1).numpy() for side, rows in sides]
        before = (False, False) if self.prior is None else self.prior.learned_from(pool, target)
        return own[0] | before[0], own[1] | before[1]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays (float32) and JSON-able facts that `load` takes."""
        projections = [self.pool.projection, self.target.projection]
        shared = projections[0] is projections[1]
        arrays = {} if shared else projections[1].state("target.projection")
        arrays |= projections[0].state("pool.projection") | self.pool.state("pool") | self.target.state("target")
        arrays |= {name: array.float().numpy().copy() for name, array in self.arrays.items()}
        columns = [[[part.start, part.stop] for part, _ in p.weight] for p in projections]
        facts: dict[str, Any] = {"numbers": self.numbers, "columns": columns, "shared": shared}
        facts["sharpness"] = list(self.sharpness)
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
        self.pool, self.target = Side.from_state(arrays, "pool", projection), Side.from_state(arrays, "target", other)
        names = ("profile", "bias", "scale", "terms")
        self.arrays = {name: torch.from_numpy(np.float64(arrays[name])) for name in names}
        self.numbers = dict(facts["numbers"])
        self.sharpness = tuple(facts.get("sharpness", (5.0,)))
        self.prior = None
        if "prior" in facts:
            if "prior" not in self.numbers:
                raise ValueError("it weighs the network that it started from in another way")
            self.prior = ProcessNetwork()
            own = {n.removeprefix("prior."): array for n, array in arrays.items() if n.startswith("prior.")}
            self.prior.load(own, facts["prior"])
        self.__dict__.pop("posterior", None)


def _left_over(
    labels: LabelledPairs, pool: Features, target: Features, prior: ProcessNetwork
) -> tuple[LabelledPairs, float]:
    """The labels less what the prior says, and what that is multiplied by: least squares, but never turned round."""
    rows, row = np.unique(labels.pool_index, return_inverse=True)
    columns, column = np.unique(labels.target_index, return_inverse=True)
    said = prior.all_pairs(pool[rows], target[columns])[row, column]
    centred, value = said - said.mean(), labels.influence.astype(np.float64)
    spread = float(centred @ centred)
    slope = max(float(centred @ value) / spread, 0.0) if spread > 1e-12 * float(said @ said) else 0.0
    return replace(labels, influence=value - slope * said), slope


def _spread(n: int, most: int) -> np.ndarray:
    """Numbers of at most so many of n samples, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def _side(projection: Projection, landmarks: Tensor, weights: Weights, *kernels: tuple[str, str]) -> Side:
    """A side whose kernels have these weights: of the blocks, and of a sample's own."""
    log_weights = torch.stack([weights[name] for name, _ in kernels])
    own = torch.stack([weights[own].exp() for _, own in kernels])
    return Side(projection, landmarks, *(rounded(part) for part in (log_weights, own)))


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
        "profile": float(targets.diagonal().mean()),
        "profile_noise": min(noise / seen, 1e6) + float(weights["profile_own"].exp()) + 1e-9,
        "level_noise": noise / per_row + float(weights["pool_own"].exp()) + 1e-9,
    }
