"""A run's data set and network on the Hugging Face hub, or the same files in a folder."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from nncift.errors import ConfigError, NNCIFTError, RunError, first_line
from nncift.handover.data_set import write_data_set
from nncift.handover.folders import new_folder, replaced_folder
from nncift.handover.network import write_network
from nncift.handover.provenance import facts_of
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.run.folder.records import counted
from nncift.run.progress import drawn, interactive, moving
from nncift.run.storage.files import write_json

Part = Literal["data", "network"]

FACTS = "nncift.json"  # how it was chosen, for programs; a repository that has it is ours to write again
_FOLDERS = {"data": "dataset", "network": "network"}
_KINDS = {"data": "dataset", "network": "model"}
_SHARDS = ["data/*-of-*.parquet", "sft/*-of-*.parquet"]  # of an earlier push, which may have had more
_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True)
class Pushed:
    """What was written.

    Attributes:
        places: part, "data" or "network", to its address on the hub or its folder.
        samples: in the data set.
        note: why a part is missing; empty where none is.
    """

    places: dict[Part, str]
    samples: int
    note: str = ""

    def __str__(self) -> str:
        titles = {"data": f"Data set of {counted(self.samples, 'sample')}", "network": "InfluenceNetwork"}
        lines = [f"{titles[part]}: {place}" for part, place in self.places.items()]
        return "\n".join([*lines, *filter(None, [self.note])])


def push(
    run: str | os.PathLike[str],
    repo: str,
    *,
    only: Part | None = None,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
    to_folder: str | os.PathLike[str] | None = None,
    api: Any = None,
    progress: bool = True,
) -> Pushed:
    """Write a run's subset and its network, each with a card, to repositories of the hub.

    The token is that of the hub's login or of HF_TOKEN. The cards and configs name no path, folder or user; the rows
    are the data's own.

    Args:
        run: the folder of a finished run.
        repo: "org/name", both of the data set and of the model.
        only: "data" or "network"; both unless given, the network where the run has one.
        private: of repositories that are made now; those that exist stay as they are.
        revision: the branch to write to, made if there is none; the main one unless given.
        license: for the cards, as the hub names it, such as "apache-2.0".
        to_folder: write the same files to the folders `dataset` and `network` there, and nothing to the hub.
        api: a `huggingface_hub.HfApi` with other settings, such as another address of the hub.
        progress: show progress bars.

    Raises:
        ConfigError: an option has a value that cannot be used.
        RunError: the run is not finished, has no network, or the hub cannot be reached or refuses the login.
    """
    _check(repo, only, license)
    if to_folder is not None and (revision is not None or private):
        name = "private" if private else "revision"
        raise ConfigError(f"`{name}` is for the hub, and `to_folder` writes nothing there", "leave one of them out")
    folder = None if to_folder is None else new_folder(to_folder)
    finished = FinishedRun.open(run)
    parts: list[Part] = ["data", "network"] if only is None else [only]
    note = ""
    if only is None and not finished.folder.is_fitted:
        parts, note = ["data"], "No network: the run has none of its own."
    if folder is not None:
        with replaced_folder(folder, {"repo": repo}) as temporary:
            _write(finished, temporary, parts, repo, license, progress)
        places = {part: str(folder / _FOLDERS[part]) for part in parts}
        return Pushed(places, len(finished.selection), note)
    from huggingface_hub import HfApi

    api = HfApi() if api is None else api
    with _one_line(repo):
        api.whoami()
        for part in parts:
            _check_ours(api, repo, _KINDS[part], revision)
    with tempfile.TemporaryDirectory() as path:
        _write(finished, Path(path), parts, repo, license, progress)
        with _one_line(repo), _bars_of_hub(progress and interactive()):
            places = {
                part: _upload(api, Path(path) / _FOLDERS[part], repo, part, private=private, revision=revision)
                for part in parts
            }
    return Pushed(places, len(finished.selection), note)


def _check(repo: str, only: str | None, license: str | None) -> None:
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith(".git"):
        raise ConfigError(f"{repo!r} is not the name of a repository", "give ORGANISATION/NAME or USER/NAME")
    if only not in (None, *_FOLDERS):
        raise ConfigError(f"`only` is {only!r}", "give data or network")
    if license is not None and not _LICENSE.fullmatch(license):
        raise ConfigError(f"`license` {license!r} is no name of a license on the hub", "give one such as apache-2.0")


def _write(run: FinishedRun, folder: Path, parts: list[Part], repo: str, license: str | None, shown: bool) -> None:
    """The folder of each part."""
    for part in parts:
        place = folder / _FOLDERS[part]
        if part == "network":
            write_network(run, place, repo, license)
        else:
            rows = 2 * len(run.selection)  # in two configurations
            with (
                tqdm(total=rows, desc="writing the data set", unit=" rows", **drawn(shown)) as bar,
                moving(bar, rows),
            ):
                write_data_set(run, place, repo, license)
        write_json(place / FACTS, facts_of(run))


@contextlib.contextmanager
def _bars_of_hub(shown: bool) -> Iterator[None]:
    """The hub's own bars of an upload, which it shows by default; inside the block not unless `shown`."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _check_ours(api: Any, repo: str, kind: str, revision: str | None) -> None:
    """Refuse a repository with files of others.

    Raises:
        RunError: it has some, and was not pushed from a run.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        files = set(api.list_repo_files(repo, repo_type=kind, revision=revision))
    except RepositoryNotFoundError:
        return
    except RevisionNotFoundError:  # a new branch begins with the files of the main one
        return _check_ours(api, repo, kind, None)
    if FACTS not in files and (others := sorted(files - {".gitattributes", "README.md"})):
        raise RunError(f"the {kind} {repo} is there, and has files of others ({others[0]})", "give another name")


def _upload(api: Any, folder: Path, repo: str, part: Part, *, private: bool, revision: str | None) -> str:
    """One commit; the address of the repository."""
    kind = _KINDS[part]
    made = api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
    if revision is not None:
        api.create_branch(repo, branch=revision, repo_type=kind, exist_ok=True)
    api.upload_folder(
        repo_id=repo,
        folder_path=str(folder),
        repo_type=kind,
        revision=revision,
        commit_message="Subset chosen by nncift" if part == "data" else "InfluenceNetwork of nncift",
        delete_patterns=_SHARDS if part == "data" else None,
    )
    return str(made) if revision is None else f"{made}/tree/{revision}"


@contextlib.contextmanager
def _one_line(repo: str) -> Iterator[None]:
    """Errors of the hub as a RunError of one line."""
    from huggingface_hub import errors

    try:
        yield
    except NNCIFTError:
        raise
    except errors.LocalTokenNotFoundError as error:
        raise RunError("you are not logged in to the Hugging Face hub", _LOG_IN) from error
    except errors.OfflineModeIsEnabled as error:
        raise RunError("the hub is switched off (HF_HUB_OFFLINE)", "unset it, or give `to_folder`") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 401:
            raise RunError("the hub refuses the login", _LOG_IN) from error
        if status in (403, 404):
            raise RunError(f"the login may not write to {repo} on the hub", f"check its name, or {_LOG_IN}") from error
        raise RunError(f"the hub refuses {repo} ({first_line(error)})", "correct that, and push again") from error
    except Exception as error:  # no network, a hub that is down: each has its own class
        raise RunError(
            f"cannot reach the Hugging Face hub ({first_line(error)})", "check the network, or give `to_folder`"
        ) from error
