"""`--dry-run`: what a run would do and cost: the stages' planned costs, added up. Writes nothing.

It takes seconds for any pool: of a large one the first rows are read, and its size is estimated from them; rates are
measured on a handful of short samples.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nncift.config import Config, default_fields
from nncift.data.facts import open_samples
from nncift.data.sources.sampling import FirstRows
from nncift.data.sources.sources import SourceLike, open_source
from nncift.errors import printable
from nncift.labels.work import grid_work
from nncift.pipeline.check import check, trial_objective
from nncift.pipeline.choosing import arrange, choose, exact, forms, near_duplicates, verify
from nncift.pipeline.components.precision import settled
from nncift.pipeline.components.workers import described
from nncift.pipeline.configuration.configure import sources_of
from nncift.pipeline.context import Run
from nncift.pipeline.earlier_runs.growing import samples_budgeted
from nncift.pipeline.inputs import featurize, first_cut
from nncift.pipeline.inputs.read import read, side_splits
from nncift.pipeline.learning import label, without_labels
from nncift.run.folder.costs import PlannedCost, duration, peak_memory
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import counted, percent
from nncift.run.options.amounts import size_text
from nncift.run.progress import drawn

READ = 5000  # rows of a side, at most
_COUNTED = 300  # samples of a side whose tokens give those of all pairs
_FILES = 650_000  # bytes of the network, the report and other files of a run that hardly grow with it
_BAR = "{desc} {n}/{total} [{elapsed}<{remaining}]: {postfix}"
_STAGES: dict[str, Callable[[Run], PlannedCost]] = {
    "first cut": first_cut.cost,
    "features": featurize.cost,
    "influence": exact.cost,
    "labels": label.cost,
    "network": without_labels.cost,
    "probes": label.probe_cost,
    "near-duplicates": near_duplicates.cost,
    "shortlist": verify.cost,
    "selection": choose.cost,
    "difficulty": arrange.cost,
}


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run.

    Attributes:
        samples: pool samples after duplicates, excluded and bad rows are out; of a first cut, those that it keeps.
        targets: target samples; the pool's number without a target.
        known: known samples.
        selected: how many will be chosen; None for a budget in tokens.
        objective: name of the objective that is maximised.
        pairs: pairs to compute exactly: labels, probes and a shortlist, or all of them.
        all_pairs: pairs that the selection needs; of estimated scores, one for each sample.
        tokens: LLM tokens of that; None when the influence function does not count them.
        seconds: stage to expected seconds, from the measured rates.
        memory: bytes of the process at its peak, with the models.
        disk: bytes that the run folder will take.
        checkpoints: bytes in addition while the run lasts, of checkpoints and gradients.
        difficulty_tokens: LLM tokens of the selected samples' difficulty; None where none is computed, or not counted.
        exact_seconds: expected seconds of measuring all pairs exactly; None where nothing is measured, or everything.
        at_least: "at least " where more pairs may be measured: in active learning, of which the first round is planned,
            and of a shortlist under a budget in tokens.
        form: how all pairs are held for the choice, in words.
        labels: the labelled samples in words; empty without any.
        workers: the processes that compute elsewhere in words; empty without any.
        unit: what is measured: "pair", or "sample" where each has one score that is estimated.
        uncut: pool samples before the first cut; None without one, or where it keeps all.
        estimated: sides of which a part was read, so that the number of their samples is an estimate.
    """

    samples: int
    targets: int
    known: int
    selected: int | None
    objective: str
    pairs: int
    all_pairs: int
    tokens: int | None
    seconds: dict[str, float]
    memory: int
    disk: int
    checkpoints: int = 0
    difficulty_tokens: int | None = None
    exact_seconds: float | None = None
    at_least: str = ""
    form: str = ""
    labels: str = ""
    workers: str = ""
    unit: str = "pair"
    uncut: int | None = None
    estimated: frozenset[str] = field(default_factory=frozenset)

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.seconds.items())
        tokens = "" if self.tokens is None else f", {self.tokens:,} LLM tokens"
        known = f"; known: {self._about('known')}{self.known:,}" if self.known else ""
        chosen = "by tokens" if self.selected is None else f"{self._about('pool')}{self.selected:,}"
        targets = self._about("target" if "target" in self.estimated or self.targets != self.samples else "pool")
        lines = [
            f"Pool: {self._pool()}; targets: {targets}{self.targets:,}{known};"
            f" to choose: {chosen}, by {self.objective}",
            f"Measure exactly: {self.at_least}{self.pairs:,} of {counted(self.all_pairs, self.unit)}"
            f" ({percent(self.pairs / self.all_pairs)}){tokens}",
            f"Time: about {duration(sum(self.seconds.values()))} ({stages}), at the rate measured just now",
        ]
        if self.labels:
            lines.insert(2, f"Labels: {self.labels}")
        if self.workers:
            lines.append(f"Workers: {self.workers}; the time above is that of this process alone")
        if self.form:
            lines.append(f"For the choice, all pairs are {self.form}")
        if self.exact_seconds is not None:
            lines.append(f"All pairs exactly: about {duration(self.exact_seconds)}")
        if self.difficulty_tokens:
            lines.append(f"Difficulty of the selected samples: about {self.difficulty_tokens:,} LLM tokens")
        while_it_runs = f", and {size_text(self.checkpoints)} of checkpoints and gradients while it runs"
        checkpoints = while_it_runs if self.checkpoints else ""
        lines.append(f"Memory: about {size_text(self.memory)}; disk: about {size_text(self.disk)}{checkpoints}")
        if self.estimated:
            lines.append(
                f"About: the first {READ:,} rows were read, and the number of all is estimated from their size."
            )
        return "\n".join(printable(line) for line in [*lines, "Nothing was written."])

    def _pool(self) -> str:
        if self.uncut is None:
            return f"{self._about('pool')}{counted(self.samples, 'sample')}"
        whole = f"{self._about('uncut')}{counted(self.uncut, 'sample')}"
        return f"{whole}, of which the first cut keeps {self._about('pool')}{self.samples:,}"

    def _about(self, side: str) -> str:
        return "about " if side in self.estimated else ""


def plan(config: Config, *, progress: bool = False) -> RunPlan:
    """Read the data, or the first rows of it, measure short rates, and add up the stages' costs.

    Raises:
        NNCIFTError: the run itself would be refused.
    """
    folder = RunFolder(config.folder)
    config, identity = settled(config, config.identity(), folder)
    folder.check(identity, default_fields())
    with (
        tempfile.TemporaryDirectory(prefix="nncift-plan-") as temporary,
        tqdm(total=3 + len(_STAGES), desc="dry run", bar_format=_BAR, **drawn(progress)) as bar,
    ):
        bar.set_postfix_str("reading")
        sources = sources_of(config, {})
        first = {side: _first_rows(config, side, source) for side, source in sources.items() if source is not None}
        limited: dict[str, Any] = {side: rows.source for side, rows in first.items()}
        run = Run.resolve(config, RunFolder(temporary), limited, progress=False)
        read(run)
        appended_to = RunFolder(str(config.from_run)).samples("pool").samples  # which are all read
        for side, rows in first.items():
            if not rows.ended:
                kept = len(open_samples(appended_to)) if side == "pool" and config.append else 0
                run.sizes[side] = kept + round((len(run.samples[side]) - kept) * rows.rows / max(rows.read, 1))
        first_cut.plan(run)
        _step(bar, "checking")
        check(run)
        costs = {}
        for name, cost in _STAGES.items():
            _step(bar, f"planning the {name}")
            costs[name] = cost(run)
        _step(bar, "adding up")
        result = _summed(run, list(costs.values()))
        bar.set_postfix_str("done")
        bar.update(bar.total - bar.n)
        del run  # its samples are memory-mapped from the temporary folder
        shutil.rmtree(Path(temporary), ignore_errors=True)
    return result


def _first_rows(config: Config, side: str, source: SourceLike) -> FirstRows:
    limit = READ if config.labels_from is None else sys.maxsize  # exact values may be of any rows
    split = side_splits(config)[side]
    return FirstRows(open_source(source, split=split, limit=config.row_bytes, seed=config.seed), limit)


def _step(bar: tqdm, name: str) -> None:
    bar.set_postfix_str(name)
    bar.update()


def _summed(run: Run, costs: list[PlannedCost]) -> RunPlan:
    sizes = {side: run.size(side) for side in ("pool", "target", "known")}
    selected = None if run.budget.max_tokens is not None else run.budget.count(samples_budgeted(run))
    checkpoints = sum(cost.checkpoints for cost in costs)
    kept = 0 if run.config.keep_checkpoints else checkpoints
    scored = run.is_pointwise and not run.is_exact
    return RunPlan(
        samples=sizes["pool"],
        targets=sizes["target"],
        known=sizes["known"],
        selected=selected,
        objective=trial_objective(run).name,
        pairs=sum(cost.pairs for cost in costs if run.verifier is None or cost.stage != "verify"),
        all_pairs=sizes["pool"] * (1 if scored else sizes["target"]),
        tokens=_tokens(costs),
        seconds={cost.stage: cost.seconds for cost in costs if cost.seconds},
        memory=peak_memory() + max(cost.memory for cost in costs),
        disk=_data_on_disk(run, selected) + sum(cost.disk for cost in costs) - kept,
        checkpoints=kept,
        difficulty_tokens=next(cost.tokens for cost in costs if cost.stage == "difficulty"),
        exact_seconds=_exact_seconds(run),
        form=forms.described(run),
        at_least="at least " if any(cost.at_least for cost in costs) else "",
        labels=label.describe_labels(run) + verify.described(run),
        workers=described(run.config),
        unit="sample" if scored else "pair",
        uncut=run.uncut,
        estimated=frozenset(run.sizes),
    )


def _data_on_disk(run: Run, selected: int | None) -> int:
    """Bytes of the samples, the subset and the files that hardly grow with them."""
    total = 0.0
    for side, samples in run.samples.items():
        read, size = samples, run.size(side)
        if side == "pool":
            read, size = run.whole_pool, run.uncut or size
        stored = sum(path.stat().st_size for path in run.folder.samples(side).path.iterdir())
        each = stored / max(len(read), 1)
        total += each * size
        if side == "pool":
            total += each / 2 * (run.size(side) / 10 if selected is None else selected)  # the original rows of a subset
    return round(total) + _FILES


def _exact_seconds(run: Run) -> float | None:
    """Expected time of all pairs, by the cost model of the labels."""
    if run.influence is None or run.is_exact or not run.config.learns:
        return None
    own, pool = run.own_target, run.pool.rows
    rows = pool.select(range(min(_COUNTED, len(pool))))
    targets = rows if own else run.target.rows.select(range(min(_COUNTED, len(run.target))))
    return run.rates.seconds(grid_work(run.function, rows, targets, run.size("pool"), run.size("target")))


def _tokens(costs: list[PlannedCost]) -> int | None:
    """Tokens of all that is measured; None where nothing is, or they are not counted."""
    measured = [cost.tokens for cost in costs if cost.pairs]
    counted_ones = [tokens for tokens in measured if tokens is not None]
    return sum(counted_ones) if measured and len(counted_ones) == len(measured) else None
