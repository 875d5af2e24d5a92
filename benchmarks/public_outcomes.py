"""Training outcomes in the layout that benchmarks of data attribution share: train.jsonl, test.jsonl and lds.jsonl.

The samples are instruction-tuning data in any form that nncift reads, a row each. Each line of lds.jsonl is a training:
`train_subset` has the rows of train.jsonl that it was on (their numbers from 0, or their ids), `test_loss` the loss of
each row of test.jsonl after it. Lines with the same subset are further seeds of it. The layout has no losses before
training: their place is taken by the mean loss after it, which no rank correlation within a target depends on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from nncift.data.pool import load_pool
from nncift.errors import DataError
from nncift.evaluation.datamodels import TrainingOutcomes
from nncift.run.storage.files import atomic_write

FIELDS = ("id", "prompt", "response")


def write_public(folder: Path, outcomes: TrainingOutcomes, pool: Dataset, target: Dataset) -> None:
    """Write the three files; of chats, the messages."""
    for name, rows in (("train", pool), ("test", target)):
        write_lines(folder / f"{name}.jsonl", [public_row(row) for row in rows])
    lines = [
        {"train_subset": np.flatnonzero(subset).tolist(), "test_loss": losses.tolist(), "seed": seed}
        for seed, after in enumerate(outcomes.after)
        for subset, losses in zip(outcomes.subsets, after, strict=True)
    ]
    write_lines(folder / "lds.jsonl", lines)


def public_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a pool as it is written."""
    if row.get("messages"):
        return {"id": row["id"], "messages": json.loads(row["messages"])}
    return {field: row[field] for field in FIELDS}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write JSON Lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def read_public(folder: Path) -> tuple[Dataset, Dataset, TrainingOutcomes]:
    """The pool, the targets and the outcomes.

    Raises:
        DataError: a file is missing, or a line is not of this layout: file and line.
    """
    pool, target = (load_pool(folder / f"{name}.jsonl", keep_duplicates=True) for name in ("train", "test"))
    path, place = folder / "lds.jsonl", {name: number for number, name in enumerate(pool["id"])}
    if not path.is_file():
        raise DataError("there are no training outcomes", "lds.jsonl stands beside train.jsonl", file=str(path))
    losses: dict[bytes, list[np.ndarray]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                subset, after = read_line(json.loads(line), place, len(target))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                problem = f"is no training on rows of train.jsonl with losses of test.jsonl ({error})"
                raise DataError(problem, "see benchmarks/public_outcomes.py", file=str(path), row=number) from error
            losses.setdefault(subset.tobytes(), []).append(after)
    if not losses:
        raise DataError("holds no training", "see benchmarks/public_outcomes.py", file=str(path))
    seeds = {len(found) for found in losses.values()}
    if len(seeds) > 1:  # seeds that only some subsets have
        losses = {key: [np.mean(found, axis=0)] for key, found in losses.items()}
    subsets = np.array([np.frombuffer(key, bool) for key in losses])
    after = np.array(list(losses.values()), np.float32).transpose(1, 0, 2)
    before = after.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    ids = tuple(map(str, pool["id"])), tuple(map(str, target["id"]))
    return pool, target, TrainingOutcomes(*ids, subsets, before, after, {"source": folder.name})


def read_line(line: dict[str, Any], place: dict[str, int], n_target: int) -> tuple[np.ndarray, np.ndarray]:
    """Membership of each pool sample, (n_pool,) bool, and the loss of each target, (n_target,) float32."""
    subset, rows = np.zeros(len(place), bool), line["train_subset"]
    numbers = [place[row] if isinstance(row, str) else row for row in rows]
    if not numbers or any(isinstance(number, bool) or number < 0 for number in numbers):
        raise ValueError("train_subset is empty, or has something else than row numbers or ids")
    subset[numbers] = True
    losses = np.array(line["test_loss"], np.float32)
    if losses.shape != (n_target,) or not np.isfinite(losses).all():
        raise ValueError(f"test_loss has the shape {losses.shape} in place of ({n_target},), or is not finite")
    return subset, losses
