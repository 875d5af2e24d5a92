"""`diff`: what two finished runs chose alike and what not, and how far their influence agrees."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nncift.data.composition import count_values
from nncift.differences.composition import ColumnCounts, Lengths, joined_counts, text_lengths
from nncift.differences.correlation import InfluenceCorrelation, correlate
from nncift.differences.pools import matched
from nncift.differences.values import SubsetValue, value_under
from nncift.errors import ConfigError
from nncift.pipeline.components.precision import PRECISION, stored_precision
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.run.progress import drawn, moving
from nncift.run.storage.files import atomic_write, write_json

EXAMPLES = 3  # rows that one subset has alone
_CHARACTERS = 160  # of an example's texts
_SUFFIXES = (".json", ".md")


@dataclass(frozen=True)
class ComparedRun:
    """One of the two runs.

    Attributes:
        folder: where it lies.
        pool, target: the sources as its config names them; of a run that is its own target, None.
        rows: of the pool.
        targets: samples that influence is on.
        selected: rows in the subset.
        influence, objective: what it chose by.
    """

    folder: str
    pool: str
    target: str | None
    rows: int
    targets: int
    selected: int
    influence: str
    objective: str


@dataclass(frozen=True)
class Overlap:
    """Rows that both subsets have.

    Attributes:
        common_rows: that both pools have.
        shared: that both subsets have.
        jaccard: shared rows over the rows of either subset.
        expected, deviation: mean and standard deviation of `shared` for random subsets of these sizes.
        expected_jaccard: with `expected` shared rows.
    """

    common_rows: int
    shared: int
    jaccard: float
    expected: float
    deviation: float
    expected_jaccard: float


@dataclass(frozen=True)
class Example:
    """A row of one subset alone, its texts cut to 160 characters.

    Attributes:
        rank: in its subset, from 1.
        id, prompt, response: of the row.
        above: share of the other run's pool whose influence by that run is lower; None where it is not in that pool.
    """

    rank: int
    id: str
    prompt: str
    response: str
    above: float | None


@dataclass(frozen=True)
class Alone:
    """What one subset has that the other has not.

    Attributes:
        rows: how many.
        not_in_pool: of these, rows that the other run's pool has not.
        examples: those with the best ranks.
    """

    rows: int
    not_in_pool: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class RunDiff:
    """What `diff` finds; printed, it is a text for the terminal.

    Attributes:
        runs: both runs.
        options: name to the values that differ between their configs.
        overlap: of the subsets.
        alone: what either subset has alone.
        columns: composition of pools and subsets by the columns with few values.
        lengths: of prompts and responses, in characters.
        correlation: of the mean influence of the rows that both have; None for fewer than ten.
        values: both subsets under the influence of either run.
    """

    runs: tuple[ComparedRun, ComparedRun]
    options: dict[str, tuple[Any, Any]]
    overlap: Overlap
    alone: tuple[Alone, Alone]
    columns: tuple[ColumnCounts, ...]
    lengths: tuple[Lengths, ...]
    correlation: InfluenceCorrelation | None
    values: tuple[SubsetValue, SubsetValue]

    def __str__(self) -> str:
        from nncift.differences.text import terminal_text

        return terminal_text(self)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        found = dataclasses.asdict(self)
        for value, facts in zip(self.values, found["values"], strict=True):
            facts["share"] = value.share
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON or, to a name that ends in .md, as Markdown.

        Raises:
            ConfigError: the name ends otherwise.
            RunError: the file cannot be written.
        """
        file = Path(path)
        check_output(file)
        if file.suffix == ".json":
            write_json(file, self.to_dict())
            return
        from nncift.differences.text import markdown_text

        with atomic_write(file) as temporary:
            temporary.write_text(markdown_text(self), encoding="utf-8")


def check_output(path: str | os.PathLike[str]) -> None:
    """Refuse a file of another kind.

    Raises:
        ConfigError: its name ends neither in .json nor in .md.
    """
    if Path(path).suffix not in _SUFFIXES:
        raise ConfigError(f"`output` {os.fspath(path)!r} is neither .json nor .md", "give a name that ends so")


def diff(run1: str | os.PathLike[str], run2: str | os.PathLike[str], *, progress: bool = True) -> RunDiff:
    """Compare two finished runs: what both chose, what only one did, and how far their influence agrees.

    Rows are compared by content, so the pools may be in different orders, or overlap in part. No language model runs.

    Args:
        run1: a run folder.
        run2: another.
        progress: show progress bars.

    Raises:
        RunError: one is not the folder of a finished run, or damaged.
    """
    first, second = FinishedRun.open(run1), FinishedRun.open(run2)
    chosen, others = first.selection.indices, second.selection.indices
    each = len(first.pool) + len(second.pool)
    with tqdm(total=2 * each, desc="comparing rows", unit=" rows", **drawn(progress)) as bar:
        with moving(bar, each):
            place = matched(first.pool, second.pool)  # in the first pool, of the rows of the second
        with moving(bar, each):
            counts = count_values(first.pool, chosen), count_values(second.pool, others)
    back = np.full(len(first.pool), -1)
    back[place[place >= 0]] = np.flatnonzero(place >= 0)
    common = np.flatnonzero(place >= 0)
    in_first, in_second = place[others], back[chosen]
    both = int(np.isin(chosen, in_first).sum())
    return RunDiff(
        runs=(_compared(first), _compared(second)),
        options=_options(first.options, second.options),
        overlap=overlap_of(both, len(common), (len(first.pool), len(second.pool)), (len(chosen), len(others))),
        alone=(_alone(first, in_second, second), _alone(second, in_first, first)),
        columns=joined_counts(*counts),
        lengths=text_lengths((first.pool, second.pool), (chosen, others)),
        correlation=correlate(first.influence[place[common]], second.influence[common]),
        values=(
            value_under(first, in_first[in_first >= 0], progress=progress, name="value by run 1"),
            value_under(second, in_second[in_second >= 0], progress=progress, name="value by run 2"),
        ),
    )


def overlap_of(shared: int, common: int, pools: tuple[int, int], subsets: tuple[int, int]) -> Overlap:
    """The overlap, and that of random subsets.

    Of the `common` rows, a random subset of k of n has A, which is hypergeometric; given A, so is what another of k' of
    n' has of these. Mean and variance of the second follow from those of A by the laws of total expectation and
    variance.

    Args:
        shared: rows in both subsets.
        common: rows in both pools.
        pools: rows of each, n and n'.
        subsets: rows of each, k and k'.
    """
    (n, m), (k, size) = pools, subsets
    mean = k * common / n
    variance = mean * (1 - common / n) * (n - k) / max(n - 1, 1)
    share = size / m
    spread = size / m * (m - size) / max(m - 1, 1) * (mean - (variance + mean**2) / m)  # E Var, of A (1 - A / n')
    expected, deviation = share * mean, math.sqrt(max(share**2 * variance + spread, 0.0))
    return Overlap(common, shared, _jaccard(shared, k + size), expected, deviation, _jaccard(expected, k + size))


def _jaccard(shared: float, total: int) -> float:
    return shared / (total - shared) if total > shared else float(bool(shared))


def _compared(run: FinishedRun) -> ComparedRun:
    pool = run.options["pool"]
    return ComparedRun(
        folder=str(run.folder.path),
        pool=pool if isinstance(pool, str) else ", ".join(pool),
        target=None if run.own_target else str(run.options["target"] or "that of its network"),
        rows=len(run.pool),
        targets=run.target_rows,
        selected=len(run.selection),
        influence=run.influence_name,
        objective=run.selection.objective,
    )


def _options(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    sides = [{**options, "dtype": stored_precision(options)} for options in (first, second)]  # given, or by default
    one, two = ({name: value for name, value in side.items() if name != PRECISION} for side in sides)
    return {name: (one.get(name), two.get(name)) for name in one | two if one.get(name) != two.get(name)}


def _alone(run: FinishedRun, elsewhere: np.ndarray, other: FinishedRun) -> Alone:
    """What a subset has alone.

    Args:
        run: whose subset it is.
        elsewhere: of each of its rows, the row in the other pool, int64 (k,); -1 where it has none.
        other: the other run.
    """
    alone = np.flatnonzero(~np.isin(elsewhere, other.selection.indices))
    order = alone[np.argsort(run.selection.ranks[alone], kind="stable")]
    ascending = np.sort(other.influence) if len(order) else np.zeros(0)
    examples = []
    for i in order[:EXAMPLES]:
        row, there = run.pool[int(run.selection.indices[i])], int(elsewhere[i])
        below = None if there < 0 else float(np.searchsorted(ascending, other.influence[there]) / len(ascending))
        texts = (_short(row["prompt"]), _short(row["response"]))
        examples.append(Example(int(run.selection.ranks[i]), str(row["id"]), *texts, below))
    return Alone(len(alone), int((elsewhere[alone] < 0).sum()), tuple(examples))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _CHARACTERS else f"{line[:_CHARACTERS]}..."
