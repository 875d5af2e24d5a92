"""The benchmarks' imports: what they take from each other and from nncift is there, without running them."""

from __future__ import annotations

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = sorted(path for folder in ("", "peers", "reliability") for path in (BENCHMARKS / folder).glob("*.py"))
OTHERS = {path.stem: path for path in SCRIPTS}


def defined(path: Path) -> set[str]:
    """The names at a module's top level."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


def has(module: str, name: str) -> bool:
    """Whether a module of nncift has a name, or a module of that name in it."""
    if hasattr(importlib.import_module(module), name):
        return True
    return find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_what_a_benchmark_imports_is_there(script):
    missing = []
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [alias.name for alias in node.names]
            if node.module.split(".")[0] == "nncift":
                missing += [f"{node.module}.{name}" for name in names if not has(node.module, name)]
            elif node.module in OTHERS:
                missing += [f"{node.module}.{name}" for name in names if name not in defined(OTHERS[node.module])]
    assert not missing


def test_the_index_has_every_script():
    index = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted(BENCHMARKS.glob("*.py")) if f"`{path.name}`" not in index] == []
