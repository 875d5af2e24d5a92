"""What the maximisers reach beside lazy greedy, and what the certificate proves by gains and by the relaxation.

    python benchmarks/maximizers.py

Synthetic samples in 40 clusters, cosines of their vectors as influence: 3,000 samples, 5 % chosen, parts of 500; then
2,000 samples and three budgets. Targets are 50 other samples where the objective is not one of the pool with itself.
One draw.
"""

from __future__ import annotations

import os
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1))

import numpy as np

from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.maximizers import partitioned_greedy
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.maximizers.table import maximize
from nncift.selection.objectives.built_in import COVERAGE
from nncift.selection.objectives.coverage import ConcaveCover
from nncift.selection.objectives.table import Objective, ObjectiveOptions, make_objective
from selection import show

CLUSTERS, WIDTH, TARGETS, PART = 40, 64, 50, 500
WITH_TARGET = ("facility-location-reciprocal-rank", "facility-location-mutual-information")
PLAIN = ("facility-location", "concave-cover", "graph-cut", "log-determinant")


class Problem:
    """Samples, 50 targets of the same clusters, and objectives of these."""

    def __init__(self, n: int) -> None:
        rng = np.random.default_rng(0)
        centres = rng.standard_normal((CLUSTERS, WIDTH), dtype=np.float32)
        x = centres[rng.integers(CLUSTERS, size=n + TARGETS)]
        x += rng.standard_normal(x.shape, dtype=np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        self.samples, self.targets = x[:n], x[n:]

    def objective(self, name: str, expected: int, targets: np.ndarray | None = None) -> Objective:
        """The objective, of these targets alone where they are given."""
        on = self.samples if name == PLAIN[0] else self.targets
        on = on if targets is None else on[targets]
        options = ObjectiveOptions(has_target=name != PLAIN[0], expected=expected, features=self.samples)
        return make_objective(name, InfluenceMatrix.from_array(self.samples @ on.T), options)


def maximizers(n: int = 3000, share: float = 0.05) -> None:
    """The value of each maximiser's choice beside that of lazy greedy, and what is proven for the latter."""
    problem, budget, names = Problem(n), round(share * n), ("stochastic", "threshold", "partitioned")
    partitioned_greedy.PART = PART
    show("value beside `lazy`'s", *(f"`{name}`" for name in names), "proven for `lazy`")
    show(*["---"] * 5)
    for objective in (PLAIN[0], *WITH_TARGET, *PLAIN[1:]):
        make, own = partial(problem.objective, objective, budget), objective == PLAIN[0]
        best = maximize(make, budget, own_targets=own, certify=True)
        cells = []
        for name in names:
            refused = (objective, name) == ("graph-cut", "threshold")  # its gains can rise
            found = None if refused else maximize(make, budget, maximizer=name, own_targets=own)
            cells.append("-" if found is None else f"{found.value / best.value:.1%}")
        show(objective, *cells, best.certificate.percent)


def certificates(n: int = 2000, budgets: tuple[int, ...] = (20, 100, 600)) -> None:
    """The share of the best value that is proven by gains alone, and with the relaxation."""
    problem = Problem(n)
    show(f"{n:,} samples", *(f"budget {budget}" for budget in budgets))
    show(*["---"] * (1 + len(budgets)))
    for name in ("facility-location", *WITH_TARGET, "concave-cover"):
        for label in ("by gains", "by the relaxation"):
            shares = []
            for budget in budgets:
                objective = problem.objective(name, budget)
                if label == "by gains":  # what is derived from a built-in objective has no relaxation
                    assert isinstance(objective, (*COVERAGE, ConcaveCover))
                    objective.__class__ = type("Derived", (type(objective),), {})
                shares.append(lazy_greedy(objective, budget, certify=True).certificate.percent)
            show(f"{name}, {label}", *shares)


if __name__ == "__main__":
    maximizers()
    print()
    certificates()
