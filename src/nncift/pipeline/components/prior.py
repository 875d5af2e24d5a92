"""The fitted network that a run names: to estimate with, or as the prior of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nncift.errors import ConfigError
from nncift.estimator.network import InfluenceNetwork
from nncift.models.locate import network_folder
from nncift.models.spec import DEFAULT_ENCODER, DEFAULT_MODEL

if TYPE_CHECKING:
    from nncift.config import Config
    from nncift.influence.base import InfluenceFunction


def load_prior(config: Config) -> InfluenceNetwork | None:
    """The network that a run names, to estimate with or to start from.

    Raises:
        ConfigError: it cannot do what the config asks of it.
        ModelError: there is no such network.
    """
    if config.network is None:
        return None
    network = InfluenceNetwork.from_pretrained(network_folder(config.network))
    if network.recipe == "paper" and (config.learns or config.probes is not None):
        what = "be a prior" if config.learns else "be conditioned on `probes`"
        raise ConfigError(
            f"the network in {config.network} is the paper's, which cannot {what}", "take another network"
        )
    return network


def check_same_influence(network: InfluenceNetwork, function: InfluenceFunction) -> None:
    """Refuse to complete a fitted network's influence with another's."""
    fitted, asked = network.description_.get("influence", {}), function.describe()
    options = {"name": "influence", "models": "model", "preconditioned": "influence_options"}
    for name in ("name", "model", "models", "encoder", "preconditioned"):
        if name in fitted and name in asked and _embedded(fitted[name]) != _embedded(asked[name]):
            value = fitted[name]
            if isinstance(value, list):  # selectit's models
                value = ",".join(str(model["model"]) for model in value)
            raise ConfigError(
                f"the network was fitted to influence with the {name} {fitted[name]!r}, and {asked[name]!r} would be"
                " measured",
                f"give `{options.get(name, name)}` {f'{name}=' if name == 'preconditioned' else ''}{value}",
            )


def _embedded(model: object) -> object:
    """The models that come as packages have two names."""
    return "embedded" if model in (DEFAULT_MODEL, DEFAULT_ENCODER) else model
