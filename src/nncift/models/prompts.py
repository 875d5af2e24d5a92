"""How an example and a query are put into words, as token ids cut to fit the model's context.

Every sample plays two roles: the example in front, and the query after it. Both must be the same token ids
whatever stands beside them, so that an example can be encoded once for all queries. Hence each piece is
tokenised on its own, and what does not fit is cut once per sample, at the start of its prompt: a sample may
fill half of what the wording leaves of the context, so that any two fit together.
"""

from __future__ import annotations

import os.path
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from nncift.data.schemas import chat_messages
from nncift.errors import ConfigError, DataError, ModelError
from nncift.models.language_model import LanguageModel

if TYPE_CHECKING:
    from datasets import Dataset

Style = Literal["auto", "chat", "plain"]

_AT_ONCE = 1024  # samples
_PLACEHOLDER = re.compile(r"(\{prompt\}|\{response\})")


@dataclass(frozen=True)
class Wording:
    """Plain-text templates, in which {prompt} and {response} stand for a sample's texts.

    Attributes:
        without_example: what precedes the query when no example is shown.
        with_example: what precedes the query when one is; holds {prompt} and {response} of the example.
        query: asks for the response; holds {prompt}, and text besides.

    Raises:
        ConfigError: a placeholder is missing, or stands where nothing can take its place.
    """

    without_example: str = "Write a response to the request.\n\n"
    with_example: str = (
        "Write a response to the last request, with the example as a guide to its format and style.\n\n"
        "Example request:\n{prompt}\n\nExample response:\n{response}\n\n"
    )
    query: str = "Request:\n{prompt}\n\nResponse:\n"

    def __post_init__(self) -> None:
        expected = {
            "without_example": [],
            "with_example": ["{prompt}", "{response}"],
            "query": ["{prompt}"],
        }
        for field, placeholders in expected.items():
            found = sorted(_PLACEHOLDER.findall(getattr(self, field)))
            if found != placeholders:
                raise ConfigError(
                    f"the wording's {field} holds {', '.join(found) or 'no placeholder'}",
                    f"it needs {' and '.join(placeholders) or 'none'}, once",
                )
        if self.query == "{prompt}":
            raise ConfigError("the wording's query is the prompt alone", "add a word that asks for the response")


@dataclass(frozen=True)
class WordedSample:
    """One sample in token ids.

    Attributes:
        id: the sample's id.
        example: the prefix that shows it as the example.
        query: what follows such a prefix and asks for this sample's response.
        alone: what asks for it where there is no example.
        response: its response, the end-of-text token included.
        cut: whether the start of its prompt was left out.
    """

    id: str
    example: list[int]
    query: list[int]
    alone: list[int]
    response: list[int]
    cut: bool


class Prompts(Protocol):
    """A way to word samples: `PlainPrompts`, `ChatPrompts`."""

    no_example: list[int]

    def word(self, rows: Dataset) -> list[WordedSample]:
        """The samples in token ids.

        Raises:
            DataError: a response, or what cannot be cut beside it, does not fit.
        """
        ...


class PlainPrompts:
    """Samples in the plain text of a `Wording`.

    Args:
        model: the language model.
        wording: the templates.
        single: no sample will stand beside another, so each may fill the whole context.

    Raises:
        ModelError: the wording leaves no room in the model's context.
    """

    def __init__(self, model: LanguageModel, wording: Wording, *, single: bool = False) -> None:
        self._model = model
        self._single = single
        (without,) = model.encode([wording.without_example])
        self.no_example = [*model.leading_ids, *without]
        self._example = [model.leading_ids, *self._pieces(wording.with_example)]
        self._query = self._pieces(wording.query)
        before = len(self.no_example)
        if not single:
            before = max(before, len(_fill(self._example, [], [])))
        self._room = _room(model, before + len(_fill(self._query, [], [])), single)

    def word(self, rows: Dataset) -> list[WordedSample]:
        """The samples in token ids."""
        prompts, responses = self._model.encode(rows["prompt"]), self._model.encode(rows["response"])
        samples = []
        for name, prompt, answer in zip(rows["id"], prompts, responses, strict=True):
            response = _response(self._model, name, answer, self._room, self._single)
            over = max(len(prompt) + len(response) - self._room, 0)
            query = _fill(self._query, prompt[over:], [])
            example = _fill(self._example, prompt[over:], answer)
            samples.append(WordedSample(name, example, query, query, response, over > 0))
        return samples

    def _pieces(self, template: str) -> list[str | list[int]]:
        """A template with the text between its placeholders as token ids; text comes first."""
        parts = _PLACEHOLDER.split(template)
        return [part if _PLACEHOLDER.fullmatch(part) else self._model.encode([part])[0] for part in parts]


class ChatPrompts:
    """Samples in the model's own chat template, the example as an earlier exchange of the conversation.

    A template is a program, and may word the last exchange unlike an earlier one. So where an example ends is
    found by rendering: what two conversations that differ in their first response alone have in common at
    their end is what follows every example.

    Args:
        model: the language model.
        single: no sample will stand beside another, so each may fill the whole context.

    Raises:
        ModelError: there is no template, it refuses the messages, what it renders of an example changes with
            what follows, or it leaves no room in the model's context.
    """

    def __init__(self, model: LanguageModel, *, single: bool = False) -> None:
        self._model = model
        self._single = single
        self.no_example: list[int] = []
        ask, yes, no = _turn("user", "Yes or no?"), _turn("assistant", "Yes"), _turn("assistant", "No")
        followed = [model.chat([ask, answer, ask]) for answer in (yes, no)]
        self._ask = ask
        self._after = os.path.commonprefix([text[::-1] for text in followed])[::-1]  # noqa: RUF071 (of characters)
        self._stand_in = [ask, yes]
        self._before = self._example(self._stand_in)
        self._wording = self._lengths(self._stand_in)
        self._room = _room(model, self._wording.example + self._wording.query, single)

    def word(self, rows: Dataset) -> list[WordedSample]:
        """The samples in token ids."""
        columns = (rows["id"], rows["prompt"], rows["response"], messages_of(rows))
        return [self._word(*row) for row in zip(*columns, strict=True)]

    def _word(self, name: str, prompt: str, answer: str, messages: str | None) -> WordedSample:
        turns = chat_messages(messages) if messages else [_turn("user", prompt), _turn("assistant", answer)]
        (answer_ids,) = self._model.encode([answer])
        response = _response(self._model, name, answer_ids, self._room, self._single)
        try:
            fitting = self._fit(turns, len(response))
            if fitting is None:
                raise DataError(
                    f"the chat {name!r} does not fit, even with all that can be cut of it cut",
                    f"it may fill {self._room} tokens: drop it, or raise --max-length",
                )
            example, query, alone = self._model.encode(self._texts(fitting))
        except ModelError as error:
            raise ModelError(f"sample {name!r}: {error.problem}", error.fix) from error
        return WordedSample(name, example, query, alone, response, fitting is not turns)

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
            f"the chat template of {self._model.name!r} words an example differently depending on what follows",
            "use the plain wording",
        )

    def _lengths(self, turns: Turns) -> _Lengths:
        return _Lengths(*(len(ids) for ids in self._model.encode(self._texts(turns))))

    def _fit(self, turns: Turns, response: int) -> Turns | None:
        """The turns if they fit, else without the oldest exchanges, else with the last request's start cut off."""

        def fits(some: Turns) -> bool:
            taken, wording = self._lengths(some), self._wording
            alone = taken.alone - wording.example - wording.query
            query = taken.query - wording.query
            return max(taken.example - wording.example, max(query, alone) + response) <= self._room

        if fits(turns):
            return turns
        system = turns[:1] if turns[0].get("role") in ("system", "developer") else []
        requests = [k for k in range(len(system), len(turns) - 1) if turns[k].get("role") == "user"]
        for k in requests:
            if k > len(system) and fits(shorter := [*system, *turns[k:]]):
                return shorter
        text = turns[requests[-1]].get("content") if requests else None
        if not isinstance(text, str):
            return None

        def without(characters: int) -> Turns:
            request = {**turns[requests[-1]], "content": text[characters:]}
            return [*system, request, *turns[requests[-1] + 1 :]]

        characters = bisect_left(range(len(text) + 1), True, key=lambda n: fits(without(n)))
        return without(characters) if characters <= len(text) else None


Turns = list[dict[str, Any]]


class _Lengths(NamedTuple):
    """Tokens of a sample in each role."""

    example: int
    query: int
    alone: int


def messages_of(rows: Dataset) -> Sequence[str | None]:
    """The `messages` column, or as many None where the rows have no such column."""
    return rows["messages"] if "messages" in rows.column_names else [None] * len(rows)


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _fill(pieces: Sequence[str | list[int]], prompt: list[int], response: list[int]) -> list[int]:
    """A template's pieces joined, with the sample's token ids in place of the placeholders."""
    texts = {"{prompt}": prompt, "{response}": response}
    return [token for piece in pieces for token in (texts[piece] if isinstance(piece, str) else piece)]


def _room(model: LanguageModel, wording: int, single: bool) -> int:
    """How many tokens a sample may fill in either role."""
    room = model.context_length - wording
    if not single:
        room //= 2
    if room < 2:
        raise ModelError(
            f"the context of {model.name!r} is {model.context_length} tokens, and the wording alone takes {wording}",
            "raise --max-length, or take a model with a longer context",
        )
    return room


def _response(model: LanguageModel, name: str, answer: list[int], room: int, single: bool) -> list[int]:
    """The tokens of a response that are scored."""
    response = [*answer, *model.end_ids]
    if not response:
        raise DataError(f"the response of {name!r} holds no tokens for {model.name!r}", "drop the sample")
    if len(response) > room:
        beside = "" if single else " beside another sample"
        raise DataError(
            f"the response of {name!r} takes {len(response)} tokens of {model.name!r}",
            f"at most {room} fit{beside} in its context of {model.context_length}: drop the sample,"
            " raise --max-length, or take a model with a longer context",
        )
    return response


def any_chat(*datasets: Dataset) -> bool:
    """Whether any sample comes from a chat."""
    for rows in datasets:
        if "messages" in rows.column_names:
            column = rows.select_columns("messages").with_format("arrow")[:]["messages"]
            if column.null_count < len(column):
                return True
    return False


def check_fit(prompts: Prompts, *datasets: Dataset) -> None:
    """Refuse a sample that does not fit; a data set that is given twice is read once.

    Raises:
        DataError: which.
    """
    for rows in {id(rows): rows for rows in datasets}.values():
        for part in in_parts(rows):
            prompts.word(part)


def in_parts(rows: Dataset) -> Iterator[Dataset]:
    """The rows, some at a time."""
    for start in range(0, len(rows), _AT_ONCE):
        yield rows.select(range(start, min(start + _AT_ONCE, len(rows))))


def choose_prompts(
    model: LanguageModel,
    wording: Style | Wording,
    *datasets: Dataset,
    single: bool = False,
    chats: bool | None = None,
) -> PlainPrompts | ChatPrompts:
    """The prompts that a `wording` option asks for, and these samples when it leaves the choice to them.

    Args:
        model: the language model.
        wording: "plain" or a `Wording`; "chat", the model's own template; "auto", chat when any sample comes from
            a chat and the model has a template, else plain.
        datasets: all samples that will be worded.
        single: no sample will stand beside another.
        chats: whether any sample comes from a chat, where more is known than these.

    Raises:
        ConfigError: `wording` is none of these.
        ModelError: the template cannot be used, or the wording leaves no room in the model's context.
    """
    if isinstance(wording, Wording):
        return PlainPrompts(model, wording, single=single)
    if wording not in get_args(Style):
        raise ConfigError(f"wording {wording!r} is not known", 'give "auto", "chat", "plain" or a Wording')
    chats = any_chat(*datasets) if chats is None else chats
    if wording == "chat" or (wording == "auto" and chats and model.has_chat_template):
        return ChatPrompts(model, single=single)
    return PlainPrompts(model, Wording(), single=single)
