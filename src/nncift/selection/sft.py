"""Selected samples in the columns of trl's SFTTrainer, with the loss on the responses, which influence is measured on.

The columns are `prompt` and `completion`: by trl's default their loss is on the completion alone, with any chat
template. A column of whole chats would put it on every token, or need a template that marks the assistant's turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.data.chats.messages import exchange
from nncift.data.schemas import chat_messages
from nncift.errors import DependencyError

if TYPE_CHECKING:
    from datasets import Dataset

CHAT_COLUMNS = ("messages", "tools", "turns")  # of a pool, which may lack them
WEIGHT = "weight"  # a column of rows that have weights


def text_dataset(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """Prompts and completions as plain text."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["response"], **_weight(row)} for row in rows])


def chat_dataset(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """Prompts and completions as messages, one row for each turn that is trained on; `tools` where a row has any.

    Raises:
        DependencyError: messages with other keys than role and content need a newer version of `datasets`.
    """
    import datasets

    examples = [example for row in rows for example in _examples(row)]
    has_tools = any(example["tools"] for example in examples)
    if not has_tools:
        examples = [{name: value for name, value in example.items() if name != "tools"} for example in examples]
    keys = {key for example in examples for message in example["prompt"] + example["completion"] for key in message}
    if not has_tools and keys <= {"role", "content"}:
        return datasets.Dataset.from_list(examples)
    # Arrow would give every message the keys of all others, and chat templates test for the presence of a key.
    if not hasattr(datasets, "Json"):
        raise DependencyError("chats with tools need a newer version of datasets", "pip install --upgrade datasets")
    as_json = datasets.List(datasets.Json())
    features = {name: datasets.Value("float64") if name == WEIGHT else as_json for name in examples[0]}
    return datasets.Dataset.from_list(examples, features=datasets.Features(features))


def rows_per_sample(rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """How many rows `chat_dataset` makes of each sample, int64 (n,)."""
    return np.array([sum(1 for _ in _examples(row)) for row in rows], dtype=np.int64)


def _examples(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    messages = row.get("messages")
    if messages is None:
        chat = exchange(row["prompt"], row["response"])
    else:
        chat = [_with_content(message) for message in chat_messages(messages)]
    tools = json.loads(row.get("tools") or "[]") or None
    last = len(chat) - 1
    for turn in row.get("turns") or [last]:
        if turn > 0:  # a greeting answers no prompt
            yield {"prompt": chat[:turn], "completion": [chat[turn]], "tools": tools, **_weight(row)}


def _weight(row: Mapping[str, Any]) -> dict[str, float]:
    return {WEIGHT: row[WEIGHT]} if WEIGHT in row else {}


def _with_content(message: dict[str, Any]) -> dict[str, Any]:
    """Text for the null content of a tool call, which many chat templates cannot join to other text."""
    return message if message.get("content") is not None else message | {"content": ""}
