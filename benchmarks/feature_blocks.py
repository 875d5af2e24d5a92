"""What sentence embeddings and the gradient sketch add to the estimates, beside the language model's other features.

    python benchmarks/feature_blocks.py
    python benchmarks/feature_blocks.py --values p3-less demo-delift --rows 48 --seeds 4

Features of all kinds are read once; the network is fitted to each set of them, with the same labelled samples. A
quarter of the targets is held out and some pool samples are labelled on the others, so that one fit gives estimates of
new pool samples (Q2) and of samples that are new on both sides (Q4). On the samples of the training outcomes also the
linear datamodeling score, with exact values of a share of the pool samples. Each figure has its difference to the first
set, with the 95 % interval over the draws of the labelled samples. Exact values are those of `exact_values.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from exact_values import FOLDER, JOBS, ExactValues
from fidelity import interval, of_others, read_features
from fidelity_methods import ours
from fidelity_tasks import Row, Sides, grid, judged, truth
from known_truth import OUTCOMES
from nncift.evaluation.datamodels import TrainingOutcomes
from nncift.features.features import Features
from nncift.features.sources import SKETCH
from nncift.models.language_model import LanguageModel
from nncift.run.storage.files import write_json

SETS = {  # blocks that are left out
    "sentence,lm": {SKETCH},
    "lm": {SKETCH, "sentence"},
    "sentence,lm,gradient-sketch": set(),
    "lm,gradient-sketch": {"sentence"},
}
MARKS = ("subset_sum_correlation_within_target", "recall_of_top_tenth_within_target", "r2", "lds")

Task = Callable[[Sides, int], Iterator[tuple[str, Row]]]


def without(features: Sides, blocks: set[str]) -> Sides:
    """Both sides without some blocks."""
    pool, target = (
        Features({name: block for name, block in side.blocks.items() if name not in blocks}) for side in features
    )
    return pool, target


def labelled(influence: np.ndarray, rows: Sequence[int], features: Sides, seed: int) -> Iterator[tuple[str, Row]]:
    """Fidelity on new pool samples, on labelled targets and on those held out, by the number of labelled rows."""
    n, m = influence.shape
    rng = np.random.default_rng([seed, 2])
    pool, target = rng.permutation(n), rng.permutation(m)
    new = np.sort(pool[round(0.6 * n) :])
    for count in rows:
        predicted = ours(*features, grid(influence, pool[:count], target[m // 4 :]), seed)
        yield f"Q2, {count} rows", judged(influence, predicted, new, np.sort(target[m // 4 :]))
        yield f"Q4, {count} rows", judged(influence, predicted, new, np.sort(target[: m // 4]))


def scored(influence: np.ndarray, features: Sides, seed: int) -> Iterator[tuple[str, Row]]:
    """Linear datamodeling score with exact values of some pool samples."""
    outcomes = TrainingOutcomes.load(OUTCOMES)
    yield from (one for one in truth(influence, features, outcomes, ours, seed) if one[0] != "all exact")


def compared(title: str, task: Task, features: Sides, seeds: int) -> dict[str, dict]:
    """Case to mark to set of features to mean, half interval, and those of the difference to the first set."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for seed in tqdm(range(seeds), desc=title):
        for name, blocks in SETS.items():
            for case, row in task(without(features, blocks), seed):
                for mark in (mark for mark in MARKS if mark in row):
                    found.setdefault(case, {}).setdefault(mark, {}).setdefault(name, []).append(float(row[mark]))
    first = next(iter(SETS))
    return {
        case: {
            mark: {
                name: (*interval(values), *interval(list(np.subtract(values, of_set[first]))))
                for name, values in of_set.items()
            }
            for mark, of_set in marks.items()
        }
        for case, marks in found.items()
    }


def show(title: str, table: dict[str, dict]) -> None:
    """Print a row for each case and mark, a column for each set."""
    print(f"\n{title}\n| | mark | " + " | ".join(SETS) + " |\n|---|---|" + "---|" * len(SETS))
    for case, marks in table.items():
        for mark, of_set in marks.items():
            cells = (
                f"{mean:.3f}" + (f" ({more:+.3f} ± {half:.3f})" if name != next(iter(SETS)) else "")
                for name, (mean, _, more, half) in of_set.items()
            )
            print(f"| {case} | {mark} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ["truth-less", "truth-delift", "p3-less", "p3-delift", "demo-delift", "alpaca-delift"]
    parser.add_argument("--values", nargs="*", default=known, choices=known, help="which exact values")
    parser.add_argument("--rows", nargs="*", type=int, default=[12, 48], help="pool samples that are labelled")
    parser.add_argument("--seeds", type=int, default=4, help="draws of the labelled samples")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-feature-blocks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, report = LanguageModel.load("embedded"), {}
    for name in options.values:
        exact = ExactValues.load(FOLDER / f"{name}.safetensors")
        pool, target = JOBS[name][1]()
        if (tuple(map(str, pool["id"])), tuple(map(str, target["id"]))) != (exact.pool_ids, exact.target_ids):
            raise SystemExit(f"the samples are not those of {name}")
        samples = f"{name.partition('-')[0]}-{len(pool)}x{len(target)}"
        features = read_features(pool, target, samples, options.folder, model, "sentence,lm,gradient-sketch")
        influence = of_others(exact)
        tasks: dict[str, Task] = {name: partial(labelled, influence, options.rows)}
        if name.startswith("truth"):
            tasks[f"{name}, against training"] = partial(scored, influence)
        for title, task in tasks.items():
            report[title] = compared(title, task, features, options.seeds)
            show(title, report[title])
            write_json(options.folder / "feature-blocks.json", report)


if __name__ == "__main__":
    main()
