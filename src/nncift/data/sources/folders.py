"""The data files of a folder, by configuration and split, as `datasets` resolves them.

The rules are those of a hub repository: `configs` in the README's YAML, else `train-*` and `test-*` in file or folder
names, else every file. What `datasets` would match is matched against the files that hold data: neither run folders of
nncift, nor hidden folders, nor descriptions.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nncift.data.files.formats import is_known, known_formats
from nncift.errors import DataError, first_line
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.parts import SampleFolder

_NOT_ROWS = {
    "config.json",
    "croissant.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "metadata.json",
    "package.json",
    "state.json",
}
_NOT_DATA = re.compile(
    r"(?i)(readme|licen[cs]e|notice|copying|changelog|citation|contributing|authors|makefile|dockerfile|requirements)\b.*"
    r"|.*\.(md|rst|py|pyc|ipynb|sh|ya?ml|toml|cfg|ini|bib|cff|css|js|html?|log|lock|sha256|md5|crc"
    r"|png|jpe?g|gif|svg|webp|bmp|ico|pdf|tex)"
)
_DATA = re.compile(
    r"(?i).*\.(xlsx?|ods|zip|tar|tgz|7z|rar|txt|text|pickle|pkl|h5|hdf5|npy|npz|feather|orc|avro|db|sqlite3?|xml|msgpack"
    r"|tfrecords?|mat|rdata|rds|dta|sav|lz4|br|gz|bz2|xz|zst)"
)
_LARGE = 1 << 17  # bytes: an unknown file beyond that is more than a note
_NAMED = 5  # files in a message


class Listing(NamedTuple):
    """The files of a folder, relative to it, in order."""

    data: list[str]  # that can be read
    unread: list[str]  # that look like data, and cannot be read


class DataFiles(NamedTuple):
    """The files of one split, relative to the folder, and remarks on files that are left out."""

    files: list[str]
    notes: list[str]


def find_data(folder: Path) -> Listing:
    """List the files below a folder, without run folders of nncift and hidden ones."""
    listing = Listing([], [])
    for parent, folders, files in os.walk(folder):
        inside = Path(parent)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")) and not _is_own(inside / name))
        for name in sorted(files):
            path = inside / name
            if name.startswith(".") or name in _NOT_ROWS or not path.is_file():
                continue
            where = path.relative_to(folder).as_posix()
            if is_known(path):
                listing.data.append(where)
            elif not _NOT_DATA.fullmatch(name) and (_DATA.fullmatch(name) or path.stat().st_size > _LARGE):
                listing.unread.append(where)
    return Listing(sorted(listing.data), sorted(listing.unread))


def _is_own(folder: Path) -> bool:
    """Whether nncift wrote the folder: its output may lie within the pool."""
    return RunFolder(folder).is_run or SampleFolder(folder).is_begun


def resolve(folder: Path, name: str, config: str | None, split: str | None, prefer: str | None) -> DataFiles:
    """The files of a folder to read: of one configuration, and of one split of it.

    Args:
        folder: where the files lie.
        name: what the user calls it.
        config: the configuration; by default that marked as default, or the only one.
        split: the split; by default the only one.
        prefer: the split of several where none is named, if it is there.

    Raises:
        DataError: there is no data, no such configuration or split, or there are several and none is named.
    """
    if _is_own(folder):
        raise DataError("this is a run of nncift, not data", "give a file of it, such as its subset.jsonl", file=name)
    found = find_data(folder)
    notes = []
    if found.unread:
        notes.append(f"{name}: left out, since it cannot be read: {_named(found.unread)}; known are {known_formats()}")
    if not found.data:
        held = f" that can be read (it holds {_named(found.unread)})" if found.unread else ""
        raise DataError(f"no data in this folder{held}", f"expected {known_formats()}, or a saved dataset", file=name)
    configs, problem = _configs(folder)
    notes.extend([f"{name}: {problem}"] if problem else [])
    splits = _splits(found.data, _choose_config(configs, name, config), name)
    chosen = choose_split(list(splits), name, split, prefer)
    other = [] if configs or split else sorted(set(found.data).difference(*splits.values()))
    if other:
        problem = f"by name, the split {chosen!r} has {_named(splits[chosen])}, and no split has {_named(other)}"
        raise DataError(problem, "choose with `split`, or give the files themselves", file=name)
    return DataFiles(splits[chosen], notes)


def choose_split(splits: Sequence[str], name: str, split: str | None, prefer: str | None) -> str:
    """The split to read.

    Raises:
        DataError: there is none of this name, or there are several and none is named.
    """
    chosen = split or (splits[0] if len(splits) == 1 else prefer)
    if chosen is None or chosen not in splits:
        problem = f"there is no split {chosen!r}" if split else "it has several splits"
        raise DataError(problem, f"choose one with `split`: {', '.join(splits)}", file=name)
    return chosen


def _named(files: Sequence[str]) -> str:
    return ", ".join(files[:_NAMED]) + (f", ... ({len(files)} files)" if len(files) > _NAMED else "")


def _configs(folder: Path) -> tuple[Mapping[str, Any], str]:
    """The `configs` of the README's YAML, with defaults as `datasets` marks them; and what is wrong with them."""
    import yaml
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import metadata_load

    described: dict[str, Any] = {}
    try:
        if (readme := folder / "README.md").is_file():
            described |= metadata_load(readme) or {}
        if (alone := folder / ".huggingface.yaml").is_file():
            described |= yaml.safe_load(alone.read_text(encoding="utf-8")) or {}
        known = {"config_name", "data_files", "data_dir", "default"}
        entries = [{key: entry[key] for key in known & entry.keys()} for entry in described.get("configs") or ()]
        return MetadataConfigs.from_dataset_card_data({"configs": entries}), ""
    except (ValueError, TypeError, AttributeError, OSError, yaml.YAMLError) as error:
        return {}, f"the YAML of README.md cannot be read ({first_line(error)}), so its `configs` are not used"


def _choose_config(configs: Any, name: str, config: str | None) -> Mapping[str, Any]:
    names = ", ".join(configs)
    if config is not None:
        if config not in configs:
            there = f"there are {names}" if configs else f"there is none; leave out {':' + config!r}"
            raise DataError(f"there is no configuration {config!r}", there, file=name)
        return dict(configs[config])
    if not configs:
        return {}
    try:
        default = configs.get_default_config_name()
    except ValueError as error:  # several are marked
        raise DataError(str(error).rstrip("."), f"name one, as in {name}:{next(iter(configs))}", file=name) from error
    if default is None:
        problem = f"it has several configurations ({names}), and none is the default"
        raise DataError(problem, f"name one, as in {name}:{next(iter(configs))}", file=name)
    return dict(configs[default])


def _splits(files: Sequence[str], config: Mapping[str, Any], name: str) -> dict[str, list[str]]:
    """The files of each split."""
    from datasets.data_files import _get_data_files_patterns, sanitize_patterns

    base = posixpath.normpath(str(config.get("data_dir") or "."))
    if config.get("data_files") is None:
        try:
            patterns = _get_data_files_patterns(lambda pattern: _matching(files, base, pattern))
        except FileNotFoundError as error:
            raise DataError(f"no data in {base!r}, which its README names", "correct the README", file=name) from error
        except ValueError as error:
            raise DataError(f"its splits are ambiguous ({error})", "rename the files", file=name) from error
    else:
        patterns = sanitize_patterns(config["data_files"])
    splits = {str(split): _all_matching(files, base, each) for split, each in patterns.items()}
    for split, found in splits.items():
        if not found:
            shown = ", ".join(map(str, patterns[split]))
            problem = f"no data file matches {shown!r}, which its README names for the split {split!r}"
            raise DataError(problem, "correct the README, or download the files", file=name)
    return splits


def _all_matching(files: Sequence[str], base: str, patterns: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(file for pattern in patterns for file in _matching(files, base, pattern)))


def _matching(files: Sequence[str], base: str, pattern: str) -> list[str]:
    """The files that a pattern of `datasets` matches."""
    from fsspec.utils import glob_translate  # type: ignore[import-untyped]

    matches = re.compile(glob_translate(posixpath.normpath(posixpath.join(base, pattern)))).match
    return [file for file in files if matches(file)]
