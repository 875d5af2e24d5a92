"""A model's name and how it is loaded and run, as one value; the model itself is loaded on first use."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Self

from nncift.errors import ConfigError

if TYPE_CHECKING:
    from nncift.models.language_model import LanguageModel
    from nncift.models.text.chats import Style
    from nncift.models.text.tokenization import Tokenization

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class _Spec:
    """Base of both: a model is loaded once for everyone who holds the spec, and dropped by pickle.

    Equal specs that a worker process unpickles are one object, so that it loads a model once and not for every job.
    """

    def __post_init__(self) -> None:
        size: int | None = getattr(self, "batch_size", None)
        if size is not None and size < 1:
            raise ConfigError(f"`batch_size` {size} is too small", "give at least 1")

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __reduce_ex__(self, protocol: Any) -> Any:
        fields = tuple(self.__getstate__().items())
        if not isinstance(fields[0][1], str):  # of a model that is given as an object
            return super().__reduce_ex__(protocol)
        return _shared, (type(self), fields)

    @classmethod
    def of(cls, model: Any, **options: Any) -> Self:
        """A spec as it is, its model loaded at most once, or the spec of a name or a model; with options."""
        if not isinstance(model, cls):
            return cls(model, **options)  # type: ignore[call-arg]
        return dataclasses.replace(model, **options) if options else model


@dataclass(frozen=True)
class ModelSpec(_Spec):
    """A causal language model and how it is run.

    Attributes:
        model: a folder, a hub id, "embedded", or a `LanguageModel`.
        dtype: "float32", "bfloat16", "float16", "auto" (as stored), "8bit" or "4bit"; unless given bfloat16 where the
            device has products of it (CUDA, CPUs with AVX512-BF16 or AMX), else float32.
        device: "cuda", "mps", "cpu"; the best there is unless given.
        batch_size: sequences per forward pass, at most; halved when memory runs out. 32 unless given, on CUDA as
            many as fit.
        max_length: longest sequence, in tokens; the model's own limit unless given.
        trust_remote_code: run code that comes with the model.
        wording: how samples are rendered: "chat", all in the model's chat template; "plain", all as plain text; "auto",
            by default, chats alone in the template, where the model has one.
    """

    model: str | LanguageModel = DEFAULT_MODEL
    dtype: str | None = None
    device: str | None = None
    batch_size: int | None = None
    max_length: int | None = None
    trust_remote_code: bool = False
    wording: Style | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wording not in (None, "auto", "chat", "plain"):
            raise ConfigError(f"`wording` {self.wording!r} is unknown", 'give "auto", "chat" or "plain"')

    @property
    def name(self) -> str:
        """The model's name in messages and records."""
        return self.model if isinstance(self.model, str) else self.model.name

    @cached_property
    def loaded(self) -> LanguageModel:
        """The model, loaded on first use and then kept."""
        return self.load()

    def load(self) -> LanguageModel:
        """The model, loaded now."""
        from nncift.models.language_model import LanguageModel

        if not isinstance(self.model, str):
            return self.model
        known: Tokenization | None = self.__dict__.get("tokenization")
        return LanguageModel.load(
            self.model,
            dtype=self.precision,
            device=self.device,
            max_length=self.max_length,
            trust_remote_code=self.trust_remote_code,
            tokenizer=None if known is None else known.tokenizer,
        )

    @cached_property
    def tokenization(self) -> Tokenization:
        """The model's tokenizer, chat template and context length; loads no weights."""
        from nncift.models.text.tokenization import Tokenization

        if self.is_loaded or not isinstance(self.model, str):
            return self.loaded
        return Tokenization.read(self.model, max_length=self.max_length, trust_remote_code=self.trust_remote_code)

    @cached_property
    def files(self) -> str | None:
        """A hash of the model's files where it is given as a folder."""
        from nncift.models.identity import identify, is_own_folder

        return identify(self.model)["content"] if isinstance(self.model, str) and is_own_folder(self.model) else None

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return "loaded" in self.__dict__ or not isinstance(self.model, str)

    @property
    def forward_tokens(self) -> int:
        """Tokens that went through the model so far, padding not counted; loads nothing."""
        return self._elsewhere[0] + (self.loaded.forward_tokens if self.is_loaded else 0)

    @property
    def backward_tokens(self) -> int:
        """Tokens whose gradients went back through it, padding not counted."""
        return self._elsewhere[1] + (self.loaded.backward_tokens if self.is_loaded else 0)

    def count_elsewhere(self, forward_tokens: int, backward_tokens: int) -> None:
        """Add the tokens that went through this model in another process."""
        self._elsewhere[0] += forward_tokens
        self._elsewhere[1] += backward_tokens

    @cached_property
    def _elsewhere(self) -> list[int]:
        """Tokens forward and backward in other processes."""
        return [0, 0]

    @property
    def training_seconds(self) -> float:
        """Time of all training steps so far."""
        return self.loaded.training_seconds if self.is_loaded else 0.0

    @property
    def precision(self) -> str:
        """The dtype, or the device's default."""
        from nncift.models.loading import default_dtype

        return self.dtype or default_dtype(self.device)

    def sequences(self, *, cpu: int = 32) -> int:
        """Sequences per forward pass: as given, else `cpu`, on CUDA as many as fit."""
        from nncift.models.loading import default_batch_size

        return self.batch_size or default_batch_size(self.device, cpu=cpu)

    def describe(self) -> dict[str, Any]:
        """The facts that values computed with the model depend on, ready for JSON; loads nothing."""
        wording = {} if self.wording in (None, "auto") else {"wording": self.wording}
        if not isinstance(self.model, str):
            loaded = self.model
            return {"model": self.name, "dtype": loaded.precision, "max_length": loaded.context_length} | wording
        return {"model": self.model, "dtype": self.precision, "max_length": self.max_length} | wording


@dataclass(frozen=True)
class EncoderSpec(_Spec):
    """A sentence encoder and how it is run.

    Attributes:
        encoder: a sentence-transformers model, or its folder or hub id, or "embedded".
        device: "cuda", "mps", "cpu"; the best there is unless given.
        batch_size: texts per forward pass; 32 unless given, on CUDA as many as fit.
        trust_remote_code: run code that comes with the encoder.
    """

    encoder: Any = DEFAULT_ENCODER
    device: str | None = None
    batch_size: int | None = None
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        """The encoder's name in messages and records."""
        return self.encoder if isinstance(self.encoder, str) else type(self.encoder).__name__

    @cached_property
    def loaded(self) -> Any:
        """The sentence-transformers model, loaded on first use and then kept."""
        from nncift.models.encoder import load_encoder

        if not isinstance(self.encoder, str):
            return self.encoder
        return load_encoder(self.encoder, device=self.device, trust_remote_code=self.trust_remote_code)


@lru_cache(maxsize=4)
def _shared(kind: type[_Spec], fields: tuple[tuple[str, Any], ...]) -> _Spec:
    """The spec with these fields that is shared by all that were unpickled in this process."""
    return kind(**dict(fields))
