"""What a comparison is made of, read and checked before anything costly."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import DEFAULT_DIFFICULTY, DEFAULT_INFLUENCE, Config, default_fields
from nncift.data.pool import read_pool
from nncift.data.sources.memory import repeatable
from nncift.errors import ConfigError
from nncift.influence.catalogue import is_factored
from nncift.pipeline.choosing.exact import estimation_of
from nncift.pipeline.components.precision import settled
from nncift.pipeline.configuration.configure import make_config, sources_of
from nncift.pipeline.configuration.options import ESTIMATION
from nncift.proof.folder import ProofFolder
from nncift.proof.inputs.held_out import read_test, refuse_overlap
from nncift.proof.inputs.setup import (
    bench_of,
    check_installed,
    check_metrics,
    model_names,
    models_of,
    read_options,
    stored,
)
from nncift.proof.options import CompareOptions, refuse_of_one_run
from nncift.proof.trials.cells import STRATIFIED, Grid, default_curve
from nncift.proof.trials.selectors import Kind, Ranking, Selector, as_file_name
from nncift.proof.trials.trials import Bench
from nncift.run.options.amounts import parse_budget
from nncift.selection.budget import Budget, check_shortlist
from nncift.selection.objectives.table import find_objective

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.data.sources.sources import SourceLike

_UNLEARNED: dict[str, Any] = {
    **{"labels": None, "fidelity": None, "probes": None, "influence_options": None},
    **{"features": "sentence", "target_features": None},
}
"""Options of a run that learns nothing."""
_UNARRANGED: dict[str, Any] = {"verify": None, "phases": None, "difficulty": None}
"""Options that concern some of the choices alone, so that the runs of a folder do not depend on them."""
_PHASES = 3


@dataclass(frozen=True)
class Inputs:
    """What a comparison is made of, read and checked.

    Attributes:
        proof: its options.
        base: the config that the runs of all functions share.
        sources: of "pool", "target" and "known".
        folder: its folder.
        samples: the pool.
        bench: where choices are tried; None where nothing is trained.
        shortlist: of verified choices, its size as a multiple of the budget; None without them.
        phases: of phased training.
        difficulty: what phases are ordered by.
        progress: show progress bars.
    """

    proof: CompareOptions
    base: Config
    sources: Mapping[str, Any]
    folder: ProofFolder
    samples: Dataset
    bench: Bench | None
    shortlist: float | None
    phases: int
    difficulty: str
    progress: bool

    @cached_property
    def budgets(self) -> list[int]:
        """Budgets in rows."""
        return sorted({_rows("budget", amount, len(self.samples)) for amount in self.proof.budgets})

    @cached_property
    def curve(self) -> list[int]:
        """Rows of the random learning curve.

        Raises:
            ConfigError: one is not a number of rows of the pool, or with the budgets they are a single number.
        """
        given = [_rows("curve", amount, len(self.samples)) for amount in self.proof.curve]
        if given and len({*given, *self.budgets}) == 1:
            problem = f"`curve` {given[0]} is the budget too, and a learning curve needs two numbers of rows"
            other = given[0] // 2 or 2
            raise ConfigError(problem, f"add one, such as {given[0]},{other}, or leave it out")
        return given or default_curve(self.budgets, len(self.samples))

    @property
    def influences(self) -> tuple[str, ...]:
        """The influence functions to compare, and to study."""
        return self.proof.influences or (DEFAULT_INFLUENCE,)

    @property
    def selectors(self) -> list[Selector]:
        """Free baselines, then each influence function, exact where asked for, estimated, and verified where asked for.

        With several objectives, each of these with each of them. Rows that are drawn anew for each seed are not among
        them.
        """
        learned = [name for name in self.influences if not is_factored(name) and name not in self.proof.free]
        named = [name for name in self.proof.exact if name != "all"]
        exact = [*(self.influences if "all" in self.proof.exact else ()), *named]
        kinds: dict[Kind, Sequence[str]] = {
            "free": [*self.proof.free, *filter(is_factored, (*exact, *self.influences))],
            "exact": [name for name in exact if not is_factored(name)],
            "estimated": learned,
            "verified": learned if self.shortlist is not None else (),
        }
        return list(
            dict.fromkeys(
                Selector(kind, name, objective, (self.shortlist or 0.0) if kind == "verified" else 0.0)
                for kind, names in kinds.items()
                for name in names
                if name != STRATIFIED.influence
                for objective in self.proof.objectives or ("",)
            )
        )

    @property
    def draws_stratified(self) -> bool:
        """Whether stratified random rows are among the baselines."""
        return STRATIFIED.influence in (*self.proof.free, *self.proof.exact, *self.influences)

    @property
    def seeds(self) -> range:
        """Of the trainings and the random choices."""
        return range(self.base.seed, self.base.seed + self.proof.seeds)

    def grid(
        self,
        rankings: Mapping[Selector, Mapping[int, Ranking]],
        stratified: Mapping[int, Sequence[np.ndarray]],
        difficulty: np.ndarray | None,
        tokens: np.ndarray,
    ) -> Grid:
        """The cells that the selectors' rankings give.

        Args:
            rankings: of each selector, by budget in rows.
            stratified: for each budget in rows a ranking for each seed, (n,); empty without these.
            difficulty: of each pool row, (n,); of phased training.
            tokens: response tokens of each pool row, (n,).
        """
        return Grid(
            rankings,
            tokens,
            self.budgets,
            self.curve,
            self.proof.methods,
            self.proof.units,
            self.seeds,
            difficulty,
            self.phases,
            stratified,
        )

    def config(self, selector: Selector) -> Config:
        """The config of the run that a selector's values come from."""
        values = selector.values
        output = self.folder.runs / values.slug
        own = self.base.influence_options if values.influence == self.base.influence else None
        made = replace(self.base, influence=values.influence, influence_options=own, output=str(output))
        if is_factored(values.influence):
            return replace(made, **{name: default_fields()[name] for name in ESTIMATION})
        return replace(made, **_UNLEARNED) if values.kind == "free" else made

    @property
    def difficulty_config(self) -> Config:
        """The config of the run that computes the difficulty of every pool row."""
        made = self.config(Selector("free", "bm25"))  # whose values nobody asks for
        return replace(
            made,
            difficulty=self.difficulty,
            output=str(self.folder.runs / f"difficulty-{as_file_name(self.difficulty)}"),
        )

    def facts(self) -> dict[str, Any]:
        """What the results are of, ready for JSON."""
        pool = self.base.pool if isinstance(self.base.pool, str) else ", ".join(self.base.pool)
        bench = self.bench
        return {
            "pool": {"name": pool, "rows": len(self.samples)},
            "target": self.base.target,
            "known": self.base.known,
            "test": None if bench is None else {"name": self.proof.test, "items": len(bench.test.items)},
            "model": models_of(self.base)[0].describe() if bench is None else bench.model.describe(),
            "tuning": {} if bench is None else bench.tuning.describe(),
            "seeds": list(self.seeds),
        }


def prepare(
    sources: Mapping[str, SourceLike | None],
    options: Mapping[str, Any],
    *,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Inputs:
    """Read and check what a comparison is made of.

    Args:
        sources: "pool", "test", "target" and "known"; those that there are.
        options: the other arguments of `compare`, those of `select` among them.
        output: the folder.
        progress: show progress bars.

    Raises:
        NNCIFTError: a source cannot be read, or an option cannot be used.
    """
    test = sources.get("test")
    if test is not None:
        check_installed()
    data = {name: repeatable(sources.get(name)) for name in ("pool", "target", "known")}
    proof, others = _options(test, options)
    whole = make_config(data["pool"], target=data["target"], known=data["known"], **others)
    base = replace(whole, **_UNARRANGED)
    for objective in proof.objectives:
        weights = {"eta": base.eta, "nu": base.nu, "redundancy": base.redundancy}
        find_objective(objective, target=data["target"] is not None, known=data["known"] is not None, **weights)
    folder = ProofFolder(output or Path("runs") / f"compare-{base.folder.name}")
    shared = {name: value for name, value in base.identity().items() if name != "influence"}
    items = None
    base, identity = settled(base, shared | proof.identity(), folder.run)
    with folder.open(identity, model_names(base, proof)):
        source = sources_of(base, data)["pool"]
        assert source is not None
        samples, _ = read_pool(
            source,
            read_options(base, base.split, pool=True),
            named_elsewhere=True,
            folder=folder.run.samples("pool").path,
            progress=progress,
        )
        if test is not None:
            items = read_test(test, folder.run.samples("test"), read_options(base, proof.test_split), progress=progress)
            check_metrics(proof, items)
            if not proof.allow_overlap:
                refuse_overlap(items, samples, str(proof.test), of="pool")
        bench = None if items is None else bench_of(folder, *models_of(base), samples, items, proof, progress=progress)
        phases, difficulty = whole.phases or _PHASES, whole.difficulty or DEFAULT_DIFFICULTY
        inputs = Inputs(proof, base, data, folder, samples, bench, whole.verify, phases, difficulty, progress)
        _check_budgets(inputs)
        if not proof.studies and not any(selector.kind == "estimated" for selector in inputs.selectors):
            option = estimation_of(base)
            if option is not None:
                raise ConfigError(f"no influence function is estimated, so {option} has no use", "leave it out")
    return inputs


def _options(test: SourceLike | None, options: Mapping[str, Any]) -> tuple[CompareOptions, dict[str, Any]]:
    """The options of the comparison, and those of its runs."""
    own, others = CompareOptions.split(options)
    refuse_of_one_run(others)
    if (influence := others.pop("influence", None)) is not None:
        own["influences"] = (influence,) if isinstance(influence, str) else tuple(influence)
    if (budget := others.pop("budget", None)) is not None:
        own["budgets"] = tuple(map(str, budget if isinstance(budget, list | tuple) else (budget,)))
    proof = CompareOptions(test=None if test is None else stored("test", test), **own)
    if "random" in (*proof.influences, *proof.free, *proof.exact):
        raise ConfigError("random rows are in every comparison", "leave `influence` random out")
    if proof.studies and STRATIFIED.influence in proof.influences:
        raise ConfigError(f"{STRATIFIED.influence} has no influence to study", "leave it out of `influence`")
    if str(others.get("labels")).strip() == "0":
        problem = "`labels` 0 estimates nothing, and gradient-sketch, which a run takes then, is compared as it is"
        raise ConfigError(problem, "leave it out, and name gradient-sketch in `influence`")
    for name in ("phases", "difficulty"):
        if others.get(name) is not None and "phased" not in proof.methods:
            raise ConfigError(f"`{name}` is of phased training", "add phased to `methods`, or leave it out")
    if others.get("influence_options") and len(proof.influences) != 1:
        raise ConfigError("`influence_options` are those of one function", "give one `influence`")
    return proof, others | {"influence": proof.influences[0] if len(proof.influences) == 1 else None}


def _check_budgets(inputs: Inputs) -> None:
    """Refuse budgets that the pool cannot fill, and shortlists of a whole pool that is its own target."""
    most, n = max(inputs.budgets), len(inputs.samples)
    _ = inputs.curve
    if inputs.bench is not None and min(inputs.budgets) == n:
        what = f"`budget` {','.join(inputs.proof.budgets)} is all {n:,} samples" if n > 1 else "the pool has one sample"
        fix = "give a smaller one" if n > 1 else "give a pool of many"
        raise ConfigError(f"{what}, so there is nothing to choose and to compare with random rows", fix)
    if inputs.shortlist is not None and inputs.base.target is None:
        check_shortlist(Budget(parse_budget(str(most))).count(n, inputs.shortlist), n)


def _rows(option: str, amount: str, n: int) -> int:
    """A budget in rows."""
    parsed = parse_budget(amount)
    if parsed.kind == "tokens":
        raise ConfigError(f"`{option}` {amount} is in tokens", "give fractions of the pool or numbers of samples")
    budget = Budget(parsed)
    budget.check(n)
    return budget.count(n)
