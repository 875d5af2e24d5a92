"""`nncift compare`: which influence function fits a pool, and is it worth it, by training on what each chooses.

`compare` reads top to bottom as the steps of a comparison: prepare, choose, train, analyse, study, write. Every choice
and every trial is a file, so a killed call resumes, and several processes (one per GPU, or of one thread each) share
the work of one folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.pipeline.choosing.arrange import difficulty_of
from nncift.proof.folder import Group, share, share_groups
from nncift.proof.inputs.inputs import Inputs, prepare
from nncift.proof.results.analysis import analyse, overlaps
from nncift.proof.results.pages import write_page
from nncift.proof.results.tables import write_tables
from nncift.proof.runs import opened
from nncift.proof.stratified import stratified_draws
from nncift.proof.studies import study
from nncift.proof.trials.cells import STRATIFIED, Cell, by_importance
from nncift.proof.trials.selectors import (
    Ranking,
    Selector,
    costs_of,
    exact_rankings,
    gains_path,
    load_ranking,
    run_rankings,
    save_ranking,
    verified_rankings,
)
from nncift.proof.trials.trials import Bench
from nncift.run.folder.costs import Costs
from nncift.run.storage.files import read_array, read_json, write_array, write_json

if TYPE_CHECKING:
    from nncift.data.sources.sources import SourceLike

_DIFFICULTY = "difficulty of every row"  # in the costs


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison.

    Attributes:
        folder: with everything behind them.
        results: the content of `results.json`.
    """

    folder: Path
    results: dict[str, Any]

    def __repr__(self) -> str:
        return f"Comparison({str(self.folder)!r}, {len(self.results['cells'])} cells)"


def compare(
    pool: SourceLike,
    *,
    test: SourceLike | None = None,
    target: SourceLike | None = None,
    known: SourceLike | None = None,
    influence: str | Sequence[str] | None = None,
    budget: str | float | Sequence[str | float] | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> Comparison:
    """Train on what each way of choosing chooses, and compare it with random rows and with what costs nothing.

    Args:
        pool: the data to choose from, as of `select`.
        test: prompts with reference responses, as of `evaluate`; not needed where only `studies` are asked for.
        target: samples of the task to get better at; the pool itself unless given.
        known: samples that the model was trained on before.
        influence: the influence functions to compare, by name; that of `select` unless given. One that is exact for
            every pair counts as free.
        budget: fractions of the pool or numbers of samples; 0.05, 0.1 and 0.3 unless given.
        output: the folder; the same call resumes it. `runs/compare-NAME-OF-THE-POOL` unless given.
        progress: show progress bars.
        **options: those of `select` (labels, model, verify, ...), and those that `nncift compare --help` lists.

    Raises:
        NNCIFTError: what went wrong.
    """
    sources = {"pool": pool, "test": test, "target": target, "known": known}
    inputs = prepare(sources, {"influence": influence, "budget": budget, **options}, output=output, progress=progress)
    results, spent = inputs.facts() | {"cells": [], "overlaps": []}, dict[str, Any]()
    if inputs.bench is not None:
        found, spent = _trained(inputs, inputs.bench)
        results |= found
    if inputs.proof.studies:
        results["studies"] = study(inputs)
    with inputs.folder.locked():  # all processes of a folder end at once
        write_json(inputs.folder.results, results)
        write_json(inputs.folder.costs, spent, sealed=True)
        write_tables(inputs.folder, results, spent)
        write_page(inputs.folder)
    return Comparison(inputs.folder.path, results)


def _trained(inputs: Inputs, bench: Bench) -> tuple[dict[str, Any], dict[str, Any]]:
    """The records of all cells with the overlaps of their choices, and the costs."""
    cells = cells_of(inputs, bench)
    bench.run(by_importance(cells))
    analysed = analyse(cells, bench.scores, bench.response_tokens)
    return {"cells": analysed, "overlaps": overlaps(cells)}, costs(inputs, bench, cells)


def cells_of(inputs: Inputs, bench: Bench) -> list[Cell]:
    """All cells of the comparison, after making the choices that the folder lacks."""
    difficulty = measure_difficulty(inputs) if "phased" in inputs.proof.methods else None
    return inputs.grid(choose(inputs), stratified_draws(inputs), difficulty, bench.response_tokens).cells()


def choose(inputs: Inputs) -> dict[Selector, dict[int, Ranking]]:
    """Every selector's ranking for each budget; only those that the folder lacks are made."""
    weighted = "weighted" in inputs.proof.methods

    def last(selector: Selector, budget: int) -> Path:
        """The file that is written last of what is needed."""
        path = _ranking(inputs, selector, budget)
        return gains_path(path) if weighted else path

    share_groups(
        {
            inputs.folder.choices / selector.slug: Group(
                {budget: last(selector, budget) for budget in inputs.budgets}, partial(_choose, inputs, selector)
            )
            for selector in inputs.selectors
        }
    )
    return {
        selector: {budget: load_ranking(_ranking(inputs, selector, budget)) for budget in inputs.budgets}
        for selector in inputs.selectors
    }


def _ranking(inputs: Inputs, selector: Selector, budget: int) -> Path:
    return inputs.folder.choices / f"{selector.slug}-{budget}.npy"


def _choose(inputs: Inputs, selector: Selector, budgets: Sequence[int]) -> None:
    """Make a selector's rankings for some budgets."""
    config, objective = inputs.config(selector), selector.objective
    plain = selector == selector.values
    mine = inputs.folder.choices / f"{selector.slug}.own.json"  # costs beside those of the values
    own = None if plain else Costs(mine)
    with opened(inputs, config) as run:
        folder = run.folder.path
        if selector.kind == "verified":
            found = verified_rankings(run, budgets, selector.shortlist, objective, own)
        elif selector.kind == "estimated" or run.is_exact:
            found = run_rankings(run, budgets, objective, own)
        else:
            folder = inputs.folder.exact / selector.values.slug
            found = exact_rankings(run, folder, budgets, objective, own)
    spent = costs_of(folder / "costs.json")
    if own is not None:
        spent.pop("select", None)
        spent |= costs_of(mine)
    write_json(inputs.folder.choices / f"{selector.slug}.json", spent)
    for budget, ranking in zip(budgets, found, strict=True):
        save_ranking(_ranking(inputs, selector, budget), ranking)


def measure_difficulty(inputs: Inputs) -> np.ndarray:
    """The difficulty of every pool row, (n,) float32, which is computed once."""
    config = inputs.difficulty_config
    path = inputs.folder.choices / f"{Path(config.folder).name}.npy"

    def make() -> None:
        with opened(inputs, config) as run:
            assert run.difficulty is not None
            run.difficulty.check(run.pool.rows, run.target.rows)
            found = difficulty_of(run, np.arange(len(run.pool)))
            assert found is not None
            write_json(path.with_suffix(".json"), costs_of(run.folder.costs))
        write_array(path, found)

    share({path: make})
    return np.asarray(read_array(path))


def costs(inputs: Inputs, bench: Bench, cells: Sequence[Cell]) -> dict[str, Any]:
    """Seconds and tokens of each selector by stage, and of all trials."""
    folder = inputs.folder.choices
    drawn = [STRATIFIED] if inputs.draws_stratified else []
    made = [*drawn, *inputs.selectors]
    files = {s.name: folder / f"{s.slug}.json" for s in made}
    if "phased" in inputs.proof.methods:
        files[_DIFFICULTY] = folder / f"{Path(inputs.difficulty_config.folder).name}.json"
    # A damaged one was removed by repair: what it counted is lost, as with the costs of a run.
    choices: dict[str, Mapping[str, Any]] = {
        name: read_json(path) if path.exists() else {} for name, path in files.items()
    }
    return {"choices": choices, "trials": bench.total(trial for cell in cells for trial in cell.trials)}
