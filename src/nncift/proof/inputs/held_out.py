"""The test file of an evaluation: read like a pool, and kept apart from what the model is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nncift.data.cleaning.decontamination import prompt_key
from nncift.data.pool import ReadOptions, read_pool
from nncift.data.schemas import chat_messages
from nncift.errors import DataError
from nncift.run.folder.parts import SampleFolder

if TYPE_CHECKING:
    from datasets import Dataset

_LISTED = 3  # rows that are named


def read_test(source: Any, folder: SampleFolder, options: ReadOptions, *, progress: bool = False) -> Dataset:
    """The items of a test file.

    Args:
        source: a file, folder, hub id or data in memory, with prompts and reference responses.
        folder: where they are kept.
        options: the columns, where the schema is not recognised.
        progress: show a progress bar.

    Raises:
        DataError: it cannot be read; the message names file and row.
    """
    test, _ = read_pool(source, options, folder=folder.path, name="test file", named_elsewhere=True, progress=progress)
    return test


def refuse_overlap(test: Dataset, chosen: Dataset, name: str, *, of: str = "subset") -> None:
    """Refuse test items whose prompt also stands among the chosen rows, compared as `decontamination` does.

    The prompt of a chat with one question is also that question, without the system message. Of a chosen chat every
    question counts: those before the last are trained on with `turns` all. Shared n-grams are no reason: rows of one
    task often share its template.

    Args:
        test: the items.
        chosen: the rows that the model will be trained on.
        name: of the test file.
        of: what these rows are, "subset" or "pool".

    Raises:
        DataError: some do; the message names them.
    """
    index = {
        prompt_key(text): row["id"]
        for row in _with_chats(chosen, "id")
        for text in (row["prompt"], *_questions(row.get("messages")))
    }
    index.pop((), None)  # prompts of punctuation alone differ all the same
    found = []
    for row in _with_chats(test, "source_row"):
        questions = _questions(row.get("messages"))
        texts = (row["prompt"], *questions) if len(questions) == 1 else (row["prompt"],)  # "Go on" is in many
        identity = next((index[key] for text in texts if (key := prompt_key(text)) in index), None)
        if identity is not None:
            found.append((row["source_row"] + 1, identity))
    if found:
        number, identity = found[0]
        more = ", ".join(str(row) for row, _ in found[1:_LISTED])
        others = f", rows {more}{', ...' if len(found) > _LISTED else ''} too" if more else ""
        raise DataError(
            f"{len(found)} of {len(test)} test prompts are also in the {of}: this one in {identity!r}{others}",
            f"{'choose again' if of == 'subset' else 'leave them out'} with `exclude` set to the test file, or give"
            " `allow_overlap`",
            file=name,
            row=number,
        )


def _with_chats(samples: Dataset, column: str) -> Iterator[dict[str, Any]]:
    """The rows with their prompts, chats and another column."""
    names = [name for name in ("prompt", "messages", column) if name in samples.column_names]
    yield from samples.select_columns(names)


def _questions(messages: str | None) -> list[str]:
    """The user's turns of a chat; none of a row that is no chat."""
    turns = [] if messages is None else chat_messages(messages)
    return [str(turn["content"]) for turn in turns if turn.get("role") == "user"]
