"""Rows and files that tests of runs share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# The files that must be the same bytes after a resume; the log, costs and what is drawn from them are exempt.
SAME_BYTES = (
    "config.json",
    "pool/samples.arrow",
    "target/samples.arrow",
    "features/pool.npy",
    "features/target.npy",
    "labels/plan.json",
    "labels/labels.parquet",
    "network/config.json",
    "network/model.safetensors",
    "fidelity.json",
    "influence.npy",
    "selection.parquet",
    "subset.jsonl",
)
EXACT_FILES = ("influence.npy", "selection.parquet", "subset.jsonl")
"""Those of a run whose influence is exact for every pair, beside its vectors."""


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def arithmetic(n: int, offset: int = 0) -> list[dict]:
    return [
        {"id": f"sum-{i}", "question": f"What is {i} plus {i % 7}?", "answer": f"{i + i % 7}", "family": "sums"}
        for i in range(offset, offset + n)
    ]


@contextmanager
def stopped_at(file: Path, *, after: bool) -> Iterator[None]:
    """What is called here ends with KeyboardInterrupt where `file` is put in its place: just after that, or before."""
    plain = Path.replace

    def dead(self, destination):
        done = plain(self, destination) if after or Path(destination) != file else None
        if Path(destination) == file:
            raise KeyboardInterrupt
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", dead)
        with pytest.raises(KeyboardInterrupt):
            yield
