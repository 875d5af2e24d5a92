"""Headless Chromium that tests drive by the DevTools protocol."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
AXE = "axe_playwright_python"  # carries axe.min.js
_SECONDS = 120  # until a page has what is waited for
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--no-first-run", "--remote-debugging-port=0", "--window-size=1600,1200"),
    *("--disable-dev-shm-usage", "--blink-settings=primaryHoverType=2,availableHoverTypes=2"),  # a mouse
    *(f"--disable-{name}" for name in ("quic", "background-networking", "component-update", "sync", "extensions")),
)
_GRAPHICS = (
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"),
    "--use-vulkan=swiftshader",  # or what WebGPU draws on a canvas is not shown
)

_READ = """function read(node) {
    if (node.nodeType == 3) return node.data
    if (node.matches && node.matches("style, script")) return ""
    return [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].map(read).join("\\n")
}"""
_PLACE = """function (text, number) {
    const found = []
    const isText = child => child.nodeType == 3 && child.data.trim() == text
    const walk = node => {
        if (node.nodeType == 1 && [...node.childNodes].some(isText)) found.push(node)
        const inside = [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes]
        inside.forEach(walk)
    }
    walk(document.body)
    if (!found[number]) return null
    found[number].scrollIntoView({block: "center"})
    const box = found[number].getBoundingClientRect()
    return [box.x + box.width / 2, box.y + box.height / 2]
}"""


def chromium() -> str | None:
    """The program, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def served_folder(folder: Path) -> Iterator[str]:
    """The address of a folder that Python's web server shows."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def axe_core() -> str | None:
    """The source of axe-core, if it is installed; the code of the package that carries it is not used."""
    found = importlib.util.find_spec(AXE)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


def serious(findings: list[dict]) -> list[dict]:
    """Those of `Browser.findings` that keep people out."""
    return [found for found in findings if found["impact"] in ("serious", "critical")]


class Browser:
    """A page of a browser of its own, with what its console said and the addresses that it asked for.

    Args:
        program: of Chromium.
        profile: an empty folder.
        graphics: have a graphics processor in software, for pages that draw with WebGPU; it takes time on any page.
    """

    def __init__(self, program: str, profile: Path, *, graphics: bool = False) -> None:
        from websockets.sync.client import connect

        self.console: list[str] = []
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self._numbers = itertools.count(1)
        self._process = subprocess.Popen(
            [
                program,
                *_OPTIONS,
                *(_GRAPHICS if graphics else ["--disable-gpu"]),
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        port = waited_for(lambda: _first_line(profile / "DevToolsActivePort"))
        page = waited_for(lambda: _first_page(port))
        self._socket = connect(page, max_size=None, open_timeout=_SECONDS, ping_interval=None, proxy=None)
        for name in ("Runtime", "Log", "Network", "Page"):
            self._call(f"{name}.enable")

    def close(self) -> None:
        """End the browser."""
        self._socket.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def open(self, url: str) -> None:
        """Go to a page, until it and its scripts are loaded."""
        self._call("Page.navigate", url="about:blank")  # or the page before is still heard
        self.console, self.requests, self.dialogs = [], [], []
        self._call("Page.navigate", url=url)
        self.wait("document.readyState == 'complete'")

    @contextlib.contextmanager
    def before_scripts(self, source: str) -> Iterator[None]:
        """Have pages that are opened meanwhile run this JavaScript before their own."""
        added = self._call("Page.addScriptToEvaluateOnNewDocument", source=source)
        try:
            yield
        finally:
            self._call("Page.removeScriptToEvaluateOnNewDocument", **added)

    def evaluate(self, expression: str):
        """The value of an expression in JavaScript, or of its promise."""
        found = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str):
        """The expression's first value that is true."""
        return waited_for(lambda: self.evaluate(expression))

    def text(self) -> str:
        """The page's text, inside shadow roots too."""
        return self.evaluate(f"({_READ})(document.body)")

    def click(self, text: str, *, number: int = 0) -> None:
        """Click on the element whose own text this is."""
        place = self.wait(f"({_PLACE})({json.dumps(text)}, {number})")
        self.click_at(*place)

    def press(self, label: str) -> None:
        """Click on the button with this text, which may be shown by its tooltip alone."""
        button = (
            f"[...document.querySelectorAll('button')].find(some => some.textContent.trim() == {json.dumps(label)})"
        )
        box = f"{button}?.getBoundingClientRect()"
        self.click_at(*self.wait(f"(box => box && [box.x + box.width / 2, box.y + box.height / 2])({box})"))

    def click_at(self, x: float, y: float) -> None:
        """Click on a place of the window."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self._call("Input.insertText", text=text)

    def prefer(self, scheme: str) -> None:
        """Have pages in "light" or "dark" colours."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def findings(self, axe: str, part: str = "document") -> list[dict]:
        """What axe-core, whose source is given, finds wrong with a part of the page: "id", "impact", some "nodes"."""
        self.evaluate(f"{axe};0")
        return self.evaluate(f"""axe.run({part}, {{resultTypes: ["violations"]}}).then(found => found.violations.map(
            one => ({{id: one.id, impact: one.impact, nodes: one.nodes.slice(0, 3).map(
                node => node.html.slice(0, 200) + " " + node.failureSummary)}})))""")

    def screenshot(self, path: Path) -> None:
        """Write a picture of the window."""
        import base64

        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **arguments):
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while True:
            message = json.loads(self._socket.recv(timeout=_SECONDS))
            if message.get("id") == number:
                if "error" in message:
                    raise AssertionError(message["error"])
                return message["result"]
            self._note(message)

    def _note(self, message: dict) -> None:
        method, facts = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.console.append(f"{facts['type']}: {[a.get('value', a.get('description')) for a in facts['args']]}")
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(facts["exceptionDetails"]))
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.console.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(facts["message"])


def waited_for(found: Callable[[], T]) -> T:
    """The first value of a function that is true."""
    end = time.monotonic() + _SECONDS
    while not (value := found()):
        if time.monotonic() > end:
            raise AssertionError("waited in vain")
        time.sleep(0.1)
    return value


def _first_line(path: Path) -> str:
    return path.read_text().partition("\n")[0] if path.is_file() else ""


def _first_page(port: str) -> str:
    from urllib.request import ProxyHandler, build_opener

    with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/json/list") as answer:
        pages = [page for page in json.load(answer) if page["type"] == "page"]
    return pages[0]["webSocketDebuggerUrl"] if pages else ""
