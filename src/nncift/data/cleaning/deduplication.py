"""The samples that remain, with unique ids: not in a test set, no exact duplicates, and such that a model can take.

Memory holds hashes alone, about 100 bytes a sample, and another 100 if rows have their own ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nncift.data.chats.messages import content_text, has_blank_system, transcript
from nncift.data.cleaning.decontamination import Contamination
from nncift.data.cleaning.test_sets import sample_texts
from nncift.data.reader import Sample, Samples, content_hash, short_hash
from nncift.data.rows import json_text
from nncift.data.schemas import Text, chat_messages
from nncift.data.writer import PoolWriter
from nncift.run.folder.records import counted

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH = 1000

_OTHER_FORM = re.compile(r'\bnull\b|"content": (?:\[|"(?:\s|\\u....|\\.)*")')  # or blank content

Screen = Callable[[Text], str | None]


def duplicate_key(text: Text, content: int) -> int:
    """A hash that is equal for samples that are the same to a model.

    It is `content`, that of the texts, unless a chat has null keys, content in parts or a blank system message at its
    start, as a copy of it in another file may.
    """
    if text.messages is None or not _OTHER_FORM.search(text.messages):
        return content
    messages = [
        {key: value for key, value in message.items() if value is not None} for message in chat_messages(text.messages)
    ]
    prompt = text.prompt
    if has_blank_system(messages):
        del messages[0]
        texts = [content_text(message, "messages", i) for i, message in enumerate(messages[:-1])]
        prompt = transcript(messages[:-1], texts, text.tools)
    return content_hash(text._replace(prompt=prompt, messages=json_text(messages)))


@dataclass
class Deduplication:
    """Writes the samples that remain, and lists the others.

    Args:
        writer: of the pool.
        contamination: the test sets.
        screen: why a model cannot take a row; None if it can.
        keep_duplicates: keep exact duplicates.

    Attributes:
        duplicates, excluded: how many samples were left out.
        renamed: how many had the id of an earlier one with other content.
    """

    writer: PoolWriter
    contamination: Contamination | None = None
    screen: Screen | None = None
    keep_duplicates: bool = False
    duplicates: int = 0
    excluded: int = 0
    renamed: int = 0
    _pool_row: dict[int, int] = field(default_factory=dict)  # by `duplicate_key`
    _used: dict[int, int] = field(default_factory=dict)  # ids, with the number of the last that was made from each

    @property
    def notes(self) -> list[str]:
        """Remarks for the data summary."""
        if not self.renamed:
            return []
        return [
            f"the ids of {counted(self.renamed, 'sample')} repeat those of others and were made unique (#2, #3, ...)"
        ]

    def remember(self, pool: Dataset) -> None:
        """Take samples into account that are the first of the pool."""
        columns = ("id", "prompt", "response", "messages", "tools")
        present = [name for name in columns if name in pool.column_names]  # of an earlier version
        pool = pool.select_columns(present)
        for start in range(0, len(pool), _BATCH):
            batch = pool[start : start + _BATCH]
            none = [None] * len(batch["id"])
            columns_of = (batch.get(name, none) for name in columns)
            for row, (identity, *texts) in enumerate(zip(*columns_of, strict=True), start):
                content = content_hash(text := Text(*texts))
                self._pool_row.setdefault(duplicate_key(text, content), row)
                if self.keep_duplicates or identity != f"{content:015x}":
                    self._used.setdefault(short_hash(identity), 1)

    def take(self, rows: Iterable[Sample], samples: Samples) -> None:
        """Write the samples of a source; one that the screen refuses counts as a bad row of `samples`."""
        writer, pool_row = self.writer, self._pool_row
        for sample in rows:
            key = duplicate_key(sample.text, sample.content)
            if self.contamination and (found := self.contamination.find(sample_texts(sample.text))):
                self.excluded += 1
                writer.exclude(sample, *found)
            elif key in pool_row and not self.keep_duplicates:
                self.duplicates += 1
                writer.drop_duplicate(sample, pool_row[key])
            elif self.screen is not None and (reason := self.screen(sample.text)) is not None:
                samples.refuse(sample.row, "", reason)
            else:
                identity = sample.identity
                if sample.own or self.keep_duplicates:
                    identity = self._unique(identity)
                    self.renamed += identity != sample.identity and key not in pool_row
                pool_row.setdefault(key, writer.rows)
                writer.keep(sample, identity)

    def _unique(self, identity: str) -> str:
        """An id, with "#2", "#3", ... where it is taken."""
        key = short_hash(identity)
        number = self._used[key] = self._used.get(key, 0) + 1
        if number == 1:
            return identity
        unique = f"{identity}#{number}"
        while short_hash(unique) in self._used:  # another row's own id
            number = self._used[key] = number + 1
            unique = f"{identity}#{number}"
        self._used.setdefault(short_hash(unique), 1)
        return unique
