"""The explorer in headless Chromium, served and as a static site, and what it says when it cannot be opened."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nncift
from builders import word_rows, write_rows
from chromium import Browser, chromium, served_folder, waited_for
from nncift.cli import main
from nncift.errors import ConfigError, DependencyError
from nncift.explorer import site

ROWS, CHOSEN = 40, 7
HOSTILE = (
    "<img src=x onerror=\"alert('img')\"><script>alert('script')</script> \x1b[31mzebra https://evil.example/a.png"
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("embedding_atlas") is None, reason="embedding-atlas is not installed"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    rows = [{**row, "task": ("sums", "words", HOSTILE[:60])[i % 3]} for i, row in enumerate(word_rows(ROWS))]
    rows[5]["response"] = HOSTILE
    rows[6]["<b>name"] = "https://evil.example/b.png"
    nncift.select(write_rows(folder / "pool.jsonl", rows), influence="bm25", budget=CHOSEN, output=folder / "run")
    return folder / "run"


@contextlib.contextmanager
def served(application) -> Iterator[str]:
    """The address of an ASGI application that runs in this process."""
    import uvicorn

    listening = site.bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(application, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    """Where the command serves the run: `serve` gets its socket, as when somebody runs it."""
    found: list = []

    def keep(*arguments, **options) -> None:
        found.append((arguments, options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nncift.explorer.explore.serve", keep)  # it would wait for Ctrl+C
        nncift.explore(run, port=0, browser=False, progress=False, say=lambda line: None)
    (table, props, _), options = found[0]
    with served(site.make_app(table, props, **options)) as url:
        yield url


@pytest.fixture(scope="module")
def static_address(run: Path, tmp_path_factory) -> Iterator[str]:
    """Where Python's web server shows the exported site."""
    folder = tmp_path_factory.mktemp("export") / "site"
    nncift.explore(run, export=folder, progress=False, say=lambda line: None)
    with served_folder(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    if (program := chromium()) is None:
        pytest.skip("no chromium on this machine")
    with contextlib.closing(Browser(program, tmp_path_factory.mktemp("profile"))) as found:
        yield found


@pytest.fixture
def drawing_browser(tmp_path_factory) -> Iterator[Browser]:
    if (program := chromium()) is None:
        pytest.skip("no chromium on this machine")
    with contextlib.closing(Browser(program, tmp_path_factory.mktemp("profile"), graphics=True)) as found:
        yield found


def complaints(browser: Browser) -> list[str]:
    """What the console says beside that this machine has no graphics processor to draw the map with."""
    return [line for line in browser.console if not any(word in line for word in ("WebGPU", "No available adapters"))]


def test_the_map_is_drawn_where_the_browser_can_and_else_says_what_it_needs(browser: Browser, static_address: str):
    """Not without a graphics processor; one in software has no 16-bit floats, which embedding-atlas asks for."""
    browser.open(static_address)
    can = browser.evaluate(
        "navigator.gpu?.requestAdapter().then(adapter => adapter?.features.has('shader-f16') ?? false) ?? false"
    )
    unavailable = "[...document.querySelectorAll('*')].some(some => some.textContent.includes('WebGPU is unavailable'))"
    browser.wait(f"{unavailable} || [...document.querySelectorAll('canvas')].some(canvas => canvas.width > 300)")
    assert browser.evaluate(unavailable) is not can


def test_map_shows_the_points_that_the_filters_leave(drawing_browser: Browser, address: str, tmp_path: Path):
    browser = drawing_browser
    with browser.before_scripts(Path(__file__).with_name("wide_floats.js").read_text()):
        browser.open(address)
    if not browser.evaluate("navigator.gpu?.requestAdapter().then(adapter => !!adapter) ?? false"):
        pytest.skip("this Chromium has no WebGPU adapter, not even in software")
    before = drawn(browser, tmp_path, until=lambda orange, blue: orange and blue)
    browser.click("chosen = 'chosen'")
    assert drawn(browser, tmp_path, until=lambda orange, blue: orange and not blue)[0] > before[0] / 2
    assert complaints(browser) == []


def drawn(browser: Browser, folder: Path, *, until: Callable[[int, int], object]) -> tuple[int, int]:
    """How many pixels of the map are orange (chosen) and blue (left out), once they are as wanted."""
    box = browser.wait(
        "[...document.querySelectorAll('canvas')].filter(canvas => canvas.width > 300).map("
        "canvas => canvas.getBoundingClientRect()).map(box => [box.left, box.top + 60, box.right, box.bottom])[0]"
    )  # below the legend

    def counted() -> tuple[int, int] | None:
        browser.screenshot(folder / "page.png")
        pixels = np.asarray(Image.open(folder / "page.png").convert("RGB").crop(box), dtype=int)
        redder = pixels[..., 0] - pixels[..., 2]
        orange, blue = int((redder > 50).sum()), int((redder < -50).sum())
        return (orange, blue) if until(orange, blue) else None

    return waited_for(counted)


@pytest.mark.parametrize("where", ["address", "static_address"])
def test_page_loads_filters_and_searches_without_complaint(where, browser: Browser, request, run: Path):
    url = request.getfixturevalue(where)
    browser.open(url)
    points = f"{ROWS} / {ROWS} points"
    shown = "document.body.innerText.replace(/\\s+/g, ' ')"
    browser.wait(f"{shown}.includes({json.dumps(points)}) && {shown}.includes('Say river river 0')")
    browser.wait(f"{shown}.includes('left out {ROWS - CHOSEN}')")  # the chart of the choice
    browser.click("chosen = 'chosen'")
    browser.wait(f"{shown}.includes('{CHOSEN} / {ROWS} points')")
    browser.click("chosen = 'chosen'")
    browser.wait(f"{shown}.includes({json.dumps(points)})")
    browser.press("Search")
    browser.wait("(box => box && (box.focus(), true))(document.querySelector('input[type=search]'))")
    before = browser.evaluate(shown).count("Say harbour engine 26")
    browser.type("harbour 26")
    browser.wait(f"{shown}.split('Say harbour engine 26').length > {before + 1}")
    assert HOSTILE.split()[0] in browser.text()
    assert complaints(browser) == []
    assert browser.dialogs == []
    assert {asked for asked in browser.requests if not asked.startswith((url, "data:", f"blob:{url}"))} == set()
    assert browser.evaluate("document.querySelectorAll('img[src=x], script:not([src])').length") == 0


def test_console_and_requests_are_heard(browser: Browser, tmp_path: Path):
    page = tmp_path / "page.html"
    page.write_text("<script>console.error('heard'); fetch('http://127.0.0.1:9/elsewhere').catch(() => 0)</script>")
    browser.open(page.as_uri())
    browser.wait("document.readyState == 'complete'")
    browser.wait("1")
    assert "heard" in "".join(complaints(browser))
    assert "http://127.0.0.1:9/elsewhere" in browser.requests


def test_server_answers_this_machines_own_page_alone(address: str):
    host = address.removeprefix("http://")

    def status(path: str, **headers: str) -> int:
        request = urllib.request.Request(address + path, headers={"Host": host, **headers})
        try:
            with urllib.request.urlopen(request) as answer:
                assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert status("/") == status("/data/metadata.json") == status("/", Origin=address) == 200
    assert status("/", Host="rebound.example") == status("/", Origin="https://evil.example") == 403
    assert status("/data/metadata.json", Origin="null") == 403


def test_server_reads_no_file_and_gives_the_site_as_an_archive(address: str, tmp_path: Path):
    def ask(sql: str) -> dict:
        query = json.dumps({"type": "json", "sql": sql}).encode()
        try:
            with urllib.request.urlopen(f"{address}/data/query", data=query) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    assert ask("SELECT count(*) AS n FROM dataset WHERE chosen = 'chosen'") == [{"n": CHOSEN}]
    assert "error" in ask("SELECT * FROM read_text('/etc/hostname')")
    with urllib.request.urlopen(f"{address}/data/archive.zip") as answer:
        assert answer.read(2) == b"PK"


def test_command_says_in_a_line_why_it_cannot(run: Path, tmp_path: Path, capsys):
    def message(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["explore", *arguments])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "no folder" in message(str(tmp_path / "missing"))
    assert "not the folder of a run" in message(str(tmp_path))
    unfinished = tmp_path / "unfinished"
    (unfinished / "pool").mkdir(parents=True)
    (unfinished / "config.json").write_text((run / "config.json").read_text())
    assert "not finished" in message(str(unfinished))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "--export" in message(str(run), "--export", str(tmp_path / "full"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} is in use: give another --port" in message(str(run), "--port", port)
    assert "--port" in message(str(run), "--port", "70000")
    assert "--host" in message(str(run), "--host", "192.0.2.1")
    assert "--host" in message(str(run), "--host", "no.such.host.invalid")


def test_missing_packages_are_named(run: Path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "umap" else found(name))
    with pytest.raises(DependencyError, match=r'umap-learn: pip install "nncift\[explore\]"'):
        nncift.explore(run)


def test_first_free_port_is_taken():
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(site.bind("127.0.0.1", None)) for _ in range(2))
        assert site.PORT <= first.getsockname()[1] < second.getsockname()[1]


def test_export_does_not_overwrite(run: Path, tmp_path: Path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        nncift.explore(run, export=tmp_path / "site")
    assert (tmp_path / "site" / "index.html").read_text() == "mine"
