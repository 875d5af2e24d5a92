"""Around a trainer: what it does to the process and a model beside training is undone, and its errors are one line."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from nncift.errors import ConfigError, RunError, first_line
from nncift.models.batching import out_of_memory
from nncift.models.language_model import LanguageModel
from nncift.models.loading import quiet
from nncift.training.lora import forked_random

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS, errno.EPERM}
_TENSORBOARD = "TENSORBOARD_LOGGING_DIR"


@contextlib.contextmanager
def unchanged(model: LanguageModel) -> Iterator[None]:
    """Restore the model's attributes and configuration and the global random numbers after the block."""
    base = model.model
    objects = [base, base.config, base.config.get_text_config(), getattr(base, "generation_config", None)]
    before = [(kept, dict(vars(kept))) for kept in objects if kept is not None]
    states = random.getstate(), np.random.get_state()
    try:
        with forked_random(0):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        with quiet(), contextlib.suppress(AttributeError):  # of the hooks that there are not without it
            base.gradient_checkpointing_disable()
            base.disable_input_require_grads()
        for kept, attributes in before:  # trl replaces the forward
            vars(kept).clear()
            vars(kept).update(attributes)
        base.eval()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No warnings of the training libraries inside the block."""
    loggers = [logging.getLogger(name) for name in ("trl", "accelerate", "peft", "bitsandbytes")]
    levels = [logger.level for logger in loggers]
    with quiet():
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def trackers(names: Sequence[str], folder: Path) -> Iterator[None]:
    """Refuse trackers that a trainer made inside the block cannot use; TensorBoard's files go to a folder.

    Raises:
        ConfigError: a tracker is unknown, or its package is not installed.
    """
    ours = bool(names) and _TENSORBOARD not in os.environ
    if ours:
        os.environ[_TENSORBOARD] = str(folder)
    try:
        yield
    except (ValueError, RuntimeError, ImportError) as error:
        if not names or out_of_memory(error):
            raise
        problem = f"`report_to` {', '.join(names)} cannot be used ({first_line(error)})"
        raise ConfigError(problem, "install the tracker's package, or name another") from error
    finally:
        if ours:
            del os.environ[_TENSORBOARD]


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a trainer's errors of writing a checkpoint into one line.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        of_disk = isinstance(error, SafetensorError) or getattr(error, "errno", None) in _DISK
        if not of_disk and "failed writing file" not in str(error):  # torch's words
            raise
        fix = "free some space on the disk, or choose another folder, and run the same command again"
        raise RunError(f"cannot write a checkpoint to {folder} ({first_line(error)})", fix) from error
