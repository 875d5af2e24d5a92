"""A test set as a model reads it, and which metric applies to which of its items.

The loss of the reference applies to every item and is the most sensitive metric at small sizes. Exact match is for
answers that have one wording: short ones, and those that end in GSM8K's "#### 42", of which the final numbers are
compared. Longer references get ROUGE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nncift.errors import NNCIFTError
from nncift.evaluation.answers.text_metrics import ROUGE, final_number, is_short
from nncift.models.text.chats import Conversation, Style, conversations
from nncift.models.text.examples import Example, encode_samples
from nncift.models.text.prompts import name_sample
from nncift.models.text.tokenization import Tokenization

if TYPE_CHECKING:
    from datasets import Dataset

_MARGIN = 8  # tokens that an answer may have beyond the longest reference
_MOST_NEW_TOKENS = 256


@dataclass(frozen=True, eq=False)
class Items:
    """The n items of a test set, rendered for a model.

    Attributes:
        samples: as they were read.
        examples: prompt and reference of each in token ids; of a chat, its last response is generated.
        wording: "chat" or "plain", how they are rendered.
    """

    samples: tuple[Conversation, ...]
    examples: tuple[Example, ...]
    wording: Style

    @classmethod
    def read(cls, rows: Dataset, model: Tokenization, *, wording: Style | None = None) -> Items:
        """The items of a test set, as `load_pool` gives it.

        Args:
            rows: n samples.
            model: the language model, or its tokenizer alone.
            wording: "chat" or "plain"; "chat" where the model has a chat template unless given.

        Raises:
            DataError: a reference exceeds the model's context, or has no tokens.
            ModelError: the chat template refuses a chat.
        """
        samples, wording = conversations(rows), choose_wording(model, wording)
        return cls(tuple(samples), tuple(encoded(model, samples, wording)), wording)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the items."""
        return tuple(sample.id for sample in self.samples)

    @property
    def prompts(self) -> list[str]:
        """In plain text."""
        return [sample.prompt for sample in self.samples]

    @property
    def references(self) -> list[str]:
        """In plain text."""
        return [sample.response for sample in self.samples]

    @property
    def prompt_ids(self) -> list[list[int]]:
        """What precedes the answer of each, in token ids."""
        return [example.ids[: example.spans[-1][0]] for example in self.examples]

    def new_tokens(self, most: int | None = None) -> list[int]:
        """Tokens of the longest answer to generate to each item; the same for every model that is tested.

        Twice its own reference, but no more than the longest reference of all, and a margin of 8; at most 256. What
        goes on for longer matches no short reference, so it is not paid for.

        Args:
            most: for every item, instead.
        """
        if most is not None:
            return [most] * len(self)
        lengths = [end - start for start, end in (example.spans[-1] for example in self.examples)]
        return [min(min(2 * length, max(lengths)) + _MARGIN, _MOST_NEW_TOKENS) for length in lengths]

    def applies(self, metric: str) -> np.ndarray:
        """To which items a metric of `METRICS` applies, (n,) bool."""
        return applies(metric, self.references)


def applies(metric: str, references: Sequence[str]) -> np.ndarray:
    """To which of n references a metric of `METRICS` applies, (n,) bool."""
    if metric == "exact_match":
        return np.array([is_short(text) or final_number(text) is not None for text in references], bool)
    if metric in ROUGE:
        return np.array([not is_short(text) for text in references], bool)
    return np.ones(len(references), bool)


def choose_wording(model: Tokenization, wording: Style | None) -> Style:
    """How samples are rendered: as given, else in the chat template where the model has one."""
    if wording in (None, "auto"):
        return "chat" if model.has_chat_template else "plain"
    return wording


def encoded(model: Tokenization, samples: Sequence[Conversation], wording: Style) -> list[Example]:
    """The samples in token ids; an error names its sample."""
    examples = list[Example]()
    try:
        for example in encode_samples(model, samples, wording=wording):
            examples.append(example)
    except NNCIFTError as error:
        raise name_sample(error, samples[len(examples)].id) from error
    return examples
