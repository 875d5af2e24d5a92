"""Names that may be published: without folders, user names, and logins in addresses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nncift.data.files.formats import is_known
from nncift.run.folder.naming import IN_MEMORY

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")
_HUB_FILE = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(@[^/]*)?(/.*)?")
_PATH = re.compile(r"([/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|[A-Za-z][A-Za-z0-9+.-]*://).*", re.DOTALL)


def public_name(name: str) -> str:
    """A source or a model as others know it: its hub id, else the last part of its path or address."""
    if name.startswith(IN_MEMORY) or name == "<dataset>":
        return "data in memory"
    if (match := _HUB_FILE.fullmatch(name)) is not None:
        return match[1]
    path = Path(name).expanduser()
    if _HUB_ID.fullmatch(name) and not is_known(path) and not path.exists():
        return name
    last = re.split(r"[/\\]", name.split("?")[0].split("#")[0].rstrip("/\\"))[-1]
    if last in ("", ".", ".."):
        last = path.resolve().name
    return last or "data"


def without_paths(value: Any) -> Any:
    """JSON values with every path in place of its last part; a relative one of data, or where there is such a file."""
    if isinstance(value, dict):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    is_path = _PATH.fullmatch(value) or (re.search(r"[/\\]", value) and _is_file(value))
    return public_name(value) if is_path else value


def _is_file(name: str) -> bool:
    try:
        return is_known(Path(name)) or Path(name).exists()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False
