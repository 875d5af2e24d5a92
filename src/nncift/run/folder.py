"""The run folder: its lock, its log, and the config that it belongs to.

The folder is the state of a run: a stage whose file exists is done.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nncift.errors import ConfigError, NNCIFTError, RunError
from nncift.run.files import _TEMPORARY, _remove, read_json, write_json


@contextlib.contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Append what the logger "nncift" says inside the block to `run.log`: when which stage ended, what was halved."""
    logger, handler = logging.getLogger("nncift"), logging.FileHandler(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


@contextlib.contextmanager
def open_run(folder: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Hold the run folder's lock, and see to it that the folder belongs to `config`.

    The first call writes `config.json`; a later one compares with it. The operating system drops the
    lock when the process dies, so a killed run never blocks its successor. Of a run that is refused before any work,
    nothing is left.

    Raises:
        RunError: another process works in this folder, or it cannot be made.
        ConfigError: the folder belongs to another config; the message shows the fields that differ.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the run folder {folder} ({error.strerror})", "choose another --output") from error
    try:
        lock = FileLock(folder / ".lock", blocking=False)
        lock.acquire()
    except Timeout as error:
        raise RunError(f"another process is working in {folder}", "wait for it, or choose another --output") from error
    except OSError as error:
        raise RunError(f"cannot lock {folder} ({error.strerror})", "choose another --output") from error
    try:
        check_run(folder, config)
        begun = not (folder / "config.json").exists()
        if begun:
            write_json(folder / "config.json", dict(config))
        try:
            yield
        except NNCIFTError:
            if begun and not any((folder / costly).exists() for costly in ("features", "labels")):
                _empty(folder)
            raise
    finally:
        lock.release()


def _empty(folder: Path) -> None:
    """Leave nothing of a run that was refused before any work, so that its folder takes another config."""
    for path in folder.iterdir():
        if path.name != ".lock":
            _remove(path)


def check_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder that is not a run's, or another config's; writes nothing.

    Raises:
        RunError: the folder holds something else.
        ConfigError: the folder belongs to another config; the message shows the fields that differ.
    """
    path = folder / "config.json"
    if not path.exists():
        held = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        foreign = [name for name in held if not name.startswith((".lock", _TEMPORARY))]
        if foreign:
            raise RunError(
                f"{folder} is not empty and not a run of nncift (it holds {foreign[0]!r})", "choose another --output"
            )
        return
    stored = read_json(path)
    given = json.loads(json.dumps(dict(config)))
    fields = [name for name in {**stored, **given} if stored.get(name) != given.get(name)]
    if fields:
        shown = ", ".join(f"{name}: {stored.get(name)!r} there, {given.get(name)!r} now" for name in sorted(fields))
        raise ConfigError(f"{folder} holds a run with another config ({shown})", "choose another --output")
