"""Execute the notebooks of docs/notebooks and store their outputs: `make notebooks`, after a change to one of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

TIMEOUT = 1800  # seconds for a cell


def execute(notebook: Any, folder: Path) -> Any:
    """Run all cells in a folder, and keep what they print and return as text.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raises.
    """
    NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Without warnings and progress bars; what was printed piece by piece as one."""
    kept: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        nbformat.write(execute(nbformat.read(path, as_version=4), path.parent), path)
