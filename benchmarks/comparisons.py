"""Are the intervals of comparisons honest? Simulated models with known means, items and seeds.

    python benchmarks/comparisons.py errors    # no difference: how often is a winner called? at most 6 %
    python benchmarks/comparisons.py power     # how often is a difference found, beside a test that knows all variances
    python benchmarks/comparisons.py budgets   # coverage and width of the interval of the equivalent random budget

The sizes are those of our trainings: relative to the standard error over items of a mean difference, the mean of a
model on the same rows varies by 0.35 over seeds, and by 1.1 where each seed draws other rows (random choices); single
losses vary over seeds by a quarter of what they vary over items. A single seed is taken to vary as much as the other
model's, so it must not vary more: b's does not. The percentile bootstrap over items and seeds is what
is usually reported.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product

import numpy as np
from scipy.stats import norm

from nncift.evaluation.comparisons import TIE, compare
from nncift.evaluation.intervals import interval
from nncift.evaluation.learning_curve import equivalent_budget

SEEDS = ((3, 3), (3, 1), (3, 0), (5, 5), (2, 2))  # 0: not trained
OVER_SEEDS = ((0.02, 0.02), (0.3, 0.3), (1.1, 0.35), (1.1, 1.1))  # of a and b, in standard errors
SHAPES = {"normal": 100, "heavy-tailed": 150, "binary": 100}  # items of each
INTERACTION = 0.25  # of seed and item, relative to the items' standard deviation
BUDGETS = (25, 50, 100, 200, 400, 1000)
BOOTSTRAPS = 400


class World:
    """Models whose results on the same items differ by chance."""

    def __init__(self, shape: str, seed: int) -> None:
        self.shape, self.n = shape, SHAPES[shape]
        self.rng = np.random.default_rng(seed)

    def noise(self, *size: int) -> np.ndarray:
        """Of variance 1: normal, or Student's t with three degrees of freedom."""
        if self.shape == "heavy-tailed":
            return np.asarray(self.rng.standard_t(3, size) / np.sqrt(3))
        return self.rng.standard_normal(size)

    def model(self, seeds: int, over_seeds: float, mean: float = 0.0) -> np.ndarray:
        """Scores (seeds, n) of a model; items of a difference have a standard deviation of about 1."""
        item = self.noise(self.n) / np.sqrt(2)
        seed = over_seeds / np.sqrt(self.n) * self.rng.standard_normal((seeds, 1))
        return mean + item + seed + INTERACTION * self.noise(seeds, self.n)

    def pair(self, seeds: tuple[int, int], over_seeds: tuple[float, float], difference: float) -> list[np.ndarray]:
        """Scores of two models on items of varying difficulty."""
        difficulty = 2 * self.noise(self.n)
        sides = zip(seeds, over_seeds, (difference, 0.0), strict=True)
        models = [difficulty + self.model(*side) for side in sides]
        return [(model > 0).astype(np.float64) for model in models] if self.shape == "binary" else models


def bootstrapped(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> bool:
    """Whether the percentile bootstrap over items and seeds calls a difference."""
    items = rng.multinomial(a.shape[1], np.full(a.shape[1], 1 / a.shape[1]), BOOTSTRAPS) / a.shape[1]
    means = []
    for side in (a, b):
        seeds = rng.multinomial(len(side), np.full(len(side), 1 / len(side)), BOOTSTRAPS) / len(side)
        means.append(np.einsum("rs,si,ri->r", seeds, side, items, optimize=True))
    found = interval(means[0] - means[1])
    return found is not None and not found[0] <= 0 <= found[1]


def rates(options: argparse.Namespace, difference: float) -> Iterator[tuple[str, ...]]:
    """How often ours, the bootstrap and the test that knows all variances call a winner, in percent."""
    yield "items", "seeds", "sd over seeds", "ours", "bootstrap", "known variances"
    shapes = [shape for shape in SHAPES if not difference or shape != "binary"]
    for shape, seeds, over_seeds in product(shapes, SEEDS, OVER_SEEDS):
        if not seeds[1]:  # untrained
            seeds, over_seeds = (seeds[0], 1), (over_seeds[0], 0.0)
        world, winners, fixed = World(shape, options.seed), np.zeros(2), not over_seeds[1]
        noise = sum((s**2 + INTERACTION**2) / k for s, k in zip(over_seeds, seeds, strict=True))
        for _ in range(options.repeats):
            a, b = world.pair(seeds, over_seeds, difference * np.sqrt((1 + noise) / world.n))
            ours = compare(a, b, larger_is_better=True, binary=shape == "binary", fixed_b=fixed).verdict != TIE
            winners += ours, bootstrapped(a, b, world.rng)
        known = norm.sf(1.96 - difference) + norm.sf(1.96 + difference)
        shown = [f"{100 * rate:.1f}" for rate in (*winners / options.repeats, known)]
        sides = " v ".join([str(seeds[0]), "untrained" if fixed else str(seeds[1])])
        yield f"{world.n} {shape}", sides, " and ".join(map(str, over_seeds)), *shown


def budgets(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Coverage of the true equivalent budget, its median estimate, and the median ratio of high to low."""
    yield "seeds", "sd over seeds", "true budget", "coverage %", "median", "high / low", "no upper limit %"
    for seeds in (2, 3, 5):
        for over_seeds in (0.02, 0.35, 1.1):
            for true in (60, 340, 700):
                world = World("heavy-tailed", options.seed)
                found = []
                for _ in range(options.repeats):
                    difficulty = 4 * world.noise(world.n)
                    random = {k: difficulty + world.model(seeds, over_seeds, curve(k)) for k in BUDGETS}
                    chosen = difficulty + world.model(seeds, min(over_seeds, 0.35), curve(true))
                    untuned = difficulty + world.model(1, 0.0, curve(0))[0]
                    found.append(equivalent_budget(random, chosen, untuned=untuned))
                covered = [
                    ("low" in e.below or e.low <= true)
                    and "low" not in e.above
                    and (e.high >= true or "high" in e.above)
                    for e in found
                ]
                ratio = np.median([e.high / max(e.low, 1) for e in found])
                shares = np.mean(covered), np.mean(["high" in e.above for e in found])
                middle = f"{np.median([e.value for e in found]):.0f}", f"{ratio:.1f}"
                yield (
                    str(seeds),
                    str(over_seeds),
                    str(true),
                    f"{100 * shares[0]:.1f}",
                    *middle,
                    f"{100 * shares[1]:.0f}",
                )


def curve(rows: float) -> float:
    """A power law of the rows, in standard deviations of an item's difference."""
    return float(4 * (1 + rows / 5) ** -0.25)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("errors", "power", "budgets"))
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--difference", type=float, default=3.0, help="for power, in standard errors")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    difference = options.difference if options.what == "power" else 0.0
    for number, row in enumerate(budgets(options) if options.what == "budgets" else rates(options, difference)):
        print("| " + " | ".join(row) + " |", flush=True)
        if not number:
            print("|" + "---|" * len(row))


if __name__ == "__main__":
    main()
