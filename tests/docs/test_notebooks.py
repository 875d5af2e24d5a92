"""The notebooks of the documentation run from top to bottom, here with a tiny model; their outputs are stored."""

from __future__ import annotations

import runpy
from pathlib import Path

import nbformat
import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
execute = runpy.run_path(str(DOCS / "_site" / "execute.py"))["execute"]


def test_the_notebooks_run(tiny_model, monkeypatch):
    """In one kernel, since most of the time is its start; nothing that one defines is there for the next."""
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    cells = []
    for path in NOTEBOOKS:
        code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert 'MODEL = "embedded"' in code[0].source
        code[0].source = code[0].source.replace('MODEL = "embedded"', f"MODEL = {tiny_model!r}")
        cells += [*code, nbformat.v4.new_code_cell("%reset -f")]
    done = execute(nbformat.v4.new_notebook(cells=cells), NOTEBOOKS[0].parent)
    assert len(NOTEBOOKS) == 2
    assert all(cell.execution_count for cell in done.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stored_outputs_are_of_one_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
