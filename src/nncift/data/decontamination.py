"""Does a sample also stand in a test set? Equal text, or a long run of equal words.

Texts are compared as lists of words: Unicode's compatibility form (NFKC), case folded, punctuation, symbols
and white space dropped. A sample is out when, compared so,
- its prompt equals a test prompt;
- its response equals a test response of at least 8 words (shorter ones, "Yes" or "42", are equal by chance);
- its prompt or response shares a run of 13 words with either text of a test sample: the run length that GPT-3's
  authors looked for (Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C).

A wording that the test set and the pool take from the same template counts as shared: the listing shows the
words. Each Chinese or Japanese character counts as a word; Thai, Lao and Khmer, which write no spaces, are
compared by phrases.

Runs are kept as 64-bit hashes: about 150 bytes for each word of the test sets, nothing for the pool. Two
different runs share a hash about once in 10^13 comparisons with a million test words.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

RUN = 13  # words
SHORT = 8  # words that a response needs for its equality to say something


class Contamination:
    """The samples of the test sets, indexed."""

    def __init__(self) -> None:
        self._samples: list[tuple[str, str]] = []  # (id, file)
        self._prompts: dict[int, int] = {}
        self._responses: dict[int, int] = {}
        self._runs: dict[int, int] = {}  # hash of the run -> the first sample with it

    def add(self, identity: str, file: str, prompt: str, response: str) -> None:
        """Index one test sample."""
        at = len(self._samples)
        self._samples.append((identity, file))
        prompt_words, response_words = words(prompt), words(response)
        if prompt_words:
            self._prompts.setdefault(hash(tuple(prompt_words)), at)
        if len(response_words) >= SHORT:
            self._responses.setdefault(hash(tuple(response_words)), at)
        for found in (prompt_words, response_words):
            for run in _runs(found):
                self._runs.setdefault(run, at)

    def find(self, prompt: str, response: str) -> tuple[str, str, str] | None:
        """Why a sample is out, with the id and the file of the test sample; None when it is clean."""
        prompt_words, response_words = words(prompt), words(response)
        if (at := self._prompts.get(hash(tuple(prompt_words)))) is not None:
            return ("same prompt", *self._samples[at])
        if (at := self._responses.get(hash(tuple(response_words)))) is not None:
            return ("same response", *self._samples[at])
        for where, found in (("prompt", prompt_words), ("response", response_words)):
            if self._runs.keys().isdisjoint(_runs(found)):
                continue
            start, at = next((i, self._runs[run]) for i, run in enumerate(_runs(found)) if run in self._runs)
            shared = " ".join(found[start : start + RUN])
            return (f"{RUN} shared words in the {where}: {shared}", *self._samples[at])
        return None


def words(text: str) -> list[str]:
    """The words of a text, as they are compared."""
    if text.isascii():
        return _WORD.findall(text.lower())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = _IDEOGRAPH.sub(r" \g<0> ", folded)
    mark, word_with_marks = _marks()
    return word_with_marks.findall(folded) if mark.search(folded) else _WORD.findall(folded)


def _runs(found: list[str]) -> Iterator[int]:
    return map(hash, zip(*(found[i:] for i in range(RUN)), strict=False))


_WORD = re.compile(r"[^\W_]+")
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")


@functools.cache
def _marks() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A combining mark, and a word that may hold some: slower, but without them the words of Hindi fall apart."""
    marks = "".join(chr(c) for c in range(0x10000) if unicodedata.category(chr(c))[0] == "M")
    return re.compile(f"[{marks}]"), re.compile(rf"(?:[^\W_]|[{marks}])+")
