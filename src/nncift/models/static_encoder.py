"""Static encoders of model2vec: a vector for each token, whose mean is a text's, thousands of texts a second.

They know neither word order nor context, so they are for a first look at pools that no network can read as a whole.
"embedded" stands for one that is made from the embedded MiniLM once and kept in the cache: the vector of a token is
MiniLM's embedding of that token alone, in 256 principal components, weighted by its expected frequency (Zipf's law, and
Arora, Liang and Ma, "A simple but tough-to-beat baseline for sentence embeddings", 2017), as model2vec distils models.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nncift.data.near_duplicates import unit
from nncift.errors import DependencyError, ModelError, first_line
from nncift.models.locate import embedded_encoder, find_model
from nncift.run.files import cache_folder
from nncift.run.progress import drawn, in_terminal

DEFAULT_STATIC_ENCODER = "minishlab/potion-base-8M"
KIND = "static encoder"
_WIDTH, _SMOOTHING = 256, 1e-4  # components that are kept, and "a" in the weights a / (a + frequency)
_TOKENS = 512  # in a forward pass


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
    source = str(embedded_static_encoder()) if name == "embedded" else find_model(name, KIND)
    try:
        return library.StaticModel.from_pretrained(source, force_download=False)
    except Exception as error:  # the library raises whatever its parts raise: OSError, KeyError, ValueError, ...
        problem = f"cannot load the {KIND} {name!r} ({first_line(error)})"
        raise ModelError(problem, "give a model of model2vec: a hub id, a folder, or embedded") from error


def embedded_static_encoder() -> Path:
    """The folder of a static encoder made from the embedded MiniLM; made once, which takes a minute, and 31 MB.

    Raises:
        DependencyError: model2vec or the embedded encoder is not installed.
    """
    folder = cache_folder() / "static-minilm"
    if not (folder / "config.json").exists():
        model = _distilled(embedded_encoder())
        temporary = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
        model.save_pretrained(temporary)
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster
            if not (folder / "config.json").exists():
                raise
    return folder


def _distilled(encoder: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    outputs = _token_outputs(encoder, tokenizer)
    centred = outputs - outputs.mean(axis=0)
    _, components = np.linalg.eigh(centred.T @ centred)  # ascending
    vectors = centred @ components[:, ::-1][:, :_WIDTH] * _weights(len(outputs))[:, None]
    return _library().StaticModel(vectors.astype(np.float32), tokenizer, normalize=True, base_model_name=encoder.name)


def _weights(tokens: int) -> np.ndarray:
    """Of each token, float64 (tokens,): a vocabulary is in the order of frequency, which falls with the rank."""
    frequencies = 1 / np.arange(2, tokens + 2)
    return np.asarray(_SMOOTHING / (_SMOOTHING + frequencies / frequencies.sum()))


def _token_outputs(encoder: Path, tokenizer: Any) -> np.ndarray:
    """The encoder's embedding of each token of its vocabulary alone, float64 (tokens, width)."""
    import torch

    from nncift.models.encoder import load_encoder

    model = load_encoder(str(encoder), device="cpu")[0].auto_model.eval()
    first, last = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    tokens = np.arange(tokenizer.get_vocab_size())
    outputs = []
    with torch.inference_mode(), tqdm(total=len(tokens), desc=KIND, unit=" tokens", **drawn(in_terminal())) as bar:
        for start in range(0, len(tokens), _TOKENS):
            part = torch.as_tensor(tokens[start : start + _TOKENS])
            ids = torch.stack([torch.full_like(part, first), part, torch.full_like(part, last)], dim=1)
            outputs.append(model(input_ids=ids).last_hidden_state.mean(dim=1).double().numpy())
            bar.update(len(part))
    return np.concatenate(outputs)
