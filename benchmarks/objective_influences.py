"""The influences that objectives are compared on: pool on targets, and pool on pool for redundancy, from exact values.

The gradient sketch is a prototype: the outer product of output error and layer input, from one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from exact_values import FOLDER, ExactValues
from functions import exact_values
from nncift.models.examples import Example, encode_examples
from nncift.models.hidden_states import layer_count, layer_module
from nncift.models.language_model import LanguageModel, response_positions
from nncift.run.files import read_tensors, write_tensors

SKETCH_LAYERS = range(5, 31, 5)
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
        cosine, norms = _cosines_and_norms(model, pool, target)
        write_tensors(place, {"cosine": cosine.astype(np.float32), "target_norms": norms[n:].astype(np.float32)})
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


def _cosines_and_norms(model: LanguageModel, pool: Dataset, target: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all samples, pool before target, (n, n); norms of their sketches before whitening, (n,)."""
    examples = [*encode_examples(model, pool), *encode_examples(model, target)]
    errors, states, tokens = _error_and_states(model, examples)
    of_pool = np.concatenate([states[k] for k in range(len(pool))], axis=1)  # (layers, tokens, hidden)
    cosine, norms = np.zeros((len(examples), len(examples))), np.zeros(len(examples))
    everyone = np.repeat(np.arange(len(examples)), tokens)
    starts = np.flatnonzero(np.diff(everyone, prepend=-1))
    alike = np.concatenate(errors) @ np.concatenate(errors).T
    for layer in range(len(SKETCH_LAYERS)):
        covariance = of_pool[layer].T @ of_pool[layer] / of_pool.shape[1]
        values, vectors = np.linalg.eigh(covariance)
        whiten = vectors / np.sqrt(values + values.mean())
        white = np.concatenate([state[layer] for state in states]) @ whiten
        products = alike * (white @ white.T)
        products = np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)
        lengths = np.sqrt(np.diag(products))
        cosine += products / lengths / lengths[:, None] / len(SKETCH_LAYERS)
        plain = [((error @ error.T) * (x[layer] @ x[layer].T)).sum() for error, x in zip(errors, states, strict=True)]
        norms += np.sqrt(plain) / len(SKETCH_LAYERS)
    return cosine, norms


def _error_and_states(
    model: LanguageModel, examples: Sequence[Example]
) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Of each sample: gradient at the last residual state (tokens, hidden); layer inputs (layers, tokens, hidden)."""
    final = model.model.model.norm
    norms = [layer_module(model, layer).input_layernorm for layer in SKETCH_LAYERS if layer < layer_count(model)]
    norms += [final] if layer_count(model) in SKETCH_LAYERS else []
    caught: list[torch.Tensor] = []
    hooks = [norm.register_forward_hook(lambda _m, _a, out: caught.append(out[0])) for norm in norms]
    hooks.append(final.register_forward_pre_hook(lambda _m, given: caught.insert(0, given[0][0])))
    errors, states = [], []
    try:
        for example in examples:
            caught.clear()
            _, columns, wanted = response_positions([example.ids], [example.spans])
            with torch.no_grad():
                model.model.model(input_ids=torch.tensor([example.ids[:-1]]), use_cache=False)
            last, *inputs = (part[columns] for part in caught)
            state = last.clone().requires_grad_(True)
            logits = model.model.get_output_embeddings()(final(state[None])[0])
            torch.nn.functional.cross_entropy(logits, wanted).backward()
            errors.append(state.grad.double().numpy())
            states.append(np.stack([part.double().numpy() for part in inputs]))
    finally:
        for hook in hooks:
            hook.remove()
    return errors, states, [len(part) for part in errors]
