"""The influence functions that benchmarks compare: every built-in one, and LESS with both sides preconditioned.

LESS's own warm-up is short and gentle. "less, trained alike" takes its gradients in a training on the whole pool with
the settings of those that are to be foretold, "less, one epoch" after an epoch of such a training.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

from nncift.adapters import Lora
from nncift.embeddings import load_encoder
from nncift.influence import BUILT_IN, InfluenceFunction
from nncift.language_model import LanguageModel
from nncift.registry import resolve
from nncift.training import Training

TRAINING = Training(lora=Lora(rank=16, alpha=32, dropout=0.0), fraction=1.0, epochs=3, learning_rate=2e-4, batch_size=3)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "less, both sides": ("less", {"preconditioned": "both"}),
    "less, trained alike, both sides": ("less", {"preconditioned": "both", "training": TRAINING}),
    "less, one epoch, both sides": (
        "less",
        {"preconditioned": "both", "training": dataclasses.replace(TRAINING, epochs=1)},
    ),
}
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
