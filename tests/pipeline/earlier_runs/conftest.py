"""A pool, rows to append to it, and a target."""

from __future__ import annotations

import pytest

from builders import word_rows, write_rows


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sides")
    rows = word_rows(60)
    made = {"pool": rows[:40], "new": [*rows[40:52], rows[3]], "third": rows[52:], "target": word_rows(6, 100)}
    return {side: write_rows(folder / f"{side}.jsonl", each) for side, each in made.items()}
