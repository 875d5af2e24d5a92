"""What users install: wheel and source distribution are complete, valid, and work in an environment of their own.

The build has no isolation, so it needs no network: setuptools comes with the extra `dev`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import nncift

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in", "pyproject.toml")
IMPORTS = """
import nncift, sys
assert nncift.__file__.startswith(sys.prefix), nncift.__file__
for name in nncift.__all__:
    getattr(nncift, name)
print(len(nncift.__all__))
"""


def call(*command: object, **environment: str) -> str:
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    words = list(map(str, command))
    done = subprocess.run(words, env=given, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with wheel and source distribution, the wheel built from the latter."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in DOCUMENTS:
        shutil.copy(ROOT / name, source)
    leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=leave_out)
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, source)
    return output


def package_files() -> set[str]:
    files = (path for path in (ROOT / "src" / "nncift").rglob("*") if path.is_file())
    return {path.relative_to(ROOT / "src").as_posix() for path in files if path.parent.name != "__pycache__"}


def test_the_wheel_has_every_file_of_the_package_and_no_other(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    assert names == package_files()
    needed = ("py.typed", "__init__.pyi", "estimator/pretrained/model.safetensors", "evaluation/answers/rubric.txt")
    assert {f"nncift/{name}" for name in needed} <= names
    assert any(name.endswith(".html.jinja") for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    assert wheel.stat().st_size < 5e6


def test_the_source_distribution_has_the_package_and_its_documents(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
    assert {f"src/{name}" for name in package_files()} | set(DOCUMENTS) <= names
    generated = {"PKG-INFO", "setup.cfg", *(name for name in names if "nncift.egg-info/" in name)}
    assert names - generated - set(DOCUMENTS) == {f"src/{name}" for name in package_files()}


def test_the_index_would_take_them(built):
    out = call(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), NO_COLOR="1")
    assert len(re.findall("PASSED", out)) == 2


def test_the_wheel_works_in_an_environment_of_its_own(built, tmp_path):
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python, bin_folder = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin"
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    dependencies = sysconfig.get_path("purelib")  # of the tests' environment; an editable nncift there is not seen
    (packages / "dependencies.pth").write_text(dependencies, encoding="utf-8")
    (wheel,) = built.glob("*.whl")
    options = ("--no-deps", "--no-index", "--ignore-installed")
    call(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel)
    assert call(bin_folder / "nncift", "--version").strip() == nncift.__version__
    assert int(call(python, "-c", IMPORTS)) == len(nncift.__all__)


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == nncift.__version__
    assert citation["license"] == "Apache-2.0"
    assert "https://arxiv.org/abs/2502.09969" in [reference["url"] for reference in citation["references"]]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
