"""The form in which a run holds the influence of all pairs for its choice: as `matrix` says, or by memory and size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from nncift.errors import ConfigError
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.planning.costs import Planned, planned_choice
from nncift.matrix.planning.forms import Form, choose_form, first_helpers, most_helpers
from nncift.matrix.sparse import SparseMatrix, sparsified
from nncift.matrix.stored import in_memory
from nncift.run.folder.records import percent
from nncift.run.options.amounts import size_text
from nncift.selection.maximizers.table import Make
from nncift.selection.objectives.built_in import COVERAGE
from nncift.selection.objectives.coverage import FacilityLocation
from nncift.selection.objectives.table import READS_MEANS, find_objective
from nncift.selection.selection import Selection
from nncift.selection.sparseness import ENOUGH, Sparseness

if TYPE_CHECKING:
    from nncift.pipeline.context import Run


def described(run: Run) -> str:
    """The form of the run in words, for the dry run."""
    form, sizes = _planned_form(run), (run.size("pool"), run.size("target"))
    if form == "stored":
        return f"stored in memory ({size_text(4 * sizes[0] * sizes[1])})"
    if form == "streamed":
        return "streamed: computed whenever they are read, nothing stored"
    helpers = first_helpers(*sizes, _expected(run))
    return f"sparse: the {helpers:,} strongest helpers of each target, more if that might lose over {percent(ENOUGH)}"


def planned(run: Run, trial: InfluenceMatrix, passes: float, certified: float) -> Planned:
    """Expected seconds and bytes of the choice, at rates measured on a small matrix of the run's kind.

    Args:
        run: the run.
        trial: computed on access.
        passes: over all pairs, that the choice takes where they are streamed.
        certified: passes over all pairs that a certificate may take.
    """
    shape, known = (run.size("pool"), run.size("target")), run.size("known")
    form, expected = _planned_form(run), _expected(run)
    return planned_choice(form, shape, expected, trial, known=known, passes=passes, certified=certified)


def check_form(run: Run) -> None:
    """Refuse a sparse form of what has none, before any work.

    Raises:
        ConfigError: the objective is not a form of facility location, or the influence is not of inner products.
    """
    if run.config.matrix == "sparse" and (reason := _without_sparse_form(run)):
        raise ConfigError(f"`matrix` sparse needs {reason}", "leave `matrix` out")


def form_of(run: Run) -> Form:
    """The form for the choice from the whole pool."""
    if run.config.matrix != "auto":
        return run.config.matrix
    if run.objective in READS_MEANS:
        return "streamed"
    may_be_sparse = not _without_sparse_form(run)
    return choose_form(run.size("pool"), run.size("target"), _expected(run), may_be_sparse=may_be_sparse)


def held(run: Run, matrix: InfluenceMatrix, *, whole: bool) -> Iterator[InfluenceMatrix]:
    """The matrix in its form; of a sparse one, with twice as many helpers each time, as long as there may be more.

    Args:
        run: the run.
        matrix: influence on the targets.
        whole: of the whole pool, for which the run's form is; of some of its samples it is stored where it fits.
    """
    form = form_of(run) if whole else choose_form(*matrix.shape, 1.0, may_be_sparse=False)
    if form == "sparse" and not matrix.is_inner_product:  # as of sparse vectors
        if run.config.matrix == "sparse":
            raise ConfigError("this influence is not of dense vectors, so it has no sparse form", "leave `matrix` out")
        form = "streamed"
    if form != "sparse":
        yield in_memory(matrix) if form == "stored" else matrix
        return
    most = most_helpers(*matrix.shape)
    helpers = first_helpers(*matrix.shape, _expected(run))
    while True:
        yield sparsified(matrix, helpers, seed=run.config.seed, progress=run.progress)
        if helpers >= most:
            return
        helpers = min(2 * helpers, most)


def sparseness_of(make: Make, matrix: InfluenceMatrix, selection: Selection) -> Sparseness | None:
    """What a subset chosen from a sparse matrix may be understated by; None of one of all entries.

    Args:
        make: makes the objective that the subset was chosen by.
        matrix: what it was chosen from.
        selection: the subset.
    """
    if not isinstance(matrix, SparseMatrix):
        return None
    objective = make()
    assert isinstance(objective, FacilityLocation)
    for i in selection.indices.tolist():
        objective.add(i)
    more = matrix.left_out(objective.covered)
    understated = more / (float(objective.value) + more) if more > 0 else 0.0
    return Sparseness(matrix.helpers, understated, matrix.confidence)


def is_enough(sparseness: Sparseness | None) -> bool:
    """Whether no more helpers are needed."""
    return sparseness is None or sparseness.understated <= ENOUGH


def _without_sparse_form(run: Run) -> str:
    """What the run lacks for a sparse form, after "needs"; "" where it lacks nothing."""
    config = run.config
    known = run.known is not None or config.known is not None
    kind = find_objective(
        run.objective,
        target=not run.own_target,
        known=known,
        eta=config.eta,
        nu=config.nu,
        redundancy=config.redundancy,
    )
    if kind not in COVERAGE:
        return "a form of facility location as `objective`"
    if config.maximizer == "partitioned":
        return "a `maximizer` that reads all targets, and partitioned reads those of a part"
    if not run.is_exact and run.recipe == "paper":
        return 'the `recipe` "process"'
    return ""


def _planned_form(run: Run) -> Form:
    """The form, as far as a dry run can tell: the vectors of some functions are sparse, which have no sparse form."""
    form = form_of(run)
    dense = not run.is_exact or isinstance(run.trial_vectors[0], np.ndarray)
    return form if form != "sparse" or dense else "streamed"


def _expected(run: Run) -> float:
    n = run.size("pool")
    if run.budget.max_tokens is None:
        return float(run.budget.count(n))
    return run.budget.expected(n, run.tokens)
