"""BM25: lexical overlap of pool sample and target, weighted by inverse document frequency. No model; a hard baseline.

The target's prompt and response are the query, those of the pool samples are the documents. With N documents, n(w) of
them containing word w, f(w) its frequency in document i of length L_i (mean length L):

    influence[i, j] = sum over the words w of target j, with repetition,
                      ln(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * L_i / L)).

The document frequencies are those of the pool samples given to `prepare`, so values depend on that set. Words are runs
of letters and digits in lower case; in languages written without spaces a run is a phrase, and seldom matches.

Where several turns of a chat are trained on, each is a document, or a query, of its own, with what precedes it, and
influence is the mean over the turns of both.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import ConfigError
from nncift.influence.base import InfluenceFunction, Traits
from nncift.models.encoder import sample_texts

if TYPE_CHECKING:
    from datasets import Dataset

_WORD = re.compile(r"\w+")


class BM25(InfluenceFunction):
    """Lexical similarity of a target to a pool sample.

    Args:
        k1: term frequency saturation.
        b: length normalization, 0 to 1.

    Source: Lucene's variant, as in the library bm25s (arXiv:2407.03618).
    """

    name = "bm25"
    traits = Traits(relative=True, factored=True)
    _settings = ("k1", "b")

    def __init__(self, *, k1: float = 1.5, b: float = 0.75) -> None:
        self.k1 = k1
        self.b = b
        self._document: dict[str, int] = {}  # text -> document number
        self._word: dict[str, int] = {}  # word -> column, in the order of the alphabet
        self._weights: Any = None  # of the words in the documents, a csr_array (documents, words) float32

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Index the pool samples; nothing is kept in `folder`."""
        texts = [*dict.fromkeys(chain(*sample_texts(pool)))]
        self._document = {text: number for number, text in enumerate(texts)}
        copies = Counter(chain(*sample_texts(pool)))
        documents = [words(text) for text in texts]
        self._word = {word: k for k, word in enumerate(sorted({*chain(*documents)}))}
        self._weights = self._weighted(self._counts(documents), np.array([copies[text] for text in texts]))

    def vectors(self, rows: Dataset) -> Any:
        """Weights of the words in the samples, a csr_array (n, words) float32."""
        turns = sample_texts(rows)
        return _turn_means(turns) @ self._weights[self._numbers([*chain(*turns)])]

    def target_vectors(self, rows: Dataset) -> Any:
        """How often each word occurs in the targets, likewise."""
        if self._weights is None:
            raise ConfigError(f"{self.name} has no index", "call prepare(pool, target) with all samples")
        turns = sample_texts(rows)
        return _turn_means(turns) @ self._counts([words(text) for text in chain(*turns)])

    def _counts(self, texts: Sequence[Sequence[str]]) -> Any:
        """How often each indexed word occurs in texts, a csr_array (n, words) float32."""
        from scipy.sparse import csr_array

        columns, ends = array("q"), array("q", [0])
        for text in texts:
            columns.extend(self._word[word] for word in text if word in self._word)
            ends.append(len(columns))
        ones = np.ones(len(columns), np.float32)
        counts = csr_array((ones, np.array(columns), np.array(ends)), shape=(len(texts), len(self._word)))
        counts.sum_duplicates()
        return counts

    def _weighted(self, counts: Any, copies: np.ndarray) -> Any:
        """BM25 weights from the counts of distinct documents, each of which stands for some `copies`."""
        lengths = counts.sum(axis=1)
        mean = lengths @ copies / copies.sum() if counts.nnz else 1.0
        documents, total = copies @ (counts > 0), copies.sum()
        rarity = np.log1p((total - documents + 0.5) / (documents + 0.5))
        norms = self.k1 * (1 - self.b + self.b * lengths / mean)
        weights = counts.copy()
        saturated = counts.data / (counts.data + np.repeat(norms, np.diff(counts.indptr)))
        weights.data = np.asarray(saturated * rarity[counts.indices], dtype=np.float32)
        return weights

    def _numbers(self, texts: Sequence[str]) -> np.ndarray:
        for text in texts:
            if text not in self._document:
                raise ConfigError(
                    f"the pool sample {text[:60]!r} is not in the index of {self.name}",
                    "call prepare(pool, target) with all samples",
                )
        return np.array([self._document[text] for text in texts], dtype=np.int64)


def _turn_means(samples: Sequence[Sequence[str]]) -> Any:
    """The means over the turns of each sample as a csr_array (n, turns of all) float32."""
    from scipy.sparse import csr_array

    counts = np.array([len(turns) for turns in samples], dtype=np.int64)
    ends = np.cumsum(counts)
    weights = np.repeat(1 / np.maximum(counts, 1), counts).astype(np.float32)
    return csr_array((weights, np.arange(len(weights)), np.append(0, ends)), shape=(len(samples), len(weights)))


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case."""
    return _WORD.findall(text.lower())
