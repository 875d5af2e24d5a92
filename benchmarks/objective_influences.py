"""The influences that objectives are compared on: pool on targets, and pool on pool for redundancy, from exact values.

The gradient sketch is that of `gradient-sketch` with exact cosines of gradients alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from exact_values import FOLDER, ExactValues
from functions import exact_values, make_function
from nncift.influence.gradient_sketch import GradientSketch
from nncift.labels.collect import collect
from nncift.labels.pairs import LabelledPairs
from nncift.models.language_model import LanguageModel
from nncift.run.storage.files import read_tensors, write_tensors

LESS = "less, trained alike, both sides"
SHARPNESS = 5.0  # of exp(sharpness (cosine - 1))


@dataclass(frozen=True)
class Influence:
    """One influence function on both sides.

    Attributes:
        on_target: (n_pool, n_target) float64.
        on_pool: (n_pool, n_pool) float64, the same function with the pool as its own target; None if not computed.
        weights: (n_target,) float64, of the targets in sums over them; all 1 unless given.
    """

    on_target: np.ndarray
    on_pool: np.ndarray | None
    weights: np.ndarray | None = None


def similarities(name: str, model: LanguageModel, pool: Dataset, target: Dataset, folder: Path) -> Influence:
    """Of an influence function that is cheap enough to compute on both sides at once."""
    both = [exact_values(name, model, pool, rows, folder / side)[0] for side, rows in (("t", target), ("p", pool))]
    return Influence(*(values.astype(np.float64) for values in both))


def less(model: LanguageModel, pool: Dataset, target: Dataset, folder: Path) -> Influence:
    """The committed values on the targets; on the pool where `folder` holds them (`--with-pool` computes them)."""
    stored = ExactValues.load(FOLDER / "truth-less.safetensors")
    if stored.pool_ids != tuple(pool["id"]) or stored.target_ids != tuple(target["id"]):
        raise SystemExit("the committed values are those of other samples")
    place = folder / "less-pool.safetensors"
    on_pool = read_tensors(place)["influence"].astype(np.float64) if place.exists() else None
    return Influence(stored.influence.astype(np.float64), on_pool)


def less_among_targets(model: LanguageModel, pool: Dataset, target: Dataset, folder: Path) -> LabelledPairs:
    """LESS of the targets on each other, at the checkpoints of the same training on the pool; kept in `folder`."""
    place, every = folder / "less-among-targets", np.arange(len(target))
    path = place / "among.parquet"
    if not path.exists():
        function = make_function(LESS, model)
        function.warm_up(pool, place, progress=True)
        collect(function, pool, target, np.arange(1), every, folder=place, among=path, progress=True)
    return LabelledPairs.load(path)


def less_on_pool(model: LanguageModel, pool: Dataset, folder: Path) -> None:
    """Compute LESS with the pool as its own target."""
    values, _ = exact_values(LESS, model, pool, pool, folder / "less-pool")
    write_tensors(folder / "less-pool.safetensors", {"influence": values})


def sketch(model: LanguageModel, pool: Dataset, target: Dataset, folder: Path) -> Influence:
    """Mean over layers of the cosine of error x activation, from forward passes alone; exp(sharpness (cosine - 1))."""
    cosine = sketch_cosine(model, pool, target, folder)
    on_target, on_pool = (np.exp(SHARPNESS * (values - 1)) for values in (cosine.on_target, cosine.on_pool))
    return Influence(on_target, on_pool)


def sketch_weighted(model: LanguageModel, pool: Dataset, target: Dataset, folder: Path) -> Influence:
    """`sketch`, each target weighted by the norm of its gradient: its loss falls by cosine times norm."""
    weights = sketch_cosine(model, pool, target, folder).weights
    found = sketch(model, pool, target, folder)
    return Influence(found.on_target, found.on_pool, weights)


def sketch_cosine(model: LanguageModel, pool: Dataset, target: Dataset, folder: Path) -> Influence:
    """The cosine itself, which is the inner product of a feature space; targets weighted by their gradient's norm."""
    place, n = folder / "sketch.safetensors", len(pool)
    if not place.exists():
        function = GradientSketch(model, dimension=0, states=0.0, sharpness=0.0)
        function.prepare(pool, target)
        shared = [name for name in pool.column_names if name in target.column_names]
        both = concatenate_datasets([pool.select_columns(shared), target.select_columns(shared)])
        write_tensors(place, {"cosine": function(both, both), "target_norms": function.norms(target)})
    stored = {name: values.astype(np.float64) for name, values in read_tensors(place).items()}
    weights = stored["target_norms"] / stored["target_norms"].mean()
    return Influence(stored["cosine"][:n, n:], stored["cosine"][:n, :n], weights)


def sketch_unweighted(model: LanguageModel, pool: Dataset, target: Dataset, folder: Path) -> Influence:
    """`sketch_cosine` with all targets alike."""
    found = sketch_cosine(model, pool, target, folder)
    return Influence(found.on_target, found.on_pool)


def known_family(family: np.ndarray, of_target: np.ndarray) -> Influence:
    """1 for samples of one family, and chance among these: what knowing the families would choose."""
    chance = np.random.default_rng(0).random((len(family), 1)) / 1000
    return Influence(*((family[:, None] == other) + chance for other in (of_target, family)))


def sketch_only_cosine(model: LanguageModel, pool: Dataset, target: Dataset, folder: Path) -> Influence:
    """`sketch` without the exponential: the inner product of a feature space."""
    cosine, n = sketch_cosine(model, pool, target, folder), len(pool)
    return Influence(cosine[:n, n:], cosine[:n, :n])
