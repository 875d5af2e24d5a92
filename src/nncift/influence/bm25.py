"""BM25: do pool sample and target share words, rare words above all? No model; a hard baseline to beat.

The target's prompt and response are the query, the pool's are the documents. With N documents, n(w) of them with
word w, f(w) its number in document i of length L_i (mean length L):

    influence[i, j] = sum over the words w of target j, each as often as it stands there,
                      ln(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * L_i / L)).

The document counts come from the pool samples that `prepare` sees, so values depend on what those are. Words are
runs of letters and digits in lower case; in languages written without spaces a run is a phrase, and seldom matches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nncift.errors import ConfigError
from nncift.models.encoder import sample_texts

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.config import Config

_WORD = re.compile(r"\w+")


class BM25:
    """Lexical similarity of a target to a pool sample.

    Args:
        k1: how much a second occurrence of a word still counts.
        b: how much long samples are held back, 0 to 1.

    Source: Lucene's variant, as in the library bm25s (arXiv:2407.03618).
    """

    name = "bm25"
    relative = True

    def __init__(self, *, k1: float = 1.5, b: float = 0.75) -> None:
        self.k1 = k1
        self.b = b
        self._index: Any = None
        self._place: dict[str, int] = {}  # text -> document number

    @classmethod
    def from_config(cls, config: Config, **options: Any) -> Self:
        """The function with options of its own; nothing of a run's config matters."""
        return cls(**options)

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON."""
        return {"name": self.name, "k1": self.k1, "b": self.b}

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Index the pool samples; nothing is kept in `folder`."""
        import bm25s

        texts = sample_texts(pool)
        self._place = {text: number for number, text in reversed([*enumerate(texts)])}
        documents = [words(text) for text in texts]
        self._index = None
        if any(documents):  # the library divides by the mean length
            self._index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene", dtype="float32")
            self._index.index(documents, show_progress=False)

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Influence of each pool sample on each target, (n_pool, n_target) float32, at least 0.

        Raises:
            ConfigError: a pool sample is not among those that `prepare` saw.
        """
        influence = np.zeros((len(pool_rows), len(target_rows)), np.float32)
        places = self._places(sample_texts(pool_rows) if len(pool_rows) else [])
        if self._index is None or not len(pool_rows):
            return influence
        for j, text in enumerate(sample_texts(target_rows) if len(target_rows) else []):
            known = [word for word in words(text) if word in self._index.vocab_dict]
            if known:
                influence[:, j] = self._index.get_scores(known)[places]
        return influence

    def _places(self, texts: Sequence[str]) -> np.ndarray:
        missing = next((text for text in texts if text not in self._place), None)
        if missing is not None:
            raise ConfigError(
                f"{self.name} does not know the pool sample {missing[:60]!r}", "call prepare(pool, target) with all"
            )
        return np.array([self._place[text] for text in texts], dtype=np.int64)


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case."""
    return _WORD.findall(text.lower())
