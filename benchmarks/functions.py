"""The influence functions that benchmarks compare: every built-in one, and LESS with both sides preconditioned.

LESS's own warm-up is short and gentle. "less, trained alike" takes its gradients in a training on the whole pool with
the settings of those that are to be predicted, "less, one epoch" after an epoch of such a training.
"""

from __future__ import annotations

import dataclasses
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from nncift.influence.base import InfluenceFunction
from nncift.influence.catalogue import BUILT_IN
from nncift.labels.collect import collect
from nncift.models.encoder import load_encoder
from nncift.models.language_model import LanguageModel
from nncift.run.options.registry import resolve
from nncift.run.storage.files import fingerprint, read_json, write_json
from nncift.training.lora import Lora
from nncift.training.trainer import Training

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


def exact_values(
    name: str, model: LanguageModel, pool: Dataset, target: Dataset, folder: Path, **options: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Exact influence of every pool sample on every target, (n_pool, n_target), and the function's description.

    Values are kept in a folder of the function's name in `folder`.
    """
    function: Any = make_function(name, model, **options)
    place = folder / name.replace(", ", "-").replace(" ", "-")
    description = json.loads(json.dumps(function.describe(), default=str))
    samples = [list(rows[column]) for rows in (pool, target) for column in ("id", "response")]
    work, path = {"fingerprint": fingerprint(description, *samples)}, place / "work.json"
    if path.exists() and read_json(path) != work:
        raise SystemExit(f"{place} holds values of other samples or settings: choose another --folder")
    write_json(path, work)
    rows, columns = np.arange(len(pool)), np.arange(len(target))
    since = time.perf_counter()
    pairs = collect(function, pool, target, rows, columns, folder=place, progress=True)
    print(f"{name}: {time.perf_counter() - since:.0f} s", flush=True)
    return pairs.influence.reshape(len(rows), len(columns)), description


@cache
def _encoder(name: str) -> Any:
    return load_encoder(name)
