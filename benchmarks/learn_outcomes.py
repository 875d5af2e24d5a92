"""Feature-based datamodels: does a network fitted to a few dozen short trainings predict better than gradients?

    python benchmarks/learn_outcomes.py

The loss reduction of a target after training on a subset is modeled as the sum over the subset of an influence that is
a function of the samples' features (a feature-based datamodel). A sum of Gaussian processes is a Gaussian process, so
the same model is fitted with subsets in place of samples; exact influences may be added to the features. Each subset
is predicted in 5-fold cross-validation. Printed for each input: the linear datamodeling score, next to that of summed
exact influence.

The exact values are in `--folder`, where `influence.py judge` stores them.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fidelity import read_features
from functions import exact_values
from known_truth import OUTCOMES, trained_samples
from nncift.estimator.covariance import kernel
from nncift.estimator.likelihood import Theta, kernels, maximize_likelihood, solve
from nncift.estimator.training_data import LabelledGrid
from nncift.evaluation.datamodels import TrainingOutcomes, linear_datamodeling_score
from nncift.evaluation.metrics import rank_correlations
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs
from nncift.models.language_model import LanguageModel

INPUTS = ("response-similarity", "less, both sides", "less, trained alike, both sides")
FOLDS = 5


def of_subsets(grid: LabelledGrid, members: np.ndarray, drops: np.ndarray, given: np.ndarray) -> LabelledGrid:
    """The grid with subsets in place of pool samples: kernels and terms summed over their samples.

    Args:
        grid: of all samples.
        members: (n_subsets, n_pool) bool.
        drops: (n_subsets, n_target) loss reductions.
        given: (k, n_pool, n_target) exact influences.
    """
    sums = torch.from_numpy(members.astype(np.float64) - members.mean(axis=0))
    kernels = torch.einsum("si,bij,tj->bst", sums, grid.pool_kernels, sums)
    terms = torch.einsum("si,bij->bsj", sums, torch.cat([grid.terms, torch.from_numpy(given)]))
    terms = terms / (terms.std((1, 2), correction=0) + 1e-9)[:, None, None]
    i, j = np.divmod(np.arange(drops.size), drops.shape[1])
    centered = drops - drops.mean(axis=0)
    scale = centered.std(axis=0) + 1e-9
    unit = float(np.sqrt(np.square(scale).mean()))
    return replace(
        grid,
        pool=torch.zeros((len(members), 0), dtype=torch.float64),
        row=torch.from_numpy(i),
        column=torch.from_numpy(j),
        value=torch.from_numpy(centered.ravel() / unit),
        scale=torch.from_numpy(scale / unit),
        unit=unit,
        pool_kernels=kernels / kernels.diagonal(dim1=1, dim2=2).mean(1)[:, None, None],
        terms=terms,
        term_mean=torch.zeros(len(terms), dtype=torch.float64),
        term_std=torch.ones(len(terms), dtype=torch.float64),
    )


def posterior_mean(theta: Theta, whole: LabelledGrid, seen: np.ndarray, new: np.ndarray, solved: Tensor) -> Tensor:
    """Posterior mean for new subsets up to each target's constant, (n_new, n_target)."""
    scaled = solved * whole.scale
    main, pool = (kernel(whole.pool_kernels[:, new][:, :, seen], theta[name]) for name in ("pool_main", "pool"))
    _, _, targets, _ = kernels(theta, whole)
    beta = torch.einsum("bij,ij->b", whole.terms[:, seen], scaled) * (2 * theta["terms"]).exp()
    inner = (main @ scaled.sum(1))[:, None] + pool @ scaled @ targets
    return (inner + torch.einsum("bij,b->ij", whole.terms[:, new], beta)) * whole.scale


def cross_fitted(grid: LabelledGrid, outcomes: TrainingOutcomes, given: np.ndarray, seed: int) -> np.ndarray:
    """Each subset predicted from the other folds, (n_subsets, n_target)."""
    drops = outcomes.drops.mean(axis=0)
    predicted = np.zeros_like(drops)
    fold = np.random.default_rng(seed).permutation(len(drops)) % FOLDS
    for number in range(FOLDS):
        seen, new = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        whole = of_subsets(grid, outcomes.subsets, drops, given)  # kernels and terms depend on no outcome
        part = of_subsets(grid, outcomes.subsets[seen], drops[seen], given)
        part = replace(part, pool_kernels=whole.pool_kernels[:, seen][:, :, seen], terms=whole.terms[:, seen])
        whole = replace(whole, scale=part.scale)
        theta = maximize_likelihood(part, seed=seed)
        predicted[new] = posterior_mean(theta, whole, seen, new, solve(theta, part)).numpy() * part.unit
    return predicted


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--seeds", type=int, default=2, help="of the folds")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-influence"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = LanguageModel.load(options.model)
    pool, target, _, _ = trained_samples()
    outcomes = TrainingOutcomes.load(OUTCOMES)
    features = read_features(pool, target, "truth", options.folder, model)
    every = np.divmod(np.arange(len(pool) * len(target)), len(target))
    labels = LabelledPairs(*(index.astype(np.int32) for index in every), np.zeros(len(every[0]), np.float32))
    grid = LabelledGrid.of(*map(Features.of, features), labels, pointwise=False)
    exact_of = {name: exact_values(name, model, pool, target, options.folder / "judge")[0] for name in INPUTS}
    inputs_of = {"features alone": (), **{f"features, {name}": (name,) for name in INPUTS}}
    inputs_of["features, all of these"] = INPUTS
    print("| fitted to trainings | LDS | summed exact influence |\n|---|---|---|")
    for name, inputs in inputs_of.items():
        given = np.array([exact_of[k] for k in inputs], dtype=np.float64).reshape(len(inputs), len(pool), len(target))
        values = [
            rank_correlations(cross_fitted(grid, outcomes, given, seed), outcomes.drops.mean(axis=0)).mean()
            for seed in range(options.seeds)
        ]
        exact = linear_datamodeling_score(exact_of[inputs[0]], outcomes).value if len(inputs) == 1 else None
        print(f"| {name} | {np.mean(values):.2f} | {'' if exact is None else f'{exact:.2f}'} |", flush=True)


if __name__ == "__main__":
    main()
