"""The texts of test sets, for decontamination: only texts are needed, whatever else their rows hold.

A row that fits a known schema is read by it. Of any other row, such as one with an integer for an answer, each text
counts: those in fields that are questions by name as prompts, others as texts that only match if they are long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from nncift.data.chats.messages import BadRow, Values, content_text
from nncift.data.cleaning.decontamination import Contamination, Texts, words
from nncift.data.detection import Detector, field_names
from nncift.data.reader import SHOWN, bad_rows_error, content_hash, own_id, short_hash
from nncift.data.rows import Row
from nncift.data.schemas import SCHEMAS, Schema, Text
from nncift.data.sources.sources import Source
from nncift.errors import DataError

_QUESTIONS = {  # names of fields
    *("question", "questions", "question_text", "prompt", "prompts", "problem", "query", "instruction", "turns"),
    *("input", "inputs", "text", "goal", "sentence", "passage", "stem", "ctx"),
}
_SHORTEST = 2  # words of a question in a row of no known schema: one alone is rather a label


def sample_texts(text: Text) -> Texts:
    """The texts of a sample: of a chat, those of each turn."""
    if text.messages is None:
        return Texts((text.prompt,), (text.response,))
    found: dict[str, list[str]] = {"user": [], "assistant": [], "": []}
    for i, message in enumerate(json.loads(text.messages)):
        role = message["role"] if message["role"] in found else ""
        found[role].append(content_text(message, "messages", i))
    return Texts(tuple(found["user"]), tuple(found["assistant"]), tuple(found[""]))


class TestSets:
    """Reads test sets into an index.

    Args:
        named: the schemas of fields that the user names for pool, target and known samples.
        fields: the fields of the questions, where a row has any of them; its others are not compared then.
        skip: skip rows that cannot be parsed, instead of raising.
    """

    __test__ = False  # pytest takes classes of such a name for tests

    def __init__(self, named: Sequence[Schema] = (), fields: Sequence[str] = (), *, skip: bool = False) -> None:
        self.named = named
        self.fields = fields
        self.skip = skip
        self.has_named = False  # whether a row has the fields of `named`
        self._questions = _QUESTIONS.union(schema.fields[0] for schema in named)
        self._names: dict[str, None] = {}  # of fields

    def index(self, sources: Sequence[Source]) -> Contamination:
        """The index of all samples.

        Raises:
            DataError: a source has no text, none has a field of `fields`, or a row cannot be parsed.
        """
        contamination = Contamination()
        for source in sources:
            self._add(contamination, source)
        missing = next((field for field in self.fields if field not in self._names), None)
        if missing is not None:
            raise DataError(
                f"no test set has the field {missing!r} that `exclude_fields` names",
                f"the fields are {field_names(self._names)}",
                sources[0].name,
            )
        return contamination

    def _add(self, contamination: Contamination, source: Source) -> None:
        detector = Detector((*self.named, *SCHEMAS))
        first: list[tuple[Row, str, str]] = []
        names: dict[str, None] = {}
        read = bad = indexed = 0
        for row in source.rows():
            read += 1
            if row.values is None:
                bad += 1
                first += [(row, "", row.reason)] * (bad <= SHOWN)
                continue
            names.update(dict.fromkeys(map(str, row.values)))
            self.has_named |= any(all(field in row.values for field in schema.fields) for schema in self.named)
            identity, texts = self._texts(row, row.values, detector)
            if any(texts):
                contamination.add(own_id(row.values) or f"{identity:015x}", row.file, texts)
                indexed += 1
        self._names.update(names)
        if names:  # of a table without a header they are its first row
            contamination.add("names of the columns", source.name, Texts((), (), tuple(names)))
        if bad and not (self.skip and indexed):
            raise bad_rows_error(source.name, first, bad, read, skip=2 * bad <= read)
        if not indexed:
            problem = (
                f"there is no text in its fields ({field_names(self._names)})" if read else "there is no row in it"
            )
            raise DataError(problem, "give a test set with texts to compare with", source.name)

    def _texts(self, row: Row, values: Values, detector: Detector) -> tuple[int, Texts]:
        """A hash to name a row by, and its texts."""
        if any(field in values for field in self.fields):
            named = tuple(text for field in self.fields for text in _strings(values.get(field)))
            return short_hash(row.text), Texts(named)
        try:
            _, text = detector.read(values)
        except BadRow:
            return short_hash(row.text), self._free_texts(values)
        texts = sample_texts(text)
        if text.messages is not None:  # later turns ("Yes, please.") are no questions by themselves
            texts = Texts(texts.prompts[:1], texts.responses, (*texts.prompts[1:], *texts.others))
        try:
            return content_hash(text), texts
        except UnicodeEncodeError:  # half of a surrogate pair
            return short_hash(row.text), texts

    def _free_texts(self, values: Values) -> Texts:
        prompts: list[str] = []
        others: list[str] = []
        for name, value in values.items():
            if name not in self._questions and str(name).lower() not in self._questions:
                others += _strings(value)
            elif isinstance(value, dict):  # a question with its choices
                inside = self._free_texts(value)
                prompts += inside.prompts
                others += inside.others
            else:
                for text in _strings(value):
                    (prompts if len(words(text)) >= _SHORTEST else others).append(text)
        return Texts(tuple(prompts), (), tuple(others))


def _strings(value: Any) -> Iterator[str]:
    """The texts in a value, at any depth."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            pending += reversed(value.values())
        elif isinstance(value, (list, tuple)):
            pending += reversed(value)
