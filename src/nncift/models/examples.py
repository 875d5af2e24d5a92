"""Samples as training examples: prompt and response in token ids, with the loss on the response tokens.

A chat is rendered in the model's chat template where it has one, any other sample in plain text. A sample that exceeds
the context is truncated at the start of its prompt and, on request, at the end of its response.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from nncift.data.schemas import chat_messages
from nncift.errors import DataError
from nncift.models.language_model import LanguageModel, response_positions
from nncift.models.prompts import PLAIN, messages_of
from nncift.run.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One sample in token ids."""

    id: str
    ids: list[int]  # prompt and response, the end-of-text token included
    start: int  # position in `ids` at which the response begins; at least 1
    cut: bool  # whether the prompt or the response was truncated

    @property
    def key(self) -> str:
        """A hash of the tokens: equal for samples that are equal to the model."""
        return fingerprint(self.start, self.ids)


def tasks_of(rows: Dataset) -> list[str | None]:
    """The task of each sample: column `task`, else the field `task` of its source row, else None."""
    column = next((name for name in ("task", "original") if name in rows.column_names), None)
    if column is None:
        return [None] * len(rows)
    values = (value for batch in rows.select_columns([column]).iter(1000) for value in batch[column])
    tasks = (json.loads(value).get("task") if column == "original" else value for value in values)
    return [None if task in (None, "") else str(task) for task in tasks]


def encode_examples(model: LanguageModel, rows: Dataset, *, cut_responses: bool = False) -> list[Example]:
    """The samples in the model's token ids; `cut_responses` truncates those that exceed the context.

    Raises:
        DataError: a response alone exceeds the context, or has no tokens.
        ModelError: the model's chat template refuses a chat.
    """
    if not len(rows):
        return []
    chats = [chat if model.has_chat_template else None for chat in messages_of(rows)]
    asked = [
        model.chat(chat_messages(chat)[:-1]) if chat else PLAIN.replace("{prompt}", prompt)
        for prompt, chat in zip(rows["prompt"], chats, strict=True)
    ]
    leading = ([] if chat else model.leading_ids for chat in chats)  # a template brings its own
    parts = zip(rows["id"], leading, model.encode(asked), model.encode(rows["response"]), strict=True)
    return [_example(model, *part, cut_response=cut_responses) for part in parts]


def _example(
    model: LanguageModel, name: str, leading: list[int], asked: list[int], answer: list[int], *, cut_response: bool
) -> Example:
    response = [*answer, *model.end_ids]
    most = model.context_length - len(leading) - 1
    if cut_response and len(response) > most >= 1:
        return Example(name, [*leading, *asked[-1:], *response[:most]], len(leading) + len(asked[-1:]), True)
    room = model.context_length - len(leading) - len(response)
    if not response:
        raise DataError(f"the response of {name!r} has no tokens under {model.name!r}", "drop the sample")
    if room < 1:
        raise DataError(
            f"the response of {name!r} takes {len(response)} tokens of {model.name!r}",
            f"its context is {model.context_length}: drop the sample, raise `max_length`, or take a model with a"
            " longer context",
        )
    prompt = [*leading, *asked[-room:]]
    return Example(name, [*prompt, *response], len(prompt), len(asked) > room)


def in_example_batches(
    model: LanguageModel, work: Callable[[list[Example]], Sequence[T]], examples: Sequence[Example], *, batch_size: int
) -> list[T]:
    """The result of `work` for each of the examples; batches as of `Batcher.in_batches`."""
    lengths = [len(example.ids) for example in examples]
    scored = [len(example.ids) - example.start for example in examples]
    return model.in_batches(lambda batch: work([examples[k] for k in batch]), lengths, scored, batch_size=batch_size)


def response_losses(model: LanguageModel, batch: Sequence[Example]) -> torch.Tensor:
    """Mean negative log-likelihood of each response's tokens, (n,) float32, differentiable."""
    rows, columns, wanted = response_positions([example.ids for example in batch], [example.start for example in batch])
    logits = model.logits_at([example.ids[:-1] for example in batch], rows, columns).float()
    losses = torch.nn.functional.cross_entropy(logits, wanted.to(model.device), reduction="none")
    return torch.stack([losses[(rows == number).to(losses.device)].mean() for number in range(len(batch))])
