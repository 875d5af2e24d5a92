"""A Run: everything that a config names, resolved once into objects, with the samples of every side.

Shared by the run itself and by the dry run, which adds up the costs of its stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nncift.config import DEFAULT_LABELLED_SAMPLES, DEFAULT_LABELS, Config, default_fields
from nncift.features.features import SampleSet
from nncift.features.sources import FeatureSources
from nncift.influence.base import InfluenceFunction
from nncift.labels.design import costs_samples
from nncift.labels.pairs import LabelledPairs
from nncift.labels.rates import Rate, mean_rate, measure_rates
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.models.text.chats import any_turns
from nncift.pipeline.choosing.arrange import make_difficulty
from nncift.pipeline.choosing.exact import refuse_beside_known, refuse_estimation, trial_vectors
from nncift.pipeline.components.influences import (
    feature_model,
    make_features,
    make_influence,
    make_setup,
    make_verifier,
)
from nncift.pipeline.components.precision import settled
from nncift.pipeline.components.prior import check_same_influence, load_prior
from nncift.pipeline.components.workers import executor_of
from nncift.pipeline.earlier_runs.takeover import EarlierRun
from nncift.run.executors.base import computing_with
from nncift.run.folder.costs import Costs, Rates
from nncift.run.folder.folder import RunFolder
from nncift.run.options.amounts import parse_budget
from nncift.run.storage.files import read_array, write_array
from nncift.selection.budget import Budget, count_tokens
from nncift.selection.objectives.modular import MeanInfluence

if TYPE_CHECKING:
    from nncift.data.sources.sources import SourceLike
    from nncift.estimator.network import InfluenceNetwork
    from nncift.selection.groups import Groups

Sources = Mapping[str, "SourceLike | None"]


@dataclass
class Run:
    """A run and what its config stands for.

    Attributes:
        config: as given.
        folder: where the run keeps its files.
        sources: of "pool", "target" and "known": where the samples come from.
        costs: the table of costs.
        budget: how much to choose.
        prior: the network that the config names, to estimate with or to start from.
        features: where the network's features of each sample come from.
        influence: the exact influence function; None where nothing is measured.
        verifier: the one that measures a shortlist of gradient-sketch; None where `influence` measures all.
        difficulty: what the selected samples are arranged by; None where they are not.
        model, encoder: the language model and the sentence encoder of the features.
        progress: show progress bars.
        samples: of each side that there is, "pool", "target" and "known", once they are read.
        measuring: this process has begun to measure.
        sizes: estimated number of samples of a side of which a dry run reads a part.
        groups: values of the pool's columns with quotas or caps, once they are read.
        whole: the pool before the first cut, `kept_rows` the rows that it kept, int64, and in a dry run `uncut` the
            number of all; None where nothing was cut.
        kept: pool rows that are no near-duplicates, int64, once these are found; None where all may be chosen.
    """

    config: Config
    folder: RunFolder
    sources: Sources
    costs: Costs
    budget: Budget
    prior: InfluenceNetwork | None
    features: FeatureSources
    influence: InfluenceFunction | None
    difficulty: InfluenceFunction | None
    model: ModelSpec
    encoder: EncoderSpec
    verifier: InfluenceFunction | None = None
    progress: bool = False
    samples: dict[str, SampleSet] = field(default_factory=dict)
    measuring: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    groups: dict[str, Groups] = field(default_factory=dict)
    whole: SampleSet | None = None
    kept_rows: np.ndarray | None = None
    uncut: int | None = None
    kept: np.ndarray | None = None

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        config: Config,
        sources: Sources,
        influence: str | InfluenceFunction | None = None,
        *,
        progress: bool = False,
    ) -> Iterator[Self]:
        """The run in its folder, which is locked, logged to and compared with the config inside the block.

        Raises:
            ConfigError: the folder belongs to another config, or an option has a value that cannot be used.
            ModelError: there is no such network.
            RunError: the folder cannot be used.
        """
        folder = RunFolder(config.folder)
        settled_config, identity = settled(config, config.identity(), folder)
        executor = executor_of(config)
        with folder.open(identity, default_fields()), computing_with(executor):
            yield cls.resolve(settled_config, folder, sources, influence, progress=progress)

    @classmethod
    def resolve(
        cls,
        config: Config,
        folder: RunFolder,
        sources: Sources,
        influence: str | InfluenceFunction | None = None,
        *,
        progress: bool = False,
    ) -> Self:
        """The objects that the config names; no sample is read and no language model loaded yet."""
        prior = load_prior(config)
        needed = None if prior is None else FeatureSources.described(prior.description_)
        setup = make_setup(config, needed)
        function = verifier = None
        if config.measures:
            function = make_influence(config, influence, setup)
            verifier = make_verifier(config, influence, setup)
            if function.traits.factored:
                fitted = {} if prior is None else prior.description_.get("influence", {})
                refuse_estimation(config, function.name, fitted.get("name"), verifies=verifier is not None)
            refuse_beside_known(config, function.name if function.traits.factored else None)
            if prior is not None and not config.learns:
                check_same_influence(prior, function)
        features = make_features(config, function, setup.encoder, needed)
        return cls(
            config=config,
            folder=folder,
            sources=sources,
            costs=Costs(folder.costs),
            budget=Budget(parse_budget(config.budget)),
            prior=prior,
            features=features,
            influence=function,
            verifier=verifier,
            difficulty=make_difficulty(config, setup),
            model=feature_model(setup.models[0], features, function),
            encoder=setup.encoder,
            progress=progress,
        )

    @property
    def pool(self) -> SampleSet:
        """The samples to choose from."""
        return self.samples["pool"]

    @property
    def whole_pool(self) -> SampleSet:
        """The samples that were read, of which the first cut may have kept some as `pool`."""
        return self.pool if self.whole is None else self.whole

    def pool_rows(self, rows: np.ndarray) -> np.ndarray:
        """The rows in the whole pool of samples to choose from, int64."""
        return rows if self.kept_rows is None else self.kept_rows[rows]

    @property
    def target(self) -> SampleSet:
        """The samples to be helped: the pool itself where there is no target."""
        return self.samples.get("target", self.pool)

    @property
    def known(self) -> SampleSet | None:
        """The samples that the model was trained on before."""
        return self.samples.get("known")

    @property
    def own_target(self) -> bool:
        """Whether the pool is its own target."""
        return "target" not in self.samples

    @property
    def n_target(self) -> int | None:
        """How many targets there are; None where the pool is its own."""
        return None if self.own_target else self.size("target")

    def size(self, side: str) -> int:
        """How many samples a side has, "pool", "target" or "known"; estimated where a part of it was read."""
        if side == "target" and self.own_target:
            side = "pool"
        found = self.sizes.get(side)
        return len(self.samples.get(side, ())) if found is None else found

    @property
    def is_chosen(self) -> bool:
        """Whether the subset is chosen, and verified if asked for."""
        verified = self.config.verify is None or self.folder.verification.is_file()
        return self.folder.is_selected and verified

    @property
    def is_exact(self) -> bool:
        """Whether influence is computed exactly for every pair, so that nothing is labelled, learned or estimated."""
        return self.influence is not None and self.influence.traits.factored

    @property
    def function(self) -> InfluenceFunction:
        """The influence function of a run that measures."""
        assert self.influence is not None
        return self.influence

    @property
    def recipe(self) -> str:
        """The recipe of the network that the run estimates with."""
        return self.config.recipe if self.prior is None or self.config.learns else self.prior.recipe

    @property
    def functions(self) -> list[InfluenceFunction]:
        """The influence functions and the difficulty, those that there are."""
        return [one for one in (self.influence, self.verifier, self.difficulty) if one is not None]

    @property
    def is_pointwise(self) -> bool:
        """Whether influence is one score of each pool sample, the same for every target.

        The traits of some functions depend on the targets and are set by `InfluenceFunction.check`.
        """
        if self.influence is not None:
            return self.influence.traits.pointwise
        if self.prior is not None:
            return bool(self.prior.options.get("pointwise"))
        labels = self.folder.labels.labels
        return labels.exists() and LabelledPairs.load(labels).pointwise

    @property
    def labels(self) -> str:
        """How much to label, as written."""
        return str(self.config.labels or self.default_labels)

    @property
    def default_labels(self) -> str:
        """How much a run labels that does not say it."""
        return DEFAULT_LABELLED_SAMPLES if costs_samples(self.function) else DEFAULT_LABELS

    @property
    def objective(self) -> str | None:
        """The objective as named; else the mean of a score, which a cover would saturate with one sample.

        None for the one that the data ask for.
        """
        return self.config.objective or (MeanInfluence.name if self.is_pointwise else None)

    def describe(self, function: InfluenceFunction) -> dict[str, Any]:
        """What a function's values depend on besides the samples, ready for JSON."""
        turns = {"turns": "all"} if any_turns(self.pool.rows, self.target.rows) else {}
        return dict(json.loads(json.dumps(function.describe() | turns, default=str)))

    def describe_influence(self) -> dict[str, Any]:
        """What the exact values depend on besides the samples, ready for JSON."""
        return self.describe(self.function)

    @cached_property
    def rates(self) -> Rates:
        """How fast the influence function measures, found by measuring a little now."""
        pool, target = self.pool.rows, self.target.rows
        return measure_rates(self.function, pool, target, n_pool=self.size("pool"), seed=self.config.seed)

    @cached_property
    def rate(self) -> Rate:
        """The same for the mean sample."""
        return mean_rate(self.function, self.rates, self.pool.rows, self.target.rows, seed=self.config.seed)

    @cached_property
    def trial_vectors(self) -> tuple[Any, Any]:
        """Vectors of a few samples, on which a dry run measures."""
        return trial_vectors(self.function, self.pool.rows)

    @cached_property
    def earlier(self) -> EarlierRun | None:
        """The run to take over from; None without `from_run`."""
        return None if self.config.from_run is None else EarlierRun(RunFolder(self.config.from_run), self)

    @property
    def tokens(self) -> np.ndarray | None:
        """Tokens of each pool sample, (n_pool,) int64, kept in the folder; None where the budget is in samples."""
        if self.budget.max_tokens is None:
            return None
        if not self.folder.tokens.exists():
            write_array(
                self.folder.tokens,
                count_tokens(self.pool.rows, dataclasses.replace(self.model, model=self.config.models[0])),
            )
        return np.asarray(read_array(self.folder.tokens))
