"""Progress bars, and the batches that move them.

Every bar shows a rate and the time left, so each has a total, estimated where it is not known, and what an earlier
process did moves it by `already`, since it says nothing about the rate. Work that runs in batches reports each with
`advance`; a bar around it moves by them, wherever the batches are made. In a terminal or a notebook a bar is redrawn
ten times a second. A log file, of a job on a cluster for example, gets a line every half a minute, and none of what
takes less.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

_LOG_SECONDS = 30.0

_listener: ContextVar[Callable[[int], None] | None] = ContextVar("listener", default=None)


def interactive() -> bool:
    """Whether somebody watches: standard error is a terminal or the output of a notebook's cell."""
    stream = sys.stderr
    return stream is not None and (stream.isatty() or type(stream).__module__.partition(".")[0] == "ipykernel")


class _LogLines:
    """Where tqdm draws one bar in a log file: as a line now and then; a full disk ends nothing."""

    def __init__(self) -> None:
        self._latest = time.monotonic()

    def write(self, drawing: str) -> None:
        """Write what was drawn, if it is time for a line."""
        line = drawing.replace("\x1b[A", "").strip()  # of a bar below another one
        if line and sys.stderr is not None and time.monotonic() - self._latest >= _LOG_SECONDS:
            self._latest = time.monotonic()
            with contextlib.suppress(OSError):
                print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Nothing: each line is flushed."""


def drawn(shown: bool) -> dict[str, Any]:
    """Arguments of tqdm: whether a bar is shown, and where it is drawn."""
    return {"disable": not shown, "file": None if interactive() else _LogLines()}


def already(bar: tqdm, steps: int) -> None:
    """Move a bar by steps that were done before, which do not count in its rate."""
    bar.n += steps
    if steps and not bar.disable:
        bar.initial += steps
        bar.last_print_n += steps
        bar.refresh()


def advance(rows: int) -> None:
    """Report a finished batch to the bar around it, if there is one."""
    if (listener := _listener.get()) is not None:
        listener(rows)


@contextlib.contextmanager
def moving(bar: tqdm, steps: int, *, steps_per_row: int = 1) -> Iterator[None]:
    """Move a bar by the batches inside the block, and to `steps` further on when it ends.

    Args:
        bar: the bar.
        steps: how far the whole block moves it.
        steps_per_row: how far each row of a batch moves it; more rows than expected do not move it beyond `steps`.
    """
    moved = 0

    def listener(rows: int) -> None:
        nonlocal moved
        step = min(rows * steps_per_row, steps - moved)
        moved += step
        bar.update(step)

    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
    bar.update(steps - moved)
