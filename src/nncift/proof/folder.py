"""The folder of an evaluation or comparison: where each file lies; several processes may work on one.

What is finished has its file, so the same call resumes, and processes with the same folder share the work.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from nncift.errors import RunError
from nncift.models.identity import identify, is_own_folder
from nncift.run.folder.folder import RunFolder
from nncift.run.storage.checksums import CHECKSUMS, begin, cut_torn_line, sealed_files, verify_folder
from nncift.run.storage.files import read_json, remove, write_json
from nncift.run.storage.refusals import cannot_lock, refuse_damaged

T = TypeVar("T")


class ProofFolder:
    """The folder of an evaluation or comparison; a path wherever one is taken.

    Args:
        path: where it lies.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.run = RunFolder(path)  # config and samples, which lie as in a run
        self.choices = self.path / "choices"  # what each selector chose
        self.trials = self.path / "trials"  # what came of each use of a choice
        self.exact = self.path / "exact"  # exact influence, a folder for each function
        self.runs = self.path / "runs"  # of estimated influence, a run for each function and budget
        self.adapter = self.path / "adapter"  # of an evaluation, that of the first seed
        self.studies = self.path / "studies"  # networks of the paper's studies, a folder for each function
        self.judge = self.path / "judge.json"  # how a judge graded known answers
        self.results = self.path / "results.json"
        self.costs = self.path / "costs.json"  # of a comparison's choices and trials
        self.table = self.path / "results.csv"
        self.studied = self.path / "studies.csv"
        self.markdown = self.path / "results.md"
        self.report = self.path / "report.html"

    def __fspath__(self) -> str:
        return str(self.path)

    @contextlib.contextmanager
    def open(self, config: Mapping[str, Any], models: Sequence[Any] = ()) -> Iterator[None]:
        """Check the folder's config and files inside its lock, or begin it; the block runs with the lock held.

        Args:
            config: the fields that determine the results.
            models: the models that they depend on, as the user gave them.

        Raises:
            ConfigError: the folder belongs to another config; the message shows the fields that differ.
            RunError: it holds something else, cannot be made, a file in it is damaged, or a model has changed.
        """
        self.run.check(config)
        with self.locked():
            with refuse_damaged(self.path, "cannot be checked"):
                new = not self.run.config.exists()
                if new and not (self.path / CHECKSUMS).exists():
                    begin(self.path)
                cut_torn_line(self.path)
                verify_folder(self.path)
                self._check_costs()
                self.run.check(config)
                if new:
                    write_json(self.run.config, dict(config))
            try:
                self._check_models(models)
                yield
            except Exception:
                if new:  # refused before any work
                    for path in self.path.iterdir():
                        if path != self.run.lock:
                            remove(path)
                raise

    def _check_models(self, models: Sequence[Any]) -> None:
        """Refuse models whose files have changed; those that the folder has no record of are recorded as they are."""
        path = self.run.models
        stored = dict(read_json(path)) if path.exists() else {}
        found = {name: identify(name, stored.get(name)) for name in models if is_own_folder(name)}
        for name, identity in found.items():
            if name in stored and stored[name]["content"] != identity["content"]:
                problem = f"the files of the model {name!r} have changed since {self.path} was written"
                raise RunError(problem, "restore them, or choose another `output`")
        if found != {name: stored.get(name) for name in found}:
            write_json(path, stored | found)

    def _check_costs(self) -> None:
        """Refuse damaged costs of unfinished work, which other processes may be writing or removing meanwhile."""
        for path in sealed_files(self.path):
            if path == self.costs:  # written again at the end, and without a seal by earlier versions
                continue
            try:
                read_json(path, sealed=True)
            except RunError:
                if path.exists():
                    raise

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock inside the block, after the other processes that do.

        Raises:
            RunError: the folder cannot be made.
        """
        from filelock import FileLock

        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.run.lock)
            lock.acquire()
        except OSError as error:
            raise cannot_lock(self.run.lock, error) from error
        try:
            yield
        finally:
            if not self.run.config.exists():
                self.run.lock.unlink(missing_ok=True)
            lock.release()
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()


@contextlib.contextmanager
def claimed(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a file that is to be made; whether it is ours to make, inside the block.

    Without `wait` it is not while another process makes it; in no case once it is there.
    """
    with held(path, wait=wait) as ours:
        yield ours and not path.exists()


@contextlib.contextmanager
def held(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock that is named after a path; whether we do, which without `wait` another process may prevent."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def share(paths: Mapping[Path, Callable[[], None]]) -> None:
    """Make the files that are not there, each in one of the processes that work on the folder.

    First those that no other process is making, then, one by one, those whose process may have been killed.
    """

    def alone(make: Callable[[], None]) -> Callable[[list[Path]], None]:
        return lambda _: make()

    share_groups({path: Group({path: path}, alone(make)) for path, make in paths.items()})


@dataclass(frozen=True)
class Group(Generic[T]):
    """Files that one process makes together.

    Attributes:
        files: by what each is made for, such as a budget.
        make: makes those of some keys of `files`.
    """

    files: Mapping[T, Path]
    make: Callable[[list[T]], object]

    @property
    def missing(self) -> list[T]:
        """The keys of the files that are not there."""
        return [key for key, path in self.files.items() if not path.exists()]


def share_groups(groups: Mapping[Path, Group[Any]]) -> None:
    """Make the files that are not there as `share` does, each group under the lock that is named after its path.

    Which files those are is seen under the lock: a process with other options may have made some of a group alone.
    """
    for wait in (False, True):
        for path, group in groups.items():
            if group.missing:
                with held(path, wait=wait) as ours:
                    if ours and (missing := group.missing):
                        group.make(missing)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The config of a finished run or evaluation."""
    return dict(read_json(RunFolder(path).config))
