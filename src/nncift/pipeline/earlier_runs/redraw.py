"""The report of a finished run, drawn again from its folder alone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nncift.errors import NNCIFTError
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.report.html import write_report
from nncift.report.reasons import explain
from nncift.run.folder.folder import RunFolder


def redraw(path: str | os.PathLike[str]) -> Path:
    """Write the report of a run again, with the reasons of its choice where an earlier version stored none.

    These take the influence of every pair; where it cannot be computed from the folder, the report goes without.

    Raises:
        RunError: the folder is not a finished run (the message names what is missing), or is damaged.
    """
    if not RunFolder(path).reasons.exists():
        with contextlib.suppress(NNCIFTError):
            run = FinishedRun.open(path)
            explain(run.folder, run.matrix(), run.selection)
    return write_report(path)
