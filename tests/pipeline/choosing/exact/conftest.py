"""Files and options of runs whose influence is exact for every pair."""

from __future__ import annotations

import pytest

from builders import word_rows, write_rows


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, str]:
    folder, sides = tmp_path_factory.mktemp("files"), {"pool": (40, 0), "target": (6, 100), "known": (9, 300)}
    chat = [{"role": "user", "content": "Say river"}, {"role": "assistant", "content": "river"}]
    chat = {"messages": [*chat, {"role": "user", "content": "And stone"}, {"role": "assistant", "content": "stone"}]}
    made = {side: write_rows(folder / f"{side}.jsonl", word_rows(n, start)) for side, (n, start) in sides.items()}
    return made | {"chats": write_rows(folder / "chats.jsonl", [chat, *word_rows(20)])}


@pytest.fixture(scope="session")
def common(tiny_model, small_encoder) -> dict:
    return {"model": tiny_model, "encoder": small_encoder, "device": "cpu", "budget": 5}
