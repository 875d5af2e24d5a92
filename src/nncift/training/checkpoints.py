"""Checkpoints of a LoRA training: the adapter's weights and Adam's moments by name.

A checkpoint is a folder: `adapter_config.json` and `adapter_model.safetensors` as peft writes them,
`optimizer.safetensors` with both moments of every weight, and `state.json`. Those of transformers' Trainer are read
too: `optimizer.pt` is a pickle and is opened with `weights_only`, which builds tensors and plain values and runs no
code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nncift.errors import ModelError, first_line
from nncift.run.storage.files import atomic_write, read_json, read_tensors, write_array, write_json, write_tensors
from nncift.training.gradients import Moments
from nncift.training.lora import check_adapter_folder, plain_name, save_adapter

_MOMENTS, _STATE = "optimizer.safetensors", "state.json"
_KINDS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Checkpoint:
    """A trained adapter."""

    folder: Path
    learning_rate: float  # mean of its epoch
    state: Mapping[str, Any] = field(default_factory=dict)  # the content of `state.json`


def save_checkpoint(
    folder: Path, adapter: Any, moments: Moments, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write a checkpoint's folder, with further arrays as `NAME.npy`, atomically."""
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        save_adapter(temporary, adapter)
        both = {f"{kind}.{name}": _numpy(pair[k]) for name, pair in moments.items() for k, kind in enumerate(_KINDS)}
        write_tensors(temporary / _MOMENTS, both)
        for name, array in arrays.items():
            write_array(temporary / f"{name}.npy", array)
        write_json(temporary / _STATE, dict(state))


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().contiguous().numpy()


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint's facts, ours or transformers' Trainer's.

    A Trainer's learning rate is the mean over its whole log; without a log it is 1, so that several such checkpoints
    get the same weight.
    """
    folder = Path(folder)
    check_adapter_folder(folder)
    if (folder / _STATE).exists():
        state = read_json(folder / _STATE)
        return Checkpoint(folder, float(state["learning_rate"]), state)
    log = read_json(folder / "trainer_state.json") if (folder / "trainer_state.json").exists() else {}
    rates = [float(entry["learning_rate"]) for entry in log.get("log_history", []) if "learning_rate" in entry]
    return Checkpoint(folder, float(np.mean(rates)) if rates else 1.0)


def read_moments(folder: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Adam's first and second moment, float32, of the weights of these shapes, by plain name in the model's order.

    Raises:
        ModelError: there are none, or their shapes differ from the adapter's.
    """
    if (folder / _MOMENTS).exists():
        found = {}
        for key, array in read_tensors(folder / _MOMENTS).items():
            kind, _, name = key.partition(".")
            found[kind, plain_name(name)] = torch.from_numpy(array)
    elif (folder / "optimizer.pt").exists():
        found = _trainer_moments(folder / "optimizer.pt", list(shapes))
    else:
        raise ModelError(
            f"the checkpoint {str(folder)!r} has no {_MOMENTS} and no optimizer.pt",
            "save it with the optimizer's state, or use influence that needs none (gradient-similarity)",
        )
    for (name, shape), kind in product(shapes.items(), _KINDS):
        if (kind, name) not in found or tuple(found[kind, name].shape) != tuple(shape):
            raise ModelError(
                f"the checkpoint {str(folder)!r} has no {kind} of shape {tuple(shape)} for {name}",
                "give the state of an Adam that trained this adapter alone",
            )
    return {name: (found[_KINDS[0], name].float(), found[_KINDS[1], name].float()) for name in shapes}


def _trainer_moments(path: Path, names: list[str]) -> dict[tuple[str, str], torch.Tensor]:
    """The moments by name; torch numbers them in the order of the trained parameters."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        states, groups = stored["state"], stored["param_groups"]
        order = [number for group in groups for number in group["params"]]
        return {
            (kind, name): states[number][kind] for number, name in zip(order, names, strict=True) for kind in _KINDS
        }
    except Exception as error:  # a file of any content
        raise ModelError(
            f"{path} cannot be read as the state of an Adam that trained this adapter alone ({first_line(error)})",
            f"write its moments to {_MOMENTS} as exp_avg.NAME and exp_avg_sq.NAME",
        ) from error
