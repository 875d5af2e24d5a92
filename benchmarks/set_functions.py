"""Which function of a subset's influence predicts what training on it does? Free, on the committed outcomes.

    python benchmarks/set_functions.py                          # --influences sketch: that one alone

The linear datamodeling score holds sums of influence against measured drops of the loss; here other set functions,
those that objectives maximise, take the place of the sum: the root of it, the largest (facility location), the rows'
own largest (the relevance of its mutual-information form, and both alike), and the share of a target's gradient that
the subset spans (projection). Rank correlation over the 40 random halves with the drop of each target (mean over 80),
of each family's mean (over 8), and of the mean of all, where targets are weighted alike or by the norm of their
gradient. The last is one correlation of 40 values: its standard error is about 0.15, that of the others about 0.05.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from known_truth import OUTCOMES, trained_samples
from nncift.evaluation.datamodels import TrainingOutcomes
from nncift.evaluation.metrics import rank_correlations
from nncift.models.language_model import LanguageModel
from objective_influences import Influence, less, sketch, sketch_cosine

SetFunction = Callable[[Influence, np.ndarray], np.ndarray]
"""Of an influence and the rows of a subset: a value for each target, (n_target,)."""


def project(influence: Influence, rows: np.ndarray, damping: float = 1.0) -> np.ndarray:
    """k_jS (K_SS + damping)^-1 k_Sj for each target j."""
    if influence.on_pool is None:
        raise LookupError("the influence on the pool itself was not computed")
    own = influence.on_pool[np.ix_(rows, rows)] + damping * np.eye(len(rows))
    return np.asarray((influence.on_target[rows] * np.linalg.solve(own, influence.on_target[rows])).sum(axis=0))


def relevance(influence: Influence, rows: np.ndarray) -> float:
    """Each row's largest value on any target, at least 0: the mean over rows, one value for all targets."""
    return float(np.maximum(influence.on_target[rows].max(axis=1), 0).mean())


SET_FUNCTIONS: dict[str, SetFunction] = {
    "sum": lambda influence, rows: influence.on_target[rows].sum(axis=0),
    "root of the positive sum": lambda influence, rows: np.sqrt(np.maximum(influence.on_target[rows], 0).sum(axis=0)),
    "largest": lambda influence, rows: np.maximum(influence.on_target[rows].max(axis=0), 0),
    "relevance": lambda influence, rows: np.full(influence.on_target.shape[1], relevance(influence, rows)),
    "largest and relevance": lambda influence, rows: (
        SET_FUNCTIONS["largest"](influence, rows) + relevance(influence, rows)
    ),
    "projection": project,
}


INFLUENCES = {"less": less, "sketch": sketch, "sketch cosine": sketch_cosine}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--influences", nargs="+", choices=INFLUENCES, default=list(INFLUENCES))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-objectives"))
    options = parser.parse_args()
    pool, target, _, of_target = trained_samples()
    given = LanguageModel.load("embedded"), pool, target, options.folder / "influence"
    outcomes = TrainingOutcomes.load(OUTCOMES)
    drops, subsets = outcomes.drops.mean(axis=0), [np.flatnonzero(subset) for subset in outcomes.subsets]
    cosine = sketch_cosine(*given)
    norms = np.asarray(cosine.weights)
    print(
        f"norm of a target's gradient and its mean drop: rank correlation {_correlate(norms, drops.mean(axis=0)):.2f}"
    )
    print("| influence | set function | targets | families | all alike | all by norm |\n|---|---|---|---|---|---|")
    for name in options.influences:
        influence = INFLUENCES[name](*given)
        for kind, function in SET_FUNCTIONS.items():
            try:
                predicted = np.array([function(influence, rows) for rows in subsets])
            except LookupError:
                continue
            families = [of_target == family for family in np.unique(of_target)]
            by_family = [_correlate(predicted[:, f].mean(axis=1), drops[:, f].mean(axis=1)) for f in families]
            together = [_correlate((predicted * w).mean(axis=1), drops.mean(axis=1)) for w in (1.0, norms)]
            values = [rank_correlations(predicted, drops).mean(), np.mean(by_family), *together]
            print(f"| {name} | {kind} | " + " | ".join(f"{value:.2f}" for value in values) + " |", flush=True)


def _correlate(predicted: np.ndarray, measured: np.ndarray) -> float:
    return float(rank_correlations(predicted[:, None], measured[:, None])[0])


if __name__ == "__main__":
    main()
