"""The questions of the fidelity benchmark: each yields cases and their measures for one seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from fidelity_methods import Method, learned
from nncift.evaluation.datamodels import TrainingOutcomes, linear_datamodeling_score
from nncift.evaluation.metrics import measures
from nncift.features.features import Features
from nncift.labels.design import ROWS_PER_TARGET, deal, plan_pairs
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.coverage import FacilityLocation
from nncift.selection.objectives.table import ObjectiveOptions

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.4)  # of all pairs, labelled
ROWS = (48, 100)  # pool samples, labelled on every target
CURVE = (12, 24, 48, 72, 100)  # likewise, of at most 70 % of the pool
BUDGETS = (0.05, 0.1, 0.3)
POOL_SHARES = (0.05, 0.1, 0.25)  # of the pool samples of the training outcomes, labelled
QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
FIRST = ("subset_sum_correlation_within_target", "recall_of_top_tenth_within_target")
PROBES = 8
SPENT, SPENT_SAMPLES = (600, 1200, 2400), (110, 180)  # the time of so many pairs; samples
NONE = np.zeros(0, dtype=np.int64)

Row = dict[str, float]
Sides = tuple[Features, Features]


def grid(influence: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> LabelledPairs:
    """The labels of rows x columns of a matrix of exact values."""
    i, j = np.repeat(rows, len(columns)), np.tile(columns, len(rows))
    return LabelledPairs(i.astype(np.int32), j.astype(np.int32), influence[i, j].astype(np.float32))


def judged(influence: np.ndarray, predicted: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Row:
    """All measures of the predictions of rows x columns."""
    pairs = grid(influence, rows, columns)
    guess = predicted[pairs.pool_index, pairs.target_index]
    found = measures(pairs, guess, scale=float(np.ptp(influence)))
    first = {name: found[name] for name in FIRST}  # the rest stands beside
    return {name: np.nan if value is None else value for name, value in (first | found).items()}


def quadrants(influence: np.ndarray, features: Sides, method: Method, seed: int) -> Iterator[tuple[str, Row]]:
    """Measures in each quadrant for each share of labelled pairs."""
    n, m = influence.shape
    rng = np.random.default_rng([seed, 1])
    pool, target = rng.permutation(n), rng.permutation(m)
    seen_pool, new_pool = pool[n // 5 :], pool[: n // 5]
    seen_target, new_target = target[m // 5 :], target[: m // 5]
    for fraction in FRACTIONS:
        wanted = round(fraction * n * m)
        plan = plan_pairs(len(seen_pool), len(seen_target), wanted, seed=seed)
        rows, columns = seen_pool[plan.rows], seen_target[plan.columns]
        predicted = method(*features, grid(influence, rows, columns), seed)
        parts = zip(
            QUADRANTS, ((rows, columns), (new_pool, columns), (rows, new_target), (new_pool, new_target)), strict=True
        )
        for name, (i, j) in parts:
            yield f"{name}, {fraction:.0%}", judged(influence, predicted, np.sort(i), np.sort(j))


def labelled_rows(influence: np.ndarray, features: Sides, method: Method, seed: int) -> Iterator[tuple[str, Row]]:
    """Measures on new pool samples with some labelled on every target, and on samples that are new on both sides."""
    n, m = influence.shape
    rng = np.random.default_rng([seed, 2])
    pool, target = rng.permutation(n), rng.permutation(m)
    for count in ROWS:
        predicted = method(*features, grid(influence, pool[:count], np.arange(m)), seed)
        yield f"Q2, {count} rows", judged(influence, predicted, np.sort(pool[max(ROWS) :]), np.arange(m))
        predicted = method(*features, grid(influence, pool[:count], target[m // 4 :]), seed)
        yield f"Q4, {count} rows", judged(influence, predicted, np.sort(pool[max(ROWS) :]), np.sort(target[: m // 4]))


def learning_curve(influence: np.ndarray, features: Sides, method: Method, seed: int) -> Iterator[tuple[str, Row]]:
    """Measures on new pool samples over the number that is labelled on every target."""
    n, m = influence.shape
    order = np.random.default_rng([seed, 2]).permutation(n)
    rest = order[max(ROWS) if n > 150 else int(0.6 * n) :]
    for count in (count for count in CURVE if count <= 0.7 * n):
        predicted = method(*features, grid(influence, order[:count], np.arange(m)), seed)
        yield f"{count} rows", judged(influence, predicted, np.setdiff1d(rest, order[:count]), np.arange(m))


def without_labels(influence: np.ndarray, similarity: np.ndarray, seed: int) -> Iterator[tuple[str, Row]]:
    """Measures of a similarity on all pairs; the seed changes nothing."""
    n, m = influence.shape
    yield "all pairs", judged(influence, similarity, np.arange(n), np.arange(m))


def held_out(
    influence: np.ndarray,
    count: int,
    seed: int,
    predict: Callable[[LabelledPairs], np.ndarray],
    measured: np.ndarray = NONE,
) -> np.ndarray:
    """Predictions (n, m) of every pool sample by a network that saw `count` others and the measured on every target."""
    n, m = influence.shape
    order = np.random.default_rng([seed, 3]).permutation(n)
    first, second = order[:count], order[count : 2 * count]
    predicted = predict(grid(influence, np.union1d(first, measured), np.arange(m)))
    predicted[first] = predict(grid(influence, np.union1d(second, measured), np.arange(m)))[first]
    predicted[measured] = influence[measured]
    return predicted


def pointwise(influence: np.ndarray, features: Sides, method: Method, seed: int) -> Iterator[tuple[str, Row]]:
    """Measures of a score that holds for every target, on pool samples without a label."""
    order = np.random.default_rng([seed, 8]).permutation(len(influence))
    for count in (*ROWS, len(influence) // 2):
        predicted = method(*features, grid(influence, order[:count], np.arange(1)), seed)
        yield f"{count} rows", judged(influence, predicted, np.sort(order[len(influence) // 2 :]), np.arange(1))


def choice(influence: np.ndarray, features: Sides, method: Method, seed: int) -> Iterator[tuple[str, Row]]:
    """Normalized gain of facility location on estimates, and overlap with the exact choice."""
    for count in ROWS:
        predicted = held_out(influence, count, seed, lambda labels: method(*features, labels, seed).copy())
        for budget in BUDGETS:
            size = round(budget * len(influence))
            yield f"{count} rows, budget {budget:.0%}", gained(influence, facility_location(predicted, size), seed)


def gained(influence: np.ndarray, chosen: np.ndarray, seed: int) -> Row:
    """Normalized gain of a selection between random (0) and the exact one (1), and its overlap with the latter."""
    n, size, rng = len(influence), len(chosen), np.random.default_rng([seed, 4])
    best = facility_location(influence, size)
    random = np.mean([covered(influence, rng.permutation(n)[:size]) for _ in range(200)])
    gain = (covered(influence, chosen) - random) / (covered(influence, best) - random)
    return {"normalized_gain": gain, "overlap": len(np.intersect1d(best, chosen)) / size}


def completed(influence: np.ndarray, features: Sides, probes: int, seed: int, labels: LabelledPairs) -> np.ndarray:
    """Our network's estimates conditioned on exact values of a few targets: (n, m)."""
    network, known = learned(*features, labels, seed), None
    if probes:
        columns = network.choose_probes(features[1], probes)
        known = Probes(columns, influence[:, columns].astype(np.float32))
    predicted = network.estimate(*features, probes=known).rows(slice(None))
    if known is not None:
        predicted[:, known.columns] = known.influence
    return predicted


def probed(influence: np.ndarray, features: Sides, count: int, seed: int) -> Iterator[tuple[str, Row]]:
    """Measures on new pool samples with `count` probes each: on all targets, and on those that are not probed."""
    n, m = influence.shape
    pool = np.random.default_rng([seed, 2]).permutation(n)
    for rows in ROWS:
        predicted = completed(influence, features, count, seed, grid(influence, pool[:rows], np.arange(m)))
        new = np.sort(pool[max(ROWS) :])
        others = np.flatnonzero(~(predicted == influence.astype(np.float32)).all(axis=0))
        yield f"{rows} rows, all targets", judged(influence, predicted, new, np.arange(m))
        yield f"{rows} rows, other targets", judged(influence, predicted, new, others)


def verified(influence: np.ndarray, features: Sides, probes: int, seed: int) -> Iterator[tuple[str, Row]]:
    """Normalized gain as estimated, and from a shortlist of twice the budget that is measured.

    The shortlist is measured in one round, or as in a run: the selection by estimates, then in two rounds the samples
    with the largest gain over it, refitting in between.
    """
    for count in ROWS:
        estimates = partial(held_out, influence, count, seed, partial(completed, influence, features, probes, seed))
        before = estimates()
        for budget in BUDGETS:
            size = round(budget * len(influence))
            case = f"{count} rows, budget {budget:.0%}"
            chosen = facility_location(before, size)
            yield f"{case}, as estimated", gained(influence, chosen, seed)
            at_once = facility_location(before, 2 * size)
            measured = chosen
            for part in (size - size // 2, size // 2):
                adds = facility_location(estimates(measured), part, measured)
                measured = np.concatenate([measured, adds])
            for name, shortlist in (("verified at once", at_once), ("verified", measured)):
                best = shortlist[facility_location(influence[shortlist], size)]
                yield f"{case}, {name}", gained(influence, best, seed)


def designs(influence: np.ndarray, features: Sides, method: Method, seed: int) -> Iterator[tuple[str, Row]]:
    """Measures on new pool samples for designs of the labels that take the language model equal time.

    DELIFT processes an example once for all its targets and a target once without example, so each row and each target
    cost about one more pair. In a grid all rows have the same targets; else each has its own, out of several times as
    many. Of random pairs nearly every one has its own example.
    """
    m = influence.shape[1]
    tried = partial(_new_samples, influence, features, method, seed)
    for spent in SPENT:
        shapes = [(rows, 1) for rows in (0.5, 1, 2, 4, 8)] + [(ROWS_PER_TARGET, more) for more in (2, 4, 8, 16)]
        for ratio, more in shapes:
            each = min(largest(spent, ratio, more, m), m)
            targets = min(more * each, m)
            place = "all rows the same targets" if more == 1 else f"of {more} times as many targets"
            case = f"{spent} pairs' time, {ratio} rows to a target of a row, {place}"
            yield case, tried((spent - targets) // (each + 1), each, targets)
        yield f"{spent} pairs' time, pairs anywhere", tried(None, (spent - m) // 2, m)


def designs_by_sample(influence: np.ndarray, features: Sides, method: Method, seed: int) -> Iterator[tuple[str, Row]]:
    """The same for per-sample cost, as of gradients: grids of a given number of samples."""
    for spent in SPENT_SAMPLES:
        for ratio in (0.5, 1, 2, 4):
            targets = round(spent / (1 + ratio))
            case = f"{spent} samples, {ratio} rows to a target"
            yield case, _new_samples(influence, features, method, seed, spent - targets, targets, targets)


def _new_samples(
    influence: np.ndarray, features: Sides, method: Method, seed: int, rows: int | None, each: int, targets: int
) -> Row:
    """Measures on a fifth of the pool with `each` labels to a row, or so many in all of any rows; on all targets."""
    n, m = influence.shape
    pool = np.random.default_rng([seed, 6]).permutation(n)
    new, seen = np.sort(pool[4 * n // 5 :]), pool[: 4 * n // 5]
    rng = np.random.default_rng([seed, 7])
    if rows is None:
        labels = grid(influence, seen, np.arange(m)).take(rng.permutation(len(seen) * m)[:each])
        rows, each = len(seen), round(each / len(seen))
    else:
        rows = min(rows, len(seen))
        j = deal(rng.permutation(m)[:targets], rows, each, rng).ravel()
        i = np.repeat(seen[:rows], each)
        labels = LabelledPairs(i.astype(np.int32), j.astype(np.int32), influence[i, j].astype(np.float32))
    measured = judged(influence, method(*features, labels, seed), new, np.arange(m))
    return measured | {"rows": rows, "targets of a row": each, "targets": targets}


def largest(spent: int, ratio: float, more: int, most: int) -> int:
    """Most targets of a row, where there are `ratio` rows to each and `more` times as many targets, in `spent`."""
    each = 1
    while ratio * (each + 1) * (each + 2) + min(more * (each + 1), most) <= spent:
        each += 1
    return each


def facility_location(influence: np.ndarray, size: int, measured: np.ndarray = NONE) -> np.ndarray:
    """The greedy selection of the largest gains over the measured rows."""
    matrix = InfluenceMatrix.from_array(np.ascontiguousarray(influence, dtype=np.float32))
    covered = np.maximum(influence[measured].max(axis=0, initial=0), 0).astype(np.float32)
    others = np.setdiff1d(np.arange(len(influence)), measured)
    objective = FacilityLocation(matrix, ObjectiveOptions(covered=covered))
    return np.asarray(lazy_greedy(objective, min(size, len(others)), candidates=others).indices)


def covered(influence: np.ndarray, chosen: np.ndarray) -> float:
    """Facility location's value: the sum over targets of the best chosen sample's influence, at least 0."""
    return float(np.maximum(influence[chosen].max(axis=0), 0).sum())


def truth(
    influence: np.ndarray, features: Sides, outcomes: TrainingOutcomes, method: Method, seed: int
) -> Iterator[tuple[str, Row]]:
    """Linear datamodeling score with exact values for some pool samples and estimates for the others."""
    n, m = influence.shape
    yield "all exact", {"lds": linear_datamodeling_score(influence, outcomes).value}
    for share in POOL_SHARES:
        rows = np.random.default_rng([seed, 5]).permutation(n)[: max(round(share * n), 2)]
        mixed = method(*features, grid(influence, rows, np.arange(m)), seed).copy()
        mixed[rows] = influence[rows]
        yield f"{share:.0%} exact", {"lds": linear_datamodeling_score(mixed, outcomes).value}
