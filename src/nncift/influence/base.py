"""What influence functions that ask a language model have in common: how it is loaded, described and counted."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypedDict

from nncift.errors import ConfigError
from nncift.influence.wording import any_chat
from nncift.language_model import LanguageModel
from nncift.loading import default_batch_size, default_dtype

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.config import Config


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
