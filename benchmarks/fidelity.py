"""Fidelity of estimated influence, on committed exact values: who predicts what was never labelled?

    python benchmarks/fidelity.py
    python benchmarks/fidelity.py --values p3-delift --methods "target mean" paper --seeds 2
    python benchmarks/fidelity.py --tasks truth

Four questions, each over several seeds with the mean and its 95 % interval:

quadrants   Pool samples and targets are held out (a fifth of each), a share of all pairs is labelled in the grid that a
            run would label. Q1 both seen, Q2 new pool sample, Q3 new target, Q4 both new.
rows        48 or 100 pool samples are labelled on every target; the others are new.
choice      The same labels; each pool sample is estimated by a network that never saw it. Facility location chooses
            from the estimates; its choice is valued with the exact values: 0 is a random subset, 1 the exact choice.
truth       The linear datamodelling score of estimated influence on what training really did (`outcomes`), beside the
            exact values': a share of the pool samples keep those, the rest are estimated.

Features are computed once and kept in `--folder`, and so are the exact values of the truth's samples; all others come
from `exact_values.py`, which takes hours.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from scipy import stats
from tqdm import tqdm

from exact_values import FOLDER, JOBS, ExactValues
from fidelity_methods import METHODS, Method
from functions import exact_values
from known_truth import OUTCOMES, trained_samples
from nncift.embeddings import embed
from nncift.features import Features, stored_features
from nncift.fidelity import measures
from nncift.greedy import lazy_greedy
from nncift.labelling import plan_pairs
from nncift.language_features import language_features
from nncift.language_model import LanguageModel
from nncift.matrix import InfluenceMatrix
from nncift.objectives import FacilityLocation
from nncift.pairs import LabelledPairs
from nncift.storage import write_json
from nncift.truth import TrainingOutcomes, linear_datamodelling_score

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.4)  # of all pairs, labelled
ROWS = (48, 100)  # pool samples, labelled on every target
BUDGETS = (0.05, 0.1, 0.3)
POOL_SHARES = (0.05, 0.1, 0.25)  # of the pool samples of the training outcomes, labelled
QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
TRUTH = ("delift", "less, trained alike, both sides")

Row = dict[str, float]
Sides = tuple[Features, Features]
Task = Callable[[Method, int], Iterator[tuple[str, Row]]]


def grid(influence: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> LabelledPairs:
    """The labels of rows x columns of a matrix of exact values."""
    i, j = np.repeat(rows, len(columns)), np.tile(columns, len(rows))
    return LabelledPairs(i.astype(np.int32), j.astype(np.int32), influence[i, j].astype(np.float32))


def judged(influence: np.ndarray, predicted: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Row:
    """All measures of the predictions of rows x columns."""
    pairs = grid(influence, rows, columns)
    guess = predicted[pairs.pool_index, pairs.target_index]
    found = measures(pairs, guess, scale=float(np.ptp(influence)))
    best = max(len(pairs) // 10, 1)
    top, guessed = (set(np.argsort(-values, kind="stable")[:best].tolist()) for values in (pairs.influence, guess))
    return {name: np.nan if value is None else value for name, value in found.items()} | {
        "recall_of_top_tenth": len(top & guessed) / best
    }


def quadrants(influence: np.ndarray, features: Sides, method: Method, seed: int) -> Iterator[tuple[str, Row]]:
    """Measures in each quadrant for each share of labelled pairs."""
    n, m = influence.shape
    rng = np.random.default_rng([seed, 1])
    pool, target = rng.permutation(n), rng.permutation(m)
    seen_pool, new_pool = pool[n // 5 :], pool[: n // 5]
    seen_target, new_target = target[m // 5 :], target[: m // 5]
    for fraction in FRACTIONS:
        wanted = round(fraction * n * m)
        plan = plan_pairs(len(seen_pool), len(seen_target), wanted, seed=seed)
        rows, columns = seen_pool[plan.rows], seen_target[plan.columns]
        predicted = method(*features, grid(influence, rows, columns), seed)
        parts = zip(
            QUADRANTS, ((rows, columns), (new_pool, columns), (rows, new_target), (new_pool, new_target)), strict=True
        )
        for name, (i, j) in parts:
            yield f"{name}, {fraction:.0%}", judged(influence, predicted, np.sort(i), np.sort(j))


def labelled_rows(influence: np.ndarray, features: Sides, method: Method, seed: int) -> Iterator[tuple[str, Row]]:
    """Measures on new pool samples with some labelled on every target, and on samples that are new on both sides."""
    n, m = influence.shape
    rng = np.random.default_rng([seed, 2])
    pool, target = rng.permutation(n), rng.permutation(m)
    for count in ROWS:
        predicted = method(*features, grid(influence, pool[:count], np.arange(m)), seed)
        yield f"Q2, {count} rows", judged(influence, predicted, np.sort(pool[max(ROWS) :]), np.arange(m))
        predicted = method(*features, grid(influence, pool[:count], target[m // 4 :]), seed)
        yield f"Q4, {count} rows", judged(influence, predicted, np.sort(pool[max(ROWS) :]), np.sort(target[: m // 4]))


def held_out(influence: np.ndarray, features: Sides, method: Method, count: int, seed: int) -> np.ndarray:
    """Predictions of every pool sample by a network that saw `count` others on every target."""
    n, m = influence.shape
    order = np.random.default_rng([seed, 3]).permutation(n)
    first, second = order[:count], order[count : 2 * count]
    predicted = method(*features, grid(influence, first, np.arange(m)), seed)
    predicted[first] = method(*features, grid(influence, second, np.arange(m)), seed)[first]
    return predicted


def choice(influence: np.ndarray, features: Sides, method: Method, seed: int) -> Iterator[tuple[str, Row]]:
    """Normalised gain of facility location on estimates, and overlap with the exact choice."""
    n = len(influence)
    for count in ROWS:
        predicted = held_out(influence, features, method, count, seed)
        rng = np.random.default_rng([seed, 4])
        for budget in BUDGETS:
            size = round(budget * n)
            best, chosen = (facility_location(matrix, size) for matrix in (influence, predicted))
            random = np.mean([covered(influence, rng.permutation(n)[:size]) for _ in range(200)])
            gain = (covered(influence, chosen) - random) / (covered(influence, best) - random)
            overlap = len(np.intersect1d(best, chosen)) / size
            yield f"{count} rows, budget {budget:.0%}", {"normalised_gain": gain, "overlap": overlap}


def facility_location(influence: np.ndarray, size: int) -> np.ndarray:
    """The greedy choice."""
    matrix = InfluenceMatrix.from_array(np.ascontiguousarray(influence, dtype=np.float32))
    return np.asarray(lazy_greedy(FacilityLocation(matrix), size).indices)


def covered(influence: np.ndarray, chosen: np.ndarray) -> float:
    """Facility location's value: the sum over targets of the best chosen sample's influence, at least 0."""
    return float(np.maximum(influence[chosen].max(axis=0), 0).sum())


def truth(
    influence: np.ndarray, features: Sides, outcomes: TrainingOutcomes, method: Method, seed: int
) -> Iterator[tuple[str, Row]]:
    """Linear datamodelling score with exact values for some pool samples and estimates for the others."""
    n, m = influence.shape
    yield "all exact", {"lds": linear_datamodelling_score(influence, outcomes).value}
    for share in POOL_SHARES:
        rows = np.random.default_rng([seed, 5]).permutation(n)[: max(round(share * n), 2)]
        mixed = method(*features, grid(influence, rows, np.arange(m)), seed).copy()
        mixed[rows] = influence[rows]
        yield f"{share:.0%} exact", {"lds": linear_datamodelling_score(mixed, outcomes).value}


def read_features(pool: Dataset, target: Dataset, name: str, folder: Path, model: LanguageModel) -> Sides:
    """Features of both sides, computed once."""
    sides = []
    for side, samples in (("pool", pool), ("target", target)):
        names = {"sentence": f"{name}-{side}", "lm": f"{name}-{side}.lm"}
        embed(samples, "embedded", folder=folder / "features", name=names["sentence"])
        language_features(samples, model, folder=folder / "features", name=names["lm"])
        sides.append(stored_features(folder / "features", names))
    return sides[0], sides[1]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval over seeds."""
    array = np.array(values)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    return float(array.mean()), float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)


def measure(task: Task, methods: list[str], seeds: int, label: str) -> dict:
    """Case to method to measure to (mean, half interval)."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in tqdm(methods, desc=label):
        for seed in range(seeds):
            for case, row in task(METHODS[name], seed):
                for key, value in row.items():
                    found.setdefault(case, {}).setdefault(name, {}).setdefault(key, []).append(float(value))
    return {
        case: {name: {key: interval(values) for key, values in row.items()} for name, row in rows.items()}
        for case, rows in found.items()
    }


def show(title: str, table: dict) -> None:
    """Print a table of all cases and methods."""
    for case, rows in table.items():
        keys = list(next(iter(rows.values())))
        print(f"\n{title}: {case}\n| | " + " | ".join(keys) + " |\n|---|" + "---|" * len(keys))
        for name, row in rows.items():
            cells = (f"{mean:.3f} ± {half:.3f}" if half == half else f"{mean:.3f}" for mean, half in row.values())
            print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in JOBS if (FOLDER / f"{name}.safetensors").exists()]
    parser.add_argument("--values", nargs="*", default=known, choices=list(JOBS), help="which exact values")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    tasks = {"quadrants": quadrants, "rows": labelled_rows, "choice": choice}
    parser.add_argument("--tasks", nargs="*", default=[*tasks, "truth"], choices=[*tasks, "truth"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-fidelity"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = LanguageModel.load(options.model)
    report: dict[str, dict] = {}

    def ask(title: str, task: Task) -> None:
        report[title] = measure(task, options.methods, options.seeds, title)
        show(title, report[title])

    for name in options.values:
        exact = ExactValues.load(FOLDER / f"{name}.safetensors")
        pool, target = JOBS[name][1]()
        if (tuple(map(str, pool["id"])), tuple(map(str, target["id"]))) != (exact.pool_ids, exact.target_ids):
            raise SystemExit(f"the samples are not those of {name}")
        data = exact.influence.astype(np.float64), read_features(pool, target, name, options.folder, model)
        for task in [task for task in options.tasks if task in tasks]:
            ask(f"{name}, {task}", partial(tasks[task], *data))
    if "truth" in options.tasks:
        pool, target, _, _ = trained_samples()
        outcomes = TrainingOutcomes.load(OUTCOMES)
        features = read_features(pool, target, "truth", options.folder, model)
        for name in TRUTH:
            influence = exact_values(name, model, pool, target, options.folder / "truth")[0].astype(np.float64)
            ask(f"{name}, truth", partial(truth, influence, features, outcomes))
    write_json(options.folder / "fidelity.json", report)


if __name__ == "__main__":
    main()
