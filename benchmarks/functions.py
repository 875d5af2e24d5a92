"""The influence functions that benchmarks compare: every built-in one, and LESS with both sides preconditioned."""

from __future__ import annotations

from functools import cache
from typing import Any

from nncift.embeddings import load_encoder
from nncift.influence import BUILT_IN, InfluenceFunction
from nncift.language_model import LanguageModel
from nncift.registry import resolve

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"less, both sides": ("less", {"preconditioned": "both"})}
NAMES = (*BUILT_IN, *VARIANTS)
_NO_MODEL = ("bm25",)
_ENCODER = ("embedding-similarity", "lossval")


def make_function(name: str, model: LanguageModel, encoder: str = "embedded", **options: Any) -> InfluenceFunction:
    """A function of `NAMES` at a loaded model."""
    kind, own = VARIANTS.get(name, (name, {}))
    arguments = [] if kind in _NO_MODEL else [_encoder(encoder) if kind in _ENCODER else model]
    return resolve(kind, BUILT_IN, "nncift.influence")(*arguments, **own, **options)  # type: ignore[no-any-return]


@cache
def _encoder(name: str) -> Any:
    return load_encoder(name)
