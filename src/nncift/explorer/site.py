"""The explorer in the browser: embedding-atlas's server and front end, or its front end as a folder of static files.

Nothing is fetched from elsewhere. The front end, DuckDB as WebAssembly and its extensions come with embedding-atlas and
are served from this machine, and the policy sent along forbids the page any other address, whatever the data holds.
Behind the server is DuckDB in memory without access to files. It answers this machine's own pages alone: requests by
another name (DNS rebinding) or from another page are refused.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import shutil
import socket
import tempfile
import zipfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from nncift.errors import ConfigError, DependencyError, RunError
from nncift.run.storage.checksums import content_hash
from nncift.run.storage.files import atomic_write

PORT = 5055
_PORTS = 20  # tried from there on
_LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")
_POLICY = (
    "default-src 'self'; script-src 'self' blob: 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'"
)
_EVERYWHERE = ("0.0.0.0", "::")


def check_installed() -> None:
    """Refuse to begin without the packages of the extra.

    Raises:
        DependencyError: one is not installed.
    """
    for package, name in (("embedding_atlas", "embedding-atlas"), ("umap", "umap-learn")):
        if importlib.util.find_spec(package) is None:
            raise DependencyError(f"the explorer needs the package {name}", 'pip install "nncift[explore]"')


def export_site(table: Path, props: Mapping[str, Any], folder: Path) -> None:
    """Write the explorer as static files that any web server serves; DuckDB then runs in the browser.

    Args:
        table: the Parquet file.
        props: arguments of embedding-atlas.
        folder: where to write; a new folder, or an empty one.

    Raises:
        RunError: it cannot be written.
    """
    metadata = {"props": dict(props), "isStatic": True, "database": {"type": "wasm", "load": True}}
    with atomic_write(folder) as temporary:
        shutil.copytree(_front_end(), temporary)
        _forbid_elsewhere(temporary / "index.html")
        data = temporary / "data"
        data.mkdir()
        (data / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
        shutil.copyfile(table, data / "dataset.parquet")


def check_export(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        ConfigError: it does.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"`export` {folder} exists", "give a folder that does not")


def _front_end() -> Path:
    import embedding_atlas

    return Path(embedding_atlas.__file__).parent / "static"


def _forbid_elsewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}" />'
    icon = '<link rel="icon" href="data:," />'  # or the browser looks for one
    page.write_text(text.replace("<head>", f"<head>\n    {policy}\n    {icon}", 1), encoding="utf-8")


def bind(host: str, port: int | None) -> socket.socket:
    """A socket to listen on.

    Args:
        host: a name or address of this machine.
        port: 0 for any free one; None for the first free one from 5055 on.

    Raises:
        ConfigError: the port is taken or not allowed, or the host is not one of this machine.
    """
    if port is not None and not 0 <= port < 1 << 16:  # or the system takes its last 16 bits
        raise ConfigError(f"`port` is {port}", "give one from 0 to 65535")
    for number in range(PORT, PORT + _PORTS) if port is None else (port,):
        try:
            return _listening(host, number)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port is None:
                continue
            raise _cannot_bind(host, number, error) from error
    raise ConfigError(f"the ports {PORT} to {PORT + _PORTS - 1} are all in use", "give another `port`")


def _listening(host: str, port: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of one that has just been closed
        found.bind(address)
        found.listen(128)
    except BaseException:
        found.close()
        raise
    return found


def _cannot_bind(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"port {port} is in use", "give another `port`")
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(f"port {port} is not allowed", "give a `port` above 1023")
    return ConfigError(f"`host` {host!r} is no address of this machine", "give 127.0.0.1, or 0.0.0.0 for all")


def serve(table: Path, props: Mapping[str, Any], listening: socket.socket, *, host: str) -> None:
    """Serve the explorer until it is interrupted.

    Args:
        table: the Parquet file.
        props: arguments of embedding-atlas.
        listening: from `bind`.
        host: as given there.
    """
    import uvicorn

    config = uvicorn.Config(make_app(table, props, host=host), access_log=False, log_level="error", lifespan="off")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def make_app(table: Path, props: Mapping[str, Any], *, host: str) -> Any:
    """The ASGI application: embedding-atlas's server behind our policy.

    Raises:
        RunError: the table cannot be read.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds
    from embedding_atlas.data_source import DataSource
    from embedding_atlas.server import make_server

    try:
        rows = ds.dataset(table, format="parquet")
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{table} is damaged", "remove the file and run the same command again") from error

    class Source(DataSource):  # type: ignore[misc]
        """Exports the file as it is: its own exports hold the table in memory."""

        def make_archive(self, static_path: str, metadata_overrides: dict[str, Any] | None = None) -> bytes:
            with tempfile.TemporaryDirectory() as place:
                site, archive = Path(place, "explorer"), Path(place, "explorer.zip")
                export_site(table, props, site)
                with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
                    for file in sorted(filter(Path.is_file, site.rglob("*"))):
                        packed.write(file, file.relative_to(site))
                return archive.read_bytes()

    source = Source(content_hash(table), rows, {"props": dict(props)})
    app = make_server(source, static_path=str(_front_end()), duckdb_uri="server")
    return _Guard(app, None if host in _EVERYWHERE else {host, *_LOCAL})


class _Guard:
    """Refuses requests by another name or from another page, and sends the policy with every answer.

    Args:
        app: the application behind it.
        hosts: names that it is reached by; None for any.
    """

    def __init__(self, app: Any, hosts: set[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        name = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdigit() else host
        if scope["path"] == "/favicon.ico":  # which embedding-atlas does not have
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        foreign = origin is not None and origin.partition("://")[2] != host
        if foreign or (self.hosts is not None and name not in self.hosts):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"refused: another host or page"})
            return

        async def with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                more = [(b"content-security-policy", _POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self.app(scope, receive, with_policy)
