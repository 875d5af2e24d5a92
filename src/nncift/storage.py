"""Files of a run: written under a temporary name, then renamed, so a finished file is complete.

The run folder is the state of a run: a stage whose file exists is done. Nothing here is pickled:
JSON, Parquet, `.npy` without objects, and safetensors alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.errors import ConfigError, NNCIFTError, RunError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_TEMPORARY = ".partial-"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    The block makes a file there, or a folder where `path` does not exist yet. A killed process leaves at
    most a `.partial-*` behind, which the next writer of `path` replaces.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    temporary = path.parent / f"{_TEMPORARY}{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        for file in [temporary] if temporary.is_file() else temporary.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        _remove(temporary)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"no space left on the disk while writing {path}", "free some and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise RunError(f"cannot write {path} ({error.strerror})", "choose another --output") from error
        raise
    except Exception:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # an error that led here is the one to report
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in their order."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read one of our JSON files.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist", "is this the folder of a finished run?") from error
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON", "remove the file and run again") from error


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as `.npy`."""
    import numpy as np

    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray:
    """Memory-map a `.npy` file, read-only.

    Raises:
        RunError: the file is not an array of numbers.
    """
    import numpy as np

    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (ValueError, EOFError) as error:
        raise RunError(f"{path} is damaged: no array of numbers", "remove the file and run again") from error


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, without a timestamp or anything else that differs between runs."""
    import pyarrow.parquet as pq

    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file of ours.

    Raises:
        RunError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except pa.ArrowException as error:
        raise RunError(f"{path} is damaged", "remove the file and run again") from error


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays as safetensors."""
    from safetensors.numpy import save

    with atomic_write(path) as temporary:
        temporary.write_bytes(save(dict(tensors)))  # its own writer hides the system's error behind one of its own


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read arrays from safetensors."""
    from safetensors.numpy import load_file

    return load_file(path)


def fingerprint(*parts: object) -> str:
    """A short stable hash of JSON-able or bytes-like parts, to tell inputs apart (not for security)."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        data = (
            bytes(part)
            if isinstance(part, (bytes, memoryview))
            else json.dumps(part, sort_keys=True, default=str).encode()
        )
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


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
