"""Options of `nncift evaluate` and `nncift compare`: how a choice is put to the test."""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Literal

from nncift.errors import ConfigError
from nncift.run.options.validation import check_types

FREE = (
    *("bm25", "embedding-similarity", "gradient-sketch", "representation-similarity", "response-similarity"),
    "stratified-random",
)
"""Influence functions whose exact values cost no label: what a user would take for free."""
_NOT_IDENTITY = ("output", "report_to", "judge_url")
STUDIES = ("labels", "labels-subset", "depth", "width", "learning-rate")
"""The studies of the paper that a comparison can repeat."""
_ADDED = ("methods", "seeds", "influences", "budgets", "free", "exact", "curve", "units", "objectives", "studies")
"""Options of a comparison that only add rows to its table, so that the same folder takes other values of them."""
_WITHIN_QUOTAS = (
    "leave it out; to compare within quotas, run `select` with them for each function and for random, and `evaluate`"
    " one run against the other"
)  # the choices of a comparison serve budgets in rows and in tokens at once
OF_ONE_RUN = {
    **dict.fromkeys(("from_run", "append", "keep_selection", "network", "labels_from"), "leave it out"),
    **dict.fromkeys(("near_duplicates", "maximizer", "first_cut", "first_cut_encoder"), "leave it out"),
    **dict.fromkeys(("quota", "cap"), _WITHIN_QUOTAS),
    "weights": "add weighted to `methods` instead",
    "order": "leave it out; `methods` phased trains from easy to hard",
}
"""Options of `select` that a comparison does not take, and what to do instead."""
_OF_TRAINING = ("epochs", "learning_rate", "tuning_batch_size", "rank", "report_to")
_OF_STUDIES = ("test", "influences", "studies", "seeds")
"""Options of a comparison that trains nothing."""
_LEAST = {"seeds": 1, "shots": 1, "epochs": 1, "tuning_batch_size": 1, "rank": 1, "max_new_tokens": 1}


@dataclass(frozen=True)
class ProofOptions:
    """What a model is tested on, how it is trained, and what is reported.

    The types are not put off by `from __future__ import annotations`: the command line reads them.
    """

    _: KW_ONLY
    test: str
    """The test file: prompts with reference responses, in any format and schema that a pool may have."""
    test_split: str | None = None
    """The split to read of the test file."""
    methods: tuple[Literal["lora", "icl", "phased", "weighted"], ...] = ()
    """How the chosen rows are used: lora fine-tunes the model on them, icl shows the most similar of them as examples
    in the context, phased fine-tunes on the run's phases in turn, weighted with its weights; separated by commas. By
    default lora, icl, and those of the others that the run was asked for."""
    metrics: tuple[Literal["loss", "exact_match", "rouge", "similarity"], ...] = ()
    """What is measured beside the response loss, which always is: exact_match (short answers, and those that end in
    #### and a number), rouge (longer ones) and similarity (of embeddings) need generated answers. By default all."""
    seeds: int = 1
    """Trainings of each choice, with seeds from --seed on; the intervals cover their spread from 2 on."""
    epochs: int = 3
    """Passes over the chosen rows."""
    learning_rate: float = 2e-4
    """Peak learning rate; linear warm-up and decay."""
    tuning_batch_size: int = 8
    """Samples per step of the fine-tuning."""
    rank: int = 16
    """Rank of the LoRA adapter."""
    shots: int = 5
    """Examples in the context, at most."""
    max_new_tokens: int | None = None
    """Longest generated answer in tokens; by default twice its own reference and 8 more, at most 256."""
    judge: str | None = None
    """A language model that rates answers from 1 to 5 against the reference: a hub id, a folder, "embedded", or with
    --judge-url the name of the endpoint's model. It is first checked on known answers."""
    judge_url: str | None = None
    """An OpenAI-compatible endpoint for the judge; the key is read from OPENAI_API_KEY."""
    rubric: str | None = None
    """A text file with the judge's instructions; {prompt}, {reference} and {answer} stand for an item."""
    allow_overlap: bool = False
    """Keep test rows that are also among the chosen rows; they are refused otherwise."""
    report_to: tuple[str, ...] = ()
    """Trackers that the trainer reports to, as transformers names them: wandb, tensorboard, ..."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):  # what is named twice is done, and counted by Holm, once
                object.__setattr__(self, field.name, tuple(dict.fromkeys(value)))
            if value == "" or (isinstance(value, tuple) and "" in value):
                raise ConfigError(f"`{field.name}` is empty", "give a value, or leave it out")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"`{name}` is {value}", f"give at least {least}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"`learning_rate` is {self.learning_rate}", "give a number above 0")
        if self.judge_url is not None and self.judge is None:
            raise ConfigError("`judge_url` needs the name of the endpoint's model", "give `judge` too")
        if self.rubric is not None and self.judge is None:
            raise ConfigError("`rubric` needs a judge", "give `judge` too")
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        """Refuse options that change nothing beside the others."""
        methods = self.methods or ("lora", "icl")
        named = f"`methods` {','.join(methods)}"
        if "icl" not in methods:
            self._refuse(f"is for examples in the context, and {named} shows none", "add icl to `methods`", "shots")
        if methods == ("icl",):
            spread = () if isinstance(self, CompareOptions) else ("seeds",)  # there it draws random rows too
            problem = f"is for fine-tuning, and {named} trains nothing"
            self._refuse(problem, "add lora to `methods`", *_OF_TRAINING, *spread)
        if self.judge is None and set(self.wanted) == {"loss"}:
            problem = "is for generated answers, which `metrics` loss does not need"
            self._refuse(problem, "add exact_match, rouge or similarity to `metrics`", "max_new_tokens")

    def _refuse(self, problem: str, instead: str, *names: str) -> None:
        """Refuse these options where they are not at their defaults."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in names and value != field.default:
                shown = ",".join(value) if isinstance(value, tuple) else value
                raise ConfigError(f"`{field.name}` {shown} {problem}", f"leave it out, or {instead}")

    @property
    def wanted(self) -> tuple[str, ...]:
        """What is measured."""
        return self.metrics or ("loss", "exact_match", "rouge", "similarity")

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options of this class among some, lists as tuples, and the others."""
        names = {field.name for field in fields(cls)}
        own = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items() if name in names}
        return own, {name: value for name, value in options.items() if name not in names}

    def identity(self) -> dict[str, Any]:
        """The options that determine what is measured, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _NOT_IDENTITY}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class CompareOptions(ProofOptions):
    """What a comparison puts side by side."""

    test: str | None = None  # type: ignore[assignment]
    """The test file: prompts with reference responses, in any format and schema that a pool may have. Without one
    nothing is trained, and only what --study asks for is computed."""
    methods: tuple[Literal["lora", "icl", "phased", "weighted"], ...] = ("lora",)
    """How the chosen rows are used: lora fine-tunes the model on them, icl shows the most similar of them as examples
    in the context, phased fine-tunes in phases from easy to hard (--phases, --difficulty; 3 phases by default),
    weighted with weights by marginal gain; separated by commas."""
    metrics: tuple[Literal["loss", "exact_match", "rouge", "similarity"], ...] = ("loss",)
    """What is measured: exact_match, rouge and similarity need generated answers. By default the response loss."""
    seeds: int = 3
    """Trainings of each choice, and random choices of each budget."""
    influences: tuple[str, ...] = ()
    """The influence functions to compare, estimated from labels; by default that of nncift select. One that is exact
    for every pair counts as one of --free."""
    budgets: tuple[str, ...] = ("0.05", "0.1", "0.3")
    """How much to choose: fractions of the pool or numbers of samples."""
    free: tuple[str, ...] = FREE
    """Influence functions that need no label, as baselines: ranked by their exact values. stratified-random is drawn
    anew for each seed, as random rows are, from as many clusters as the budget has rows."""
    objectives: tuple[str, ...] = ()
    """Objectives to maximise side by side, separated by commas: each chooses from the values of each influence
    function. By default one, that of --objective."""
    exact: tuple[str, ...] = ()
    """Influence functions to compute exactly for every pair too; "all" for every one that is estimated."""
    curve: tuple[str, ...] = ()
    """Budgets of the random learning curve; by default half the smallest budget, the budgets, and doublings up to the
    whole pool."""
    units: tuple[Literal["rows", "tokens"], ...] = ("rows", "tokens")
    """What choices of one budget have equally many of: rows, or response tokens."""
    studies: tuple[Literal["labels", "labels-subset", "depth", "width", "learning-rate"], ...] = ()
    """Studies of the NN-CIFT paper to repeat with each influence function, separated by commas: fidelity in each
    quadrant over the fraction of labelled samples (labels), the value of the choice over that and the fraction chosen
    (labels-subset), fidelity of the paper's network over its depth, width and learning rate. They need exact influence
    of all pairs, and no training of the language model."""

    def __post_init__(self) -> None:
        if self.test is None and not self.studies:
            raise ConfigError("there is no `test` file to test trained models on", "give `test`, or `studies` alone")
        super().__post_init__()

    def _refuse_unused(self) -> None:
        if self.test is None:
            others = [field.name for field in fields(self) if field.name not in _OF_STUDIES]
            problem = "is for training, and without a `test` file only `studies` are computed"
            self._refuse(problem, "give `test`", *others)
            return
        super()._refuse_unused()
        if "lora" not in self.methods or "rows" not in self.units:
            problem = "is for fine-tuning with budgets in rows, which `methods` and `units` leave out"
            self._refuse(problem, "give `methods` lora and `units` rows", "curve")

    def identity(self) -> dict[str, Any]:
        """The options that every trial depends on, ready for JSON."""
        return {name: value for name, value in super().identity().items() if name not in _ADDED}


def refuse_of_one_run(options: Mapping[str, Any]) -> None:
    """Refuse options of `select` that a comparison does not take.

    Raises:
        ConfigError: the first of them, and what to do instead.
    """
    for name, instead in OF_ONE_RUN.items():
        if options.get(name) not in (None, False, (), "gain"):  # the defaults
            raise ConfigError(f"`{name}` is for one run", instead)
