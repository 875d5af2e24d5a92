"""Fidelity of estimated influence on committed exact values.

    python benchmarks/fidelity.py
    python benchmarks/fidelity.py --values p3-delift --methods "target mean" paper --seeds 2
    python benchmarks/fidelity.py --tasks truth

Questions, each over several seeds with the mean and its 95 % interval:

quadrants   Pool samples and targets are held out (a fifth of each), a share of all pairs is labelled in the grid of a
            run. Q1 both seen, Q2 new pool sample, Q3 new target, Q4 both new.
rows        48 or 100 pool samples are labelled on every target; the others are new.
curve       Ours with 12 to 100 pool samples labelled on every target; the others are new.
free        What needs no label: gradient-sketch, which is computed for this, and the similarities that features give.
choice      The same labels; each pool sample is estimated while held out. Normalized gain of facility location on the
            estimates: 0 is a random subset, 1 the selection by exact values.
probes      48 or 100 pool samples are labelled on every target, the new ones are measured on 8 targets: ours alone.
verified    The same selection, with and without probes, from a shortlist of twice the budget with exact values:
            measured in one round, or, as in a run, in rounds with refitting in between.
designs     Few long rows of labels or many short ones at equal time of the language model, with the same targets or
            each row's own.
truth       The linear datamodeling score of estimated influence on actual training (`outcomes`): a share of the pool
            samples keep their exact values, the rest are estimated.

Features are computed once and kept in `--folder`; the exact values come from `exact_values.py`, which takes hours.
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
from fidelity_methods import METHODS
from fidelity_tasks import (
    PROBES,
    Row,
    Sides,
    choice,
    designs,
    designs_by_sample,
    labelled_rows,
    learning_curve,
    pointwise,
    probed,
    quadrants,
    truth,
    verified,
    without_labels,
)
from known_truth import OUTCOMES
from nncift.evaluation.baselines import feature_similarities
from nncift.evaluation.datamodels import TrainingOutcomes
from nncift.features.sources import SKETCH, FeatureReader, FeatureSources
from nncift.influence.gradient_sketch import GradientSketch
from nncift.models.language_model import LanguageModel
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.run.folder.parts import FeatureFolder
from nncift.run.storage.files import write_json

Task = Callable[[int], Iterator[tuple[str, Row]]]


def read_features(
    pool: Dataset, target: Dataset, name: str, folder: Path, model: LanguageModel, names: str = "sentence,lm"
) -> Sides:
    """Features of both sides, computed once."""
    sources = FeatureSources.named(names.split(","), encoder="embedded", model=model.name)
    reader = FeatureReader(sources, EncoderSpec("embedded"), ModelSpec(model))
    sides = []
    for side, samples in (("pool", pool), ("target", target)):
        sides.append(reader.read(samples, f"{name}-{side}", FeatureFolder(folder / "features")))
    return sides[0], sides[1]


def of_others(exact: ExactValues) -> np.ndarray:
    """The influence, its entries of a sample on itself replaced by the column mean: no run labels these."""
    influence = exact.influence.astype(np.float64)
    itself = np.array(exact.pool_ids)[:, None] == np.array(exact.target_ids)
    means = np.nanmean(np.where(itself, np.nan, influence), axis=0)
    return np.where(itself, means, influence)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval over seeds."""
    array = np.array(values)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    return float(array.mean()), float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)


def measure(tasks: dict[str, Task], seeds: int, label: str) -> dict:
    """Case to method to measure to (mean, half interval); and how far the first method is above each other, by seed."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, task in tqdm(tasks.items(), desc=label):
        for seed in range(seeds):
            for case, row in task(seed):
                for key, value in row.items():
                    found.setdefault(case, {}).setdefault(name, {}).setdefault(key, []).append(float(value))
    for rows in found.values():
        first, *others = rows
        rows |= {f"{first}, above {other}": paired(rows[first], rows[other]) for other in others}
    return {
        case: {name: {key: interval(values) for key, values in row.items()} for name, row in rows.items()}
        for case, rows in found.items()
    }


def paired(row: dict[str, list[float]], other: dict[str, list[float]]) -> dict[str, list[float]]:
    """Differences of two methods on the same draws of labels, by measure, a number for each seed."""
    return {key: [a - b for a, b in zip(values, other[key], strict=True)] for key, values in row.items()}


def show(title: str, table: dict) -> None:
    """Print a table of all cases and methods."""
    for case, rows in table.items():
        keys = list(next(iter(rows.values())))
        print(f"\n{title}: {case}\n| | " + " | ".join(keys) + " |\n|---|" + "---|" * len(keys))
        for name, row in rows.items():
            cells = (f"{mean:.3f} ± {half:.3f}" if half == half else f"{mean:.3f}" for mean, half in row.values())
            print(f"| {name} | " + " | ".join(cells) + " |")


def questions(name: str, influence: np.ndarray, features: Sides, methods: list[str]) -> dict[str, dict[str, Task]]:
    """Question to method to its task."""
    curve: dict[str, Task] = {"ours": partial(learning_curve, influence, features, METHODS["ours"])}
    if name.startswith("truth"):
        outcomes = TrainingOutcomes.load(OUTCOMES)
        of_truth = {one: partial(truth, influence, features, outcomes, METHODS[one]) for one in methods}
        return {"truth": of_truth, "curve": curve}
    whole: dict[str, Callable] = {"quadrants": quadrants, "rows": labelled_rows, "choice": choice}
    if influence.shape[1] == 1:
        whole = {"pointwise": pointwise}
    asked = {
        question: {method: partial(task, influence, features, METHODS[method]) for method in methods}
        for question, task in whole.items()
    }
    if influence.shape[1] > 1:
        design = designs if name.endswith("delift") else designs_by_sample
        asked["designs"] = {"ours": partial(design, influence, features, METHODS["ours"])}
        asked["curve"] = curve
        asked["probes"] = {f"ours, {PROBES} probes": partial(probed, influence, features, PROBES)}
        asked["verified"] = {
            "ours": partial(verified, influence, features, 0),
            f"ours, {PROBES} probes": partial(verified, influence, features, PROBES),
        }
    return asked


def free(
    influence: np.ndarray, features: Sides, pool: Dataset, target: Dataset, model: LanguageModel
) -> dict[str, Task]:
    """Label-free similarity to its task."""
    function = GradientSketch(model)
    function.prepare(pool, target)
    i, j = np.divmod(np.arange(influence.size), influence.shape[1])
    found = {name: one(i, j).reshape(influence.shape) for name, one in feature_similarities(*features).items()}
    if SKETCH in found:
        found["gradient sketch, of the features"] = found.pop(SKETCH)
    found = {SKETCH: function(pool, target), **found}
    return {name: partial(without_labels, influence, similarity) for name, similarity in found.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in JOBS if (FOLDER / f"{name}.safetensors").exists()]
    parser.add_argument("--values", nargs="*", default=known, choices=list(JOBS), help="which exact values")
    parser.add_argument("--methods", nargs="*", default=None, choices=list(METHODS), help="all that the features allow")
    every = ["quadrants", "rows", "curve", "free", "choice", "designs", "pointwise", "probes", "verified", "truth"]
    parser.add_argument("--tasks", nargs="*", default=every, choices=every)
    parser.add_argument("--features", default="sentence,lm", help="as of nncift select")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-fidelity"))
    parser.add_argument("--output", type=Path, default=None, help="JSON of all figures; by default in the folder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = LanguageModel.load(options.model)
    asked = options.methods or [name for name in METHODS if name != SKETCH or SKETCH in options.features.split(",")]
    report: dict[str, dict] = {}

    def ask(title: str, tasks: dict[str, Task]) -> None:
        report[title] = measure(tasks, options.seeds, title)
        show(title, report[title])
        write_json(options.output or options.folder / "fidelity.json", report)

    for name in options.values:
        exact = ExactValues.load(FOLDER / f"{name}.safetensors")
        pool, target = JOBS[name][1]()
        if (tuple(map(str, pool["id"])), tuple(map(str, target["id"]))) != (exact.pool_ids, exact.target_ids):
            raise SystemExit(f"the samples are not those of {name}")
        samples = f"{name.partition('-')[0]}-{len(pool)}x{len(target)}"
        place = options.folder / ("" if options.features == "sentence,lm" else options.features)
        features = read_features(pool, target, samples, place, model, options.features)
        for task, methods in questions(name, of_others(exact), features, asked).items():
            if task in options.tasks:
                ask(f"{name}, {task}", methods)
        if "free" in options.tasks and exact.influence.shape[1] > 1:
            ask(f"{name}, free", free(of_others(exact), features, pool, target, model))


if __name__ == "__main__":
    main()
