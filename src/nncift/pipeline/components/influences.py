"""The influence function and the models that a config names, what stands in without labels, what a network reads.

`labels` 0 computes no exact influence of a function that would be estimated. Its estimate is then gradient-sketch,
which needs no label and no fit and predicts training better than the bundled network does on task families that
neither saw (linear datamodeling score 0.44 and 0.40, `docs/measurements.md`). The network is for those who name it.
With `verify` gradient-sketch makes a shortlist, and the function that was asked for measures that alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from nncift.config import DEFAULT_INFLUENCE, Config
from nncift.errors import ConfigError
from nncift.features.sources import FeatureSources
from nncift.influence.base import InfluenceFunction, Setup, as_function
from nncift.influence.catalogue import BUILT_IN
from nncift.influence.gradient_sketch import GradientSketch
from nncift.influence.options import make_function
from nncift.models.spec import DEFAULT_ENCODER, EncoderSpec, ModelSpec
from nncift.run.options.registry import resolve


def make_setup(config: Config, fitted: FeatureSources | None) -> Setup:
    """The models that the config names; with `fitted`, the features of a network, by default its encoder."""
    shared: dict[str, Any] = {
        "device": config.device,
        "batch_size": config.batch_size,
        "trust_remote_code": config.trust_remote_code,
    }
    models = tuple(
        ModelSpec(name, dtype=config.dtype, max_length=config.max_length, wording=config.wording, **shared)
        for name in config.models
    )
    encoder = config.encoder or (fitted and fitted.encoder) or DEFAULT_ENCODER
    return Setup(models, EncoderSpec(encoder, **shared), config.seed)


def make_influence(
    config: Config, influence: str | InfluenceFunction | None = None, setup: Setup | None = None
) -> InfluenceFunction:
    """The influence function that the config names, with the options that it gives, or the object itself.

    With `labels` 0, gradient-sketch in place of one that would be estimated.

    Raises:
        ConfigError: there is no such function, an option of its own cannot be used, or nothing stands in for it.
    """
    made = setup or Setup()
    function = _asked_for(config, influence, made)
    return _without_labels(config, function, made) if config.unlabelled else function


def make_verifier(
    config: Config, influence: str | InfluenceFunction | None = None, setup: Setup | None = None
) -> InfluenceFunction | None:
    """The influence function that measures a shortlist of gradient-sketch; None where a run makes none.

    That is, with `labels` 0 and `verify`, the one that was asked for, unless it is exact for every pair.
    """
    if not config.unlabelled or config.verify is None:
        return None
    function = _asked_for(config, influence, setup or Setup())
    return None if function.traits.factored else function


def _asked_for(config: Config, influence: str | InfluenceFunction | None, setup: Setup) -> InfluenceFunction:
    """The influence function that the config names, with the options that it gives, or the object itself."""
    if not isinstance(influence, str | None):
        return as_function(influence)
    name = config.influence or DEFAULT_INFLUENCE
    kind = resolve(name, BUILT_IN, "nncift.influence")
    return make_function(kind, setup, config.influence_options or (), name=name)


def _without_labels(config: Config, function: InfluenceFunction, setup: Setup) -> InfluenceFunction:
    """The function where it is exact for every pair, else gradient-sketch.

    Raises:
        ConfigError: the function is pointwise, or has options and measures nothing.
    """
    if function.traits.factored:
        return function
    if function.traits.pointwise:
        raise ConfigError(
            f"{function.name} is one score of a sample for all targets, which no similarity estimates, so `labels` 0"
            " leaves it without an estimate",
            "give `labels` a number, or another `influence`",
        )
    if config.influence_options and config.verify is None:
        raise ConfigError(
            f"`labels` 0 computes {GradientSketch.name} in place of {function.name}, so `influence_options` of the"
            " latter have no use",
            "leave them out, or give `labels` a number, or `verify`",
        )
    return GradientSketch.build(setup)


def make_features(
    config: Config, function: InfluenceFunction | None, encoder: EncoderSpec, fitted: FeatureSources | None
) -> FeatureSources:
    """The features that the config names; with `fitted`, those of the network that it names."""
    names = config.feature_names or default_features(config, function)
    features = FeatureSources.named(names, encoder=encoder.name, model=config.models[0])
    if fitted is None:
        return features
    return features.for_network(
        str(config.network),
        fitted,
        model=config.models[0],
        encoder=config.encoder,
        explicit=bool(config.feature_names),
    )


def default_features(config: Config, function: InfluenceFunction | None) -> tuple[str, ...]:
    """The features of a run that names none; nothing reads features where influence is exact for every pair."""
    if function is not None and function.traits.factored:
        return ()
    return learned_features(config, function)


def learned_features(config: Config, function: InfluenceFunction | None) -> tuple[str, ...]:
    """The features that a network of a function learns from where none are named.

    The language model's own view of a sample where the influence function runs a language model anyway (that costs one
    forward pass per sample), and for a recipe that can use it. Beside it sentence embeddings were measured to add
    nothing (docs/measurements.md, "What sentence embeddings add"): they are read too where an encoder is named.
    """
    if function is None or not function.traits.asks_language_model or config.recipe == "paper":
        return ("sentence",)
    return ("lm",) if config.encoder is None else ("sentence", "lm")


def feature_model(model: ModelSpec, features: FeatureSources, function: InfluenceFunction | None) -> ModelSpec:
    """The language model of the features: the influence function's where that is the same, so it is loaded once."""
    name = features.language_model or model.model
    asked = function.models if function is not None else ()
    return next((spec for spec in asked if spec.model == name), dataclasses.replace(model, model=name))
