"""LoRA adapters on a language model: attaching one, its layers and its weights by name."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from nncift.errors import ModelError, first_line
from nncift.models.hidden_states import layer_names
from nncift.models.language_model import LanguageModel
from nncift.models.loading import quiet
from nncift.run.storage.files import read_tensors, write_json, write_tensors

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"
_FACTOR = re.compile(r"\.(lora_[AB])(\.\w+)?(?=\.weight$)")


@dataclass(frozen=True)
class Lora:
    """The shape of an adapter; the defaults are those of LESS."""

    rank: int = 128
    alpha: int = 512  # its output is scaled by alpha / rank
    dropout: float = 0.1  # probability that training drops one of its inputs
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Name endings of the layers to adapt; ("all-linear",) for every linear layer but the output layer."""
    seed: int = 0  # of its initial weights


@contextlib.contextmanager
def adapted(model: LanguageModel, source: Lora | Path, *, trainable: bool = False) -> Iterator[Any]:
    """Attach an adapter to the model inside the block: a fresh one, or that of a checkpoint's folder.

    The model's own weights are frozen and do not change; without `trainable` the adapter is frozen too.

    Raises:
        ModelError: there are no such layers, or the folder's adapter does not fit.
    """
    if isinstance(source, Path):
        check_adapter_folder(source)
    trained = [weight for weight in model.model.parameters() if weight.requires_grad]
    adapter = None
    try:
        with quiet(), forked_random(source.seed if isinstance(source, Lora) else 0):
            adapter = _attach(model.model, source)
            if isinstance(source, Path):
                _load_weights(adapter, source)
    except Exception as error:  # peft's and its libraries' errors have no common class
        if adapter is not None:
            adapter.unload()
        subject = f"the adapter in {source}" if isinstance(source, Path) else f"an adapter on {source.modules}"
        raise ModelError(
            f"{subject} does not fit {model.name!r} ({first_line(error)})", "name other layers, or take another model"
        ) from error
    adapter.eval()  # new layers start with dropout on
    for name, weight in adapter.named_parameters():
        weight.requires_grad_(trainable and ".lora_" in name)
    try:
        yield adapter
    finally:
        with quiet():
            adapter.unload()
        for weight in trained:
            weight.requires_grad_(True)


def _attach(base: Any, source: Lora | Path) -> Any:
    """The base model with the layers of an adapter, freshly initialized."""
    from peft import LoraConfig, PeftConfig, get_peft_model

    if isinstance(source, Path):
        return get_peft_model(base, PeftConfig.from_pretrained(str(source)))
    shape = {"r": source.rank, "lora_alpha": source.alpha, "lora_dropout": source.dropout}
    modules = ALL_LINEAR if source.modules == (ALL_LINEAR,) else list(source.modules)
    return get_peft_model(base, LoraConfig(**shape, target_modules=modules, task_type="CAUSAL_LM"))


def _load_weights(adapter: Any, folder: Path) -> None:
    from peft import set_peft_model_state_dict

    weights = {name: torch.from_numpy(array) for name, array in read_tensors(folder / WEIGHTS).items()}
    expected = {plain_name(name) for name, _ in adapter.named_parameters() if ".lora_" in name}
    if odd := expected ^ {plain_name(name) for name in weights}:
        raise ValueError(f"{sorted(odd)[0]} is in one of them alone, or is not plain LoRA")
    set_peft_model_state_dict(adapter, weights)


def save_adapter(folder: Path, adapter: Any, **changes: Any) -> None:
    """Write an attached adapter as peft does, the same bytes whenever its weights are the same.

    Args:
        folder: that of the adapter; the weights are written last.
        adapter: as `adapted` gives it.
        changes: of the entries of its configuration.
    """
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    config = dict(sorted((adapter.peft_config["default"].to_dict() | changes).items()))
    config["target_modules"] = sorted(config["target_modules"])  # a set, in an order that no seed determines
    write_json(folder / CONFIG, config)
    tensors = {name: tensor.detach().float().cpu().contiguous().numpy() for name, tensor in weights.items()}
    write_tensors(folder / WEIGHTS, tensors)


@contextlib.contextmanager
def forked_random(*seed: int) -> Iterator[None]:
    """Seed torch's random numbers inside the block; the states of its generators are restored after it."""
    seeded = torch.cuda.device_count() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=range(seeded)):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield


def adapter_layers(model: LanguageModel, within: Sequence[int] | None = None) -> dict[str, torch.nn.Module]:
    """The two linear layers of every adapter on the model, by the plain name of their weight.

    Args:
        model: the language model.
        within: numbers of the model's layers, from 0, whose adapters alone count.
    """
    prefixes: tuple[str, ...] = ("",)
    if within is not None:
        names = layer_names(model)
        prefixes = tuple(f"{names[number]}." for number in within)
    return {
        plain_name(f"{name}.weight"): module
        for name, module in model.model.named_modules()
        if name.startswith(prefixes) and re.search(r"\.lora_[AB]\.\w+$", name)
    }


def adapter_weights(model: LanguageModel) -> dict[str, torch.nn.Parameter]:
    """The weights of `adapter_layers`, (out, in), by the same names."""
    return {name: cast(torch.nn.Parameter, layer.weight) for name, layer in adapter_layers(model).items()}


def plain_name(name: str) -> str:
    """The name of an adapter's weight without peft's affixes, the same in a model and in a file."""
    return _FACTOR.sub(r".\1", name.removeprefix("base_model.model."))


def check_adapter_folder(folder: Path) -> None:
    """Raise a `ModelError` unless a folder holds an adapter in safetensors format."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            raise ModelError(f"the checkpoint {str(folder)!r} has no {name}", "give a folder that peft saved")
