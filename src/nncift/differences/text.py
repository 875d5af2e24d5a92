"""The comparison of two runs as a text for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nncift.differences.composition import ColumnCounts, ValueCount
from nncift.errors import printable
from nncift.run.folder.records import counted, percent
from nncift.run.markdown import escaped, table

if TYPE_CHECKING:
    from nncift.differences.difference import Alone, RunDiff
    from nncift.differences.values import SubsetValue

_VALUES = 8  # of a column that are shown
_COLUMNS = 12
_WIDTH = 48  # characters of a value, and of an example's texts in the terminal
_NO_VALUE = "(no value)"

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""


@dataclass(frozen=True)
class _Section:
    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    items: Sequence[str] = ()


def terminal_text(found: RunDiff) -> str:
    """A text of several lines, everything from the data escaped."""
    lines: list[str] = []
    for section in _sections(found):
        lines += ["", section.title] if lines else [section.title]
        lines += [f"  {sentence}" for sentence in section.sentences]
        lines += [f"    {item}" for item in section.items]
        for shown in section.tables:
            lines += [f"  {line}" for line in _aligned(shown)]
    return "\n".join(printable(line).rstrip() for line in lines)


def markdown_text(found: RunDiff) -> str:
    """The same as Markdown, with HTML and table marks of the data escaped."""
    parts = [f"# {_title(found)}"]
    for section in _sections(found):
        parts.append(f"## {escaped(section.title)}")
        if section.sentences:
            parts.append("\n".join(escaped(sentence) for sentence in section.sentences))
        if section.items:
            parts.append("\n".join(f"- {escaped(item)}" for item in section.items))
        for header, rows in section.tables:
            parts.append(table(header, rows))
    return "\n\n".join(parts) + "\n"


def _title(found: RunDiff) -> str:
    return escaped(f"{found.runs[0].folder} and {found.runs[1].folder}")


def _aligned(shown: Table) -> list[str]:
    header, rows = shown
    cells = [[printable(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def _sections(found: RunDiff) -> list[_Section]:
    sections = [_runs(found), _overlap(found), *(_alone(k, alone) for k, alone in enumerate(found.alone, 1))]
    sections += [_composition(found), _influence(found)]
    return [section for section in sections if section.sentences or section.tables or section.items]


def _runs(found: RunDiff) -> _Section:
    first, second = found.runs
    rows = [
        ("folder", first.folder, second.folder),
        ("pool", *(f"{run.pool} ({counted(run.rows, 'row')})" for run in found.runs)),
        ("target", *(f"{run.target or 'the pool'} ({run.targets:,})" for run in found.runs)),
        ("influence", first.influence, second.influence),
        ("objective", first.objective, second.objective),
        ("selected", f"{first.selected:,}", f"{second.selected:,}"),
    ]
    shown = {"pool", "target", "influence", "objective"}
    others = [f"{n}: {_value(one)} | {_value(two)}" for n, (one, two) in found.options.items() if n not in shown]
    return _Section("Runs", [f"Options that differ: {'; '.join(others)}."] if others else (), [(("", "1", "2"), rows)])


def _value(value: Any) -> str:
    return "not given" if value in (None, (), [], "") else str(value)


def _overlap(found: RunDiff) -> _Section:
    overlap, (first, second) = found.overlap, found.runs
    if overlap.common_rows == first.rows == second.rows:
        pools = f"Both pools have the same {counted(first.rows, 'row')}."
    else:
        pools = (
            f"The pools have {counted(overlap.common_rows, 'row')} in common, of {first.rows:,} and {second.rows:,}."
        )
    return _Section(
        "Overlap",
        [
            pools,
            f"{counted(overlap.shared, 'row')} in both subsets, of {first.selected:,} and {second.selected:,}:"
            f" Jaccard index {overlap.jaccard:.3f}.",
            f"Random subsets of these sizes share {overlap.expected:,.1f} +- {overlap.deviation:,.1f}"
            f" (Jaccard index {overlap.expected_jaccard:.3f}).",
        ],
    )


def _alone(number: int, alone: Alone) -> _Section:
    if not alone.rows:
        return _Section(f"Only in subset {number}")
    other = 3 - number
    absent = f", {alone.not_in_pool:,} of them not in the pool of run {other}" if alone.not_in_pool else ""
    items = []
    for row in alone.examples:
        where = "not in that pool"
        if row.above is not None:
            where = f"ranked above {percent(row.above)} of the pool by run {other}"
        items.append(f"#{row.rank} {_cut(row.id)}: {_cut(row.prompt)} -> {_cut(row.response)} ({where})")
    return _Section(f"Only in subset {number}", [f"{counted(alone.rows, 'row')}{absent}."], items=items)


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


def _composition(found: RunDiff) -> _Section:
    same = found.overlap.common_rows == found.runs[0].rows == found.runs[1].rows
    tables = [_column(found, column, same=same) for column in found.columns[:_COLUMNS]]
    rows = []
    for lengths in found.lengths:
        medians = [quantiles[1] if quantiles else None for quantiles in (*lengths.pools, *lengths.subsets)]
        cells = [f"{median:,.0f}" if median is not None else "-" for median in medians]
        rows.append((f"{lengths.text}, median characters", *_places(cells, same=same)))
    more = len(found.columns) - _COLUMNS
    sentences = [f"{counted(more, 'other column')} left out here."] if more > 0 else []
    return _Section("Composition", sentences, [*tables, (("lengths", *_heads(same=same)), rows)])


def _heads(*, same: bool) -> tuple[str, ...]:
    return _places(["pool" if same else "pool 1", "pool 2", "subset 1", "subset 2"], same=same)


def _places(cells: Sequence[str], *, same: bool) -> tuple[str, ...]:
    """Cells of both pools and both subsets; a pool that is the same once."""
    return (cells[0], *cells[2:]) if same else tuple(cells)


def _column(found: RunDiff, column: ColumnCounts, *, same: bool) -> Table:
    totals = [run.rows for run in found.runs] + [run.selected for run in found.runs]
    shown, more = list(column.values[:_VALUES]), column.values[_VALUES:]
    if more:
        (pool, other_pool), (subset, other) = (
            [sum(counts) for counts in zip(*sides, strict=True)]
            for sides in ([each.pools for each in more], [each.subsets for each in more])
        )
        shown.append(ValueCount(counted(len(more), "other value"), (pool, other_pool), (subset, other)))
    rows = []
    for each in shown:
        counts = (*each.pools, *each.subsets)
        cells = [percent(count / total) if total else "-" for count, total in zip(counts, totals, strict=True)]
        rows.append((_NO_VALUE if each.value is None else _cut(each.value), *_places(cells, same=same)))
    return (_cut(column.column), *_heads(same=same)), rows


def _influence(found: RunDiff) -> _Section:
    sentences = []
    if (c := found.correlation) is None:
        sentences.append("Too few rows in common for a correlation of their influence.")
    else:
        (low, high), (least, most) = c.pearson_interval, c.spearman_interval
        sentences.append(
            f"Mean influence over the targets, {counted(c.rows, 'common row')}: Pearson {c.pearson:.3f}"
            f" [{low:.3f}, {high:.3f}], Spearman {c.spearman:.3f} [{least:.3f}, {most:.3f}] (95 % intervals)."
        )
    for number, value in enumerate(found.values, 1):
        sentences.append(_worth(number, value))
    return _Section("Influence", sentences)


def _worth(number: int, value: SubsetValue) -> str:
    """Both subsets by one run, in a sentence."""
    other = 3 - number
    start = f"By the influence of run {number}"
    if not value.other_rows:
        return f"{start}: no row of subset {other} is in its pool."
    rows = counted(value.other_rows, "row")
    if value.unavailable:
        means = f"subset {number} {value.mean:.4g}, subset {other} ({rows}) {value.other_mean:.4g}"
        return (
            f"{start}: no value of the objective ({value.unavailable}). Mean influence instead: {means}, the pool"
            f" {value.pool_mean:.4g}."
        )
    share = "" if value.share is None else f", {percent(value.share)} of that"
    return (
        f"{start} ({value.objective}): subset {number} ({counted(value.rows, 'row')}) has {value.value:.5g}, subset"
        f" {other} ({rows} of this pool) {value.other_value:.5g}{share}; as many random rows {value.random_value:.5g}."
    )
