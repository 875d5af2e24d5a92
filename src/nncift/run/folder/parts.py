"""The folders within a run folder, and where each file of them lies: samples, features, labels, the first cut.

Nobody else spells a file name of them; `folder.py` has those of the run folder itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class SampleFolder:
    """The samples of one side (pool, target, known), and the lists of the rows that were left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = path / "samples.arrow"  # memory-mapped from here
        self.facts = path / "facts.json"  # what was read; written last, so that a folder that has it is finished
        self.rejected = path / "rejected.jsonl"  # rows that cannot be used
        self.excluded = path / "excluded.jsonl"  # rows that also stand in a test set
        self.duplicates = path / "duplicates.jsonl"  # exact duplicates of earlier rows
        self.near_duplicates = path / "near_duplicates.jsonl"  # samples that are not chosen, each with its twin

    @property
    def is_finished(self) -> bool:
        """Whether all files are there."""
        return all(path.is_file() for path in (self.facts, self.samples, *self.lists))

    @property
    def lists(self) -> tuple[Path, ...]:
        """The rows that were left out."""
        return self.rejected, self.excluded, self.duplicates

    @property
    def is_begun(self) -> bool:
        """Whether samples were written here, so that its files are no data to choose from."""
        return self.samples.exists() and (self.facts.exists() or self.rejected.exists())


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
        return sorted(name for name in names if name.split(".")[0] == side and self.is_finished(name))

    def is_finished(self, name: str) -> bool:
        """Whether an array and its facts are there."""
        return self.facts(name).is_file() and self.array(name).is_file()

    def found(self, name: str) -> Path:
        """The rows of an unfinished array that were found in the cache; `found_facts` is written after it."""
        return self.path / f"{name}-found.npy"

    def found_facts(self, name: str) -> Path:
        """Which rows these are."""
        return self.path / f"{name}-found.facts"

    def begun(self, name: str) -> Path:
        """What version 0.1 began unfinished shards with."""
        return self.path / f"{name}-begun.json"


class FirstCutFolder:
    """What the first cut keeps of the pool; the other files of a run that number pool samples then number these."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = path / "samples.arrow"  # those that are kept; memory-mapped from here
        self.rows = path / "rows.npy"  # their rows in the pool, int64 (k,)
        self.table = path / "rows.parquet"  # every sample, and whether it is kept
        self.facts = path / "facts.json"  # `FirstCut`; written last

    @property
    def is_finished(self) -> bool:
        """Whether all files are there."""
        return all(path.is_file() for path in (self.samples, self.rows, self.table, self.facts))


class LabelFolder:
    """Exact influence of some pairs: labels, a round of them, probes, or a part of a shortlist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "plan.json"  # which pairs; written before the first is measured
        self.labels = path / "labels.parquet"  # the finished values
        self.notes = path / "notes.json"  # which samples were cut
        self.work = path / "work.json"  # what exact influence of all pairs would take
        self.history = path / "rounds.json"  # of active learning
        self.source = path / "source.json"  # checksums of the files of imported values
        self.known = path / "known.parquet"  # values of an earlier run that hold
        self.among_targets = path / "among-targets" / "labels.parquet"  # of the labelled targets on each other
        self.warm_up = path / "warm-up"  # checkpoints of an influence function that trains first
        self.without_labels = path / "without-labels"  # of a similarity that the labels are compared with, until then

    def part(self, name: str) -> LabelFolder:
        """A part that is measured by itself."""
        return LabelFolder(self.path / name)


class ExplorerFolder:
    """What the explorer has made of a finished run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.map = path / "map.npy"  # two coordinates of each pool sample
        self.table = path / "samples.parquet"  # a row for each of them
