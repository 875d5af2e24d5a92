"""Samples with known ground truth: P3 with its task families, with shuffled responses, and with training outcomes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
from datasets import Dataset

from nncift.data.pool import load_pool
from nncift.evaluation.datamodels import draw_subsets
from samples import DATA

OUTCOMES = Path(__file__).parent / "outcomes" / "p3-smollm2.safetensors"
FAMILIES, POOL_PER_FAMILY, TARGETS_PER_FAMILY, SUBSETS = 8, 15, 10, 40
LONGEST = 800  # characters of a sample that is trained on


@cache
def p3() -> tuple[Dataset, np.ndarray]:
    """All of P3 and the family of each sample, (n,) str."""
    path = DATA / "p3_pool.jsonl.gz"
    if not path.exists():
        raise SystemExit(f"{path} does not exist; NNCIFT_SHARED_DATA names the folder that holds p3_pool.jsonl.gz")
    rows = load_pool(path)
    return rows, np.array([json.loads(original)["task"] for original in rows["original"]])


def trained_samples() -> tuple[Dataset, Dataset, np.ndarray, np.ndarray]:
    """The pool and the targets of the outcomes, and the family of each."""
    rows, families = p3()
    short = np.zeros(len(rows), bool)
    short[short_samples(LONGEST)] = True
    names, counts = np.unique(families[short], return_counts=True)
    rng = np.random.default_rng(0)
    pool, target = [], []
    for name in sorted(rng.permutation(names[counts >= 100])[:FAMILIES]):
        order = rng.permutation(np.flatnonzero(short & (families == name)))
        pool += order[:POOL_PER_FAMILY].tolist()
        target += order[POOL_PER_FAMILY : POOL_PER_FAMILY + TARGETS_PER_FAMILY].tolist()
    return rows.select(pool), rows.select(target), families[pool], families[target]


def trained_subsets() -> np.ndarray:
    """The halves of the pool that are trained on, (n_subsets, n_pool) bool."""
    return draw_subsets(FAMILIES * POOL_PER_FAMILY, SUBSETS)


def family_samples(
    rows: int, families: int, targets: int, *, longest: int, seed: int
) -> tuple[Dataset, Dataset, np.ndarray, np.ndarray]:
    """A pool of P3 rows, and targets of a few families that are not in it, with the family of each.

    The targets have a `task` column.
    """
    data, all_families = p3()
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(short_samples(longest))
    pool, rest = order[:rows], order[rows:]
    names, counts = np.unique(all_families[rest], return_counts=True)
    chosen = sorted(rng.permutation(names[counts >= targets])[:families])
    target = np.concatenate([rest[all_families[rest] == name][:targets] for name in chosen])
    samples = data.select(target).add_column("task", all_families[target].tolist())
    return data.select(pool), samples, all_families[pool], all_families[target]


def noisy_samples(
    rows: int, targets: int, *, share: float, longest: int, seed: int
) -> tuple[Dataset, Dataset, np.ndarray]:
    """A pool of P3 rows, a share of them with responses shuffled among them; clean targets; and which were shuffled.

    Rows whose new response equals their own do not count as shuffled.
    """
    data, _ = p3()
    rng = np.random.default_rng([seed, 2])
    order = rng.permutation(short_samples(longest))
    pool, target = data.select(order[:rows]), data.select(order[rows : rows + targets])
    responses = np.array(pool["response"], dtype=object)
    moved = rng.permutation(rows)[: round(share * rows)]
    before = responses.copy()
    responses[moved] = responses[np.roll(moved, 1)]
    shuffled = np.zeros(rows, bool)
    shuffled[moved] = before[moved] != responses[moved]
    return pool.remove_columns("response").add_column("response", responses.tolist()), target, shuffled


@cache
def short_samples(longest: int) -> np.ndarray:
    """Indices of the samples with at most so many characters."""
    rows, _ = p3()
    lengths = [len(p) + len(r) for p, r in zip(rows["prompt"], rows["response"], strict=True)]
    return np.flatnonzero(np.array(lengths) <= longest)
