"""Decontamination: samples that also occur in a test set, by equal text or a shared n-gram of words.

Texts are compared as lists of words: Unicode NFKC, case folded, without punctuation, symbols and white space. A sample
is excluded if
- its prompt equals a test prompt; of a chat, the text of any of its user's turns. In a prompt of fewer than 8 words
  symbols count too ("2 + 2" and "2 * 2", "C" and "C++"), punctuation, quotes and brackets do not;
- one of its texts, or a paragraph of its prompt, equals a text of a test set, of at least 8 words (shorter ones, "Yes"
  or "42", are equal by chance);
- one of its texts shares a 13-gram with a text of a test set, the length used for GPT-3 (Brown et al. 2020, "Language
  Models are Few-Shot Learners", appendix C).

Words of a template common to test set and pool count as shared: the listing shows them. Each Chinese or Japanese
character counts as a word; Thai, Lao and Khmer, written without spaces, are compared by phrases.

N-grams are stored as 64-bit hashes: about 150 bytes for each word of the test sets, nothing for the pool. Hashes of
different n-grams collide about once in 10^13 comparisons with a million test words.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

NGRAM = 13  # words
MIN_WORDS = 8  # shorter texts that are no prompts are equal by chance


class Texts(NamedTuple):
    """The texts of a sample by their part in it."""

    prompts: tuple[str, ...]
    responses: tuple[str, ...] = ()
    others: tuple[str, ...] = ()  # system message, results of tools, and of a test set what is neither

    def by_part(self) -> Iterator[tuple[str, str]]:
        """Each text after the name of its part."""
        yield from (("prompt", text) for text in self.prompts)
        yield from (("response", text) for text in self.responses)
        yield from (("text", text) for text in self.others)


class Contamination:
    """Index of the samples of the test sets."""

    def __init__(self) -> None:
        self._samples: list[tuple[str, str]] = []  # (id, file)
        self._prompts: dict[int, int] = {}
        self._long: dict[int, int] = {}  # texts of at least MIN_WORDS
        self._ngrams: dict[int, int] = {}  # hash -> first sample with it

    def add(self, identity: str, file: str, texts: Texts) -> None:
        """Index one test sample."""
        at = len(self._samples)
        self._samples.append((identity, file))
        for part, text in texts.by_part():
            found = words(text)
            if part == "prompt" and (key := prompt_key(text)):
                self._prompts.setdefault(hash(key), at)
            if len(found) >= MIN_WORDS:
                self._long.setdefault(hash(tuple(found)), at)
            for ngram in _ngrams(found):
                self._ngrams.setdefault(ngram, at)

    def find(self, texts: Texts) -> tuple[str, str, str] | None:
        """Reason for exclusion, with id and file of the test sample; None for a clean sample."""
        found = [(part, words(text)) for part, text in texts.by_part()]
        for (part, text), (_, each) in zip(texts.by_part(), found, strict=True):
            if part == "prompt" and (at := self._prompts.get(hash(_key(text, each)))) is not None:
                return ("same prompt", *self._samples[at])
            if len(each) >= MIN_WORDS and (at := self._long.get(hash(tuple(each)))) is not None:
                return (f"same {part}", *self._samples[at])
        for paragraph in _paragraphs(texts.prompts):
            if len(paragraph) >= MIN_WORDS and (at := self._long.get(hash(tuple(paragraph)))) is not None:
                return ("same paragraph in the prompt", *self._samples[at])
        for part, each in found:
            if self._ngrams.keys().isdisjoint(_ngrams(each)):
                continue
            start, at = next((i, self._ngrams[ngram]) for i, ngram in enumerate(_ngrams(each)) if ngram in self._ngrams)
            shared = " ".join(each[start : start + NGRAM])
            return (f"{NGRAM} shared words in the {part}: {shared}", *self._samples[at])
        return None


def _paragraphs(prompts: Iterable[str]) -> Iterator[list[str]]:
    """The words of each paragraph of prompts with several: an instruction and its input are two."""
    for prompt in prompts:
        if "\n\n" in prompt:
            yield from map(words, prompt.split("\n\n"))


def words(text: str) -> list[str]:
    """The normalized words of a text."""
    folded, word = _folded(text)
    return word.findall(folded)


def prompt_key(text: str) -> tuple[str, ...]:
    """What equal prompts have in common: the words, and of a short prompt also the symbols; empty without any."""
    return _key(text, words(text))


def _key(text: str, found: list[str]) -> tuple[str, ...]:
    """As `prompt_key`, with the words of the text."""
    if len(found) >= MIN_WORDS:
        return tuple(found)
    folded, word = _folded(text)
    tokens: list[str] = []
    end = 0
    for match in word.finditer(folded):
        tokens += filter(_is_symbol, folded[end : match.start()])
        tokens.append(match[0])
        end = match.end()
    return (*tokens, *filter(_is_symbol, folded[end:]))


def _is_symbol(character: str) -> bool:
    """Whether it carries meaning, unlike punctuation; accents that are used as quotes do not."""
    if character in _NO_SYMBOLS:
        return False
    return character in _ASCII_SYMBOLS or unicodedata.category(character) in ("Sm", "Sc", "Sk", "So")


def _folded(text: str) -> tuple[str, re.Pattern[str]]:
    """A text in the form that is compared, and the pattern of its words."""
    if text.isascii():
        return text.lower(), _WORD
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = _IDEOGRAPH.sub(r" \g<0> ", folded)
    mark, word_with_marks = _marks()
    return folded, word_with_marks if mark.search(folded) else _WORD


def _ngrams(found: list[str]) -> Iterator[int]:
    return map(hash, zip(*(found[i:] for i in range(NGRAM)), strict=False))


_WORD = re.compile(r"[^\W_]+")
_ASCII_SYMBOLS = frozenset("+-*/=<>#%^&|~@$")
_NO_SYMBOLS = frozenset("`\u00b4\ufffd")  # the last stands for what is lost
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")


@functools.cache
def _marks() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A combining mark, and a word with some: slower, but Hindi words would be split at them."""
    marks = "".join(chr(c) for c in range(0x10000) if unicodedata.category(chr(c))[0] == "M")
    return re.compile(f"[{marks}]"), re.compile(rf"(?:[^\W_]|[{marks}])+")
