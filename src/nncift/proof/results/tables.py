"""The files of a comparison for people and for other programs: a CSV in long format, markdown, and the terminal's text.

`results.json` holds the same figures, with the intervals; costs are in the tables alone, since they differ from run to
run.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nncift.errors import printable
from nncift.evaluation.answers.results import METRICS
from nncift.evaluation.comparisons import note_on_ties
from nncift.proof.folder import ProofFolder
from nncift.report.answer import answer
from nncift.report.choices import notes_on_ties
from nncift.report.studies import StudyTable, views
from nncift.run.folder.costs import duration
from nncift.run.storage.files import atomic_write

_LONG = ("pool", "model", "task", "method", "unit", "budget", "rows", "seed", "selector", "metric", "value", "items")
_STUDY = ("study", "influence", "network", "labels", "setting", "subset", "quadrant", "pairs")
_METHODS = {
    **{"none": "as it is", "lora": "fine-tuned", "icl": "in context"},
    **{"phased": "fine-tuned in phases", "weighted": "fine-tuned with weights"},
}
_UNITS = {"rows": "rows", "tokens": "response tokens of so many mean rows"}


def write_tables(folder: ProofFolder, results: Mapping[str, Any], costs: Mapping[str, Any]) -> None:
    """Write `results.csv` and `results.md`, and `studies.csv` where there are studies."""
    if results.get("studies"):
        with atomic_write(folder.studied) as temporary:
            temporary.write_text(studies_table(results["studies"]), encoding="utf-8")
    with atomic_write(folder.table) as temporary:
        temporary.write_text(long_table(results), encoding="utf-8")
    with atomic_write(folder.markdown) as temporary:
        temporary.write_text(markdown(results, costs), encoding="utf-8")


def long_table(results: Mapping[str, Any]) -> str:
    """Every mean over the items, a line for each cell, seed and metric."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_LONG)
    test = results["test"]["name"] if results["test"] else ""
    facts = (results["pool"]["name"], results["model"]["model"], test)
    for cell in results["cells"]:
        for name, metric in cell["metrics"].items():
            for seed, value in metric["by_seed"].items():
                rest = (cell["selector"], name, _exact(value), metric["items"])
                table.writerow((*facts, cell["method"], cell["unit"], cell["budget"], cell["rows"], seed, *rest))
    return text.getvalue()


def studies_table(studies: Sequence[Mapping[str, Any]]) -> str:
    """Every figure of the studies, a line for each network, quadrant or subset, seed and metric."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow((*_STUDY, "seed", "metric", "value"))
    for record in studies:
        for name, metric in record["metrics"].items():
            for seed, value in metric["by_seed"].items():
                facts = ("" if record[field] is None else record[field] for field in _STUDY)
                table.writerow((*facts, seed, name, _exact(value)))
    return text.getvalue()


def _exact(value: float | None) -> str:
    return "" if value is None else repr(value)


def markdown(results: Mapping[str, Any], costs: Mapping[str, Any]) -> str:
    """The comparison as markdown: a table for each method, unit and budget, and the costs."""
    test, pool, trained = results["test"], results["pool"], results["cells"]
    tested = f", tested on {_cell(test['name'])}" if test else ""
    items = f", {test['items']:,} test items" if test else ""
    lines = [
        f"# {_cell(pool['name'])}{tested}",
        "",
        f"{pool['rows']:,} rows{items}, {_cell(results['model']['model'])}, seeds"
        f" {', '.join(map(str, results['seeds']))}. Intervals are 95 %"
        + (", over items and seeds; verdicts are corrected for the number of selectors (Holm)." if trained else "."),
    ]
    if trained:
        headline, *others = map(_cell, answer(results).lines)
        lines += ["", f"**{headline}**", *(line for other in others for line in ("", other))]
    for (method, unit, budget), cells in _groups(results["cells"]).items():
        title = f"{_METHODS[method]}, {budget:,} {_UNITS[unit]}"
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", *_table(cells, results["cells"][0])]
        lines += [line for note in notes_on_ties(cells) for line in ("", note)]
    if costs:
        lines += ["", "## Costs", "", *_cost_table(costs)]
    for view in views(results.get("studies", ())):
        lines += ["", f"## {view.title} ({_cell(view.influence)})", "", view.meaning]
        for table in view.tables:
            lines += ["", f"**{table.title}**", "", *_study_lines(table)]
    return "\n".join(lines) + "\n"


def _study_lines(table: StudyTable) -> list[str]:
    found = [f"| {' | '.join([*table.head, *table.columns])} |", f"|{'---|' * (len(table.head) + len(table.columns))}"]
    for names, metrics in table.rows:
        found.append(f"| {' | '.join([*names, *map(with_interval, metrics)])} |")
    return found


def _groups(cells: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, int], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for cell in cells:
        if cell["method"] != "none" and not cell["curve"]:
            found.setdefault((cell["method"], cell["unit"], cell["budget"]), []).append(cell)
    return found


def _table(cells: Sequence[Mapping[str, Any]], untuned: Mapping[str, Any]) -> list[str]:
    names = [name for name in METRICS if any(cell["metrics"].get(name, {}).get("items") for cell in cells)]
    equivalent = any("equivalent" in cell for cell in cells)
    one_off = any("against_lora" in cell for cell in cells)
    head = ["choice", "rows", *(METRICS[name].title for name in names), "loss against random"]
    head += ["loss against one-off training"] if one_off else []
    head += ["equivalent random rows"] if equivalent else []
    ordered = sorted(cells, key=lambda cell: cell["metrics"]["loss"]["value"])
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(
            f"| {' | '.join(_row(cell, names, one_off=one_off, equivalent=equivalent))} |"
            for cell in [untuned, *ordered]
        ),
    ]


def _row(cell: Mapping[str, Any], names: Sequence[str], *, one_off: bool, equivalent: bool) -> list[str]:
    found = [_cell(cell["selector"]), f"{cell['rows']:,.0f}"]
    found += [with_interval(cell["metrics"].get(name)) for name in names]
    for other in ("random", *(("lora",) if one_off else ())):
        against = cell.get(f"against_{other}", {}).get("loss")
        found.append("" if against is None else as_text(against))
    if equivalent:
        same = cell.get("equivalent")
        found.append("" if same is None else same["text"].removesuffix(" random rows"))
    return found


def with_interval(metric: Mapping[str, Any] | None) -> str:
    """A metric with its interval."""
    if metric is None or metric["value"] is None:
        return ""
    if not _has_interval(metric):  # of one test item
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def _has_interval(found: Mapping[str, Any]) -> bool:
    """Whether there is one; JSON has null for infinite limits."""
    return all(found[limit] is not None and math.isfinite(found[limit]) for limit in ("low", "high"))


def as_text(difference: Mapping[str, Any]) -> str:
    """A difference with its verdict and interval."""
    shown = f"{difference['verdict']}: {difference['value']:+.3f}"
    return f"{shown} [{difference['low']:+.3f}, {difference['high']:+.3f}]" if _has_interval(difference) else shown


def _cost_table(costs: Mapping[str, Any]) -> list[str]:
    lines = ["| choice | stages | all | tokens of the language model |", "|---|---|---|---|"]
    for name, stages in costs["choices"].items():
        seconds = ", ".join(f"{stage} {duration(cost['seconds'])}" for stage, cost in stages.items())
        every = sum(cost["seconds"] for cost in stages.values())
        tokens = sum(cost["tokens"] for cost in stages.values())
        lines.append(f"| {_cell(name)} | {seconds} | {duration(every)} | {tokens:,} |")
    trials = costs["trials"]
    lines.append(
        f"| all {trials['number']:,} trials | tune {duration(trials['tune']['seconds'])}, measure"
        f" {duration(trials['measure']['seconds'])} |"
        f" {duration(trials['tune']['seconds'] + trials['measure']['seconds'])} |"
        f" {trials['tune']['tokens'] + trials['measure']['tokens']:,} |"
    )
    return lines


def _cell(text: str) -> str:
    """A text from the user or the data inside a markdown table."""
    return printable(text).replace("|", "\\|").replace("<", "&lt;")


def text_table(results: Mapping[str, Any]) -> str:
    """The comparison for the terminal: the test loss of every choice, and at the end what they say."""
    lines = []
    for (method, unit, budget), cells in _groups(results["cells"]).items():
        lines += ["", f"{_METHODS[method]}, {budget:,} {_UNITS[unit]}: test loss, and against random"]
        for cell in sorted(cells, key=lambda cell: cell["metrics"]["loss"]["value"]):
            against = cell.get("against_random", {}).get("loss")
            verdict = "" if against is None else as_text(against)
            same = f"; trains like {cell['equivalent']['text']}" if "equivalent" in cell else ""
            shown = with_interval(cell["metrics"]["loss"])
            lines.append(printable(f"  {cell['selector']:<36} {shown:<24} {verdict}{same}"))
        lines += notes_on_ties(cells)
    for view in views(results.get("studies", ())):
        lines += ["", printable(f"{view.title} ({view.influence}): {view.tables[0].title}")]
        shown_rows = [[*view.tables[0].head, *view.tables[0].columns]]
        shown_rows += [[*names, *map(with_interval, metrics)] for names, metrics in view.tables[0].rows]
        widths = [max(map(len, column)) for column in zip(*shown_rows, strict=True)]
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in shown_rows]
    if results["cells"]:
        lines += ["", *map(printable, answer(results).lines)]
    return "\n".join(lines[1:])


def evaluation_text(results: Mapping[str, Any]) -> str:
    """An evaluation for the terminal: every model's metrics, then what the comparisons say."""
    models = results["models"]
    names = [name for name in METRICS if any(model["metrics"].get(name, {}).get("items") for model in models)]
    head = [f"{METRICS[name].title} (n={_counts(models, name)})" for name in names]
    rows = [["", *head]]
    for model in models:
        shown = [with_interval(model["metrics"][name]) for name in names]
        rows.append([_model_name(model["run"], model["method"]), *shown])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for compared in results["comparisons"]:
        a, b = (_model_name(*compared[side]) for side in ("a", "b"))
        for name, difference in compared["metrics"].items():
            lines.append(f"{a} against {b}, {METRICS[name].title}: {as_text(difference)}")
    together = [difference for compared in results["comparisons"] for difference in compared["metrics"].values()]
    lines += filter(None, [note_on_ties(together, len(together))])
    return "\n".join(map(printable, lines))


def _counts(models: Sequence[Mapping[str, Any]], name: str) -> str:
    """Items with a metric: a range where models differ, as when a judge leaves some answers without a grade."""
    counts = sorted({model["metrics"][name]["items"] for model in models})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _model_name(run: str, method: str) -> str:
    other = " on the other run" if run == "against" else ""
    return _METHODS[method] + other
