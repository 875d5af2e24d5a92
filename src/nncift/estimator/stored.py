"""A stored network's config.json and model.safetensors, validated once, where they are read.

They may come from a hub, from another version, or from a damaged disk. After this door every name, type and shape is as
the recipes write them, and every number is finite, so that nothing behind it has to check.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nncift.errors import ModelError
from nncift.estimator.vector_process import kernel_count
from nncift.features.sources import SketchSettings
from nncift.run.storage.checksums import verify
from nncift.run.storage.refusals import refuse_damaged

_NUMBERS = {"mean", "unit", "scale_mean", "noise", "profile", "profile_noise", "level_noise", "constant"}
_NOT_NEGATIVE = {"unit", "noise", "profile", "profile_noise", "level_noise"}
_SOURCES = {"encoder", "own", "language_model"}
_INFLUENCE = ("name", "model", "models", "encoder", "preconditioned")  # of a description, a text or a list of models
_MOST_LAYERS = 64
_KERNELS = {"pool": 2, "target": 3}


@dataclass(frozen=True)
class StoredNetwork:
    """What the two files hold.

    Attributes:
        options: of `InfluenceNetwork`, with the recipe.
        widths: of the features of pool samples and targets.
        facts: what the recipe's `load` takes beside the arrays.
        description: `InfluenceNetwork.description_`.
        arrays: the weights by name, float32.
    """

    options: dict[str, Any]
    widths: tuple[int, int]
    facts: dict[str, Any]
    description: dict[str, Any]
    arrays: dict[str, np.ndarray]


def read_network(config: Path, weights: Path, name: str) -> StoredNetwork:
    """Read and validate a stored network.

    Args:
        config: its config.json.
        weights: its model.safetensors.
        name: of the network, in messages.

    Raises:
        ModelError: it is not a network of this version, or damaged.
        RunError: it lies in a run folder, and its checksum differs.
    """
    with refuse_damaged(config, "cannot be read"):
        verify(config)
        verify(weights)
        text, size = config.read_bytes(), weights.stat().st_size
    try:
        stored = json.loads(text.decode("utf-8"))
        options = dict(_mapping(stored, "config.json"))
        widths, facts, description = (options.pop(part) for part in ("widths", "facts", "description"))
        arrays = load_file(weights) if size else {}
        _check_options(options)
        for key, array in arrays.items():
            _check_numbers(key, array)
        widths = _widths(widths)
        check = _check_paper if options["recipe"] == "paper" else _check_process
        check(arrays, _mapping(facts, "facts"), widths)
        _check_description(_mapping(description, "description"))
    except KeyError as error:
        raise _refused(name, f"it lacks {error}") from error
    except (ValueError, TypeError, OSError, RecursionError, SafetensorError) as error:
        raise _refused(name, str(error)) from error
    return StoredNetwork(options, widths, facts, description, arrays)


def _refused(name: str, reason: str) -> ModelError:
    return ModelError(f"{name} has no InfluenceNetwork of this version ({reason[:200]})", "give another, or fit one")


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a mapping")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_options(options: Mapping[str, Any]) -> None:
    for option, value in options.items():
        valid = {"recipe": isinstance(value, str), "pointwise": isinstance(value, bool), "seed": _is_count(value, 0)}
        valid["depth"] = _is_count(value) and value <= _MOST_LAYERS
        if not valid.get(option, _is_number(value) and value > 0):
            raise ValueError(f"{option} is {value!r}")
    if options["recipe"] not in ("process", "paper"):
        raise ValueError(f"there is no recipe {options['recipe']!r}")


def _widths(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(map(_is_count, value)):
        raise ValueError("widths are not two numbers")
    return value[0], value[1]


def _check_numbers(name: str, array: np.ndarray) -> None:
    """Finite numbers; log-weights may be -infinity, the logarithm of 0."""
    if array.dtype.kind != "f" or not (np.isfinite(array) | (name.endswith(".log_weights") & (array == -np.inf))).all():
        raise ValueError(f"{name} is not finite")


def _check_shape(arrays: Mapping[str, np.ndarray], name: str, *shape: int) -> None:
    if arrays[name].shape != shape:
        raise ValueError(f"{name} has shape {arrays[name].shape}, not {shape}")


def _check_paper(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], widths: tuple[int, int]) -> None:
    if (facts["pool_width"], facts["target_width"]) != widths:
        raise ValueError("widths differ from the weights'")
    hidden = len(arrays["first.weight"])
    shapes: dict[str, tuple[int, ...]] = {"first.weight": (hidden, sum(widths)), "first.bias": (hidden,)}
    shapes |= {"second.weight": (1, hidden), "second.bias": (1,), "low": (), "range": ()}
    for name in arrays:
        if name.startswith("middle."):  # of the further hidden layers
            shapes[name] = (hidden, hidden) if name.endswith(".weight") else (hidden,)
    for name, shape in shapes.items():
        _check_shape(arrays, name, *shape)


def _check_process(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], widths: tuple[int, int]) -> None:
    """The Gaussian process, and the one that is its prior, in turn."""
    numbers, sharpness = _mapping(facts["numbers"], "numbers"), facts.get("sharpness", [5.0])
    for name in {*numbers, *_NUMBERS}:
        if not _is_number(numbers[name]) or (name in _NOT_NEGATIVE and numbers[name] < 0):
            raise ValueError(f"{name} is {numbers[name]!r}")
    if not isinstance(sharpness, list) or not sharpness or not all(map(_is_number, sharpness)):
        raise ValueError("sharpness is not a list of numbers")
    shared, columns = facts["shared"], facts["columns"]
    if not isinstance(shared, bool) or not isinstance(columns, list) or len(columns) != 2:
        raise ValueError("columns are not those of two sides")
    sizes, wide = {}, 0
    for side, width, blocks in zip(("pool", "target"), widths, columns, strict=True):
        prefix = "pool" if shared else side
        components = _check_projection(arrays, f"{prefix}.projection", blocks, width)
        single, wide = components.count(1), len(components) - components.count(1)
        sizes[side] = len(arrays[f"{side}.landmarks"])
        _check_shape(arrays, f"{side}.landmarks", max(sizes[side], 1), sum(components))
        _check_shape(arrays, f"{side}.log_weights", _KERNELS[side], len(components) + (single > 1))
        _check_shape(arrays, f"{side}.own", _KERNELS[side])
    if shared and columns[0] != columns[1]:
        raise ValueError("columns of the two sides differ")
    n, m = sizes["pool"], sizes["target"]
    for name, shape in {"profile": (n, m), "bias": (m,), "scale": (2, m)}.items():
        _check_shape(arrays, name, *shape)
    if len(arrays["terms"]):
        _check_shape(arrays, "terms", wide * (1 + len(sharpness)) if shared else 0)
    for number, bounds in enumerate(_blocks(facts.get("similarity", []), widths[0], shared=shared)):
        if not _is_number(numbers["similarity"]) or numbers["similarity"] < 0:
            raise ValueError(f"similarity is {numbers['similarity']!r}")
        for name in ("mean", "scale"):
            _check_shape(arrays, f"similarity.{number}.{name}", bounds[1] - bounds[0])
    if facts.get("vectors"):
        _check_vectors(arrays, components, numbers, shared=shared)
    if "prior" in facts:
        if "prior" not in numbers:
            raise ValueError("it weights its prior network in another way")
        own = {name.removeprefix("prior."): array for name, array in arrays.items() if name.startswith("prior.")}
        _check_process(own, _mapping(facts["prior"], "prior"), widths)


def _check_vectors(
    arrays: Mapping[str, np.ndarray], components: list[int], numbers: Mapping[str, Any], *, shared: bool
) -> None:
    """The labelled samples whose inner products with targets are known, and these."""
    if not shared or not _is_number(numbers["similarity"]) or numbers["similarity"] <= 0:
        raise ValueError("vectors are not those of both sides")
    measured = arrays["vectors.measured"]
    if measured.ndim != 2 or not 1 <= measured.shape[1] <= len(measured):
        raise ValueError(f"vectors.measured has shape {measured.shape}")
    _check_shape(arrays, "vectors.train", len(measured), sum(components))
    _check_shape(arrays, "vectors.log_weights", kernel_count(components) + 1)


def _blocks(value: Any, width: int, *, shared: bool) -> list[list[int]]:
    """First column and the one past the last of each block that has a similarity."""
    blocks: list[Any] = value if isinstance(value, list) and (shared or not value) else [None]
    for bounds in blocks:
        is_pair = isinstance(bounds, list) and len(bounds) == 2 and _is_count(bounds[0], 0)
        if not is_pair or not _is_count(bounds[1], bounds[0] + 1) or bounds[1] > width:
            raise ValueError("similarity is not blocks of columns")
    return blocks


def _check_projection(arrays: Mapping[str, np.ndarray], prefix: str, blocks: Any, width: int) -> list[int]:
    """The number of components of each block."""
    _check_shape(arrays, f"{prefix}.centre", width)
    end: Any = 0
    for block in blocks if isinstance(blocks, list) and blocks else [None]:
        bounds = block if isinstance(block, list) and len(block) == 2 else [None, None]
        if not _is_count(bounds[0], end) or bounds[0] != end or not _is_count(bounds[1], end + 1):
            raise ValueError("columns are not blocks side by side")
        end = bounds[1]
    if end != width:
        raise ValueError(f"columns end at {end}, not {width}")
    components = []
    for number, (first, past) in enumerate(blocks):
        name = f"{prefix}.block.{number}"
        components.append(arrays[name].shape[-1] if arrays[name].ndim else 0)
        _check_shape(arrays, name, past - first, max(components[-1], 1))
    return components


def _check_description(description: Mapping[str, Any]) -> None:
    """The features that it reads and the influence that it was fitted to, as far as they are used."""
    features = {**_mapping(description.get("features", {"own": "own"}), "features")}
    if (sketch := features.pop("gradient_sketch", None)) is not None:
        SketchSettings(**_mapping(sketch, "gradient_sketch"))
        if not features.get("language_model"):
            raise ValueError("a gradient sketch needs a language model")
    if not features.keys() <= _SOURCES or not all(isinstance(source, str | None) for source in features.values()):
        raise ValueError(f"features are not names of {', '.join(sorted(_SOURCES))}")
    if not any(features.values()):
        raise ValueError("it reads no features")
    influence = _mapping(description.get("influence", {}), "influence")
    for part in (influence.get(name) for name in _INFLUENCE):
        if isinstance(part, list) and not all(isinstance(model, dict) and "model" in model for model in part):
            raise ValueError("the influence's models are no list of models")
