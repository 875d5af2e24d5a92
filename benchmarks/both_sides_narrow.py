"""When are labels on both sides to be used? Narrow targets: LESS, the ten targets of one family at a time.

    python benchmarks/both_sides.py           # once: the targets' gradients, in the same folder
    python benchmarks/both_sides_narrow.py    # a few minutes

The samples of the committed outcomes. A quarter of the pool's rows is labelled, and the network is fitted to these
alone ("pairs") and with the targets' influence on each other ("vectors"). The marks of each: exact influence of the
rows that the default objective chooses by the estimates, as a share of that of its choice by exact values, and fidelity
on the rows without a label. Each rule takes one of the two in each problem, by the labelled rows alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t

from estimated_choices import labelled_rows
from fidelity import read_features
from fidelity_tasks import Sides, grid, judged
from known_truth import trained_samples
from nncift.estimator.left_out import correlation, parts_of
from nncift.estimator.network import InfluenceNetwork
from nncift.estimator.vector_process import VectorProcess
from nncift.features.features import Features
from nncift.models.language_model import LanguageModel
from objective_choices import Problem, facility_location
from objective_influences import less, less_among_targets

BUDGETS = (6, 12)
MEASURES = ("subset_sum_correlation_within_target", "recall_of_top_tenth_within_target", "r2")


@dataclass(frozen=True)
class Case:
    """One family's targets and one draw of the labelled rows.

    Attributes:
        pairs: the marks of the network fitted to labelled pairs alone.
        vectors: of the one with labels on both sides.
        used: whether the network itself took these.
        squares: on labelled rows left out one at a time, squared errors of vectors over those of the targets' means.
        difference: subset-sum correlation of pairs less that of vectors, on the rows of a left-out part at a time.
        error: its standard error, by the jackknife over the rows.
    """

    pairs: list[float]
    vectors: list[float]
    used: bool
    squares: float
    difference: float
    error: float

    @classmethod
    def of(cls, influence: np.ndarray, among: np.ndarray, features: Sides, seed: int) -> Case:
        """From the exact influence on some targets, (n, m), and of these on each other, (m, m)."""
        rows, every = labelled_rows(len(influence), seed), np.arange(influence.shape[1])
        networks = [fitted(influence, rows, features, seed, labels) for labels in (None, among)]
        exact, vectors = influence[rows], networks[1].model.similarity
        if not isinstance(vectors, VectorProcess):
            raise SystemExit("vectors are not used here: there is nothing to compare")
        parts, alone = parts_of(len(rows), seed=seed), vectors.left_out(np.arange(len(rows)))
        expected = exact.copy()
        for part in np.unique(parts):
            network = fitted(influence, rows[parts != part], features, seed)
            expected[parts == part] = network.estimate(*features).block(rows[parts == part], every)
        means = (exact - exact.mean(axis=0)) * len(rows) / (len(rows) - 1)
        difference, error = jackknife(exact, expected, exact - vectors.left_out(parts), parts)
        marks = [judged_choice(influence, network, rows, features) for network in networks]
        both = networks[1].both_sides
        squares = float(np.square(alone).sum() / np.square(means).sum())
        return cls(*marks, both is not None and both.used, squares, difference, error)


RULES: dict[str, Callable[[Case], bool]] = {
    "never": lambda case: False,
    "they have smaller squares than the targets' means": lambda case: case.squares < 1,
    "pairs do not correlate better by two standard errors": lambda case: case.difference <= 2 * case.error,
    "they correlate at all (the rule now)": lambda case: case.used,
}


def fitted(
    influence: np.ndarray, rows: np.ndarray, features: Sides, seed: int, among: np.ndarray | None = None
) -> InfluenceNetwork:
    """The network of labelled rows, and of the targets' influence on each other."""
    every = np.arange(influence.shape[1])
    labels = None if among is None else grid(among, every, every)
    return InfluenceNetwork(seed=seed).fit(*features, grid(influence, rows, every), among_targets=labels)


def judged_choice(influence: np.ndarray, network: InfluenceNetwork, rows: np.ndarray, features: Sides) -> list[float]:
    """Share of the best choice's influence for each budget, labelled rows exact, and fidelity on the others."""
    estimated = network.estimate(*features).rows(slice(None)).astype(np.float64)
    new, every = np.setdiff1d(np.arange(len(influence)), rows), np.arange(influence.shape[1])
    measured = judged(influence, estimated, new, every)
    estimated[rows] = influence[rows]

    def value(by: np.ndarray, budget: int) -> float:
        problem = Problem(by, None, np.zeros((len(by), 1)), budget)
        return float(influence[facility_location(problem, "raw", mutual=True)].sum())

    shares = [value(estimated, budget) / value(influence, budget) for budget in BUDGETS]
    return [*shares, *(measured[one] for one in MEASURES)]


def jackknife(exact: np.ndarray, first: np.ndarray, second: np.ndarray, parts: np.ndarray) -> tuple[float, float]:
    """Difference of two expectations' correlations with what is exact, and its standard error over the rows."""

    def difference(kept: np.ndarray) -> float:
        one, other = (correlation(exact[kept], expected[kept], parts[kept]) for expected in (first, second))
        return one - other

    every, n = np.arange(len(exact)), len(exact)
    without = np.array([difference(np.delete(every, row)) for row in every])
    return difference(every), float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


def show(cases: list[Case]) -> None:
    """Print each rule's mean marks, and the last rule's less the others' with half a 95 % interval (Student's t)."""
    head = " | ".join([*(f"{budget} rows" for budget in BUDGETS), "correlation", "top tenth", "R2"])
    print(f"| vectors are taken where | in | {head} |\n|---|---|{'---|' * (len(BUDGETS) + len(MEASURES))}")
    found = {
        name: np.array([case.vectors if rule(case) else case.pairs for case in cases]) for name, rule in RULES.items()
    }
    for name, marks in found.items():
        cells = " | ".join(f"{mean:.2f}" for mean in marks.mean(axis=0))
        print(f"| {name} | {sum(map(RULES[name], cases))} of {len(cases)} | {cells} |")
    *others, last = found.values()
    for name, marks in zip(found, others, strict=False):
        gained = last - marks
        half = t.ppf(0.975, len(cases) - 1) * gained.std(axis=0, ddof=1) / np.sqrt(len(cases))
        cells = " | ".join(f"{mean:.2f} ± {width:.2f}" for mean, width in zip(gained.mean(axis=0), half, strict=True))
        print(f"| the rule now, less: {name} | | {cells} |")


def main() -> None:
    """Print every case, and the table of rules."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-fidelity"))
    parser.add_argument("--seeds", type=int, default=2, help="draws of the labelled rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pool, target, _, of_target = trained_samples()
    model = LanguageModel.load("embedded")
    influence = less(model, pool, target, options.folder).on_target
    among = less_among_targets(model, pool, target, options.folder).influence.reshape(len(target), -1)
    features = read_features(pool, target, f"truth-{len(pool)}x{len(target)}", options.folder, model)
    cases = []
    for seed in range(options.seeds):
        for family in np.unique(of_target):
            columns = np.flatnonzero(of_target == family)
            sides = features[0], Features({name: block[columns] for name, block in features[1].blocks.items()})
            cases.append(Case.of(influence[:, columns], among[np.ix_(columns, columns)], sides, seed))
            print(family, seed, cases[-1], flush=True)
    show(cases)


if __name__ == "__main__":
    main()
