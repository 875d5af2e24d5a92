"""The studies of the NN-CIFT paper (arXiv:2502.09969): fidelity over the labels, and over the network's shape.

As there, a fraction u of the samples of each side is drawn, all pairs of these are labelled (u^2 of all), and a network
fitted to them predicts the others: quadrant Q1 holds the labelled pairs themselves, Q2 those of new pool samples, Q3
those of new targets, Q4 those of both. Unlike there, each figure has an interval over seeds, which draw other samples,
and stands beside each target's mean, since the paper's mean squared error after min-max scaling does not tell a network
from a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.metrics import measures
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs
from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.table import Objective

LABELS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)  # of the samples of each side
SUBSETS = (0.05, 0.1, 0.3, 0.5)  # of the pool, chosen
SHARES = (0.05, 0.2)  # labels of the studies of the network's shape; the paper's is 0.05
SETTINGS: dict[str, tuple[str, tuple[float, ...]]] = {
    "depth": ("depth", (1, 2, 3, 4)),
    "width": ("hidden", (10, 30, 100, 300, 1000)),
    "learning-rate": ("learning_rate", (1e-5, 1e-4, 1e-3, 1e-2)),
}
"""Study to the option of the paper's network that it varies, and its values; the paper's are 1, 100 and 1e-4."""
OURS, PAPER, MEAN = "process", "paper", "target mean"
_FEWEST = 2  # labelled samples of a side
_MEASURED = (1000, 500)  # pool samples and targets of a quadrant, at most
_DRAWS = 50  # random subsets that a choice is compared with


@dataclass(frozen=True)
class Point:
    """One fitted network of a study.

    Attributes:
        study: "labels", "labels-subset", "depth", "width" or "learning-rate".
        network: "process" (ours), "paper" (NN-CIFT's, which reads sentence embeddings alone) or "target mean".
        labels: fraction of the samples of each side that are labelled.
        setting: depth, width or learning rate of the network in the studies of these.
        seed: of the labelled samples and the network.
    """

    study: str
    network: str
    labels: float
    setting: float | None
    seed: int

    @property
    def slug(self) -> str:
        """As file names have it."""
        parts = (self.study, self.network.replace(" ", "-"), f"{self.labels:g}", self.setting, self.seed)
        return "_".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts if part is not None)


def points(study: str, seeds: Iterable[int]) -> list[Point]:
    """The networks of a study."""
    if study in SETTINGS:
        shapes = [*((PAPER, float(value)) for value in SETTINGS[study][1]), (MEAN, None)]
        return [
            Point(study, network, labels, value, seed)
            for labels in SHARES
            for network, value in shapes
            for seed in seeds
        ]
    networks = (OURS, PAPER, MEAN) if study == "labels" else (OURS, PAPER)
    return [Point(study, network, labels, None, seed) for network in networks for labels in LABELS for seed in seeds]


@dataclass(frozen=True, eq=False)
class Exact:
    """Exact influence of all pairs, which a study estimates from a part.

    Attributes:
        influence: (n_pool, n_target) float32; of a pointwise function one column is used.
        pool, target: features of both sides.
        objective: makes the objective of a matrix for a number of rows to choose.
        own_target: the pool is its own target, and no sample is paired with itself.
        pointwise: the influence does not depend on the target.
    """

    influence: np.ndarray
    pool: Features
    target: Features
    objective: Callable[[InfluenceMatrix, int], Objective]
    own_target: bool = False
    pointwise: bool = False
    _choices: dict[int, tuple[np.ndarray, float, float]] = field(default_factory=dict)

    def drawn(self, labels: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The labelled pool samples and targets in random order; larger fractions contain smaller ones."""
        n, m = self.influence.shape
        rng = np.random.default_rng([seed, 1])
        order = rng.permutation(n)
        rows = order[: _part(labels, n)]
        if self.pointwise:
            return rows, np.zeros(1, np.int64)
        if self.own_target:  # from the other end, so that no sample is on both sides
            return rows, order[::-1][: _part(labels, m)]
        return rows, rng.permutation(m)[: _part(labels, m)]

    def pairs(self, rows: np.ndarray, columns: np.ndarray) -> LabelledPairs:
        """The exact values of rows x columns, without those of a sample on itself."""
        i, j = np.repeat(rows, len(columns)), np.tile(columns, len(rows))
        kept = i != j if self.own_target and not self.pointwise else np.ones(len(i), bool)
        i, j = i[kept], j[kept]
        return LabelledPairs(i.astype(np.int32), j.astype(np.int32), self.influence[i, j].astype(np.float32))

    def reference(self, size: int) -> tuple[np.ndarray, float, float]:
        """The choice of so many rows by exact influence, its value, and the mean value of random ones."""
        if size not in self._choices:
            n, rng = len(self.influence), np.random.default_rng(0)
            chosen = self.chosen(InfluenceMatrix.from_array(self.influence), size)
            random = [self.value(rng.permutation(n)[:size]) for _ in range(_DRAWS)]
            self._choices[size] = (chosen, self.value(chosen), float(np.mean(random)))
        return self._choices[size]

    def chosen(self, matrix: InfluenceMatrix, size: int) -> np.ndarray:
        """So many rows by the influence of a matrix, int64."""
        return np.asarray(lazy_greedy(self.objective(matrix, size), size).indices)

    def value(self, rows: np.ndarray) -> float:
        """The objective's value of a subset by exact influence."""
        objective = self.objective(InfluenceMatrix.from_array(self.influence), len(rows))
        for row in rows.tolist():
            objective.add(row)
        return float(objective.value)


def _part(labels: float, n: int) -> int:
    return min(max(round(labels * n), _FEWEST), n)


def measure(point: Point, exact: Exact) -> list[dict[str, Any]]:
    """Fit a network of a study and measure it.

    Returns:
        A record for each quadrant: "quadrant", "pairs" and the metrics of `metrics.measures`; of "labels-subset" for
        each fraction chosen: "subset", "normalized_gain" (the exact value of the choice, where random choices have 0
        and the exact choice 1) and "overlap" with the exact choice, a share.
    """
    rows, columns = exact.drawn(point.labels, point.seed)
    train = exact.pairs(rows, columns)
    estimate = _fitted(point, exact, train)
    if point.study == "labels-subset":
        return [{"subset": subset} | _of_choice(exact, estimate, subset) for subset in SUBSETS]
    n, m = exact.influence.shape
    rng = np.random.default_rng([point.seed, 2])
    new_rows, new_columns = (
        np.sort(rng.permutation(np.setdiff1d(np.arange(size), seen))[:most])
        for size, seen, most in zip((n, m), (rows, columns), _MEASURED, strict=True)
    )
    rows, columns = rows[: _MEASURED[0]], columns[: _MEASURED[1]]
    parts = {"Q1": (rows, columns), "Q2": (new_rows, columns)}
    if not exact.pointwise:
        parts |= {"Q3": (rows, new_columns), "Q4": (new_rows, new_columns)}
    scale = float(np.ptp(exact.influence.astype(np.float64))) or 1.0
    found = []
    for name, (i, j) in parts.items():
        pairs = exact.pairs(i, j)
        if len(pairs):
            predicted = estimate.entries(pairs.pool_index, pairs.target_index)
            found.append({"quadrant": name, "pairs": len(pairs)} | measures(pairs, predicted, scale=scale))
    return found


def _fitted(point: Point, exact: Exact, train: LabelledPairs) -> InfluenceMatrix:
    """The influence of all pairs as the point's network estimates it."""
    pool, target = exact.pool, exact.target
    if point.network == MEAN:
        shape = exact.influence.shape
        means = np.full(shape[1], train.influence.mean(dtype=np.float64))
        for j in np.unique(train.target_index):
            means[j] = train.influence[train.target_index == j].mean(dtype=np.float64)
        return InfluenceMatrix.from_array(np.broadcast_to(means.astype(np.float32), shape))
    if point.network == PAPER and "sentence" in pool.blocks and "sentence" in target.blocks:
        pool, target = (Features({"sentence": side.blocks["sentence"]}) for side in (pool, target))
    options: dict[str, Any] = {}
    if point.study in SETTINGS and point.setting is not None:
        name, values = SETTINGS[point.study]
        options[name] = point.setting if isinstance(values[0], float) else int(point.setting)
    recipe: Any = point.network
    network = InfluenceNetwork(recipe, pointwise=exact.pointwise, seed=point.seed, **options)
    return network.fit(pool, target, train).estimate(pool, target)


def _of_choice(exact: Exact, estimate: InfluenceMatrix, subset: float) -> dict[str, Any]:
    """What the choice of a part of the pool by estimates is worth."""
    size = max(round(subset * len(exact.influence)), 1)
    best, most, random = exact.reference(size)
    chosen = exact.chosen(estimate, size)
    gain = (exact.value(chosen) - random) / (most - random) if most > random else None
    return {"normalized_gain": gain, "overlap": len(np.intersect1d(best, chosen)) / size}


def summarise(found: Mapping[Point, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The records of the same network and quadrant with other seeds as one.

    Args:
        found: what `measure` gave of each point.

    Returns:
        Of each: "study", "network", "labels", "setting", "subset", "quadrant", "pairs" (of the first seed), and
        "metrics": by name "value", the mean over seeds, "low" and "high", its 95 % interval (Student's; None of one
        seed), and "by_seed"; the value is None where a seed has none.
    """
    groups: dict[tuple[Any, ...], dict[int, Mapping[str, Any]]] = {}
    for point, records in found.items():
        for record in records:
            facts = asdict(point) | {"subset": record.get("subset"), "quadrant": record.get("quadrant")}
            seed = facts.pop("seed")
            groups.setdefault(tuple(facts.items()), {})[seed] = record
    merged = []
    for facts_of, by_seed in groups.items():
        first = next(iter(by_seed.values()))
        names = [name for name in first if name not in ("subset", "quadrant", "pairs")]
        metrics = {name: _over_seeds({seed: record[name] for seed, record in by_seed.items()}) for name in names}
        merged.append(dict(facts_of) | {"pairs": first.get("pairs"), "metrics": metrics})
    return merged


def _over_seeds(values: Mapping[int, float | None]) -> dict[str, Any]:
    from scipy import stats

    by_seed = {str(seed): value for seed, value in values.items()}
    known = np.array([value for value in values.values() if value is not None], dtype=np.float64)
    if len(known) < len(values):
        return {"value": None, "low": None, "high": None, "by_seed": by_seed}
    mean, low, high = float(known.mean()), None, None
    if len(known) > 1:
        half = float(stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5)
        low, high = mean - half, mean + half
    return {"value": mean, "low": low, "high": high, "by_seed": by_seed}
