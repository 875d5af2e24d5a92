"""Files of a run: written under a temporary name, then renamed, so a finished file is complete; and checked when read.

Nothing here is pickled: JSON, Parquet, `.npy` without objects, and safetensors alone. JSON holds null in place of NaN
and infinities. Every file of a run folder has a checksum (`checksums`), which all `read_*` functions compare.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tokenize import TokenError  # of a header that numpy parses as Python
from typing import TYPE_CHECKING, Any

from nncift.errors import DependencyError, RunError
from nncift.run.storage.checksums import DIFFERS, PARTIAL, Checksums, recorded, text_bytes, text_hash, verify
from nncift.run.storage.refusals import AGAIN, cannot_write, refuse_damaged

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_SEAL = "checksum"  # key of a sealed JSON file
_working: set[Path] = set()  # run folders that this process works in


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    The block makes a file there, or a folder, which replaces an incomplete one. A killed process leaves at most a
    `.partial-*` behind, which the next writer of `path` replaces.

    Raises:
        RunError: the disk is full, the folder cannot be written, or the run's folder was removed.
    """
    temporary = path.parent / f"{PARTIAL}{path.name}"
    try:
        _check_there(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        yield temporary
        files = _finished(temporary, path)
        for file in files.values():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        with recorded(path, files):
            if temporary.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
    except OSError as error:
        remove(temporary)
        _check_there(path)
        if (refused := cannot_write(path, error)) is not None:
            raise refused from error
        raise
    except Exception:
        remove(temporary)
        raise


def _finished(temporary: Path, path: Path) -> dict[Path, Path]:
    """Where each file will lie to where it lies now."""
    if temporary.is_file():
        return {path: temporary}
    return {path / file.relative_to(temporary): file for file in temporary.rglob("*") if file.is_file()}


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Inside the block, nothing makes this folder again once it is removed."""
    folder = folder.absolute()
    _working.add(folder)
    try:
        yield
    finally:
        _working.discard(folder)


def _check_there(path: Path) -> None:
    for folder in _working.intersection(path.absolute().parents):
        if not folder.is_dir():
            raise RunError(f"{folder} was removed while the run was working in it", AGAIN)


def link_or_copy(source: Path, destination: Path) -> None:
    """A second name of a file that never changes, where the file system can, else a copy."""
    try:
        destination.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, destination)


def take_file(source: Path, copy: Path, *, link: bool = False) -> None:
    """Copy a file of another run after checking it, unless there is none or it is there already.

    Args:
        source: the file.
        copy: where it goes.
        link: as `link_or_copy`, for large files.

    Raises:
        RunError: the file is damaged.
    """
    if source.exists() and not copy.exists():
        with refuse_damaged(source, "is damaged"):
            verify(source)
        with atomic_write(copy) as temporary:
            (link_or_copy if link else shutil.copyfile)(source, temporary)


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    with contextlib.suppress(OSError):  # an error that led here is the one to report
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Write `value` as indented JSON, keys in their order; a sealed mapping has its checksum inside."""
    if sealed:
        value = value | {_SEAL: text_hash(json_text(value))}
    with atomic_write(path) as temporary:
        temporary.write_bytes(text_bytes(json_text(value)))


def read_json(path: Path, *, sealed: bool = False) -> Any:
    """Read one of our JSON files; a missing or damaged one is a RunError, as of every `read_*` here."""
    with refuse_damaged(path, "is not valid JSON", ValueError, RecursionError):
        if not sealed:
            verify(path)
        data = path.read_bytes()
        value = json.loads(data.decode("utf-8"))
    if sealed and isinstance(value, dict) and (_SEAL in value or Checksums.of(path) is not None):
        with refuse_damaged(path, DIFFERS, ValueError):
            body = {name: item for name, item in value.items() if name != _SEAL}
            if data != text_bytes(json_text(body | {_SEAL: text_hash(json_text(body))})):
                raise ValueError(_SEAL)
        return body
    return value


def json_text(value: Any) -> str:
    """`value` as the text of a JSON file; NaN and infinities, which JSON does not have, become null."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as `.npy`."""
    import numpy as np

    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray:
    """Memory-map a `.npy` file, read-only."""
    with refuse_damaged(path, "is damaged: no array of numbers", ValueError):
        verify(path)
        return map_array(path)


def map_array(path: Path) -> np.ndarray:
    """Memory-map any `.npy` file, read-only; a ValueError unless it holds an array without objects."""
    import numpy as np

    with open(path, "rb") as file:
        if file.read(6) != np.lib.format.MAGIC_PREFIX:  # an archive, a pickle, or no file of numpy's
            raise ValueError("no array")
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, OverflowError, TypeError, SyntaxError, RecursionError, MemoryError, TokenError) as error:
        raise ValueError(f"no array: {error}") from error
    if min(array.shape, default=0) < 0:
        raise ValueError("no array")
    return array


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, without a timestamp or anything else that differs between runs."""
    import pyarrow.parquet as pq

    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_table_parts(path: Path, parts: Iterable[pa.Table]) -> None:
    """Write a Parquet file as `write_table`, from tables with the same columns, one in memory at a time."""
    import pyarrow.parquet as pq

    with atomic_write(path) as temporary, contextlib.ExitStack() as opened:
        writer = None
        for part in parts:
            if writer is None:
                writer = opened.enter_context(pq.ParquetWriter(temporary, part.schema, compression="zstd"))
            writer.write_table(part)


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with refuse_damaged(path, "is damaged", pa.ArrowException):
        verify(path)
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
        verify(path)
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
