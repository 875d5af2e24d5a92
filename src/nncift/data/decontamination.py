"""Decontamination: samples that also occur in a test set, by equal text or a shared n-gram of words.

Texts are compared as lists of words: Unicode NFKC, case folded, without punctuation, symbols and white space. A sample
is excluded if
- its prompt equals a test prompt;
- its response equals a test response of at least 8 words (shorter ones, "Yes" or "42", are equal by chance);
- its prompt or response shares a 13-gram with either text of a test sample, the length used for GPT-3 (Brown et al.
  2020, "Language Models are Few-Shot Learners", appendix C).

Words of a template common to test set and pool count as shared: the listing shows them. Each Chinese or Japanese
character counts as a word; Thai, Lao and Khmer, written without spaces, are compared by phrases.

N-grams are stored as 64-bit hashes: about 150 bytes for each word of the test sets, nothing for the pool. Hashes of
different n-grams collide about once in 10^13 comparisons with a million test words.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

NGRAM = 13  # words
MIN_RESPONSE = 8  # words; shorter responses are equal by chance


class Contamination:
    """Index of the samples of the test sets."""

    def __init__(self) -> None:
        self._samples: list[tuple[str, str]] = []  # (id, file)
        self._prompts: dict[int, int] = {}
        self._responses: dict[int, int] = {}
        self._ngrams: dict[int, int] = {}  # hash -> first sample with it

    def add(self, identity: str, file: str, prompt: str, response: str) -> None:
        """Index one test sample."""
        at = len(self._samples)
        self._samples.append((identity, file))
        prompt_words, response_words = words(prompt), words(response)
        if prompt_words:
            self._prompts.setdefault(hash(tuple(prompt_words)), at)
        if len(response_words) >= MIN_RESPONSE:
            self._responses.setdefault(hash(tuple(response_words)), at)
        for found in (prompt_words, response_words):
            for ngram in _ngrams(found):
                self._ngrams.setdefault(ngram, at)

    def find(self, prompt: str, response: str) -> tuple[str, str, str] | None:
        """Reason for exclusion, with id and file of the test sample; None for a clean sample."""
        prompt_words, response_words = words(prompt), words(response)
        if (at := self._prompts.get(hash(tuple(prompt_words)))) is not None:
            return ("same prompt", *self._samples[at])
        if (at := self._responses.get(hash(tuple(response_words)))) is not None:
            return ("same response", *self._samples[at])
        for where, found in (("prompt", prompt_words), ("response", response_words)):
            if self._ngrams.keys().isdisjoint(_ngrams(found)):
                continue
            start, at = next(
                (i, self._ngrams[ngram]) for i, ngram in enumerate(_ngrams(found)) if ngram in self._ngrams
            )
            shared = " ".join(found[start : start + NGRAM])
            return (f"{NGRAM} shared words in the {where}: {shared}", *self._samples[at])
        return None


def words(text: str) -> list[str]:
    """The normalized words of a text."""
    if text.isascii():
        return _WORD.findall(text.lower())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = _IDEOGRAPH.sub(r" \g<0> ", folded)
    mark, word_with_marks = _marks()
    return word_with_marks.findall(folded) if mark.search(folded) else _WORD.findall(folded)


def _ngrams(found: list[str]) -> Iterator[int]:
    return map(hash, zip(*(found[i:] for i in range(NGRAM)), strict=False))


_WORD = re.compile(r"[^\W_]+")
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")


@functools.cache
def _marks() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A combining mark, and a word with some: slower, but Hindi words would be split at them."""
    marks = "".join(chr(c) for c in range(0x10000) if unicodedata.category(chr(c))[0] == "M")
    return re.compile(f"[{marks}]"), re.compile(rf"(?:[^\W_]|[{marks}])+")
