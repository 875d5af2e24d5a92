"""Learning influence from training itself: does a network fitted to a few dozen short trainings beat gradients?

    python benchmarks/learn_outcomes.py

The loss drop of a target after training on a subset is modelled as the sum over the subset of an influence that our
network predicts from the samples' features (a feature-based datamodel). A sum of Gaussian processes is one too, so the
same process is fitted, with the subsets in the samples' place; exact influences can stand beside the features. Each
subset is foretold by a network that never saw it (leave out a fifth at a time). Printed for each input: the rank
correlation with what training did, over subsets, averaged over targets, beside the same of summed exact influence.

The exact values lie in `--folder`, where `influence.py judge` keeps them.
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
from nncift.estimator.likelihood import Kernels, Weights, learn_weights, solve
from nncift.estimator.training_data import LabelledGrid
from nncift.evaluation.datamodels import TrainingOutcomes, linear_datamodelling_score, rank_correlations
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs
from nncift.models.language_model import LanguageModel

INPUTS = ("response-similarity", "less, both sides", "less, trained alike, both sides")
FOLDS = 5


def of_subsets(grid: LabelledGrid, members: np.ndarray, drops: np.ndarray, given: np.ndarray) -> LabelledGrid:
    """The grid with subsets in the place of pool samples: all that is summed over a subset's samples.

    Args:
        grid: of all samples.
        members: (n_subsets, n_pool) bool.
        drops: (n_subsets, n_target) loss drops.
        given: (k, n_pool, n_target) influences known beforehand.
    """
    sums = torch.from_numpy(members.astype(np.float64) - members.mean(axis=0))
    among = torch.einsum("si,bij,tj->bst", sums, grid.among_pool, sums)
    terms = torch.einsum("si,bij->bsj", sums, torch.cat([grid.terms, torch.from_numpy(given)]))
    spread = terms.std((1, 2), correction=0) + 1e-9
    terms = terms / spread[:, None, None]
    i, j = np.divmod(np.arange(drops.size), drops.shape[1])
    centred = drops - drops.mean(axis=0)
    scale = centred.std(axis=0) + 1e-9
    unit = float(np.sqrt(np.square(scale).mean()))
    return replace(
        grid,
        pool=torch.zeros((len(members), 0), dtype=torch.float64),
        row=torch.from_numpy(i),
        column=torch.from_numpy(j),
        value=torch.from_numpy(centred.ravel() / unit),
        scale=torch.from_numpy(scale / unit),
        unit=unit,
        among_pool=among / among.diagonal(dim1=1, dim2=2).mean(1)[:, None, None],
        terms=terms,
        term_mean=torch.zeros(len(terms), dtype=torch.float64),
        term_spread=torch.ones(len(terms), dtype=torch.float64),
    )


def foretold(weights: Weights, whole: LabelledGrid, seen: np.ndarray, new: np.ndarray, solved: Tensor) -> Tensor:
    """Posterior mean for new subsets up to each target's constant, (n_new, n_target)."""
    scaled = solved * whole.scale
    main, profile = (kernel(whole.among_pool[:, new][:, :, seen], weights[name]) for name in ("pool_main", "pool"))
    targets = Kernels.of(weights, whole).target
    beta = torch.einsum("bij,ij->b", whole.terms[:, seen], scaled) * (2 * weights["terms"]).exp()
    inner = (main @ scaled.sum(1))[:, None] + profile @ scaled @ targets
    return (inner + torch.einsum("bij,b->ij", whole.terms[:, new], beta)) * whole.scale


def cross_fitted(grid: LabelledGrid, outcomes: TrainingOutcomes, given: np.ndarray, seed: int) -> np.ndarray:
    """Each subset foretold by a network that saw the others, (n_subsets, n_target)."""
    drops = outcomes.drops.mean(axis=0)
    found = np.zeros_like(drops)
    fold = np.random.default_rng(seed).permutation(len(drops)) % FOLDS
    for number in range(FOLDS):
        seen, new = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        whole = of_subsets(grid, outcomes.subsets, drops, given)  # what is summed and scaled needs no outcome
        part = of_subsets(grid, outcomes.subsets[seen], drops[seen], given)
        part = replace(part, among_pool=whole.among_pool[:, seen][:, :, seen], terms=whole.terms[:, seen])
        whole = replace(whole, scale=part.scale)
        weights = learn_weights(part, seed=seed)
        found[new] = foretold(weights, whole, seen, new, solve(weights, part)).numpy() * part.unit
    return found


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--seeds", type=int, default=2, help="ways to leave subsets out")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-influence"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = LanguageModel.load(options.model)
    pool, target, _, _ = trained_samples()
    outcomes = TrainingOutcomes.load(OUTCOMES)
    features = read_features(pool, target, "truth", options.folder, model)
    everything = np.divmod(np.arange(len(pool) * len(target)), len(target))
    labels = LabelledPairs(*(index.astype(np.int32) for index in everything), np.zeros(len(everything[0]), np.float32))
    grid = LabelledGrid.of(*map(Features.of, features), labels, pointwise=False)
    known = {name: exact_values(name, model, pool, target, options.folder / "judge")[0] for name in INPUTS}
    asked = {"features alone": (), **{f"features, {name}": (name,) for name in INPUTS}}
    asked["features, all of these"] = INPUTS
    print("| learned from trainings | LDS | summed exact influence |\n|---|---|---|")
    for name, inputs in asked.items():
        given = np.array([known[one] for one in inputs], dtype=np.float64).reshape(len(inputs), len(pool), len(target))
        values = [
            rank_correlations(cross_fitted(grid, outcomes, given, seed), outcomes.drops.mean(axis=0)).mean()
            for seed in range(options.seeds)
        ]
        exact = linear_datamodelling_score(known[inputs[0]], outcomes).value if len(inputs) == 1 else None
        print(f"| {name} | {np.mean(values):.2f} | {'' if exact is None else f'{exact:.2f}'} |", flush=True)


if __name__ == "__main__":
    main()
