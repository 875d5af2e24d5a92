"""Does a choice find the task, and what is new? P3 with its families as ground truth, with and without a first cut.

    python benchmarks/stages.py                                             # sentence embeddings, 2,000 rows
    python benchmarks/stages.py --influence gradient-sketch --rows 300      # with a language model: minutes
    python benchmarks/stages.py --what continual

`task`: targets of one family, each family in turn. Precision is the share of the family in the choice, recall the share
of the family's pool samples that are chosen, at 1, 5 and 10 % of the pool. `continual`: half of the families are known.
The share of new families in the choice, and its redundancy, the mean over the chosen of the largest cosine with a known
sample. With a first cut, `--first-cut` budgets of rows are kept by a static encoder, and the choice is among these.

Means over `--seeds` draws of targets, known samples and families, with 95 % intervals (Student's t); a draw of `task`
is the mean over all families with enough samples. Vectors are kept under `--folder`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from functions import make_function
from known_truth import p3, short_samples
from nncift.features.static import static_vectors
from nncift.matrix.matrix import InfluenceMatrix
from nncift.models.language_model import LanguageModel
from nncift.models.static_encoder import StaticEncoder
from nncift.run.storage.files import fingerprint, read_array, write_array
from nncift.selection.first_cut import most_similar, representative
from nncift.selection.maximizers.table import maximize
from nncift.selection.objectives.table import ObjectiveOptions, make_objective

BUDGETS = (0.01, 0.05, 0.1)
NO_MODEL = ("embedding-similarity", "bm25")
Table = dict[str, dict[str, list[float]]]
"""Selector to column to a value for each draw."""


@dataclass(frozen=True)
class Samples:
    """All samples, with what compares them.

    Attributes:
        family: of each, (n,) str.
        influence: of each on each, (n, n) float32.
        cosine: of their sentence embeddings, (n, n) float32.
        static: vectors of the static encoder around their mean, (n, d) float32.
    """

    family: np.ndarray
    influence: np.ndarray
    cosine: np.ndarray
    static: np.ndarray


def read(options: argparse.Namespace) -> Samples:
    """The samples, and their vectors as kept or computed now."""
    rows, families = p3()
    allowed = np.arange(len(rows)) if options.longest is None else short_samples(options.longest)
    which = allowed[np.random.default_rng(0).permutation(len(allowed))[: options.rows]]
    samples = rows.select(which)

    def of(name: str) -> np.ndarray:
        model = None if name in NO_MODEL else LanguageModel.load(options.model, dtype=options.dtype)
        function = make_function(name, model)  # type: ignore[arg-type]
        path = options.folder / f"{name}-{fingerprint(samples['id'], options.dtype if model else '')}.npy"
        if not path.exists():
            function.prepare(samples, samples)
            write_array(path, function.vectors(samples))
        vectors = np.asarray(read_array(path))
        return np.asarray(function.from_products(vectors @ vectors.T), dtype=np.float32)

    static = static_vectors(samples, StaticEncoder(options.static))
    cosine = of("embedding-similarity")
    influence = cosine if options.influence == "embedding-similarity" else of(options.influence)
    return Samples(families[which], influence, cosine, static.around(static.mean)[:])


def facility_location(
    influence: np.ndarray, count: int, known: np.ndarray | None = None, *, target: bool
) -> np.ndarray:
    """The choice that `nncift select` makes from this influence, (n_pool, n_target)."""
    matrix = InfluenceMatrix.from_array(np.ascontiguousarray(influence))
    given = ObjectiveOptions(has_target=target, expected=float(count), known=known)
    return maximize(lambda targets=None: make_objective(None, matrix, given), count).indices


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """The rows with the highest scores."""
    return np.argsort(-scores, kind="stable")[:count]


def task(samples: Samples, options: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Precision and recall at each budget, means over the families as the target."""
    rng = np.random.default_rng([seed, 1])
    found: dict[str, dict[str, list[float]]] = {}
    names, sizes = np.unique(samples.family, return_counts=True)
    for name in names[sizes >= 2 * options.targets]:
        mine = rng.permutation(np.flatnonzero(samples.family == name))
        target, is_pool = mine[: options.targets], np.ones(len(samples.family), bool)
        is_pool[target] = False
        pool = np.flatnonzero(is_pool)
        wanted = samples.family[pool] == name
        on_target, whole = samples.influence[np.ix_(pool, target)], samples.influence[np.ix_(pool, pool)]
        spread = facility_location(whole, round(max(BUDGETS) * len(pool)), target=False)  # the first are those of less
        for budget in BUDGETS:
            count = round(budget * len(pool))
            kept = most_similar(samples.static[pool], samples.static[target], round(options.first_cut * count)).rows
            chosen = {
                "random": rng.permutation(len(pool))[:count],
                "facility location, no target": spread[:count],
                "cosine, by mean": highest(samples.cosine[np.ix_(pool, target)].mean(axis=1), count),
                "influence, by mean (top-k)": highest(on_target.mean(axis=1), count),
                "coverage, then turns (`--target`)": facility_location(on_target, count, target=True),
                "static encoder alone": most_similar(samples.static[pool], samples.static[target], count).rows,
            }
            if len(kept) < len(pool):
                after = f"after a first cut of {options.first_cut:g} budgets"
                chosen[f"top-k {after}"] = kept[highest(on_target[kept].mean(axis=1), count)]
                chosen[f"coverage, then turns {after}"] = kept[facility_location(on_target[kept], count, target=True)]
            for selector, rows in chosen.items():
                values = found.setdefault(selector, {})
                values.setdefault(f"precision at {budget:.0%}", []).append(float(wanted[rows].mean()))
                values.setdefault(f"recall at {budget:.0%}", []).append(float(wanted[rows].sum() / wanted.sum()))
    return {selector: {c: float(np.mean(v)) for c, v in values.items()} for selector, values in found.items()}


def continual(samples: Samples, options: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Share of new families, and redundancy with the known samples, at each budget."""
    rng = np.random.default_rng([seed, 2])
    names = rng.permutation(np.unique(samples.family))
    is_old = np.isin(samples.family, names[: len(names) // 2])
    known = rng.permutation(np.flatnonzero(is_old))[: options.known]
    pool = np.setdiff1d(np.arange(len(samples.family)), known)
    whole = samples.influence[np.ix_(pool, pool)]
    covered, similar = (
        samples.influence[np.ix_(known, pool)].max(axis=0),
        samples.cosine[np.ix_(pool, known)].max(axis=1),
    )
    found: dict[str, dict[str, float]] = {}
    for budget in BUDGETS:
        count = round(budget * len(pool))
        kept = representative(samples.static[pool], round(options.first_cut * count), known=samples.static[known]).rows
        chosen = {
            "random": rng.permutation(len(pool))[:count],
            "influence, by mean (top-k)": highest(whole.mean(axis=1), count),
            "least cosine with a known sample": highest(-similar, count),
            "facility location": facility_location(whole, count, target=False),
            "conditional gain (`--known`)": facility_location(whole, count, covered, target=False),
        }
        if len(kept) < len(pool):
            chosen[f"conditional gain after a first cut of {options.first_cut:g} budgets"] = kept[
                facility_location(whole[np.ix_(kept, kept)], count, covered[kept], target=False)
            ]
        for selector, rows in chosen.items():
            values = found.setdefault(selector, {})
            values[f"new at {budget:.0%}"] = float((~is_old[pool[rows]]).mean())
            values[f"redundancy at {budget:.0%}"] = float(similar[rows].mean())
    return found


def draws(of: Callable[[int], dict[str, dict[str, float]]], seeds: int) -> Table:
    """The values of all draws."""
    table: Table = {}
    for seed in range(seeds):
        for selector, values in of(seed).items():
            for column, value in values.items():
                table.setdefault(selector, {}).setdefault(column, []).append(value)
    return table


def show(table: Table) -> None:
    """Print means with 95 % intervals."""
    columns = list(dict.fromkeys(column for values in table.values() for column in values))
    print("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for selector, values in table.items():
        cells = [_cell(np.array(values[column])) if column in values else "" for column in columns]
        print(f"| {selector} | " + " | ".join(cells) + " |", flush=True)


def _cell(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values.mean():.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.2f} ± {half:.2f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="*", default=["task", "continual"], choices=("task", "continual"))
    parser.add_argument("--influence", default="embedding-similarity")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--longest", type=int, help="characters of a sample, at most")
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--known", type=int, default=300)
    parser.add_argument("--first-cut", type=float, default=10)
    parser.add_argument("--static", default="embedded", help="the static encoder")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-stages"))
    options = parser.parse_args()
    samples = read(options)
    print(f"{len(samples.family):,} samples of {len(np.unique(samples.family))} families, {options.influence}")
    for name in options.what:
        stage = {"task": task, "continual": continual}[name]
        print(f"\n{name}, n = {options.seeds} draws")
        show(draws(lambda seed: stage(samples, options, seed), options.seeds))  # noqa: B023


if __name__ == "__main__":
    main()
