"""The exact influence that a run measures: labels to learn from, probes of every sample, the shortlist's verification.

Each is planned before the first pair is measured and the plan is kept, so a resumed run measures the same pairs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import DEFAULT_LABELS, Config, parse_labels
from nncift.errors import ConfigError
from nncift.influence.base import is_pointwise, works_per_pair
from nncift.labels.collect import collect
from nncift.labels.design import HeldOut, PairPlan, measure_rate, plan_labels
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.pipeline.active import WISH, Rounds
from nncift.pipeline.context import describe
from nncift.run.costs import Costs
from nncift.run.files import read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.estimator.network import InfluenceNetwork
    from nncift.influence.base import InfluenceFunction

_log = logging.getLogger("nncift")


@dataclass(frozen=True)
class Measuring:
    """Asks the influence function, keeps what it says in the run folder, and counts what it costs.

    Attributes:
        config: the run's.
        function: the influence function.
        samples, targets: the pool's rows and the targets'; `targets` is `samples` where the pool is its own target.
        folder: the run folder.
        costs: its table of costs.
        progress: show progress bars.
    """

    config: Config
    function: InfluenceFunction
    samples: Dataset
    targets: Dataset
    folder: Path
    costs: Costs
    progress: bool = False

    @property
    def own_target(self) -> bool:
        """Whether the pool is its own target."""
        return self.targets is self.samples

    def labels(self, features: Any, target_features: Any) -> LabelledPairs:
        """Exact influence of the planned pairs, or in rounds; the features tell the rounds where to go."""
        place = self.folder / "labels"
        count = self._counter("labels")
        plan = self._plan_labels(place / "plan.json")
        if self.config.in_rounds:
            return self._in_rounds(features, target_features, count)
        return self._collect(plan, place, count)

    def _in_rounds(self, features: Any, target_features: Any, count: Callable[[], None]) -> LabelledPairs:
        place, config = self.folder / "labels", self.config
        if (place / "labels.parquet").exists():
            return LabelledPairs.load(place / "labels.parquet")
        rounds = Rounds(
            n_pool=len(self.samples),
            n_target=None if self.own_target else len(self.targets),
            pointwise=is_pointwise(self.function),
            own_targets=works_per_pair(self.function),
            recipe=config.recipe,
            wish=WISH if config.fidelity is None else config.fidelity,
            seed=config.seed,
        )
        pairs = rounds.label(
            features,
            target_features,
            place / "rounds.json",
            lambda plan, name: self._collect(plan, place / name, count),
        )
        pairs.save(place / "labels.parquet")
        return pairs

    @cached_property
    def _ready(self) -> bool:
        """Done before the first pair that this process measures: all of a run are measured alike.

        Raises:
            ConfigError: the function, its precision or its device's default is another than of the pairs so far.
        """
        described = json.loads(json.dumps(describe(self.function), default=str))
        path = self.folder / "function.json"
        if path.exists() and (stored := read_json(path)) != described:
            raise ConfigError(
                f"{self.folder} holds exact influence by {stored}, now it is {described}",
                "give the same --dtype and --device, or choose another --output",
            )
        write_json(path, described)
        if hasattr(self.function, "warm_up"):
            self.function.warm_up(self.samples, self.folder / "labels" / "warm-up", progress=self.progress)
        return True

    def _collect(self, plan: PairPlan, place: Path, count: Callable[[], None]) -> LabelledPairs:
        if not (place / "labels.parquet").exists():
            _ = self._ready
        pairs = collect(
            self.function,
            self.samples,
            self.targets,
            plan.rows,
            plan.columns,
            folder=place,
            progress=self.progress,
            after_block=count,
        )
        if splits := getattr(self.function, "oom_splits", None):
            _log.info("%s: memory ran out on batches of %s, which were halved", place.name, splits)
        return pairs

    def _counter(self, stage: str) -> Callable[[], None]:
        """Called after each block: adds the tokens that the function has read since now to the stage's cost.

        Of the labels it also notes which samples lost a part: before they are finished, so that a resumed run knows.
        """

        def read(direction: str) -> int:
            return int(getattr(self.function, f"{direction}_tokens", 0))

        cost = self.costs.stages[stage]
        earlier = {d: getattr(cost, f"{d}_tokens") - read(d) for d in ("forward", "backward")}

        def count() -> None:
            for direction, before in earlier.items():
                setattr(cost, f"{direction}_tokens", before + read(direction))
            self.costs.save()
            if stage == "labels":
                self._note_cut()

        return count

    def _note_cut(self) -> None:
        cut = getattr(self.function, "cut_ids", None)
        path = self.folder / "labels" / "notes.json"
        if cut is not None:
            noted = read_json(path)["cut"] if path.exists() else None
            if noted is None or not set(noted) >= set(cut):
                write_json(path, {"cut": sorted({*(noted or ()), *cut})})

    def _plan_labels(self, path: Path) -> PairPlan:
        """The pairs to label."""
        config, function = self.config, self.function
        if path.exists():
            return PairPlan.from_dict(read_json(path))
        facts: dict[str, Any] = {"pointwise": is_pointwise(function), "rate": None}
        if config.in_rounds:
            plan = PairPlan(np.zeros(0, np.int64), np.zeros(0, np.int64))  # `rounds.json` has the rows
            write_json(path, plan.to_dict() | facts)
            return plan
        amount = parse_labels(config.labels or DEFAULT_LABELS)
        rate = None
        if amount.kind == "seconds":
            rate = measure_rate(function, self.samples, self.targets, seed=config.seed)
            facts["rate"] = dataclasses.asdict(rate)
        n_target = None if self.own_target else len(self.targets)
        plan = plan_labels(function, amount, len(self.samples), n_target, rate=rate, seed=config.seed)
        write_json(path, plan.to_dict() | facts)
        return plan

    def probes(self, network: InfluenceNetwork, target_features: Any) -> Probes:
        """Exact influence of every pool sample on a few targets, those that tell most."""
        path = self.folder / "probes" / "plan.json"
        if not path.exists():
            columns = network.choose_probes(target_features, int(self.config.probes or 1))
            write_json(path, {"columns": np.sort(columns).tolist()})
        columns = np.array(read_json(path)["columns"], dtype=np.int64)
        pairs = self._collect(
            PairPlan(np.arange(len(self.samples)), columns), self.folder / "probes", self._counter("probes")
        )
        influence = pairs.influence.reshape(len(self.samples), len(columns)).copy()
        if self.own_target:
            influence[columns, np.arange(len(columns))] = np.nan
        return Probes(columns, influence)

    def verify(self, part: str, plan: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, Probes]:
        """Exact influence of a part of the shortlist on some targets.

        Args:
            part: its name.
            plan: gives the pool rows to measure and the targets, (k,), (c,) int64; asked once, then remembered.

        Returns:
            The rows, ascending, and their exact influence.
        """
        place = self.folder / "verify" / part
        if not (place / "plan.json").exists():
            rows, columns = (np.sort(some).tolist() for some in plan())
            write_json(place / "plan.json", {"rows": rows, "columns": columns})
        stored = read_json(place / "plan.json")
        pairs_of = PairPlan(np.array(stored["rows"], dtype=np.int64), np.array(stored["columns"], dtype=np.int64))
        pairs = self._collect(pairs_of, place, self._counter("verify"))
        values = pairs.influence.reshape(len(pairs_of.rows), len(pairs_of.columns))
        return pairs_of.rows, Probes(pairs_of.columns, values)


def planned_held_out(folder: Path) -> HeldOut | None:
    """What a run folder's labels keep from the network, as it was planned; None where that is chosen afterwards."""
    for name in ("rounds.json", "plan.json"):
        path = folder / "labels" / name
        if path.exists() and (kept := read_json(path).get("held_out")) is not None:
            return np.array(kept[0], dtype=np.int64), np.array(kept[1], dtype=np.int64)
    return None
