"""Samples as fine-tuning sees them: token ids, of which those of the response are learned.

A sample is worded by itself, whatever stands beside it: a chat in the model's chat template where it has one,
anything else in plain text. What does not fit into the context loses the start of its prompt, and, only where that is
asked for, the end of its response.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nncift.data.schemas import chat_messages
from nncift.errors import DataError
from nncift.models.language_model import LanguageModel
from nncift.run.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

PLAIN = "Request:\n{prompt}\n\nResponse:\n"


@dataclass(frozen=True)
class Example:
    """One sample in token ids.

    Attributes:
        id: the sample's id.
        ids: prompt and response, the end-of-text token included.
        start: where in `ids` the response begins; at least 1.
        cut: whether the start of the prompt was left out, or the end of the response.
    """

    id: str
    ids: list[int]
    start: int
    cut: bool

    @property
    def key(self) -> str:
        """A hash of the tokens, the same for samples that a model cannot tell apart."""
        return fingerprint(self.start, self.ids)


def tasks_of(rows: Dataset) -> list[str | None]:
    """The task of each sample: its column `task`, else the field of that name that its source row had, else none."""
    column = next((name for name in ("task", "original") if name in rows.column_names), None)
    if column is None:
        return [None] * len(rows)
    tasks: list[str | None] = []
    for batch in rows.select_columns([column]).iter(1000):
        for value in batch[column]:
            task = json.loads(value).get("task") if column == "original" else value
            tasks.append(None if task in (None, "") else str(task))
    return tasks


def encode_examples(model: LanguageModel, rows: Dataset, *, cut_responses: bool = False) -> list[Example]:
    """The samples in the model's token ids.

    Args:
        model: the language model.
        rows: the samples.
        cut_responses: a response that does not fit into the context loses its end, instead of being refused.

    Raises:
        DataError: a response alone does not fit into the context, or holds no tokens.
        ModelError: the model's chat template refuses a chat.
    """
    if not len(rows):
        return []
    messages = rows["messages"] if "messages" in rows.column_names else [None] * len(rows)
    asked = model.encode(
        [
            model.chat(chat_messages(chat)[:-1])
            if chat and model.has_chat_template
            else PLAIN.replace("{prompt}", prompt)
            for prompt, chat in zip(rows["prompt"], messages, strict=True)
        ]
    )
    answers = model.encode(rows["response"])
    parts = zip(rows["id"], asked, answers, messages, strict=True)
    return [_example(model, *part, cut_response=cut_responses) for part in parts]


def _example(
    model: LanguageModel, name: str, asked: list[int], answer: list[int], chat: str | None, *, cut_response: bool
) -> Example:
    leading = [] if chat and model.has_chat_template else model.leading_ids  # a template brings its own
    response = [*answer, *model.end_ids]
    most = model.context_length - len(leading) - 1
    if cut_response and len(response) > most >= 1:
        return Example(name, [*leading, *asked[-1:], *response[:most]], len(leading) + len(asked[-1:]), True)
    room = model.context_length - len(leading) - len(response)
    if not response:
        raise DataError(f"the response of {name!r} holds no tokens for {model.name!r}", "drop the sample")
    if room < 1:
        raise DataError(
            f"the response of {name!r} takes {len(response)} tokens of {model.name!r}",
            f"its context is {model.context_length}: drop the sample, raise --max-length, or take a model with a"
            " longer context",
        )
    prompt = [*leading, *asked[-room:]]
    return Example(name, [*prompt, *response], len(prompt), len(asked) > room)


def response_positions(batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the response tokens of a batch are predicted: which sample, which of its positions, and the tokens.

    Each (positions,) int64, sample by sample.
    """
    lengths = torch.tensor([len(example.ids) - example.start for example in batch])
    rows = torch.repeat_interleave(torch.arange(len(batch)), lengths)
    columns = torch.cat([torch.arange(example.start - 1, len(example.ids) - 1) for example in batch])
    return rows, columns, torch.tensor([token for example in batch for token in example.ids[example.start :]])


def response_losses(model: LanguageModel, batch: Sequence[Example]) -> torch.Tensor:
    """Mean negative log-likelihood of each response's tokens, (n,) float32, through which gradients can go back."""
    rows, columns, wanted = response_positions(batch)
    logits = model.logits_at([example.ids[:-1] for example in batch], rows, columns).float()
    losses = torch.nn.functional.cross_entropy(logits, wanted.to(model.device), reduction="none")
    return torch.stack([losses[(rows == number).to(losses.device)].mean() for number in range(len(batch))])
