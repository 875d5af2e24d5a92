"""What was chosen: composition and lengths, pool against subset, and the first samples with the reasons for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nncift.data.composition import count_values, is_grouping, length_quantiles
from nncift.report.choices import listed
from nncift.report.files import FinishedFiles
from nncift.run.folder.records import percent

_SHOWN = 20  # samples at either end
_SHORT, _LINES, _LONG = 400, 12, 20_000  # characters and lines of a text at first, and characters on demand
_TEASER = 160  # characters of a target or of a sample left out
_MOST_VALUES = 100  # of a column
_MORE, _HARDLY, _NAMED = 1.5, 0.1, 3  # times the share in the pool, distance, and values that are named


def columns(run: FinishedFiles) -> list[dict[str, Any]]:
    """Shares of each value of the columns with few, most selected first; columns that differ most come first.

    How much one differs is the total variation distance between subset and pool: the share of the subset that would
    have to be exchanged.
    """
    found, none = count_values(run.pool, run.chosen, _MOST_VALUES), np.zeros(0, np.int64)
    targets = {} if run.target is None else count_values(run.target, none, _MOST_VALUES)
    tables = []
    for name, (pool, subset) in found.items():
        if not is_grouping(pool, _MOST_VALUES):
            continue
        target = targets[name][0] if name in targets else None
        rows: list[dict[str, Any]] = [
            {
                "value": value,
                "chosen": subset[value],
                "pool": _share(pool, value),
                "subset": _share(subset, value),
                "target": None if target is None else _share(target, value),
            }
            for value in +pool
        ]
        rows.sort(key=lambda row: (-row["chosen"], -(row["target"] or 0), -row["pool"], str(row["value"])))
        differ = sum(abs(row["subset"] - row["pool"]) for row in rows) / 2
        tables.append({"name": name, "rows": rows, "target": target is not None, "differ": differ})
    return sorted(tables, key=lambda table: -table["differ"])


def contrast(table: Mapping[str, Any]) -> str:
    """How the subset differs from the pool in a column, and what it lacks of the target; empty where it hardly does."""
    rows = [row for row in table["rows"] if row["value"] is not None]
    rows = sorted(rows, key=lambda row: -abs(row["subset"] - row["pool"]))
    more = [row for row in rows if row["subset"] > _MORE * row["pool"]][:_NAMED]
    less = [row for row in rows if row["subset"] * _MORE < row["pool"]][:_NAMED]
    missing = [row for row in rows if not row["chosen"] and (row["target"] or 0) >= _HARDLY][:_NAMED]
    parts = [f"{word} {listed([*map(_in_words, some)])}" for word, some in (("more", more), ("less", less)) if some]
    sentences = []
    if parts and table["differ"] >= _HARDLY:
        sentences.append(f"Compared with the pool, the subset has {'; '.join(parts)}.")
    if missing:
        named = listed([f"{row['value']} ({percent(row['target'])} of the target)" for row in missing])
        sentences.append(f"Nothing was chosen of {named}.")
    return " ".join(sentences)


def _in_words(row: Mapping[str, Any]) -> str:
    return f"{row['value']} ({percent(row['subset'])} instead of {percent(row['pool'])})"


def _share(counts: Counter[str | None], value: str | None) -> float:
    return counts[value] / max(1, counts.total())


def lengths(run: FinishedFiles) -> list[dict[str, Any]]:
    """The 10 %, 50 % and 90 % quantiles of the characters of prompts and responses, and the largest of all."""
    found = []
    for text in ("prompt", "response"):
        sides = {"subset": length_quantiles(run.pool, text, run.chosen), "pool": length_quantiles(run.pool, text)}
        if run.target is not None:
            sides["target"] = length_quantiles(run.target, text)
        sides = {side: quantiles for side, quantiles in sides.items() if quantiles}
        most = max((quantiles[-1] for quantiles in sides.values()), default=0)
        found.append({"text": text, "sides": sides, "most": max(most, 1)})
    return found


def first_samples(run: FinishedFiles) -> list[dict[str, Any]]:
    """The first selected samples, each with the targets that it helps most and its twin, as far as these are known."""
    samples = _samples(run, run.chosen[:_SHOWN])
    reasons = {} if run.reasons is None else run.reasons.samples
    targets = run.pool if run.target is None else run.target
    for row, sample in zip(run.chosen.tolist(), samples, strict=False):
        found = reasons.get(str(row), {})
        sample["helps"] = [
            {"id": targets[j]["id"], "text": _teaser(targets[j]["prompt"]), "influence": influence}
            for j, influence in found.get("targets", ())
            if j < len(targets)
        ]
        sample["twin"] = _twin(run, found.get("twin"))
    return samples


def _twin(run: FinishedFiles, found: Sequence[Any] | None) -> dict[str, Any] | None:
    if found is None or found[0] >= len(run.pool):
        return None
    row, cosine = found
    twin = run.pool[row]
    facts = {"id": twin["id"], "cosine": cosine, "influence": float(run.influence[row])}
    return facts | {"prompt": _teaser(twin["prompt"]), "response": _teaser(twin["response"])}


def lowest_samples(run: FinishedFiles) -> list[dict[str, Any]]:
    """The samples of the pool with the lowest mean influence."""
    return _samples(run, np.argsort(run.influence, kind="stable")[:_SHOWN])


def _samples(run: FinishedFiles, rows: np.ndarray) -> list[dict[str, Any]]:
    rank = {row: position for position, row in enumerate(run.chosen.tolist(), 1)}
    return [
        {
            "id": sample["id"],
            "row": sample["source_row"] + 1,  # as messages count them
            "rank": rank.get(row),
            "gain": float(run.gains[rank[row] - 1]) if row in rank else None,
            "influence": float(run.influence[row]),
            "texts": {name: _cut(sample[name]) for name in ("prompt", "response")},
        }
        for row, sample in zip(map(int, rows), run.pool.select(rows), strict=True)
    ]


def _cut(text: str) -> dict[str, Any]:
    text = text.replace("\r\n", "\n")
    head = "\n".join(text[:_SHORT].split("\n")[:_LINES])
    whole = len(text) <= len(head) + 40  # not worth a click
    return {"head": text if whole else head, "full": None if whole else text[:_LONG], "characters": len(text)}


def _teaser(text: str) -> str:
    line = " ".join(text[: 2 * _TEASER].split())
    return line if len(line) <= _TEASER and len(text) <= 2 * _TEASER else f"{line[:_TEASER]} …"
