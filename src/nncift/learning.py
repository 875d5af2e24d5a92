"""From labels to the network of a run, and how far it can be trusted."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nncift.config import Config
from nncift.errors import ConfigError
from nncift.feature_sources import feature_sources
from nncift.fidelity import measure_fidelity
from nncift.influence import is_pointwise
from nncift.inputs import describe
from nncift.measuring import planned_held_out
from nncift.network import InfluenceNetwork
from nncift.pairs import LabelledPairs
from nncift.storage import atomic_write, write_json

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.features import Features
    from nncift.influence import InfluenceFunction


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


def _duplicate_groups(samples: Dataset, index: np.ndarray) -> np.ndarray:
    """A group number for each sample, (n,) int64; labelled samples with the same text share one."""
    groups = np.arange(len(samples))
    first: dict[tuple[str, str], int] = {}
    for i in np.unique(index):
        row = samples[int(i)]
        groups[i] = first.setdefault((row["prompt"], row["response"]), int(i))
    return groups


def check_same_influence(network: InfluenceNetwork, function: InfluenceFunction | None) -> None:
    """Refuse to complete a learned network's influence with another's."""
    learned = network.description_.get("influence", {})
    asked = {} if function is None else describe(function)
    for name in ("name", "model", "models", "encoder"):
        if name in learned and name in asked and learned[name] != asked[name]:
            option = {"name": "influence", "models": "model"}.get(name, name)
            raise ConfigError(
                f"the network learned the {name} {learned[name]!r} of the influence,"
                f" and {asked[name]!r} would be measured",
                f"give --{option} {learned[name]}",
            )
