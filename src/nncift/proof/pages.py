"""The page of a comparison, written from its files: at its end, and again by `nncift report`."""

from __future__ import annotations

import os
from pathlib import Path

from nncift.errors import RunError
from nncift.proof.folder import ProofFolder
from nncift.report.comparison import write_comparison_report
from nncift.run.files import read_json


def write_page(folder: ProofFolder) -> Path:
    """Write the page of a finished comparison; without its costs where an earlier version kept none."""
    costs = read_json(folder.costs) if folder.costs.exists() else {}
    return write_comparison_report(folder.report, read_json(folder.results), costs)


def write_again(path: str | os.PathLike[str]) -> Path | None:
    """Write the page of a comparison again; None where the folder is neither a comparison's nor an evaluation's.

    Raises:
        RunError: it is an evaluation's, which has no page, or its comparison is not finished.
    """
    folder = ProofFolder(path)
    if not folder.run.config.is_file() or "test" not in read_json(folder.run.config):
        return None
    if not folder.results.is_file():
        raise RunError(f"the comparison or evaluation in {folder.path} is not finished", "run its command again")
    if "cells" not in read_json(folder.results):
        shown = f"its figures are in {folder.results.name}, and the same nncift evaluate command prints them"
        raise RunError(f"{folder.path} is the folder of an evaluation, which has no page", shown)
    return write_page(folder)
