"""Exact influence of planned pairs, for labels, probes and a shortlist alike; all of a run is measured alike.

A plan is kept before its first pair is measured, so a resumed run measures the same pairs.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nncift.errors import ConfigError
from nncift.labels.collect import collect
from nncift.labels.design import PairPlan
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.pipeline.components.model_files import identities
from nncift.run.folder.parts import LabelFolder
from nncift.run.storage.checksums import checksums_of, text_hash
from nncift.run.storage.files import json_text, read_json, remove, write_json

if TYPE_CHECKING:
    from nncift.pipeline.context import Run

_log = logging.getLogger("nncift")


def measure(run: Run, plan: PairPlan, folder: LabelFolder, stage: str, *, among_targets: bool = False) -> LabelledPairs:
    """Exact influence of the planned pairs, kept in `folder`; tokens and seconds count as the stage's.

    With `among_targets`, that of the targets on each other is kept among the run's labels.
    """
    among = run.folder.labels.among_targets if among_targets else None
    function, count = run.function, run.costs.counter(stage, run.function)
    lap, known = run.costs.clock(stage), None
    if not folder.labels.exists() or not (among is None or among.exists()):
        if stage == "labels":
            note_cut(run, run.folder.labels.notes)
            function.on_cut = functools.partial(note_cut, run, run.folder.labels.notes)
        known = None if run.earlier is None else run.earlier.measured()
        _begin(run)
        lap("warm_up")
    else:
        keep_description(run)
    tokens = function.forward_tokens

    def after_block() -> None:
        nonlocal tokens
        lap("sample" if function.forward_tokens > tokens else "pair")
        tokens = function.forward_tokens
        count()

    def after_prepare() -> None:
        nonlocal tokens
        lap("sample")
        tokens = function.forward_tokens

    pairs = collect(
        function,
        run.pool.rows,
        run.target.rows,
        plan.rows,
        plan.columns,
        folder=folder.path,
        progress=run.progress,
        after_prepare=after_prepare,
        after_block=after_block,
        known=known,
        among=among,
    )
    function.on_cut = None
    if function.oom_splits:
        _log.info("%s: memory ran out on batches of %s, which were halved", stage, function.oom_splits)
    return pairs


def measure_block(
    run: Run, folder: LabelFolder, stage: str, plan: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, Probes]:
    """Exact influence of some pool samples on the same targets.

    Args:
        run: the run.
        folder: keeps the plan and the values.
        stage: whose cost it is.
        plan: gives the pool rows and the targets, (k,), (c,) int64; called once, then remembered.

    Returns:
        The rows, ascending, and their exact influence.
    """
    if not folder.plan.exists():
        rows, columns = (np.sort(some).tolist() for some in plan())
        write_json(folder.plan, {"rows": rows, "columns": columns})
    stored = PairPlan.from_dict(read_json(folder.plan))
    pairs = measure(run, stored, folder, stage)
    return stored.rows, Probes(stored.columns, pairs.influence.reshape(len(stored.rows), len(stored.columns)))


def drop_checkpoints(run: Run) -> None:
    """Remove the checkpoints and what was computed with them of a run that has measured everything, unless kept."""
    if not run.config.keep_checkpoints:
        for path in (*run.folder.checkpoints, *run.folder.measured_with):
            remove(path)


def describe_once(run: Run) -> None:
    """Write what the run's exact influence is measured with, or compare with what is written.

    Raises:
        ConfigError: the function, its precision or its device's default differs from that of the values so far.
    """
    described, path = run.describe_influence(), run.folder.function
    if path.exists() and (stored := read_json(path)) != described:
        raise ConfigError(
            f"{run.folder.path} holds exact influence by {stored}, now it is {described}",
            "give the same `dtype` and `device`, or choose another `output`",
        )
    write_json(path, described)
    files = identities(run.function)
    if not run.folder.models.exists():
        write_json(run.folder.models, files)
        return
    stored = read_json(run.folder.models)
    for name in files:
        if None not in (stored.get(name), files[name]) and stored[name] != files[name]:  # perhaps their times alone
            _log.warning(
                "the files of the model %s have changed since %s was begun: if its weights are others, choose another"
                " `output`, since earlier values stay as they are",
                name,
                run.folder.path,
            )


def _begin(run: Run) -> None:
    """Done before the first pair that this process measures."""
    if run.measuring:
        return
    describe_once(run)
    if len(run.function.models) == 1:  # of several, one is in memory at a time
        _ = run.function.models[0].loaded
    run.function.warm_up(run.pool.rows, run.folder.labels.warm_up, progress=run.progress)
    run.measuring = True


def keep_description(run: Run) -> None:
    """Write the description of the function and of its models again where they were lost and are the same."""
    for path, describe in (
        (run.folder.function, run.describe_influence),
        (run.folder.models, lambda: identities(run.function)),
    ):
        if not path.exists() and text_hash(json_text(describe())) in checksums_of(path):
            write_json(path, describe())


def note_cut(run: Run, path: Path) -> None:
    """Keep which samples were cut: before their values are stored, so that a resumed run can report it."""
    cut = run.function.cut_ids
    if cut is not None:
        noted = read_json(path)["cut"] if path.exists() else None
        if noted is None or not set(noted) >= set(cut):
            write_json(path, {"cut": sorted({*(noted or ()), *cut})})
