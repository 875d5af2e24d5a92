"""In-run data Shapley: each pool sample's first-order contribution to the targets' loss in one fine-tuning run.

A step at learning rate r along a sample's gradient lowers the targets' loss by r <its gradient, theirs>. In one LoRA
fine-tuning on the whole pool, each step adds this for the samples of its batch within its own backward pass; a sample's
score is the sum over all steps. Scores are specific to this run: its sample order, its learning rates.

Dividing the targets' gradient by the root of Adam's second moment gives the effect of an Adam step instead of a
gradient descent step; momentum only spreads a gradient over later steps. Gradient clipping is ignored.

It costs the training and, in each step, a pass over a batch of targets, half as many as the step's samples unless there
are more tasks than that: about 1.5 times the training where targets are as long as pool samples, 2 times where they are
nearly twice as long; each further task adds about 5 %. On small pools, batches are larger than in LESS's warm-up: a
sample is compared with more targets at the same cost.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, get_args

import numpy as np

from nncift.errors import ConfigError, DataError
from nncift.influence.base import Footprint, Traits
from nncift.influence.gradients.target_tasks import task_names
from nncift.influence.model_functions import LanguageModelFunction
from nncift.models.language_model import LanguageModel
from nncift.models.memory import adapter_size
from nncift.models.spec import ModelSpec
from nncift.models.text.examples import Example
from nncift.run.storage.files import read_array
from nncift.training.gradient_products import SCORES, InnerProducts
from nncift.training.lora import Lora
from nncift.training.trainer import PASS, Training, fine_tune, samples_per_step, steps_per_epoch

if TYPE_CHECKING:
    from datasets import Dataset

Preconditioned = Literal["no", "yes"]


@dataclass(frozen=True)
class InRunTraining(Training):
    """LESS's warm-up, but on all samples, without dropout, and with at least four steps per epoch."""

    lora: Lora = field(default_factory=lambda: Lora(dropout=0.0))
    fraction: float = 1.0
    min_steps_per_epoch: int = 4


class _Target(NamedTuple):
    """A target, its task, and the task's index among those of all targets."""

    example: Example
    task: str
    group: int


class InRun(LanguageModelFunction):
    """First-order in-run data Shapley values of the pool samples, for the whole target or for each of its tasks.

    Targets with the same `task` form a group; without tasks there is one group. Entry [i, j] is the score of pool
    sample i for the group of target j; `traits.pointwise` is set by `check` if there is a single group. Rows with the
    same tokens share the mean of their scores.

    Args:
        model: a folder, a hub id, "embedded", a `LanguageModel`, or a `ModelSpec`; loaded on first use. It has an
            adapter only during `prepare`.
        training: its hyperparameters; four epochs of at least four steps on all samples, otherwise LESS's warm-up
            without dropout, unless given. With dropout, gradients are those of the training pass.
        target_batch: targets per step, at least one of each task; half the step's samples unless given, or the number
            of tasks. A task's targets are drawn without replacement until all were drawn.
        preconditioned: "yes" for the effect of an Adam step, "no" for that of gradient descent.
        seed: of the training and of the draws, unless `training` is given, whose seed counts.
        **options: batch_size (at most 8), dtype, device, max_length, trust_remote_code of `ModelSpec`.

    Raises:
        ConfigError: an option has an invalid value.

    Source: Wang, Mittal, Song, Jia 2024, "Data Shapley in One Training Run" (arXiv:2406.11011), its first-order
    values and ghost dot-product; groups by task and the division by Adam's second moment are ours.
    """

    name = "in-run"
    seeded = True
    _settings = ("target_batch", "preconditioned")
    traits = Traits(relative=True, asks_language_model=True)

    def __init__(
        self,
        model: str | LanguageModel | ModelSpec,
        *,
        training: InRunTraining | None = None,
        target_batch: int | None = None,
        preconditioned: Preconditioned = "yes",
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        if preconditioned not in get_args(Preconditioned):
            raise ConfigError(f"`preconditioned` {preconditioned!r} is unknown", 'give "no" or "yes"')
        if target_batch is not None and target_batch < 1:
            raise ConfigError(f"`target_batch` {target_batch} is too small", "give at least 1")
        if training is not None and training.fraction != 1:
            raise ConfigError(f"with `training.fraction` {training.fraction} some samples have no score", "give 1")
        self.training = training or InRunTraining(lora=Lora(dropout=0.0, seed=seed), seed=seed)
        self.target_batch = target_batch
        self.preconditioned = preconditioned
        self._scores: dict[str, np.ndarray] = {}  # (groups,) by `Example.key`
        self._columns: dict[tuple[str, str], int] = {}  # group by key and task of a target

    def describe(self) -> dict[str, Any]:
        """With the training."""
        return super().describe() | {"training": self.training.describe()}

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Train on the pool once, scoring every sample. The order of the rows does not matter.

        `folder` caches each epoch's adapter and scores, in a folder of this function's name; a resumed run repeats at
        most one epoch.
        """
        samples, targets = self._in_order(pool, target)
        if not samples or not targets:
            raise ConfigError("in-run has nothing to train on, or no targets", "give a pool and a target")
        callback = self._callback(samples, targets)
        with tempfile.TemporaryDirectory(prefix="nncift-in-run-") as temporary:
            points = fine_tune(
                self.language_model,
                samples,
                self.training,
                Path(temporary) if folder is None else folder / self.name,
                callback=callback,
                pass_size=callback.pass_size,
                progress=self.progress,
            )
            scores = np.sum([read_array(point.folder / f"{SCORES}.npy") for point in points], axis=0)
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        if len(bad):
            raise DataError(
                f"the score of {samples[bad[0]].id!r} is not finite",
                "lower `training.learning_rate`, or set `dtype` to float32",
            )
        keys, first, copies = np.unique([example.key for example in samples], return_index=True, return_counts=True)
        self._scores = dict(zip(keys.tolist(), np.add.reduceat(scores, first) / copies[:, None], strict=True))
        self._columns = {(target.example.key, target.task): target.group for target in targets}

    def check(self, pool: Dataset, target: Dataset) -> None:
        """Set `traits.pointwise` if all targets are of one task."""
        super().check(pool, target)
        self.traits = dataclasses.replace(self.traits, pointwise=len({*task_names(target)}) == 1)

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """The score of each pool sample for the group of each target; 0 is no effect."""
        if not self._scores:
            raise ConfigError("in-run has not been trained", "call prepare(pool, target) first")
        samples, targets = self._examples(pool_rows), self._targets(target_rows)
        new = [example.id for example in samples if example.key not in self._scores]
        new += [target.example.id for target in targets if (target.example.key, target.task) not in self._columns]
        if new:
            raise ConfigError(f"in-run was not trained with {new[0]!r}", "call prepare(pool, target) with all samples")
        columns = [self._columns[target.example.key, target.task] for target in targets]
        rows = [self._scores[example.key][columns] for example in samples]
        return np.reshape(rows, (len(samples), len(targets))).astype(np.float32)

    def footprint(self, pool_rows: Dataset, target_rows: Dataset, n_pool: int, n_target: int) -> Footprint:
        """The training with its checkpoints, and the targets' gradients."""
        lora = self.training.lora
        weights, states = adapter_size(self.language_model, lora.modules, lora.rank)
        memory = (
            self._batch_memory(pool_rows, target_rows, batch_size=min(self.batch_size, PASS), adapted=states)
            + 6 * 4 * weights
        )
        stored = self.training.epochs * 3 * 4 * weights  # with Adam's moments
        return Footprint(memory, stored, stored)

    def shortened(self) -> Self:
        """A copy that trains for one epoch."""
        short = copy.copy(self)
        short.training = dataclasses.replace(self.training, epochs=1, min_steps_per_epoch=1)
        short._scores, short._columns = {}, {}
        return short

    def tokens(self, pool_rows: Dataset, target_rows: Dataset, pool: Dataset | None = None) -> int:
        """Tokens of all forward, and of all backward, passes of `prepare` on these rows."""
        samples, targets = self._in_order(pool_rows, target_rows)
        if not samples or not targets:
            return 0
        drawn = [number for step in self._callback(samples, targets).drawn for number in step]
        training = self.training.epochs * sum(len(example.ids) - 1 for example in samples)
        return training + sum(len(targets[number].example.ids) - 1 for number in drawn)

    def _in_order(self, pool_rows: Dataset, target_rows: Dataset) -> tuple[list[Example], list[_Target]]:
        """Samples and targets, sorted so that the order of the rows does not matter."""
        samples = sorted(self._examples(pool_rows), key=lambda example: example.key)
        return samples, sorted(self._targets(target_rows), key=lambda target: (target.task, target.example.key))

    def _callback(self, samples: Sequence[Example], targets: Sequence[_Target]) -> InnerProducts:
        """Computes the scores during the training."""
        groups = 1 + max(target.group for target in targets)
        half = samples_per_step(len(samples), self.training) // 2
        size = self.target_batch or max(half, groups)
        if size < groups:
            raise ConfigError(f"`target_batch` {size} is less than the targets' {groups} tasks", "give a larger one")
        return InnerProducts(
            len(samples),
            [target.example for target in targets],
            [target.group for target in targets],
            size=size,
            steps=self.training.epochs * steps_per_epoch(len(samples), self.training),
            preconditioned=self.preconditioned == "yes",
            seed=self.training.seed,
            pass_size=min(self.batch_size, PASS),
        )

    def _targets(self, rows: Dataset) -> list[_Target]:
        """The targets in the order of the rows."""
        tasks = task_names(rows)
        names = {task: group for group, task in enumerate(sorted(set(tasks)))}
        return [_Target(example, task, names[task]) for example, task in zip(self._examples(rows), tasks, strict=True)]
