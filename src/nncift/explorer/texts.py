"""The texts of the explorer's table: each sample's own, cut, and the beginnings of those shown for another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from nncift.data.facts import open_pool
from nncift.pipeline.earlier_runs.finished import FinishedRun

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_TEXTS = 1 << 29  # characters of all prompts and responses, which the server holds in memory
_LONGEST, _SHORTEST = 4000, 250  # characters of a prompt or response, in small pools and at least
_LINE, _SHORT_LINE = 120, 40  # characters of another sample's prompt and of its response, in small and in large pools
_LARGE = 1 << 18  # samples


class Texts:
    """Texts of the pool and the targets, cut; those of other samples on one line.

    Args:
        run: a finished run.
        shown: rows of the pool whose line is shown for another sample, int64, -1 for none.
    """

    def __init__(self, run: FinishedRun, shown: Iterable[np.ndarray]) -> None:
        n = len(run.pool)
        self._pool, self._own_target = run.pool, run.own_target
        self._longest = int(np.clip(_TEXTS // (2 * max(n, 1)), _SHORTEST, _LONGEST))
        line = _LINE if n <= _LARGE else _SHORT_LINE
        is_shown = np.zeros(n, bool)
        for rows in shown:
            is_shown[rows[rows >= 0]] = True
        self._place = np.cumsum(is_shown) - 1  # among the lines below
        self._of_pool = _one_line(run.pool, line, is_shown)
        if not self._own_target:
            self._of_targets = _one_line(open_pool(run.folder.samples("target").path)[0], line)

    def cut(self, name: str, part: slice) -> pa.Array:
        """The prompts or responses of some rows."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self._pool.data.column(name).slice(part.start, part.stop - part.start)
        return pc.utf8_slice_codeunits(column, 0, self._longest).cast(pa.string()).combine_chunks()

    def of_pool(self, rows: np.ndarray) -> pa.Array:
        """The line of some samples of the pool, null for -1."""
        return _taken(self._of_pool, np.where(rows < 0, -1, self._place[rows]))

    def of_targets(self, rows: np.ndarray) -> pa.Array:
        """The line of some targets, null for -1."""
        return self.of_pool(rows) if self._own_target else _taken(self._of_targets, rows)


def _one_line(samples: Dataset, longest: int, some: np.ndarray | None = None) -> pa.Array:
    """The beginnings of prompt and response of each sample, or of some (bool)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = []
    for name in ("prompt", "response"):
        column = samples.data.column(name)
        column = column if some is None else column.filter(pa.array(some))
        parts.append(pc.replace_substring_regex(pc.utf8_slice_codeunits(column, 0, longest), r"\s+", " "))
    return pc.binary_join_element_wise(*parts, " → ").cast(pa.large_string()).combine_chunks()


def _taken(texts: pa.Array, rows: np.ndarray) -> pa.Array:
    import pyarrow as pa

    found = texts.take(pa.array(rows, pa.int64(), mask=rows < 0))
    return found.cast(pa.string())
