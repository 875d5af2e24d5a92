"""Does a choice by estimates, by another function or from a measured shortlist train like one by exact influence?

On the samples of the committed outcomes.

    python benchmarks/estimated_choices.py --budgets 6 12               # resumes; several processes share the work
    python benchmarks/estimated_choices.py --budgets 6 12 --verify 2    # chosen by exact values from a shortlist
    python benchmarks/estimated_choices.py --budgets 6 12 --verify 2 --by sketch    # of gradient-sketch, without labels
    python benchmarks/estimated_choices.py --budgets 6 12 --by delift   # by exact values of another function
    python benchmarks/estimated_choices.py --budgets 6 12 --of delift   # estimates of DELIFT beside exact DELIFT

120 pool rows; the ten targets of one family at a time. The exact influence is LESS, or DELIFT with `--of`. A quarter of
the rows is labelled on these targets, of LESS the targets on each other as well (`--rows-alone`: not), and an
InfluenceNetwork estimates the others, as in a run; labelled rows keep their exact values. The objective is the mutual-
information form of facility location, with relevance that counts as much as coverage. The model is trained on both
choices as the outcomes were, and the losses of the targets are compared, paired, with a 95 % interval by Student's t
over the ten. With `--by NAME --ranks` both choices are by that function, and the second by nncift's default, in which
coverage decides and then targets take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t

from exact_values import FOLDER, ExactValues
from fidelity import read_features
from fidelity_tasks import Sides, grid
from functions import NAMES, TRAINING, exact_values
from nncift.estimator.network import InfluenceNetwork
from nncift.features.features import Features
from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import encode_examples
from nncift.training.trainer import fine_tune
from objective_choices import Problem, coverage_and_ranks, facility_location
from objective_influences import less_among_targets
from objectives import Samples, Trainings

SHARE = 0.25  # of the pool rows that are labelled
LAYERS = {"less-middle-layer": "middle", "less-three-layers": [10, 15, 20]}  # at the same checkpoints as LESS
OTHERS = ("sketch", *NAMES, *LAYERS)


def values_of(name: str, samples: Samples, folder: Path) -> np.ndarray:
    """Exact influence by another function, (n_pool, n_target): committed, kept in `folder`, or computed."""
    given = samples.model, samples.pool, samples.target
    if name == "sketch":
        return samples.influence(name).on_target
    if name == "delift":
        stored = ExactValues.load(FOLDER / "truth-delift.safetensors")
        assert (stored.pool_ids, stored.target_ids) == (tuple(samples.pool["id"]), tuple(samples.target["id"]))
        return stored.influence
    if name not in LAYERS:
        return exact_values(name, *given, folder)[0]
    points = fine_tune(samples.model, encode_examples(samples.model, samples.pool), TRAINING, folder / "warm-up")
    chosen = {"layers": LAYERS[name], "checkpoints": [point.folder for point in points]}
    return exact_values("less", *given, folder / name, preconditioned="both", **chosen)[0]


def labelled_rows(n: int, seed: int) -> np.ndarray:
    """A share of n rows, ascending."""
    return np.sort(np.random.default_rng([seed, 5]).permutation(n)[: round(SHARE * n)])


def estimates(
    influence: np.ndarray, features: Sides, columns: np.ndarray, seed: int, among: np.ndarray | None = None
) -> np.ndarray:
    """Influence on some targets: exact of a share of the rows, estimated of the others, (n_pool, len(columns)).

    With `among`, the influence of all targets on each other (n_target, n_target), that of these is labelled too.
    """
    rows = labelled_rows(len(influence), seed)
    pool, target = features[0], Features({name: block[columns] for name, block in features[1].blocks.items()})
    every = np.arange(len(columns))
    labels = None if among is None else grid(among[np.ix_(columns, columns)], every, every)
    network = InfluenceNetwork(seed=seed)
    network.fit(pool, target, grid(influence[:, columns], rows, every), among_targets=labels)
    values = network.estimate(pool, target).rows(slice(None)).astype(np.float64)
    values[rows] = influence[np.ix_(rows, columns)]
    return values


def chosen(values: np.ndarray, samples: Samples, budget: int, *, ranks: bool = False) -> tuple[int, ...]:
    """The rows that the objective takes, ascending."""
    problem = Problem(values, None, samples.features, budget)
    rows = coverage_and_ranks(problem) if ranks else facility_location(problem, "raw", mutual=True)
    return tuple(sorted(rows.tolist()))


def verified(
    values: np.ndarray, exact: np.ndarray, samples: Samples, budget: int, times: float, labelled: np.ndarray
) -> tuple[int, ...]:
    """What it takes by exact values from the labelled rows and those that it would take first by other values."""
    rows = np.union1d(chosen(values, samples, round(times * budget)), labelled).astype(np.int64)
    return tuple(sorted(rows[list(chosen(exact[rows], samples, budget))].tolist()))


@dataclass(frozen=True)
class Way:
    """How rows are chosen without the exact values of all.

    Attributes:
        exact: the influence whose choice this is compared with, (n_pool, n_target).
        values: influence by another function, (n_pool, n_target), instead of estimates from labels.
        times: size of the shortlist that is measured exactly, in budgets; 0 without one.
        among: influence of the targets on each other, (n_target, n_target); None to estimate from labelled rows alone.
        ranks: by nncift's default objective, beside the same values with as much relevance as coverage.
    """

    exact: np.ndarray
    values: np.ndarray | None
    times: float
    among: np.ndarray | None = None
    ranks: bool = False

    def choose(self, samples: Samples, features: Sides, columns: np.ndarray, budget: int, seed: int) -> tuple[int, ...]:
        """The rows for some targets, ascending."""
        influence = self.exact
        if self.values is not None:
            values, labelled = self.values[:, columns].astype(np.float64), np.zeros(0, np.int64)
        else:
            values = estimates(influence, features, columns, seed, self.among)
            labelled = labelled_rows(len(influence), seed)
        if not self.times:
            return chosen(values, samples, budget, ranks=self.ranks)
        return verified(values, influence[:, columns], samples, budget, self.times, labelled)


def trained(store: Trainings, rows: tuple[int, ...], family: str) -> np.ndarray:
    """The drops of all targets' losses, trained where they are not there, (n_target,)."""
    if store.drops(rows, family) is None:
        store.train(rows, family, wait=True)
    found = store.drops(rows, family)
    assert found is not None
    return found


def line(name: str, differences: np.ndarray, common: float) -> bool:
    """Print one comparison of losses; whether the estimate is no worse."""
    n, mean = len(differences), float(differences.mean())
    half = float(t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    verdict = "tie" if abs(mean) <= half else "worse" if mean > 0 else "better"
    shared = "" if np.isnan(common) else f"{common:.0%}"
    print(f"| {name} | {n} | {shared} | {mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}] | {verdict} |", flush=True)
    return verdict != "worse"


def compare(
    samples: Samples, store: Trainings, features: Sides, budget: int, seeds: Sequence[int], way: Way, first: str
) -> None:
    """Print a table of the families; `first` names what the choices by `way.exact` are."""
    influence = way.exact
    print(f"\n{budget} rows\n\n| target | targets | rows in common | loss beyond that of {first} | |")
    print("|---|---|---|---|---|")
    every, passed, number = [], 0, 0
    for family in np.unique(samples.of_target):
        columns = np.flatnonzero(samples.of_target == family)
        exact = chosen(influence[:, columns], samples, budget)
        for seed in seeds:
            other = way.choose(samples, features, columns, budget, seed)
            difference = (trained(store, exact, family) - trained(store, other, family))[columns]
            name = family if way.values is not None else f"{family}, labels {seed}"
            passed += line(name, difference, len({*exact} & {*other}) / budget)
            number += 1
            every.append(difference)
    line("all", np.concatenate(every), float("nan"))
    print(f"tie or better in {passed} of {number}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", nargs="+", type=int, default=[6, 12], help="rows of 120")
    parser.add_argument("--label-seeds", nargs="+", type=int, default=[0], help="which rows are labelled")
    parser.add_argument("--training-seeds", nargs="+", type=int, default=[0], help="losses are means over these")
    parser.add_argument("--verify", type=float, default=0, help="size of the shortlist, in budgets; none unless given")
    parser.add_argument("--rows-alone", action="store_true", help="label pool rows alone, not the targets as well")
    parser.add_argument("--ranks", action="store_true", help="by the default objective, beside the other")
    parser.add_argument("--by", choices=OTHERS, default=None, help="choose by this function instead of estimates")
    parser.add_argument("--of", choices=["less", "delift"], default="less", help="the exact influence to compare with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-objectives"))
    options = parser.parse_args()
    if options.ranks and (options.by is None or options.verify):
        parser.error("--ranks goes with --by, and not with --verify")
    torch.set_num_threads(options.threads)
    model = LanguageModel.load("embedded")
    samples = Samples(model, options.folder)
    features = read_features(samples.pool, samples.target, "truth", options.folder, model)
    store = Trainings(samples, options.folder, options.training_seeds)
    seeds, among, values, place = options.label_seeds, None, None, options.folder / "influence"
    alike = options.of == "less"  # the committed LESS is that of the same training
    exact = samples.influence("less").on_target if alike else values_of(options.of, samples, place)
    first = f"exact {options.of.upper()}"
    if options.by:
        seeds, values = [0], values_of(options.by, samples, place)
        if options.ranks:
            exact, first = values, "the mutual-information form"
    elif alike and not options.rows_alone:
        labels = less_among_targets(model, samples.pool, samples.target, options.folder)
        among = labels.influence.reshape(len(samples.target), -1)
    way = Way(exact, values, options.verify, among, options.ranks)
    for budget in options.budgets:
        compare(samples, store, features, budget, seeds, way, first)


if __name__ == "__main__":
    main()
