"""The text side of a language model, no weights needed: its tokenizer, chat template and context length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

from nncift.errors import ModelError, first_line
from nncift.models.loading import load_tokenizer
from nncift.models.text.chats import Turn, with_arguments_read, with_calls_as_text, with_tools

PLAIN_INSTEAD = 'set `wording` to "plain"'

_NO_LIMIT = 10**9  # tokenizers write about 1e30 for no limit
_DEFAULT_CONTEXT = 2048  # for models without a limit


class Tokenization:
    """A model's tokenizer and context.

    Args:
        tokenizer: neither a pad token, an end token nor a chat template is needed.
        config: the model's configuration.
        name: the model's name in messages.
        max_length: longest sequence, in tokens; the model's own limit unless given.

    Attributes:
        tokenizer, config, name: as given.
        context_length: longest sequence in tokens, the smaller of the model's limit and `max_length`.
        leading_ids: the tokenizer's special tokens before a text: mostly none, or the beginning-of-text token.
        end_ids: the end-of-text token; empty for a tokenizer without one.
    """

    def __init__(self, tokenizer: Any, config: Any, *, name: str, max_length: int | None = None) -> None:
        self.name = name
        self.tokenizer, self.config = tokenizer, config
        limit = _context_limit(config, tokenizer)
        self.context_length = min(limit or max(max_length or 0, _DEFAULT_CONTEXT), max_length or 10**18)
        self._limit = limit
        self.leading_ids = _leading_ids(tokenizer)
        self.end_ids: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    @classmethod
    def read(cls, name: str, *, max_length: int | None = None, trust_remote_code: bool = False) -> Self:
        """That of a model in a folder, on the hub, or "embedded", without its weights.

        Raises:
            ModelError: the model cannot be found, or its tokenizer cannot be read.
        """
        tokenizer, config = load_tokenizer(name, trust_remote_code=trust_remote_code)
        return cls(tokenizer, config, name=name, max_length=max_length)

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def longer_context(self, least: int) -> str:
        """What to do where at least this many tokens would have to fit."""
        can_be_raised = self._limit is None or least <= self._limit
        return "raise `max_length`" if can_be_raised else "take a model with a longer context"

    def chat(self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None = None) -> str:
        """A conversation in the model's own chat template, with the generation prompt.

        Tools and tool calls that the template does not render become text: in the system message, and in the turn.
        Content that is null becomes empty where the template would fail on it or print it.

        Raises:
            ModelError: there is no template, or it refuses these messages.
        """
        if not self.has_chat_template:
            raise ModelError(f"{self.name!r} has no chat template", PLAIN_INSTEAD)
        source = self._template(tools)
        prepare = with_arguments_read if "tool_calls" in source else with_calls_as_text
        turns = [prepare({"content": None, **message}) for message in messages]
        if tools and not re.search(r"\btools\b", source):
            turns, tools = with_tools(turns, tools), None
        filled = [{**turn, "content": ""} if turn["content"] is None else turn for turn in turns]
        if filled == turns:
            return self._apply(turns, tools)
        try:
            text, other = self._apply(turns, tools), self._apply(filled, tools)
        except ModelError:
            return self._apply(filled, tools)
        return other if text.count("None") > other.count("None") else text

    def _template(self, tools: list[Any] | None) -> str:
        """The program of the chat template; tokenizers may have another one for tools."""
        try:
            return str(self.tokenizer.get_chat_template(tools=tools))
        except Exception as error:  # of several templates none may be the default
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> ModelError:
        return ModelError(
            f"the chat template of {self.name!r} refuses the messages ({first_line(error)})", PLAIN_INSTEAD
        )

    def _apply(self, turns: list[Turn], tools: list[Any] | None) -> str:
        options = {"tokenize": False, "add_generation_prompt": True} | ({"tools": tools} if tools else {})
        try:
            return str(self.tokenizer.apply_chat_template(turns, **options))
        except Exception as error:  # a template is a program of the model's authors
            raise self._refused(error) from error

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        if not texts:
            return []
        ids = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [list(text) for text in ids["input_ids"]]

    def ends_turn(self, ids: Sequence[int]) -> bool:
        """Whether token ids that follow a response begin with a token that ends it: end-of-text, or the template's."""
        return bool(ids) and (ids[0] in self.end_ids or ids[0] in getattr(self.tokenizer, "added_tokens_decoder", ()))


def surely_fits(text: str, room: int) -> bool:
    """Whether a text has at most `room` tokens by its bytes alone: no token stands for less than one."""
    return len(text) + 2 <= room and len(text.encode()) + 2 <= room  # some tokenizers add a space in front


def _context_limit(config: Any, tokenizer: Any) -> int | None:
    """The longest sequence of a model, in tokens; None where it has no limit."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    if limit is None and tokenizer.model_max_length < _NO_LIMIT:
        limit = tokenizer.model_max_length
    return None if limit is None else int(limit)


def _leading_ids(tokenizer: Any) -> list[int]:
    plain, full = (list(tokenizer("a", add_special_tokens=add)["input_ids"]) for add in (False, True))
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return []
