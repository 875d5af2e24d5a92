"""LESS: the inner product of two samples' gradients while an adapter learns, the pool's seen through Adam.

A short LoRA fine-tuning on a part of the pool leaves a checkpoint after each epoch. At each, a pool sample's
feature is the step that Adam would take for it, m' / sqrt(v' + eps), and a target's is its plain gradient; both are
projected at random and brought to length 1, and their inner products are summed over the checkpoints, each with its
share of the learning rate. Length 1 is essential: gradients of short responses are longer.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from nncift.errors import ConfigError, DataError
from nncift.influence.base import broadcast
from nncift.influence.gradient_similarity import GradientInfluence, Point, Preconditioned
from nncift.models.examples import Example, tasks_of
from nncift.models.language_model import LanguageModel
from nncift.training.checkpoints import Checkpoint, read_checkpoint
from nncift.training.lora import Lora
from nncift.training.trainer import Training, choose_samples, fine_tune

if TYPE_CHECKING:
    from datasets import Dataset


class Less(GradientInfluence):
    """Gradient inner products over the checkpoints of a LoRA fine-tuning.

    Args:
        model: a folder, a hub id, "embedded", or a `LanguageModel`; loaded on first use.
        checkpoints: folders of adapters that you trained on it yourself, each with Adam's state; without them
            `warm_up`, or else `prepare` on the rows that it is given, trains one.
        training: how; LESS's warm-up unless given.
        preconditioned: "pool", as in LESS; "both" divides the targets' gradients by the root of Adam's second
            moment too; "no" takes plain gradients.
        aggregate: "task" gives a pool sample one score for all targets, LESS's own: the mean over the targets of a
            task, and of those means the largest. The tasks are the column `task` of the targets that `prepare` sees.
        **options: of `GradientInfluence`: dimension, seed, batch_size, dtype, device, max_length,
            trust_remote_code.

    Raises:
        ConfigError: an option has a value that cannot be used.

    Source: LESS (arXiv:2402.04333), sections 3 and 4.
    """

    name = "less"

    def __init__(
        self,
        model: str | LanguageModel,
        *,
        checkpoints: Sequence[str | Path] = (),
        training: Training | None = None,
        preconditioned: Preconditioned = "pool",
        aggregate: Literal["task"] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, seed=seed, **options)
        if preconditioned not in get_args(Preconditioned):
            known = ", ".join(get_args(Preconditioned))
            raise ConfigError(f"preconditioned {preconditioned!r} is not known", f"give one of {known}")
        if aggregate not in ("task", None):
            raise ConfigError(f"aggregate {aggregate!r} is not known", 'give "task" or None')
        self.preconditioned = preconditioned
        self.aggregate = aggregate
        self.pointwise = self.relative = aggregate is not None
        self.checkpoints = tuple(checkpoints)
        if checkpoints and training is not None:
            raise ConfigError("less was given both checkpoints and a training", "leave one of them out")
        self.training = training or Training(lora=Lora(seed=seed), seed=seed)
        self._warm: list[Checkpoint] = []  # of `warm_up`, which the user or a pipeline called
        self._trained: list[Checkpoint] = []  # of `prepare`
        self._discard: weakref.finalize[Any, Any] | None = None  # removes what was trained without a folder
        self._targets: tuple[list[Example], list[str]] | None = None  # that `prepare` saw, and the task of each

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        given = [str(folder) for folder in self.checkpoints]
        aggregate = {"aggregate": self.aggregate} if self.aggregate else {}
        training = json.loads(json.dumps(dataclasses.asdict(self.training)))
        return super().describe() | {"checkpoints": given or training} | aggregate

    def check(self, pool: Dataset, target: Dataset) -> None:
        """Refuse checkpoints that are none, and targets without a task where they are asked for; loads no model.

        Raises:
            DataError: a target has no task.
            ModelError: a checkpoint is not there or is damaged.
        """
        super().check(pool, target)
        _ = self._given
        if self.aggregate:
            read_tasks(target)

    def warm_up(self, pool: Dataset, folder: Path | None = None, *, progress: bool = False) -> list[Checkpoint]:
        """Train the adapter on a seeded fraction of the pool, where no checkpoints were given.

        Args:
            pool: all samples; `prepare` and the calls may then see a part of them.
            folder: keep the checkpoints here, `epoch-1`, `epoch-2`, ...; those there already are not trained again.
            progress: show a progress bar.

        Raises:
            DataError: a response does not fit into the context.
            ModelError: the model cannot be loaded or has no such layers, or a batch does not fit into memory.
            RunError: the folder holds the training of other samples or settings.
        """
        if self.checkpoints:
            return self._given
        self._warm = self._train(pool, folder, progress=progress)
        self._known = {}
        return self._warm

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Warm up on a fraction of these pool rows, unless that is done, and compute every sample's features once.

        Args:
            pool: the samples that may help, all that will be asked for.
            target: the samples to be helped, likewise.
            folder: keep the features in its `less`, and the warm-up in its `less-warm-up`, so that a resumed run
                goes on.

        Raises:
            DataError: a response does not fit into the context, a gradient is not finite, or a target has no task
                where the influence is aggregated.
            ModelError: the model cannot be loaded or has no such layers, or memory ran out.
            RunError: the folder holds the features of other samples or settings.
        """
        tasks = read_tasks(target) if self.aggregate else []
        if not self.checkpoints and not self._warm:
            place = None if folder is None else folder / f"{self.name}-warm-up"
            self._trained = self._train(pool, place, progress=self.progress)
        super().prepare(pool, target, folder)
        self._targets = (self._examples(target), tasks) if self.aggregate else None

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Influence of each pool sample on each target, or its one score for all where it is aggregated.

        Args:
            pool_rows: n_pool samples.
            target_rows: n_target samples.

        Returns:
            (n_pool, n_target) float32 in [-1, 1]; larger is better.

        Raises:
            ConfigError: there is no checkpoint, or `prepare` has not seen the targets to aggregate over.
            DataError: a response does not fit into the context, or a gradient is not finite.
            ModelError: the model cannot be loaded, or one sample alone does not fit into memory.
        """
        if not self.aggregate:
            return super().__call__(pool_rows, target_rows)
        if self._targets is None:
            raise ConfigError(f"{self.name} needs the targets of all tasks", "call prepare(pool, target) first")
        targets, tasks = self._targets
        scores = by_task(self._products(self._examples(pool_rows), targets), tasks)
        return broadcast(scores, len(target_rows))

    def tokens(self, pool_rows: Dataset, target_rows: Dataset, pool: Dataset | None = None) -> int:
        """How many tokens go through the model, and back, when `prepare` is given these rows.

        Args:
            pool_rows: the pool samples.
            target_rows: the targets.
            pool: what `warm_up` is given before; without it, `prepare` warms up if `warm_up` has not been called.
        """
        features = super().tokens(pool_rows, target_rows)
        if self._given or (self._warm and pool is None):
            return features
        trained = pool_rows if pool is None else pool
        chosen = self._examples(trained.select(choose_samples(len(trained), self.training)))
        return features + self.training.epochs * sum(len(example.ids) - 1 for example in chosen)

    def _passes(self) -> int:
        return len(self._given or self._warm) or self.training.epochs

    def _train(self, pool: Dataset, folder: Path | None, *, progress: bool = False) -> list[Checkpoint]:
        chosen = self._examples(pool.select(choose_samples(len(pool), self.training)))
        if folder is not None:
            return fine_tune(self.language_model, chosen, self.training, folder, progress=progress)
        folder = Path(tempfile.mkdtemp(prefix="nncift-less-"))
        discard = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        found = fine_tune(self.language_model, chosen, self.training, folder, progress=progress)
        if self._discard is not None:
            self._discard()  # the adapters of an earlier training take much space
        self._discard = discard
        return found

    @cached_property
    def _given(self) -> list[Checkpoint]:
        return [read_checkpoint(folder) for folder in self.checkpoints]

    def _adapters(self) -> Sequence[Point]:
        """The checkpoints, each with its share of the learning rate."""
        checkpoints = self._given or self._warm or self._trained
        if not checkpoints:
            raise ConfigError(
                "less has no checkpoints yet", "call prepare(pool, target) or warm_up(pool) first, or give checkpoints"
            )
        total = sum(checkpoint.learning_rate for checkpoint in checkpoints)
        return [Point(checkpoint.folder, checkpoint.learning_rate / total) for checkpoint in checkpoints]


def by_task(influence: np.ndarray, tasks: Sequence[str]) -> np.ndarray:
    """LESS's score of a pool sample: the mean over the targets of a task, and of those means the largest.

    Args:
        influence: (n_pool, n_target).
        tasks: the task of each target, such as its `task` column.

    Returns:
        (n_pool,) float32.

    Raises:
        ConfigError: there are no targets.

    Source: LESS (arXiv:2402.04333), section 4.2.
    """
    if len(tasks) != influence.shape[1] or not len(tasks):
        raise ConfigError(f"{len(tasks)} tasks were given for {influence.shape[1]} targets", "give one for each")
    names = np.asarray(tasks)
    means = [influence[:, names == task].mean(axis=1) for task in np.unique(names)]
    return np.asarray(np.max(means, axis=0), dtype=np.float32)


def read_tasks(rows: Dataset) -> list[str]:
    """The task of each sample.

    Raises:
        DataError: a sample has none.
    """
    tasks = tasks_of(rows)
    for name, task in zip(rows["id"], tasks, strict=True):
        if task is None:
            raise DataError(
                f"the target {name!r} has no task", "give every target one, or leave aggregate out", field="task"
            )
    return [task for task in tasks if task is not None]
