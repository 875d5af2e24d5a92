"""LoRA adapters on a language model, and checkpoints of their training: weights and Adam's moments by name.

A checkpoint is a folder: `adapter_config.json` and `adapter_model.safetensors` as peft writes them,
`optimizer.safetensors` with both moments of every weight, and `state.json`. One that transformers' Trainer left is
read too: its `optimizer.pt` is a pickle and is opened with `weights_only`, which builds tensors and plain values
and runs no code.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from nncift.errors import ModelError
from nncift.gradients import Moments
from nncift.language_model import LanguageModel
from nncift.loading import first_line, quiet
from nncift.storage import atomic_write, read_json, read_tensors, write_array, write_json, write_tensors

_FACTOR = re.compile(r"\.(lora_[AB])(\.\w+)?(?=\.weight$)")
_WEIGHTS, _MOMENTS, _STATE = "adapter_model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Lora:
    """The shape of an adapter; the defaults are those of LESS.

    Attributes:
        rank: width of the adapter.
        alpha: its output is scaled by alpha / rank.
        dropout: share of its inputs that training leaves out.
        modules: endings of the names of the layers that get one.
        seed: of its first weights.
    """

    rank: int = 128
    alpha: int = 512
    dropout: float = 0.1
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    seed: int = 0


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


@contextlib.contextmanager
def adapted(model: LanguageModel, source: Lora | Path, *, trainable: bool = False) -> Iterator[Any]:
    """Put an adapter on the model for the duration of the block: a fresh one, or that of a checkpoint's folder.

    Everything of the model itself is frozen and stays as it was; without `trainable` so is the adapter.

    Raises:
        ModelError: there are no such layers, or the folder's adapter does not fit.
    """
    if isinstance(source, Path):
        _check_folder(source)
    trained = [weight for weight in model.model.parameters() if weight.requires_grad]
    adapter = None
    try:
        with quiet(), forked_random(model, source.seed if isinstance(source, Lora) else 0):
            adapter = _put_on(model.model, source)
            if isinstance(source, Path):
                _load_weights(adapter, source)
    except Exception as error:  # peft raises what its and its libraries' parts raise
        if adapter is not None:
            adapter.unload()
        what = f"the adapter in {source}" if isinstance(source, Path) else f"an adapter on {source.modules}"
        raise ModelError(
            f"{what} does not fit {model.name!r} ({first_line(error)})", "name other layers, or take another model"
        ) from error
    adapter.eval()  # new layers would drop out
    for name, weight in adapter.named_parameters():
        weight.requires_grad_(trainable and ".lora_" in name)
    try:
        yield adapter
    finally:
        with quiet():
            adapter.unload()
        for weight in trained:
            weight.requires_grad_(True)


def _put_on(base: Any, source: Lora | Path) -> Any:
    """The base model with an adapter's layers in place, its weights fresh."""
    from peft import LoraConfig, PeftConfig, get_peft_model

    if isinstance(source, Path):
        return get_peft_model(base, PeftConfig.from_pretrained(str(source)))
    config = LoraConfig(
        r=source.rank,
        lora_alpha=source.alpha,
        lora_dropout=source.dropout,
        target_modules=list(source.modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def _load_weights(adapter: Any, folder: Path) -> None:
    from peft import set_peft_model_state_dict

    weights = {name: torch.from_numpy(array) for name, array in read_tensors(folder / _WEIGHTS).items()}
    expected = {plain_name(name) for name, _ in adapter.named_parameters() if ".lora_" in name}
    if (odd := expected ^ {plain_name(name) for name in weights}) != set():
        raise ValueError(f"{sorted(odd)[0]} is in one of them alone, or is not plain LoRA")
    set_peft_model_state_dict(adapter, weights)


@contextlib.contextmanager
def forked_random(model: LanguageModel, *seed: int) -> Iterator[None]:
    """Torch's random numbers start from a seed inside the block, and go on as before after it."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield


def adapter_layers(model: LanguageModel) -> dict[str, torch.nn.Module]:
    """The two linear layers of every adapter on the model, by the plain name of their weight."""
    return {
        plain_name(f"{name}.weight"): module
        for name, module in model.model.named_modules()
        if re.search(r"\.lora_[AB]\.\w+$", name)
    }


def adapter_weights(model: LanguageModel) -> dict[str, torch.nn.Parameter]:
    """The weights of `adapter_layers`, (out, in), by the same names."""
    return {name: cast(torch.nn.Parameter, layer.weight) for name, layer in adapter_layers(model).items()}


def plain_name(name: str) -> str:
    """The name of an adapter's weight without what peft puts around it, the same in a model and in a file."""
    return _FACTOR.sub(r".\1", name.removeprefix("base_model.model."))


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
        write_tensors(temporary / _WEIGHTS, {name: _numpy(tensor) for name, tensor in weights.items()})
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
    _check_folder(folder)
    if (folder / _STATE).exists():
        state = read_json(folder / _STATE)
        return Checkpoint(folder, float(state["learning_rate"]), state)
    log = read_json(folder / "trainer_state.json") if (folder / "trainer_state.json").exists() else {}
    rates = [float(entry["learning_rate"]) for entry in log.get("log_history", []) if "learning_rate" in entry]
    return Checkpoint(folder, float(np.mean(rates)) if rates else 1.0)


def _check_folder(folder: Path) -> None:
    for name in ("adapter_config.json", _WEIGHTS):
        if not (folder / name).exists():
            raise ModelError(f"the checkpoint {str(folder)!r} has no {name}", "give a folder that peft saved")


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
