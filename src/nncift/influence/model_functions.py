"""Base classes of influence functions that run a language model, on training examples or on prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nncift.errors import ConfigError, RunError
from nncift.influence.base import Footprint, InfluenceFunction, Setup, Side, Traits
from nncift.models.spec import ModelSpec
from nncift.models.text.chat_prompts import ChatPrompts, check_wording, choose_prompts
from nncift.models.text.chats import Style, any_chat
from nncift.models.text.prompts import Prompts, PromptTemplate
from nncift.models.text.screening import ExampleScreen, PromptScreen, Screen
from nncift.run.storage.files import fingerprint, read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.models.language_model import LanguageModel
    from nncift.models.text.examples import Example
    from nncift.models.text.prompts import PromptedSample

SHARD = 64  # samples of gradients that a kill loses at most


class LanguageModelFunction(InfluenceFunction):
    """A function that runs a language model, loaded on first use.

    Args:
        model: a folder, a hub id, "embedded", a `LanguageModel`, or a `ModelSpec`.
        **options: dtype, device, batch_size, max_length, trust_remote_code, wording of `ModelSpec`.

    Raises:
        ConfigError: an option has an invalid value.
    """

    traits = Traits(asks_language_model=True)
    default_batch_size = 32
    """Sequences per forward pass on the CPU."""
    seeded = False
    """Whether the constructor takes the run's `seed`."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.spec = ModelSpec.of(model, **options)
        self.models = (self.spec,)
        self._cut: set[str] = set()  # ids of truncated samples
        self._chats: bool | None = None  # whether any sample of the run comes from a chat; set by `check`

    @classmethod
    def build(cls, setup: Setup, **options: Any) -> Self:
        """The function on the run's first language model, with the run's seed if it takes one."""
        return cls(setup.models[0], **({"seed": setup.seed} if cls.seeded else {}) | options)

    def check(self, pool: Dataset, target: Dataset) -> None:
        """Record whether any sample comes from a chat: all samples are prompted in one style."""
        self._chats = any_chat(pool, target)

    @property
    def language_model(self) -> LanguageModel:
        """The model, loaded on first use."""
        return self.spec.loaded

    @property
    def batch_size(self) -> int:
        """Sequences per forward pass, at most."""
        return self.spec.sequences(cpu=self.default_batch_size)

    @property
    def forward_tokens(self) -> int:  # type: ignore[override]
        """As counted by the model."""
        return self.spec.forward_tokens

    @property
    def backward_tokens(self) -> int:  # type: ignore[override]
        """As counted by the model."""
        return self.spec.backward_tokens

    @property
    def training_seconds(self) -> float:  # type: ignore[override]
        """As counted by the model."""
        return self.spec.training_seconds

    @property
    def oom_splits(self) -> Sequence[int]:  # type: ignore[override]
        """As counted by the model."""
        return self.spec.loaded.oom_splits if self.spec.is_loaded else ()

    @property
    def cut_ids(self) -> frozenset[str]:  # type: ignore[override]
        """Ids of the samples truncated so far to fit the model's context."""
        return frozenset(self._cut)

    def footprint(self, pool_rows: Dataset, target_rows: Dataset, n_pool: int, n_target: int) -> Footprint:
        """The largest batch of a forward pass."""
        return Footprint(self._batch_memory(pool_rows, target_rows))

    def _batch_memory(
        self,
        *rows: Dataset,
        batch_size: int | None = None,
        adapted: int | None = None,
        depth: int | None = None,
    ) -> int:
        """Bytes of the largest batch of these samples; `adapted` and `depth` as of `batch_memory`."""
        from nncift.models.memory import batch_memory
        from nncift.models.text.examples import encode_examples

        size, model = batch_size or self.batch_size, self.language_model
        batches = (encode_examples(model, some, cut_responses=True) for some in rows)
        return max(batch_memory(model, examples, batch_size=size, adapted=adapted, depth=depth) for examples in batches)

    def _note_cut(self, ids: Iterable[str]) -> None:
        """Count samples as truncated."""
        before = len(self._cut)
        self._cut.update(ids)
        if len(self._cut) > before and self.on_cut is not None:
            self.on_cut()

    def describe(self) -> dict[str, Any]:
        """The function's own settings and the model's."""
        return super().describe() | self.spec.describe()

    def screen(self, side: Side) -> Screen | None:
        """Of training examples."""
        return ExampleScreen(self.spec)

    def _examples(self, rows: Dataset) -> list[Example]:
        """The samples as training examples."""
        from nncift.models.text.examples import encode_examples

        examples = encode_examples(self.spec.tokenization, rows, wording=self.spec.wording)
        self._note_cut(example.id for example in examples if example.cut)
        return examples

    def _claim(self, path: Path, examples: Mapping[Side, Sequence[Example]]) -> None:
        """Note which samples and settings a folder's gradients are of, or check that they are these.

        Raises:
            RunError: they are others.
        """
        found = {"fingerprint": fingerprint(dict(self.describe()), self._dependencies(examples))}
        if not path.exists():
            write_json(path, found)
        elif read_json(path) != found:
            raise RunError(f"{path.parent} contains gradients of other samples or settings", "choose another `output`")

    def _dependencies(self, examples: Mapping[Side, Sequence[Example]]) -> dict[str, list[str]]:
        """What gradients depend on besides the settings: the keys of the samples of each side."""
        return {side: [example.key for example in some] for side, some in examples.items()}


class PromptedFunction(LanguageModelFunction):
    """A function that runs the model on prompts.

    Args:
        model: as of `LanguageModelFunction`.
        wording: "plain" or a `PromptTemplate`; "chat", the model's chat template; "auto", chat where the model has a
            template and any sample comes from a chat, else plain. The model's own unless given.
        **options: of `LanguageModelFunction`.

    Raises:
        ConfigError: both the model and the function were given a wording.
    """

    single = True
    """No sample stands beside another as its in-context example."""

    def __init__(self, model: Any, *, wording: Style | PromptTemplate | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        if wording is not None and self.spec.wording is not None:
            raise ConfigError(f"`wording` was given for the run and for {self.name}", "give only one of them")
        self.wording: Style | PromptTemplate = wording or self.spec.wording or "auto"
        if not isinstance(self.wording, PromptTemplate):
            check_wording(self.wording)
        self._prompts: Prompts | None = None  # chosen by `prepare` for all samples

    def __getstate__(self) -> dict[str, Any]:
        """With the choice of prompts, which is made again from it, in place of the prompts, which hold the model."""
        chosen = {} if self._prompts is None else {"_chats": isinstance(self._prompts, ChatPrompts)}
        return super().__getstate__() | {"_prompts": None} | chosen

    def describe(self) -> dict[str, Any]:
        """With the wording and the texts of the plain one."""
        own = isinstance(self.wording, PromptTemplate)
        template = asdict(self.wording if isinstance(self.wording, PromptTemplate) else PromptTemplate())
        if self.single:
            del template["with_example"]
        return {**super().describe(), "wording": "own" if own else self.wording, "plain_wording": template}

    def screen(self, side: Side) -> Screen | None:
        """Of prompts; pointwise functions do not read the targets."""
        if side == "target" and self.traits.pointwise:
            return None
        return PromptScreen(self.spec, self.wording, single=self.single)

    def _choose(self, *datasets: Dataset) -> Prompts:
        """The prompts for these samples, whatever was prepared."""
        chats = any_chat(*datasets) if self._chats is None else self._chats
        return choose_prompts(self.language_model, self.wording, single=self.single, chats=chats)

    def _prompts_for(self, *datasets: Dataset) -> Prompts:
        """The prompts that `prepare` chose, else those for these samples."""
        return self._prompts or self._choose(*datasets)

    def _render(self, prompts: Prompts, rows: Dataset) -> list[PromptedSample]:
        samples = prompts.render(rows)
        self._note_cut(sample.id for sample in samples if sample.cut)
        return samples
