"""The run folder: where each file lies, the lock, the log, and the config that the folder belongs to.

The folder is the state of a run: a stage whose file exists is done. Nobody else spells a file name of it; the folders
within it are in `parts.py`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nncift.errors import ConfigError, NNCIFTError, RunError
from nncift.run.folder.parts import ExplorerFolder, FeatureFolder, FirstCutFolder, LabelFolder, SampleFolder
from nncift.run.storage.checksums import (
    CHECKSUMS,
    PARTIAL,
    SHARD_FILE,
    Checksums,
    begin,
    cut_torn_line,
    text_hash,
    verify_folder,
)
from nncift.run.storage.files import json_text, read_json, remove, working_in, write_json
from nncift.run.storage.refusals import cannot_lock, refuse_damaged
from nncift.run.storage.vectors import VectorFolder

NETWORK_FILES = ("config.json", "model.safetensors")


class RunFolder:
    """The folder of a run; a path wherever one is taken.

    Args:
        path: where it lies.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.function = self.path / "function.json"  # what all exact influence of the run was measured with
        self.models = self.path / "models.json"  # fingerprints of the models it was measured with
        self.taken = self.path / "taken.json"  # what was taken from an earlier run, line by line
        self.prefix = self.path / "prefix.npy"  # samples that an earlier run selected, which come first
        self.measured = self.path / "measured.parquet"  # exact values of an earlier run that hold
        self.costs = self.path / "costs.json"
        self.log = self.path / "run.log"
        self.lock = self.path / ".lock"
        self.tokens = self.path / "tokens.npy"  # of each pool sample, for a token budget
        self.network = self.path / "network"
        self.fidelity = self.path / "fidelity.json"
        self.influence = self.path / "influence.npy"  # mean over the targets of each pool sample
        self.known = self.path / "known.npy"  # largest influence of the known samples on each target
        self.selection = self.path / "selection.parquet"
        self.subset = self.path / "subset.jsonl"
        self.reasons = self.path / "reasons.json"  # why the first selected samples were chosen
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.first_cut = FirstCutFolder(self.path / "first-cut")
        self.features = FeatureFolder(self.path / "features")
        self.embeddings = FeatureFolder(self.path / "embeddings")  # for near-duplicates alone
        self.vectors = VectorFolder(self.path / "vectors")
        self.labels = LabelFolder(self.path / "labels")
        self.probes = LabelFolder(self.path / "probes")
        self.shortlist = LabelFolder(self.path / "verify")
        self.difficulty = LabelFolder(self.path / "difficulty")  # of the selected samples
        self.verification = self.path / "verify" / "verify.json"
        self.explorer = ExplorerFolder(self.path / "explorer")

    def __fspath__(self) -> str:
        return str(self.path)

    def samples(self, side: str) -> SampleFolder:
        """The samples of "pool", "target" or "known"."""
        return SampleFolder(self.path / side)

    @property
    def candidates(self) -> Path:
        """The samples to choose from: those that the first cut keeps, or else the whole pool."""
        return self.first_cut.samples if self.first_cut.is_finished else self.samples("pool").samples

    @property
    def is_run(self) -> bool:
        """Whether the folder is that of a run, so that its files are no data to choose from."""
        return self.config.is_file() and (self.lock.exists() or self.samples("pool").path.is_dir())

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of checkpoints that an influence function trained, whichever stage asked for them."""
        measured = (self.labels, self.probes, self.shortlist, self.difficulty)
        return sorted({path.parent for part in measured for path in part.path.rglob("epoch-*") if path.is_dir()})

    @property
    def measured_with(self) -> list[Path]:
        """Shards that an influence function keeps beside the values, or their folders: of gradients, of losses, ..."""
        parts = (self.labels, self.probes, self.shortlist, self.difficulty)
        shards = [path for part in parts for path in part.path.rglob("*") if SHARD_FILE.search(path.name)]
        beside = {path.parent for path in shards if LabelFolder(path.parent).plan.exists()}
        return sorted({path if path.parent in beside else path.parent for path in shards})

    @property
    def is_selected(self) -> bool:
        """Whether the subset is chosen and written."""
        return self.selection.is_file() and self.subset.is_file()

    @property
    def is_fitted(self) -> bool:
        """Whether the network is fitted and written."""
        return all((self.network / name).is_file() for name in NETWORK_FILES)

    @contextlib.contextmanager
    def open(self, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Hold the folder's lock inside the block, and check its files, and that its config matches.

        The first call writes the config; a later one compares with it. The operating system drops the lock when the
        process dies, so a killed run never blocks its successor. Of a run that is refused before any work, nothing is
        left.

        Args:
            config: the fields that determine what the run computes.
            defaults: values of the fields that a folder of an earlier version lacks.

        Raises:
            RunError: another process works in this folder, it cannot be made, a file in it is damaged, or the folder is
                removed meanwhile.
            ConfigError: the folder belongs to another config; the message shows the fields that differ.
        """
        self.check(config, defaults)
        with self.locked(), working_in(self.path):
            with refuse_damaged(self.path, "cannot be checked"):
                verify_folder(self.path)
                self.check(config, defaults)
                begun = self._begin(config)
            try:
                with self._logged():
                    yield
            except NNCIFTError:
                if begun and not any(costly.path.exists() for costly in self._costly):
                    self._empty()
                raise
            except FileNotFoundError as error:
                if self.path.is_dir():
                    raise
                problem = f"{self.path} was removed while the run was working in it"
                raise RunError(problem, "run the same command again") from error

    def check(self, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        """Refuse a folder that is not a run's, or another config's; writes nothing. Arguments as `open`.

        Raises:
            RunError: the folder holds something else.
            ConfigError: the folder belongs to another config; the message shows the fields that differ.
        """
        if not self.config.exists():
            if foreign := self._held():
                self._check_lost_config(config, foreign)
            return
        stored, given = dict(defaults or {}), json.loads(json_text(dict(config)))
        stored = json.loads(json_text(stored)) | read_json(self.config)
        names = sorted(name for name in {**stored, **given} if stored.get(name) != given.get(name))
        if names:
            shown = ", ".join(f"{name}: {stored.get(name)!r} there, {given.get(name)!r} now" for name in names)
            raise ConfigError(f"{self.path} holds a run with another config ({shown})", "choose another `output`")

    def _held(self) -> list[str]:
        """What the folder holds beside what a run makes before its config."""
        own = (self.lock.name, PARTIAL, CHECKSUMS)
        held = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        return [name for name in held if not name.startswith(own)]

    def _check_lost_config(self, config: Mapping[str, Any], held: list[str]) -> None:
        """Refuse a folder without a config, unless it was a run's with this one."""
        if (checksums := Checksums.of(self.config)) is None or checksums.root != self.path.absolute():
            problem = f"{self.path} is not empty and not a run of nncift (it holds {held[0]!r})"
            raise RunError(problem, "choose another `output`")
        if text_hash(json_text(dict(config))) not in checksums.found.get(self.config.name, ()):
            problem = f"{self.config} was removed, and these are not the options that the run had"
            raise ConfigError(problem, "give the same options, or choose another `output`")

    def _begin(self, config: Mapping[str, Any]) -> bool:
        """Write the config of a new run, or of one that lost it; whether it is new."""
        cut_torn_line(self.path)
        if self.config.exists():
            return False
        new = not self._held()
        if new:
            begin(self.path)
        write_json(self.config, dict(config))
        return new

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock inside the block; a folder made for it is removed where no run was begun.

        Raises:
            RunError: another process works in this folder, or it cannot be made.
        """
        from filelock import FileLock, Timeout

        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        lock = FileLock(self.lock, blocking=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            if not self.lock.exists():  # the process that held it before was refused, and removed it
                raise Timeout(str(self.lock))
        except Timeout as error:
            problem = f"another process is working in {self.path}"
            raise RunError(problem, "wait until it ends, or work in another folder") from error
        except OSError as error:
            _remove_empty(made)
            raise cannot_lock(self.lock, error) from error
        try:
            yield
        finally:
            if not self.config.exists():  # refused before any work
                self.lock.unlink(missing_ok=True)
            lock.release()
            _remove_empty(made)

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        """Append the messages of the logger "nncift" inside the block to the log: finished stages, halved batches."""
        with refuse_damaged(self.log, "cannot be written"):
            handler = _Diary(self.log, encoding="utf-8")
        logger = logging.getLogger("nncift")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            with contextlib.suppress(OSError):
                handler.close()

    @property
    def _costly(self) -> tuple[FeatureFolder | LabelFolder | VectorFolder | FirstCutFolder, ...]:
        return self.features, self.labels, self.vectors, self.first_cut

    def _empty(self) -> None:
        """Leave nothing of a run that was refused before any work, so that its folder takes another config."""
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path.name != self.lock.name:
                remove(path)


class _Diary(logging.FileHandler):
    """A log that a full disk cuts short, without a word: what the run itself cannot write, it reports."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing on the terminal."""


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
