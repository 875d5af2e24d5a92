"""`nncift compare`: which influence function fits a pool, and is it worth it, by training on what each chooses.

`compare` reads top to bottom as the steps of a comparison: prepare, choose, train, analyse, write. Every choice and
every trial is a file, so a killed call resumes, and several processes (one per GPU, or of one thread each) share the
work of one folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import DEFAULT_INFLUENCE, Config, default_fields
from nncift.data.memory import repeatable
from nncift.data.pool import read_pool
from nncift.errors import ConfigError
from nncift.influence.catalogue import is_factored
from nncift.pipeline.configure import make_config, sources_of
from nncift.pipeline.context import Run
from nncift.pipeline.options import ESTIMATION
from nncift.pipeline.read import read
from nncift.proof.analysis import analyse, overlaps
from nncift.proof.cells import Cell, Grid, by_importance, default_curve
from nncift.proof.folder import ProofFolder, share
from nncift.proof.held_out import read_test, refuse_overlap
from nncift.proof.options import CompareOptions
from nncift.proof.selectors import (
    Selector,
    check_same_pool,
    costs_of,
    exact_rankings,
    load_ranking,
    run_rankings,
    save_ranking,
)
from nncift.proof.setup import bench_of, check_installed, models_of, read_options, stored
from nncift.proof.tables import write_tables
from nncift.proof.trials import Bench
from nncift.report.comparison import write_comparison_report
from nncift.run.amounts import parse_budget
from nncift.run.files import read_json, write_json
from nncift.run.progress import in_terminal
from nncift.selection.budget import Budget

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.data.sources import SourceLike

_UNLEARNED: dict[str, Any] = {
    **{"labels": None, "fidelity": None, "probes": None, "influence_options": None},
    **{"features": "sentence", "target_features": None},
}
"""Options of a run that learns nothing."""
_ONE_RUN = ("output", "from_run", "network", "labels_from", "verify")
"""Options of `select` that a comparison does not take."""


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
    test: SourceLike,
    target: SourceLike | None = None,
    known: SourceLike | None = None,
    influence: str | Sequence[str] | None = None,
    budget: str | float | Sequence[str | float] | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Comparison:
    """Train on what each way of choosing chooses, and compare it with random rows and with what costs nothing.

    Args:
        pool: the data to choose from, as of `select`.
        test: prompts with reference responses, as of `evaluate`.
        target: samples of the task to get better at; the pool itself unless given.
        known: samples that the model was trained on before.
        influence: the influence functions to compare, by name; that of `select` unless given. One that is exact for
            every pair counts as free.
        budget: fractions of the pool or numbers of samples; 0.05, 0.1 and 0.3 unless given.
        output: the folder; the same call resumes it. `runs/compare-NAME-OF-THE-POOL` unless given.
        progress: show progress bars; in a terminal unless given.
        **options: those of `select` (labels, model, ...), and those that `nncift compare --help` lists.

    Raises:
        NNCIFTError: what went wrong.
    """
    given: dict[str, Any] = {"influence": influence, "budget": budget, "output": output, "progress": progress}
    inputs = prepare(pool, test=test, target=target, known=known, **given, **options)
    rankings = choose(inputs)
    cells = inputs.grid(rankings).cells()
    inputs.bench.run(by_importance(cells))
    results = inputs.facts() | {
        "cells": analyse(cells, inputs.bench.scores, inputs.bench.response_tokens),
        "overlaps": overlaps(cells),
    }
    write_json(inputs.folder.results, results)
    spent = costs(inputs, cells)
    write_tables(inputs.folder, results, spent)
    write_comparison_report(inputs.folder.report, results, spent)
    return Comparison(inputs.folder.path, results)


@dataclass(frozen=True)
class Inputs:
    """What a comparison is made of, read and checked.

    Attributes:
        proof: its options.
        base: the config that the runs of all functions share.
        sources: of "pool", "target" and "known".
        folder: its folder.
        samples: the pool.
        items: the test items.
        bench: where choices are tried.
        progress: show progress bars.
    """

    proof: CompareOptions
    base: Config
    sources: Mapping[str, Any]
    folder: ProofFolder
    samples: Dataset
    items: Dataset
    bench: Bench
    progress: bool

    @cached_property
    def budgets(self) -> list[int]:
        """Budgets in rows."""
        return sorted({_rows("budget", amount, len(self.samples)) for amount in self.proof.budgets})

    @cached_property
    def curve(self) -> list[int]:
        """Rows of the random learning curve."""
        given = [_rows("curve", amount, len(self.samples)) for amount in self.proof.curve]
        return given or default_curve(self.budgets, len(self.samples))

    @property
    def selectors(self) -> list[Selector]:
        """Free baselines, then each influence function, exact where asked for, and estimated."""
        names = self.proof.influences or (DEFAULT_INFLUENCE,)
        exact = names if "all" in self.proof.exact else self.proof.exact
        found = [Selector("free", name) for name in self.proof.free]
        found += [Selector("free" if is_factored(name) else "exact", name) for name in exact]
        others = (name for name in names if name not in self.proof.free)
        found += [Selector("free" if is_factored(name) else "estimated", name) for name in others]
        return list(dict.fromkeys(found))

    def grid(self, rankings: Mapping[Selector, Mapping[int, np.ndarray]]) -> Grid:
        """The cells that the selectors' rankings give."""
        proof, seed = self.proof, self.base.seed
        seeds = range(seed, seed + proof.seeds)
        return Grid(rankings, self.bench.response_tokens, self.budgets, self.curve, proof.methods, proof.units, seeds)

    def config(self, selector: Selector) -> Config:
        """The config of the run that a selector's choices come from."""
        output = self.folder.runs / selector.slug
        own = self.base.influence_options if selector.influence == self.base.influence else None
        made = replace(self.base, influence=selector.influence, influence_options=own, output=str(output))
        if is_factored(selector.influence):  # earlier versions had a run of another kind in the folder of the slug
            exact = {name: default_fields()[name] for name in ESTIMATION}
            return replace(made, **exact, output=str(output.with_name(output.name.removesuffix("-free"))))
        return replace(made, **_UNLEARNED) if selector.kind == "free" else made

    def facts(self) -> dict[str, Any]:
        """What the results are of, ready for JSON."""
        pool = self.base.pool if isinstance(self.base.pool, str) else ", ".join(self.base.pool)
        return {
            "pool": {"name": pool, "rows": len(self.samples)},
            "target": self.base.target,
            "known": self.base.known,
            "test": {"name": self.proof.test, "items": len(self.items)},
            "model": self.bench.model.describe(),
            "tuning": self.bench.tuning.describe(),
            "seeds": list(range(self.base.seed, self.base.seed + self.proof.seeds)),
        }


def prepare(
    pool: SourceLike,
    *,
    test: SourceLike,
    target: SourceLike | None = None,
    known: SourceLike | None = None,
    influence: str | Sequence[str] | None = None,
    budget: str | float | Sequence[str | float] | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Inputs:
    """Read and check what a comparison is made of; arguments as of `compare`."""
    check_installed()
    sources = {"pool": repeatable(pool), "target": repeatable(target), "known": repeatable(known)}
    own, others = CompareOptions.split(options)
    if influence is not None:
        own["influences"] = (influence,) if isinstance(influence, str) else tuple(influence)
    if budget is not None:
        own["budgets"] = tuple(map(str, budget if isinstance(budget, list | tuple) else (budget,)))
    proof = CompareOptions(test=stored("test", test), **own)
    for name in _ONE_RUN:
        if others.get(name) is not None:
            raise ConfigError(f"`{name}` is for one run", "leave it out")
    if others.get("influence_options") and len(proof.influences) != 1:
        raise ConfigError("`influence_options` are those of one function", "give one `influence`")
    one = proof.influences[0] if len(proof.influences) == 1 else None
    base = make_config(sources["pool"], target=sources["target"], known=sources["known"], influence=one, **others)
    folder = ProofFolder(output or Path("runs") / f"compare-{base.folder.name}")
    shown = in_terminal() if progress is None else progress
    shared = {name: value for name, value in base.identity().items() if name != "influence"}
    with folder.open(proof.identity() | {"select": shared}):
        source = sources_of(base, sources)["pool"]
        assert source is not None
        samples, _ = read_pool(
            source,
            read_options(base, base.split, pool=True),
            named_elsewhere=True,
            folder=folder.run.samples("pool").path,
            progress=shown,
        )
        items = read_test(test, folder.run.samples("test"), read_options(base, proof.test_split), progress=shown)
        if not proof.allow_overlap:
            refuse_overlap(items, samples, proof.test)
    bench = bench_of(folder, *models_of(base), samples, items, proof, progress=shown)
    inputs = Inputs(proof, base, sources, folder, samples, items, bench, shown)
    _ = inputs.budgets, inputs.curve  # refused before anything costly
    if not any(selector.kind == "estimated" for selector in inputs.selectors):
        _refuse_estimation(base)
    return inputs


def _refuse_estimation(config: Config) -> None:
    """Refuse options of labels and network where no function of the comparison is estimated."""
    defaults = default_fields()
    for option in ESTIMATION:
        if (value := getattr(config, option)) != defaults[option]:
            raise ConfigError(f"no influence function is estimated, so `{option}` {value} has no use", "leave it out")


def _rows(option: str, amount: str, n: int) -> int:
    """A budget in rows."""
    parsed = parse_budget(amount)
    if parsed.kind == "tokens":
        raise ConfigError(f"`{option}` {amount} is in tokens", "give fractions of the pool or numbers of samples")
    budget = Budget(parsed)
    budget.check(n)
    return budget.count(n)


def choose(inputs: Inputs) -> dict[Selector, dict[int, np.ndarray]]:
    """Every selector's ranking for each budget; only those that the folder lacks are made."""
    missing = {
        selector: [budget for budget in inputs.budgets if not _ranking(inputs, selector, budget).exists()]
        for selector in inputs.selectors
    }
    share(
        {
            _ranking(inputs, selector, budgets[-1]): partial(_choose, inputs, selector, budgets)
            for selector, budgets in missing.items()
            if budgets
        }
    )
    return {
        selector: {budget: load_ranking(_ranking(inputs, selector, budget)) for budget in inputs.budgets}
        for selector in inputs.selectors
    }


def _ranking(inputs: Inputs, selector: Selector, budget: int) -> Path:
    return inputs.folder.choices / f"{selector.slug}-{budget}.npy"


def _choose(inputs: Inputs, selector: Selector, budgets: Sequence[int]) -> None:
    """Make a selector's rankings for some budgets; the last one is written last."""
    config = inputs.config(selector)
    with Run.open(config, sources_of(config, inputs.sources), progress=inputs.progress) as run:
        read(run)
        check_same_pool(run, inputs.samples)
        if selector.kind == "estimated" or run.is_exact:
            found, folder = run_rankings(run, budgets), run.folder.path
        else:
            folder = inputs.folder.exact / selector.slug
            found = exact_rankings(run, folder, budgets)
    write_json(inputs.folder.choices / f"{selector.slug}.json", costs_of(folder))
    for budget, ranking in zip(budgets, found, strict=True):
        save_ranking(_ranking(inputs, selector, budget), ranking)


def costs(inputs: Inputs, cells: Sequence[Cell]) -> dict[str, Any]:
    """Seconds and tokens of each selector by stage, and of all trials."""
    choices = {s.name: read_json(inputs.folder.choices / f"{s.slug}.json") for s in inputs.selectors}
    return {"choices": choices, "trials": inputs.bench.total(trial for cell in cells for trial in cell.trials)}
