"""Errors of the file system in one line: a full disk, a folder that cannot be written, a file that cannot be read.

The remedies hold for every command: `select` may write into another folder, `report` may work on a copy.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from nncift.errors import RunError
from nncift.run.storage.checksums import Checksums

AGAIN = "run the same command again"
_REASONS = {  # why a file cannot be written, and the remedy
    errno.ENOSPC: ("no space left on the disk while writing {}", f"free some and {AGAIN}"),
    errno.EDQUOT: ("no space left in the disk quota while writing {}", f"free some and {AGAIN}"),
    errno.EFBIG: ("{} exceeds the largest size of a file", f"raise the limit (ulimit -f) and {AGAIN}"),
    errno.EMFILE: ("too many open files while writing {}", f"raise the limit (ulimit -n) and {AGAIN}"),
    errno.ENFILE: ("too many open files in the system while writing {}", f"close some and {AGAIN}"),
    errno.EIO: ("the disk failed while writing {}", "check the disk, or work in another folder"),
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EROFS, errno.EPERM}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY}
_IN_THE_WAY |= {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOENT, errno.EBUSY}  # the last of a mounted folder


def cannot_write(path: Path, error: OSError) -> RunError | None:
    """The error of writing a file in one line, for any command; None where it is no error of a file."""
    if isinstance(error.filename, str | bytes) and error.errno not in {None, *_FULL}:  # these name what is copied
        file = Path(os.fsdecode(error.filename))
        if not (file.is_relative_to(path.parent) or path.parent.is_relative_to(file)):  # a source of the data
            return RunError(f"cannot open {file} ({error.strerror})", f"make it readable, and {AGAIN}")
    if error.errno in _REASONS:
        problem, fix = _REASONS[error.errno]
        return RunError(problem.format(path), fix)
    if error.errno in _FORBIDDEN:
        return RunError(f"cannot write {path} ({error.strerror})", "make its folder writable, or work in another")
    if error.errno in _IN_THE_WAY:
        return RunError(f"cannot write {path} ({error.strerror})", "work in another folder")
    if error.errno is None and "requested and" in str(error):  # numpy's, for any reason
        fix = f"check the space on the disk and the largest size of a file (ulimit -f), and {AGAIN}"
        return RunError(f"cannot write all of {path}", fix)
    return None


def cannot_lock(lock: Path, error: OSError) -> RunError:
    """The error of making a folder or its lock in one line."""
    refused = cannot_write(lock, error)
    fix = "work in another folder" if refused is None else refused.fix
    return RunError(f"cannot make or lock the folder {lock.parent} ({error.strerror})", fix)


@contextlib.contextmanager
def refuse_damaged(path: Path, problem: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn these errors of reading `path`, and the system's, into a RunError: the path, the problem and its repair."""
    try:
        yield
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist", "is this the folder of a finished run?") from error
    except Exception as error:
        if not isinstance(error, (OSError, *kinds)):
            raise
        if isinstance(error, OSError) and error.errno in _FULL:  # of what is written beside
            raise cannot_write(path, error) or error from error
        if isinstance(error, OSError) and error.errno is not None:
            raise RunError(f"cannot open {path} ({error.strerror})", f"make it readable, and {AGAIN}") from error
        if (checksums := Checksums.of(path)) is not None:
            raise checksums.refusal(checksums.name(path), problem) from error
        raise RunError(f"{path} {problem}", f"remove the file and {AGAIN}") from error
