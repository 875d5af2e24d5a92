"""Trials: one use of some pool rows, trained on or shown as examples, and its result on a test set, a file each.

A trial's file is named after everything that its result depends on, so two selectors with the same choice share one,
a killed call resumes, and a changed setting never meets an old result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from nncift.evaluation.answers.in_context import Demonstrations
from nncift.evaluation.answers.items import Items
from nncift.evaluation.answers.judge import Judge
from nncift.evaluation.answers.measurement import measure
from nncift.evaluation.answers.results import ItemScores
from nncift.models.text.examples import encode_examples
from nncift.proof.folder import claimed
from nncift.run.folder.costs import Costs
from nncift.run.progress import already, drawn
from nncift.run.storage.files import fingerprint, read_json, remove, write_json
from nncift.training.finetune import RECORD, fine_tune, is_trained
from nncift.training.settings import FineTuning

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.models.spec import EncoderSpec, ModelSpec

Method = Literal["none", "lora", "icl"]
"""The model as it is, fine-tuned on the rows, or with the most similar of them as examples in its context."""
UNTRAINED = ("none", "icl")
"""Methods without anything random."""


@dataclass(frozen=True)
class Trial:
    """One use of some pool rows.

    Attributes:
        method: how they are used.
        rows: pool rows in the order chosen; none for the model as it is.
        seed: of the training.
        weights: of each row in the training's loss, mean 1; none for equal ones.
        phases: lengths of consecutive parts of the rows that are trained on one after the other.
    """

    method: Method
    rows: tuple[int, ...] = ()
    seed: int = 0
    weights: tuple[float, ...] = ()
    phases: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Test:
    """A test set and what is measured on it.

    Attributes:
        items: the test items, rendered for the model.
        metrics: names of `METRICS`.
        encoder: of the embedding similarity, and of the choice of examples.
        judge: grades answers.
        max_new_tokens: of an answer; by the references unless given.
    """

    __test__ = False  # pytest takes classes of such a name for tests

    items: Items
    metrics: tuple[str, ...]
    encoder: EncoderSpec
    judge: Judge | None = None
    max_new_tokens: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        """What the results depend on, hashed."""
        items, judge = self.items, None if self.judge is None else self.judge.describe()
        parts = [items.ids, items.references, [example.key for example in items.examples]]
        generates = self.metrics != ("loss",)
        limits = self.items.new_tokens(self.max_new_tokens) if generates else self.max_new_tokens
        return fingerprint(*parts, self.metrics, self.encoder.name, judge, limits)

    def first(self, n: int) -> Test:
        """The same of the first n items."""
        some = dataclasses.replace(self.items, samples=self.items.samples[:n], examples=self.items.examples[:n])
        return dataclasses.replace(self, items=some)


@dataclass(frozen=True, eq=False)
class Bench:
    """What every trial of a folder shares.

    Attributes:
        folder: of the results.
        model: the model to fine-tune.
        pool: the pool, columns of `data.pool`.
        test: the test set and what is measured on it.
        tuning: settings of a fine-tuning.
        shots: examples in the context, at most.
        progress: show progress bars.
    """

    folder: Path
    model: ModelSpec
    pool: Dataset
    test: Test
    tuning: FineTuning
    shots: int = 5
    progress: bool = False
    _keys: dict[Trial, str] = field(default_factory=dict)

    @cached_property
    def _row_keys(self) -> list[str]:
        """A hash of each pool row's content."""
        columns = [name for name in ("prompt", "response", "messages", "tools", "turns") if name in self.pool.features]
        batches = self.pool.select_columns(columns).iter(1000)
        return [fingerprint(*values) for batch in batches for values in zip(*batch.values(), strict=True)]

    @cached_property
    def response_tokens(self) -> np.ndarray:
        """Response tokens of each pool row, which carry the loss, int64 (n,)."""
        examples = encode_examples(self.model.tokenization, self.pool, wording=self.model.wording, cut_responses=True)
        return np.array([example.scored for example in examples], np.int64)

    def key(self, trial: Trial) -> str:
        """What the trial's result depends on, hashed."""
        if trial not in self._keys:
            parts: list[Any] = [trial.method, self.model.describe(), self.test.fingerprint]
            rows = [self._row_keys[row] for row in trial.rows]
            if trial.method == "lora":
                parts += [rows, trial.seed, self.tuning.describe(), trial.weights, trial.phases]
            elif trial.method == "icl":
                parts += [sorted(rows), self.shots]
            self._keys[trial] = fingerprint(*parts)
        return self._keys[trial]

    def path(self, trial: Trial) -> Path:
        """The file of the trial's result."""
        return self.folder / f"{self.key(trial)}.parquet"

    def scores(self, trial: Trial) -> ItemScores:
        """The result of a finished trial."""
        return ItemScores.load(self.path(trial))

    def costs(self, trial: Trial) -> dict[str, dict[str, float]]:
        """What a finished trial cost, by stage ("tune", "measure"); nothing where the file was lost and repaired."""
        path = self._costs(trial)
        return dict(read_json(path)) if path.exists() else {}

    def _costs(self, trial: Trial) -> Path:
        return self.path(trial).with_suffix(".json")

    def run(self, trials: Iterable[Trial], *, keep: dict[Trial, Path] | None = None, wait: bool = True) -> None:
        """Run the trials that have no result, each in one of the processes that work on the folder.

        Args:
            trials: in the order of their importance.
            keep: where the adapter of a trial goes; without, it is removed.
            wait: return when all are finished, also those of other processes; else when no other is left to begin.
        """
        keep = keep or {}
        distinct = list({self.key(trial): trial for trial in trials}.values())
        shown = drawn(self.progress and len(distinct) > 1)
        with tqdm(total=len(distinct), desc="trials", unit=" trials", **shown) as bar:
            already(bar, self._finished(distinct))
            for late in (False, True)[: 1 + wait]:  # first those that no other process runs, then a killed one's
                for trial in distinct:
                    adapter = keep.get(trial)
                    with claimed(self.path(trial), wait=late) as ours:
                        if ours or (late and adapter is not None and not is_trained(adapter)):
                            self._run(trial, adapter)
                bar.update(self._finished(distinct) - bar.n)

    def total(self, trials: Iterable[Trial]) -> dict[str, Any]:
        """What finished trials cost together, each distinct one once: "number", and each stage's seconds and tokens."""
        found = [self.costs(trial) for trial in {self.key(trial): trial for trial in trials}.values()]
        stages = {
            stage: {name: sum(each.get(stage, {}).get(name, 0) for each in found) for name in ("seconds", "tokens")}
            for stage in ("tune", "measure")
        }
        return {"number": len(found), **stages}

    def _finished(self, trials: Sequence[Trial]) -> int:
        return sum(self.path(trial).exists() for trial in trials)

    def _run(self, trial: Trial, keep: Path | None) -> None:
        """Run one trial; its result is written last."""
        work = self.path(trial).with_suffix("")
        costs = Costs(work / "costs.json")
        adapter = None
        if trial.method == "lora":
            adapter = keep or work / "adapter"
            if not (adapter / RECORD).exists():
                remove(adapter)  # what repair has left: without its record it is nobody's
            with costs.stage("tune"):
                count = costs.counter("tune", self.model)
                self._tune(trial, adapter)
                count()
        if not self.path(trial).exists():
            with costs.stage("measure"):
                count = costs.counter("measure", self.model)
                scores = measure(
                    self.model.loaded,
                    self.test.items,
                    folder=work / "parts",
                    adapter=adapter,
                    demonstrations=self._demonstrations(trial),
                    metrics=self.test.metrics,
                    encoder=self.test.encoder,
                    judge=self.test.judge,
                    max_new_tokens=self.test.max_new_tokens,
                    batch_size=self.model.batch_size,
                    progress=self.progress,
                )
                count()
            stages = {name: {"seconds": cost.seconds, "tokens": _tokens(cost)} for name, cost in costs.stages.items()}
            write_json(self._costs(trial), stages)
            scores.save(self.path(trial))
        remove(work)

    def _tune(self, trial: Trial, folder: Path) -> None:
        rows = self.pool.select(trial.rows)
        parts = np.split(np.arange(len(trial.rows)), np.cumsum(trial.phases)[:-1]) if trial.phases else None
        fine_tune(
            self.model,
            rows,
            dataclasses.replace(self.tuning, seed=trial.seed),
            folder,
            weights=np.array(trial.weights) if trial.weights else None,
            phases=parts,
            progress=self.progress,
        )

    def _demonstrations(self, trial: Trial) -> Demonstrations | None:
        if trial.method != "icl":
            return None
        chosen = self.pool.select(sorted(trial.rows))
        return Demonstrations.choose(self.test.items, chosen, self.test.encoder, k=self.shots)


def _tokens(cost: Any) -> int:
    return int(cost.forward_tokens + cost.backward_tokens)
