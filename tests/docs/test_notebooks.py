"""The notebooks of the documentation run from top to bottom, here with a tiny model; their outputs are stored."""

from __future__ import annotations

import runpy
from pathlib import Path

import nbformat
import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
execute = runpy.run_path(str(DOCS / "_site" / "execute.py"))["execute"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tiny_model, monkeypatch):
    """Its cells in this process: a kernel of its own would take longer to start than the cells take."""
    monkeypatch.chdir(path.parent)
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert 'MODEL = "embedded"' in cells[0]
    cells[0] = cells[0].replace('MODEL = "embedded"', f"MODEL = {tiny_model!r}")
    scope: dict = {}
    for number, source in enumerate(cells, start=1):
        exec(compile(source, f"{path.name}, cell {number}", "exec"), scope)


def test_outputs_are_kept_as_text_and_progress_is_drawn():
    drawn = "from nncift.run.progress import interactive\nprint(interactive())"
    cells = ["print(1)\nprint(2)", "import sys; print('loading', file=sys.stderr)\n3", drawn]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    printed, returned, bars = execute(notebook, DOCS).cells
    assert [output.text for output in printed.outputs] == ["1\n2\n"]
    assert [output.data["text/plain"] for output in returned.outputs] == ["3"]
    assert [output.text for output in bars.outputs] == ["True\n"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stored_outputs_are_of_one_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
