"""What a network knows of each sample: which features a run reads, from where, and reading them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.config import DEFAULT_ENCODER, DEFAULT_INFLUENCE, DEFAULT_MODEL, KNOWN_FEATURES, Config
from nncift.errors import ModelError
from nncift.features.custom import own_features
from nncift.features.features import Features, stored_features
from nncift.features.language_model import language_features
from nncift.features.sentence import embed
from nncift.influence.base import InfluenceFunction, LanguageModelFunction
from nncift.influence.catalogue import BUILT_IN
from nncift.models.encoder import load_encoder
from nncift.models.language_model import LanguageModel
from nncift.models.loading import default_batch_size, default_dtype
from nncift.models.locate import PRETRAINED, network_folder
from nncift.run.files import read_json
from nncift.run.registry import resolve

if TYPE_CHECKING:
    from datasets import Dataset

_KINDS = {"encoder": "sentence", "own": "own", "language_model": "lm"}  # source to what `--features` calls it


@dataclass(frozen=True)
class FeatureSources:
    """Where the features of each sample come from; None where a run has none of that kind.

    Attributes:
        encoder: the sentence encoder.
        own: the user's own, a file or a column.
        language_model: whose own view of the sample is a feature.
    """

    encoder: str | None = None
    own: str | None = None
    language_model: str | None = None

    def names(self, side: str) -> dict[str, str]:
        """Kind ("sentence", "own", "lm") to file name for a side, "pool" or "target"; the first has its alone."""
        kinds = [_KINDS[name] for name, source in asdict(self).items() if source is not None]
        return {kind: side if kind == kinds[0] else f"{side}.{kind}" for kind in kinds}

    def __str__(self) -> str:
        sources = {_KINDS[name]: source for name, source in asdict(self).items() if source is not None}
        return ", ".join(f"{kind} ({source})" for kind, source in sources.items())


def default_features(config: Config) -> tuple[str, ...]:
    """What a network knows of each sample unless the user says so: what the language model makes of it counts too.

    That costs one forward pass per sample, so only where the influence function asks a language model anyway, and for
    a recipe that can use it.
    """
    if config.recipe == "paper" or config.labels_from is not None:
        return ("sentence",)
    name = config.influence or DEFAULT_INFLUENCE
    if name.startswith("{"):  # the description of an object
        name = str(json.loads(name).get("name"))
        if name not in BUILT_IN:
            return ("sentence",)
    kind = resolve(name, BUILT_IN, "nncift.influence")
    asks = isinstance(kind, type) and issubclass(kind, LanguageModelFunction)
    return KNOWN_FEATURES if asks else ("sentence",)


def feature_sources(config: Config) -> FeatureSources:
    """Where the features come from: what the config asks for, or what its learned network needs.

    Raises:
        ModelError: the config asks for others than the learned network needs.
    """
    names = config.feature_names or default_features(config)
    asked = FeatureSources(
        encoder=(config.encoder or DEFAULT_ENCODER) if "sentence" in names else None,
        own=config.own_features,
        language_model=config.models[0] if "lm" in names else None,
    )
    if config.network is None:
        return asked
    description = read_json(Path(network_folder(config.network)) / "config.json").get("description", {})
    needed = FeatureSources(**description.get("features", {"own": "features of your own"}))
    if needed.own is not None and asked.own is None:
        raise ModelError(
            f"the network in {config.network} learned with features of your own", "give the new data's with --features"
        )
    given = asdict(asked)
    for kind, source in asdict(needed).items():
        if config.feature_names and (source is None) != (given[kind] is None):
            raise ModelError(f"the network in {config.network} needs the features {needed}", "leave --features out")
    encoder = config.encoder if config.encoder is not None and needed.encoder is not None else needed.encoder
    return FeatureSources(encoder, asked.own, _language_model(config, needed.language_model))


def _language_model(config: Config, needed: str | None) -> str | None:
    """The model of a learned network's features; "embedded" stands for the one that it carries.

    Raises:
        ModelError: another is asked for than the network that comes with nncift knows.
    """
    model = config.models[0]
    if needed == DEFAULT_MODEL and model == "embedded":
        return model
    if config.network == PRETRAINED and model != needed:
        raise ModelError(
            f"the network that comes with nncift knows {needed}, not {model}",
            f"make one: nncift pretrain --model {model}",
        )
    return needed


class FeatureReader:
    """Reads a run's features; each model is loaded once, when it is first needed.

    Args:
        config: the run's.
        function: the run's influence function: where it asks the same language model, that is loaded once for both.

    Attributes:
        sources: where the features come from.
    """

    def __init__(self, config: Config, function: InfluenceFunction | None = None) -> None:
        self.config = config
        self.sources = feature_sources(config)
        self.encoder = cache(self._encoder)
        self.language_model = cache(self._language_model)
        self._function = function
        self._before: int | None = None  # tokens that the model had read for others; None: it is not loaded

    @property
    def forward_tokens(self) -> int:
        """Tokens that the language model has read for features so far."""
        return 0 if self._before is None else self.language_model().forward_tokens - self._before

    def read(
        self,
        samples: Dataset,
        side: str,
        folder: Path,
        *,
        source_rows: int | None = None,
        progress: bool = False,
        after_shard: Callable[[], None],
    ) -> Features:
        """Features of all samples of a side, "pool" or "target", kept in `folder`; their source had `source_rows`.

        Raises:
            DataError: a feature is not finite or does not fit the samples, or a response does not fit the model.
            ModelError: a model cannot be loaded.
        """
        names, config = self.sources.names(side), self.config
        for kind, name in names.items():
            if kind == "own":
                given = config.target_features if side == "target" else None
                source = given or str(config.own_features)
                own_features(samples, source, folder=folder, name=name, source_rows=source_rows)
            elif kind == "sentence":
                encoder: Any = self.sources.encoder if (folder / f"{name}.json").exists() else self.encoder()
                embed(
                    samples,
                    encoder,
                    folder=folder,
                    name=name,
                    batch_size=config.batch_size,
                    source=self.sources.encoder,
                    progress=progress,
                )
            else:
                language_features(
                    samples,
                    self.language_model,
                    folder=folder,
                    name=name,
                    batch_size=config.batch_size or default_batch_size(config.device),
                    source=self.sources.language_model,
                    progress=progress,
                    after_shard=after_shard,
                )
        return stored_features(folder, names)

    def _encoder(self) -> Any:
        config = self.config
        return load_encoder(str(self.sources.encoder), device=config.device, trust_remote_code=config.trust_remote_code)

    def _language_model(self) -> LanguageModel:
        config, function = self.config, self._function
        if isinstance(function, LanguageModelFunction) and function.model == self.sources.language_model:
            model = function.language_model
        else:
            model = LanguageModel.load(
                str(self.sources.language_model),
                dtype=config.dtype or default_dtype(config.device),
                device=config.device,
                max_length=config.max_length,
                trust_remote_code=config.trust_remote_code,
            )
        self._before = model.forward_tokens
        return model
