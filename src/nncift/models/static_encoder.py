"""Static encoders of model2vec: a vector for each token, whose mean is a text's, thousands of texts a second.

They know neither word order nor context, so they are for a first look at pools that no network can read as a whole.
"embedded" stands for the token embeddings of the embedded MiniLM, its first layer alone, weighted by each token's
expected frequency (Zipf's law, and Arora, Liang and Ma, "A simple but tough-to-beat baseline for sentence embeddings",
2017). MiniLM's outputs for single tokens, from which model2vec distils, served worse (docs/measurements.md).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nncift.data.cleaning.near_duplicates import unit
from nncift.errors import DependencyError, ModelError, first_line
from nncift.models.locate import embedded_encoder, find_model

DEFAULT_STATIC_ENCODER = "minishlab/potion-base-8M"
KIND = "static encoder"
_SMOOTHING = 1e-3  # of the weights of tokens


@dataclass(frozen=True)
class StaticEncoder:
    """A static encoder by name; it is loaded once a process.

    Attributes:
        name: a folder, a hub id, or "embedded".
    """

    name: str = DEFAULT_STATIC_ENCODER

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        return int(_load(self.name).dim)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of length 1, float32 (n, width); zeros of a text without a known token.

        Raises:
            DependencyError: model2vec is not installed.
            ModelError: there is no such encoder.
        """
        found = np.asarray(_load(self.name).encode(list(texts), use_multiprocessing=False), dtype=np.float32)
        return unit(found)


def check_static_encoder(name: str) -> None:
    """Refuse an encoder that there is not, or whose library is missing; loads none.

    Raises:
        DependencyError: a package is not installed.
        ModelError: there is no such encoder.
    """
    _library()
    if name == "embedded":
        embedded_encoder()
    else:
        find_model(name, KIND)


def _library() -> Any:
    try:
        import model2vec
    except ImportError as error:
        raise DependencyError("`first_cut` needs the package model2vec", "pip install 'nncift[first-cut]'") from error
    return model2vec


@functools.lru_cache(maxsize=2)
def _load(name: str) -> Any:
    library = _library()
    if name == "embedded":
        return _token_embeddings(library)
    source = find_model(name, KIND)
    try:
        return library.StaticModel.from_pretrained(source, force_download=False)
    except Exception as error:  # the library raises whatever its parts raise: OSError, KeyError, ValueError, ...
        problem = f"cannot load the {KIND} {name!r} ({first_line(error)})"
        raise ModelError(problem, "give a model of model2vec: a hub id, a folder, or embedded") from error


def _token_embeddings(library: Any) -> Any:
    """The embedded MiniLM's first layer as a static encoder, 384 wide."""
    from safetensors import safe_open
    from tokenizers import Tokenizer

    folder = embedded_encoder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with safe_open(folder / "model.safetensors", "numpy") as weights:
        name = next(name for name in weights.keys() if name.endswith("word_embeddings.weight"))  # noqa: SIM118
        vectors = weights.get_tensor(name)
    tokens = [str(tokenizer.id_to_token(number)) for number in range(len(vectors))]
    return library.StaticModel(vectors * _weights(tokens)[:, None], tokenizer, normalize=True)


def _weights(tokens: list[str]) -> np.ndarray:
    """Weight of each token, a / (a + frequency), float32 (tokens,); 0 of those that stand for no text.

    The words of the vocabulary are in the order of their frequency, which falls with the rank; single characters, most
    of them punctuation, count as the most frequent.
    """
    is_word = np.array([len(token) > 1 and token.removeprefix("##").isalnum() for token in tokens])
    frequencies = 1 / (1 + np.where(is_word, np.cumsum(is_word), 1))
    weights = _SMOOTHING / (_SMOOTHING + frequencies / frequencies.sum())
    weights[[len(token) > 1 and token.startswith("[") for token in tokens]] = 0
    return np.asarray(weights, dtype=np.float32)
