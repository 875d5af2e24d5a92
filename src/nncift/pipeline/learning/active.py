"""Active learning (`labels` auto): label the rows with the highest posterior variance, until the fidelity suffices.

Some rows, drawn at random, are held out throughout: on them the network is judged after each round, by the subset-sum
correlation within a target (`evaluation.metrics`). Labelling stops when that reaches the target fidelity, when two
rounds bring no improvement, or when the pool is exhausted. A round's rows are recorded before its first pair is
measured, so a resumed run goes on with the same. For functions whose cost is per pair, rows get targets of their own
(see `labels.design`), save those held out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nncift.errors import ConfigError
from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.metrics import measures
from nncift.labels.design import PairPlan, deal
from nncift.labels.pairs import LabelledPairs
from nncift.run.folder.records import LabelHistory, counted

if TYPE_CHECKING:
    from nncift.pipeline.context import Run

TARGET_FIDELITY = 0.6  # beyond what needs no labels (docs/measurements.md)
TARGETS_PER_ROW, HELD_OUT, FIRST = 48, 32, 24  # targets of a row; held-out rows; rows of the first round
OWN, TARGETS = 24, 192  # targets of a row of its own, out of so many; then there are twice as many rows
_HELD_OUT_TARGETS = 0.2  # of those that the held-out rows have
_GROWTH = 1.5
_LEAST_GAIN = 0.01  # of the correlation, in a round
_CANDIDATES = 2048

Measure = Callable[[PairPlan, str], LabelledPairs]
"""Computes the exact influence of a plan and keeps it under a name."""


@dataclass(frozen=True)
class ActiveLabelling:
    """Labels a pool in rounds.

    Attributes:
        n_pool: samples in the pool.
        n_target: targets; None where the pool is its own.
        pointwise: the influence is one score for all targets.
        own_targets: each training row has targets of its own.
        recipe: the network's.
        target_fidelity: the subset-sum correlation at which it stops: within a target, of a pointwise influence over
            all rows.
        seed: which rows and targets.
    """

    n_pool: int
    n_target: int | None
    pointwise: bool
    own_targets: bool
    recipe: str
    target_fidelity: float
    seed: int

    @classmethod
    def of(cls, run: Run) -> Self:
        """As a run asks for it."""
        traits, config = run.function.traits, run.config
        target_fidelity = TARGET_FIDELITY if config.fidelity is None else config.fidelity
        own_targets = traits.per_pair and not traits.pointwise
        return cls(
            len(run.pool), run.n_target, traits.pointwise, own_targets, config.recipe, target_fidelity, config.seed
        )

    def label(
        self,
        features: Any,
        target_features: Any,
        path: Path,
        measure: Measure,
        among: Callable[[], LabelledPairs | None] = lambda: None,
    ) -> LabelledPairs:
        """All labels, those of the held-out rows included.

        Args:
            features: of the pool, (n_pool, d).
            target_features: of the targets, (n_target, d).
            path: keeps the `LabelHistory`.
            measure: computes exact influence, first of the held-out rows.
            among: exact influence of the targets on each other, if it was measured with these.
        """
        history = LabelHistory.find(path) or self._begin()
        history.save(path)
        rounds = history.rounds
        # The target fidelity that labelling began with: the default of an earlier version was another.
        begun = replace(self, target_fidelity=history.target_fidelity or self.target_fidelity)
        held_out = measure(self._plan(history, None), "held-out")
        labelled: list[LabelledPairs] = []
        while len(labelled) < len(rounds):
            current, since = rounds[len(labelled)], time.perf_counter()
            labelled.append(measure(self._plan(history, len(labelled)), f"round-{len(labelled)}"))
            if "reached" in current:
                continue  # this round was finished before a kill
            train = LabelledPairs.joined(labelled)
            network = InfluenceNetwork(self.recipe, pointwise=self.pointwise, seed=self.seed)  # type: ignore[arg-type]
            network.fit(features, target_features, train, among_targets=among())
            predicted = network.predict(features[held_out.pool_index], target_features[held_out.target_index])
            reached = self._reached(held_out, predicted, of_ranks=history.is_of_ranks)
            current |= {"pairs": len(train), "reached": reached}
            free = self._free(history)
            history = replace(history, ended=begun._ending([one["reached"] for one in rounds], len(free)))
            if history.ended is None:
                rounds.append({"rows": self._choose(network, features, free, labelled).tolist()})
            current["seconds"] = time.perf_counter() - since
            history.save(path)
        return LabelledPairs.joined([held_out, *labelled])

    def _begin(self) -> LabelHistory:
        """Targets, held-out rows and rows of the first round, at random."""
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(self.n_pool)
        wanted = TARGETS if self.own_targets else TARGETS_PER_ROW
        if self.n_target is None:
            wanted = min(wanted, self.n_pool // 2)
            targets, order = order[:wanted], order[wanted:]
        else:
            targets = rng.permutation(self.n_target)[:wanted]
        columns = targets[:TARGETS_PER_ROW]
        held_out = min(HELD_OUT, max(len(order) // 3, 1))
        first = order[held_out : held_out + FIRST * (TARGETS_PER_ROW // OWN if self.own_targets else 1)]
        if not len(first) or not len(columns):
            verb = "is" if self.n_pool == 1 else "are"
            raise ConfigError(
                f"{counted(self.n_pool, 'sample')} {verb} too few to label in rounds", "give more data, or `labels` 0"
            )
        new = columns[: 0 if self.pointwise else round(_HELD_OUT_TARGETS * len(columns))]
        return LabelHistory(
            targets=np.sort(targets).tolist(),
            columns=np.sort(columns).tolist(),
            held_out=[np.sort(order[:held_out]).tolist(), np.sort(new).tolist()],
            rounds=[{"rows": np.sort(first).tolist()}],
            pointwise=self.pointwise,
            target_fidelity=self.target_fidelity,
            metric=self._metric("subset_sum_correlation"),
        )

    def _plan(self, history: LabelHistory, number: int | None) -> PairPlan:
        """The pairs of a round, or, without a number, of the held-out rows."""
        columns, targets = np.array(history.columns), np.array(history.targets)
        rows = np.array(history.held_out[0] if number is None else history.rounds[number]["rows"])
        if self.pointwise:
            return PairPlan(rows, np.resize(columns, len(rows))[:, None])
        if not self.own_targets or number is None:
            return PairPlan(rows, columns)
        rng = np.random.default_rng([self.seed, 1, number])
        return PairPlan(rows, deal(targets, len(rows), min(OWN, len(targets)), rng))

    def _free(self, history: LabelHistory) -> np.ndarray:
        """Pool rows that can still be labelled."""
        taken = [history.held_out[0], *(one["rows"] for one in history.rounds)]
        if self.n_target is None:
            taken.append(history.targets)
        return np.setdiff1d(np.arange(self.n_pool), np.concatenate(taken))

    def _reached(self, held_out: LabelledPairs, predicted: np.ndarray, *, of_ranks: bool) -> float | None:
        """The correlation on the held-out rows; labelling that an earlier version began goes on with that of ranks."""
        found = measures(held_out, predicted, scale=1.0)
        return found[self._metric("spearman" if of_ranks else "subset_sum_correlation")]

    def _metric(self, name: str) -> str:
        return name if self.pointwise else f"{name}_within_target"

    def _choose(
        self, network: InfluenceNetwork, features: Any, free: np.ndarray, labelled: list[LabelledPairs]
    ) -> np.ndarray:
        """The next rows: by greedy variance reduction on a random part of the pool; at random with the paper's."""
        rows = sum(len(np.unique(part.pool_index)) for part in labelled)
        wanted = min(max(round(rows * (_GROWTH - 1)), 1), len(free))
        some = np.random.default_rng([self.seed, len(labelled)]).permutation(free)
        if self.recipe == "paper" or wanted > _CANDIDATES // 2:
            return np.sort(some[:wanted])
        some = np.sort(some[:_CANDIDATES])
        return np.sort(some[network.choose_samples(features[some], wanted)])

    def _ending(self, reached: list[float | None], free: int) -> str | None:
        """Why there is no further round; None if there is one."""
        numbers = [-1.0 if value is None else value for value in reached]
        if numbers[-1] >= self.target_fidelity:
            return "target fidelity reached"
        if len(numbers) >= 3 and max(numbers[-2:]) < max(numbers[:-2]) + _LEAST_GAIN:
            return "no improvement in two rounds"
        return None if free else "pool exhausted"
