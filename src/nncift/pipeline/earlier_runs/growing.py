"""Growing use: data appended to the pool of an earlier run, and selections that go on where an earlier one ended.

A pool that has grown begins with the earlier run's samples, as they were read there, so their features, vectors and
labels hold, under the same numbers; only the new samples get features or vectors. Where the influence function is
relative, the new samples' vectors are on the scale of the earlier ones (`InfluenceFunction.statistics`), if it has one.

Greedy choices are nested: the samples chosen first are the choice of a smaller budget. So a larger budget begins with
an earlier run's selection, wherever objective and influence are the same and nothing else depends on the budget.
"""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import default_fields
from nncift.data.appending import rows_before
from nncift.data.facts import open_pool
from nncift.errors import ConfigError
from nncift.features.base import FeatureSource
from nncift.features.growing import FirstFeatures
from nncift.pipeline.choosing.forms import form_of
from nncift.pipeline.configuration.options import GROUPS
from nncift.run.storage.checksums import content_hash
from nncift.run.storage.files import read_array, read_json, read_tensors, take_file, write_array, write_json
from nncift.run.storage.vectors import read_vectors
from nncift.selection.objectives.table import GRAPH_CUT, OBJECTIVES, Objective
from nncift.selection.selection import Selection

if TYPE_CHECKING:
    from nncift.pipeline.context import Run
    from nncift.pipeline.earlier_runs.takeover import EarlierRun

_ROWS = 4096  # copied or compared at a time
_NESTED = {"budget", "objective", "eta", "nu", "seed", "weights", "difficulty", "phases", "order"}
"""Options of the choice under which greedy choices are nested, or which arrange the subset afterwards."""


def samples_kept(earlier: EarlierRun) -> int:
    """How many samples the pool begins with that are the earlier run's, where data were appended to it; else 0."""
    there = earlier.folder.samples("pool")
    if not earlier.run.config.append or not there.facts.exists():
        return 0
    if earlier.run.config.first_cut is not None or earlier.config.get("first_cut") is not None:
        return 0  # a cut of the pool that has grown keeps others
    here = earlier.run.folder.samples("pool")
    if not here.facts.exists():  # a dry run
        return len(open_pool(there.path)[0])
    kept, digest = rows_before(here)
    return kept if content_hash(there.samples) == digest else 0


def first_features(earlier: EarlierRun, side: str, name: str, source: FeatureSource) -> FirstFeatures | None:
    """The earlier run's features of the samples that a grown pool begins with; None without any that hold."""
    if side != "pool" or not earlier.kept:
        return None
    if (other := earlier.alike_features(side, source)) is None:
        return None
    new = len(earlier.run.pool) - earlier.kept
    earlier.note(f"features {name}", f"features {name}: {earlier.kept:,} taken, {new:,} computed")
    return FirstFeatures(earlier.folder.features, other)


def first_vectors(earlier: EarlierRun | None, missing: list[str]) -> dict[str, Any]:
    """The earlier run's vectors of the samples that a grown pool begins with, by side; empty where they do not hold.

    A relative influence function is given the statistics of those samples, which are kept here too.
    """
    if earlier is None or not earlier.kept:
        return {}
    run, there, here = earlier.run, earlier.folder.vectors, earlier.run.folder.vectors
    grown = [side for side in missing if side == "pool" or (side == "target" and run.own_target)]
    reason = next(filter(None, map(earlier.why_other_vectors, grown)), "")
    if grown and not reason and run.function.traits.relative:
        run.function.restore(read_tensors(there.statistics))
        take_file(there.statistics, here.statistics)
    for side in grown:
        new = len(run.pool) - earlier.kept
        what = f"computed anew ({reason})" if reason else f"{earlier.kept:,} taken, {new:,} computed"
        earlier.note(f"vectors {side}", f"vectors of the {side}: {what}")
    if reason or not grown:
        return {}
    if there.notes.exists():
        cut = {*read_json(there.notes)["cut"], *(read_json(here.notes)["cut"] if here.notes.exists() else ())}
        write_json(here.notes, {"cut": sorted(cut)})
    return {side: read_vectors(there, side) for side in grown}


def restore_from_taken_pool(earlier: EarlierRun | None) -> bool:
    """Give a function that is relative to the pool the statistics of the run whose pool vectors are taken, if they are.

    So another target takes a pass over its own samples alone. Returns whether that is so.
    """
    if earlier is None or earlier.kept or not earlier.run.function.traits.relative_to_pool:
        return False
    statistics = earlier.folder.vectors.statistics
    if earlier.why_other_vectors("pool") or not statistics.exists():
        return False
    earlier.run.function.restore(read_tensors(statistics))
    return True


def joined_blocks(first: Any | None, rest: Iterator[Any]) -> Iterator[Any]:
    """Vectors of the first samples, some at a time, and then those of the others."""
    if first is None:
        return rest
    return chain((first[start : start + _ROWS] for start in range(0, first.shape[0], _ROWS)), rest)


def begins_with(first: Path, whole: Path) -> bool:
    """Whether the rows of an array are the first of another."""
    if not first.exists() or not whole.exists():
        return False
    one, other = read_array(first), read_array(whole)
    starts = range(0, len(one), _ROWS)
    return len(one) <= len(other) and all(
        np.array_equal(one[i : i + _ROWS], other[i : min(i + _ROWS, len(one))]) for i in starts
    )


def features_held(run: Run, side: str, source: FeatureSource) -> int:
    """How many samples of a side need no features, since data are appended to a run that has them; for a dry run."""
    if run.earlier is None or not run.earlier.kept or run.earlier.alike_features(side, source) is None:
        return 0
    return run.earlier.kept if side == "pool" else run.size(side)


def share_computed(run: Run) -> float:
    """The share of all samples that need vectors, where an earlier run has those of the others; for a dry run."""
    earlier = run.earlier
    if earlier is None:
        return 1.0
    held = {side: not earlier.why_other_vectors(side) for side in run.samples}
    kept = earlier.kept or run.size("pool")
    found = sum((kept if side == "pool" else run.size(side)) for side, holds in held.items() if holds)
    return 1.0 - found / sum(map(run.size, run.samples))


def labels_held(run: Run) -> bool:
    """Whether the labels are those of the run that data are appended to; for a dry run."""
    return run.earlier is not None and run.earlier.kept > 0 and not run.earlier.other_labels()


def samples_budgeted(run: Run) -> int:
    """How many samples a fraction is of: all, or those that are new where a selection is kept."""
    kept = run.earlier.kept if run.earlier is not None and run.config.keep_selection else 0
    return run.size("pool") - kept


def prefix_of(run: Run, make: Callable[[], Objective]) -> np.ndarray:
    """The samples that an earlier run selected and that come first, int64 (m,); none where the choice begins anew.

    Args:
        run: the run, with the influence of every pair kept.
        make: makes the objective that is maximised.

    Raises:
        ConfigError: a selection is to be kept, and the earlier run has none.
    """
    if run.earlier is None:
        return np.zeros(0, np.int64)
    if not run.folder.prefix.exists():
        reason = "" if run.config.keep_selection else _why_anew(run.earlier, make)
        found = np.zeros(0, np.int64) if reason else _selected(run.earlier)
        if not run.config.keep_selection:
            found = found[: run.budget.count(len(run.pool))]
        what = f"chosen anew ({reason})" if reason else f"{len(found):,} samples taken"
        run.earlier.note("selection", f"selection: {what}")
        write_array(run.folder.prefix, found)
    return np.asarray(read_array(run.folder.prefix))


def selection_kept(run: Run) -> np.ndarray:
    """The samples that an earlier run selected where these stay, int64 (m,); none without `keep_selection`."""
    keeps = run.earlier is not None and run.config.keep_selection
    return _selected(run.earlier) if keeps and run.earlier is not None else np.zeros(0, np.int64)


def _selected(earlier: EarlierRun) -> np.ndarray:
    """Rows in the order selected."""
    if not earlier.folder.is_selected:
        raise ConfigError(
            f"{earlier.folder.path} has no selection to keep", "finish that run, or leave `keep_selection` out"
        )
    if earlier.run.config.append and not earlier.kept:
        raise ConfigError(f"{earlier.folder.path} has changed since its samples were taken", "choose another `output`")
    selection = Selection.load(earlier.folder.path)
    return np.asarray(selection.indices[np.argsort(selection.ranks)])


def _why_anew(earlier: EarlierRun, make: Callable[[], Objective]) -> str:
    """Why a selection of the earlier run is not the beginning of the new one; empty where it is."""
    run, folder = earlier.run, earlier.folder
    if not folder.is_selected:
        return "it has none"
    if run.config.append:
        return "data were appended"
    defaults = default_fields()
    for name in (name for name in GROUPS["Choice"] if name not in _NESTED):
        for value in (getattr(run.config, name), earlier.config.get(name, defaults[name])):
            if value != defaults[name]:
                return f"choices with `{name}` are not nested"
    if run.config.near_duplicates != earlier.config.get("near_duplicates"):
        return "`near_duplicates` differs"
    if earlier.config.get("keep_selection"):
        return "it kept another"
    if any(str(budget).lower().endswith("tok") for budget in (run.config.budget, earlier.config.get("budget"))):
        return "choices by tokens are not nested"
    selection, objective = Selection.load(folder.path), make()
    if objective.name not in OBJECTIVES or objective.name != selection.objective:
        return f"the objective is {objective.name}"
    if objective.name == GRAPH_CUT:
        return "a graph cut is chosen in one go"
    if form_of(run) == "sparse" or selection.sparseness is not None:
        return "which pairs a sparse matrix has depends on the budget"
    if objective.options != selection.objective_options:
        stored = selection.objective_options
        differ = [name for name, value in objective.options.items() if value != stored.get(name)]
        return f"`{differ[0]}` is {objective.options[differ[0]]:g}" if differ else "the objective has other options"
    return _other_influence(earlier) or _other_near_duplicates(earlier)


def _other_near_duplicates(earlier: EarlierRun) -> str:
    """Why other samples may be chosen, of the same pool; empty where the same may.

    Which are near-duplicates depends on the encoder and the seed beside the threshold, so the lists are compared.
    """
    from nncift.pipeline.choosing.near_duplicates import listed_rows  # which imports this module

    if earlier.run.config.near_duplicates is None:
        return ""
    here, there = (folder.samples("pool").near_duplicates for folder in (earlier.run.folder, earlier.folder))
    same = there.exists() and np.array_equal(listed_rows(here), listed_rows(there))
    return "" if same else "other samples are near-duplicates"


def _other_influence(earlier: EarlierRun) -> str:
    """Why the influence of some pair is another; empty where all are the same."""
    here, there = earlier.run.folder, earlier.folder
    if others := [side for side in ("pool", "target", "known") if not earlier.is_same(side)]:
        return f"other {others[0]} samples"
    files = [(there.influence, here.influence), (there.known, here.known)]
    if earlier.run.is_exact:
        vectors = (there.vectors, here.vectors)
        files += [
            (getattr(vectors[0], kind)(side), getattr(vectors[1], kind)(side))
            for side in ("pool", "target", "known")
            for kind in ("array", "sparse")
        ]
    else:
        weights = "model.safetensors"
        files += [(there.network / weights, here.network / weights), (there.probes.labels, here.probes.labels)]
    for one, other in files:
        if one.exists() != other.exists():
            return "the influence differs"
        if one.exists() and not (one.samefile(other) or filecmp.cmp(one, other, shallow=False)):
            return "the influence differs"
    return ""
