"""Files of a run: written under a temporary name, then renamed, so a finished file is complete.

Nothing here is pickled: JSON, Parquet, `.npy` without objects, and safetensors alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.errors import DependencyError, RunError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

PARTIAL = ".partial-"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    The block makes a file there, or a folder where `path` does not exist yet. A killed process leaves at
    most a `.partial-*` behind, which the next writer of `path` replaces.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    temporary = path.parent / f"{PARTIAL}{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        yield temporary
        for file in [temporary] if temporary.is_file() else temporary.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        remove(temporary)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem = f"no space left on the disk while writing {path}"
            raise RunError(problem, "free some and run the same command again") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise RunError(f"cannot write {path} ({error.strerror})", "choose another --output") from error
        raise
    except Exception:
        remove(temporary)
        raise


def link_or_copy(source: Path, destination: Path) -> None:
    """A second name of a file that never changes, where the file system can, else a copy."""
    try:
        destination.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, destination)


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    with contextlib.suppress(OSError):  # an error that led here is the one to report
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def refuse_damaged(path: Path, problem: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn these errors of reading `path` into a RunError: the path, the problem, and to remove the file."""
    try:
        yield
    except kinds as error:
        raise RunError(f"{path} {problem}", "remove the file and run again") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in their order."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read one of our JSON files; a missing or damaged one is a RunError, as of every `read_*` here."""
    with refuse_damaged(path, "is not valid JSON", ValueError):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"{path} does not exist", "is this the folder of a finished run?") from error


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as `.npy`."""
    import numpy as np

    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray:
    """Memory-map a `.npy` file, read-only."""
    import numpy as np

    with refuse_damaged(path, "is damaged: no array of numbers", ValueError, EOFError):
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, without a timestamp or anything else that differs between runs."""
    import pyarrow.parquet as pq

    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with refuse_damaged(path, "is damaged", pa.ArrowException):
        return pq.read_table(path)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays as safetensors."""
    from safetensors.numpy import save

    with atomic_write(path) as temporary:
        temporary.write_bytes(save(dict(tensors)))  # its own writer hides the system's error behind one of its own


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read arrays from safetensors."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    with refuse_damaged(path, "is damaged", SafetensorError):
        return load_file(path)


def fingerprint(*parts: object) -> str:
    """A short stable hash of JSON-able or bytes-like parts, to compare inputs by (not for security)."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        if not isinstance(part, (bytes, memoryview)):
            part = json.dumps(part, sort_keys=True, default=str).encode()
        data = bytes(part)
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def package_folder(module: str, install: str) -> Path:
    """The folder of an installed package, found without importing it; a DependencyError names how to install it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        problem = f"the embedded parts need the package {module.replace('_', '-')}"
        raise DependencyError(problem, f"pip install {install}")
    return Path(spec.submodule_search_locations[0])


def cache_folder() -> Path:
    """Where files are kept that are made once for all runs: `$NNCIFT_CACHE`, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nncift"
    return Path(os.environ.get("NNCIFT_CACHE", default))
