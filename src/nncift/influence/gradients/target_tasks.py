"""The tasks of targets, and LESS's one score for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nncift.errors import ConfigError, DataError
from nncift.models.text.examples import tasks_of

if TYPE_CHECKING:
    from datasets import Dataset


def task_names(rows: Dataset) -> list[str]:
    """The task of each sample; samples without one form the task "" together."""
    return [task or "" for task in tasks_of(rows)]


def read_tasks(rows: Dataset) -> list[str]:
    """The task of each sample; raises `DataError` if one has none."""
    tasks = tasks_of(rows)
    for name, task in zip(rows["id"], tasks, strict=True):
        if task is None:
            raise DataError(
                f"the target {name!r} has no task", "give every target one, or omit `aggregate`", field="task"
            )
    return [task for task in tasks if task is not None]


def by_task(influence: np.ndarray, tasks: Sequence[str]) -> np.ndarray:
    """LESS's scores (section 4.2), (n_pool,) float32: the maximum over tasks of the mean over a task's targets.

    From the influence (n_pool, n_target) and the task of each target, at least one.
    """
    if len(tasks) != influence.shape[1] or not len(tasks):
        raise ConfigError(f"{len(tasks)} tasks were given for {influence.shape[1]} targets", "give one for each")
    names = np.asarray(tasks)
    means = [influence[:, names == task].mean(axis=1) for task in np.unique(names)]
    return np.asarray(np.max(means, axis=0), dtype=np.float32)
