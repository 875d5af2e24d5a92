"""Choosing under uncertainty: does more than the posterior mean of the estimates help the choice?

    python benchmarks/choosing.py --values truth-delift truth-less p3-delift p3-less demo-delift --rows 48 --seeds 4

Of committed exact values (`exact_values.py`) all targets of `--rows` pool samples are labelled, and each pool sample is
estimated while held out, as in `fidelity.py --tasks choice`. Each rule makes the estimates, their posterior and
similarities without labels into a choice; its gain is between random rows (0) and the choice by exact values (1), as
the table has it beside its difference to the choice by means, with 95 % intervals over draws of the labelled rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from exact_values import FOLDER, JOBS, ExactValues
from fidelity import interval, of_others, read_features
from fidelity_methods import learned
from fidelity_tasks import BUDGETS, Sides, facility_location, gained, grid
from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.baselines import feature_similarities
from nncift.influence.gradient_sketch import GradientSketch
from nncift.models.language_model import LanguageModel

DRAWS = 32  # of the posterior
WEIGHTS = (0.25, 0.5, 1.0, 2.0)
SKETCH, STATES = "gradient-sketch", "response-similarity"


@dataclass(frozen=True)
class Estimates:
    """Estimates of all pairs by networks that did not see the pool sample.

    Attributes:
        exact: (n, m) float64, as all arrays.
        mean: (n, m) posterior mean.
        posterior: (n, m) posterior standard deviation of the smooth part, interaction and main effect.
        predictive: (n, m) with nuggets and noise, which the exact values have.
        labelled: rows that a network fitted to the other labelled ones predicts, to fit weights on.
        held_out: (labelled, m) what it predicts.
        alike: name to similarity without labels, (n, m).
        first: labelled rows of the first network, which another one predicts.
    """

    exact: np.ndarray
    mean: np.ndarray
    posterior: np.ndarray
    predictive: np.ndarray
    labelled: np.ndarray
    held_out: np.ndarray
    alike: Mapping[str, np.ndarray]
    first: np.ndarray

    @classmethod
    def of(cls, exact: np.ndarray, features: Sides, alike: Mapping[str, np.ndarray], rows: int, seed: int) -> Estimates:
        """From three fits, the first two as `fidelity_tasks.held_out` has them."""
        order, every = np.random.default_rng([seed, 3]).permutation(len(exact)), np.arange(exact.shape[1])
        first, second, aside = order[:rows], order[rows : 2 * rows], order[: max(rows // 5, 10)]

        def fit(some: np.ndarray) -> InfluenceNetwork:
            return learned(*features, grid(exact, np.sort(some), every), seed)

        parts = [spread(fit(some), features) for some in (first, second)]
        for whole, others in zip(*parts, strict=True):
            whole[first] = others[first]
        held_out = fit(first[len(aside) :]).estimate(*features).rows(aside).astype(np.float64)
        return cls(exact, *parts[0], aside, held_out, alike, first)


def spread(network: InfluenceNetwork, features: Sides) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, posterior and predictive standard deviation of all pairs, (n, m) each."""
    process = network.model
    interaction, main = process.posterior.variances(features[0])
    y = process.target.coordinates(features[1][:])
    prior = process.posterior.target_covariance(y, y).diagonal().numpy()
    scale = process.target_effects(y)[0]
    own, own_main = process.pool.nugget.tolist()
    smooth = interaction[:, None] * prior + main[:, None]
    whole = smooth + own * prior + own_main + process.numbers["noise"]
    mean = network.estimate(*features).rows(slice(None)).astype(np.float64)
    return mean, np.sqrt(smooth) * scale, np.sqrt(whole) * scale


def within(values: np.ndarray) -> np.ndarray:
    """Minus each target's mean."""
    return values - values.mean(axis=0)


def maximum(deviation: str, some: Estimates, size: int) -> np.ndarray:
    """Greedy for the expected maximum, E sum over targets of the best chosen sample, over draws of the posterior."""
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((DRAWS, *some.mean.shape))
    return facility_location(np.concatenate([*(some.mean + getattr(some, deviation) * noise)], axis=1), size)


def soft(share: float, some: Estimates, size: int) -> np.ndarray:
    """Greedy for sum over targets of t log(1 + sum over chosen of exp(mean / t)), the maximum under Gumbel noise.

    t is that noise's scale at `share` of the target's predictive standard deviation.
    """
    scale = share * np.sqrt(6) / np.pi * some.predictive.mean(axis=0)
    each, total, chosen = np.exp(np.minimum(some.mean / scale, 60)), np.ones(some.mean.shape[1]), []
    for _ in range(size):
        gains = (scale * np.log1p(each / total)).sum(axis=1)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        total += each[chosen[-1]]
    return np.array(chosen)


def bounded(share: float, some: Estimates, size: int) -> np.ndarray:
    """By mean + share * posterior standard deviation."""
    return facility_location(some.mean + share * some.posterior, size)


def shrunk(some: Estimates, size: int) -> np.ndarray:
    """Each target's column times its slope on held-out rows, which is shrunk halfway to the slope of all."""
    x, y = within(some.held_out), within(some.exact[some.labelled])
    square, product = (x * x).sum(axis=0), (x * y).sum(axis=0)
    slope = (product + square.mean() * product.sum() / square.sum()) / (square + square.mean())
    return facility_location(some.mean.mean(axis=0) + np.maximum(slope, 0) * within(some.mean), size)


def blended(some: Estimates, name: str, weight: float) -> np.ndarray:
    """The mean plus a similarity at `weight` times the mean's standard deviation within targets."""
    alike = within(some.alike[name])
    return some.mean + weight * within(some.mean).std() / alike.std() * alike


def fitted(name: str, some: Estimates, size: int) -> np.ndarray:
    """Weights of mean and similarity by non-negative least squares on held-out rows."""
    alike = some.alike[name]
    columns = [within(some.held_out).ravel(), within(alike[some.labelled]).ravel()]
    own, other = nnls(np.array(columns).T, within(some.exact[some.labelled]).ravel())[0]
    return facility_location(some.mean.mean(axis=0) + own * within(some.mean) + other * within(alike), size)


def by_choice(name: str, some: Estimates, size: int) -> np.ndarray:
    """The weight whose choices among labelled rows, estimated while held out, have the largest exact value."""
    rng, tried = np.random.default_rng(0), [some.mean, *(blended(some, name, weight) for weight in (*WEIGHTS, 4.0))]
    value = np.zeros(len(tried))
    for _ in range(100):
        rows = rng.permutation(some.first)[: int(0.6 * len(some.first))]
        for number, matrix in enumerate(tried):
            chosen = rows[facility_location(matrix[rows], max(2, round(0.15 * len(rows))))]
            value[number] += np.maximum(some.exact[chosen].max(axis=0), 0).sum()
    return facility_location(tried[int(value.argmax())], size)


Rule = Callable[[Estimates, int], np.ndarray]
RULES: dict[str, Rule] = {
    "mean, as a run": lambda some, size: facility_location(some.mean, size),
    "expected maximum, posterior": partial(maximum, "posterior"),
    "expected maximum, posterior and noise": partial(maximum, "predictive"),
    **{f"soft facility location, {share}": partial(soft, share) for share in (0.25, 0.5, 1.0)},
    **{f"mean {share:+} sd": partial(bounded, share) for share in (-1.0, -0.5, 0.5, 1.0)},
    "columns shrunk by reliability": shrunk,
    **{
        f"{name} alone": lambda some, size, name=name: facility_location(some.alike[name], size)
        for name in (SKETCH, STATES)
    },
    **{
        f"mean + {weight} {name}": lambda some, size, name=name, weight=weight: facility_location(
            blended(some, name, weight), size
        )
        for name in (SKETCH, STATES)
        for weight in WEIGHTS
    },
    **{f"fitted weight of {name}": partial(fitted, name) for name in (SKETCH, STATES)},
    f"weight of {SKETCH} by choice": partial(by_choice, SKETCH),
}


def table(cases: list[Estimates], seeds: list[int]) -> str:
    """A row for each rule: gains at all budgets, and differences to the choice by means."""
    sizes = [round(budget * len(cases[0].exact)) for budget in BUDGETS]
    gains = {
        name: np.array(
            [
                [gained(some.exact, rule(some, size), seed)["normalized_gain"] for size in sizes]
                for some, seed in zip(cases, seeds, strict=True)
            ]
        )
        for name, rule in RULES.items()
    }
    base, lines = next(iter(gains.values())), []
    for name, gain in gains.items():
        differences = [interval(list(column)) for column in (gain - base).T]
        cells = " / ".join(f"{mean:+.2f} ± {half:.2f}" for mean, half in differences)
        lines.append(f"| {name} | {' / '.join(f'{mean:.2f}' for mean in gain.mean(axis=0))} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in JOBS if (FOLDER / f"{name}.safetensors").exists() and name != "p3-selectit"]
    parser.add_argument("--values", nargs="*", default=known, choices=known, help="which exact values")
    parser.add_argument("--rows", type=int, default=48, help="labelled rows, at most half of the pool's")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-fidelity"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = LanguageModel.load(options.model)
    for name in options.values:
        exact = of_others(ExactValues.load(FOLDER / f"{name}.safetensors"))
        pool, target = JOBS[name][1]()
        samples = f"{name.partition('-')[0]}-{len(pool)}x{len(target)}"
        features = read_features(pool, target, samples, options.folder, model)
        function = GradientSketch(model)
        function.prepare(pool, target)
        i, j = np.divmod(np.arange(exact.size), exact.shape[1])
        states = feature_similarities(*features)["response similarity"](i, j).reshape(exact.shape)
        alike = {SKETCH: function(pool, target).astype(np.float64), STATES: states}
        seeds = list(range(options.seeds))
        cases = [Estimates.of(exact, features, alike, options.rows, seed) for seed in seeds]
        print(f"\n{name}, {options.rows} rows, {options.seeds} draws\n| | gain | difference |\n|---|---|---|")
        print(table(cases, seeds), flush=True)


if __name__ == "__main__":
    main()
