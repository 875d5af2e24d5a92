"""Where a model's name leads: a folder, the Hugging Face hub, or its local cache. Asked before a library loads it.

The libraries retry for half a minute without a network and raise half a dozen kinds of errors; one question
to the hub first gives one clear line at once, and a cached model loads without a network.
"""

from __future__ import annotations

from pathlib import Path

from nncift.embedded import embedded_encoder, embedded_language_model
from nncift.errors import ModelError

PRETRAINED = "pretrained"
"""The name of the network that comes with nncift."""

_TIMEOUT = 10.0  # seconds
_EMBEDDED = {"encoder": embedded_encoder, "language model": embedded_language_model}


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
        return str(Path(__file__).parent / "pretrained")
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
