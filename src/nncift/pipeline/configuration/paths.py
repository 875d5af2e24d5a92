"""Refusing a path that does not exist at once, before anything is imported that takes seconds.

Only what reads the data and the files can tell whether they are usable; this finds what is mistyped.
"""

from __future__ import annotations

from pathlib import Path

from nncift.config import Config
from nncift.data.sources.sources import is_possible, open_source
from nncift.errors import ConfigError, DataError


def check_paths(config: Config) -> None:
    """Look for every file and folder that the config names.

    Raises:
        ConfigError: there is no such file.
        DataError: a source is neither a file or folder nor a possible hub id.
    """
    pools = config.pools if config.pool else ()  # that of the earlier run
    for source in (*pools, config.target, config.known, *config.append, *config.exclude):
        if source is not None:
            path = Path(source).expanduser()
            if not (is_possible(path) and path.exists()):
                open_source(source)
    if config.labels_from is not None and not Path(config.labels_from).expanduser().exists():
        raise DataError("no such file", "check the path", file=config.labels_from)
    for option, features in (("features", config.own_features), ("target_features", config.target_features)):
        if features is not None and features.endswith(".npy") and not Path(features).expanduser().exists():
            raise ConfigError(f"`{option}`: there is no file {features}", "check the path")
