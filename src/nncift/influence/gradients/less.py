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
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np

from nncift.errors import ConfigError
from nncift.influence.base import Footprint, Side, Traits, broadcast
from nncift.influence.gradients.adapter_gradients import AdapterGradients, Point, Preconditioned
from nncift.influence.gradients.gradient_similarity import GradientInfluence
from nncift.influence.gradients.target_tasks import by_task, read_tasks, task_names
from nncift.influence.gradients.task_directions import (
    AlongDirections,
    TargetDirections,
    leading_directions,
    mean_directions,
)
from nncift.models.language_model import LanguageModel
from nncift.models.spec import ModelSpec
from nncift.models.text.examples import Example, distinct
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
        directions: compare gradients only along some directions of the gradients of the targets given to `prepare`:
            forward passes alone over the pool (`task_directions`). "task" takes the mean of each task (of the column
            `task`; targets without one form a task too), so that targets of a task have equal values, and `check` sets
            `traits.pointwise` if there is a single task; a number takes so many leading ones. Needs `preconditioned`
            "both" or "no".
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
        directions: int | Literal["task"] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, seed=seed, **options)
        if preconditioned not in get_args(Preconditioned):
            known = ", ".join(get_args(Preconditioned))
            raise ConfigError(f"`preconditioned` {preconditioned!r} is unknown", f"give one of {known}")
        if aggregate not in ("task", None):
            raise ConfigError(f"`aggregate` {aggregate!r} is unknown", 'give "task" or None')
        if isinstance(directions, str) and directions != "task":
            raise ConfigError(f"`directions` {directions!r} is unknown", 'give "task" or a number')
        if isinstance(directions, int) and directions < 1:
            raise ConfigError(f"`directions` {directions} is too small", 'give at least 1, or "task"')
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
        self._rows: list[tuple[str, str]] = []  # of `prepare`: each target's key and task
        self._along: dict[int, TargetDirections] = {}  # by number of the checkpoint

    def describe(self) -> dict[str, Any]:
        """With the checkpoints, or how they are trained."""
        given = [str(folder) for folder in self.checkpoints]
        aggregate = {"aggregate": self.aggregate} if self.aggregate else {}
        directions = {"directions": self.directions} if self.directions else {}
        return super().describe() | {"checkpoints": given or self.training.describe()} | aggregate | directions

    def check(self, pool: Dataset, target: Dataset) -> None:
        """Raise if a checkpoint is invalid, or a target has no task to aggregate over.

        With directions of tasks, `traits.pointwise` is set if all targets are of one.
        """
        super().check(pool, target)
        _ = self._given
        if self.aggregate:
            read_tasks(target)
        elif self.directions == "task":
            self.traits = dataclasses.replace(self.traits, pointwise=len({*task_names(target)}) == 1)

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
        self._cache, self._along = {}, {}
        return self._warm

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Compute the features, kept in `less`, after a warm-up on these rows unless done, kept in `less-warm-up`."""
        tasks = read_tasks(target) if self.aggregate else []
        if self.directions and not len(target):
            raise ConfigError(f"{self.name} has no targets to find `directions`", "give a target")
        if not self.checkpoints and not self._warm:
            place = None if folder is None else folder / f"{self.name}-warm-up"
            self._trained = self._train(pool, place, progress=self.progress)
        if self.directions == "task":
            keys = (example.key for example in self._examples(target))
            self._rows = list(zip(keys, task_names(target), strict=True))
        self._along = {}
        super().prepare(pool, target, folder)
        self._targets = (self._examples(target), tasks) if self.aggregate else None

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Weighted inner products, in [-1, 1], or their exponentials, or the aggregate of either."""
        if self.directions and not self._along:
            raise ConfigError(f"{self.name} needs all targets to find `directions`", "call prepare(pool, target) first")
        if self.directions == "task":
            return self._of_tasks(self._examples(pool_rows), target_rows)
        if not self.aggregate:
            return super().__call__(pool_rows, target_rows)
        if self._targets is None:
            raise ConfigError(f"{self.name} needs the targets of all tasks", "call prepare(pool, target) first")
        targets, tasks = self._targets
        scores = by_task(self._products(self._examples(pool_rows), targets), tasks)
        return broadcast(scores, len(target_rows))

    def _of_tasks(self, pool: Sequence[Example], target_rows: Dataset) -> np.ndarray:
        """The value of each pool sample for the task of each target, or with `aggregate` its largest for a task."""
        known = self._along[0].tasks
        values = np.zeros((len(pool), len(known)), np.float32)
        if len(pool):
            for k, point in enumerate(self._adapters()):
                values += point.weight * self._features(k, "pool", pool)
        if self.aggregate:
            return broadcast(values.max(axis=1), len(target_rows))
        tasks = task_names(target_rows)
        for name, task in zip(target_rows["id"], tasks, strict=True):
            if task not in known:
                raise ConfigError(
                    f"{self.name} was prepared without the task of {name!r}",
                    "call prepare(pool, target) with all targets",
                )
        return values[:, [known.index(task) for task in tasks]]

    def footprint(self, pool_rows: Dataset, target_rows: Dataset, n_pool: int, n_target: int) -> Footprint:
        """With the training of the warm-up and its checkpoints."""
        features = super().footprint(pool_rows, target_rows, n_pool, n_target)
        weights, states = self._adapter_size()
        if self.directions:  # with the sums of a batch, and those so far
            count = self._direction_count(target_rows)
            features = features._replace(memory=features.memory + 3 * 4 * weights * count)
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
        short._along = {}
        return short

    def tokens(self, pool_rows: Dataset, target_rows: Dataset, pool: Dataset | None = None) -> int:
        """Tokens of all forward passes, with those of the warm-up unless it is done: on `pool`, or else the pool rows.

        Backward passes have as many, but with `directions` none of the pool's features.
        """
        features = self._feature_tokens(pool_rows, target_rows)
        if self._given or (self._warm and pool is None):
            return features
        trained = pool_rows if pool is None else pool
        chosen = self._examples(trained.select(choose_samples(len(trained), self.training)))
        return features + self.training.epochs * sum(len(example.ids) - 1 for example in chosen)

    def _feature_tokens(self, pool_rows: Dataset, target_rows: Dataset) -> int:
        """Of all forward passes but those of the warm-up; with `directions`, backward passes are of targets alone."""
        if not self.directions:
            return super().tokens(pool_rows, target_rows)
        pool, target = (distinct(self._examples(rows)) for rows in (pool_rows, target_rows))
        of_pool, of_target = (sum(len(example.ids) - 1 for example in side) for side in (pool, target))
        return self._passes() * (2 * self._direction_count(target_rows) * of_pool + 2 * of_target)

    def _direction_count(self, target_rows: Dataset) -> int:
        """Number of directions with these targets, at most."""
        if self.directions == "task":
            return len({*task_names(target_rows)})
        return min(self.directions or 0, len(distinct(self._examples(target_rows))))

    def _dependencies(self, examples: Mapping[Side, Sequence[Example]]) -> dict[str, list[str]]:
        tasks = {"tasks": [f"{key} {task}" for key, task in self._rows]} if self.directions == "task" else {}
        return super()._dependencies(examples) | tasks

    def _features(self, k: int, side: Side, examples: Sequence[Example]) -> np.ndarray:
        found = super()._features(k, side, examples)
        return self._along[k].coordinates(found) if self.directions and side == "target" else found

    def _from_products(self, products: np.ndarray) -> np.ndarray:
        return products if self.directions else super()._from_products(products)

    def _attach(self, k: int) -> AdapterGradients:
        if not self.directions:
            return super()._attach(k)
        if self.directions == "task":
            find = partial(mean_directions, rows=self._rows)
        else:
            find = partial(leading_directions, count=self.directions)
        return AlongDirections(self._adapters()[k].adapter, self._gradient_settings(), find, self._along, k)

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
