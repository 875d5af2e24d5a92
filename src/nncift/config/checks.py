"""Options that do not go together, and values out of range: refused when a `Config` is made, before any work."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING

from nncift.data.schemas import schemas_for
from nncift.errors import ConfigError
from nncift.run.options.amounts import parse_labels

if TYPE_CHECKING:
    from nncift.config.config import Config


def check_given(config: Config) -> None:
    """Refuse empty texts, as of a shell variable that is not set."""
    for field in fields(config):
        value = getattr(config, field.name)
        if any(isinstance(text, str) and not text for text in (value if isinstance(value, tuple) else (value,))):
            raise ConfigError(f"`{field.name}` is empty", "give a value, or leave it out")


def check_texts(config: Config) -> None:
    """Refuse texts that no file system or JSON takes."""
    if not config.pools or "" in config.pools:
        raise ConfigError("`pool` is empty", "give a file, a folder or a hub id")
    for field in fields(config):
        value = getattr(config, field.name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and text != text.encode("utf-8", "ignore").decode():
                raise ConfigError(f"`{field.name}` {text!r} is not UTF-8", "rename it")


def check_together(config: Config) -> None:
    """Refuse options that do not go together, and numbers out of range; the config is complete.

    Raises:
        ConfigError: the first of them, and what to give instead.
    """
    _check_learning(config)
    for name, option in (("eta", "target"), ("nu", "known"), ("known_split", "known"), ("target_split", "target")):
        if getattr(config, name) is not None and getattr(config, option) is None:
            raise ConfigError(f"`{name}` {getattr(config, name)} needs `{option}`", f"give `{option}`, or leave it out")
    _check_execution(config)
    _check_growing(config)
    _check_first_cut(config)
    _check_features(config)
    schemas_for(config.prompt_field, config.response_field, config.messages_field)
    if config.exclude_fields and not config.exclude:
        raise ConfigError("`exclude_fields` names columns of test sets, and there is none", "give `exclude` too")
    _check_numbers(config)


def _refuse(config: Config, reason: str, *names: str) -> None:
    """Refuse options that do not go with another."""
    if taken := [name for name in names if getattr(config, name)]:
        raise ConfigError(f"{reason}, so `{taken[0]}` cannot be given with it", "leave one of them out")


def _check_learning(config: Config) -> None:
    """Labels, the network fitted to them, and what is measured beside."""
    if config.network is not None and not config.measures:
        _refuse(config, "`network` computes no influence", "influence", "influence_options")
    if config.labels_from is not None:
        reason = "`labels_from` provides the exact values"
        _refuse(config, reason, "network", "influence", "influence_options", "labels", "probes", "verify")
    if config.recipe == "paper":
        _refuse(config, 'the `recipe` "paper" has no prior and no posterior variance', "network", "probes")
    if config.labels is not None and not (config.in_rounds or config.unlabelled):
        parse_labels(config.labels)
    if config.fidelity is not None and not (config.in_rounds and 0 < config.fidelity <= 1):
        raise ConfigError(f"`fidelity` {config.fidelity} needs `labels` auto and a number above 0 and at most 1")


def _check_execution(config: Config) -> None:
    """Options of one executor beside another."""
    on_ray = [name for name in ("ray_address", "gpus_per_worker") if getattr(config, name) is not None]
    if on_ray and config.executor != "ray":
        raise ConfigError(
            f"`{on_ray[0]}` is for `executor` ray, not {config.executor}", "give one of them, or leave both out"
        )
    several = [name for name in ("workers", "cpus_per_worker") if getattr(config, name) is not None]
    if several and config.executor in (None, "local"):
        raise ConfigError(
            f"`{several[0]}` is for other processes, and `executor` is local", "give `workers` or an `executor`"
        )


def _check_growing(config: Config) -> None:
    """Appended data, and a selection that is kept."""
    if config.append and config.from_run is None:
        raise ConfigError("`append` adds to the pool of an earlier run", "name it with `from_run`")
    if config.keep_selection and not config.append:
        raise ConfigError(
            "`keep_selection` keeps what was selected before data were added, and there is no `append`",
            "give `append`, or leave it out; a larger `budget` continues a selection by itself",
        )
    if config.keep_selection:
        _refuse(config, "`keep_selection` adds to a selection", "quota", "cap", "verify")


def _check_first_cut(config: Config) -> None:
    """The first cut, and what needs the samples that it leaves out."""
    if config.first_cut is None and config.first_cut_encoder is not None:
        raise ConfigError("`first_cut_encoder` is the encoder of `first_cut`", "give both, or leave it out")
    if config.first_cut is not None:
        _refuse(config, "`first_cut` leaves most samples out", "quota", "cap", "labels_from", "keep_selection")
        if config.verify is not None and config.verify > config.first_cut:
            problem = f"`verify` {config.verify:g} is more than the {config.first_cut:g} budgets that `first_cut` keeps"
            raise ConfigError(problem, "lower it, or raise `first_cut`")


def _check_numbers(config: Config) -> None:
    """Numbers out of range."""
    least = {"batch_size": 1, "max_length": 16, "probes": 1, "phases": 2, "seed": 0, "verify": 1, "eta": 0, "nu": 0}
    least |= {"redundancy": 0, "workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0, "first_cut": 1}
    for name, lowest in least.items():
        value = getattr(config, name)
        if value is not None and not lowest <= value < math.inf:
            raise ConfigError(f"`{name}` is {value}", f"give a number of at least {lowest}")
    if config.near_duplicates is not None and not 0 < config.near_duplicates <= 1:
        fix = "give a cosine above 0 and at most 1, such as 0.95"
        raise ConfigError(f"`near_duplicates` is {config.near_duplicates}", fix)
    if config.seed >= 2**32:
        raise ConfigError(f"`seed` is {config.seed}", "give a number below 2^32")


def _check_features(config: Config) -> None:
    """The network's features: names, and files that lack a side."""
    names, own = config.feature_names, config.own_features
    if config.encoder is not None and names and "sentence" not in names:
        raise ConfigError("`encoder` was given, but `features` has no sentence", "leave one of them out")
    if len(set(names)) < len(names) or any(not name for name in names):
        raise ConfigError(f"`features` {config.features!r} names one twice, or none", "give each once")
    if "gradient-sketch" in names and "lm" not in names:
        problem = f"`features` {config.features!r} has gradient-sketch, which comes from the pass of lm"
        raise ConfigError(problem, "give lm beside it")
    if len(config.all_own_features) > 1:
        raise ConfigError(
            f"`features` {config.features!r} names several of your own",
            "join them into one file; beside it, sentence, lm and gradient-sketch can be given",
        )
    if config.target_features is not None and (own is None or config.target is None):
        raise ConfigError("`target_features` needs `features` of your own and `target`")
    if (own or "").endswith(".npy") and config.target and not config.target_features:
        raise ConfigError("`features` is a file of the pool's features", "give `target_features` too")
    if (own or "").endswith(".npy") and config.known:
        raise ConfigError("`features` is a file of the pool's features, and `known` has none", "give a column")
