"""Runs whose subsets are handed on."""

from __future__ import annotations

from pathlib import Path

import pytest

import nncift
from builders import word_rows

CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}
ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}


def turn(role: str, content: str | None, **more) -> dict:
    return {"role": role, "content": content, **more}


def called(name: str, arguments) -> dict:
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return turn("assistant", None, tool_calls=[call])


CHATS = [
    {
        "messages": [
            turn("system", "Be brief."),
            turn("user", "Hello, I am Ada."),
            turn("assistant", "Welcome!"),
            turn("user", "Bye."),
            turn("assistant", "See you\u2028soon, Ada"),  # a line separator that is no line break of JSON Lines
        ],
        "level": 3,
    },
    {
        "messages": [
            turn("user", "What time is it?"),
            called("clock", {"zone": "UTC"}),
            turn("tool", "noon", tool_call_id="c1"),
            turn("assistant", "It is noon."),
        ],
        "tools": [{"type": "function", "function": CLOCK}],
        "level": 2,
    },
    {
        "messages": [turn("user", "Add 1"), called("add", '{"a": 1}'), turn("tool", "1"), turn("assistant", "1")],
        "tools": [{"type": "function", "function": ADD}],
        "level": 4,
    },
    {"instruction": "Add the numbers:", "input": "8 and 9", "output": "It is 17.", "level": 1},
]
GREETING = {"messages": [turn("assistant", "Hi"), turn("user", "A colour?"), turn("assistant", "Blue")], "level": 5}


@pytest.fixture(scope="session")
def chat_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All turns of chats with a system prompt, tools and a greeting, weighted."""
    folder = tmp_path_factory.mktemp("chats") / "run"
    rows = [*CHATS, GREETING]
    nncift.select(rows, influence="bm25", budget=len(rows), turns="all", weights=True, output=str(folder))
    return folder


@pytest.fixture(scope="session")
def phased_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Single turns in two phases, weighted."""
    folder = tmp_path_factory.mktemp("phases") / "run"
    rows = [{**row, "level": number % 7} for number, row in enumerate(word_rows(12))]
    options = {"weights": True, "difficulty": "level", "phases": 2}
    nncift.select(rows, influence="bm25", budget=8, output=str(folder), **options)
    return folder


@pytest.fixture(scope="session")
def sketch_options(tiny_model) -> dict:
    return {
        "influence": "gradient-sketch",
        "influence_options": {"dimension": 128},
        "model": tiny_model,
        "dtype": "float32",
        "device": "cpu",
        "budget": 8,
    }


@pytest.fixture(scope="session")
def sketch_pool() -> list[dict]:
    return [{**row, "kind": "odd" if number % 2 else "even"} for number, row in enumerate(word_rows(40))]


@pytest.fixture(scope="session")
def sketch_run(sketch_pool, sketch_options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exact influence that depends on the model, with a quota."""
    folder = tmp_path_factory.mktemp("sketch") / "run"
    nncift.select(
        sketch_pool, target=word_rows(5, offset=200), quota={"kind": "equal"}, output=str(folder), **sketch_options
    )
    return folder


@pytest.fixture(scope="session")
def network_run(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Estimated influence, by a network that reads the features of the language model."""
    folder = tmp_path_factory.mktemp("network") / "a secret folder" / "run"
    options = {"influence": "gradient-similarity", "labels": "16samples", "features": "lm", "budget": 6}
    nncift.select(
        word_rows(30), target=word_rows(8, offset=200), model=tiny_model, dtype="float32", device="cpu",
        output=str(folder), **options,
    )  # fmt: skip
    return folder
