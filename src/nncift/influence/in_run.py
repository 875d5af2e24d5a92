"""In-run data Shapley: what each pool sample did for the targets' loss in one fine-tuning run, to first order.

A step at learning rate r along a sample's gradient lowers the targets' loss by r <its gradient, theirs>. In one LoRA
fine-tuning on the whole pool each step adds this for the samples of its batch, in the backward pass that it needs
anyway; a sample's score is the sum over all steps. The scores belong to this run: its order, its learning rates.

Dividing the targets' gradient by the root of Adam's second moment turns the effect of a step of gradient descent into
that of Adam's own, of which momentum only spreads a gradient over the steps that follow. Clipping is left out.

It costs the training and, for each step, one more pass of the targets that it looks at, half as many as its samples
unless there are more tasks than that. So it takes about 1.5 times as long as the training where targets are as long as
pool samples, and 2 times where they are nearly twice as long; each further task adds about a twentieth. Steps are
larger than in LESS's warm-up where the pool is small: a sample is compared with more targets at the same cost.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, Unpack, get_args

import numpy as np

from nncift.errors import ConfigError, DataError
from nncift.influence.base import LanguageModelFunction, ModelOptions
from nncift.models.examples import Example, encode_examples, tasks_of
from nncift.models.language_model import LanguageModel
from nncift.run.files import read_array
from nncift.training.gradient_products import SCORES, InnerProducts
from nncift.training.lora import Lora
from nncift.training.trainer import PASS, Training, fine_tune, samples_per_step, steps_per_epoch

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.config import Config

Preconditioned = Literal["no", "yes"]


@dataclass(frozen=True)
class InRunTraining(Training):
    """How the run trains: on all samples, without dropout, in at least four steps an epoch; else as LESS's warm-up."""

    lora: Lora = field(default_factory=lambda: Lora(dropout=0.0))
    fraction: float = 1.0
    fewest_steps: int = 4


class _Target(NamedTuple):
    """A target, its task, and the number of that among the tasks of all targets."""

    example: Example
    task: str
    group: int


class InRun(LanguageModelFunction):
    """First-order in-run data Shapley values of the pool samples, for the whole target or for each of its tasks.

    Targets with the same `task` are a group, and all of them are one where they have none. Entry [i, j] is
    the score of pool sample i for the group of target j; `pointwise` is true once `check` has found a single group.
    Rows with the same tokens share the mean of their scores.

    Args:
        model: a folder, a hub id, "embedded", or a `LanguageModel`; loaded on first use. An adapter is on it only
            while `prepare` works.
        training: how; four epochs of at least four steps on all samples, otherwise as in LESS's warm-up but without
            dropout, unless given. With dropout a sample's gradient is that of the training pass, of the weights that
            were left in.
        target_batch: targets that a step looks at, at least one of each task; half the step's samples unless given,
            or as many as there are tasks. Each task's are gone through in a random order before one comes again.
        preconditioned: "yes" for the effect of Adam's own step, "no" for that of gradient descent.
        seed: of the training and of what is drawn, where no training is given; else the training's counts.
        **options: batch_size (at most 8 samples go through the model together in any case), dtype, device,
            max_length, trust_remote_code of `LanguageModelFunction`.

    Raises:
        ConfigError: an option has a value that cannot be used.

    Source: Wang, Mittal, Song, Jia 2024, "Data Shapley in One Training Run" (arXiv:2406.11011), its first-order
    values and ghost dot-product; groups by task and the division by Adam's second moment are ours.
    """

    name = "in-run"
    pointwise = False
    relative = True

    def __init__(
        self,
        model: str | LanguageModel,
        *,
        training: InRunTraining | None = None,
        target_batch: int | None = None,
        preconditioned: Preconditioned = "yes",
        seed: int = 0,
        **options: Unpack[ModelOptions],
    ) -> None:
        super().__init__(model, **options)
        if preconditioned not in get_args(Preconditioned):
            raise ConfigError(f"preconditioned {preconditioned!r} is not known", 'give "no" or "yes"')
        if target_batch is not None and target_batch < 1:
            raise ConfigError(f"target_batch {target_batch} is too small", "give at least 1")
        if training is not None and training.fraction != 1:
            raise ConfigError(
                f"fraction {training.fraction} of the training leaves samples without a score", "give fraction=1"
            )
        self.training = training or InRunTraining(lora=Lora(dropout=0.0, seed=seed), seed=seed)
        self.target_batch = target_batch
        self.preconditioned = preconditioned
        self._scores: dict[str, np.ndarray] = {}  # (groups,) by what `Example.key` says
        self._columns: dict[tuple[str, str], int] = {}  # group by key and task of a target

    @classmethod
    def from_config(cls, config: Config, **options: Any) -> Self:
        """The function that a run's config asks for, with options of its own."""
        return super().from_config(config, seed=config.seed, **options)

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        return super().describe() | {
            "training": json.loads(json.dumps(dataclasses.asdict(self.training))),
            "target_batch": self.target_batch,
            "preconditioned": self.preconditioned,
        }

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Train on the pool once, and score every sample on the way. The order of the rows does not matter.

        Args:
            pool: the samples that may help, all that will be asked for.
            target: the samples to be helped, likewise.
            folder: keep each epoch's adapter and share of the scores here, in a folder of this function's name, so
                that a resumed run repeats at most one epoch.

        Raises:
            ConfigError: there are no samples or no targets, or more tasks than `target_batch`.
            DataError: a response does not fit into the context, or a score is not finite.
            ModelError: the model cannot be loaded or has no such layers, or a batch does not fit into memory.
            RunError: the folder holds the scores of other samples or settings.
        """
        samples, targets = self._in_order(pool, target)
        if not samples or not targets:
            raise ConfigError("in-run has nothing to train on, or no targets", "give a pool and a target")
        observer = self._observer(samples, targets)
        with tempfile.TemporaryDirectory(prefix="nncift-in-run-") as temporary:
            points = fine_tune(
                self.language_model,
                samples,
                self.training,
                Path(temporary) if folder is None else folder / self.name,
                observer=observer,
                pass_size=observer.pass_size,
                progress=self.progress,
            )
            scores = np.sum([read_array(point.folder / f"{SCORES}.npy") for point in points], axis=0)
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            name = samples[int(np.flatnonzero(~finite)[0])].id
            raise DataError(f"the score of {name!r} is not finite", "lower the learning rate, or use --dtype float32")
        copies: dict[str, list[np.ndarray]] = {}
        for example, score in zip(samples, scores, strict=True):
            copies.setdefault(example.key, []).append(score)
        self._scores = {key: np.mean(same, axis=0) for key, same in copies.items()}
        self._columns = {(target.example.key, target.task): target.group for target in targets}

    def check(self, pool: Dataset, target: Dataset) -> None:
        """Find out whether there is one score for each sample, or one for each task; loads no model."""
        super().check(pool, target)
        self.pointwise = len(set(tasks_of(target))) == 1

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """The score of each pool sample for the group of each target.

        Args:
            pool_rows: n_pool samples, all of which `prepare` has seen.
            target_rows: n_target samples, likewise.

        Returns:
            (n_pool, n_target) float32; larger is better, 0 is no effect. Columns of one group are equal.

        Raises:
            ConfigError: `prepare` has not seen a sample.
        """
        if not self._scores:
            raise ConfigError("in-run has trained on nothing yet", "call prepare(pool, target) first")
        samples, targets = self._examples(pool_rows), self._targets(target_rows)
        new = [example.id for example in samples if example.key not in self._scores]
        new += [target.example.id for target in targets if (target.example.key, target.task) not in self._columns]
        if new:
            raise ConfigError(f"in-run has not seen {new[0]!r}", "call prepare(pool, target) with all samples")
        columns = [self._columns[target.example.key, target.task] for target in targets]
        rows = [self._scores[example.key][columns] for example in samples]
        return np.reshape(rows, (len(samples), len(targets))).astype(np.float32)

    def tokens(self, pool_rows: Dataset, target_rows: Dataset) -> int:
        """How many tokens go through the model, and back, when `prepare` is given these rows."""
        samples, targets = self._in_order(pool_rows, target_rows)
        if not samples or not targets:
            return 0
        drawn = [number for step in self._observer(samples, targets).drawn for number in step]
        training = self.training.epochs * sum(len(example.ids) - 1 for example in samples)
        return training + sum(len(targets[number].example.ids) - 1 for number in drawn)

    def _in_order(self, pool_rows: Dataset, target_rows: Dataset) -> tuple[list[Example], list[_Target]]:
        """Samples and targets in an order that is theirs, whatever that of the rows."""
        samples = sorted(self._examples(pool_rows), key=lambda example: example.key)
        return samples, sorted(self._targets(target_rows), key=lambda target: (target.task, target.example.key))

    def _observer(self, samples: Sequence[Example], targets: Sequence[_Target]) -> InnerProducts:
        """What will look on at the training."""
        groups = 1 + max(target.group for target in targets)
        half = samples_per_step(len(samples), self.training) // 2
        size = self.target_batch or max(half, groups)
        if size < groups:
            raise ConfigError(
                f"target_batch {size} is less than the {groups} tasks of the targets", "give a larger one"
            )
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

    def _examples(self, rows: Dataset) -> list[Example]:
        examples = encode_examples(self.language_model, rows)
        self._cut.update(example.id for example in examples if example.cut)
        return examples

    def _targets(self, rows: Dataset) -> list[_Target]:
        """The targets in the order of the rows."""
        tasks = [task or "" for task in tasks_of(rows)]
        names = {task: group for group, task in enumerate(sorted(set(tasks)))}
        return [_Target(example, task, names[task]) for example, task in zip(self._examples(rows), tasks, strict=True)]
