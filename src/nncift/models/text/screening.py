"""Which samples a language model cannot take, found from its tokenizer alone, before anything costly is done.

A short text fits by its bytes, since no token stands for less than one; only longer ones are tokenized. The tokenizer
is loaded for the first sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

from nncift.data.schemas import Text
from nncift.errors import DataError, ModelError
from nncift.models.spec import ModelSpec
from nncift.models.text.chat_prompts import ChatPrompts
from nncift.models.text.chats import Conversation, Style
from nncift.models.text.prompts import PlainPrompts, Prompts, PromptTemplate
from nncift.models.text.tokenization import surely_fits
from nncift.run.storage.files import fingerprint


class Screen(Protocol):
    """Refuses samples."""

    def __call__(self, sample: Conversation) -> str | None:
        """Why the model cannot take a sample, and what to do about it; None if it can."""
        ...


class RowScreen:
    """Several screens as `read_pool` takes them, on the texts of a row; a chat that comes again is not rendered again.

    Args:
        screens: asked in turn, up to the first that refuses.
    """

    def __init__(self, screens: Sequence[Screen]) -> None:
        self.screens = screens
        self._known: dict[str, str | None] = {}

    def __call__(self, text: Text) -> str | None:
        """Why a model cannot take a row, and what to do about it; None if all can."""
        chat = (text.messages, text.tools, text.turns)
        key = fingerprint(*chat) if text.messages else None
        if key in self._known:
            return self._known[key]
        sample = Conversation.read("", text.prompt, text.response, *chat)
        found = next((why for screen in self.screens if (why := screen(sample)) is not None), None)
        if key is not None:
            self._known[key] = found
        return found


def reason(error: DataError | ModelError) -> str:
    """Why a sample was refused, and what to do about it besides dropping it."""
    return f"{error.problem} ({error.fix})" if error.fix else error.problem


class PromptScreen:
    """Refuses samples that cannot stand in a prompt.

    Args:
        spec: the language model.
        wording: of the prompts.
        single: no sample will stand beside another.
    """

    def __init__(self, spec: ModelSpec, wording: Style | PromptTemplate, *, single: bool) -> None:
        self.spec, self.wording, self.single = spec, wording, single
        self._in_chat = wording == "chat"  # all samples, also those that are no chats

    def __call__(self, sample: Conversation) -> str | None:
        """As `Screen`; where any sample is a chat, those after it are rendered as chats too."""
        if self.wording == "auto" and sample.turns is not None:
            self._in_chat = self.spec.tokenization.has_chat_template
        prompts = self._chat if self._in_chat else self._plain
        try:
            if not prompts.surely_takes(sample):
                list(prompts.render_samples([sample]))
        except (DataError, ModelError) as error:
            return reason(error)
        return None

    @cached_property
    def _plain(self) -> Prompts:
        template = self.wording if isinstance(self.wording, PromptTemplate) else PromptTemplate()
        return PlainPrompts(self.spec.tokenization, template, single=self.single)

    @cached_property
    def _chat(self) -> Prompts:
        return ChatPrompts(self.spec.tokenization, single=self.single)


class ExampleScreen:
    """Refuses samples that cannot be training examples.

    Args:
        spec: the language model.
        cut_responses: responses that exceed the context are truncated.
    """

    def __init__(self, spec: ModelSpec, *, cut_responses: bool = False) -> None:
        self.spec, self.cut_responses = spec, cut_responses

    def __call__(self, sample: Conversation) -> str | None:
        """As `Screen`."""
        from nncift.models.text.examples import (  # torch, which reading does not need
            encode_samples,
            in_template,
            segments,
        )

        model, wording = self.spec.tokenization, self.spec.wording
        try:
            room = model.context_length - len(model.leading_ids) - len(model.end_ids) - 1
            if model.end_ids and (self.cut_responses or surely_fits(sample.response, room)):
                if in_template(model, sample, wording):
                    segments(model, sample, wording)
            else:
                list(encode_samples(model, [sample], wording=wording, cut_responses=self.cut_responses))
        except (DataError, ModelError) as error:
            return reason(error)
        return None
