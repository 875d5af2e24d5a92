"""Which function of a subset's influence predicts what training on it does? Free, on the committed outcomes.

    python benchmarks/set_functions.py

The linear datamodeling score holds sums of influence against measured drops of the loss; here other set functions,
those that objectives maximise, take the place of the sum: the root of it, the largest (facility location), and the
share of a target's gradient that the subset spans (projection). Rank correlation over the 40 random halves with the
drop of each target (mean over 80), of each family's mean (over 8), and of the mean of all, where targets are weighted
alike or by the norm of their gradient. The last is one correlation of 40 values: its standard error is about 0.15, that
of the others about 0.05.
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


SET_FUNCTIONS: dict[str, SetFunction] = {
    "sum": lambda influence, rows: influence.on_target[rows].sum(axis=0),
    "root of the positive sum": lambda influence, rows: np.sqrt(np.maximum(influence.on_target[rows], 0).sum(axis=0)),
    "largest": lambda influence, rows: np.maximum(influence.on_target[rows].max(axis=0), 0),
    "projection": project,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    for name, influence in {"less": less(*given), "sketch": sketch(*given), "sketch cosine": cosine}.items():
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
