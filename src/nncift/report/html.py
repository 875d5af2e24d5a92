"""`report.html` from a finished run folder: what was asked, what was chosen, how far to trust it, what it cost.

One file that needs nothing else: pictures are inline SVG, there is no script and no link outside, and a
Content-Security-Policy forbids the browser to fetch any. Every datum may be hostile. So the template
escapes all it prints, and what does not show (control characters, bidirectional overrides) is spelled out.
Only files of the run folder are read; without labels, network or target their sections say so. The same
folder gives the same bytes. Costs about a second, and four more for each million samples, whose original rows it reads.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import RunError
from nncift.report import plots
from nncift.run.costs import duration
from nncift.run.files import atomic_write, read_array, read_json, read_table

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from jinja2 import Template

_REQUIRED = (
    "config.json",
    "costs.json",
    "summary.json",
    "pool/samples.arrow",
    "features/pool.npy",
    "influence.npy",
    "selection.parquet",
)
_SHOWN = 20  # samples at either end
_SHORT, _LINES, _LONG = 400, 12, 20_000  # characters and lines of a text at once, and characters on demand
_QUADRANTS = ("Q2", "Q4", "Q3", "Q1")  # what selection leans on first
_GROUP_KEYS, _MOST_GROUPS = ("family", "task", "category", "source"), 100


@dataclass(frozen=True)
class _Run:
    config: dict[str, Any]
    summary: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    fidelity: dict[str, Any] | None
    pool: Dataset
    target: Dataset | None
    features: np.ndarray  # (n_pool, d)
    target_features: np.ndarray | None  # (n_target, d)
    influence: np.ndarray  # (n_pool,)
    selection: pa.Table  # a row for each chosen sample, best first
    listed: frozenset[str]  # which of the lists of rows left out there are

    @property
    def chosen(self) -> np.ndarray:
        """Row numbers in the pool, in the order chosen."""
        return self.selection.column("pool_index").to_numpy()  # type: ignore[no-any-return]


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Raises:
        RunError: the folder is no finished run (the message names what is missing), or is damaged.
    """
    run = _read(Path(folder))
    page = _template().render(
        config=run.config,
        summary=run.summary,
        cost=_cost(run),
        fidelity=_fidelity(run.fidelity),
        verified=_verified(Path(folder) / "verify" / "verify.json"),
        rounds=_rounds(Path(folder) / "labels" / "rounds.json"),
        warnings=[w for w in run.summary["warnings"] if not run.fidelity or w != run.fidelity["verdict"]],
        influence={
            "pool": run.influence.mean(),
            "chosen": run.influence[run.chosen].mean() if len(run.chosen) else None,
        },
        gains=plots.gain_curve(run.selection.column("gain").to_numpy()),
        map=plots.embedding_map(run.features, run.chosen, run.target_features),
        groups=_groups(run),
        best=_samples(run, run.chosen[:_SHOWN]),
        worst=_samples(run, np.argsort(run.influence, kind="stable")[:_SHOWN]),
        listed=run.listed,
        version=importlib.metadata.version("nncift"),
    )
    path = Path(folder) / "report.html"
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def visible(text: str) -> str:
    r"""`text` with every character that does not show written as its escape, such as `\x1b` or `\u202e`.

    Line breaks, tabs, spaces of any kind and the joiners that scripts and emoji need stay as they are.
    """
    return "".join(
        c
        if c.isprintable() or c in "\n\t\u200c\u200d" or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode("ascii")
        for c in text.replace("\r\n", "\n")
    )


def _read(folder: Path) -> _Run:
    from datasets import Dataset

    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if missing:
        raise RunError(
            f"{folder} is not the folder of a finished run: it lacks {', '.join(missing)}",
            "run the same `nncift select` command again, which resumes it",
        )
    targets, fidelity = folder / "features" / "target.npy", folder / "fidelity.json"
    target = folder / "target" / "samples.arrow"
    lists = [f"{side}/{what}.jsonl" for side in ("pool", "target") for what in ("duplicates", "excluded", "rejected")]
    run = _Run(
        config=read_json(folder / "config.json"),
        summary=read_json(folder / "summary.json"),
        stages=read_json(folder / "costs.json")["stages"],
        fidelity=read_json(fidelity) if fidelity.is_file() else None,
        pool=Dataset.from_file(str(folder / "pool" / "samples.arrow")),
        target=Dataset.from_file(str(target)) if target.is_file() else None,
        features=read_array(folder / "features" / "pool.npy"),
        target_features=read_array(targets) if targets.is_file() else None,
        influence=read_array(folder / "influence.npy"),
        selection=read_table(folder / "selection.parquet"),
        listed=frozenset(name for name in lists if (folder / name).is_file()),
    )
    lengths = {"pool/samples.arrow": len(run.pool), "features/pool.npy": len(run.features)}
    if {*lengths.values()} != {len(run.influence)} or np.any(run.chosen >= len(run.influence)):
        found = ", ".join(f"{name} has {n} rows" for name, n in lengths.items())
        raise RunError(
            f"the files of {folder} do not belong together ({found}, influence.npy {len(run.influence)})",
            "run into a new folder",
        )
    return run


def _cost(run: _Run) -> dict[str, Any]:
    stages, exact = run.stages.values(), run.summary["exact_all_pairs"]
    columns = {
        "forward_tokens": "LLM tokens forward",
        "backward_tokens": "LLM tokens backward",
        "texts": "Texts encoded",
    }
    total = {name: sum(stage[name] for stage in stages) for name in ("seconds", *columns)}
    return {
        "stages": run.stages,
        "total": total | {"peak_memory": max((stage["peak_memory"] for stage in stages), default=0)},
        "columns": {name: title for name, title in columns.items() if total[name]},
        "exact": exact,
        "times": exact["seconds"] / total["seconds"] if exact and total["seconds"] else None,
        "labelled": run.summary["labelled_pairs"] / max(1, run.summary["all_pairs"]),
    }


def _fidelity(fidelity: dict[str, Any] | None) -> dict[str, Any] | None:
    """The stored figures, new samples first and the training pairs last, and the scatter of those that are finite."""
    if fidelity is None:
        return None
    headline, _, facts = fidelity["verdict"].partition(": ")
    scatter = fidelity["scatter"]
    exact, predicted = (np.array(scatter[side], dtype=np.float64) for side in ("exact", "predicted"))
    finite = np.isfinite(exact) & np.isfinite(predicted)
    members = {name: finite & (np.array(scatter["quadrant"], dtype=str) == name) for name in plots.QUADRANTS}
    clouds = {name: (exact[inside], predicted[inside]) for name, inside in members.items() if inside.any()}
    return fidelity | {
        "headline": headline,
        "facts": facts[:1].upper() + facts[1:],
        "quadrants": {name: fidelity["quadrants"][name] for name in _QUADRANTS if name in fidelity["quadrants"]},
        "points": sum(len(cloud) for cloud, _ in clouds.values()),
        "plot": plots.scatter(clouds) if clouds else None,
    }


def _rounds(path: Path) -> dict[str, Any] | None:
    """The story of labelling in rounds, with its learning curve."""
    if not path.is_file():
        return None
    story: dict[str, Any] = read_json(path)
    points = [(one["pairs"], one["reached"]) for one in story["rounds"] if one["reached"] is not None]
    return story | {"plot": plots.learning_curve(*map(list, zip(*points, strict=True))) if points else None}


def _verified(path: Path) -> dict[str, Any] | None:
    """What the measurement of the shortlist said, with its scatter; None where none was measured."""
    if not path.is_file():
        return None
    facts: dict[str, Any] = read_json(path)
    exact, predicted = (np.array(facts["scatter"][side], dtype=np.float64) for side in ("exact", "predicted"))
    return facts | {"plot": plots.scatter({"shortlist": (exact, predicted)})}


def _groups(run: _Run) -> dict[str, Any] | None:
    """Shares of each value of the first grouping key that the original rows have, most chosen first."""
    chosen = np.zeros(len(run.pool), dtype=bool)
    chosen[run.chosen] = True
    left, subset, targets = _count(run.pool, ~chosen), _count(run.pool, chosen), _count(run.target)
    for key in _GROUP_KEYS:
        pool = left[key] + subset[key]
        if not 2 <= len(pool.keys() - {None}) <= min(_MOST_GROUPS, len(run.pool) // 2):
            continue
        target = targets[key] if 1 <= len(targets[key].keys() - {None}) <= _MOST_GROUPS else None
        rows = [
            {
                "value": value,
                "chosen": subset[key][value],
                "pool": pool[value] / pool.total(),
                "subset": subset[key][value] / max(1, subset[key].total()),
                "target": target[value] / target.total() if target else None,
            }
            for value in sorted(pool, key=lambda value: (-subset[key][value], -pool[value], str(value)))
        ]
        return {"key": key, "rows": rows, "target": target is not None}
    return None


def _count(rows: Dataset | None, which: np.ndarray | None = None) -> dict[str, Counter[str | None]]:
    """How often each value of each grouping key stands in the rows, or in those that `which` marks."""
    import pyarrow as pa

    counts: dict[str, Counter[str | None]] = {key: Counter() for key in _GROUP_KEYS}
    if rows is None:
        return counts
    column = rows.data.column("original")
    for chunk in (column if which is None else column.filter(pa.array(which))).chunks:
        for text in chunk.to_pylist():
            original = json.loads(text)
            for key, count in counts.items():
                value = original.get(key)
                if len(count) <= _MOST_GROUPS + 1:  # with more they are no groups: stop counting
                    count[str(value)[:80] if isinstance(value, (str, int)) else None] += 1
    return counts


def _samples(run: _Run, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    rank = {int(row): position for position, row in enumerate(run.chosen, 1)}
    gains = run.selection.column("gain")
    samples = []
    for row in map(int, rows):
        sample, position = run.pool[row], rank.get(row)
        samples.append(
            {
                "id": sample["id"],
                "row": sample["source_row"],
                "rank": position,
                "gain": gains[position - 1].as_py() if position else None,
                "influence": float(run.influence[row]),
                "texts": {name: _cut(sample[name]) for name in ("prompt", "response")},
            }
        )
    return samples


def _cut(text: str) -> dict[str, Any]:
    text = text.replace("\r\n", "\n")
    head = "\n".join(text[:_SHORT].split("\n")[:_LINES])
    whole = len(text) <= len(head) + 40  # not worth a click
    return {"head": text if whole else head, "full": None if whole else text[:_LONG], "characters": len(text)}


def _template() -> Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # Whatever the template prints passes here first, so no datum is forgotten; then it is escaped.
        finalize=lambda value: value if hasattr(value, "__html__") else visible(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,.0f}".format,
        "duration": duration,
        "memory": _memory,
        "share": _share,
        "value": _value,
    }
    return environment.get_template("report.html.jinja")


def _memory(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _share(part: float) -> str:
    percent = 100 * part
    return (f"{percent:.1f}" if percent >= 1 or not percent else _value(percent, significant=2)) + "\u00a0%"


def _value(number: float | None, decimals: int | None = None, significant: int = 4) -> str:
    """A measured value with `decimals`, or with that many significant digits; a dash when it is undefined."""
    if number is None or not math.isfinite(number):
        return "\u2013"
    if decimals is None:
        decimals = max(0, significant - 1 - math.floor(math.log10(abs(number)))) if number else 0
    return f"{number:,.{min(decimals, 12)}f}".replace("-", "\u2212")
