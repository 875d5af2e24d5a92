"""The pages in a headless browser, where there is one; their accessibility by axe-core, where that is installed."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from chromium import AXE, Browser, axe_core, chromium, serious
from comparison_results import choice, costs, results
from nncift.report.comparison import comparison_page
from nncift.report.evaluation import evaluation_page
from nncift.report.html import write_report
from nncift.run.folder.folder import RunFolder
from report_pages import evaluation, make_evaluation, make_reasons, make_run

Browse = Callable[..., tuple[str, list[str]]]
DARK = "--blink-settings=preferredColorScheme=0"


@pytest.fixture(scope="module")
def browse(tmp_path_factory) -> Browse:
    """A function that opens a page in headless Chromium and returns (DOM, lines of the console)."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        pytest.skip("no chromium on this machine")

    def browse(page: Path, *flags: str) -> tuple[str, list[str]]:
        quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
        command = [binary, "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
        command += [f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--enable-logging=stderr"]
        command += ["--virtual-time-budget=5000", *flags, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return browse


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """The page of a run that has every section."""
    folder = make_run(tmp_path_factory.mktemp("full"), pool=60, target=8, chosen=12)
    make_reasons(folder)
    make_evaluation(folder)
    return write_report(folder)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    """The page of a comparison."""
    path = tmp_path_factory.mktemp("comparison") / "report.html"
    found = results(*choice("free", "bm25", "tie", "better"), *choice("exact", "less", "better", "worse"))
    path.write_text(comparison_page(found, costs(**{"bm25": 0.1, "less, exact": 1.0})), encoding="utf-8")
    return path


def test_browser_console_is_empty(run: RunFolder, browse: Browse, tmp_path: Path):
    dom, console = browse(run.report, "--dump-dom")
    assert not console
    assert dom.count("<svg") == 3
    assert "70 of 700 samples selected" in dom
    assert "<script" not in dom
    control = tmp_path / "control.html"
    control.write_text("<script>console.error('heard')</script>", encoding="utf-8")
    assert "heard" in "".join(browse(control, "--dump-dom")[1])


def test_browser_renders_the_page(run: RunFolder, browse: Browse, tmp_path: Path):
    from PIL import Image

    colours = {}
    for name, flags in {"light": (), "dark": (DARK,)}.items():
        picture = tmp_path / f"{name}.png"
        browse(run.report, f"--screenshot={picture}", "--window-size=1280,4500", *flags)
        with Image.open(picture) as image:
            colours[name] = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert len(colours["light"]) > 100
    assert (0xE9, 0xF6, 0xEE) in colours["light"]  # the green of a good verdict
    assert (0x15, 0x29, 0x1F) in colours["dark"]


@pytest.mark.parametrize("name", ["full", "comparison"])
def test_page_fits_the_window(name: str, request, browse: Browse, tmp_path: Path):
    source = request.getfixturevalue(name).read_text(encoding="utf-8")
    opened = html.escape(_unfolded(source))
    wide = html.escape("<!doctype html><div style='width:2000px'>x</div>")
    widths = {360: html.escape(source), 361: opened, 1280: opened, 800: wide}
    frames = "".join(
        f'<iframe width="{width}" height="800" srcdoc="{page}"></iframe>' for width, page in widths.items()
    )
    script = """addEventListener("load", () => { document.title = [...document.querySelectorAll("iframe")].map(
        frame => frame.contentDocument.documentElement.scrollWidth).join(" ") })"""
    page = tmp_path / "frames.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><script>{script}</script>{frames}", encoding="utf-8")
    dom, _ = browse(page, "--dump-dom")
    narrow, unfolded, usual, overflowing = map(int, re.search(r"<title>([\d ]+)</title>", dom)[1].split())
    assert (narrow <= 360, unfolded <= 361, usual <= 1280) == (True, True, True)
    assert overflowing >= 2000  # overflow is detected


def test_what_is_folded_is_opened_on_paper(full: Path, browse: Browse, tmp_path: Path):
    """The style sheet's rules for print, applied on the screen: what they open has a height there."""
    source = full.read_text(encoding="utf-8").replace("@media print", "@media screen")
    script = """<script>addEventListener("load", () => { document.title = ["configuration-title", "bottom"].map(
        id => document.getElementById(id).closest("section").querySelector("dl, article")
            .getBoundingClientRect().height > 0 && document.getElementById(id).closest("section")
            .querySelector("dl, article").checkVisibility({contentVisibilityAuto: true})).join(" ") })</script>"""
    heard = {}
    for name, page in {"paper": source, "screen": full.read_text(encoding="utf-8")}.items():
        path = tmp_path / f"{name}.html"
        path.write_text(_without_policy(page) + script, encoding="utf-8")
        heard[name] = re.search(r"<title>(.*?)</title>", browse(path, "--dump-dom")[0])[1]
    assert heard == {"paper": "true true", "screen": "false false"}


def _unfolded(page: str) -> str:
    return page.replace("<details", "<details open")


def _without_policy(page: str) -> str:
    """A page that may run scripts."""
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)


@pytest.fixture(scope="module")
def evaluation_file(tmp_path_factory) -> Path:
    """The page of an evaluation."""
    path = tmp_path_factory.mktemp("evaluation") / "report.html"
    facts = {"model": {"model": "org/model"}, "tuning": {"epochs": 3, "modules": ["all-linear"]}}
    path.write_text(evaluation_page(evaluation("tie", **facts)), encoding="utf-8")
    return path


def test_axe_has_no_serious_finding(full: Path, comparison: Path, evaluation_file: Path, tmp_path: Path):
    axe, program = axe_core(), chromium()
    if axe is None or program is None:
        pytest.skip(f"chromium or axe-core is not installed: pip install --no-deps {AXE.replace('_', '-')}")
    browser = Browser(program, tmp_path / "profile")
    try:
        for page in (full, comparison, evaluation_file):
            opened = _unfolded(page.read_text(encoding="utf-8"))
            path = tmp_path / "page.html"
            path.write_text(opened, encoding="utf-8")
            for scheme in ("light", "dark"):
                browser.prefer(scheme)
                browser.open(path.as_uri())
                assert serious(browser.findings(axe)) == [], (page, scheme)
        control = "<img src='data:,' ><a href='#nowhere'></a>"  # two findings, so that findings are known to be seen
        path.write_text(opened.replace("<header>", f"<header>{control}", 1), encoding="utf-8")
        browser.open(path.as_uri())
        assert {"image-alt", "link-name"} <= {found["id"] for found in serious(browser.findings(axe))}
    finally:
        browser.close()
