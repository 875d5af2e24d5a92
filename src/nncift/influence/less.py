"""LESS: inner products of per-sample gradients along a LoRA fine-tuning, the pool's preconditioned by Adam.

A LoRA warm-up on a fraction of the pool saves a checkpoint after each epoch. At each, a pool sample's feature is its
Adam update direction, m' / sqrt(v' + eps), and a target's is its plain gradient; both are randomly projected and
normalized, and their inner products are summed over the checkpoints, weighted by learning rate. Normalization is
essential: gradients of short responses are longer.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np

from nncift.errors import ConfigError, DataError
from nncift.influence.base import Footprint, Side, Traits, broadcast
from nncift.influence.gradient_similarity import Attached, GradientInfluence, Point, Preconditioned
from nncift.influence.task_directions import AlongDirections, LeadingDirections
from nncift.models.examples import Example, distinct, tasks_of
from nncift.models.language_model import LanguageModel
from nncift.models.spec import ModelSpec
from nncift.training.checkpoints import Checkpoint, read_checkpoint
from nncift.training.lora import Lora
from nncift.training.trainer import PASS, Training, choose_samples, fine_tune

if TYPE_CHECKING:
    from datasets import Dataset


class Less(GradientInfluence):
    """Gradient inner products over the checkpoints of a LoRA fine-tuning.

    Args:
        model: as of `GradientInfluence`.
        checkpoints: folders of trained adapters, each with Adam's state; without them `warm_up`, or else `prepare` on
            its rows, trains one.
        training: the warm-up's hyperparameters; LESS's unless given.
        preconditioned: "pool", as in LESS; "both" also divides the targets' gradients by the root of Adam's second
            moment; "no" takes plain gradients.
        aggregate: "task" gives a pool sample LESS's one score for all targets: the maximum over tasks of its mean over
            the task's targets. Tasks are the column `task` of the targets given to `prepare`.
        directions: compare gradients only along so many leading directions of the gradients of the targets given to
            `prepare`: forward passes alone over the pool (`task_directions`). Needs `preconditioned` "both" or "no".
        **options: dimension, layers, sharpness, seed, batch_size, dtype, device, max_length, trust_remote_code of
            `GradientInfluence`.

    Raises:
        ConfigError: an option has an invalid value.

    Source: LESS (arXiv:2402.04333), sections 3 and 4.
    """

    name = "less"

    def __init__(
        self,
        model: str | LanguageModel | ModelSpec,
        *,
        checkpoints: Sequence[str | Path] = (),
        training: Training | None = None,
        preconditioned: Preconditioned = "pool",
        aggregate: Literal["task"] | None = None,
        directions: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, seed=seed, **options)
        if preconditioned not in get_args(Preconditioned):
            known = ", ".join(get_args(Preconditioned))
            raise ConfigError(f"`preconditioned` {preconditioned!r} is unknown", f"give one of {known}")
        if aggregate not in ("task", None):
            raise ConfigError(f"`aggregate` {aggregate!r} is unknown", 'give "task" or None')
        if directions is not None and directions < 1:
            raise ConfigError(f"`directions` {directions} is too small", "give at least 1")
        if directions and preconditioned == "pool":
            raise ConfigError(
                "`directions` does not go with `preconditioned` pool: an Adam update is not linear in the gradient",
                "give `preconditioned` both",
            )
        if directions and self.sharpness:
            raise ConfigError("`directions` does not go with `sharpness`, which needs cosines", "give only one of them")
        self.preconditioned = preconditioned
        self.aggregate = aggregate
        self.directions = directions
        if directions:
            self._order = ("target", "pool")
        if aggregate or directions:
            self.traits = Traits(pointwise=aggregate is not None, relative=True, asks_language_model=True)
        self.checkpoints = tuple(checkpoints)
        if checkpoints and training is not None:
            raise ConfigError("less was given both `checkpoints` and `training`", "give only one of them")
        self.training = training or Training(lora=Lora(seed=seed), seed=seed)
        self._warm: list[Checkpoint] = []  # by `warm_up`
        self._trained: list[Checkpoint] = []  # by `prepare`
        self._discard: weakref.finalize[Any, Any] | None = None  # removes a training without a folder
        self._targets: tuple[list[Example], list[str]] | None = None  # of `prepare`, and the task of each
        self._leading: dict[int, LeadingDirections] = {}  # by number of the checkpoint

    def describe(self) -> dict[str, Any]:
        """With the checkpoints, or how they are trained."""
        given = [str(folder) for folder in self.checkpoints]
        aggregate = {"aggregate": self.aggregate} if self.aggregate else {}
        directions = {"directions": self.directions} if self.directions else {}
        return super().describe() | {"checkpoints": given or self.training.describe()} | aggregate | directions

    def check(self, pool: Dataset, target: Dataset) -> None:
        """Raise if a checkpoint is invalid, or a target has no task to aggregate over."""
        super().check(pool, target)
        _ = self._given
        if self.aggregate:
            read_tasks(target)

    def warm_up(self, pool: Dataset, folder: Path | None = None, *, progress: bool = False) -> list[Checkpoint]:
        """Train the adapter on a random fraction of the pool, unless checkpoints were given.

        Args:
            pool: all samples; `prepare` and the calls may get a part of them.
            folder: caches the checkpoints, `epoch-1`, `epoch-2`, ...
            progress: show a progress bar.
        """
        if self.checkpoints:
            return self._given
        self._warm = self._train(pool, folder, progress=progress)
        self._cache, self._leading = {}, {}
        return self._warm

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Compute the features, kept in `less`, after a warm-up on these rows unless done, kept in `less-warm-up`."""
        tasks = read_tasks(target) if self.aggregate else []
        if not self.checkpoints and not self._warm:
            place = None if folder is None else folder / f"{self.name}-warm-up"
            self._trained = self._train(pool, place, progress=self.progress)
        self._leading = {}
        super().prepare(pool, target, folder)
        self._targets = (self._examples(target), tasks) if self.aggregate else None

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Weighted inner products, in [-1, 1], or their exponentials, or the aggregate of either."""
        if self.directions and not self._leading:
            raise ConfigError(f"{self.name} needs all targets to find `directions`", "call prepare(pool, target) first")
        if not self.aggregate:
            return super().__call__(pool_rows, target_rows)
        if self._targets is None:
            raise ConfigError(f"{self.name} needs the targets of all tasks", "call prepare(pool, target) first")
        targets, tasks = self._targets
        scores = by_task(self._products(self._examples(pool_rows), targets), tasks)
        return broadcast(scores, len(target_rows))

    def footprint(self, pool_rows: Dataset, target_rows: Dataset, samples: int) -> Footprint:
        """With the training of the warm-up and its checkpoints."""
        features = super().footprint(pool_rows, target_rows, samples)
        weights, states = self._adapter_size()
        if self.directions:  # with the sums of a batch, and those so far
            features = features._replace(memory=features.memory + 3 * 4 * weights * self.directions)
        if self._given:
            return features
        training = self._batch_memory(pool_rows, batch_size=PASS, adapted=states) + 4 * 4 * weights
        stored = self.training.epochs * 3 * 4 * weights  # with Adam's moments
        return Footprint(max(features.memory, training), features.disk + stored, features.checkpoints + stored)

    @property
    def _lora(self) -> Lora:
        return self.training.lora

    def shortened(self) -> Self:
        """A copy that trains for one epoch on all that it is given, in as few steps as its batch size allows."""
        short = copy.copy(self)
        short.training = dataclasses.replace(self.training, epochs=1, fraction=1.0, min_steps_per_epoch=1)
        short._warm, short._trained, short._cache, short._discard = [], [], {}, None
        short._leading = {}
        return short

    def tokens(self, pool_rows: Dataset, target_rows: Dataset, pool: Dataset | None = None) -> int:
        """As of `GradientInfluence`, and of the warm-up unless it is done: on `pool`, or else on the pool rows."""
        features = self._feature_tokens(pool_rows, target_rows)
        if self._given or (self._warm and pool is None):
            return features
        trained = pool_rows if pool is None else pool
        chosen = self._examples(trained.select(choose_samples(len(trained), self.training)))
        return features + self.training.epochs * sum(len(example.ids) - 1 for example in chosen)

    def _feature_tokens(self, pool_rows: Dataset, target_rows: Dataset) -> int:
        """Of all forward passes but those of the warm-up; with `directions`, backward passes are fewer."""
        if not self.directions:
            return super().tokens(pool_rows, target_rows)
        pool, target = (distinct(self._examples(rows)) for rows in (pool_rows, target_rows))
        of_pool, of_target = (sum(len(example.ids) - 1 for example in side) for side in (pool, target))
        return self._passes() * (2 * min(self.directions, len(target)) * of_pool + 2 * of_target)

    def _features(self, k: int, side: Side, examples: Sequence[Example]) -> np.ndarray:
        found = super()._features(k, side, examples)
        return self._leading[k].coordinates(found) if self.directions and side == "target" else found

    def _from_products(self, products: np.ndarray) -> np.ndarray:
        return products if self.directions else super()._from_products(products)

    def _attach(self, k: int) -> Attached:
        if not self.directions:
            return super()._attach(k)
        return AlongDirections(self, self._adapters()[k], self.directions, self._leading, k)

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
            self._discard()
        self._discard = discard
        return found

    @cached_property
    def _given(self) -> list[Checkpoint]:
        return [read_checkpoint(folder) for folder in self.checkpoints]

    def _adapters(self) -> Sequence[Point]:
        """The checkpoints, weighted by learning rate."""
        checkpoints = self._given or self._warm or self._trained
        if not checkpoints:
            raise ConfigError(
                "less has no checkpoints yet", "call prepare(pool, target) or warm_up(pool) first, or give checkpoints"
            )
        total = sum(checkpoint.learning_rate for checkpoint in checkpoints)
        return [Point(checkpoint.folder, checkpoint.learning_rate / total) for checkpoint in checkpoints]


def by_task(influence: np.ndarray, tasks: Sequence[str]) -> np.ndarray:
    """LESS's scores (section 4.2), (n_pool,) float32: the maximum over tasks of the mean over a task's targets.

    From the influence (n_pool, n_target) and the task of each target, at least one.
    """
    if len(tasks) != influence.shape[1] or not len(tasks):
        raise ConfigError(f"{len(tasks)} tasks were given for {influence.shape[1]} targets", "give one for each")
    names = np.asarray(tasks)
    means = [influence[:, names == task].mean(axis=1) for task in np.unique(names)]
    return np.asarray(np.max(means, axis=0), dtype=np.float32)


def read_tasks(rows: Dataset) -> list[str]:
    """The task of each sample; raises `DataError` if one has none."""
    tasks = tasks_of(rows)
    for name, task in zip(rows["id"], tasks, strict=True):
        if task is None:
            raise DataError(
                f"the target {name!r} has no task", "give every target one, or omit `aggregate`", field="task"
            )
    return [task for task in tasks if task is not None]
