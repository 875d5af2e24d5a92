"""Checkpoints of a LoRA training: the adapter's weights and Adam's moments by name.

A checkpoint is a folder: `adapter_config.json` and `adapter_model.safetensors` as peft writes them,
`optimizer.safetensors` with both moments of every weight, and `state.json`. One that transformers' Trainer left is
read too: its `optimizer.pt` is a pickle and is opened with `weights_only`, which builds tensors and plain values
and runs no code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nncift.errors import ModelError
from nncift.models.loading import first_line
from nncift.run.files import atomic_write, read_json, read_tensors, write_array, write_json, write_tensors
from nncift.training.gradients import Moments
from nncift.training.lora import WEIGHTS, check_adapter_folder, plain_name

_MOMENTS, _STATE = "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A trained adapter.

    Attributes:
        folder: where it lies.
        learning_rate: mean learning rate of the epoch that led to it.
        state: the rest that `state.json` says.
    """

    folder: Path
    learning_rate: float
    state: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, adapter: Any, moments: Moments, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write a checkpoint's folder, with further arrays as `NAME.npy`; it is complete or absent."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        adapter.peft_config["default"].save_pretrained(str(temporary))
        config = read_json(temporary / "adapter_config.json")
        config["target_modules"] = sorted(config["target_modules"])  # a set, in an order that no seed determines
        write_json(temporary / "adapter_config.json", config)
        write_tensors(temporary / WEIGHTS, {name: _numpy(tensor) for name, tensor in weights.items()})
        both = {f"{kind}.{name}": _numpy(pair[k]) for name, pair in moments.items() for k, kind in enumerate(_KINDS)}
        write_tensors(temporary / _MOMENTS, both)
        for name, array in arrays.items():
            write_array(temporary / f"{name}.npy", array)
        write_json(temporary / _STATE, dict(state))


_KINDS = ("exp_avg", "exp_avg_sq")


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().contiguous().numpy()


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """What is known of a checkpoint, ours or one of transformers' Trainer.

    A Trainer's learning rate is the mean of what its log says, all of it; without a log it is 1, so that several
    such checkpoints weigh the same.

    Raises:
        ModelError: the folder holds no adapter in safetensors format.
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
    """Adam's first and second moment of each weight, float32.

    Args:
        folder: a checkpoint.
        shapes: shape of each weight, by plain name, in the model's order.

    Raises:
        ModelError: there are none, or they do not fit the adapter.
    """
    if (folder / _MOMENTS).exists():
        stored = read_tensors(folder / _MOMENTS)
        found = {}
        for name in stored:
            kind, _, parameter = name.partition(".")
            found[kind, plain_name(parameter)] = torch.from_numpy(stored[name])
    elif (folder / "optimizer.pt").exists():
        found = _trainer_moments(folder / "optimizer.pt", list(shapes))
    else:
        raise ModelError(
            f"the checkpoint {str(folder)!r} has no {_MOMENTS} and no optimizer.pt",
            "save it with the optimizer's state, or use influence that needs none (gradient-similarity)",
        )
    for name, shape in shapes.items():
        for kind in _KINDS:
            if (kind, name) not in found or tuple(found[kind, name].shape) != tuple(shape):
                raise ModelError(
                    f"the checkpoint {str(folder)!r} has no {kind} of shape {tuple(shape)} for {name}",
                    "give the state of an Adam that trained this adapter alone",
                )
    return {name: (found[_KINDS[0], name].float(), found[_KINDS[1], name].float()) for name in shapes}


def _trainer_moments(path: Path, names: list[str]) -> dict[tuple[str, str], torch.Tensor]:
    """The moments in torch's numbering, which is the order of the trained parameters, by name."""
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
