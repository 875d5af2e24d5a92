"""Checksums of the files of a run folder: damage is found when a file is used again, not in the result.

`checksums.jsonl` in the run folder gets a line for each file before the rename that finishes it. Whenever a process is
killed, the file that is there, the old or the new one, has its line. A line ends with a check of itself, so damage of
the list is found too, and repaired from the files. The list grows by about 90 bytes a file. XXH3 reads several GB a
second, so checking costs about as much as reading. It is no protection against somebody who alters both.

A folder without the list, of an earlier version or outside a run, is not checked.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import xxhash

from nncift.errors import RunError

CHECKSUMS = "checksums.jsonl"
SEALED = "costs.json"  # of any folder: rewritten often, so it has its checksum inside
DIFFERS = "is damaged (its checksum differs)"
PARTIAL = ".partial-"  # begins the names of files and folders that are being written
SHARD_FILE = re.compile(r"-\d{6}\.(npy|parquet|safetensors)")  # at the end of the name: unfinished work, computed again
_CHUNK = 1 << 22

Stamp = tuple[int, ...]
"""What changes whenever a file is written: it is hashed once while that stays the same."""

_hashed: dict[Path, tuple[Stamp, str]] = {}
_lists: dict[Path, Checksums] = {}


class Checksums:
    """The list of one run folder: the checksums that each file had, by its path in the folder.

    Args:
        root: the run folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / CHECKSUMS
        self.shown = root  # as the user wrote it
        self._found: dict[str, set[str]] = {}
        self._stamp: Stamp = ()
        self._read = b""  # the lines that were read

    @classmethod
    def of(cls, path: Path) -> Checksums | None:
        """The list of the nearest folder above `path` that has one; None without."""
        for folder, shown in itertools.zip_longest(path.absolute().parents, path.parents):
            if (folder / CHECKSUMS).is_file():
                found = _lists.setdefault(folder, cls(folder))
                found.shown = shown or folder
                return found
        return None

    def name(self, path: Path) -> str:
        """The path in the folder, with slashes."""
        return path.absolute().relative_to(self.root).as_posix()

    @property
    def found(self) -> Mapping[str, set[str]]:
        """The checksums by path, read again where the list has grown.

        Raises:
            RunError: a line is damaged.
        """
        stamp = _stamp(self.path.stat())
        if stamp != self._stamp:
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if not _is_torn(data[len(whole) :]):
                raise self.refusal(CHECKSUMS, "is damaged in its last line")
            if not whole.startswith(self._read):
                self._found, self._read = {}, b""
            first = self._read.count(b"\n") + 1
            for number, line in enumerate(whole[len(self._read) :].split(b"\n")[:-1], first):
                if (entry := parse_line(line)) is None:
                    raise self.refusal(CHECKSUMS, f"is damaged in line {number}")
                self._found.setdefault(entry[0], set()).add(entry[1])
            self._read, self._stamp = whole, stamp
        return self._found

    def append(self, entries: Mapping[str, str]) -> None:
        """Add the checksums of files that are about to be finished, by their paths in the folder."""
        data = "".join(checksum_line(name, digest) + "\n" for name, digest in entries.items()).encode()
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            size = os.fstat(handle).st_size
            if os.write(handle, data) < len(data):
                os.ftruncate(handle, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(handle)
        finally:
            os.close(handle)

    def forget(self, name: str, digest: str) -> None:
        """Take a checksum off the list; only while the folder is locked."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        temporary = self.path.with_name(f"{PARTIAL}{CHECKSUMS}")
        temporary.write_bytes(b"".join(line for line in lines if parse_line(line.rstrip(b"\n")) != (name, digest)))
        temporary.replace(self.path)

    def verify(self, path: Path) -> None:
        """Raise a RunError unless the file has one of its checksums, or is exempt."""
        name = self.name(path)
        if _is_unlisted(name):
            return
        if not self.found.get(name):
            raise self.refusal(name, f"has no line in {CHECKSUMS}")
        if self.differs(name):
            raise self.refusal(name, DIFFERS)

    def differs(self, name: str) -> bool:
        """Whether a file has none of its checksums.

        The list is read after the file: another process that replaces the file meanwhile adds its line first.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return content_hash(self.root / name) not in self.found.get(name, ())

    def refusal(self, name: str, problem: str) -> RunError:
        """The error for a file that cannot be used, with the command that repairs it."""
        command = f"nncift repair {shlex.quote(str(self.shown))}"
        return RunError(f"{self.shown / name} {problem}", f"run {command}, then the same command again")

    def damaged(self) -> Iterator[str]:
        """The recorded files that differ from all their checksums; shards of unfinished work are left out."""
        for name in sorted(self.found):
            if _is_unlisted(name) or SHARD_FILE.search(name) or not (self.root / name).is_file():
                continue
            try:
                differs = self.differs(name)
            except FileNotFoundError:  # another process has just removed it
                continue
            if differs:
                yield name


def sealed_files(folder: Path) -> list[Path]:
    """The sealed files of a folder, save those of the runs inside it, which have lists of their own."""
    found = []
    for path, folders, files in os.walk(folder):  # which goes on where another process removes a folder
        if CHECKSUMS in files and Path(path) != folder:
            folders.clear()
        else:
            folders[:] = [name for name in folders if not name.startswith(PARTIAL)]
            found += [Path(path, SEALED)] if SEALED in files else []
    return sorted(found)


def begin(folder: Path) -> None:
    """Begin the list of a new run folder."""
    (folder / CHECKSUMS).write_bytes(b"")


def cut_torn_line(folder: Path) -> None:
    """Remove a last line without an end, which a kill has left; only while the folder is locked.

    A line that is whole but for its end was not torn but damaged, and stays for the check.
    """
    path = folder / CHECKSUMS
    if not path.is_file() or (data := path.read_bytes()).endswith(b"\n") or not data:
        return
    start = data.rfind(b"\n") + 1
    if _is_torn(data[start:]):
        os.truncate(path, start)


def _is_torn(end: bytes) -> bool:
    """Whether what follows the last whole line may be the beginning of another, not a whole one with a damaged end."""
    return parse_line(end[:-1]) is None


def verify(path: Path) -> None:
    """Check a file of a run folder against its checksums, once per process while it stays as it is.

    Raises:
        RunError: it is damaged, with the command that repairs it.
    """
    if (checksums := Checksums.of(path)) is not None:
        checksums.verify(path)


def verify_folder(folder: Path, *, but: Path | None = None) -> None:
    """Check every finished file of a run folder, save `but`, which is about to be written again.

    Raises:
        RunError: some are damaged; the first is named.
    """
    if (checksums := Checksums.of(folder / CHECKSUMS)) is None or checksums.root != folder.absolute():
        return
    damaged = [name for name in checksums.damaged() if folder / name != but]
    if damaged:
        more = f", and so are {len(damaged) - 1} other files" if len(damaged) > 1 else ""
        raise checksums.refusal(damaged[0], DIFFERS + more)


@contextlib.contextmanager
def recorded(path: Path, files: Mapping[Path, Path]) -> Iterator[None]:
    """Record files, and have the block rename them; nothing is recorded outside a run.

    Args:
        path: that the rename finishes, a file or a folder.
        files: where each file will lie to where it lies now.
    """
    if (checksums := Checksums.of(path)) is None or _is_unlisted(checksums.name(path)):
        yield
        return
    digests = {final: content_hash(now) for final, now in files.items()}
    checksums.append({checksums.name(final): digest for final, digest in digests.items()})
    yield
    for final, digest in digests.items():
        _hashed.pop(files[final].absolute(), None)
        _hashed[final.absolute()] = _stamp(final.stat()), digest


def checksums_of(path: Path) -> frozenset[str]:
    """The checksums that a file of a run folder has had so far."""
    checksums = Checksums.of(path)
    return frozenset() if checksums is None else frozenset(checksums.found.get(checksums.name(path), ()))


def forget(path: Path) -> None:
    """Remove a file of a run folder, and its present checksum: it is not the run's."""
    if (checksums := Checksums.of(path)) is not None:
        checksums.forget(checksums.name(path), content_hash(path))
    path.unlink()


def content_hash(path: Path) -> str:
    """XXH3 of a file's bytes, 128 bits as hexadecimal digits; read once per process while the file stays as it is."""
    name = path.absolute()
    with open(path, "rb", buffering=0) as file:
        stamp = _stamp(os.fstat(file.fileno()))
        if name in _hashed and _hashed[name][0] == stamp:
            return _hashed[name][1]
        digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(_CHUNK, stamp[2] + 1)))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    _hashed[name] = stamp, digest.hexdigest()
    return _hashed[name][1]


def text_hash(text: str) -> str:
    """The `content_hash` of a file of this text."""
    return xxhash.xxh3_128_hexdigest(text_bytes(text))


def text_bytes(text: str) -> bytes:
    r"""JSON's text in UTF-8; a lone surrogate, of a file name that is not UTF-8, stays the escape \udcff."""
    return text.encode("utf-8", "backslashreplace")


def checksum_line(name: str, digest: str) -> str:
    """A line of the list: the path, its checksum, and a checksum of both."""
    body = json.dumps([name, digest])[:-1]
    return f'{body}, "{xxhash.xxh3_64_hexdigest(body.encode())}"]'


def parse_line(line: bytes) -> tuple[str, str] | None:
    """Path and checksum of a line; None for a damaged one."""
    try:
        name, digest, _ = json.loads(line)
        return (name, digest) if checksum_line(name, digest).encode() == line else None
    except (ValueError, TypeError, RecursionError):
        return None


def _is_unlisted(name: str) -> bool:
    """Whether the file is checked in another way, or is part of a folder that is being written."""
    parts = name.split("/")
    return name == CHECKSUMS or parts[-1] == SEALED or any(part.startswith(PARTIAL) for part in parts)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
