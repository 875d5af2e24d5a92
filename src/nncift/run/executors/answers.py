"""How work travels to a worker and its result back: as pickles, between the processes of one run and nowhere else.

Files are never pickles; these are streams between processes of the same user, of the same versions.
"""

from __future__ import annotations

import pickle
import platform
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nncift.errors import ConfigError, NNCIFTError, first_line

SAME = ("nncift", "torch", "transformers", "sentence-transformers", "numpy")  # of which values depend on the version
_IN_MODULE = "define your own functions and classes in a module that workers can import, or leave `workers` out"


def packed(value: Any) -> bytes:
    """A job or a part of it, as bytes.

    Raises:
        ConfigError: it holds what cannot be pickled.
    """
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(f"this work cannot be sent to other processes ({first_line(error)})", _IN_MODULE) from error


def opened(answer: bytes) -> Any:
    """The value in an answer; raises the error that it has instead."""
    succeeded, value = pickle.loads(answer)
    if not succeeded:
        raise value
    return value


def versions() -> dict[str, str]:
    """What a process computes with."""
    found = {"Python": platform.python_version()}
    for name in SAME:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


class Answering:
    """What a worker does: it takes a job, then answers parts of it. Errors are answers too."""

    def __init__(self) -> None:
        self._job: Callable[[Any], Any] | None = None

    def begin(self, job: bytes) -> bytes:
        """Take another job; answers with the worker's host and versions."""
        try:
            self._job = pickle.loads(job)
        except NNCIFTError as error:
            return packed((False, error))
        except Exception as error:  # of any class that the job has
            problem = f"a worker on {platform.node()} cannot load the work ({first_line(error)})"
            return packed((False, ConfigError(problem, _IN_MODULE)))
        return packed((True, (platform.node(), versions())))

    def answer(self, part: bytes) -> bytes:
        """The result of a part."""
        assert self._job is not None
        try:
            return packed((True, self._job(pickle.loads(part))))
        except NNCIFTError as error:
            return packed((False, error))
        except Exception as error:
            trace = traceback.format_exc()
            return packed((False, _sendable(error, f"in a worker on {platform.node()}:\n{trace}")))


def _sendable(error: Exception, note: str) -> Exception:
    """The error with a note, or one of the same text where it does not survive pickling."""
    error.add_note(note)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}\n{note}")
    return error
