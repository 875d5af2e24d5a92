"""`nncift explore` on the command line."""

from __future__ import annotations

from pathlib import Path

from nncift.errors import RunError, printable

NAMES = {name: f"--{name}" for name in ("export", "host", "port")}
"""Options as messages name them to how they are typed."""


def explore(
    run: str,
    *,
    export: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    no_browser: bool = False,
    quiet: bool = False,
) -> None:
    """Look at a finished run in the browser: the map of its pool, and why each sample was chosen or left out.

    Args:
        run: The folder of a run.
        export: Write a static site to this folder instead, which works offline behind any web server.
        host: Address to listen on; 0.0.0.0 lets other machines see the data.
        port: Port to listen on; by default the first free one from 5055 on.
        no_browser: Do not open the page in the default browser.
        quiet: No progress bars.
    """
    if not run or not Path(run).expanduser().is_dir():  # before the imports, which take seconds
        raise RunError(f"there is no folder {run!r}", "give the folder of a finished run")
    from nncift.explorer.site import check_installed

    check_installed()
    from nncift.explorer.explore import explore as opened

    opened(
        run,
        export=export,
        host=host,
        port=port,
        browser=not no_browser,
        progress=not quiet,
        say=lambda line: print(printable(line), flush=True),
    )
