"""The config of a call: options as they are given, and what it takes from earlier runs.

`from_run` names a run whose options hold unless others are given. `network` names one whose network is applied. Test
sets that either excluded are excluded from the new subset too: a network or an option must not bring a test row in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nncift.config import DEFAULT_INFLUENCE, EXECUTION, Config
from nncift.data.sources.memory import is_table
from nncift.data.sources.sources import SourceLike, is_several, open_source
from nncift.errors import ConfigError, DataError, RunError
from nncift.influence.base import InfluenceFunction, as_function
from nncift.influence.catalogue import BUILT_IN, DRAWN, is_factored
from nncift.influence.options import nested, read_options
from nncift.models.locate import PRETRAINED
from nncift.pipeline.components.precision import stored_precision
from nncift.pipeline.configuration.options import ESTIMATION, as_stored
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.naming import IN_MEMORY, folder_beside
from nncift.run.options.registry import resolve
from nncift.run.storage.files import fingerprint, read_json

_OWN = ("pool", "output", "from_run", "no_cache", "keep_checkpoints", *EXECUTION)  # never inherited
_GROWING = ("append", "keep_selection")  # nor these, which name the folder
_CONSENT = ("trust_remote_code",)  # nor this: the run may be another person's
_READ_BY = ("exclude", "exclude_fields", "turns", "keep_duplicates", "influence", "model", "max_length", "wording")
_OF_OBJECTIVES = ("known", "known_split", "objective", "eta", "nu", "redundancy", "weights")  # and not of random rows
_REPLACES = {  # option to those of the earlier run that it takes the place of
    "influence": ("influence_options", "labels_from"),
    "labels": ("labels_from", "fidelity"),
    "labels_from": ("labels", "fidelity", "influence", "influence_options", "network", "probes", "verify"),
    "network": ("labels", "labels_from", "fidelity", "influence", "influence_options"),
    "features": ("target_features",),
    "target": ("target_split", "target_features"),
    "append": ("split",),
    "known": ("known_split",),
}


def make_config(
    pool: SourceLike | None = None,
    *,
    target: SourceLike | None = None,
    known: SourceLike | None = None,
    append: SourceLike | None = None,
    influence: str | InfluenceFunction | None = None,
    **options: Any,
) -> Config:
    """The Config of a call of `select`; objects are recorded by their fingerprint or description.

    Raises:
        ConfigError: an option is unknown or has a value that cannot be used.
    """
    fields = {f.name for f in dataclasses.fields(Config)}
    for name in options:
        if name not in fields:
            raise ConfigError(f"there is no option {name!r}", f"known: {', '.join(sorted(fields))}")
    options = {name: as_stored(name, value) for name, value in options.items()}
    for name, value in options.items():  # an array or a table does not even compare
        if not isinstance(value, str | int | float | tuple | list | dict | None):
            raise ConfigError(f"`{name}` is of type {type(value).__name__}", "give text, a path or a number")
    tests = options.get("exclude", ())
    if not (isinstance(tests, tuple) and all(isinstance(test, str) for test in tests)):
        held = "data in memory" if isinstance(tests, tuple | list | dict) else repr(tests)[:100]
        raise ConfigError(f"`exclude` is {held}", "give the path or hub id of a test set, or a tuple of several")
    given = influence if isinstance(influence, str | None) else json.dumps(as_function(influence).describe())
    if options.get("influence_options") and not isinstance(influence, str | None):
        raise ConfigError("`influence_options` are for a function given by its name", "give them to the object itself")
    sides: dict[str, Any] = {
        name: None if source is None else _source_name(name, source)
        for name, source in (("target", target), ("known", known))
    }
    if append is not None and not (isinstance(append, tuple) and not append):
        sides["append"] = _several(_source_name("append", append))
    named = {name: value for name, value in {"influence": given, **sides}.items() if value is not None} | options
    pool_name = None if pool is None and options.get("from_run") is not None else _source_name("pool", pool)
    if options.get("from_run") is not None:
        pool_name, named = inherited(str(options["from_run"]), named, influence, pool=pool_name)
    named["exclude"] = _joined(named.get("exclude", ()), excluded_by(named.get("network")))
    assert pool_name is not None
    config = Config(pool_name, **named)
    return dataclasses.replace(config, influence_options=_plain_options(config))


def _plain_options(config: Config) -> dict[str, Any] | None:
    """The influence function's own options in one form, however they were given, ready for JSON."""
    if not config.influence_options:
        return None
    name = config.influence or DEFAULT_INFLUENCE
    values = read_options(resolve(name, BUILT_IN, "nncift.influence"), config.influence_options, name=name)
    return dict(json.loads(json.dumps(nested(values), default=str)))


def _source_name(side: str, source: Any) -> str | tuple[str, ...]:
    if isinstance(source, (str, Path)):
        return str(source)
    if is_several(source):
        return tuple(map(str, source))
    if is_table(source) and not hasattr(source, "_fingerprint"):
        return f"{IN_MEMORY}{open_source(source).stamps[0]['xxh3_128']}"
    if isinstance(source, bytes) or not hasattr(source, "__iter__"):
        raise ConfigError(f"`{side}` is {source!r}", "give a path, a hub id, a dataset or a list of dicts")
    return f"{IN_MEMORY}{getattr(source, '_fingerprint', None) or fingerprint(list(source))}"


def inherited(
    run: str,
    given: Mapping[str, Any],
    influence: str | InfluenceFunction | None = None,
    *,
    pool: str | tuple[str, ...] | None = None,
) -> tuple[str | tuple[str, ...], dict[str, Any]]:
    """The pool and the options of an earlier run with those that are given in their place.

    Args:
        run: the folder of the earlier run.
        given: the options that are given, of which `exclude` is added to the earlier run's.
        influence: the influence function where it is given as an object, which `given` has the description of.
        pool: that is given; the earlier run's, with what was appended to it, unless it is.

    Raises:
        ConfigError: an option of the earlier run cannot be used again, or would change samples that are kept.
        RunError: the folder is not a run's.
    """
    names = {field.name for field in dataclasses.fields(Config)} - {*_OWN, *_GROWING, *_CONSENT}
    earlier = earlier_options(run)
    stored = {name: value for name, value in earlier.items() if name in names}
    if "device" not in given:  # what it computed holds in its precision alone
        stored["dtype"] = stored_precision(earlier)
    replaced = {other for name in given for other in _REPLACES.get(name, ())}
    pools = (*_several(earlier["pool"]), *earlier.get("append", ()))
    if pool is not None and "append" in given and _several(pool) != pools:
        raise ConfigError(f"`append` adds to the pool of {run}, and `pool` is another", "leave `pool` out")
    if "labels" in given and stored.get("network") == PRETRAINED:  # which `labels` 0 meant in earlier versions
        replaced.add("network")
    verified = (given.get("verify") or stored.get("verify")) is not None
    if _is_zero(given.get("labels")) and not (verified or _is_factored(stored, None)):  # gradient-sketch stands in
        replaced |= {"influence_options", *(["influence"] if _is_object(stored.get("influence")) else [])}
    options = {name: value for name, value in stored.items() if name not in replaced} | dict(given)
    if _is_unlabelled(options) or _is_factored(options, influence):  # an earlier run may have estimated
        kept = set(given) if _is_factored(options, influence) else {*given, "labels", "verify"}
        options = {name: value for name, value in options.items() if name in kept or name not in ESTIMATION}
    if given.get("influence") in DRAWN:  # rows to compare with: no objective shapes them, and their gains are random
        options = {name: value for name, value in options.items() if name not in _OF_OBJECTIVES or name in given}
    options["exclude"] = _joined(stored.get("exclude") or (), given.get("exclude") or ())
    if "append" in given or (pool is None and earlier.get("append")):
        _refuse_changed(run, stored, options)
    options.setdefault("output", _folder_name(run, given))
    if Path(str(options["output"])).resolve() == Path(run).resolve():
        raise ConfigError(f"`output` {options['output']} is the run that `from_run` names", "choose another `output`")
    if "influence" not in given and _is_object(options.get("influence")):
        raise ConfigError(f"the influence function of {run} was an object", "give it again: `influence`")
    _refuse_missing(run, stored.get("exclude") or (), "its subset")
    return (pools[0] if len(pools) == 1 else pools) if pool is None else pool, options


def earlier_options(run: str) -> dict[str, Any]:
    """The options in the config of a run.

    Raises:
        RunError: the folder is not a run's.
    """
    config = RunFolder(run).config
    stored = read_json(config)
    if not isinstance(stored, dict) or "pool" not in stored or "test" in stored:  # as of an evaluation or comparison
        raise RunError(f"{config} is not the config of a run", "give the folder of one that nncift select has written")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}


def _refuse_changed(run: str, stored: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse options by which samples were read that are kept as they are."""
    defaults = {"influence": DEFAULT_INFLUENCE}
    for name in _READ_BY:
        before, now = (some.get(name) or defaults.get(name) for some in (stored, options))
        if (before or None) != (now or None) and not (name == "influence" and now in DRAWN):
            raise ConfigError(
                f"the samples of {run} are kept as they were read there, so `{name}` cannot be changed now",
                "leave it out, or choose again from all data: name them as `pool`, without `append`",
            )


def _several(name: str | tuple[str, ...]) -> tuple[str, ...]:
    return (name,) if isinstance(name, str) else name


def _is_factored(options: Mapping[str, Any], influence: str | InfluenceFunction | None) -> bool:
    """Whether a run with these options computes influence exactly for every pair."""
    if not isinstance(influence, str | None):
        return as_function(influence).traits.factored
    if options.get("influence") is None and any(options.get(name) for name in ("network", "labels_from")):
        return False
    name = options.get("influence") or DEFAULT_INFLUENCE
    return not _is_object(name) and is_factored(str(name))


def _is_unlabelled(options: Mapping[str, Any]) -> bool:
    """Whether these options are without labels and network, see `Config.unlabelled`."""
    return _is_zero(options.get("labels")) and not any(options.get(name) for name in ("network", "probes"))


def _is_zero(labels: Any) -> bool:
    return str(labels).strip() == "0"


def _is_object(influence: Any) -> bool:
    """Whether the influence function was given as an object, which a config describes."""
    return str(influence).startswith("{")


def excluded_by(network: str | None) -> tuple[str, ...]:
    """The test sets that the run of a network excluded; none of a network that is not in a run's folder.

    Raises:
        ConfigError: one of them is gone.
    """
    if network in (None, PRETRAINED):
        return ()
    path = Path(network).expanduser()
    run, outer = RunFolder(path), RunFolder(path.parent)
    if not run.is_run:
        if path != outer.network or not outer.is_run:
            return ()
        run = outer
    tests = tuple(read_json(run.config).get("exclude") or ())
    _refuse_missing(run.path, tests, "the samples of its network")
    return tests


def sources_of(config: Config, given: Mapping[str, SourceLike | None]) -> dict[str, SourceLike | None]:
    """Where the samples of each side come from: as given, else as the config names it; None for what was in memory.

    Of a pool that data are appended to, these alone. None also for one that data were appended to in the earlier run.
    """
    sources: dict[str, SourceLike | None] = {}
    for side in ("pool", "target", "known"):
        option = "append" if side == "pool" and config.append else side
        name: str | tuple[str, ...] | None = getattr(config, option)
        if isinstance(name, tuple) and len(name) == 1:
            name = name[0]
        in_memory = isinstance(name, str) and name.startswith(IN_MEMORY) and not Path(name).exists()
        sources[side] = given[option] if given.get(option) is not None else None if in_memory else name
    omitted = config.from_run is not None and given.get("pool") is None and not config.append
    if omitted and earlier_options(str(config.from_run)).get("append"):  # no source gives this pool
        sources["pool"] = None
    return sources


def _refuse_missing(run: str | Path, tests: Iterable[str], what: str) -> None:
    for test in tests:
        try:
            open_source(test, prefer="test")
        except DataError as error:
            raise ConfigError(
                f"{run} excluded {test} from {what}, and that cannot be read now ({error.problem})",
                "restore it, so that its rows stay out of the new subset too",
            ) from error


def _joined(*lists: Sequence[str]) -> tuple[str, ...]:
    """All of them, each once."""
    return tuple(dict.fromkeys(name for names in lists for name in names))


def _folder_name(run: str, given: Mapping[str, Any]) -> str:
    """A folder beside the earlier run, named after the options that differ."""
    changed = {name: value for name, value in given.items() if name not in _OWN and value not in (None, ())}
    return folder_beside(run, changed)
