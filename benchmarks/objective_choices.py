"""Objectives that choose rows by influence, each a function of one problem; `OBJECTIVES` names them.

Written for pools of a few hundred rows: plain greedy on dense matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.stats import rankdata

from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.coverage import FacilityLocation
from nncift.selection.objectives.relevance import FacilityLocationMutualInformation, FacilityLocationReciprocalRank
from nncift.selection.objectives.table import ObjectiveOptions


@dataclass(frozen=True)
class Problem:
    """What an objective chooses from.

    Attributes:
        influence: (n_pool, n_target) float64.
        on_pool: (n_pool, n_pool) float64, the same function between pool samples; None where it was not computed.
        features: (n_pool, width) float64, sentence features.
        budget: rows to choose.
        seed: of objectives that draw.
        weights: (n_target,) float64, of the targets, or 1.
    """

    influence: np.ndarray
    on_pool: np.ndarray | None
    features: np.ndarray
    budget: int
    seed: int = 0
    weights: np.ndarray | float = 1.0


def centred(s: np.ndarray) -> np.ndarray:
    """Relative to what an average pool sample does for a target."""
    return s - s.mean(axis=0)


def standardised(s: np.ndarray) -> np.ndarray:
    """Centred, in standard deviations of the target's column."""
    deviation = s.std(axis=0)
    return centred(s) / np.where(deviation > 0, deviation, 1)


def ranked(s: np.ndarray) -> np.ndarray:
    """Rank within the column, in (0, 1]."""
    return rankdata(s, axis=0) / len(s)


def exponentiated(s: np.ndarray) -> np.ndarray:
    """exp(2 z) of the standardised column z: the few best samples of a target stand out."""
    return np.exp(2 * standardised(s))


TRANSFORMS = {
    "raw": np.asarray,
    "centred": centred,
    "standardised": standardised,
    "ranked": ranked,
    "exp": exponentiated,
}


def facility_location(p: Problem, transform: str, *, mutual: bool) -> np.ndarray:
    """Facility location, or its mutual-information form with relevance that counts as much as coverage.

    That is, with an eta of targets / rows.
    """
    matrix = InfluenceMatrix.from_array((TRANSFORMS[transform](p.influence) * p.weights).astype(np.float32))
    kind = FacilityLocationMutualInformation if mutual else FacilityLocation
    return lazy_greedy(kind(matrix, ObjectiveOptions(eta=matrix.shape[1] / p.budget)), p.budget).indices


def coverage_and_ranks(p: Problem) -> np.ndarray:
    """What nncift chooses by with a target."""
    matrix = InfluenceMatrix.from_array(p.influence.astype(np.float32))
    return lazy_greedy(FacilityLocationReciprocalRank(matrix), p.budget).indices


def top(p: Problem, transform: str) -> np.ndarray:
    """The rows with the largest mean."""
    return np.argsort(-(TRANSFORMS[transform](p.influence) * p.weights).mean(axis=1), kind="stable")[: p.budget]


def concave_cover(p: Problem, transform: str, curve: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Sum over targets of a concave function of the summed positive influence."""
    s = np.maximum(TRANSFORMS[transform](p.influence), 0)
    covered = np.zeros(s.shape[1])

    def gains() -> np.ndarray:
        return ((curve(covered + s) - curve(covered)) * p.weights).sum(axis=1)

    def add(i: int) -> None:
        nonlocal covered
        covered = covered + s[i]

    return _greedy(p.budget, len(s), gains, add)


def round_robin(p: Problem) -> np.ndarray:
    """Targets in a random order take their best row that is left, again and again."""
    order = np.random.default_rng([p.seed, 5]).permutation(p.influence.shape[1])
    chosen: list[int] = []
    while len(chosen) < p.budget:
        for j in order[: p.budget - len(chosen)]:
            left = np.setdiff1d(np.arange(len(p.influence)), chosen)
            chosen.append(int(left[np.argmax(p.influence[left, j])]))
    return np.array(chosen)


def redundancy(p: Problem, source: str) -> np.ndarray:
    """Similarity of pool samples, (n_pool, n_pool), 1 on the diagonal; from the influence itself or its profiles."""
    if source == "profiles":
        profiles = centred(p.influence)
        profiles = profiles / np.linalg.norm(profiles, axis=1, keepdims=True)
        return profiles @ profiles.T
    if source == "features":
        features = p.features - p.features.mean(axis=0)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return features @ features.T
    if p.on_pool is None:
        raise LookupError("the influence on the pool itself was not computed")
    symmetric = (p.on_pool + p.on_pool.T) / 2
    scale = np.sqrt(np.diag(symmetric))
    return symmetric / scale / scale[:, None]


def graph_cut(p: Problem, source: str, weight: float) -> np.ndarray:
    """Mean standardised influence minus `weight` times the summed similarity to the rows chosen before."""
    relevance = standardised(standardised(p.influence).mean(axis=1, keepdims=True))[:, 0]
    similar = redundancy(p, source)
    penalty = np.zeros(len(relevance))

    def add(i: int) -> None:
        nonlocal penalty
        penalty = penalty + weight * similar[i]

    return _greedy(p.budget, len(relevance), lambda: relevance - penalty, add)


def herding(p: Problem) -> np.ndarray:
    """Kernel herding: least maximum mean discrepancy between the chosen rows and the targets."""
    if p.on_pool is None:
        raise LookupError("the influence on the pool itself was not computed")
    relevance, total, size = p.influence.mean(axis=1), np.zeros(len(p.influence)), 0

    def add(i: int) -> None:
        nonlocal total, size
        total, size = total + p.on_pool[i], size + 1

    return _greedy(p.budget, len(relevance), lambda: relevance - total / (size + 1), add)


def determinantal(p: Problem, source: str, strength: float) -> np.ndarray:
    """Greedy log det of quality x similarity x quality, quality exp(strength / 2 x standardised mean influence)."""
    relevance = standardised(standardised(p.influence).mean(axis=1, keepdims=True))[:, 0]
    quality = np.exp(strength / 2 * relevance)
    kernel = quality[:, None] * (redundancy(p, source) + 0.1 * np.eye(len(quality))) * quality
    left, chosen = kernel.copy(), []

    def add(i: int) -> None:
        nonlocal left
        left = left - np.outer(left[:, i], left[i]) / left[i, i]
        chosen.append(i)

    return _greedy(p.budget, len(quality), lambda: np.diag(left), add)


def projection(p: Problem, damping: float) -> np.ndarray:
    """Sum over targets of k_jS (K_SS + damping)^-1 k_Sj: the share of the targets that the chosen rows span."""
    similar = redundancy(p, "influence")
    scale = np.sqrt(np.diag((p.on_pool + p.on_pool.T) / 2)) if p.on_pool is not None else 1.0
    joint, own = p.influence / np.reshape(scale, (-1, 1)), similar.copy()

    def add(i: int) -> None:
        nonlocal joint, own
        direction = own[:, i] / (own[i, i] + damping)
        joint, own = joint - np.outer(direction, joint[i]), own - np.outer(direction, own[i])

    def gains() -> np.ndarray:
        return (np.square(joint) * p.weights).sum(axis=1) / (np.diag(own) + damping)

    return _greedy(p.budget, len(joint), gains, add)


def kernel_flow(p: Problem, damping: float) -> np.ndarray:
    """Mean over targets of k_jS (K_SS + damping)^-1 1: summed influence where rows that are alike share one step.

    A row's own gradient shrinks as its loss does, by its own steps and by those of rows like it.
    """
    similar = redundancy(p, "influence")
    joint, own, rest = p.influence.mean(axis=1), similar.copy(), np.ones(len(similar))

    def add(i: int) -> None:
        nonlocal joint, own, rest
        direction = own[:, i] / (own[i, i] + damping)
        joint, rest = joint - direction * joint[i], rest - direction * rest[i]
        own = own - np.outer(direction, own[i])

    return _greedy(p.budget, len(joint), lambda: joint * rest / (np.diag(own) + damping), add)


def stratified(p: Problem) -> np.ndarray:
    """As many clusters of the features as rows; from each a random one, in proportion."""
    rng = np.random.default_rng([p.seed, 6])
    _, cluster = kmeans2(p.features, p.budget, minit="++", seed=rng)
    order = np.lexsort((rng.random(len(cluster)), cluster))
    start = rng.random()
    places = np.floor((np.arange(p.budget) + start) * len(cluster) / p.budget).astype(int)
    return order[places]


def random_rows(p: Problem) -> np.ndarray:
    """Rows drawn without looking."""
    return np.random.default_rng([p.seed, 7]).permutation(len(p.influence))[: p.budget]


def random_best_half(p: Problem) -> np.ndarray:
    """Rows drawn from the half with the larger mean standardised influence."""
    order = np.argsort(-standardised(p.influence).mean(axis=1))[: len(p.influence) // 2]
    return np.random.default_rng([p.seed, 8]).permutation(order)[: p.budget]


def weighted_random(p: Problem) -> np.ndarray:
    """Rows drawn with a probability of exp(2 z), z the standardised mean influence (Gumbel top-k)."""
    z = standardised(standardised(p.influence).mean(axis=1, keepdims=True))[:, 0]
    return np.argsort(-(2 * z + np.random.default_rng([p.seed, 9]).gumbel(size=len(z))))[: p.budget]


def _greedy(budget: int, n: int, gains: Callable[[], np.ndarray], add: Callable[[int], None]) -> np.ndarray:
    chosen: list[int] = []
    for _ in range(budget):
        values = gains().copy()
        values[chosen] = -np.inf
        chosen.append(int(np.argmax(values)))
        add(chosen[-1])
    return np.array(chosen)


def _make() -> dict[str, Callable[[Problem], np.ndarray]]:
    found: dict[str, Callable[[Problem], np.ndarray]] = {}
    for name in TRANSFORMS:
        found[f"FL {name}"] = partial(facility_location, transform=name, mutual=False)
        found[f"FL-MI {name}"] = partial(facility_location, transform=name, mutual=True)
        found[f"mean {name}"] = partial(top, transform=name)
    for name in ("raw", "centred", "standardised"):
        found[f"root cover {name}"] = partial(concave_cover, transform=name, curve=np.sqrt)
    found["log cover standardised"] = partial(concave_cover, transform="standardised", curve=np.log1p)
    found["round robin"] = round_robin
    for source in ("profiles", "features", "influence"):
        found[f"graph cut {source}"] = partial(graph_cut, source=source, weight=0.3)
        found[f"determinantal {source}"] = partial(determinantal, source=source, strength=1.0)
    found["herding"] = herding
    for damping in (0.1, 1.0):
        found[f"projection {damping}"] = partial(projection, damping=damping)
        found[f"kernel flow {damping}"] = partial(kernel_flow, damping=damping)
    return found


OBJECTIVES = _make()
DRAWN = {
    "random": random_rows,
    "stratified": stratified,
    "random of the best half": random_best_half,
    "random by influence": weighted_random,
}
"""Objectives that depend on the seed."""
