"""Taking over from an earlier run (`from_run`) what still holds for a new one: features, labels, network, probes.

Each is taken as a whole and copied, so that the earlier run may go afterwards; a stage then finds it done. Where the
labels are others, exact values of pairs that the earlier run measured are used again. What was taken, and why the rest
is computed anew, is kept for the terminal in `taken.json`.
"""

from __future__ import annotations

import filecmp
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.data.facts import open_samples, same_content
from nncift.features.base import FeatureSource
from nncift.features.cache import settings_key
from nncift.features.features import feature_facts
from nncift.labels.pairs import LabelledPairs
from nncift.pipeline.components.model_files import identities
from nncift.pipeline.earlier_runs.growing import begins_with, samples_kept
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.parts import LabelFolder
from nncift.run.storage.checksums import verify
from nncift.run.storage.files import atomic_write, read_json, take_file, write_json

if TYPE_CHECKING:
    from nncift.pipeline.context import Run

_log = logging.getLogger("nncift")


@dataclass
class EarlierRun:
    """The run that a new one takes over from.

    Attributes:
        folder: the earlier run's, which is only read.
        run: the new one.
    """

    folder: RunFolder
    run: Run

    @cached_property
    def config(self) -> dict[str, Any]:
        """Of the earlier run."""
        return dict(read_json(self.folder.config))

    @cached_property
    def same_samples(self) -> dict[str, bool]:
        """Whether pool and targets are the same samples in the same order; a pool that is its own target is both."""
        return {side: self.is_same(side) for side in ("pool", "target")}

    @cached_property
    def kept(self) -> int:
        """How many samples the pool begins with that are this run's, where data were appended to it; else 0."""
        return samples_kept(self)

    def copy_samples(self, side: str) -> None:
        """Take the samples of a side that cannot be read again: from memory, or of a pool that has grown."""
        there, here = self.folder.samples(side), self.run.folder.samples(side)
        for source, copy in ((there.samples, here.samples), (there.facts, here.facts)):
            take_file(source, copy)
        self.note(side, f"{side}: taken as it was read there")

    def take_features(self, side: str, name: str, source: FeatureSource) -> bool:
        """Take the features of a side from a source; whether it was possible."""
        files, other = self.folder.features, self.alike_features(side, source)
        if source.cache_settings() is None or (other is not None and side == "pool" and self.kept):
            return False
        if other is None:
            same = self.is_same(side)
            reason = "it has none of this model and these settings" if same else f"other {side} samples"
            self.note(f"features {name}", f"features {name}: from the cache or computed anew ({reason})")
            return False
        self.note(f"features {name}", f"features {name}: taken")
        take_file(files.array(other), self.run.folder.features.array(name), link=True)
        take_file(files.facts(other), self.run.folder.features.facts(name))
        return True

    def alike_features(self, side: str, source: FeatureSource) -> str | None:
        """The earlier run's features of a side from the same source, by name, if the samples are the same."""
        settings, files = source.cache_settings(), self.folder.features
        if settings is None or not self.is_same(side):
            return None
        key = settings_key(settings)
        return next((name for name in files.names(side) if feature_facts(files, name).get("settings") == key), None)

    def take_vectors(self, sides: Sequence[str]) -> None:
        """Take the vectors of these sides, where influence is exact for every pair, as far as they hold."""
        there, here = self.folder.vectors, self.run.folder.vectors
        for side in sides:
            where = "pool" if side == "target" and self.run.own_target else side
            if where == "pool" and self.kept:
                continue  # see `first_vectors`
            reason = self.why_other_vectors(side)
            self.note(f"vectors {side}", f"vectors of the {side}: {f'computed anew ({reason})' if reason else 'taken'}")
            if reason:
                continue
            if there.notes.exists():
                cut = {*read_json(there.notes)["cut"]} & {*self.run.samples[where].rows["id"]}
                cut |= {*read_json(here.notes)["cut"]} if here.notes.exists() else set()
                write_json(here.notes, {"cut": sorted(cut)})
            for file in ("array", "sparse"):
                take_file(getattr(there, file)(side), getattr(here, file)(side), link=True)
            take_file(there.statistics, here.statistics, link=True)

    def why_other_vectors(self, side: str) -> str:
        """Why the vectors of a side do not hold; empty where they do."""
        where = "pool" if side == "target" and self.run.own_target else side
        traits = self.run.function.traits
        sides = ("pool", *(() if traits.relative_to_pool else ("target",)), "known") if traits.relative else (side,)
        sides = tuple(dict.fromkeys((*sides, where)))
        others = [one for one in sides if not self.is_same(one)]
        if reason := self._other_function() or (f"other {others[0]} samples" if others else ""):
            return reason
        there, relative = self.folder.vectors, traits.relative
        if self.kept and relative and not there.statistics.exists():
            return f"the values of {self.run.function.name} depend on all samples"
        needed = {side, *self.run.samples} if self.kept and relative else {side}
        return "" if all(map(there.is_finished, needed)) else "it has none"

    def take_labels(self) -> bool:
        """Take finished labels that were planned and measured alike; whether it was possible."""
        there, here = self.folder.labels, self.run.folder.labels
        if reason := self.other_labels():
            self.note("labels", f"labels: computed anew ({reason})")
            return False
        self.note("labels", f"labels: {len(LabelledPairs.load(there.labels)):,} pairs taken")
        for part in (*_parts(there), there):
            to = here if part is there else here.part(part.path.name)
            for source, copy in ((part.notes, to.notes), (part.history, to.history), (part.labels, to.labels)):
                take_file(source, copy)
        take_file(self.folder.function, self.run.folder.function)
        take_file(self.folder.models, self.run.folder.models)
        take_file(there.plan, here.plan)  # last: labels that have a plan have been begun
        return True

    def take_network(self) -> None:
        """Take the network and its fidelity, if what it was fitted to is the same."""
        here = self.run.folder
        if reason := self._other_network():
            self.note("network", f"network: fitted anew ({reason})")
            return
        self.note("network", "network and fidelity: taken")
        if not here.network.exists():
            with atomic_write(here.network) as temporary:
                temporary.mkdir()
                for file in self.folder.network.iterdir():
                    verify(file)
                    shutil.copyfile(file, temporary / file.name)
        take_file(self.folder.fidelity, here.fidelity)

    def take_probes(self) -> None:
        """Take the probes, if the same network chose as many."""
        there, here = self.folder.probes, self.run.folder.probes
        weights = "model.safetensors"
        if not there.labels.exists() or self.config.get("probes") != self.run.config.probes:
            reason = "its probes are others"
        elif not _equal(self.folder.network / weights, self.run.folder.network / weights):
            reason = "the network differs"
        else:
            reason = self._other_values()
        if reason:
            self.note("probes", f"probes: chosen anew ({reason})")
            return
        self.note("probes", "probes: its targets taken" if self.kept else "probes: taken")
        if not self.kept:  # new samples are measured on the same targets
            take_file(there.notes, here.notes)
            take_file(there.labels, here.labels)
        take_file(there.plan, here.plan)

    def measured(self) -> LabelledPairs | None:
        """Pairs whose exact values hold, each once; kept in the new run before its first pair is measured."""
        path = self.run.folder.measured
        if path.exists():
            return LabelledPairs.load(path)
        if self._other_values() or self.run.function.traits.relative:
            return None
        folders = (self.folder.labels, self.folder.probes, *_parts(self.folder.shortlist))
        files = [folder.labels for folder in folders if folder.labels.exists()]
        files += [self.folder.measured] if self.folder.measured.exists() else []
        if not files:
            return None
        pairs = LabelledPairs.joined([LabelledPairs.load(file) for file in files])
        codes = pairs.pool_index.astype(np.int64) << 32 | pairs.target_index
        pairs = pairs.take(np.sort(np.unique(codes, return_index=True)[1]))
        pairs.save(path)
        return pairs

    def take_difficulty(self, plan: Mapping[str, Any]) -> LabelledPairs | None:
        """Difficulty of samples that holds, kept in the new run before its first is computed.

        Args:
            plan: the new run's, with the function and its models.
        """
        there, here = self.folder.difficulty, self.run.folder.difficulty
        if not here.source.exists():
            taken = there.labels.exists() and self.is_same("pool")
            taken = taken and {**read_json(there.plan), "rows": plan["rows"]} == plan
            if taken:
                take_file(there.labels, here.known)
                number = len(LabelledPairs.load(here.known))
                self.note("difficulty", f"difficulty: {number:,} values of its subset taken")
            write_json(here.source, {"run": str(self.folder.path), "taken": taken})
        return LabelledPairs.load(here.known) if here.known.exists() else None

    def note(self, what: str, line: str) -> None:
        """Keep a line for the terminal: what was taken, or why not."""
        path = self.run.folder.taken
        begun: dict[str, Any] = {"run": str(self.folder.path), "notes": {}}
        stored = dict(read_json(path)) if path.exists() else begun
        if stored["notes"].get(what) != line:
            _log.info("from %s: %s", self.folder.path, line)
            stored["notes"][what] = line
            write_json(path, stored)

    def is_same(self, side: str) -> bool:
        """Whether the samples of a side are the same, or begin with this run's where data were appended."""
        if side == "pool" and self.kept:
            return True
        there, rows = self.folder.samples(side), self.run.samples.get(side)
        if rows is None or not there.facts.exists():
            return rows is None and not there.facts.exists()
        path = self.folder.candidates if side == "pool" else there.samples
        other = open_samples(path)  # a damaged one is named: it would cost the labels
        return same_content(rows.rows, other)

    def _other_samples(self) -> str:
        return next((f"other {side} samples" for side, same in self.same_samples.items() if not same), "")

    def _other_values(self) -> str:
        """Why exact values do not hold; empty where they do."""
        return self._other_function() or self._other_samples()

    def _other_function(self) -> str:
        """Why the influence function or its models are others; empty where they are the same."""
        described = self.run.describe_influence()
        if not self.folder.function.exists():
            return "it measured nothing"
        if (stored := read_json(self.folder.function)) != described:
            names = [name for name in stored | described if stored.get(name) != described.get(name)]
            if "name" in names:  # its options are others, too
                return f"the influence function differs: it was {stored.get('name')}"
            return f"the influence function differs: {', '.join(sorted(names))}"
        if self.folder.models.exists() and read_json(self.folder.models) != identities(self.run.function):
            return "the files of its model have changed"
        return ""

    def other_labels(self) -> str:
        """Why the labels do not hold; empty where they do."""
        config, rounds = self.run.config, self.run.config.in_rounds
        if self.config.get("labels_from") is not None or not self.folder.labels.labels.exists():
            return "it has none"
        ours, theirs = self.run.labels, str(self.config.get("labels") or self.run.default_labels)
        if ours != theirs:
            return f"`labels` {theirs} there"
        names = ("seed", "fidelity", "recipe") if rounds else ("seed",)
        if differ := [name for name in names if getattr(config, name) != self.config.get(name)]:
            return f"`{differ[0]}` {self.config.get(differ[0])} there"
        return self._other_values() or (self._other_features() if rounds else "")

    def _other_network(self) -> str:
        config, here, there = self.run.config, self.run.folder, self.folder
        if not there.network.exists() or not there.fidelity.exists():
            return "it has none"
        for name in ("recipe", "seed", "labels_from"):
            if getattr(config, name) != self.config.get(name):
                return f"`{name}` {self.config.get(name)} there"
        if config.network is not None or self.config.get("network") is not None:
            return "it has a prior"
        files = ((there.labels.plan, here.labels.plan), (there.labels.history, here.labels.history))
        if not all(_equal(*pair) for pair in (*files, (there.labels.labels, here.labels.labels))):
            return "the labels differ"
        described = read_json(there.network / "config.json").get("description", {}).get("features")
        return "the features differ" if described != self.run.features.describe() else self._other_features()

    def _other_features(self) -> str:
        here, there = self.run.folder.features, self.folder.features
        for side in ("pool", "target"):
            names = sorted({*here.names(side), *there.names(side)})
            begins = side == "pool" and self.kept > 0
            if not all((begins_with if begins else _equal)(there.array(name), here.array(name)) for name in names):
                return "the features differ"
        return self._other_samples()


def _parts(folder: LabelFolder) -> Sequence[LabelFolder]:
    """The finished parts of labels or of a shortlist."""
    paths = sorted(folder.path.iterdir()) if folder.path.is_dir() else []
    return [part for part in map(LabelFolder, paths) if part.labels.is_file()]


def _equal(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes, or neither exists."""
    if not one.exists() or not other.exists():
        return one.exists() == other.exists()
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
