"""Exact influence of seeded samples, computed in pieces that resume, kept as ids and numbers without texts.

    python benchmarks/exact_values.py p3-delift      # 240 x 160 samples of P3, hours; a killed one goes on
    python benchmarks/exact_values.py alpaca-delift  # 160 samples of Alpaca on themselves
    python benchmarks/exact_values.py demo-delift    # 120 samples of the demo's pool on its 40 targets
    python benchmarks/exact_values.py p3-less p3-selectit truth-less truth-delift
    python benchmarks/exact_values.py mixture-less   # 240 x 160 of P3, the demo's pool and GSM8K

The fidelity of estimated influence is measured on these.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from functions import exact_values
from known_truth import p3, short_samples, trained_samples
from nncift.data.demo import embedded_data
from nncift.data.pool import load_pool
from nncift.models.language_model import LanguageModel
from nncift.run.storage.files import cache_folder, read_json, read_tensors, write_json, write_tensors
from samples import DATA

FOLDER = Path(__file__).parent / "exact"
LONGEST = 800  # characters of a sample


@dataclass(frozen=True)
class ExactValues:
    """Exact influence of pool samples on targets.

    Attributes:
        pool_ids, target_ids: ids of the samples.
        influence: (n_pool, n_target) float32; one column for a pointwise function.
        settings: the influence function's description.
    """

    pool_ids: tuple[str, ...]
    target_ids: tuple[str, ...]
    influence: np.ndarray
    settings: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write `path` (safetensors) and beside it `.json`."""
        write_tensors(path, {"influence": self.influence})
        facts = {"pool_ids": self.pool_ids, "target_ids": self.target_ids, "settings": self.settings}
        write_json(path.with_suffix(".json"), facts)

    @classmethod
    def load(cls, path: Path) -> ExactValues:
        """Read what `save` wrote."""
        facts = read_json(path.with_suffix(".json"))
        ids = tuple(facts["pool_ids"]), tuple(facts["target_ids"])
        return cls(*ids, read_tensors(path)["influence"], facts["settings"])


def p3_samples(rows: int, targets: int) -> tuple[Dataset, Dataset]:
    """Different samples of P3 as pool and targets, as many of each family as can be."""
    data, families = p3()
    order = np.random.default_rng(3).permutation(short_samples(LONGEST))
    turn = np.zeros(len(order), np.int64)  # the how manyth of its family
    for name in np.unique(families):
        own = families[order] == name
        turn[own] = np.arange(own.sum())
    chosen = order[np.argsort(turn, kind="stable")][: rows + targets]
    chosen = np.random.default_rng(4).permutation(chosen)
    return data.select(chosen[:rows]), data.select(chosen[rows:])


def alpaca_samples(rows: int) -> tuple[Dataset, Dataset]:
    """Samples of Alpaca, which are their own targets."""
    data = load_pool(DATA / "alpaca_en.json")
    short = [k for k, row in enumerate(data) if len(row["prompt"]) + len(row["response"]) <= LONGEST]
    some = data.select(np.random.default_rng(3).permutation(short)[:rows])
    return some, some


def demo_samples(rows: int) -> tuple[Dataset, Dataset]:
    """Samples of the demo's pool, and its targets, which are of four families."""
    pool, target = (load_pool(path) for path in embedded_data(cache_folder() / "demo"))
    return pool.select(np.sort(np.random.default_rng(3).permutation(len(pool))[:rows])), target


def mixture_samples(rows: int, targets: int) -> tuple[Dataset, Dataset]:
    """Three fifths P3, three tenths the demo's pool of tasks and conversation, a tenth GSM8K, on both sides."""
    sides: list[list[Dataset]] = [[], []]
    counts = (rows * 3 // 5, targets * 3 // 5), (rows * 3 // 10, targets * 3 // 10)
    for side, part in zip(sides, p3_samples(*counts[0]), strict=True):
        side.append(part)
    tasks, _ = embedded_data(cache_folder() / "demo")
    left = rows - counts[0][0] - counts[1][0], targets - counts[0][1] - counts[1][1]
    for path, (n, m) in ((tasks, counts[1]), (DATA / "gsm8k_train.jsonl.gz", left)):
        data = load_pool(path)
        short = [k for k, row in enumerate(data) if len(row["prompt"]) + len(row["response"]) <= LONGEST]
        chosen = np.random.default_rng(3).permutation(short)[: n + m]
        for side, some in zip(sides, (chosen[:n], chosen[n:]), strict=True):
            side.append(data.select(some))
    columns = ["id", "prompt", "response"]
    pool, target = (concatenate_datasets([part.select_columns(columns) for part in side]) for side in sides)
    return pool, target


# What to compute: of which function, on which samples.
JOBS: dict[str, tuple[str, Callable[[], tuple[Dataset, Dataset]]]] = {
    "p3-delift": ("delift", lambda: p3_samples(240, 160)),
    "alpaca-delift": ("delift", lambda: alpaca_samples(160)),
    "demo-delift": ("delift", lambda: demo_samples(120)),
    "p3-less": ("less, both sides", lambda: p3_samples(240, 160)),
    "p3-selectit": ("selectit", lambda: p3_samples(500, 1)),
    "mixture-less": ("less, trained alike, both sides", lambda: mixture_samples(240, 160)),
    "truth-less": ("less, trained alike, both sides", lambda: trained_samples()[:2]),
    "truth-delift": ("delift", lambda: trained_samples()[:2]),
}


def main() -> None:
    """Compute what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="+", choices=JOBS)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-exact"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = LanguageModel.load(options.model)
    for name in options.jobs:
        function_name, samples = JOBS[name]
        pool, target = samples()
        influence, settings = exact_values(function_name, model, pool, target, options.folder / name)
        ids = tuple(map(str, pool["id"])), tuple(map(str, target["id"]))
        ExactValues(*ids, influence, settings).save(FOLDER / f"{name}.safetensors")
        print(f"{name}: written to {FOLDER}")


if __name__ == "__main__":
    main()
