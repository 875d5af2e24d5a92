"""Features that earlier runs computed, found again by what they were computed from.

An entry holds the features of some samples from one source. It lies under a hash of everything but the samples that
they depend on (`FeatureSource.cache_settings`: model, revision or files, precision, longest sequence) and has, for each
sample, a hash of what the source reads of it. An entry never changes: it is written under a temporary name and renamed,
so runs can share the cache at the same time. Its checksums are verified before it is used; a damaged one is removed. A
run's array is linked rather than copied where the file system can.

Nothing here stops a run: what cannot be read is computed again, what cannot be written is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np

from nncift.run.options.amounts import parse_bytes
from nncift.run.storage.checksums import PARTIAL, content_hash
from nncift.run.storage.files import cache_folder, fingerprint, link_or_copy, remove

DEFAULT_SIZE = "10GB"
_VERSION = 1  # to be raised when the same settings give other features
_LIBRARIES = ("sentence-transformers", "transformers")
_KEY = 16  # bytes
_ABANDONED = 24 * 3600.0  # seconds after which an unfinished entry is a killed run's
_ROWS = 4096  # copied at a time

_log = logging.getLogger("nncift")


def content_keys(contents: Iterable[str]) -> np.ndarray:
    """A hash of each text, (n,) of 16 bytes."""
    found = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY).digest() for text in contents]
    return np.frombuffer(b"".join(found), dtype=f"S{_KEY}")


@dataclass(frozen=True)
class _Entry:
    """Features of some samples: keys.npy (n,), values.npy (n, width), truncated.npy (n,) bool, and entry.json."""

    path: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        facts = dict(json.loads((self.path / "entry.json").read_text(encoding="utf-8")))
        if facts.pop("checksum") != fingerprint(facts):
            raise ValueError(f"{self.path / 'entry.json'} does not match its checksum")
        return facts

    def array(self, name: str) -> np.ndarray:
        """An array, memory-mapped, once its checksum is verified."""
        file = self.path / f"{name}.npy"
        if self.facts["checksums"][name] != content_hash(file):
            raise ValueError(f"{file} does not match its checksum")
        return np.load(file, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]

    def use(self) -> None:
        """Note that it was used now."""
        os.utime(self.path / "entry.json")

    def used(self) -> float:
        """When it was used last."""
        return (self.path / "entry.json").stat().st_mtime

    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.stat().st_size for file in self.path.iterdir())


@dataclass
class Found:
    """Where features of n samples are.

    Attributes:
        n: number of samples.
        widths: of the blocks.
        part: (n,) the number of the part that has each sample; -1: none has it.
        row: (n,) its row there.
        values: of each part, (rows, width) float32, memory-mapped.
        truncated: of each part, (rows,) bool.
    """

    n: int
    widths: dict[str, int] = field(default_factory=dict)
    part: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    row: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    values: list[np.ndarray] = field(default_factory=list)
    truncated: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not len(self.part):
            self.part, self.row = np.full(self.n, -1, np.int32), np.zeros(self.n, np.int64)

    @property
    def missing(self) -> np.ndarray:
        """The samples that no part has, ascending."""
        return np.flatnonzero(self.part < 0)

    @property
    def whole(self) -> Path | None:
        """The file of the first part, where that has all samples in their order and no others."""
        first = self.values[0] if self.values else np.zeros((0, 0), np.float32)
        same = len(first) == self.n and not self.part.any() and np.array_equal(self.row, np.arange(self.n))
        return Path(str(first.filename)) if same and isinstance(first, np.memmap) else None

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Features and truncation of the samples that there are, in order, some at a time."""
        there = np.flatnonzero(self.part >= 0)
        for start in range(0, len(there), _ROWS):
            some = there[start : start + _ROWS]
            values = np.empty((len(some), sum(self.widths.values())), np.float32)
            truncated = np.empty(len(some), bool)
            for number in np.unique(self.part[some]):
                at = self.part[some] == number
                values[at] = self.values[number][self.row[some[at]]]
                truncated[at] = self.truncated[number][self.row[some[at]]]
            yield values, truncated


@dataclass(frozen=True)
class FeatureCache:
    """The cache.

    Attributes:
        folder: where it lies.
        limit: bytes that it takes, at most; the entries that were used longest ago go first.
    """

    folder: Path
    limit: int

    @classmethod
    def default(cls) -> Self | None:
        """The user's, with the size limit `$NNCIFT_CACHE_SIZE`; None where that is 0.

        Raises:
            ConfigError: the limit is not an amount of bytes.
        """
        size = os.environ.get("NNCIFT_CACHE_SIZE", DEFAULT_SIZE)
        if size.strip().lower().rstrip(" kmgtib") == "0":  # also "0GB"
            return None
        return cls(cache_folder() / "features", parse_bytes("NNCIFT_CACHE_SIZE", size))

    def find(self, settings: Mapping[str, Any], keys: np.ndarray) -> Found:
        """The features of samples with these keys (n,), as far as there are any."""
        found = Found(len(keys))
        for path in self._newest(self._place(settings)):
            missing = found.missing
            if not len(missing):
                break
            with self._damaged(path):
                _take(_Entry(path), keys, missing, found)
        return found

    def keep(
        self,
        settings: Mapping[str, Any],
        keys: np.ndarray,
        array: Path,
        truncated: np.ndarray,
        widths: Mapping[str, int],
    ) -> None:
        """Keep a run's finished features: the file of their array (n, width), with their keys (n,)."""
        place = self._place(settings)
        entry = place / fingerprint(keys.tobytes())
        if entry.exists() or array.stat().st_size > self.limit:
            return
        temporary = None
        try:
            place.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=place))
            link_or_copy(array, temporary / "values.npy")
            np.save(temporary / "keys.npy", keys, allow_pickle=False)
            np.save(temporary / "truncated.npy", truncated, allow_pickle=False)
            checksums = {name: content_hash(temporary / f"{name}.npy") for name in ("values", "keys", "truncated")}
            facts = {"widths": dict(widths), "checksums": checksums, "settings": settings_key(settings)}
            text = json.dumps(facts | {"checksum": fingerprint(facts)})
            (temporary / "entry.json").write_text(text + "\n", encoding="utf-8")
            temporary.rename(entry)
            self._prune()
        except OSError as error:  # no space, no permission, or another run was faster
            if not entry.exists():
                _log.warning("features are not kept for other runs (%s)", error)
        finally:
            if temporary is not None:
                remove(temporary)

    def _place(self, settings: Mapping[str, Any]) -> Path:
        return self.folder / settings_key(settings)

    def _newest(self, place: Path) -> list[Path]:
        """The entries of some settings, the one that was used last first."""
        with contextlib.suppress(OSError):
            return [path for _, _, path in sorted(_entries(place), reverse=True)]
        return []

    @contextlib.contextmanager
    def _damaged(self, path: Path) -> Iterator[None]:
        """Remove an entry that cannot be read inside the block."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
            if path.exists():  # else another run has removed it
                _log.warning("cached features are damaged, and removed (%s)", error)
            remove(path)

    def _prune(self) -> None:
        """Remove the entries that were used longest ago until the rest is within the limit, and what was abandoned."""
        entries = sorted(entry for place in self.folder.iterdir() for entry in _entries(place))
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.limit:
                break
            remove(path)
            total -= size
        for partial in self.folder.glob(f"*/{PARTIAL}*"):
            with contextlib.suppress(OSError):
                if time.time() - partial.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(partial, ignore_errors=True)


def settings_key(settings: Mapping[str, Any]) -> str:
    """A hash of what features depend on beside the samples: also the libraries' versions, which render and pool."""
    return fingerprint(_VERSION, [version(library) for library in _LIBRARIES], dict(settings))


def _take(entry: _Entry, keys: np.ndarray, missing: np.ndarray, found: Found) -> None:
    """Add what an entry has of the missing samples."""
    there = np.asarray(entry.array("keys"))
    order = np.argsort(there, kind="stable")
    place = np.minimum(np.searchsorted(there, keys[missing], sorter=order), len(there) - 1)
    row = order[place]
    hit = there[row] == keys[missing]
    widths = {str(name): int(width) for name, width in entry.facts["widths"].items()}
    if not hit.any() or (found.values and widths != found.widths):
        return
    values, truncated = entry.array("values"), np.asarray(entry.array("truncated"))
    if values.shape != (len(there), sum(widths.values())) or truncated.shape != there.shape:
        raise ValueError(f"{entry.path} has arrays that do not fit")
    found.widths = widths
    found.part[missing[hit]], found.row[missing[hit]] = len(found.values), row[hit]
    found.values.append(values)
    found.truncated.append(truncated)
    entry.use()


def _entries(place: Path) -> list[tuple[float, int, Path]]:
    """When each finished entry was used last, its size, and the entry."""
    found = []
    for path in place.iterdir() if place.is_dir() else ():
        if not path.name.startswith(PARTIAL):
            entry = _Entry(path)
            try:
                found.append((entry.used(), entry.size(), path))
            except OSError:  # without entry.json, or removed right now: the first to go
                found.append((0.0, 0, path))
    return found
