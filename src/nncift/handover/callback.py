"""SelectionCallback: a training that chooses its rows again between epochs, for the model as it has become.

    callback = nncift.SelectionCallback("runs/math")
    trainer = SFTTrainer(model, args=arguments, train_dataset=callback.pool_dataset())
    callback.attach(trainer)
    trainer.train()

The trainer prepares the whole pool once; it trains on a view of it, whose rows change at the start of an epoch, before
the epoch's iterator is made. The number of rows stays, so that steps and learning rates are as planned: of a choice
with more of them, as a budget in tokens or chats of several trained turns allow, the last are left out, and of one with
fewer the first come again. The rows are in the trainer's state, which every checkpoint has: a training that resumes
goes on with the same ones.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import spearmanr
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from nncift.errors import ConfigError
from nncift.handover.reselection import Reselection
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.selection.selection import Selection
from nncift.selection.sft import CHAT_COLUMNS, rows_per_sample

_log = logging.getLogger("nncift")
_ALMOST = 1e-6  # an epoch's number is a sum of fractions
_ATTACH = "call callback.attach(trainer) once the trainer is made"


class SelectedRows(torch.utils.data.Dataset[Any]):
    """Some rows of a prepared data set: those that are trained on now.

    Args:
        rows: those of the whole pool.
        indices: of those that are trained on, int64 (k,).
    """

    def __init__(self, rows: Any, indices: np.ndarray) -> None:
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Any:
        return self.rows[int(self.indices[place])]


class SelectionCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Chooses the training rows again at the start of epochs, for transformers' Trainer and trl's SFTTrainer.

    Influence is that of the model in training: computed anew where it is exact for every pair (gradient-sketch), else
    estimated by the run's network from the features that the model has now. The budget, quotas, near-duplicates and
    objective are the run's. A choice costs a forward pass over pool and targets.

    Args:
        run: the folder of a finished run of the model that is trained.
        every: epochs between two choices. The first epochs train on the run's own.

    Attributes:
        rows: pool rows that are trained on now, int64 (k,).
        history: a record for each choice so far: the "epoch" that it was made for, from 0, how many rows are "new"
            against the choice before, and the rank "correlation" of the pool's mean influence with the run's.

    Raises:
        ConfigError: the influence does not depend on the model, or the choice cannot be made again (`weights`,
            `phases`, `keep_selection`).
        RunError: the run is not finished.
    """

    def __init__(self, run: str | os.PathLike[str], *, every: int = 1) -> None:
        if not isinstance(every, int) or every < 1:
            raise ConfigError(f"`every` is {every!r}", "give a number of epochs, at least 1")
        self.run, self.every = os.fspath(run), every
        self._reselection = Reselection.of(FinishedRun.open(run))
        self._chat = True
        self._starts = np.zeros(1, np.int64)  # in the trainer's data, of each pool row's rows, and their end
        self._length = 0  # rows of an epoch
        self._start()

    def _start(self) -> None:
        """With the run's own choice."""
        self.rows = self._finished.selection.indices.copy()
        self.history: list[dict[str, Any]] = []
        self._epoch = 0  # that the rows were chosen for

    @property
    def _finished(self) -> FinishedRun:
        return self._reselection.finished

    def pool_dataset(self, *, chat: bool = True) -> Dataset:
        """The whole pool, or what its first cut kept, in the columns of trl's SFTTrainer: for `train_dataset`.

        For transformers' Trainer these rows are tokenized, in the same order.

        Args:
            chat: as messages, a row for each turn of a sample that is trained on; otherwise as plain text, a row for
                each sample.
        """
        pool, self._chat = self._finished.pool, chat
        everything = Selection(np.arange(len(pool)), np.zeros(len(pool)), 0.0).with_pool(pool)
        return everything.sft_dataset(chat=chat)

    @cached_property
    def _turns(self) -> np.ndarray:
        """How many turns of each pool row are trained on, int64 (n_pool,)."""
        pool = self._finished.pool
        return rows_per_sample(
            pool.select_columns([n for n in ("prompt", "response", *CHAT_COLUMNS) if n in pool.column_names])
        )

    def _starts_among(self, rows: int) -> np.ndarray:
        """Where the rows of each pool row begin among so many, and the end of the last, int64 (n_pool + 1,).

        Raises:
            ConfigError: they are not those of the pool.
        """
        forms = self._turns, np.ones(len(self._finished.pool), np.int64)
        for counts in forms if self._chat else reversed(forms):
            if counts.sum() == rows:
                return np.concatenate([[0], np.cumsum(counts)])
        raise self._other_rows(f"{rows:,} rows")

    def _other_rows(self, there: str) -> ConfigError:
        samples, turns = len(self._finished.pool), int(self._turns.sum())
        has = f"{samples:,}" if turns == samples else f"{samples:,} samples with {turns:,} turns to train on"
        return ConfigError(
            f"the trainer's data have {there}, and the pool of {self.run} has {has}",
            "train on callback.pool_dataset(), with a `max_length` that cuts no response off: trl drops such rows",
        )

    def _trained_on(self, rows: np.ndarray) -> np.ndarray:
        """The rows of the trainer's data for pool rows, int64 (k,); as many as an epoch has, once that is known."""
        of_each = [np.arange(self._starts[row], self._starts[row + 1]) for row in rows]
        found = np.concatenate([*of_each, np.zeros(0, np.int64)])
        if not len(found):
            raise ConfigError(f"no sample chosen in {self.run} has a turn to train on", "choose with a larger `budget`")
        return np.resize(found, self._length) if self._length else found

    def attach(self, trainer: Any) -> None:
        """Have a trainer, made with the rows of `pool_dataset`, train on the choice, and choose again.

        Raises:
            ConfigError: its rows are not those of the pool, or it cannot change them between epochs.
        """
        self._check(trainer.args)
        rows = trainer.train_dataset
        if isinstance(rows, SelectedRows):
            raise ConfigError("this trainer has a SelectionCallback", "attach one")
        if not hasattr(rows, "__len__"):
            raise self._other_rows("no number of rows")
        self._starts, self._length = self._starts_among(len(rows)), 0
        indices = self._trained_on(self._finished.selection.indices)
        self._length = len(indices)
        trainer.train_dataset = SelectedRows(rows, indices)
        trainer.add_callback(self)

    def _check(self, arguments: Any) -> None:
        if arguments.world_size > 1:
            raise ConfigError(
                f"SelectionCallback trains in one process, and there are {arguments.world_size}",
                "start the training with one",
            )
        if getattr(arguments, "packing", False):
            raise ConfigError("SelectionCallback cannot change rows that are packed", "train without `packing`")
        if arguments.dataloader_persistent_workers and arguments.dataloader_num_workers:
            raise ConfigError(
                "SelectionCallback cannot change the rows of workers that stay",
                "leave `dataloader_persistent_workers` out",
            )

    def state(self) -> dict[str, Any]:
        """What every checkpoint keeps."""
        kept = {"stored_rows": self.rows.tolist(), "stored_epoch": self._epoch, "stored_history": self.history}
        return {"args": {"run": self.run, "every": self.every}, "attributes": kept}

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Begin with the run's choice, or the checkpoint's.

        Raises:
            ConfigError: the callback is not attached, or the checkpoint was made without it.
        """
        self._check(args)
        view = _view(objects)
        self._start()
        if state.global_step > 0:
            self._resume(state)
        view.indices = self._trained_on(self.rows)

    def _resume(self, state: Any) -> None:
        """Take the rows of the checkpoint."""
        found = state.stateful_callbacks.get(type(self).__name__)
        kept = (found[-1] if isinstance(found, list) else found or {}).get("attributes", {})
        try:
            rows = np.array(kept["stored_rows"], dtype=np.int64)
            self._epoch, self.history = int(kept["stored_epoch"]), list(kept["stored_history"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                "the checkpoint was made without SelectionCallback", "begin anew, or train without it"
            ) from error
        other = len(rows) != len(self.rows) and self._reselection.run.budget.max_tokens is None
        if other or rows.max(initial=0) >= len(self._finished.pool) or rows.min(initial=0) < 0:
            raise ConfigError(
                f"the checkpoint's rows are not those of {self.run}", "give the run that it was made with"
            )
        self.rows = rows

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Choose again where it is time."""
        epoch = int((state.epoch or 0) + _ALMOST)
        if epoch % self.every or epoch <= self._epoch:
            return
        view = _view(objects)
        with _undisturbed(objects["model"]) as model:
            rows, influence = self._reselection.choose(model, objects["processing_class"])
        new = int((~np.isin(rows, self.rows)).sum())
        correlation = float(spearmanr(influence, self._finished.influence).statistic)
        self.rows, self._epoch = rows, epoch
        self.history.append({"epoch": epoch, "new": new, "correlation": round(correlation, 4)})
        view.indices = self._trained_on(rows)
        _log.info("epoch %d: %d of %d rows are new, rank correlation %.2f", epoch, new, len(rows), correlation)


def _view(objects: dict[str, Any]) -> SelectedRows:
    """The view that a trainer's loader reads."""
    found = getattr(objects.get("train_dataloader"), "dataset", None)
    if not isinstance(found, SelectedRows):
        raise ConfigError("SelectionCallback does not have the trainer's rows", _ATTACH)
    return found


@contextlib.contextmanager
def _undisturbed(model: Any) -> Iterator[Any]:
    """The model without wrappers; its modules' modes and the random numbers are as before when the block ends."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # adapters are in its layers
    modes = [(module, module.training) for module in model.modules()]
    devices = [inner.device] if inner.device.type == "cuda" else []
    numbers = np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield inner
    finally:
        np.random.set_state(numbers)
        for module, mode in modes:
            module.training = mode
