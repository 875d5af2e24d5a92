"""Does training on what an objective chooses beat training on random rows? On the samples of the committed outcomes.

    python benchmarks/objectives.py train --situations family --budgets 12   # resumes; several processes share the work
    python benchmarks/objectives.py table                                    # of what is trained so far
    python benchmarks/objectives.py less-on-pool                             # LESS between pool samples (redundancy)

120 pool rows and 80 targets of eight families. An objective sees one influence function's values on all targets
("broad"), on the ten targets of one family ("family"), or between pool samples alone ("none"). The model is trained on
what it chooses as the outcomes were; each distinct subset once, and a subset that shares more than nine tenths of its
rows with a trained one counts as that one. The table has the mean drop of the loss over the targets minus that of
random rows, with a 95 % bootstrap interval over targets, beside the spread of the random choices themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from functions import TRAINING
from known_truth import OUTCOMES, trained_samples
from nncift.evaluation.datamodels import TrainingOutcomes, measure_outcomes
from nncift.models.encoder import embed_texts, load_encoder
from nncift.models.language_model import LanguageModel
from nncift.run.files import fingerprint, read_json, read_tensors, write_json, write_tensors
from objective_choices import DRAWN, OBJECTIVES, Problem
from objective_influences import Influence, known_family, less, less_on_pool, similarities, sketch, sketch_only_cosine

SITUATIONS = ("family", "broad", "none")
BUDGETS = (12, 30, 6)
SIMILARITIES = ("response-similarity", "representation-similarity", "embedding-similarity")
INFLUENCES = ("less", "sketch", "sketch cosine", *SIMILARITIES, "family known")
FREE = ("random", "stratified")  # need no influence
SAME = 0.9  # share of common rows above which two subsets count as one
RESAMPLES = 2000


@dataclass(frozen=True)
class Choice:
    """A subset and where it comes from."""

    situation: str
    family: str  # the target's; "" if all
    budget: int
    influence: str  # "" if none is used
    objective: str
    seed: int
    rows: tuple[int, ...]  # sorted


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
                self._kept[name] = {"less": less, "sketch": sketch, "sketch cosine": sketch_only_cosine}[name](*given)
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
    on_target = values.on_target
    if situation == "family":
        on_target = on_target[:, samples.of_target == family]
    elif situation == "none":
        if values.on_pool is None:
            raise LookupError("the influence on the pool itself was not computed")
        on_target = values.on_pool
    problem = Problem(on_target, values.on_pool, samples.features, budget, seed)
    rows = (OBJECTIVES | DRAWN)[objective](problem)
    assert len(set(rows.tolist())) == budget, objective
    return Choice(situation, family, budget, influence, objective, seed, tuple(sorted(rows.tolist())))


def train(samples: Samples, options: argparse.Namespace) -> None:
    """Fine-tune on each distinct subset and keep the losses of all targets."""
    store = Trainings(samples, options.folder)
    wanted = list(choices(samples, options))
    for wait in (False, True):  # first those that no other process is at, then those whose process may be gone
        for number, choice in enumerate(wanted):
            if store.drops(choice.rows, choice.family) is None:
                print(f"{number} of {len(wanted)}: {choice}", flush=True)
                store.train(choice.rows, choice.family, wait=wait)
    print("all trained")


class Trainings:
    """Losses after training by subset, a folder each: of all targets, or of the family that it was chosen for."""

    def __init__(self, samples: Samples, folder: Path) -> None:
        self.samples, self.folder = samples, folder / "trained"
        self.outcomes = TrainingOutcomes.load(OUTCOMES)
        ids = tuple(samples.pool["id"]), tuple(samples.target["id"])
        if ids != (self.outcomes.pool_ids, self.outcomes.target_ids):
            raise SystemExit("the samples are not those of the outcomes")
        self.before = self.outcomes.before.astype(np.float64)
        self._drops: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}
        self._read()

    def _read(self) -> None:
        for path in self.folder.glob("*/rows.json"):
            losses = path.parent / "seed-0-subset-0000.json"
            record = read_json(path)
            key = record["family"], tuple(record["rows"])
            if key not in self._drops and losses.exists():
                drops = np.full(len(self.before), np.nan)
                served = self._served(key[0])
                drops[served] = self.before[served] - np.array(read_json(losses))
                self._drops[key] = drops

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
        """One training; of one that another process is at, wait for the end or leave it."""
        place = self.folder / fingerprint(family, list(rows))[:16]
        write_json(place / "rows.json", {"rows": rows, "family": family})
        served = np.flatnonzero(self._served(family))
        write_json(place / "before.json", self.outcomes.before[served].tolist())  # spares a pass over the targets
        subset = np.zeros((1, len(self.samples.pool)), bool)
        subset[0, list(rows)] = True
        pool, target = self.samples.pool, self.samples.target.select(served)
        with contextlib.suppress(Timeout), FileLock(place / ".claim", blocking=wait):
            measure_outcomes(self.samples.model, pool, target, subset, TRAINING, place, seeds=(0,))
        self._read()

    def _served(self, family: str) -> np.ndarray:
        return (self.samples.of_target == family) | (family == "")


def table(samples: Samples, options: argparse.Namespace) -> None:
    """Print loss reductions beyond those of random rows."""
    store = Trainings(samples, options.folder)
    groups: dict[tuple[str, int, str, str], list[Choice]] = {}
    for choice in choices(samples, options):
        groups.setdefault((choice.situation, choice.budget, choice.influence, choice.objective), []).append(choice)
    random = {
        budget: np.array([d for c in groups["", budget, "", "random"] if (d := store.drops(c.rows, "")) is not None])
        for budget in options.budgets
    }
    for situation in options.situations:
        targets = np.isin(samples.of_target, options.families) if situation == "family" else samples.of_target != ""
        for budget in options.budgets:
            if len(random[budget]) < 2:
                continue
            _heading(samples, situation, budget, random[budget][:, targets], store)
            for (place, size, influence, objective), own in groups.items():
                if size == budget and place in (situation, "") and objective != "random":
                    _line(samples, store, situation, own, random[budget], targets, f"{influence} | {objective}")


def _heading(samples: Samples, situation: str, budget: int, drops: np.ndarray, store: Trainings) -> None:
    means = drops.mean(axis=1)
    print(f"\n{situation}, {budget} rows: {len(means)} random choices, mean drop {means.mean():.3f}", end="")
    print(f", each {', '.join(f'{m - means.mean():+.2f}' for m in means)}")
    print("| influence | objective | drop beyond random's | interval | relative | of random's spread | trained |")
    print("|---|---|---|---|---|---|---|")


def _line(
    samples: Samples,
    store: Trainings,
    situation: str,
    own: list[Choice],
    random: np.ndarray,
    targets: np.ndarray,
    name: str,
) -> None:
    """Difference over the targets that were trained for; the spread is that of one random choice a family."""
    beyond, spread = np.full((len(own), random.shape[1]), np.nan), np.full(random.shape[1], np.nan)
    for number, choice in enumerate(own):
        drops = store.drops(choice.rows, choice.family)
        served = samples.of_target == choice.family if choice.family else targets
        if drops is not None:
            beyond[number, served] = (drops - random.mean(axis=0))[served]
    kept = np.flatnonzero(np.isfinite(beyond).any(axis=0))
    if not len(kept):
        return
    difference, average = np.nanmean(beyond[:, kept], axis=0), random.mean(axis=0)[kept]
    rng = np.random.default_rng(0)
    groups = samples.of_target[kept]
    means = np.empty(RESAMPLES)
    for repeat in range(RESAMPLES):  # targets within their family
        own_targets = (np.flatnonzero(groups == group) for group in np.unique(groups))
        drawn = np.concatenate([rng.choice(some, len(some)) for some in own_targets])
        means[repeat] = difference[drawn].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    deviations = random[:, kept] - random[:, kept].mean(axis=0)
    if situation == "family":  # a choice for each family, so chance averages out over the families
        each = np.array([deviations[:, groups == g].sum(axis=1) for g in np.unique(groups)]) / len(kept)
        spread = np.sqrt((each.var(axis=1, ddof=1)).sum())
    else:
        spread = deviations.mean(axis=1).std(ddof=1)
    trained = sum(store.drops(choice.rows, choice.family) is not None for choice in own)
    print(
        f"| {name} | {difference.mean():+.3f} | {low:+.3f} to {high:+.3f} | {difference.mean() / average.mean():+.0%}"
        f" | {difference.mean() / spread:+.1f} | {trained} of {len(own)} |"
    )


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
