"""Exact influence functions: how much a pool sample helps a target sample.

Anything that satisfies `InfluenceFunction` can be passed where one is expected; strings name those of
`catalogue.BUILT_IN`, entry points of the group `nncift.influence`, or "module:Class".
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypedDict

from nncift.errors import ConfigError
from nncift.models.language_model import LanguageModel
from nncift.models.loading import default_batch_size, default_dtype
from nncift.models.prompts import any_chat

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.config import Config
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
import numpy as np


class ModelOptions(TypedDict, total=False):
    """The options of `LanguageModelFunction` beside the model."""

    batch_size: int | None
    dtype: str | None
    device: str | None
    max_length: int | None
    trust_remote_code: bool


class LanguageModelFunction:
    """A language model, loaded on first use, with the options that every function takes.

    Args:
        model: a folder, a hub id, "embedded", or a `LanguageModel`.
        batch_size: sequences per forward pass, at most; halved by itself when memory runs out. 32 unless given, on
            CUDA as many as fit.
        dtype: "float32", "bfloat16", "float16", "auto" (as stored), "8bit" or "4bit"; bfloat16 on CUDA and else
            float32 unless given.
        device: "cuda", "mps", "cpu"; the best there is unless given.
        max_length: longest sequence to read, in tokens; the model's own limit unless given.
        trust_remote_code: run code that comes with the model.

    Raises:
        ConfigError: `batch_size` is below 1.
    """

    name: str
    progress = False  # `collect` sets it: show a bar while `prepare` works

    def __init__(
        self,
        model: str | LanguageModel,
        *,
        batch_size: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        max_length: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.model = model
        self.batch_size = default_batch_size(device) if batch_size is None else batch_size
        if self.batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} is too small", "give at least 1")
        self.dtype = dtype or default_dtype(device)
        self.device = device
        self.max_length = max_length
        self.trust_remote_code = trust_remote_code
        self._cut: set[str] = set()  # ids of samples that lost the start of their prompt
        self._chats: bool | None = None  # whether any sample of the run comes from a chat; `check` finds out

    @classmethod
    def from_config(cls, config: Config, **options: Any) -> Self:
        """The function that a run's config asks for, with options of its own."""
        return cls(
            config.model,
            batch_size=config.batch_size,
            dtype=config.dtype,
            device=config.device,
            max_length=config.max_length,
            trust_remote_code=config.trust_remote_code,
            **options,
        )

    def check(self, pool: Dataset, target: Dataset) -> None:
        """Find out whether any sample comes from a chat: the wording goes by all, whichever are measured together."""
        self._chats = any_chat(pool, target)

    @cached_property
    def language_model(self) -> LanguageModel:
        """The model, loaded now.

        Raises:
            ModelError: it cannot be loaded.
        """
        return self.load(self.model)

    def load(self, model: str | LanguageModel) -> LanguageModel:
        """A language model with this function's options.

        Raises:
            ModelError: it cannot be loaded.
        """
        if isinstance(model, LanguageModel):
            return model
        return LanguageModel.load(
            model,
            dtype=self.dtype,
            device=self.device,
            max_length=self.max_length,
            trust_remote_code=self.trust_remote_code,
        )

    @property
    def forward_tokens(self) -> int:
        """Tokens that went through the model so far, padding not counted."""
        return self.language_model.forward_tokens if "language_model" in self.__dict__ else 0

    @property
    def backward_tokens(self) -> int:
        """Tokens whose gradients went back through it, padding not counted."""
        return self.language_model.backward_tokens if "language_model" in self.__dict__ else 0

    @property
    def oom_splits(self) -> list[int]:
        """Sizes of the batches that did not fit into memory and were halved."""
        return self.language_model.oom_splits if "language_model" in self.__dict__ else []

    @property
    def cut_ids(self) -> frozenset[str]:
        """Those of the samples seen so far that lost the start of their prompt to the model's context length."""
        return frozenset(self._cut)

    @property
    def cut(self) -> int:
        """How many these are."""
        return len(self._cut)

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        return {"name": self.name, **self.describe_model(self.model)}

    def describe_model(self, model: str | LanguageModel) -> dict[str, Any]:
        """Name, precision and longest sequence of a model."""
        if isinstance(model, LanguageModel):
            return {
                "model": model.name,
                "dtype": model.precision,
                "max_length": model.context_length,
            }
        return {"model": model, "dtype": self.dtype, "max_length": self.max_length}


class InfluenceFunction(Protocol):
    """A function that gives exact influence for a block of pool samples and targets.

    A function that has to see all samples first, or wants to refuse some before any work is done, also has
    `prepare(pool, target, folder: Path | None)`. It is called with the samples to be labelled before their first
    block, again after a kill, and keeps what it computes in `folder`. A function with an attribute `progress` is told
    there whether to show a bar meanwhile.

    A function that is trained on the pool first, whatever is labelled, has `warm_up(pool, folder, *, progress)`; it
    sees all samples, before `prepare`. `check(pool, target)` sees all samples before anything costly, to refuse some or
    to remember what it has to know of all, and loads nothing. `check_lengths(pool, target)` refuses what does not fit
    into its model; a run that may measure any sample asks it first. `tokens(pool_rows, target_rows)` says how many
    tokens labelling these samples will send through the model; with `warm_up`, there is a third argument `pool`, on
    which that is done before.

    Where the values depend on all samples that `prepare` saw, the function has `relative = True`: what is measured
    later, after another call, could not be compared, so a run measures once.

    A function with `works_per_pair = True` has work of its own to do for each pair, of which what it does once for a
    sample is the lesser part. The rows to be labelled then get targets of their own, else all the same.

    A class that is named instead of an object is made with the options that the user gives, which its constructor
    lists with type hints (`options.py`); if it has a class method `from_config(config, **options)`, by that.
    """

    name: str

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Influence of each pool sample on each target.

        Args:
            pool_rows: n_pool samples that may help.
            target_rows: n_target samples to be helped.

        Returns:
            (n_pool, n_target) float32. Entry [i, j] is how much pool sample i helps target sample j; larger is
            better. It depends on the two samples alone, whatever else is in the block.
        """
        ...


def is_pointwise(function: InfluenceFunction | None) -> bool:
    """Whether a function gives one score for all targets."""
    return bool(getattr(function, "pointwise", False))


def works_per_pair(function: InfluenceFunction) -> bool:
    """Whether each pair is work of its own, so that rows had better have targets of their own."""
    return bool(getattr(function, "works_per_pair", False)) and not is_pointwise(function)


def is_relative(function: InfluenceFunction) -> bool:
    """Whether its values depend on all samples that are measured together."""
    return bool(getattr(function, "relative", False))


def broadcast(scores: np.ndarray, n_target: int) -> np.ndarray:
    """A score per pool sample, (n_pool,), as influence on every target alike, (n_pool, n_target) float32."""
    return np.repeat(np.asarray(scores, dtype=np.float32)[:, None], n_target, axis=1)
