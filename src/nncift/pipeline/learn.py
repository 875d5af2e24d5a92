"""From labels to the network of a run, and how far it can be trusted."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nncift.config import DEFAULT_ENCODER, DEFAULT_MODEL, Config
from nncift.errors import ConfigError
from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.fidelity import measure_fidelity
from nncift.features.sources import feature_sources
from nncift.influence.base import is_pointwise
from nncift.labels.pairs import LabelledPairs
from nncift.models.locate import network_folder
from nncift.pipeline.context import describe
from nncift.pipeline.label import planned_held_out
from nncift.run.files import atomic_write, write_json

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.features.features import Features
    from nncift.influence.base import InfluenceFunction

_log = logging.getLogger("nncift")


def learn(
    config: Config,
    function: InfluenceFunction | None,
    samples: Dataset,
    targets: Dataset,
    features: Features,
    target_features: Features,
    pairs: LabelledPairs,
    folder: Path,
    prior: InfluenceNetwork | None,
) -> InfluenceNetwork:
    """Measure the fidelity of a network that learned from a part of the samples on the others; then learn from all.

    Args:
        config: the run's.
        function: the influence function; None where the labels came from elsewhere.
        samples: the pool.
        targets: the targets.
        features: of the pool, (n_pool, d).
        target_features: of the targets, (n_target, d).
        pairs: the labels.
        folder: the run folder, which gets `fidelity.json` and `network`; what is there is not computed again.
        prior: a network to start from.
    """
    place = folder / "network"
    if function is not None:
        origin = describe(function) | {"pointwise": is_pointwise(function)}
    else:
        origin = {"name": Path(str(config.labels_from)).name, "pointwise": pairs.pointwise}
    train, held_out = pairs.split(
        seed=config.seed,
        held_out=planned_held_out(folder),
        pool_groups=_duplicate_groups(samples, pairs.pool_index),
        target_groups=_duplicate_groups(targets, pairs.target_index),
    )
    fit = functools.partial(_fitted, config, features, target_features, pointwise=origin["pointwise"], prior=prior)
    if not (folder / "fidelity.json").exists():
        if prior is not None:
            held_out = _new_to(prior, features, target_features, train, held_out)
        measured = measure_fidelity(fit(train), features, target_features, held_out, train)
        write_json(folder / "fidelity.json", {"influence": origin["name"], **dataclasses.asdict(measured)})
    if place.exists():
        return InfluenceNetwork.from_pretrained(place)
    network = fit(pairs)
    network.description_ = {
        "features": dataclasses.asdict(feature_sources(config)),
        "influence": origin,
        "pairs": len(pairs),
    }
    with atomic_write(place) as temporary:
        network.save_pretrained(temporary)
    return network


def learn_more(
    config: Config,
    features: Features,
    target_features: Features,
    network: InfluenceNetwork,
    labels: LabelledPairs | None,
    prior: InfluenceNetwork | None,
    measured: LabelledPairs,
) -> InfluenceNetwork:
    """The network that learned from what was measured since, too; of the recipe "paper", the one that there is.

    Args:
        config: the run's.
        features: of the pool, (n_pool, d).
        target_features: of the targets, (n_target, d).
        network: what the run estimates with.
        labels: what it learned from in this run; None where it learned before.
        prior: what it started from in this run.
        measured: the new labels.
    """
    if network.recipe == "paper":
        return network
    if labels is None:
        labels, prior = measured, network
    else:
        labels = LabelledPairs.joined([labels.without(measured), measured])
    pointwise = bool(network.options["pointwise"])
    return _fitted(config, features, target_features, labels, pointwise=pointwise, prior=prior)


def _fitted(
    config: Config,
    features: Features,
    target_features: Features,
    pairs: LabelledPairs,
    *,
    pointwise: bool,
    prior: InfluenceNetwork | None,
) -> InfluenceNetwork:
    network = InfluenceNetwork(config.recipe, pointwise=pointwise, seed=config.seed)
    return network.fit(features, target_features, pairs, prior=prior)


def _new_to(
    prior: InfluenceNetwork,
    features: Features,
    target_features: Features,
    train: LabelledPairs,
    held_out: LabelledPairs,
) -> LabelledPairs:
    """The held-out pairs but those of a sample kept from the network that its prior learned from: it is not new."""
    if not len(held_out):
        return held_out
    rows, row = np.unique(held_out.pool_index, return_inverse=True)
    columns, column = np.unique(held_out.target_index, return_inverse=True)
    pool, target = prior.learned_from(features[rows], target_features[columns])
    pool &= ~np.isin(rows, train.pool_index)
    target &= ~np.isin(columns, train.target_index)
    if pool.any() or target.any():
        _log.warning(
            "fidelity: %d samples were to be held out, but the network that this one starts from has learned from them;"
            " it is judged on the others (another --seed holds out others)",
            int(pool.sum() + target.sum()),
        )
    return held_out.take(~(pool[row] | target[column]))


def _duplicate_groups(samples: Dataset, index: np.ndarray) -> np.ndarray:
    """A group number for each sample, (n,) int64; labelled samples with the same text share one."""
    groups = np.arange(len(samples))
    first: dict[tuple[str, str], int] = {}
    for i in np.unique(index):
        row = samples[int(i)]
        groups[i] = first.setdefault((row["prompt"], row["response"]), int(i))
    return groups


def earlier_network(config: Config, function: InfluenceFunction | None) -> InfluenceNetwork | None:
    """The network that a run takes, or starts from, where it names one.

    Raises:
        ConfigError: it cannot do what the config asks of it.
        ModelError: there is no such network.
    """
    if config.network is None:
        return None
    network = InfluenceNetwork.from_pretrained(network_folder(config.network))
    if network.recipe == "paper" and (config.learns or config.probes is not None):
        what = "which no other can start from" if config.learns else "which --probes cannot complete"
        raise ConfigError(f"the network in {config.network} is the paper's, {what}", "take another network")
    if not config.learns:
        _check_same_influence(network, function)
    return network


def _check_same_influence(network: InfluenceNetwork, function: InfluenceFunction | None) -> None:
    """Refuse to complete a learned network's influence with another's."""
    learned = network.description_.get("influence", {})
    asked = {} if function is None else describe(function)
    for name in ("name", "model", "models", "encoder", "preconditioned"):
        if name in learned and name in asked and _carried(learned[name]) != _carried(asked[name]):
            option = {"name": "influence", "models": "model", "preconditioned": "influence-option preconditioned="}
            value = ",".join(learned[name]) if isinstance(learned[name], list) else learned[name]
            raise ConfigError(
                f"the network learned the {name} {learned[name]!r} of the influence,"
                f" and {asked[name]!r} would be measured",
                f"give --{option.get(name, name)} {value}".replace("= ", "="),
            )


def _carried(model: object) -> object:
    """The models that come with nncift have two names."""
    return "embedded" if model in (DEFAULT_MODEL, DEFAULT_ENCODER) else model
