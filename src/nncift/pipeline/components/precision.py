"""The precision of a run's language models: as given, else the machine's, and then the same to the run's end.

Its machine may change while a run is interrupted, and with it the default. Values of two precisions are never mixed: a
run goes on in the precision that `config.json` has from its first call.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from nncift.config import Config
from nncift.models.loading import default_dtype, earlier_default_dtype, multiplies_bfloat16
from nncift.run.folder.folder import RunFolder
from nncift.run.storage.files import read_json

PRECISION = "precision"

_log = logging.getLogger("nncift")


def settled(config: Config, identity: Mapping[str, Any], folder: RunFolder) -> tuple[Config, dict[str, Any]]:
    """The config in the precision of the run in a folder, and what identifies that run.

    Args:
        config: the options of this call.
        identity: the fields that determine what it computes, `dtype` among them.
        folder: the run's, which may have begun with the default precision of another machine.

    Raises:
        RunError: the folder's config cannot be read.
    """
    found = dict(identity)
    if not folder.config.exists():
        precision = config.dtype or default_dtype(config.device)
        return _in_precision(config, precision), found | {PRECISION: precision}
    stored = read_json(folder.config)
    begun = stored_precision(stored)
    if stored.get("dtype") is None and config.dtype == begun:
        found["dtype"] = None  # it names what the run has by default
    precision = config.dtype or begun
    if PRECISION in stored:  # earlier versions had no such field
        found[PRECISION] = precision
    return _in_precision(config, precision), found


def stored_precision(config: Mapping[str, Any]) -> str:
    """The precision of a run with this `config.json`; of an earlier version's the default at that time."""
    return str(config.get(PRECISION) or config.get("dtype") or earlier_default_dtype(config.get("device")))


def _in_precision(config: Config, precision: Any) -> Config:
    if config.dtype is None and precision == "bfloat16" and not multiplies_bfloat16(config.device):
        _log.warning(
            "the run goes on in bfloat16, in which it was begun; this machine converts it to float32 and back, which"
            " is slower than float32: another `output` begins anew"
        )
    return dataclasses.replace(config, dtype=precision)
