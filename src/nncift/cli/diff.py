"""`nncift diff` on the command line."""

from __future__ import annotations

from pathlib import Path

from nncift.errors import RunError, printable


def diff(run1: str, run2: str, *, output: str | None = None, quiet: bool = False) -> None:
    """Compare two finished runs: what both chose, what only one did, composition, and how far influence agrees.

    Args:
        run1: The folder of a run.
        run2: That of another.
        output: Also write the comparison to this file, NAME.json or NAME.md.
        quiet: No progress bars.
    """
    for run in (run1, run2):
        if not run or not Path(run).is_dir():  # before the imports, which take seconds
            raise RunError(f"there is no folder {run!r}", "give the folder of a finished run")
    from nncift.differences.difference import check_output
    from nncift.differences.difference import diff as compared

    if output is not None:
        check_output(output)
    found = compared(run1, run2, progress=not quiet)
    print(found)
    if output is not None:
        found.save(output)
        print(printable(f"Written to {output}"))
