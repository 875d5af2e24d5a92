"""The run folder: where each file lies, the lock, the log, and the config that the folder belongs to.

The folder is the state of a run: a stage whose file exists is done. Nobody else spells a file name of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncift.errors import ConfigError, NNCIFTError, RunError
from nncift.run.files import PARTIAL, read_json, remove, write_json


class SampleFolder:
    """The samples of one side (pool, target, known), and the lists of the rows that were left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = path / "samples.arrow"  # memory-mapped from here
        self.facts = path / "facts.json"  # what was read; written last, so that a folder that has it is finished
        self.rejected = path / "rejected.jsonl"  # rows that cannot be used
        self.excluded = path / "excluded.jsonl"  # rows that also stand in a test set
        self.duplicates = path / "duplicates.jsonl"  # exact duplicates of earlier rows


@dataclass(frozen=True)
class FeatureFolder:
    """Arrays with a row for each sample, by name, each with a JSON file of facts that is written last."""

    path: Path

    def array(self, name: str) -> Path:
        """The rows, (n, width)."""
        return self.path / f"{name}.npy"

    def facts(self, name: str) -> Path:
        """What they are."""
        return self.path / f"{name}.json"

    def names(self, side: str) -> list[str]:
        """Finished arrays of "pool", "target" or "known": `side` itself, then those named after it."""
        names = (path.stem for path in self.path.glob(f"{side}*.json"))
        return sorted(name for name in names if name.split(".")[0] == side and self.array(name).is_file())

    def found(self, name: str) -> Path:
        """The rows of an unfinished array that were found in the cache; `found_facts` is written after it."""
        return self.path / f"{name}-found.npy"

    def found_facts(self, name: str) -> Path:
        """Which rows these are."""
        return self.path / f"{name}-found.facts"

    def begun(self, name: str) -> Path:
        """What version 0.1 began unfinished shards with."""
        return self.path / f"{name}-begun.json"


class LabelFolder:
    """Exact influence of some pairs: labels, a round of them, probes, or a part of a shortlist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "plan.json"  # which pairs; written before the first is measured
        self.labels = path / "labels.parquet"  # the finished values
        self.notes = path / "notes.json"  # which samples were cut
        self.history = path / "rounds.json"  # of active learning
        self.source = path / "source.json"  # size and time of a file of imported values
        self.warm_up = path / "warm-up"  # checkpoints of an influence function that trains first

    def part(self, name: str) -> LabelFolder:
        """A part that is measured by itself."""
        return LabelFolder(self.path / name)


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
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.features = FeatureFolder(self.path / "features")
        self.labels = LabelFolder(self.path / "labels")
        self.probes = LabelFolder(self.path / "probes")
        self.shortlist = LabelFolder(self.path / "verify")
        self.verification = self.path / "verify" / "verify.json"

    def __fspath__(self) -> str:
        return str(self.path)

    def samples(self, side: str) -> SampleFolder:
        """The samples of "pool", "target" or "known"."""
        return SampleFolder(self.path / side)

    @property
    def is_run(self) -> bool:
        """Whether the folder is a run's: a saved network has a config.json too, but no samples."""
        return self.config.is_file() and self.samples("pool").path.is_dir()

    @property
    def is_selected(self) -> bool:
        """Whether the subset is chosen and written."""
        return self.selection.exists() and self.subset.exists()

    @contextlib.contextmanager
    def open(self, config: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder's lock inside the block, and check that the folder's config matches.

        The first call writes the config; a later one compares with it. The operating system drops the lock when the
        process dies, so a killed run never blocks its successor. Of a run that is refused before any work, nothing is
        left.

        Raises:
            RunError: another process works in this folder, or it cannot be made.
            ConfigError: the folder belongs to another config; the message shows the fields that differ.
        """
        with self._locked():
            self.check(config)
            begun = not self.config.exists()
            if begun:
                write_json(self.config, dict(config))
            try:
                with self._logged():
                    yield
            except NNCIFTError:
                if begun and not any(costly.path.exists() for costly in (self.features, self.labels)):
                    self._empty()
                raise

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a folder that is not a run's, or another config's; writes nothing.

        Raises:
            RunError: the folder holds something else.
            ConfigError: the folder belongs to another config; the message shows the fields that differ.
        """
        if not self.config.exists():
            held = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
            foreign = [name for name in held if not name.startswith((self.lock.name, PARTIAL))]
            if foreign:
                raise RunError(
                    f"{self.path} is not empty and not a run of nncift (it holds {foreign[0]!r})",
                    "choose another `output`",
                )
            return
        stored, given = read_json(self.config), json.loads(json.dumps(dict(config)))
        names = sorted(name for name in {**stored, **given} if stored.get(name) != given.get(name))
        if names:
            shown = ", ".join(f"{name}: {stored.get(name)!r} there, {given.get(name)!r} now" for name in names)
            raise ConfigError(f"{self.path} holds a run with another config ({shown})", "choose another `output`")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.lock, blocking=False)
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"another process is working in {self.path}", "wait for it, or choose another `output`"
            ) from error
        except OSError as error:
            raise RunError(
                f"cannot make or lock the run folder {self.path} ({error.strerror})", "choose another `output`"
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        """Append the messages of the logger "nncift" inside the block to the log: finished stages, halved batches."""
        logger, handler = logging.getLogger("nncift"), logging.FileHandler(self.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            handler.close()

    def _empty(self) -> None:
        """Leave nothing of a run that was refused before any work, so that its folder takes another config."""
        for path in self.path.iterdir():
            if path.name != self.lock.name:
                remove(path)
