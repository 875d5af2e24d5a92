"""Greedy answers of a language model, and the loss of references after the same prompts, from one pass of the prompts.

Prompts are padded on the left and encoded once, in batches of similar length. The references are read behind that cache
without changing it; then the answers are generated from it, token by token, and sequences that have ended leave the
batch. That is a loop of our own rather than transformers' `generate`, which would read the prompts once more and apply
what a model's generation_config asks for (Qwen's repetition penalty, say), so that its "greedy" answers would not be
the most probable tokens. Models that cannot continue a cache read everything again for each token: correct, and slow.

A batch costs its prompts once, and a pass of the model for each token of its longest answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from nncift.data.chats.messages import exchange
from nncift.models.language_model import LanguageModel, response_positions, token_log_probabilities
from nncift.models.loading import default_batch_size
from nncift.models.onednn import packed_linears
from nncift.models.prefix_cache import growing_cache, shared_cache
from nncift.models.text.chats import Style
from nncift.models.text.prompts import PLAIN

_NEXT_REQUEST = "\n\n" + PLAIN.partition("{prompt}")[0]  # a model without an end token goes on with it
_TAIL = 16  # tokens in which it would stand


class Answer(NamedTuple):
    """What a model says after a prompt."""

    text: str
    loss: float  # mean negative log-likelihood of the reference's tokens; NaN without a reference


def stop_tokens(model: LanguageModel) -> frozenset[int]:
    """The tokens that end an answer: end-of-text, those of the model's generation config, the chat template's."""
    configured = getattr(getattr(model.model, "generation_config", None), "eos_token_id", None)
    found = {*model.end_ids, *(configured if isinstance(configured, list) else [configured])} - {None}
    if model.has_chat_template:
        ask = exchange("Yes or no?", "")[0]
        texts = [model.chat([*exchange("Yes or no?", answer), ask]) for answer in ("Yes", "No")]
        after = _common_suffix(*texts)
        ids = model.encode([after])[0]
        if model.ends_turn(ids):
            found.add(ids[0])
    return frozenset(int(token) for token in found)


def _common_suffix(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def answer(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    references: Sequence[list[int]] | None = None,
    *,
    max_new_tokens: int | Sequence[int],
    wording: Style = "chat",
    batch_size: int | None = None,
) -> list[Answer]:
    """The most probable answer to each of n prompts, token by token, and the loss of each reference.

    Args:
        model: the language model, with an adapter or without.
        prompts: n lists of token ids, none of them empty.
        references: n likewise; fewer than the context leaves behind the prompt.
        max_new_tokens: of an answer, or of each, at most; an answer also ends with the context.
        wording: "plain" also ends an answer where the model goes on with the next request.
        batch_size: sequences per pass, at most; halved when memory runs out. 32 unless given, on CUDA as many as fit.

    Raises:
        ModelError: one sequence alone does not fit into memory.
    """
    size = batch_size or default_batch_size(str(model.device))
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    rooms = [min(most, model.context_length - len(prompt)) for most, prompt in zip(limits, prompts, strict=True)]
    ends = _Ends(model, stop_tokens(model), _NEXT_REQUEST if wording == "plain" else None)

    @torch.inference_mode()
    def work(batch: list[int]) -> list[Answer]:
        asked = _Asked.read(model, [prompts[k] for k in batch])
        losses = [math.nan] * len(batch) if references is None else asked.losses([references[k] for k in batch])
        found = _decode(asked, ends, [rooms[k] for k in batch])
        return [Answer(ends.text(ids), loss) for ids, loss in zip(found, losses, strict=True)]

    lengths = [len(prompt) for prompt in prompts]
    scored = [1] * len(prompts) if references is None else [len(reference) for reference in references]
    with packed_linears(model.model):
        return model.in_batches(work, lengths, scored, batch_size=size, steps=rooms)


@dataclass(frozen=True)
class _Ends:
    """Where answers end."""

    model: LanguageModel
    tokens: frozenset[int]
    marker: str | None

    def ended(self, ids: list[int], room: int) -> bool:
        """Whether an answer is complete."""
        if len(ids) >= room or ids[-1] in self.tokens:
            return True
        return self.marker is not None and self.marker in self.model.tokenizer.decode(ids[-_TAIL:])

    def text(self, ids: list[int]) -> str:
        """An answer without what ends it."""
        ids = ids[:-1] if ids and ids[-1] in self.tokens else ids
        text = str(self.model.tokenizer.decode(ids, skip_special_tokens=True))
        return (text.partition(self.marker)[0] if self.marker is not None else text).strip()


@dataclass
class _Asked:
    """Prompts that the model has read, save the last token of each.

    Attributes:
        ids: (n, 1) int64, the last tokens.
        mask: (n, longest) int64, 1 for a token of a prompt.
        cache: keys and values of all but the last column; None for a model that cannot continue it.
    """

    model: LanguageModel
    prompts: list[list[int]]
    ids: torch.Tensor
    mask: torch.Tensor
    cache: Any

    @classmethod
    def read(cls, model: LanguageModel, prompts: list[list[int]]) -> _Asked:
        missing = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
        padded = [[0] * more + prompt for prompt, more in zip(prompts, missing, strict=True)]
        ids = torch.tensor(padded, device=model.device)
        mask = torch.tensor([[0] * more + [1] * len(prompt) for prompt, more in zip(prompts, missing, strict=True)])
        mask = mask.to(model.device)
        if not model.shares_prefix:
            return cls(model, prompts, ids[:, -1:], mask, None)
        cache, nowhere = growing_cache(), torch.zeros(0, dtype=torch.long)
        if ids.shape[1] > 1:
            model.masked_logits(ids[:, :-1], mask[:, :-1], nowhere, nowhere, cache)
        return cls(model, prompts, ids[:, -1:], mask, cache)

    def losses(self, references: list[list[int]]) -> list[float]:
        """Mean negative log-likelihood of each reference's tokens; the cache stays as it is."""
        lengths, found = [len(reference) for reference in references], [math.nan] * len(references)
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        for rows in self.model.batches(order, lengths, lengths, len(lengths)):  # one long reference pads all others
            for row, loss in zip(rows, self._losses(rows, [references[row] for row in rows]), strict=True):
                found[row] = loss
        return found

    def _losses(self, places: list[int], references: list[list[int]]) -> list[float]:
        """Losses of the references of these rows."""
        prompts = [self.prompts[row] for row in places]
        before = [prompt[-1:] if self.cache is not None else prompt for prompt in prompts]
        sequences = [[*asked, *reference] for asked, reference in zip(before, references, strict=True)]
        spans = [[(len(asked), len(ids))] for asked, ids in zip(before, sequences, strict=True)]
        rows, columns, wanted = response_positions(sequences, spans)
        shown = [torch.tensor(ids[:-1], dtype=torch.long) for ids in sequences]
        if self.cache is None:
            logits = self.model.logits([ids.tolist() for ids in shown], rows, columns)
        else:
            chosen = torch.tensor(places, device=self.mask.device)
            there = pad_sequence([torch.ones_like(ids) for ids in shown], batch_first=True)
            mask = torch.cat([self.mask[chosen, :-1], there.to(self.mask.device)], dim=1)
            ids = pad_sequence(shown, batch_first=True).to(self.mask.device)
            logits = self.model.masked_logits(ids, mask, rows, columns, shared_cache(self.cache, chosen))
        values = token_log_probabilities(logits, wanted.to(self.model.device))
        return [-float(part.mean()) for part in torch.split(values, [len(reference) for reference in references])]

    def next_tokens(self, rows: list[int], answers: list[list[int]]) -> list[int]:
        """The most probable next token of these rows, all that are left."""
        if self.cache is None:
            sequences = [[*self.prompts[row], *ids] for row, ids in zip(rows, answers, strict=True)]
            last = torch.tensor([len(ids) - 1 for ids in sequences])
            logits = self.model.logits(sequences, torch.arange(len(rows)), last)
        else:
            places = torch.arange(len(rows))
            logits = self.model.masked_logits(self.ids, self.mask, places, torch.zeros_like(places), self.cache)
        return [int(token) for token in logits.argmax(dim=-1).tolist()]

    def follow(self, tokens: list[int]) -> None:
        """Go on with these tokens."""
        self.ids = torch.tensor(tokens, device=self.mask.device)[:, None]
        self.mask = torch.cat([self.mask, torch.ones_like(self.ids)], dim=1)

    def keep(self, places: list[int]) -> None:
        """Go on with these of the rows that are left."""
        chosen = torch.tensor(places, device=self.mask.device)
        self.ids, self.mask = self.ids[chosen], self.mask[chosen]
        if self.cache is not None:
            self.cache.batch_select_indices(chosen)


def _decode(asked: _Asked, ends: _Ends, rooms: list[int]) -> list[list[int]]:
    """The token ids of each answer, with the token that ends it."""
    answers = [list[int]() for _ in rooms]
    rows = list(range(len(rooms)))  # that are in the batch, some of them ended
    active = [row for row in rows if rooms[row] > 0]
    while active:
        tokens = asked.next_tokens(rows, [answers[row] for row in rows])
        for row, token in zip(rows, tokens, strict=True):
            if row in active:
                answers[row].append(token)
        asked.follow(tokens)
        active = [row for row in active if not ends.ended(answers[row], rooms[row])]
        if len(active) <= len(rows) // 2:  # to drop a row copies the cache of the others
            places = [place for place, row in enumerate(rows) if row in active]
            if places:
                asked.keep(places)
            rows = active
    return answers
