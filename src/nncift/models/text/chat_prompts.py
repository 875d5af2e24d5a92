"""Prompts in a model's own chat template, and the choice between these and plain text."""

from __future__ import annotations

import os.path
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from nncift.data.chats.messages import SYSTEM_ROLES, exchange
from nncift.errors import ConfigError, DataError, ModelError
from nncift.models.text.chats import Conversation, Style, Turn, with_tools
from nncift.models.text.prompts import PlainPrompts, PromptedSample, Prompts, PromptTemplate, Query
from nncift.models.text.tokenization import PLAIN_INSTEAD, Tokenization, surely_fits


@dataclass(frozen=True)
class _Asked:
    """Turns, the response's last, with the tools that their template takes."""

    turns: list[Turn]
    tools: list[Any] | None = None
    is_example: bool = True


class ChatPrompts(Prompts):
    """Samples in the model's own chat template, the example as an earlier exchange of the conversation.

    A template is a program, and may render the last exchange unlike an earlier one. So the end of an example is
    found by rendering: the common suffix of two conversations that differ in their first response alone follows it.
    A template puts tools in front of all turns; so where samples stand beside each other, tools are text instead.
    """

    def __init__(self, model: Tokenization, *, single: bool = False) -> None:
        super().__init__(model, single=single)
        self.no_example = []
        self._stand_in, self._ask = exchange("Yes or no?", "Yes"), exchange("Yes or no?", "No")[0]
        if single:
            self._reserve(len(model.encode([model.chat([self._ask])])[0]))
            return
        followed = [model.chat([*exchange("Yes or no?", answer), self._ask])[::-1] for answer in ("Yes", "No")]
        self._after = os.path.commonprefix(followed)[::-1]  # noqa: RUF071 (of characters)
        self._before = self._example(self._stand_in)
        self._overhead = self._lengths(_Asked(self._stand_in))
        self._reserve(self._overhead[0] + self._overhead[1])

    def render_samples(self, samples: Sequence[Conversation]) -> Iterator[PromptedSample]:
        """The samples in token ids."""
        for sample in samples:
            queries, cut = list[Query](), False
            for part in sample.parts:
                asked, response = self._asked(part, sample), self._response(self._model.encode([part.response])[0])
                fitting = self._fit(asked, len(response))
                if fitting is None:
                    raise DataError(
                        f"it does not fit into {self._room} tokens, however much of it is truncated",
                        self._model.longer_context(self._model.context_length + 1),
                    )
                example, after_example, alone = self._model.encode(self._texts(fitting))
                queries.append(Query(after_example, alone, response))
                cut = cut or fitting is not asked
            yield PromptedSample(sample.id, example, tuple(queries), cut)

    def surely_takes(self, sample: Conversation) -> bool:
        """By the bytes of the texts, which are rendered; raises as `render`, without the sample's name."""
        ends = len(self._model.end_ids)
        for part in sample.parts:
            example, *queries = self._texts(self._asked(part, sample))
            texts = [example, *(query + part.response for query in queries)]
            if not ends or not all(surely_fits(text, self._room - ends) for text in texts):
                return False
        return True

    def _asked(self, part: Conversation, sample: Conversation) -> _Asked:
        """The turns of a sample's part, which is an example if it is all of the sample."""
        if self._single:
            return _Asked(part.as_chat, part.tools)
        return _Asked(with_tools(part.as_chat, part.tools), is_example=part is sample)

    def _texts(self, asked: _Asked) -> list[str]:
        """The sample as an example, as a query after one, and as a query without one; the last alone if single."""
        alone = self._model.chat(asked.turns[:-1], asked.tools)
        if self._single:
            return ["", "", alone]
        after_example = self._model.chat([*self._stand_in, *asked.turns[:-1]])
        if not after_example.startswith(self._before):
            raise self._unstable()
        example = self._example(asked.turns) if asked.is_example else ""
        return [example, after_example.removeprefix(self._before), alone]

    def _example(self, turns: list[Turn]) -> str:
        followed = self._model.chat([*turns, self._ask])
        if not followed.endswith(self._after):
            raise self._unstable()
        return followed.removesuffix(self._after)

    def _unstable(self) -> ModelError:
        return ModelError(
            f"the chat template of {self._model.name!r} renders an example differently depending on what follows",
            PLAIN_INSTEAD,
        )

    def _lengths(self, asked: _Asked) -> list[int]:
        """Tokens as an example, as a query after one, and as a query without one."""
        return [len(ids) for ids in self._model.encode(self._texts(asked))]

    def _fits(self, asked: _Asked, response: int) -> bool:
        example, query, alone = self._lengths(asked)
        if self._single:
            return alone + response <= self._model.context_length
        before, after, _ = self._overhead
        return max(example - before, max(query - after, alone - before - after) + response) <= self._room

    def _fit(self, asked: _Asked, response: int) -> _Asked | None:
        """The turns if they fit, else without the oldest exchanges, else with the start of the last request cut."""
        if self._fits(asked, response):
            return asked
        turns = asked.turns
        system = turns[:1] if turns[0].get("role") in SYSTEM_ROLES else []
        requests = [k for k in range(len(system), len(turns) - 1) if turns[k].get("role") == "user"]
        for k in requests:
            if k > len(system) and self._fits(shorter := replace(asked, turns=[*system, *turns[k:]]), response):
                return shorter
        text = turns[requests[-1]].get("content") if requests else None
        if not isinstance(text, str):
            return None

        def without(characters: int) -> _Asked:
            request = {**turns[requests[-1]], "content": text[characters:]}
            return replace(asked, turns=[*system, request, *turns[requests[-1] + 1 :]])

        characters = bisect_left(range(len(text) + 1), True, key=lambda n: self._fits(without(n), response))
        return without(characters) if characters <= len(text) else None


def check_wording(wording: object) -> None:
    """Raise a `ConfigError` if a `wording` option is none of `Style`."""
    if wording not in get_args(Style):
        raise ConfigError(f"`wording` {wording!r} is unknown", 'give "auto", "chat", "plain" or a PromptTemplate')


def choose_prompts(
    model: Tokenization, wording: Style | PromptTemplate, *, single: bool = False, chats: bool = False
) -> Prompts:
    """The prompts that a `wording` option names.

    Args:
        model: the language model, or its tokenizer alone.
        wording: "plain" or a `PromptTemplate`; "chat", the model's own template; "auto", chat where the model has a
            template and samples come from chats, else plain.
        single: no sample will stand beside another.
        chats: whether any sample comes from a chat.

    Raises:
        ConfigError: `wording` is none of these.
    """
    if isinstance(wording, PromptTemplate):
        return PlainPrompts(model, wording, single=single)
    check_wording(wording)
    if wording == "chat" or (wording == "auto" and chats and model.has_chat_template):
        return ChatPrompts(model, single=single)
    return PlainPrompts(model, PromptTemplate(), single=single)
