"""Metrics of a generated answer against the reference: exact match, GSM8K's final number, ROUGE, embedding similarity.

Exact match is SQuAD's (Rajpurkar et al. 2016: case, punctuation and articles do not count) with three exceptions.
Numbers are compared by value, and punctuation between digits counts: SQuAD's rule would make 3.5 equal to 35.
Punctuation is that of every script, and characters are compared in Unicode's form NFKC. An article stands before a
word, so the last word is none: the answer A of a multiple choice. ROUGE is rouge-score's F1 without stemming, on words
of any script: its own tokenizer keeps ASCII alone, and scores every Chinese answer 0.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import DependencyError

if TYPE_CHECKING:
    from nncift.models.spec import EncoderSpec

ROUGE = ("rouge1", "rouge2", "rougeL")

_SHORT_WORDS, _SHORT_CHARACTERS = 5, 64  # names, labels, numbers and dates; few sentences, in scripts without spaces
_ARTICLES = {"a", "an", "the"}
_GROUPED = r"\d{1,3}(?:,\d{2,3})*,\d{3}(?!,?\d)"  # 1,234,567 or, in India, 12,34,567; 3,5 is not one number
_THOUSANDS = re.compile(rf"(?<![\d.,]){_GROUPED}")
_NUMBER = re.compile(rf"[-+]?\$?(?:(?:{_GROUPED}|\d+)(?:\.\d+)?|\.\d+)")
_DASHES = str.maketrans("\u2010\u2013\u2212", "---")  # typed for a minus sign
_POWERS = re.compile(r"(?<=\d)(?=[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u215e])")  # and fractions
_FINAL = re.compile(r"####\s*(.*)")
_CHARACTERS = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"  # Thai, Japanese, Chinese and Korean
_WORDS = re.compile(rf"[{_CHARACTERS}]|(?:(?![{_CHARACTERS}])[^\W_])+")


def normalized(text: str) -> str:
    """The text in lower case without punctuation, articles and extra spaces; as it is where nothing else is in it."""
    text = unicodedata.normalize("NFKC", _POWERS.sub("^", text)).lower()  # 10\u00b2 is not 102
    words = unicodedata.normalize("NFKC", _without_punctuation(text)).split()
    return " ".join([word for word in words[:-1] if word not in _ARTICLES] + words[-1:]) or " ".join(text.split())


def _without_punctuation(text: str) -> str:
    """The text without punctuation, but for one hyphen wherever some stood between digits."""
    text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    marked = "".join("_" if _is_punctuation(character) else character for character in text)
    return re.sub(r"(?<=\d)_+(?=\d)", "-", marked).replace("_", "")


def _is_punctuation(character: str) -> bool:
    """Whether Unicode or ASCII has it for punctuation; ASCII counts symbols such as $ and + to it."""
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def is_short(reference: str) -> bool:
    """Whether an answer has one wording: at most five words after normalization, and 64 characters."""
    text = normalized(reference)
    return len(text.split()) <= _SHORT_WORDS and len(text) <= _SHORT_CHARACTERS


def exact_match(answer: str, reference: str) -> float:
    """1 where both are equal after normalization, or the same number, else 0; of GSM8K the final numbers count."""
    if (wanted := final_number(reference)) is not None:
        return float(_last_number(answer) == wanted)
    number = _as_number(reference)
    if number is not None and (given := _as_number(answer)) is not None:
        return float(given == number)
    return float(normalized(answer) == normalized(reference))


def final_number(text: str) -> Decimal | None:
    """The number after GSM8K's "####" at the end of a text; None where there is none."""
    found = _FINAL.findall(text)
    return _as_number(found[-1]) if found else None


def _last_number(text: str) -> Decimal | None:
    """The number after "####", else the last number of the text: models that were not trained on the format lack it."""
    found = _FINAL.findall(text)
    numbers = _NUMBER.findall(found[-1]) if found else []
    return _as_number(numbers[0] if numbers else next(reversed(_NUMBER.findall(text)), ""))


def _as_number(text: str) -> Decimal | None:
    """A text that is a number alone, with thousands separators, a currency sign or a final dot."""
    text = unicodedata.normalize("NFKC", _POWERS.sub("^", text)).translate(_DASHES)
    text = text.strip().removesuffix(".").replace("$", "")
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:  # digits of other scripts are numbers too; nothing else gets here
        return None


def rouge_scorer() -> Any:
    """A scorer of ROUGE-1, ROUGE-2 and ROUGE-L.

    Raises:
        DependencyError: rouge-score is not installed.
    """
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise DependencyError("ROUGE needs the package rouge-score", 'pip install "nncift[proof]"') from error
    return rouge_scorer.RougeScorer(list(ROUGE), tokenizer=_Words())


class _Words:
    """rouge-score's tokenizer for words of any script; equal to its default on ASCII text."""

    def tokenize(self, text: str) -> list[str]:
        """Words in lower case; characters of scripts without spaces one by one."""
        return _WORDS.findall(unicodedata.normalize("NFC", text.lower()))


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L of n answers, each (n,) float64 in [0, 1].

    Raises:
        DependencyError: rouge-score is not installed.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", through rouge-score.
    """
    scorer = rouge_scorer()
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {name: np.array([score[name].fmeasure for score in scores], np.float64) for name in ROUGE}


def embedding_similarity(answers: Sequence[str], references: Sequence[str], encoder: EncoderSpec) -> np.ndarray:
    """Cosine of the sentence embeddings of answer and reference, (n,) float64 in [-1, 1]; 0 for an empty answer."""
    from nncift.models.encoder import embed_texts

    if not answers:
        return np.zeros(0)
    embeddings = embed_texts([*answers, *references], encoder).astype(np.float64)
    cosines = (embeddings[: len(answers)] * embeddings[len(answers) :]).sum(axis=1)
    return np.where([bool(answer.strip()) for answer in answers], cosines, 0.0)
