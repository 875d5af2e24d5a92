"""From a Config to what it names: samples, encoder, influence function, learned network, budget.

Shared by the run itself and by `--dry-run`, which plans it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import DEFAULT_INFLUENCE, Config, parse_budget
from nncift.data.pool import PoolFacts, read_pool
from nncift.data.sources import SourceLike
from nncift.errors import ConfigError
from nncift.features.sources import feature_sources
from nncift.influence.base import InfluenceFunction, is_pointwise, is_relative
from nncift.influence.catalogue import BUILT_IN
from nncift.influence.options import make_function, nested, read_options
from nncift.models.loading import check_device
from nncift.models.locate import PRETRAINED, find_model
from nncift.run.files import fingerprint, read_array, write_array
from nncift.run.registry import resolve

if TYPE_CHECKING:
    from datasets import Dataset


def make_config(
    pool: SourceLike,
    *,
    target: SourceLike | None = None,
    influence: str | InfluenceFunction | None = None,
    **options: Any,
) -> Config:
    """The Config of a call of `select`; objects are recorded by their fingerprint or description.

    Raises:
        ConfigError: an option is unknown or has a value that cannot be used.
    """
    known = {f.name for f in dataclasses.fields(Config)}
    for name in options:
        if name not in known:
            raise ConfigError(f"there is no option {name!r}", f"known: {', '.join(sorted(known))}")
    for name in ("budget", "labels", "output", "labels_from", "features", "target_features", "network"):
        if options.get(name) is not None:
            options[name] = str(options[name])
    if isinstance(exclude := options.get("exclude", ()), (str, Path)):
        options["exclude"] = (str(exclude),)
    else:
        options["exclude"] = tuple(str(path) for path in exclude)
    config = Config(
        _source_name(pool),
        target=None if target is None else _source_name(target),
        influence=influence if influence is None or isinstance(influence, str) else json.dumps(describe(influence)),
        **options,
    )
    if config.influence_options and not isinstance(influence, str | None):
        raise ConfigError("influence_options are for a function given by its name", "give them to the object itself")
    return dataclasses.replace(config, influence_options=_plain_options(config))


def _plain_options(config: Config) -> dict[str, Any] | None:
    """The influence function's own options in one form, however they were given, ready for JSON."""
    if not config.influence_options:
        return None
    kind, name = _named_influence(config)
    values = read_options(kind, config.influence_options, name=name)
    return dict(json.loads(json.dumps(nested(values), default=str)))


def _source_name(source: SourceLike) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return f"dataset {getattr(source, '_fingerprint', None) or fingerprint(list(source))}"


def describe(function: InfluenceFunction) -> dict[str, Any]:
    """JSON-able facts that tell one influence function from another."""
    return dict(function.describe()) if hasattr(function, "describe") else {"name": function.name}


def make_influence(config: Config, influence: str | InfluenceFunction | None = None) -> InfluenceFunction:
    """The influence function that the config names, with the options that it gives, or the object itself.

    Raises:
        ConfigError: there is no such function, or an option of its own cannot be used.
    """
    if influence is not None and not isinstance(influence, str):
        return influence
    kind, name = _named_influence(config)
    return make_function(kind, config, name=name)


def _named_influence(config: Config) -> tuple[Any, str]:
    """What makes the influence function that the config names, and that name."""
    name = config.influence or DEFAULT_INFLUENCE
    return resolve(name, BUILT_IN, "nncift.influence"), name


def read_samples(
    config: Config, source: SourceLike, name: str, folder: Path | None, *, progress: bool = False
) -> tuple[Dataset, PoolFacts]:
    """Read the pool (or, by `name`, the target) as the config says."""
    return read_pool(
        source,
        split=config.split if name == "pool" else config.target_split,
        prompt_field=config.prompt_field,
        response_field=config.response_field,
        exclude=config.exclude if name == "pool" else (),
        skip_bad_rows=config.skip_bad_rows,
        keep_duplicates=config.keep_duplicates,
        folder=folder,
        name=name,
        progress=progress,
    )


def check_budget(config: Config, samples: Dataset, folder: Path, *, own_target: bool) -> None:
    """Refuse a budget that the pool cannot fill, or verify, before anything costly.

    Args:
        config: the run's.
        samples: the pool.
        folder: the run folder, which keeps the samples' token counts.
        own_target: the pool is its own target.
    """
    amount, n_pool = parse_budget(config.budget), len(samples)
    if amount.kind == "tokens" and (held := int(token_counts(config, samples, folder).sum())) < amount.value:
        raise ConfigError(f"--budget {config.budget} is more than the pool's {held:,} tokens", "give a smaller one")
    if amount.kind == "count" and amount.value > n_pool:
        raise ConfigError(f"--budget {config.budget} is more than the pool's {n_pool} samples", "give a smaller one")
    if own_target and config.verify is not None and amount.kind != "tokens":
        check_verifiable(math.ceil(budget_count(config, n_pool) * config.verify), n_pool)


def check_verifiable(shortlist: int, n_pool: int) -> None:
    """Refuse a shortlist of the whole pool where that is its own target, for no sample is measured on itself."""
    if shortlist >= n_pool:
        raise ConfigError(
            f"--verify would measure {shortlist} of the pool's {n_pool} samples, and leaves none to measure them on",
            "lower --verify or --budget, or give a --target",
        )


def check_models(config: Config, function: InfluenceFunction | None) -> None:
    """Refuse a device, an encoder or a language model that does not exist, before anything costly.

    Raises:
        ConfigError: the device cannot be used.
        ModelError: which one, and why.
    """
    if config.device is not None:
        check_device(config.device)
    sources = feature_sources(config)
    if sources.encoder is not None:
        find_model(sources.encoder, "encoder")
    if sources.language_model is not None:
        find_model(sources.language_model, "language model")
    for model in getattr(function, "models", None) or (getattr(function, "model", None),):
        if isinstance(model, str):
            find_model(model, "language model")


def check_function(config: Config, function: InfluenceFunction, pool: Dataset, target: Dataset) -> None:
    """Refuse what the function cannot do with these samples, before anything costly.

    Raises:
        ConfigError: it cannot measure what the config asks for.
        DataError: a sample that may be measured cannot be.
    """
    if hasattr(function, "check"):
        function.check(pool, target)
    stages = {"probes": config.probes, "verify": config.verify, "labels auto": config.in_rounds or None}
    asked = [name for name, wanted in stages.items() if wanted is not None]
    if asked and is_relative(function):
        raise ConfigError(
            f"the values of {function.name} depend on all samples that are measured together, so --{asked[0]} cannot"
            " measure more of them later",
            "give --labels a number" if asked[0] == "labels auto" else "leave it out, and raise --labels instead",
        )
    if config.probes is not None and is_pointwise(function):
        raise ConfigError(
            f"{function.name} gives a sample one score for all targets, so --probes would measure every sample",
            "give --labels 100% instead",
        )
    if asked and hasattr(function, "check_lengths"):
        function.check_lengths(pool, target)


def learned_target(config: Config) -> Path | None:
    """The learned run whose targets a `--network` run without a target of its own takes over, if it has some."""
    if config.network in (None, PRETRAINED) or config.target is not None:
        return None
    learned = Path(config.network)
    return learned if (learned / "target" / "facts.json").exists() else None


def budget_count(config: Config, n_pool: int) -> int:
    """How many samples a budget given as fraction or count stands for; at least one."""
    amount = parse_budget(config.budget)
    return max(round(amount.value * n_pool), 1) if amount.kind == "fraction" else int(amount.value)


def token_counts(config: Config, samples: Dataset, folder: Path) -> np.ndarray:
    """Tokens of each sample's prompt and response under the language model's tokenizer, (n_pool,) int64."""
    path = folder / "tokens.npy"
    if not path.exists():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            find_model(config.models[0], "language model"), trust_remote_code=config.trust_remote_code
        )
        counts = [
            len(ids)
            for start in range(0, len(samples), 1024)
            for batch in (samples[start : start + 1024],)
            for ids in tokenizer(
                [f"{p}\n{r}" for p, r in zip(batch["prompt"], batch["response"], strict=True)], verbose=False
            )["input_ids"]
        ]
        write_array(path, np.array(counts, dtype=np.int64))
    tokens = np.asarray(read_array(path))
    if tokens.min() > parse_budget(config.budget).value:
        raise ConfigError(f"--budget {config.budget} is less than the shortest sample has", "give a larger one")
    return tokens
