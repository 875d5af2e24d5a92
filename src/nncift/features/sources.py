"""The feature sources of a run: their names, their description that a network stores, and reading them all."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Self

from nncift.errors import ConfigError, ModelError
from nncift.features.base import FeatureSource, drop_shards, read_source
from nncift.features.cache import FeatureCache
from nncift.features.custom import OwnFeatures
from nncift.features.features import Features, stored_features
from nncift.features.growing import FirstFeatures, drop_new, extend_source
from nncift.models.locate import PRETRAINED
from nncift.models.spec import DEFAULT_MODEL, EncoderSpec, ModelSpec
from nncift.run.folder.parts import FeatureFolder
from nncift.run.options.registry import resolve

if TYPE_CHECKING:
    from datasets import Dataset

BUILT_IN = {
    "sentence": "nncift.features.sentence:SentenceFeatures",
    "lm": "nncift.features.language_model:LanguageModelFeatures",
    "gradient-sketch": "nncift.features.gradient_sketch:GradientSketchFeatures",  # a block more in the pass of "lm"
}
SKETCH = "gradient sketch"  # the block
_WIDEST = 2**20
_GROUP = "nncift.features"
_KINDS = {"encoder": "sentence", "own": "own", "language_model": "lm"}  # field to name


@dataclass(frozen=True)
class SketchSettings:
    """What a gradient sketch depends on beside the language model; a network stores it for its new data.

    Attributes:
        dimension: of the count sketch of all layers' gradients.
        seed: of its signs.
        damping: of the whitening, in units of the mean eigenvalue.
        states: weight of the mean states' cosine.

    Raises:
        ValueError: one is out of range, as a file may have it.
    """

    dimension: int = 4096
    seed: int = 0
    damping: float = 1.0
    states: float = 0.2

    def __post_init__(self) -> None:
        valid = {
            "dimension": isinstance(self.dimension, int) and 1 <= self.dimension <= _WIDEST,
            "seed": isinstance(self.seed, int) and 0 <= self.seed < 2**32,
            "damping": 0 < self.damping < math.inf,
            "states": 0 <= self.states <= 1,
        }
        if wrong := [name for name, is_valid in valid.items() if not is_valid]:
            raise ValueError(f"{wrong[0]} of the gradient sketch is {getattr(self, wrong[0])!r}")


@dataclass(frozen=True)
class FeatureSources:
    """Where the features of each sample come from, as a network's description stores it; None for a kind not read."""

    encoder: str | None = None
    own: str | None = None
    """A `.npy` file, a column, an entry point or "module:Class"."""
    language_model: str | None = None
    gradient_sketch: SketchSettings | None = None
    """Where the language model's pass gives the sketch too."""

    @classmethod
    def named(cls, names: Sequence[str], *, encoder: str, model: str) -> Self:
        """From the names that `features` lists: "sentence", "lm", "gradient-sketch", and one of the user's own."""
        own = next((name for name in names if name not in BUILT_IN), None)
        sketch = SketchSettings() if "gradient-sketch" in names else None
        return cls(encoder if "sentence" in names else None, own, model if "lm" in names else None, sketch)

    @classmethod
    def described(cls, description: dict[str, Any]) -> Self:
        """Those that a network was fitted to, from its description."""
        stored = dict(description.get("features", {"own": "features of your own"}))
        sketch = stored.pop("gradient_sketch", None)
        return cls(**stored, gradient_sketch=None if sketch is None else SketchSettings(**sketch))

    def describe(self) -> dict[str, Any]:
        """JSON values that a network's description stores."""
        sources = asdict(self)
        if self.gradient_sketch is None:  # networks without one are as those of earlier versions
            del sources["gradient_sketch"]
        return sources

    def for_network(
        self, network: str, needed: FeatureSources, *, model: str, encoder: str | None = None, explicit: bool = False
    ) -> FeatureSources:
        """These, adapted to a fitted network's.

        Args:
            network: its folder, hub id or "pretrained".
            needed: the sources it was fitted to.
            model: the run's language model.
            encoder: the encoder that the user gave, which replaces the network's.
            explicit: the user listed these sources, so that they have to be of the same kinds.

        Raises:
            ModelError: these are others than the network needs.
        """
        if needed.own is not None and self.own is None:
            raise ModelError(
                f"the network in {network} was fitted to features of your own", "give those of the new data: `features`"
            )
        here, there = ((one.kinds, one.gradient_sketch is None) for one in (self, needed))
        if explicit and here != there:
            raise ModelError(f"the network in {network} needs the features {needed}", "leave `features` out")
        language_model = needed.language_model
        if language_model == DEFAULT_MODEL and model == "embedded":  # the same weights
            language_model = model
        elif network == PRETRAINED and model != language_model:
            raise ModelError(
                f"the network that comes with nncift was fitted to {language_model}, not {model}",
                f"make one: nncift pretrain --model {model}",
            )
        encoder = (needed.encoder and encoder) or needed.encoder
        return FeatureSources(encoder, self.own, language_model, needed.gradient_sketch)

    def names(self, side: str) -> dict[str, str]:
        """Kind ("sentence", "own", "lm") to file name for a side, "pool" or "target"; the first has its alone."""
        kinds = [*self.kinds]
        return {kind: side if kind == kinds[0] else f"{side}.{kind}" for kind in kinds}

    def __str__(self) -> str:
        shown = [f"{kind} ({source})" for kind, source in self.kinds.items()]
        return ", ".join([*shown, *(["gradient-sketch"] if self.gradient_sketch else [])])

    @property
    def kinds(self) -> dict[str, str]:
        """Kind ("sentence", "own", "lm") to the model, file or column that it is read with."""
        return {kind: source for field, kind in _KINDS.items() if (source := getattr(self, field)) is not None}


@dataclass(frozen=True)
class FeatureReader:
    """Reads the features of a run's samples; each model is loaded once, on first use."""

    sources: FeatureSources
    encoder: EncoderSpec  # how the encoder of the sources is run; theirs replaces another one
    model: ModelSpec  # how their language model is run, likewise
    target_features: str | None = None  # the user's own features of the targets; those of `sources` unless given
    cache: FeatureCache | None = None  # of what earlier runs computed
    take: Callable[[str, str, FeatureSource], bool] | None = None  # puts an earlier run's into the folder, if it can
    first: Callable[[str, str, FeatureSource], FirstFeatures | None] | None = None  # an earlier run's of first samples

    def read(
        self,
        samples: Dataset,
        side: str,
        folder: FeatureFolder,
        *,
        source_rows: int | None = None,
        progress: bool = False,
        after_shard: Callable[[], None] = lambda: None,
        count: Callable[[int], None] = lambda samples: None,
    ) -> Features:
        """Features of all samples of a side, "pool" or "target", from every source; as `read_source` for each.

        Args:
            samples: n rows.
            side: begins the file names.
            folder: what is stored there is not computed again.
            source_rows: number of rows of the samples' source, where that is known.
            progress: show a progress bar.
            after_shard: called after each computed shard.
            count: called before that with the number of samples that the encoder has read.
        """
        names = self.sources.names(side)
        for kind, name in names.items():
            source = self._own(samples, side, source_rows) if kind == "own" else None
            if folder.is_finished(name):
                drop_shards(folder, name)  # of a run that was killed right then
                drop_new(folder, name)
                if isinstance(source, OwnFeatures):
                    source.check_same(folder, name)
            else:
                source = source or self.models[kind]
                if self.take is not None and self.take(side, name, source):
                    continue
                first = None if self.first is None else self.first(side, name, source)
                (read_source if first is None else partial(extend_source, first=first))(
                    samples,
                    source,
                    folder=folder,
                    name=name,
                    progress=progress,
                    after_shard=after_shard,
                    cache=self.cache,
                    count=count if kind == "sentence" else lambda samples: None,
                )
        return stored_features(folder, names)

    @cached_property
    def models(self) -> dict[str, FeatureSource]:
        """The sources that run a model, by kind."""
        encoder, model = self.encoder, self.model
        if self.sources.encoder not in (None, encoder.name):
            encoder = dataclasses.replace(encoder, encoder=self.sources.encoder)
        if self.sources.language_model not in (None, model.name):
            model = dataclasses.replace(model, model=self.sources.language_model)
        return {kind: self._source(kind, encoder, model) for kind in self.sources.names("") if kind != "own"}

    def _source(self, kind: str, encoder: EncoderSpec, model: ModelSpec) -> FeatureSource:
        if kind == "lm" and self.sources.gradient_sketch is not None:
            from nncift.features.gradient_sketch import GradientSketchFeatures

            return GradientSketchFeatures(model, self.sources.gradient_sketch)
        return make_source(kind, encoder, model)

    def _own(self, samples: Dataset, side: str, source_rows: int | None) -> FeatureSource:
        name = (self.target_features if side == "target" else None) or str(self.sources.own)
        is_class = ":" in name or name in entry_points(group=_GROUP).names
        if is_class and name not in json.loads(samples[0]["original"]):  # a column comes first
            return make_source(name, self.encoder, self.model)
        return OwnFeatures(name, source_rows)


def make_source(name: str, encoder: EncoderSpec, model: ModelSpec) -> FeatureSource:
    """The feature source of a name: "sentence", "lm", an entry point of the group `nncift.features`, "module:Class"."""
    kind = resolve(name, BUILT_IN, _GROUP)
    if not (isinstance(kind, type) and issubclass(kind, FeatureSource)):
        raise ConfigError(f"{name!r} is not a feature source", "subclass nncift.features.base.FeatureSource")
    return kind.build(encoder, model)
