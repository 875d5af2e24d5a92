"""Base classes of exact influence functions: how much a pool sample helps a target sample.

A name resolves to one of `catalogue.BUILT_IN`, an entry point of the group `nncift.influence`, or "module:Class". A
plain callable with a name is wrapped by `as_function`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np

from nncift.errors import ConfigError
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.models.text.screening import Screen

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.matrix.products import Vectors

Side = Literal["pool", "target"]


@dataclass(frozen=True)
class Traits:
    """Properties of a function that decide how a run uses it.

    Attributes:
        pointwise: a pool sample has one score for all targets.
        relative: values depend on all samples given to `prepare`, and are comparable only within one such set.
        relative_to_pool: and that only through the pool, with the known samples: other targets leave its vectors as
            they are. Such a function gives `statistics`.
        per_pair: cost is dominated by per-pair work (as opposed to per-sample work). Then each labelled row gets
            targets of its own; otherwise all rows share a square grid.
        factored: influence is a function of the inner product of two samples' vectors (`vectors`), so a run computes it
            exactly for every pair, and needs neither labels nor a network.
        both_sides: influence is an inner product of two samples' vectors, such as gradients, and the work of a sample
            gives those of either side. Then labelled targets are measured as pool samples too, which tells the network
            far more (`estimator.vector_process`).
        asks_language_model: it runs a language model, so that features from the same model are used too.
    """

    pointwise: bool = False
    relative: bool = False
    relative_to_pool: bool = False
    per_pair: bool = False
    factored: bool = False
    both_sides: bool = False
    asks_language_model: bool = False


class Footprint(NamedTuple):
    """What measuring takes besides time, in bytes, for a dry run."""

    memory: int = 0  # at the peak, beyond the models' weights
    disk: int = 0  # of files
    checkpoints: int = 0  # of these, checkpoints of a training and gradients, removed when the run is complete


@dataclass(frozen=True)
class Setup:
    """Settings of a run that influence functions are built with; most use the first language model alone."""

    models: Sequence[ModelSpec] = (ModelSpec(),)
    encoder: EncoderSpec = field(default_factory=EncoderSpec)
    seed: int = 0


class InfluenceFunction:
    """Exact influence for a block of pool samples and targets.

    A function of your own overrides `__call__`, or `vectors` with the trait `factored`, sets `name` and `traits`, and
    overrides the hooks that it needs. Its constructor's parameters with type hints are its options (`options.py`).
    """

    name: str = ""
    traits: Traits = Traits()
    travels: bool = False
    """Whether blocks of pairs may be computed in other processes: the object is pickled after `prepare`, which has
    counted all truncated samples (`cut_ids`)."""
    progress: bool = False
    """Set by the caller: show progress bars in `prepare`."""
    models: Sequence[ModelSpec] = ()
    """The language models that it runs."""
    forward_tokens: int = 0
    """Tokens of all forward passes so far, without padding."""
    backward_tokens: int = 0
    """Tokens of all backward passes so far, without padding."""
    training_seconds: float = 0.0
    """Time of all training steps so far; 0 where it is not told."""
    oom_splits: Sequence[int] = ()
    """Sizes of the batches that did not fit into memory and were halved."""
    cut_ids: frozenset[str] | None = None
    """Ids of the samples truncated so far to fit a model's context; None if the function never truncates."""
    on_cut: Callable[[], None] | None = None
    """Set by the caller: called when `cut_ids` has grown, before a value of those samples is stored."""
    _settings: tuple[str, ...] = ()
    """Attributes that `describe` gives, ready for JSON."""

    def __getstate__(self) -> dict[str, Any]:
        """What travels to a worker, without what belongs to the caller."""
        return {name: value for name, value in self.__dict__.items() if name not in ("on_cut", "progress")}

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Influence of each pool sample on each target.

        Args:
            pool_rows: n_pool samples that may help.
            target_rows: n_target samples to be helped.

        Returns:
            (n_pool, n_target) float32. Entry [i, j] is how much pool sample i helps target sample j; larger is
            better. It depends on the two samples alone, whatever else is in the block, unless `traits.relative`.

        Raises:
            ConfigError: values depend on all samples, and `prepare` has not been called, or not with these.
            DataError: a response does not fit into the context, or a value is not finite.
            ModelError: a model cannot be loaded, or one sample alone does not fit into memory.
        """
        if type(self).vectors is InfluenceFunction.vectors:
            raise NotImplementedError
        if not len(pool_rows) or not len(target_rows):
            return np.zeros((len(pool_rows), len(target_rows)), np.float32)
        from nncift.matrix.products import product_matrix  # numba takes half a second to import

        pool, target = self.vectors(pool_rows), self.target_vectors(target_rows)
        return product_matrix(pool, target, self.from_products).rows(slice(None))

    def vectors(self, rows: Dataset) -> Vectors:
        """Vectors of pool samples, and of targets where `target_vectors` is not overridden, for the trait `factored`.

        Args:
            rows: n samples, at least one, of those given to `prepare` where the function is `relative`.

        Returns:
            (n, d) float32, an array or a `scipy.sparse.csr_array`. A sample's vector does not depend on the others in
            `rows`.
        """
        raise NotImplementedError

    def target_vectors(self, rows: Dataset) -> Vectors:
        """Vectors of targets, (n, d); those of `vectors` unless overridden."""
        return self.vectors(rows)

    def from_products(self, products: np.ndarray) -> np.ndarray:
        """Influence from the inner products of two samples' vectors, entry by entry; the product itself by default.

        A non-decreasing one lets a large pool be chosen from by each target's strongest helpers (`matrix.sparse`).
        """
        return products

    @classmethod
    def build(cls, setup: Setup, **options: Any) -> Self:
        """The function with a run's settings and its own options."""
        return cls(**options)

    def check(self, pool: Dataset, target: Dataset) -> None:
        """Called with all samples before anything expensive, to validate them or to record facts; loads no model."""

    def screen(self, side: Side) -> Screen | None:
        """What refuses the samples of a side that its models cannot take, from their tokenizers alone, if anything.

        Called while the samples are read: rows that it refuses are rows that cannot be used.
        """
        return None

    def warm_up(self, pool: Dataset, folder: Path | None = None, *, progress: bool = False) -> Any:
        """Train on the pool; called with all samples, before `prepare`, whichever are labelled; `folder` caches."""

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Compute per-sample quantities; called before the first block, and again when a run resumes.

        Args:
            pool: all pool samples to be labelled.
            target: all targets to be labelled.
            folder: caches the results, so that a killed run resumes.

        Raises:
            ConfigError: there are no such samples or no such part of the model.
            DataError: a response does not fit into the context, or a value is not finite.
            ModelError: a model cannot be loaded, or one sample alone does not fit into memory.
            RunError: what the folder caches is damaged, or belongs to other samples or settings.
        """

    def statistics(self) -> Mapping[str, np.ndarray]:
        """What values depend on beside the two samples, after `prepare`, where the function is `relative`.

        A run keeps these arrays beside the vectors, so that samples that are added later get vectors on the same scale
        (`restore`). Without any, the default, added samples have the vectors of all samples computed again.
        """
        return {}

    def restore(self, statistics: Mapping[str, np.ndarray]) -> None:
        """Take what `statistics` gave for earlier samples, for the next `prepare`, which then computes none."""
        raise NotImplementedError

    def tokens(self, pool_rows: Dataset, target_rows: Dataset, pool: Dataset | None = None) -> int | None:
        """Tokens of all forward passes that labelling these rows takes; None if unknown.

        Args:
            pool_rows: the pool samples.
            target_rows: the targets.
            pool: the samples that `warm_up` trains on before.
        """
        return None

    def joint_seconds(self, pool_rows: Dataset, samples: int) -> float:
        """Expected seconds of what `prepare` does with all samples at once, beyond what it does for each.

        Args:
            pool_rows: some of the pool samples that are measured.
            samples: how many samples are measured in all.
        """
        return 0.0

    def footprint(self, pool_rows: Dataset, target_rows: Dataset, n_pool: int, n_target: int) -> Footprint:
        """Memory and disk that measuring takes.

        Args:
            pool_rows: some of the pool samples that are measured.
            target_rows: some of the targets.
            n_pool: how many pool samples are measured in all.
            n_target: likewise, of the targets.
        """
        return Footprint()

    def shortened(self) -> Self:
        """This function, or a copy on the same model that trains for one epoch, to measure its rate with."""
        return self

    def describe(self) -> dict[str, Any]:
        """Everything but the samples that the values depend on, ready for JSON; loads no model."""
        return {"name": self.name} | {setting: getattr(self, setting) for setting in self._settings}


class PlainFunction(InfluenceFunction):
    """A callable of the user's that is no `InfluenceFunction`, under its name."""

    def __init__(self, function: Callable[[Dataset, Dataset], np.ndarray], name: str) -> None:
        self.function = function
        self.name = name

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """The callable's values."""
        return self.function(pool_rows, target_rows)


_HOOKS = {name for name in vars(InfluenceFunction) if not name.startswith("_")} - {"name"} | {"pointwise"}


def as_function(function: Any) -> InfluenceFunction:
    """An influence function as it is, or a plain callable wrapped; raises `ConfigError` if it is neither."""
    if isinstance(function, type):
        raise ConfigError(f"{function.__name__} is a class", "give an object of it")
    if isinstance(function, InfluenceFunction):
        kind, traits = type(function), function.traits
        has_vectors = kind.vectors is not InfluenceFunction.vectors
        has_values = has_vectors or kind.__call__ is not InfluenceFunction.__call__
        whole = function.name and isinstance(traits, Traits) and (has_vectors if traits.factored else has_values)
        if not whole:
            own = "vectors" if isinstance(traits, Traits) and traits.factored else "__call__"
            raise ConfigError(
                f"the influence function {kind.__name__} is incomplete", f"give it a `name`, `traits` and `{own}`"
            )
        return function
    members = set(dir(function))
    name = function.name if "name" in members else function.__name__ if "__name__" in members else ""
    if not callable(function) or not name:
        raise ConfigError(
            f"{function!r} is not an influence function",
            "give a callable with a name, or subclass nncift.InfluenceFunction",
        )
    if hooks := sorted(members & _HOOKS):
        raise ConfigError(
            f"the influence function {name!r} defines {', '.join(hooks)}, which only a subclass may define",
            "subclass nncift.InfluenceFunction",
        )
    return PlainFunction(function, str(name))


def look_up(
    known: Mapping[str, np.ndarray], keys: Sequence[str], compute: Callable[[list[int]], np.ndarray]
) -> np.ndarray:
    """The value of each key, (n, ...): known, or computed from the numbers of the others, each distinct one once."""
    new = {key: number for number, key in reversed([*enumerate(keys)]) if key not in known}
    if new:
        known = {**known, **dict(zip(new, compute([*new.values()]), strict=True))}
    return np.array([known[key] for key in keys])


def broadcast(scores: np.ndarray, n_target: int) -> np.ndarray:
    """Pointwise scores (n_pool,) as influence on every target, (n_pool, n_target) float32."""
    return np.repeat(np.asarray(scores, dtype=np.float32)[:, None], n_target, axis=1)
