"""The options of a run as `select` takes them in Python, and the groups that help pages list them in.

Both are checked against `Config` by the tests.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

PathLike: TypeAlias = str | os.PathLike[str]

GROUPS = {
    "Data": (
        "pool",
        "target",
        "known",
        "split",
        "target_split",
        "known_split",
        "prompt_field",
        "response_field",
        "messages_field",
        "turns",
        "exclude",
        "exclude_fields",
        "skip_bad_rows",
        "keep_duplicates",
        "near_duplicates",
        "max_row_bytes",
    ),
    "Influence": ("influence", "influence_options"),
    "Labels and network": ("labels", "fidelity", "labels_from", "probes", "network", "recipe"),
    "Choice": (
        *("budget", "first_cut", "quota", "cap", "objective", "eta", "nu", "redundancy", "maximizer"),
        *("verify", "matrix", "weights", "difficulty", "phases", "order", "seed"),
    ),
    "Models and features": (
        "model",
        "encoder",
        "first_cut_encoder",
        "features",
        "target_features",
        "dtype",
        "device",
        "batch_size",
        "max_length",
        "wording",
        "trust_remote_code",
    ),
    "Workers": ("executor", "workers", "ray_address", "gpus_per_worker", "cpus_per_worker"),
    "Output": ("output", "from_run", "append", "keep_selection", "no_cache", "keep_checkpoints"),
}
"""Heading to the fields of `Config` under it, both in the order of the help page."""


ESTIMATION = ("labels", "fidelity", "probes", "verify", "network", "recipe", "features", "target_features")
"""Options that only a run which estimates influence has a use for."""


class SelectOptions(TypedDict, total=False):
    """The keyword arguments of `select` besides those that it names itself."""

    split: str | None
    target_split: str | None
    known_split: str | None
    prompt_field: str | None
    response_field: str | None
    messages_field: str | None
    turns: Literal["last", "all"] | None
    exclude: PathLike | Sequence[PathLike]
    exclude_fields: str | Sequence[str]
    skip_bad_rows: bool
    keep_duplicates: bool
    near_duplicates: float | None
    max_row_bytes: int | str | None
    influence_options: Mapping[str, Any] | Sequence[str] | None
    labels: str | float | None
    fidelity: float | None
    labels_from: PathLike | None
    probes: int | None
    network: PathLike | None
    recipe: Literal["process", "paper"]
    features: PathLike | None
    target_features: PathLike | None
    budget: str | float
    first_cut: float | None
    quota: Mapping[str, Any] | Sequence[str] | str | None
    cap: Mapping[str, Any] | Sequence[str] | str | None
    objective: str | None
    eta: float | None
    nu: float | None
    redundancy: float | None
    maximizer: Literal["lazy", "stochastic", "threshold", "partitioned"] | None
    verify: float | None
    matrix: Literal["auto", "stored", "streamed", "sparse"]
    weights: bool
    difficulty: str | None
    phases: int | None
    order: Literal["gain", "curriculum"]
    seed: int
    model: str
    encoder: str | None
    first_cut_encoder: PathLike | None
    dtype: Literal["float32", "bfloat16", "float16", "8bit", "4bit"] | None
    device: str | None
    batch_size: int | None
    max_length: int | None
    wording: Literal["auto", "chat", "plain"] | None
    trust_remote_code: bool
    executor: Literal["local", "processes", "ray"] | None
    workers: int | None
    ray_address: str | None
    gpus_per_worker: float | None
    cpus_per_worker: int | None
    output: PathLike | None
    from_run: PathLike | None
    keep_selection: bool
    no_cache: bool
    keep_checkpoints: bool


def as_stored(name: str, value: Any) -> Any:
    """The value of an option in the type that `Config` has for it, where Python callers may give another.

    Anything else is returned as it is, for `Config` to check.
    """
    if name.startswith("exclude"):  # several of them
        if value is None or isinstance(value, str | os.PathLike):
            value = () if value is None else (value,)
        return tuple(as_stored("", each) for each in value) if isinstance(value, list | tuple) else value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):  # of numpy too
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
        return str(value) if name in ("budget", "labels") else value
    return value
