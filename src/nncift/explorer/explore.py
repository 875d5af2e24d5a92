"""`explore`: a finished run in the browser, or as a static site."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Callable
from pathlib import Path

from nncift.explorer.page import page_props
from nncift.explorer.site import bind, check_export, check_installed, export_site, serve
from nncift.explorer.table import read_facts, write_table
from nncift.pipeline.earlier_runs.finished import FinishedRun


def explore(
    run: str | os.PathLike[str],
    *,
    export: str | os.PathLike[str] | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = True,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Open a finished run in the browser until it is interrupted, or write it as a static site.

    Args:
        run: a run folder, into which the map and the table are written once.
        export: the folder of the static site; a server is then not started.
        host: address to listen on; 0.0.0.0 lets other machines see the data.
        port: to listen on; the first free one from 5055 on by default, 0 for any.
        browser: open the page in the default browser.
        progress: show progress bars.
        say: receives what the user should read, line by line.

    Raises:
        RunError: it is not the folder of a finished run, it is damaged, or in use.
        ConfigError: the port is taken, or `export` exists.
        DependencyError: the packages of the extra `explore` are missing.
    """
    check_installed()
    target = None if export is None else Path(export).expanduser()
    if target is not None:
        check_export(target)
    opened = FinishedRun.open(run)
    listening = bind(host, port) if target is None else None  # a taken port is found before the work
    table = write_table(opened, progress=progress)
    facts = read_facts(table)
    props = page_props(facts["charts"])
    for note in facts["notes"]:
        say(f"Note: {note}.")
    if target is not None:
        export_site(table, props, target)
        say(f"Written to {target}; to look at it: python -m http.server --directory {target}")
        return
    assert listening is not None
    with listening:
        shown_host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        url = f"http://{f'[{shown_host}]' if ':' in shown_host else shown_host}:{listening.getsockname()[1]}"
        say(f"{opened.folder.path} is open at {url} (Ctrl+C ends it)")
        if shown_host != host:
            say("Browsers on other machines draw the map only through a tunnel (ssh -L) or HTTPS: docs/explore.md.")
        if browser:
            webbrowser.open(url)  # it waits until the server below answers
        serve(table, props, listening, host=host)
