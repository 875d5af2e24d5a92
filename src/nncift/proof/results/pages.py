"""The page of an evaluation or comparison, written from its files: at its end, and again by `nncift report`."""

from __future__ import annotations

import os
from pathlib import Path

from nncift.errors import RunError
from nncift.proof.folder import ProofFolder
from nncift.report.comparison import write_comparison_report
from nncift.report.evaluation import write_evaluation_report
from nncift.run.storage.files import read_json


def write_page(folder: ProofFolder) -> Path:
    """Write the page of a finished evaluation or comparison; without costs where an earlier version kept none."""
    results = read_json(folder.results)
    if "cells" not in results:
        return write_evaluation_report(folder.report, results)
    costs = read_json(folder.costs) if folder.costs.exists() else {}
    return write_comparison_report(folder.report, results, costs)


def write_again(path: str | os.PathLike[str]) -> Path | None:
    """Write the page of an evaluation or comparison again; None of another folder.

    Raises:
        RunError: it is not finished.
    """
    folder = ProofFolder(path)
    if not folder.run.config.is_file() or "test" not in read_json(folder.run.config):
        return None
    if not folder.results.is_file():
        raise RunError(f"the comparison or evaluation in {folder.path} is not finished", "run its command again")
    return write_page(folder)
