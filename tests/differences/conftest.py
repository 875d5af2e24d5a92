"""Three finished runs to compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

import nncift
from builders import word_rows, write_rows


def shared_letters(pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
    """Share of the target's letters that the sample has, less a half."""
    samples, targets = ([{*row["prompt"], *row["response"]} for row in rows] for rows in (pool_rows, target_rows))
    return np.array([[len(a & b) / len(b) - 0.5 for b in targets] for a in samples], np.float32)


@pytest.fixture(scope="package")
def data(tmp_path_factory) -> dict[str, str]:
    """Two pools that share 50 rows in another order, and a target."""
    folder = tmp_path_factory.mktemp("data")
    first = [{**row, "task": ("left", "right")[i % 2]} for i, row in enumerate(word_rows(60))]
    second = [{**row, "id": f"other-{i}"} for i, row in enumerate([*first[:50][::-1]])]
    more = {"prompt": "Say \x1b[31mred <script>alert(1)</script> | stone", "response": "stone river", "task": "left"}
    second += [more, *({**row, "task": "middle"} for row in word_rows(9, 200))]
    np.save(folder / "features.npy", np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32))
    np.save(folder / "targets.npy", np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32))
    sides = {"first": first, "second": second, "target": word_rows(6, 100)}
    return {name: write_rows(folder / f"{name}.jsonl", rows) for name, rows in sides.items()} | {
        name: str(folder / f"{name}.npy") for name in ("features", "targets")
    }


@pytest.fixture(scope="package")
def runs(data, tmp_path_factory) -> dict[str, Path]:
    """An exact run with a target, an estimated one of the other pool, and one that is its own target."""
    folder = tmp_path_factory.mktemp("runs")
    made = {name: folder / name for name in ("exact", "estimated", "own")}
    own = {"features": data["features"], "target_features": data["targets"], "labels": 80, "probes": 2}
    nncift.select(data["first"], target=data["target"], influence="bm25", budget=12, output=made["exact"])
    nncift.select(
        data["second"],
        target=data["target"],
        influence=shared_letters,
        budget=15,
        output=made["estimated"],
        **own,
    )
    nncift.select(data["first"], influence="bm25", budget=9, output=made["own"])
    return made


@pytest.fixture(scope="package")
def found(runs) -> nncift.RunDiff:
    return nncift.diff(runs["exact"], runs["estimated"])
