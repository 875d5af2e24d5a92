"""Load a causal language model and its tokenizer, quietly, or raise an error of one line.

Weights come from safetensors alone: pickled ones can run code. For a folder that cannot be read the libraries raise a
dozen kinds of errors, some of them pages long, and initialize missing weights at random; here each is one `ModelError`
with its remedy.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nncift.errors import ConfigError, DependencyError, ModelError, first_line
from nncift.models.batching import out_of_memory
from nncift.models.locate import find_model

QUANTISED = ("8bit", "4bit")
DTYPES = ("float32", "bfloat16", "float16", "auto", *QUANTISED)
BFLOAT16 = ("avx512_bf16", "amx_bf16")  # capabilities of CPUs with native products


def load_causal_lm(
    name: str,
    *,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
) -> tuple[Any, Any]:
    """A transformers causal language model on its device, and its tokenizer; as `LanguageModel.load`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise ConfigError(f"`dtype` {dtype!r} is unknown", f"give one of {', '.join(DTYPES)}")
    device = device or best_device()
    check_device(device)
    weights = _quantization(dtype, device) if dtype in QUANTISED else {"dtype": dtype}
    source = _source(name)
    try:
        with quiet():
            allow = {"trust_remote_code": trust_remote_code}
            options = {**weights, **allow, "use_safetensors": True, "output_loading_info": True}
            model, report = AutoModelForCausalLM.from_pretrained(source, **options)
            if tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(source, **allow)
            missing = sorted(report["missing_keys"])
            if not missing and dtype not in QUANTISED:
                model.to(device)
    except Exception as error:  # for a damaged or foreign folder; they have no common class
        raise ModelError(*_reason(name, error)) from error
    if missing:
        raise ModelError(
            f"{name!r} lacks {len(missing)} weights of a causal language model (such as {missing[0]!r})",
            "give a causal language model, or download it again",
        )
    return model, tokenizer


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A language model's tokenizer and configuration, without its weights.

    Raises:
        ModelError: the model cannot be found, or these cannot be read.
    """
    from transformers import AutoConfig, AutoTokenizer

    source = _source(name)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
            return tokenizer, AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # as of a model's weights
        raise ModelError(*_reason(name, error)) from error


def _source(name: str) -> str:
    """The folder or hub id of a language model."""
    source = find_model(name, "language model")
    if Path(source).is_dir() and not (Path(source) / "config.json").exists():
        raise ModelError(f"the folder {name!r} has no config.json", "give the folder that holds the model")
    return source


def check_device(device: str) -> None:
    """Raise a `ConfigError` if a device is unknown, or not in this build of torch."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"`device` {device!r} cannot be used ({first_line(error)})", "give cuda, mps or cpu, or leave it out"
        ) from error


def _quantization(dtype: str, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` for weights of 8 or 4 bits."""
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None or importlib.util.find_spec("accelerate") is None:
        raise DependencyError(f"`dtype` {dtype} needs bitsandbytes", "pip install 'nncift[quantised]'")
    compute_dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    config = BitsAndBytesConfig(
        load_in_8bit=dtype == "8bit",
        load_in_4bit=dtype == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute_dtype,
    )
    return {"dtype": compute_dtype, "quantization_config": config, "device_map": {"": device}}


def default_dtype(device: str | None = None) -> str:
    """bfloat16 on a GPU and a CPU that multiply it natively, else float32.

    On such a CPU it takes 0.6 times as long as float32, with the same LDS (docs/measurements.md).
    """
    return "bfloat16" if multiplies_bfloat16(device) else "float32"


def multiplies_bfloat16(device: str | None = None) -> bool:
    """Whether a device has instructions for products of bfloat16 matrices; others convert to float32 and back.

    A torch whose capabilities cannot be asked for (before `torch.cpu.get_capabilities`) counts as a CPU without.
    """
    import torch

    kind = (device or best_device()).partition(":")[0]
    if kind == "cpu":
        capabilities: dict[str, Any] = dict(getattr(torch.cpu, "get_capabilities", dict)())
        available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return available and any(capabilities.get(name, False) for name in BFLOAT16)
    return kind == "cuda" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def earlier_default_dtype(device: str | None = None) -> str:
    """The default of versions that computed in float32 on every CPU."""
    on_cpu = (device or best_device()).partition(":")[0] == "cpu"
    return "float32" if on_cpu else default_dtype(device)


def default_batch_size(device: str | None = None, *, cpu: int = 32) -> int:
    """Sequences per pass: few on the CPU; on CUDA more than fit, since batches are halved until they do."""
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
    """Silence transformers' progress bars and warnings inside the block; the hub's download bars stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging

    downloads, bars = not are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
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


_AGAIN = "download it again"
_SIGNS = {  # in an error's text, with the reason and the remedy
    "gated repo": ("{} is gated", "accept its terms on the hub, then log in with `hf auth login`"),
    "No space left": ("no space left on the disk while downloading {}", "free some, and run the same command again"),
    "trust_remote_code": ("{} brings code of its own", "read it, then allow it with `trust_remote_code`"),
    "ignore_mismatched_sizes": ("the weights of {} do not fit its config.json", _AGAIN),
    "safetensors": (
        "{} has no weights in safetensors format",
        "other formats can run code when loaded and are not read: convert them, or take another model",
    ),
    "Unrecognized configuration class": ("{} is not a causal language model", "give a decoder-only language model"),
    "does not recognize this architecture": (
        "this version of transformers does not support {}",
        "pip install --upgrade transformers",
    ),
    "backend tokenizer": ("the tokenizer of {} cannot be read", "the folder needs its tokenizer.json"),
}


def _reason(name: str, error: Exception) -> tuple[str, str]:
    """Why a model cannot be loaded, and the remedy, from the libraries' many errors."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
    from safetensors import SafetensorError

    cause = error.__cause__ or error
    if isinstance(cause, LocalEntryNotFoundError | ConnectionError):
        return f"the download of {name!r} was interrupted", "check the network, and run the same command again"
    if out_of_memory(error):
        return (
            f"{name!r} does not fit into memory",
            "free some, raise its limit, use `dtype` bfloat16, or take a smaller model",
        )
    if isinstance(error, SafetensorError):
        return f"the weights of {name!r} are damaged ({first_line(error)})", _AGAIN
    text = "gated repo" if isinstance(cause, GatedRepoError) else str(error)
    for sign, (reason, remedy) in _SIGNS.items():
        if sign in text:
            return reason.format(repr(name)), remedy
    return f"cannot load the language model {name!r} ({first_line(error)})", "check that it is a complete one"
