"""The report in a headless browser, where there is one."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nncift.run.folder import RunFolder


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
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


def test_browser_console_is_empty(run: RunFolder, browse, tmp_path: Path):
    dom, console = browse(run.report, "--dump-dom")
    assert not console
    assert dom.count("<svg") == 3
    assert "70 of 700 samples selected" in dom
    assert "<script" not in dom
    control = tmp_path / "control.html"
    control.write_text("<script>console.error('heard')</script>", encoding="utf-8")
    assert "heard" in "".join(browse(control, "--dump-dom")[1])


def test_browser_renders_the_page(run: RunFolder, browse, tmp_path: Path):
    from PIL import Image

    picture = tmp_path / "page.png"
    browse(run.report, f"--screenshot={picture}", "--window-size=1280,900")
    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 100
    assert (0xE9, 0xF6, 0xEE) in {colour for _, colour in colours}  # the green of a good verdict


def test_page_fits_the_window(run: RunFolder, browse, tmp_path: Path):
    report = html.escape(run.report.read_text(encoding="utf-8"))
    wide = html.escape("<!doctype html><div style='width:2000px'>x</div>")
    widths = {390: report, 1280: report, 800: wide}
    frames = "".join(
        f'<iframe width="{width}" height="800" srcdoc="{page}"></iframe>' for width, page in widths.items()
    )
    script = """addEventListener("load", () => { document.title = [...document.querySelectorAll("iframe")].map(
        frame => frame.contentDocument.documentElement.scrollWidth).join(" ") })"""
    page = tmp_path / "frames.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><script>{script}</script>{frames}", encoding="utf-8")
    dom, _ = browse(page, "--dump-dom")
    narrow, usual, overflowing = map(int, re.search(r"<title>(\d+) (\d+) (\d+)</title>", dom).groups())
    assert (narrow <= 390, usual <= 1280, overflowing >= 2000) == (True, True, True)  # the last: overflow is detected
