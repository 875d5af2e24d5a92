"""What a model in a folder of the user's is: a hash of the files that it is loaded from.

A model of the hub and the embedded one are known by their names; a folder such as `./checkpoint` may hold other weights
tomorrow. The weights are read as a whole, which takes about as long as loading them, once: while sizes and times of the
files stay as they were, so does their hash. Other times alone, as of a copy on another machine, are no change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nncift.errors import ModelError
from nncift.run.storage.checksums import content_hash
from nncift.run.storage.files import fingerprint


def is_own_folder(model: Any) -> bool:
    """Whether a model is given as a folder, not as a hub id, "embedded" or an object."""
    return isinstance(model, str) and model not in ("", "embedded") and Path(model).expanduser().is_dir()


def identify(model: str, before: Mapping[str, str] | None = None) -> dict[str, str]:
    """A hash of the files' content, and one of their sizes and times.

    Args:
        model: the folder.
        before: an earlier answer, whose content holds while sizes and times are the same.

    Raises:
        ModelError: a file cannot be read.
    """
    files = _files(Path(model).expanduser())
    try:
        states = {name: path.stat() for name, path in files.items()}
        stamp = fingerprint([[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in states.items()])
        if before is not None and before["stamp"] == stamp:
            return dict(before)
        content = fingerprint([[name, content_hash(path)] for name, path in files.items()])
    except OSError as error:
        problem = f"the files of the model {model!r} cannot be read ({error.strerror})"
        raise ModelError(problem, "make them readable") from error
    return {"content": content, "stamp": stamp}


def _files(folder: Path) -> dict[str, Path]:
    """The files that a model is loaded from, by their names in the folder; texts about it are none of them.

    Other folders inside are not looked into, as they may be checkpoints of a training or our own output, save those
    of a sentence encoder's modules.
    """
    parts = [folder, *(folder / name for name in _modules(folder))]
    files = {path for part in parts if part.is_dir() for path in part.iterdir() if path.is_file()}
    read = sorted(path for path in files if path.suffix != ".md" and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path for path in read}


def _modules(folder: Path) -> list[str]:
    """The folders of a sentence encoder's modules."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return [str(module["path"]) for module in modules if ".." not in str(module["path"])]
    except (OSError, ValueError, TypeError, KeyError):
        return []
