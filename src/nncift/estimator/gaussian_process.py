"""The network of the recipe "process": posterior mean of a Gaussian process over pairs, in closed form.

`likelihood` defines the model. The posterior mean is bilinear in kernels to the labelled samples of either side, so it
has two towers (`towers`), no learning rate and no epochs; regularization follows from the marginal likelihood.
`acquisition` has its posterior variance.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.acquisition import Posterior
from nncift.estimator.covariance import CHUNK, SHARPNESS, Side, rounded, same_samples, similarities, unit_blocks
from nncift.estimator.left_out import BothSides
from nncift.estimator.likelihood import (
    LIKELIHOOD_PAIRS,
    Theta,
    log_likelihood,
    maximize_likelihood,
    noise_variances,
    solve,
)
from nncift.estimator.pca import Projection
from nncift.estimator.similarity import LabelFreeSimilarity
from nncift.estimator.towers import PosteriorMean
from nncift.estimator.training_data import LabelledGrid, capped, shared_terms, smooth_scales
from nncift.estimator.vector_process import VectorProcess, labelled_rows
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.matrix.matrix import InfluenceMatrix

_ARRAYS = ("profile", "bias", "scale", "terms")


class GaussianProcess(PosteriorMean):
    """Fits labelled pairs in any pattern: the residuals of the label-free similarity, and of a prior if there is one.

    Args:
        pointwise: the influence is one score for each pool sample, whatever the target.
        seed: draws the pairs of the marginal likelihood.
    """

    prior: GaussianProcess | None = None
    both_sides: BothSides | None = None

    def __init__(self, *, pointwise: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.pointwise, self.seed = pointwise, seed

    def fit(
        self,
        pool: Features,
        target: Features,
        labels: LabelledPairs,
        *,
        prior: GaussianProcess | None = None,
        among: LabelledPairs | None = None,
    ) -> None:
        """Fit the labels; unlabelled samples enter the projection of the features.

        With `among`, labels on both sides, the mean is that of a `VectorProcess`, and this one has its uncertainty.
        """
        labels, slope, self.both_sides, of_vectors = capped(labels, self.seed), 0.0, None, None
        if prior is not None:
            labels, slope = _residuals(labels, pool, target, prior)
            self.both_sides = (
                None if among is None else BothSides(False, "a network is given, whose errors are learned")
            )
        if among is not None and not self.pointwise and prior is None:
            of_vectors = self._with_vectors(pool, target, labels, among)
        grid, theta, alike = of_vectors or self._with_prior_mean(pool, target, labels)
        solved = solve(theta, grid)
        scaled = solved * grid.scale
        terms = torch.einsum("tij,ij->t", grid.terms, scaled) * (2 * theta["terms"]).exp() / grid.term_std
        bound = float((grid.value / grid.scale[grid.column]).abs().max())
        terms.clamp_(-bound, bound)  # a similarity contributes no more than the largest label
        mean, *scale = smooth_scales(grid)
        uniform = torch.full((len(grid.target_kernels),), -np.log(len(grid.target_kernels)), dtype=torch.float64)
        theta |= {"scale": uniform, "scale_nugget": torch.tensor(-np.inf, dtype=torch.float64)}
        self.pool = _side(grid.projections[0], grid.pool, theta, "pool", "pool_main")
        self.target = _side(grid.projections[1], grid.target, theta, "target", "target_main", "scale")
        arrays = {"profile": scaled, "bias": solved.sum(0), "scale": torch.stack(scale), "terms": terms}
        self.arrays = {name: rounded(array) for name, array in arrays.items()}
        self.numbers = {"mean": grid.mean, "unit": grid.unit, "scale_mean": mean, **noise_variances(theta, grid)}
        self.numbers["constant"] = -float((terms * grid.term_mean).sum())
        self.numbers |= {"prior": slope, "similarity": alike}
        if of_vectors:  # what it leaves is not predicted better by pairs
            zeros = {name: torch.zeros_like(self.arrays[name]) for name in ("profile", "bias", "terms")}
            self.arrays |= zeros
            self.numbers |= {"mean": 0.0, "constant": 0.0}
        self.prior, self.sharpness = prior, SHARPNESS
        self.__dict__.pop("posterior", None)  # of an earlier fit

    def _with_vectors(
        self, pool: Features, target: Features, labels: LabelledPairs, among: LabelledPairs
    ) -> tuple[LabelledGrid, Theta, float] | None:
        """What a process of vectors leaves of each row that it did not see, its hyperparameters, and the unit.

        None if there is no such process, or it does not predict these rows; `both_sides` says so.
        """
        whole = LabelledGrid.of(pool, target, labels, pointwise=False)
        if whole.projections[0] is not whole.projections[1]:
            self.both_sides = BothSides(False, "pool and targets have different features")
            return None
        vectors = VectorProcess.of(whole.projections[0], pool, target, labels, among)
        if vectors is None:
            self.both_sides = BothSides(False, "the targets' influence on each other is no inner product of vectors")
            return None
        targets = np.intersect1d(among.target_index, labels.target_index)
        self.both_sides = BothSides.judged(vectors, labels, targets, seed=self.seed)
        if not self.both_sides.used:
            return None
        labels = labels.take(np.isin(labels.target_index, targets))
        rows, place = labelled_rows(labels, targets), np.searchsorted(targets, labels.target_index)
        residuals = vectors.left_out(np.arange(len(rows)))[np.searchsorted(rows, labels.pool_index), place]
        left = LabelledGrid.of(pool, target, replace(labels, influence=residuals), pointwise=False)
        self.similarity = vectors
        return left, maximize_likelihood(left, seed=self.seed), vectors.unit

    def _with_prior_mean(
        self, pool: Features, target: Features, labels: LabelledPairs
    ) -> tuple[LabelledGrid, Theta, float]:
        """The labels minus the prior mean, their hyperparameters, and the scale of the label-free similarity.

        The labels are fitted with and without the similarity, and what they are likelier under is taken: the scale
        counts as one free parameter, half the logarithm of the number of labels (Schwarz 1978).
        """
        grid = LabelledGrid.of(pool, target, labels, pointwise=self.pointwise)
        theta = maximize_likelihood(grid, seed=self.seed)
        self.similarity = None
        similarity = None if self.pointwise else LabelFreeSimilarity.of(pool, target)
        if similarity is None:
            return grid, theta, 0.0
        residuals, alike = similarity.residuals(pool, target, labels)
        if alike == 0:
            return grid, theta, 0.0
        left = grid.with_influence(residuals.influence)
        learned = maximize_likelihood(left, seed=self.seed)
        gained = log_likelihood(learned, left, seed=self.seed) - log_likelihood(theta, grid, seed=self.seed)
        if gained <= math.log(min(len(grid.value), LIKELIHOOD_PAIRS)) / 2:
            return grid, theta, 0.0
        self.similarity = similarity
        return left, learned, alike

    def predict(self, pool: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Posterior mean of n pairs: (n, width), (n, width) -> (n,) float32."""
        out = np.empty(len(pool), dtype=np.float32)
        for start in range(0, len(pool), CHUNK):
            part = slice(start, start + CHUNK)
            x, y = self.pool.coordinates(pool[part]), self.target.coordinates(target[part])
            interaction, main = self.pool_effects(x)
            inner = (interaction * self.target.kernels(y)[0]).sum(1) + main
            if len(self.arrays["terms"]):
                sides = zip(unit_blocks(x, self.pool.projection), unit_blocks(y, self.pool.projection), strict=True)
                cosines = torch.stack([(u * v).sum(1) for u, v in sides])
                inner += self.arrays["terms"] @ torch.cat([cosines, *similarities(cosines, self.sharpness)])
            scale, bias = self.target_effects(y)
            out[part] = inner.numpy() * scale + bias
            if self.similarity is not None:
                units: Any = [self.similarity.units(side[part]) for side in (pool, target)]
                out[part] += self.numbers["similarity"] * self.similarity.pairs(*units).numpy()
            if self.prior is not None:
                out[part] += self.numbers["prior"] * self.prior.predict(pool[part], target[part])
        return out

    def predict_grid(self, pool: np.ndarray, target: np.ndarray) -> np.ndarray:
        """As `predict`, for all pairs of a few samples: (n, width), (m, width) -> (n, m) float64."""
        x, y = self.pool.coordinates(pool), self.target.coordinates(target)
        interaction, main = self.pool_effects(x)
        inner = interaction @ self.target.kernels(y)[0].T + main[:, None]
        if len(self.arrays["terms"]):
            terms = torch.stack(shared_terms(x, y, self.pool.projection, self.sharpness))
            inner += torch.einsum("t,tij->ij", self.arrays["terms"], terms)
        scale, bias = self.target_effects(y)
        own = np.asarray(inner.numpy() * scale + bias)
        if self.similarity is not None:
            units: Any = [self.similarity.units(side) for side in (pool, target)]
            own = own + self.numbers["similarity"] * np.asarray(self.similarity.grid(*units))
        return own if self.prior is None else own + self.numbers["prior"] * self.prior.predict_grid(pool, target)

    def estimate(
        self, pool: Any, target: Any, *, device: str | None = None, probes: Probes | None = None
    ) -> InfluenceMatrix:
        """Posterior mean of all n x m pairs at low rank, see `InfluenceNetwork.estimate`."""
        left, right, bias = self.towers(pool, target)
        if probes is not None:
            some = target[probes.columns]
            scale, _ = self.target.in_chunks(target, self.target_effects)
            predicted = [self.predict_grid(pool[k : k + CHUNK], some) for k in range(0, len(pool), CHUNK)]
            residual = np.nan_to_num((probes.influence - np.concatenate(predicted)) / scale[probes.columns])
            more = self.posterior.conditioned(pool, target, some, residual)
            left = np.concatenate([left, more[0]], axis=1)
            right = np.concatenate([right, more[1] * scale[:, None]], axis=1)
        return InfluenceMatrix.from_towers(
            left.astype(np.float32, copy=False),
            right.astype(np.float32, copy=False),
            pool_bias=np.zeros(len(left), dtype=np.float32),
            target_bias=bias.astype(np.float32),
            device=device,
        )

    @functools.cached_property
    def posterior(self) -> Posterior:
        """Its posterior variance."""
        return Posterior(self.pool, self.target, self.numbers)

    def uncertainty(self, pool: Any) -> np.ndarray:
        """Posterior standard deviation of a pool sample's influence on a typical target, see `Posterior.std`: (n,)."""
        return self.posterior.std(pool) * self.numbers["unit"]

    def choose_probes(self, target: Any, count: int) -> np.ndarray:
        """See `Posterior.choose_targets`."""

        def scales(rows: Any) -> np.ndarray:
            return self.target_effects(self.target.coordinates(rows))[0] / self.numbers["unit"]

        return self.posterior.choose_targets(target, scales, count)

    def learned_from(self, pool: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which samples are training inputs, of the prior too: (n, width), (m, width) -> (n,), (m,) bool."""
        sides = (self.pool, pool), (self.target, target)
        own = [same_samples(side.coordinates(rows), side.train).any(1).numpy() for side, rows in sides]
        if isinstance(self.similarity, VectorProcess):
            own[0] |= self.similarity.trained_on(pool)
        before = (False, False) if self.prior is None else self.prior.learned_from(pool, target)
        return own[0] | before[0], own[1] | before[1]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays (float32) and JSON-able facts for `load`."""
        projections = [self.pool.projection, self.target.projection]
        shared = projections[0] is projections[1]
        arrays = {} if shared else projections[1].state("target.projection")
        arrays |= projections[0].state("pool.projection") | self.pool.state("pool") | self.target.state("target")
        arrays |= {name: array.float().numpy().copy() for name, array in self.arrays.items()}
        columns = [[[part.start, part.stop] for part, _ in p.weight] for p in projections]
        facts: dict[str, Any] = {"numbers": self.numbers, "columns": columns, "shared": shared}
        facts["sharpness"] = list(self.sharpness)
        if isinstance(self.similarity, VectorProcess):
            arrays, facts["vectors"] = arrays | self.similarity.state(), True
        elif self.similarity is not None:
            own, facts["similarity"] = self.similarity.state()
            arrays |= own
        if self.prior is not None:
            before, facts["prior"] = self.prior.state()
            arrays |= {f"prior.{name}": array for name, array in before.items()}
        return arrays, facts

    def load(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """The inverse of `state`.

        Raises:
            ValueError: an earlier version weighted the prior in another way.
        """
        pool = target = Projection.from_state(arrays, "pool.projection", facts["columns"][0])
        if not facts["shared"]:
            target = Projection.from_state(arrays, "target.projection", facts["columns"][1])
        self.pool, self.target = Side.from_state(arrays, "pool", pool), Side.from_state(arrays, "target", target)
        self.arrays = {name: torch.from_numpy(np.float64(arrays[name])) for name in _ARRAYS}
        self.numbers = dict(facts["numbers"])
        self.sharpness = tuple(facts.get("sharpness", (5.0,)))
        self.prior = self.similarity = None  # networks of earlier versions have no similarity
        if facts.get("vectors"):
            self.similarity = VectorProcess.from_state(arrays, pool, self.numbers["similarity"])
        elif "similarity" in facts:
            self.similarity = LabelFreeSimilarity.from_state(arrays, facts["similarity"])
        if "prior" in facts:
            if "prior" not in self.numbers:
                raise ValueError("it weights its prior network in another way")
            self.prior = GaussianProcess()
            own = {n.removeprefix("prior."): array for n, array in arrays.items() if n.startswith("prior.")}
            self.prior.load(own, facts["prior"])
        self.__dict__.pop("posterior", None)


def _residuals(
    labels: LabelledPairs, pool: Features, target: Features, prior: GaussianProcess
) -> tuple[LabelledPairs, float]:
    """The labels minus the prior's rescaled predictions, and the scale: least squares, non-negative."""
    rows, row = np.unique(labels.pool_index, return_inverse=True)
    columns, column = np.unique(labels.target_index, return_inverse=True)
    predicted = prior.predict_grid(pool[rows], target[columns])[row, column]
    centered, value = predicted - predicted.mean(), labels.influence.astype(np.float64)
    square = float(centered @ centered)
    slope = max(float(centered @ value) / square, 0.0) if square > 1e-12 * float(predicted @ predicted) else 0.0
    return replace(labels, influence=value - slope * predicted), slope


def _side(projection: Projection, train: Tensor, theta: Theta, *kernels: str) -> Side:
    """A side with these kernels."""
    log_weights = torch.stack([theta[name] for name in kernels])
    nugget = torch.stack([theta[f"{name}_nugget"].exp() for name in kernels])
    return Side(projection, train, rounded(log_weights), rounded(nugget))
