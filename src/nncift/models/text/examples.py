"""Samples as training examples: prompt and responses in token ids, with the loss on the response tokens.

A chat is rendered in the model's chat template where it has one, any other sample in plain text; `wording` changes
that. A sample that exceeds the context is truncated at the start of its prompt and, on request, at the end of its
response. Where several turns of a chat are trained on, all are read in one sequence, and a sample's loss is the mean
over the turns of the mean over a turn's tokens.
"""

from __future__ import annotations

import json
import os.path
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import torch

from nncift.errors import ModelError, NNCIFTError
from nncift.models.language_model import LanguageModel, response_positions
from nncift.models.text.chats import Conversation, Style, conversations, plain_text
from nncift.models.text.prompts import PLAIN, check_response, name_sample
from nncift.models.text.tokenization import PLAIN_INSTEAD, Tokenization
from nncift.run.storage.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")
_CHUNK = 1024  # samples


@dataclass(frozen=True)
class Example:
    """One sample in token ids."""

    id: str
    ids: list[int]  # prompt and responses, the end-of-text token included
    spans: tuple[tuple[int, int], ...]
    """Start and end in `ids` of each response, the last one's end the end of all; starts are at least 1."""
    cut: bool  # whether the prompt or the response was truncated

    @classmethod
    def single(cls, id: str, ids: list[int], start: int, cut: bool = False) -> Self:
        """With one response, from `start` on."""
        return cls(id, ids, ((start, len(ids)),), cut)

    @property
    def start(self) -> int:
        """Position in `ids` at which the first response begins."""
        return self.spans[0][0]

    @property
    def scored(self) -> int:
        """Number of response tokens."""
        return sum(end - start for start, end in self.spans)

    @property
    def key(self) -> str:
        """A hash of the tokens: equal for samples that are equal to the model."""
        return fingerprint(self.start if len(self.spans) == 1 else self.spans, self.ids)


def distinct(examples: Sequence[Example]) -> list[Example]:
    """One example of those with the same tokens."""
    return list({example.key: example for example in examples}.values())


def tasks_of(rows: Dataset) -> list[str | None]:
    """The task of each sample: column `task`, else the field `task` of its source row, else None."""
    column = next((name for name in ("task", "original") if name in rows.column_names), None)
    if column is None:
        return [None] * len(rows)
    values = (value for batch in rows.select_columns([column]).iter(1000) for value in batch[column])
    tasks = (json.loads(value).get("task") if column == "original" else value for value in values)
    return [None if task in (None, "") else str(task) for task in tasks]


def encode_examples(
    model: Tokenization, rows: Dataset, *, wording: Style | None = None, cut_responses: bool = False
) -> list[Example]:
    """The samples in the model's token ids.

    Args:
        model: the language model, or its tokenizer alone.
        rows: the samples.
        wording: "chat" renders every sample in the chat template, "plain" none; unless given ("auto") chats alone,
            where the model has a template.
        cut_responses: truncate responses that exceed the context.

    Raises:
        DataError: a response alone exceeds the context, or has no tokens.
        ModelError: the model's chat template refuses a chat.
    """
    samples, examples = conversations(rows), list[Example]()
    try:
        for example in encode_samples(model, samples, wording=wording, cut_responses=cut_responses):
            examples.append(example)
    except NNCIFTError as error:
        raise name_sample(error, samples[len(examples)].id) from error
    return examples


def encode_samples(
    model: Tokenization, samples: Sequence[Conversation], *, wording: Style | None = None, cut_responses: bool = False
) -> Iterator[Example]:
    """As `encode_examples`; an error is of the sample after the last one given, and does not name it."""
    for start in range(0, len(samples), _CHUNK):
        chunk, texts, failed = samples[start : start + _CHUNK], list[list[_Segment]](), None
        for sample in chunk:
            try:
                texts.append(segments(model, sample, wording))
            except ModelError as error:  # raised after the samples before it
                failed = error
                break
        ids = iter(model.encode([text for parts in texts for part in parts for text in part]))
        for sample, parts in zip(chunk, texts, strict=False):
            encoded = [(next(ids), next(ids)) for _ in parts]
            plain = not in_template(model, sample, wording)
            yield _example(model, sample.id, encoded, plain=plain, cut_response=cut_responses)
        if failed is not None:
            raise failed


class _Segment(NamedTuple):
    """What precedes a response, since the one before it, and the response."""

    before: str
    response: str


def in_template(model: Tokenization, sample: Conversation, wording: Style | None) -> bool:
    """Whether a sample is rendered in the chat template."""
    return wording == "chat" or (wording != "plain" and sample.turns is not None and model.has_chat_template)


def segments(model: Tokenization, sample: Conversation, wording: Style | None) -> list[_Segment]:
    """The texts of a sample for each turn that is trained on; raises `ModelError` if the template refuses it."""
    if in_template(model, sample, wording):
        return _chat_segments(model, sample)
    found, done = list[_Segment](), 0
    for part in sample.parts:
        end = 0 if part.turns is None else len(part.turns) - 1
        prompt = part.prompt if not found else plain_text((part.turns or [])[done:end])
        found.append(_Segment(("\n\n" if found else "") + PLAIN.replace("{prompt}", prompt), part.response))
        done = end + 1
    return found


def _chat_segments(model: Tokenization, sample: Conversation) -> list[_Segment]:
    """A chat in the template, cut at its responses.

    A template is a program: where an earlier response begins and ends is found by rendering others in its place.
    """
    turns = sample.as_chat[:-1]
    text, found, done = model.chat(turns, sample.tools), list[_Segment](), 0
    for place in sample.trained[:-1]:
        stand_ins = [{"role": "assistant", "content": answer} for answer in ("Yes", "No")]
        others = [model.chat([*turns[:place], turn, *turns[place + 1 :]], sample.tools) for turn in stand_ins]
        before = os.path.commonprefix(others)  # noqa: RUF071 (of characters)
        after = os.path.commonprefix([other[::-1] for other in others])[::-1]  # noqa: RUF071
        start, end = len(before), len(text) - len(after)
        if not (done <= start <= end and text.startswith(before) and text.endswith(after)):
            raise ModelError(
                f"the chat template of {model.name!r} renders a turn differently depending on others", PLAIN_INSTEAD
            )
        found.append(_Segment(text[done:start], text[start:end]))
        done = end
    return [*found, _Segment(text[done:], sample.response)]


def _example(
    model: Tokenization, name: str, parts: list[tuple[list[int], list[int]]], *, plain: bool, cut_response: bool
) -> Example:
    """From the token ids of each of the segments of a sample."""
    leading = model.leading_ids if plain else []  # a template brings its own
    ids, spans = list[int](), list[tuple[int, int]]()
    for before, answer in parts:
        if spans:  # the token that ends an earlier response is trained on too
            start, end = spans.pop()
            following = [*model.end_ids, *before] if plain else before
            spans.append((start, end + int(model.ends_turn(following))))
            ids += following
        else:
            ids += before
        spans.append((len(ids), len(ids) + len(answer)))
        ids += answer
    asked, response = ids[: spans[-1][0]], [*parts[-1][1], *model.end_ids]
    most = model.context_length - len(leading) - 1
    if cut_response and len(response) > most >= 1:
        prompt = [*leading, *asked[-1:]]
        return Example.single(name, [*prompt, *response[:most]], len(prompt), True)
    check_response(response, most, model)
    over = max(len(leading) + len(asked) + len(response) - model.context_length, 0)
    move, first = len(leading) - over, over if leading else over + 1  # a response needs a token before it
    kept = [(start + move, end + move) for start, end in spans[:-1] if first <= start < end]
    prompt = [*leading, *asked[over:]]
    whole = [*prompt, *response]
    return Example(name, whole, (*kept, (len(prompt), len(whole))), over > 0)


def in_example_batches(
    model: LanguageModel, work: Callable[[list[Example]], Sequence[T]], examples: Sequence[Example], *, batch_size: int
) -> list[T]:
    """The result of `work` for each of the examples; batches as of `Batcher.in_batches`."""
    lengths = [len(example.ids) for example in examples]
    scored = [example.scored for example in examples]
    return model.in_batches(lambda batch: work([examples[k] for k in batch]), lengths, scored, batch_size=batch_size)


def response_losses(model: LanguageModel, batch: Sequence[Example]) -> torch.Tensor:
    """Mean negative log-likelihood of each sample's responses, (n,) float32, differentiable: a mean over its turns."""
    spans = [example.spans for example in batch]
    rows, columns, wanted = response_positions([example.ids for example in batch], spans)
    logits = model.logits_at([example.ids[:-1] for example in batch], rows, columns).float()
    losses = torch.nn.functional.cross_entropy(logits, wanted.to(model.device), reduction="none")
    lengths = [end - start for one in spans for start, end in one]
    turns = iter(torch.split(losses, lengths))
    return torch.stack([torch.stack([next(turns).mean() for _ in one]).mean() for one in spans])
