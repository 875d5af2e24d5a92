"""Labelling in rounds (`--labels auto`): more pool rows are labelled where least is known, until the network is good.

Some rows, drawn at random, are held out all the while: on them the network is judged after each round, by the rank
correlation within a target. It ends when that reaches the wish, when two rounds bring no gain, or when the pool is
through. What a round will label is recorded before its first pair, so a resumed run goes on with the same. Where each
pair is work of its own, rows get targets of their own (see `labelling`), save those held out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nncift.errors import ConfigError
from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.metrics import measures
from nncift.labels.design import PairPlan, deal
from nncift.labels.pairs import LabelledPairs
from nncift.run.files import read_json, write_json

WISH = 0.5
COLUMNS, HELD_OUT, FIRST = 48, 32, 24  # targets of a row; rows held out; rows of the first round
OWN, TARGETS = 24, 192  # targets of a row, of its own; these are taken from so many, and there are twice as many rows
_HELD_OUT_TARGETS = 0.2  # of those that the rows held out have
_GROWTH = 1.5
_LEAST_GAIN = 0.01  # of the correlation, in a round
_CANDIDATES = 2048

Collect = Callable[[PairPlan, str], LabelledPairs]
"""Measures a plan; what it finds is kept under a name."""


@dataclass(frozen=True)
class Rounds:
    """Labels a pool in rounds.

    Attributes:
        n_pool: samples in the pool.
        n_target: targets; None where the pool is its own.
        pointwise: the influence is one score for all targets.
        own_targets: each row that is learned from has targets of its own.
        recipe: the network's.
        wish: the rank correlation at which it ends: within a target, of a pointwise influence over all rows.
        seed: which rows and targets.
    """

    n_pool: int
    n_target: int | None
    pointwise: bool
    own_targets: bool
    recipe: str
    wish: float
    seed: int

    def label(self, features: Any, target_features: Any, path: Path, collect: Collect) -> LabelledPairs:
        """All labels, of the rows held out too.

        Args:
            features: of the pool, (n_pool, d).
            target_features: of the targets, (n_target, d).
            path: of a JSON file that tells the story: the `targets`, those of them that the rows held out have
                (`columns`), the rows and targets that are `held_out`, and for each of the `rounds` its `rows`, the
                `pairs` learned from so far, the correlation `reached` and its `seconds`; and why it `ended`.
            collect: measures.
        """
        story = read_json(path) if path.exists() else self._begin()
        write_json(path, story)
        rounds = story["rounds"]
        held_out = collect(self._plan(story, None), "held-out")
        known: list[LabelledPairs] = []
        while len(known) < len(rounds):
            this, since = rounds[len(known)], time.perf_counter()
            known.append(collect(self._plan(story, len(known)), f"round-{len(known)}"))
            if "reached" in this:
                continue  # this round was finished before a kill
            train = LabelledPairs.joined(known)
            network = InfluenceNetwork(self.recipe, pointwise=self.pointwise, seed=self.seed)  # type: ignore[arg-type]
            network.fit(features, target_features, train)
            this |= {"pairs": len(train), "reached": self._judge(network, features, target_features, held_out)}
            free = self._free(story)
            story["ended"] = _ending([one["reached"] for one in rounds], self.wish, len(free))
            if story["ended"] is None:
                rounds.append({"rows": self._choose(network, features, free, known).tolist()})
            this["seconds"] = time.perf_counter() - since
            write_json(path, story)
        return LabelledPairs.joined([held_out, *known])

    def _begin(self) -> dict[str, Any]:
        """Targets, rows to hold out and rows of the first round, at random."""
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(self.n_pool)
        wanted = TARGETS if self.own_targets else COLUMNS
        if self.n_target is None:
            wanted = min(wanted, self.n_pool // 2)
            targets, order = order[:wanted], order[wanted:]
        else:
            targets = rng.permutation(self.n_target)[:wanted]
        columns = targets[:COLUMNS]
        held_out = min(HELD_OUT, max(len(order) // 3, 1))
        first = order[held_out : held_out + FIRST * (COLUMNS // OWN if self.own_targets else 1)]
        if not len(first) or not len(columns):
            raise ConfigError(f"{self.n_pool} samples are too few to label in rounds", "give --labels a number")
        new = columns[: 0 if self.pointwise else round(_HELD_OUT_TARGETS * len(columns))]
        return {
            "targets": np.sort(targets).tolist(),
            "columns": np.sort(columns).tolist(),
            "held_out": [np.sort(order[:held_out]).tolist(), np.sort(new).tolist()],
            "rounds": [{"rows": np.sort(first).tolist()}],
            "ended": None,
            "wish": self.wish,
            "pointwise": self.pointwise,
        }

    def _plan(self, story: dict[str, Any], number: int | None) -> PairPlan:
        """The pairs of a round, or, without a number, of the rows held out."""
        columns, targets = np.array(story["columns"]), np.array(story["targets"])
        rows = np.array(story["held_out"][0] if number is None else story["rounds"][number]["rows"])
        if self.pointwise:
            return PairPlan(rows, np.resize(columns, len(rows))[:, None])
        if not self.own_targets or number is None:
            return PairPlan(rows, columns)
        rng = np.random.default_rng([self.seed, 1, number])
        return PairPlan(rows, deal(targets, len(rows), min(OWN, len(targets)), rng))

    def _free(self, story: dict[str, Any]) -> np.ndarray:
        """Pool rows that can still be labelled."""
        taken = [story["held_out"][0], *(one["rows"] for one in story["rounds"])]
        if self.n_target is None:
            taken.append(story["targets"])
        return np.setdiff1d(np.arange(self.n_pool), np.concatenate(taken))

    def _judge(
        self, network: InfluenceNetwork, features: Any, target_features: Any, held_out: LabelledPairs
    ) -> float | None:
        predicted = network.predict(features[held_out.pool_index], target_features[held_out.target_index])
        found = measures(held_out, predicted, scale=1.0)
        return found["spearman" if self.pointwise else "spearman_within_target"]

    def _choose(
        self, network: InfluenceNetwork, features: Any, free: np.ndarray, known: list[LabelledPairs]
    ) -> np.ndarray:
        """The next rows: those that tell most of a random part of the pool, or, of the paper's recipe, at random."""
        labelled = sum(len(np.unique(part.pool_index)) for part in known)
        wanted = min(max(round(labelled * (_GROWTH - 1)), 1), len(free))
        some = np.random.default_rng([self.seed, len(known)]).permutation(free)
        if self.recipe == "paper" or wanted > _CANDIDATES // 2:
            return np.sort(some[:wanted])
        some = np.sort(some[:_CANDIDATES])
        return np.sort(some[network.choose_samples(features[some], wanted)])


def _ending(reached: list[float | None], wish: float, free: int) -> str | None:
    """Why there is no further round; None if there is one."""
    numbers = [-1.0 if value is None else value for value in reached]
    if numbers[-1] >= wish:
        return "the wish was reached"
    if len(numbers) >= 3 and max(numbers[-2:]) < max(numbers[:-2]) + _LEAST_GAIN:
        return "two rounds brought no gain"
    return None if free else "every sample of the pool is labelled"
