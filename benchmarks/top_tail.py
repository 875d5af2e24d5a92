"""Query loss difference: training without, and with only, the top samples of each function (`influence.py top-tail`).

The base is a third of the committed pool, five samples of each family; its top tenth for each family of targets is left
out, or trained on alone, and compared with random samples. A function costs 16 trainings (384 row-passes of 3 epochs),
about ten minutes of one core at 1.8 s for three passes of a row; several processes share the work of one function.
Values that `exact/` has are taken from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset

from exact_values import FOLDER, ExactValues
from functions import TRAINING, exact_values
from known_truth import trained_samples
from nncift.evaluation.datamodels import TrainingOutcomes, measure_outcomes
from nncift.evaluation.top_tail import ONLY, WITHOUT, random_subsets, tail_effects, top_subsets
from nncift.models.language_model import LanguageModel

RESULTS = Path(__file__).parent / "outcomes" / "top-tail"
EVERY, SHARE, DRAWS = 3, 0.1, 5
COMMITTED = {"less, trained alike, both sides": "truth-less", "delift": "truth-delift"}


def top_tail(options: argparse.Namespace, model: LanguageModel, folder: Path) -> dict[str, dict[str, float]]:
    """Loss difference to random samples with its interval, of both kinds; what is not committed is trained."""
    pool, target, _, of_target = trained_samples()
    groups, base = list(map(str, of_target)), np.arange(len(pool)) % EVERY == 0
    target = target.add_column("task", groups)
    results = RESULTS if options.results is None else options.results

    def outcomes(name: str, subsets: dict[tuple[str, str], np.ndarray]) -> TrainingOutcomes:
        place = name.replace(", ", "-").replace(" ", "-")
        path, members = results / f"{place}.safetensors", np.array(list(subsets.values()))
        if path.exists():
            found = TrainingOutcomes.load(path)
            if found.settings["model"] != model.name or not np.array_equal(found.subsets, members):
                raise SystemExit(f"{path} has outcomes of another model or other subsets: choose another --results")
            return found
        found = measure_outcomes(
            model, pool, target, members, TRAINING, folder / "trainings" / place, seeds=(0,), progress=True
        )
        results.mkdir(parents=True, exist_ok=True)
        found.save(path)
        return found

    chance = random_subsets(base, draws=DRAWS, share=SHARE)
    random, table = outcomes("random", chance), {}
    for name in options.functions:
        subsets = top_subsets(values(name, model, pool, target, folder), groups, base=base, share=SHARE)
        effects = tail_effects(outcomes(name, subsets), list(subsets), random, list(chance), groups)
        table[name] = {
            f"{kind} the top{part}": getattr(effects[kind], field)
            for kind in (WITHOUT, ONLY)
            for part, field in (("", "value"), (", low", "low"), (", high", "high"))
        }
    return table


def values(name: str, model: LanguageModel, pool: Dataset, target: Dataset, folder: Path) -> np.ndarray:
    """Exact influence of every pool sample on every target, (n_pool, n_target), committed or computed."""
    if name not in COMMITTED:
        return exact_values(name, model, pool, target, folder)[0]
    stored = ExactValues.load(FOLDER / f"{COMMITTED[name]}.safetensors")
    if stored.pool_ids != tuple(pool["id"]) or stored.target_ids != tuple(target["id"]):
        raise SystemExit("the committed values are those of other samples")
    return stored.influence
