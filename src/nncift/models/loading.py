"""Load a causal language model and its tokenizer, quietly, or say in one line why not.

Weights come from safetensors alone: pickled ones can run code. The libraries report a folder they cannot read
by a dozen kinds of errors, some of them pages long, and go on with random numbers where weights are missing;
here each becomes one `ModelError` that says what to do.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nncift.errors import ConfigError, DependencyError, ModelError
from nncift.models.locate import find_model

QUANTISED = ("8bit", "4bit")
DTYPES = ("float32", "bfloat16", "float16", "auto", *QUANTISED)


def load_causal_lm(
    name: str, *, dtype: str = "float32", device: str | None = None, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Load a transformers causal language model and its tokenizer.

    Args:
        name: a folder, a hub id such as "org/name", or "embedded".
        dtype: "float32", "bfloat16", "float16", or "auto" (as stored); "8bit" or "4bit" weights through
            bitsandbytes, which compute in bfloat16, on the CPU in float32.
        device: "cuda", "mps", "cpu"; the best there is unless given.
        trust_remote_code: run code that comes with the model.

    Returns:
        The model on its device, and the tokenizer.

    Raises:
        ConfigError: `dtype` is none of these, or the device cannot be used.
        DependencyError: bitsandbytes is asked for and not installed.
        ModelError: the model cannot be found or loaded; says why and what to do.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not known", f"give one of {', '.join(DTYPES)}")
    device = device or best_device()
    check_device(device)
    weights = _quantised(dtype, device) if dtype in QUANTISED else {"dtype": dtype}
    source = find_model(name, "language model")
    if Path(source).is_dir() and not (Path(source) / "config.json").exists():
        raise ModelError(f"the folder {name!r} has no config.json", "give the folder that holds the model")
    try:
        with quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                **weights,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
            missing = sorted(report["missing_keys"])
            if not missing and dtype not in QUANTISED:
                model.to(device)
    except Exception as error:  # what a damaged or foreign folder makes the libraries raise has no common class
        raise ModelError(*_reason(name, error)) from error
    if missing:
        raise ModelError(
            f"{name!r} lacks {len(missing)} weights of a causal language model (such as {missing[0]!r})",
            "give a causal language model, or download it again",
        )
    return model, tokenizer


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ConfigError: it is unknown, or not in this build of torch.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {device!r} cannot be used ({first_line(error)})", "give cuda, mps or cpu, or leave it out"
        ) from error


def _quantised(dtype: str, device: str) -> dict[str, Any]:
    """What transformers is to be told for weights of 8 or 4 bits."""
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None or importlib.util.find_spec("accelerate") is None:
        raise DependencyError(f"--dtype {dtype} needs bitsandbytes", "pip install 'nncift[quantised]'")
    computing = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    config = BitsAndBytesConfig(
        load_in_8bit=dtype == "8bit",
        load_in_4bit=dtype == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=computing,
    )
    return {"dtype": computing, "quantization_config": config, "device_map": {"": device}}


def default_dtype(device: str | None = None) -> str:
    """bfloat16 where a GPU computes in it, else float32."""
    import torch

    fits = _on_cuda(device) and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bfloat16" if fits else "float32"


def default_batch_size(device: str | None = None, *, cpu: int = 32) -> int:
    """Sequences per pass: few on the CPU; on CUDA more than fits, since batches are halved until they do."""
    return 512 if _on_cuda(device) else cpu


def _on_cuda(device: str | None) -> bool:
    return (device or best_device()).partition(":")[0] == "cuda"


def best_device() -> str:
    """CUDA, else Apple's MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and warnings off the terminal, and put everything back as the user had it.

    The hub's download bars stay: a model of many gigabytes takes its time.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging

    downloads, bars, verbosity = (
        not are_progress_bars_disabled(),
        logging.is_progress_bar_enabled(),
        logging.get_verbosity(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            logging.disable_progress_bar()
            if downloads:
                enable_progress_bars()
            logging.set_verbosity(logging.CRITICAL)
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
            if not downloads:
                disable_progress_bars()


def out_of_memory(error: BaseException) -> bool:
    """Whether a library's error means that memory ran out, on any device."""
    import torch

    said = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or any(sign in said for sign in signs)


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of what an error says, cut to `most` characters."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return line if len(line) <= most else f"{line[:most]}..."


def _reason(name: str, error: Exception) -> tuple[str, str]:
    """What kept a model from loading, and what to do, from the libraries' many errors."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
    from safetensors import SafetensorError

    said, again, cause = str(error), "download it again", error.__cause__ or error
    if isinstance(cause, GatedRepoError) or "gated repo" in said:
        return f"{name!r} is gated", "accept its terms on the hub, then log in with `hf auth login`"
    if isinstance(cause, LocalEntryNotFoundError | ConnectionError):
        return f"the download of {name!r} was interrupted", "check the network, and run the same command again"
    if "No space left" in said:
        return f"no space left on the disk while downloading {name!r}", "free some, and run the same command again"
    if "trust_remote_code" in said:
        return f"{name!r} brings code of its own", "read it, then allow it with --trust-remote-code"
    if out_of_memory(error):
        return f"{name!r} does not fit into memory", "use --dtype bfloat16, --device cpu, or take a smaller model"
    if isinstance(error, SafetensorError):
        return f"the weights of {name!r} are damaged ({first_line(error)})", again
    if "ignore_mismatched_sizes" in said:
        return f"the weights of {name!r} do not fit its config.json", again
    if "safetensors" in said:
        return (
            f"{name!r} has no weights in safetensors format",
            "other formats can run code when loaded and are not read: convert them, or take another model",
        )
    if "Unrecognized configuration class" in said:
        return f"{name!r} is not a causal language model", "give a decoder-only language model"
    if "does not recognize this architecture" in said:
        return f"this version of transformers does not know {name!r}", "pip install --upgrade transformers"
    if "backend tokenizer" in said:
        return f"the tokenizer of {name!r} cannot be read", "the folder needs its tokenizer.json"
    return f"cannot load the language model {name!r} ({first_line(error)})", "check that it is a complete one"
