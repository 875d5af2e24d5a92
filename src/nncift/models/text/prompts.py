"""Prompts of two samples, an in-context example and a query, as token ids cut to fit the model's context.

Every piece is tokenized on its own, and a sample that is too long is truncated once, at the start of its prompt, to
half of what the template leaves of the context. So its ids are the same whatever stands beside it, an example is
encoded once for all queries, and any two samples fit together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nncift.errors import ConfigError, DataError, ModelError, NNCIFTError
from nncift.models.text.chats import Conversation, conversations
from nncift.models.text.tokenization import Tokenization, surely_fits

if TYPE_CHECKING:
    from datasets import Dataset

PLAIN = "Request:\n{prompt}\n\nResponse:\n"  # a request in plain text
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
class Query:
    """A request for a response, in token ids."""

    after_example: list[int]  # follows an example's prefix
    alone: list[int]  # asks in a zero-shot prompt
    response: list[int]  # the end-of-text token included


@dataclass(frozen=True)
class PromptedSample:
    """One sample in token ids."""

    id: str
    example: list[int]  # the prefix with it as the in-context example; empty where no sample stands beside another
    queries: tuple[Query, ...]  # for each turn that is trained on, the response's last
    cut: bool  # whether the start of a prompt was truncated


class Prompts:
    """Renders samples for a model.

    Args:
        model: the language model, or its tokenizer alone.
        single: no sample will stand beside another, so each may fill the whole context.

    Raises:
        ModelError: the template cannot be used, or leaves no room in the model's context.
    """

    no_example: list[int]
    """Precedes `Query.alone`."""

    def __init__(self, model: Tokenization, *, single: bool = False) -> None:
        self._model, self._single = model, single
        self._room = 0  # tokens that a sample may fill in either role

    def render(self, rows: Dataset) -> list[PromptedSample]:
        """The samples in token ids.

        Raises:
            DataError: a response, or the part of a chat that cannot be truncated, does not fit.
            ModelError: the chat template refuses a chat.
        """
        samples, rendered = conversations(rows), list[PromptedSample]()
        try:
            rendered.extend(self.render_samples(samples))
        except NNCIFTError as error:
            raise name_sample(error, samples[len(rendered)].id) from error
        return rendered

    def render_samples(self, samples: Sequence[Conversation]) -> Iterator[PromptedSample]:
        """As `render`; an error is of the sample after the last one given, and does not name it."""
        raise NotImplementedError

    def surely_takes(self, sample: Conversation) -> bool:
        """Whether it is certain, at little cost, that `render` does not raise for a sample."""
        raise NotImplementedError

    def _reserve(self, template: int) -> None:
        """Set aside the tokens of the template itself."""
        room, context = self._model.context_length - template, self._model.context_length
        self._room = room if self._single else room // 2
        if self._room < 2:
            raise ModelError(
                f"the context of {self._model.name!r} is {context} tokens, and the template alone takes {template}",
                self._model.longer_context(4 + template),
            )

    def _response(self, answer: list[int]) -> list[int]:
        """The response tokens whose probabilities count."""
        response = [*answer, *self._model.end_ids]
        check_response(response, self._room, self._model, samples=1 if self._single else 2)
        return response


def check_response(response: Sequence[int], room: int, model: Tokenization, *, samples: int = 1) -> None:
    """Raise a `DataError`, which does not name the sample, if a response has no tokens or more than `room`.

    `samples` of them, each of at most `room` tokens, share the context.
    """
    if not response:
        raise DataError(f"its response has no tokens under {model.name!r}")
    if len(response) > room:
        beside = " beside another sample" if samples > 1 else ""
        raise DataError(
            f"its response takes {len(response)} tokens of {model.name!r}, and at most {max(room, 0)} fit{beside} in"
            f" its context of {model.context_length}",
            model.longer_context(model.context_length + samples * (len(response) - room)),
        )


def name_sample(error: NNCIFTError, name: str) -> NNCIFTError:
    """An error about a sample, with the sample's id."""
    fix = f"{error.fix}, or drop the sample" if error.fix else "drop the sample"
    return type(error)(f"sample {name!r}: {error.problem}", fix)


class PlainPrompts(Prompts):
    """Samples in the plain text of a `PromptTemplate`."""

    def __init__(self, model: Tokenization, template: PromptTemplate, *, single: bool = False) -> None:
        super().__init__(model, single=single)
        self.no_example = [*model.leading_ids, *model.encode([template.without_example])[0]]
        self._example = [model.leading_ids, *self._pieces(template.with_example)]
        self._query = self._pieces(template.query)
        shown = [] if single else _fill(self._example, [], [])
        self._reserve(max(len(self.no_example), len(shown)) + len(_fill(self._query, [], [])))

    def render_samples(self, samples: Sequence[Conversation]) -> Iterator[PromptedSample]:
        """The samples in token ids."""
        parts = [(sample, part) for sample in samples for part in sample.parts]
        prompts = self._model.encode([part.prompt for _, part in parts])
        answers = self._model.encode([part.response for _, part in parts])
        queries, cut = list[Query](), False
        for (sample, part), prompt, answer in zip(parts, prompts, answers, strict=True):
            response = self._response(answer)
            over = max(len(prompt) + len(response) - self._room, 0)
            query = _fill(self._query, prompt[over:], [])
            queries.append(Query(query, query, response))
            cut = cut or over > 0
            if part is sample:
                example = [] if self._single else _fill(self._example, prompt[over:], answer)
                yield PromptedSample(sample.id, example, tuple(queries), cut)
                queries, cut = [], False

    def surely_takes(self, sample: Conversation) -> bool:
        """By the bytes of the responses alone."""
        room = self._room - len(self._model.end_ids)
        return bool(self._model.end_ids) and all(surely_fits(part.response, room) for part in sample.parts)

    def _pieces(self, template: str) -> list[str | list[int]]:
        """A template with the text between its placeholders as token ids; text comes first."""
        parts = _PLACEHOLDER.split(template)
        return [part if _PLACEHOLDER.fullmatch(part) else self._model.encode([part])[0] for part in parts]


def _fill(pieces: Sequence[str | list[int]], prompt: list[int], response: list[int]) -> list[int]:
    """A template's pieces joined, with the sample's token ids in place of the placeholders."""
    texts = {"{prompt}": prompt, "{response}": response}
    return [token for piece in pieces for token in (texts[piece] if isinstance(piece, str) else piece)]
