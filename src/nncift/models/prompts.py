"""Prompts of two samples, an in-context example and a query, as token ids cut to fit the model's context.

Every piece is tokenized on its own, and a sample that is too long is truncated once, at the start of its prompt, to
half of what the template leaves of the context. So its ids are the same whatever stands beside it, an example is
encoded once for all queries, and any two samples fit together.
"""

from __future__ import annotations

import os.path
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from nncift.data.schemas import chat_messages
from nncift.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.models.language_model import LanguageModel

Style = Literal["auto", "chat", "plain"]
Turns = list[dict[str, Any]]

PLAIN = "Request:\n{prompt}\n\nResponse:\n"  # a request in plain text
_CHUNK = 1024  # samples
_PLACEHOLDER = re.compile(r"(\{prompt\}|\{response\})")


@dataclass(frozen=True)
class PromptTemplate:
    """A plain-text template, with {prompt} and {response} in place of a sample's texts.

    Attributes:
        without_example: precedes the query in a zero-shot prompt.
        with_example: precedes the query in a one-shot prompt; contains {prompt} and {response} of the example.
        query: asks for the response; contains {prompt}, and text besides.

    Raises:
        ConfigError: a placeholder is missing, repeated or out of place.
    """

    without_example: str = "Write a response to the request.\n\n"
    with_example: str = (
        "Write a response to the last request, with the example as a guide to its format and style.\n\n"
        "Example request:\n{prompt}\n\nExample response:\n{response}\n\n"
    )
    query: str = PLAIN

    def __post_init__(self) -> None:
        expected = {"without_example": [], "with_example": ["{prompt}", "{response}"], "query": ["{prompt}"]}
        for field, placeholders in expected.items():
            found = sorted(_PLACEHOLDER.findall(getattr(self, field)))
            if found != placeholders:
                raise ConfigError(
                    f"the template's {field} contains {', '.join(found) or 'no placeholder'}",
                    f"it needs {' and '.join(placeholders) or 'none'}, once",
                )
        if self.query == "{prompt}":
            raise ConfigError("the template's query is the prompt alone", "add a word that asks for the response")


@dataclass(frozen=True)
class PromptedSample:
    """One sample in token ids."""

    id: str
    example: list[int]  # the prefix with it as the in-context example
    query: list[int]  # follows such a prefix and asks for this sample's response
    alone: list[int]  # asks for it in a zero-shot prompt
    response: list[int]  # the end-of-text token included
    cut: bool  # whether the start of its prompt was truncated


class Prompts:
    """Renders samples for a model.

    Args:
        model: the language model.
        single: no sample will stand beside another, so each may fill the whole context.

    Raises:
        ModelError: the template cannot be used, or leaves no room in the model's context.
    """

    no_example: list[int]
    """Precedes `PromptedSample.alone`."""

    def __init__(self, model: LanguageModel, *, single: bool = False) -> None:
        self._model, self._single = model, single
        self._room = 0  # tokens that a sample may fill in either role

    def render(self, rows: Dataset) -> list[PromptedSample]:
        """The samples in token ids.

        Raises:
            DataError: a response, or the part of a chat that cannot be truncated, does not fit.
        """
        raise NotImplementedError

    def _reserve(self, template: int) -> None:
        """Set aside the tokens of the template itself."""
        room, context = self._model.context_length - template, self._model.context_length
        self._room = room if self._single else room // 2
        if self._room < 2:
            raise ModelError(
                f"the context of {self._model.name!r} is {context} tokens, and the template alone takes {template}",
                "raise `max_length`, or take a model with a longer context",
            )

    def _response(self, name: str, answer: list[int]) -> list[int]:
        """The response tokens whose probabilities count."""
        response, model = [*answer, *self._model.end_ids], self._model
        if not response:
            raise DataError(f"the response of {name!r} has no tokens under {model.name!r}", "drop the sample")
        if len(response) > self._room:
            beside = "" if self._single else " beside another sample"
            raise DataError(
                f"the response of {name!r} takes {len(response)} tokens of {model.name!r}",
                f"at most {self._room} fit{beside} in its context of {model.context_length}: drop the sample,"
                " raise `max_length`, or take a model with a longer context",
            )
        return response


class PlainPrompts(Prompts):
    """Samples in the plain text of a `PromptTemplate`."""

    def __init__(self, model: LanguageModel, template: PromptTemplate, *, single: bool = False) -> None:
        super().__init__(model, single=single)
        self.no_example = [*model.leading_ids, *model.encode([template.without_example])[0]]
        self._example = [model.leading_ids, *self._pieces(template.with_example)]
        self._query = self._pieces(template.query)
        shown = [] if single else _fill(self._example, [], [])
        self._reserve(max(len(self.no_example), len(shown)) + len(_fill(self._query, [], [])))

    def render(self, rows: Dataset) -> list[PromptedSample]:
        """The samples in token ids."""
        prompts, responses = self._model.encode(rows["prompt"]), self._model.encode(rows["response"])
        samples = []
        for name, prompt, answer in zip(rows["id"], prompts, responses, strict=True):
            response = self._response(name, answer)
            over = max(len(prompt) + len(response) - self._room, 0)
            query = _fill(self._query, prompt[over:], [])
            example = _fill(self._example, prompt[over:], answer)
            samples.append(PromptedSample(name, example, query, query, response, over > 0))
        return samples

    def _pieces(self, template: str) -> list[str | list[int]]:
        """A template with the text between its placeholders as token ids; text comes first."""
        parts = _PLACEHOLDER.split(template)
        return [part if _PLACEHOLDER.fullmatch(part) else self._model.encode([part])[0] for part in parts]


class ChatPrompts(Prompts):
    """Samples in the model's own chat template, the example as an earlier exchange of the conversation.

    A template is a program, and may render the last exchange unlike an earlier one. So the end of an example is
    found by rendering: the common suffix of two conversations that differ in their first response alone follows it.
    """

    def __init__(self, model: LanguageModel, *, single: bool = False) -> None:
        super().__init__(model, single=single)
        self.no_example = []
        chats = [_exchange("Yes or no?", answer) for answer in ("Yes", "No")]
        self._stand_in, self._ask = chats[0], chats[0][0]
        followed = [model.chat([*turns, self._ask])[::-1] for turns in chats]
        self._after = os.path.commonprefix(followed)[::-1]  # noqa: RUF071 (of characters)
        self._before = self._example(self._stand_in)
        self._overhead = self._lengths(self._stand_in)
        self._reserve(self._overhead[0] + self._overhead[1])

    def render(self, rows: Dataset) -> list[PromptedSample]:
        """The samples in token ids."""
        columns = (rows["id"], rows["prompt"], rows["response"], messages_of(rows))
        return [self._render(*row) for row in zip(*columns, strict=True)]

    def _render(self, name: str, prompt: str, answer: str, messages: str | None) -> PromptedSample:
        turns = chat_messages(messages) if messages else _exchange(prompt, answer)
        response = self._response(name, self._model.encode([answer])[0])
        try:
            fitting = self._fit(turns, len(response))
            if fitting is None:
                raise DataError(
                    f"the chat {name!r} does not fit, however much of it is truncated",
                    f"it may fill {self._room} tokens: drop it, or raise `max_length`",
                )
            example, query, alone = self._model.encode(self._texts(fitting))
        except ModelError as error:
            raise ModelError(f"sample {name!r}: {error.problem}", error.fix) from error
        return PromptedSample(name, example, query, alone, response, fitting is not turns)

    def _texts(self, turns: Turns) -> list[str]:
        """The sample as an example, as a query after one, and as a query without one."""
        after_example = self._model.chat([*self._stand_in, *turns[:-1]])
        if not after_example.startswith(self._before):
            raise self._unstable()
        return [self._example(turns), after_example.removeprefix(self._before), self._model.chat(turns[:-1])]

    def _example(self, turns: Turns) -> str:
        followed = self._model.chat([*turns, self._ask])
        if not followed.endswith(self._after):
            raise self._unstable()
        return followed.removesuffix(self._after)

    def _unstable(self) -> ModelError:
        return ModelError(
            f"the chat template of {self._model.name!r} renders an example differently depending on what follows",
            'set `wording` to "plain"',
        )

    def _lengths(self, turns: Turns) -> list[int]:
        """Tokens as an example, as a query after one, and as a query without one."""
        return [len(ids) for ids in self._model.encode(self._texts(turns))]

    def _fits(self, turns: Turns, response: int) -> bool:
        (example, query, alone), (before, after, _) = self._lengths(turns), self._overhead
        return max(example - before, max(query - after, alone - before - after) + response) <= self._room

    def _fit(self, turns: Turns, response: int) -> Turns | None:
        """The turns if they fit, else without the oldest exchanges, else with the start of the last request cut."""
        if self._fits(turns, response):
            return turns
        system = turns[:1] if turns[0].get("role") in ("system", "developer") else []
        requests = [k for k in range(len(system), len(turns) - 1) if turns[k].get("role") == "user"]
        for k in requests:
            if k > len(system) and self._fits(shorter := [*system, *turns[k:]], response):
                return shorter
        text = turns[requests[-1]].get("content") if requests else None
        if not isinstance(text, str):
            return None

        def without(characters: int) -> Turns:
            request = {**turns[requests[-1]], "content": text[characters:]}
            return [*system, request, *turns[requests[-1] + 1 :]]

        characters = bisect_left(range(len(text) + 1), True, key=lambda n: self._fits(without(n), response))
        return without(characters) if characters <= len(text) else None


def _exchange(prompt: str, answer: str) -> Turns:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _fill(pieces: Sequence[str | list[int]], prompt: list[int], response: list[int]) -> list[int]:
    """A template's pieces joined, with the sample's token ids in place of the placeholders."""
    texts = {"{prompt}": prompt, "{response}": response}
    return [token for piece in pieces for token in (texts[piece] if isinstance(piece, str) else piece)]


def messages_of(rows: Dataset) -> Sequence[str | None]:
    """The `messages` column, or as many None where there is no such column."""
    return rows["messages"] if "messages" in rows.column_names else [None] * len(rows)


def any_chat(*datasets: Dataset) -> bool:
    """Whether any sample comes from a chat."""
    chats = (rows.select_columns("messages") for rows in datasets if "messages" in rows.column_names)
    columns = (rows.with_format("arrow")[:]["messages"] for rows in chats)
    return any(column.null_count < len(column) for column in columns)


def chunks(rows: Dataset) -> Iterator[Dataset]:
    """The rows, some at a time."""
    for start in range(0, len(rows), _CHUNK):
        yield rows.select(range(start, min(start + _CHUNK, len(rows))))


def choose_prompts(
    model: LanguageModel, wording: Style | PromptTemplate, *, single: bool = False, chats: bool = False
) -> Prompts:
    """The prompts that a `wording` option names.

    Args:
        model: the language model.
        wording: "plain" or a `PromptTemplate`; "chat", the model's own template; "auto", chat where the model has a
            template and samples come from chats, else plain.
        single: no sample will stand beside another.
        chats: whether any sample comes from a chat.

    Raises:
        ConfigError: `wording` is none of these.
    """
    if isinstance(wording, PromptTemplate):
        return PlainPrompts(model, wording, single=single)
    if wording not in get_args(Style):
        raise ConfigError(f"`wording` {wording!r} is unknown", 'give "auto", "chat", "plain" or a PromptTemplate')
    if wording == "chat" or (wording == "auto" and chats and model.has_chat_template):
        return ChatPrompts(model, single=single)
    return PlainPrompts(model, PromptTemplate(), single=single)
