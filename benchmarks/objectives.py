"""Does training on what an objective chooses beat training on random rows? On the samples of the committed outcomes.

    python benchmarks/objectives.py train --situations family --budgets 12   # resumes; several processes share the work
    python benchmarks/objectives.py table                                    # of what is trained so far
    python benchmarks/objectives.py less-on-pool                             # LESS between pool samples (redundancy)

120 pool rows and 80 targets of eight families. An objective sees one influence function's values on all targets
("broad"), on the ten targets of one family ("family"), or between pool samples alone ("none"). The model is trained on
what it chooses as the outcomes were; each distinct subset once, and a subset that shares more than nine tenths of its
rows with a trained one counts as that one. The table has the mean drop of the loss over the targets minus that of
random rows, with a 95 % bootstrap interval over targets and random choices, and in standard deviations of one random
choice (what chance alone does); and how many random rows have the same drop.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from functions import TRAINING
from known_truth import OUTCOMES, trained_samples
from nncift.evaluation.datamodels import TrainingOutcomes, measure_outcomes
from nncift.models.encoder import embed_texts, load_encoder
from nncift.models.language_model import LanguageModel
from nncift.run.storage.files import fingerprint, read_json, read_tensors, write_json, write_tensors
from objective_choices import DRAWN, OBJECTIVES, Problem
from objective_comparison import Choice, Comparison
from objective_influences import (
    Influence,
    known_family,
    less,
    less_on_pool,
    similarities,
    sketch,
    sketch_cosine,
    sketch_unweighted,
    sketch_weighted,
)

SITUATIONS = ("family", "broad", "none")
BUDGETS = (12, 30, 6)
SIMILARITIES = ("response-similarity", "representation-similarity", "embedding-similarity")
OWN = {
    "less": less,
    "sketch": sketch,
    "sketch weighted": sketch_weighted,
    "sketch cosine": sketch_unweighted,
    "sketch cosine weighted": sketch_cosine,
}
INFLUENCES = (*OWN, *SIMILARITIES, "family known")
FREE = ("random", "stratified")  # need no influence
SAME = 0.9  # share of common rows above which two subsets count as one


class Samples:
    """Pool, targets, sentence features and influences, read once."""

    def __init__(self, model: LanguageModel, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.pool, self.target, self.family, self.of_target = trained_samples()
        path = folder / "features.safetensors"
        if not path.exists():
            texts = [f"{p}\n{r}" for p, r in zip(self.pool["prompt"], self.pool["response"], strict=True)]
            write_tensors(path, {"features": embed_texts(texts, load_encoder("embedded"))})
        self.features = read_tensors(path)["features"].astype(np.float64)
        self._kept: dict[str, Influence] = {}

    def influence(self, name: str) -> Influence:
        """Of the function of that name."""
        if name not in self._kept:
            given = self.model, self.pool, self.target, self.folder / "influence"
            if name in SIMILARITIES:
                self._kept[name] = similarities(name, *given)
            elif name == "family known":
                self._kept[name] = known_family(self.family, self.of_target)
            else:
                self._kept[name] = OWN[name](*given)
        return self._kept[name]


def choices(samples: Samples, options: argparse.Namespace) -> Iterator[Choice]:
    """What the options ask for, in the order of importance: the free ones, then objective by objective."""
    for budget in options.budgets:
        for name in FREE:
            for seed in range(options.random if name == "random" else options.seeds):
                yield _choice(samples, "", "", budget, "", name, seed)
        for situation in options.situations:
            names = options.families if situation == "family" else [""]
            for objective in options.objectives:
                for influence in options.influences:
                    for seed in range(options.seeds if objective in DRAWN else 1):
                        for family in names:
                            try:
                                yield _choice(samples, situation, family, budget, influence, objective, seed)
                            except LookupError as error:
                                print(f"skipped {objective} of {influence}: {error}")
                                break


def _choice(
    samples: Samples, situation: str, family: str, budget: int, influence: str, objective: str, seed: int
) -> Choice:
    values = samples.influence(influence) if influence else Influence(np.zeros((len(samples.pool), 1)), None)
    on_target, weights = values.on_target, 1.0 if values.weights is None else values.weights
    if situation == "family":
        served = samples.of_target == family
        on_target, weights = on_target[:, served], weights if values.weights is None else values.weights[served]
    elif situation == "none":
        if values.on_pool is None or values.weights is not None:
            raise LookupError("the influence on the pool itself was not computed")
        on_target = values.on_pool
    problem = Problem(on_target, values.on_pool, samples.features, budget, seed, weights)
    rows = (OBJECTIVES | DRAWN)[objective](problem)
    assert len(set(rows.tolist())) == budget, objective
    return Choice(situation, family, budget, influence, objective, seed, tuple(sorted(rows.tolist())))


def train(samples: Samples, options: argparse.Namespace) -> None:
    """Fine-tune on each distinct subset and keep the losses of all targets."""
    store = Trainings(samples, options.folder, options.training_seeds)
    wanted = list(choices(samples, options))
    for wait in (False, True):  # first those that no other process is at, then those whose process may be gone
        for number, choice in enumerate(wanted):
            if store.drops(choice.rows, choice.family) is None:
                print(f"{number} of {len(wanted)}: {choice}", flush=True)
                store.train(choice.rows, choice.family, wait=wait)
    print("all trained")


class Trainings:
    """Losses after training by subset, a folder each: of all targets, or of the family that it was chosen for."""

    def __init__(self, samples: Samples, folder: Path, seeds: Sequence[int]) -> None:
        self.samples, self.folder, self.seeds = samples, folder / "trained", tuple(seeds)
        self.outcomes = TrainingOutcomes.load(OUTCOMES)
        ids = tuple(samples.pool["id"]), tuple(samples.target["id"])
        if ids != (self.outcomes.pool_ids, self.outcomes.target_ids):
            raise SystemExit("the samples are not those of the outcomes")
        self.before = self.outcomes.before.astype(np.float64)
        self._drops: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}
        self._read()

    def _read(self) -> None:
        """Those that are trained with all the seeds, averaged over these."""
        losses: dict[tuple[str, tuple[int, ...]], dict[int, list[float]]] = {}
        for path in self.folder.glob("*/seed-*-subset-0000.json"):
            record, seed = read_json(path.parent / "rows.json"), int(path.name.split("-")[1])
            losses.setdefault((record["family"], tuple(record["rows"])), {})[seed] = read_json(path)
        for key, after in losses.items():
            if key not in self._drops and after.keys() >= {*self.seeds}:
                served = self._served(key[0])
                self._drops[key] = np.full(len(self.before), np.nan)
                self._drops[key][served] = self.before[served] - np.mean([after[seed] for seed in self.seeds], axis=0)

    def drops(self, rows: tuple[int, ...], family: str) -> np.ndarray | None:
        """Reduction of each target's loss, (n_target,), after training on a subset that is this one or nearly so.

        nan where it was not measured; None if nothing like it was trained.
        """
        best, found = SAME * len(rows), None
        for (place, other), drops in self._drops.items():
            common = len({*rows} & {*other}) if len(other) == len(rows) and place in ("", family) else 0
            if common > best:
                best, found = common, drops
        return found

    def train(self, rows: tuple[int, ...], family: str, *, wait: bool) -> None:
        """One training a seed; of one that another process is at, wait for the end or leave it."""
        served = np.flatnonzero(self._served(family))
        subset = np.zeros((1, len(self.samples.pool)), bool)
        subset[0, list(rows)] = True
        pool, target = self.samples.pool, self.samples.target.select(served)
        for seed in self.seeds:
            place = self.folder / (fingerprint(family, list(rows))[:16] + (f"-{seed}" if seed else ""))
            write_json(place / "rows.json", {"rows": rows, "family": family})
            write_json(place / "before.json", self.outcomes.before[served].tolist())  # spares a pass over the targets
            with contextlib.suppress(Timeout), FileLock(place / ".claim", blocking=wait):
                measure_outcomes(self.samples.model, pool, target, subset, TRAINING, place, seeds=(seed,))
        self._read()

    def _served(self, family: str) -> np.ndarray:
        return (self.samples.of_target == family) | (family == "")


def table(samples: Samples, options: argparse.Namespace) -> None:
    """Print loss reductions beyond those of random rows, of the choices that are trained in full."""
    store = Trainings(samples, options.folder, options.training_seeds)
    groups: dict[tuple[str, int, str, str], list[Choice]] = {}
    for choice in choices(samples, options):
        groups.setdefault((choice.situation, choice.budget, choice.influence, choice.objective), []).append(choice)
    random = {int(store.outcomes.subsets[0].sum()): store.outcomes.drops[0]}  # rows: (n_choices, n_target)
    for budget in options.budgets:
        drawn = [store.drops(choice.rows, "") for choice in groups.get(("", budget, "", "random"), [])]
        random[budget] = np.array([drops for drops in drawn if drops is not None])
    random = {rows: drops for rows, drops in sorted(random.items()) if len(drops) >= 2}
    for situation, budget in itertools.product(options.situations, options.budgets):
        of_target = samples.of_target.copy()
        if situation == "family":
            of_target[~np.isin(of_target, options.families)] = ""
        if budget in random:
            comparison = Comparison(of_target, random, budget, pooled=situation != "family")
            comparison.heading(f"{situation}, {budget} rows")
            waiting = 0
            for (place, size, influence, objective), own in groups.items():
                if size == budget and place in (situation, "") and objective != "random":
                    trained = [store.drops(choice.rows, choice.family) for choice in own]
                    if any(drops is None for drops in trained):
                        waiting += 1
                        continue
                    comparison.line(f"{influence} | {objective}", own, trained)
            print(f"{waiting} not trained in full")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table", "less-on-pool"))
    parser.add_argument("--situations", nargs="+", choices=SITUATIONS, default=list(SITUATIONS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS), help="rows of 120")
    parser.add_argument("--influences", nargs="+", choices=INFLUENCES, default=list(INFLUENCES))
    parser.add_argument("--objectives", nargs="*", default=[*OBJECTIVES, *DRAWN][: -len(DRAWN)])
    parser.add_argument("--families", nargs="+", default=["amazon", "common", "kilt", "sciq"])
    parser.add_argument("--random", type=int, default=6, help="random choices of each budget")
    parser.add_argument("--seeds", type=int, default=2, help="draws of the other objectives that draw")
    parser.add_argument("--training-seeds", nargs="+", type=int, default=[0], help="drops are means over these")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-objectives"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    samples = Samples(LanguageModel.load("embedded"), options.folder)
    if options.what == "less-on-pool":
        less_on_pool(samples.model, samples.pool, options.folder / "influence")
    else:
        {"train": train, "table": table}[options.what](samples, options)


if __name__ == "__main__":
    main()
