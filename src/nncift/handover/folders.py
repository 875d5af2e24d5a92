"""Folders that are written as a whole: a new one, or one of ours with nothing else in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nncift.errors import RunError
from nncift.run.storage.files import atomic_write, read_json, write_json
from nncift.run.storage.refusals import refuse_damaged

_MANIFEST = "nncift.json"


def new_folder(path: str | os.PathLike[str]) -> Path:
    """A folder that may be written or replaced.

    Raises:
        RunError: it is a file, the working folder, or holds what was not written by `replaced_folder`.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise RunError(f"{path!r} is not a folder", "give the one to write")
    folder = Path(path)
    if folder.is_symlink():
        folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file", "give a folder")
    own = _own(folder)
    for file in folder.rglob("*"):
        if not file.is_dir() and (name := file.relative_to(folder).as_posix()) not in own:
            raise RunError(f"{folder} is not empty (it holds {name!r})", "give a new folder")
    here = Path.cwd()
    if folder.resolve() in (here, *here.parents):  # the present folder would be another than the shell's
        raise RunError(f"{folder} is the folder that you are in, which cannot be replaced", "give one inside it")
    return folder


@contextlib.contextmanager
def replaced_folder(folder: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """Yield a folder to write in; it takes the place of `folder`, with a list of its files, when the block ends.

    Args:
        folder: from `new_folder`.
        facts: that the list begins with.
    """
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        yield temporary
        files = sorted(file.relative_to(temporary).as_posix() for file in temporary.rglob("*") if file.is_file())
        write_json(temporary / _MANIFEST, {**facts, "files": files})


def _own(folder: Path) -> set[str]:
    """The files that `replaced_folder` wrote there."""
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        return set()
    with refuse_damaged(manifest, "is damaged", KeyError, TypeError):
        return {_MANIFEST, *read_json(manifest)["files"]}
