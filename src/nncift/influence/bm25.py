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
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import ConfigError
from nncift.influence.base import InfluenceFunction, Traits
from nncift.models.chats import mean_over_turns
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
    traits = Traits(relative=True)
    _settings = ("k1", "b")

    def __init__(self, *, k1: float = 1.5, b: float = 0.75) -> None:
        self.k1 = k1
        self.b = b
        self._index: Any = None
        self._document: dict[str, int] = {}  # text -> document number

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Index the pool samples; nothing is kept in `folder`."""
        import bm25s

        texts = [*chain(*sample_texts(pool))]
        self._document = {text: number for number, text in reversed([*enumerate(texts)])}
        documents = [words(text) for text in texts]
        self._index = None
        if any(documents):  # the library divides by the mean length
            self._index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene", dtype="float32")
            self._index.index(documents, show_progress=False)

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """BM25 scores, at least 0."""
        documents, queries = sample_texts(pool_rows), sample_texts(target_rows)
        numbers = self._numbers([*chain(*documents)])
        if self._index is None or not documents or not queries:
            return np.zeros((len(documents), len(queries)), np.float32)
        influence = np.zeros((sum(map(len, queries)), len(documents)), np.float32)
        for j, text in enumerate(chain(*queries)):
            if indexed := [word for word in words(text) if word in self._index.vocab_dict]:
                influence[j] = mean_over_turns(documents, self._index.get_scores(indexed)[numbers])
        return mean_over_turns(queries, influence).T.copy()

    def _numbers(self, texts: Sequence[str]) -> np.ndarray:
        for text in texts:
            if text not in self._document:
                raise ConfigError(
                    f"the pool sample {text[:60]!r} is not in the index of {self.name}",
                    "call prepare(pool, target) with all samples",
                )
        return np.array([self._document[text] for text in texts], dtype=np.int64)


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case."""
    return _WORD.findall(text.lower())
