"""`--dry-run`: what a run would do and cost: the stages' planned costs, added up. Writes nothing."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nncift.config import Config
from nncift.errors import printable
from nncift.pipeline import choose, featurize, label, verify
from nncift.pipeline.check import check
from nncift.pipeline.context import Run
from nncift.pipeline.inherit import sources_of
from nncift.pipeline.read import read
from nncift.run.costs import PlannedCost
from nncift.run.folder import RunFolder

_STAGES = (featurize.cost, label.cost, label.probe_cost, verify.cost, choose.cost)


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run.

    Attributes:
        samples: pool samples after duplicates, excluded and bad rows are out.
        targets: target samples; the pool's number without a target.
        known: known samples.
        selected: how many will be chosen; None for a budget in tokens.
        pairs: pairs to measure exactly: labels, probes and a shortlist.
        all_pairs: pairs to estimate.
        tokens: LLM tokens of that; None when the influence function does not count them.
        seconds: stage to expected seconds, from the measured rates.
        memory: bytes that the arrays of the run take, models not counted.
        disk: bytes the run folder will take.
        at_least: "at least " where more pairs may be measured: in active learning, of which the first round is planned,
            and of a shortlist under a budget in tokens.
    """

    samples: int
    targets: int
    known: int
    selected: int | None
    pairs: int
    all_pairs: int
    tokens: int | None
    seconds: dict[str, float]
    memory: int
    disk: int
    at_least: str = ""

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in self.seconds.items())
        tokens = "" if self.tokens is None else f", {self.tokens:,} LLM tokens"
        known = f"; known: {self.known:,}" if self.known else ""
        chosen = "by tokens" if self.selected is None else f"{self.selected:,}"
        lines = (
            f"Pool: {self.samples:,} samples; targets: {self.targets:,}{known}; to choose: {chosen}",
            f"Measure exactly: {self.at_least}{self.pairs:,} of {self.all_pairs:,} pairs"
            f" ({self.pairs / self.all_pairs:.2%}){tokens}",
            f"Time: about {sum(self.seconds.values()):,.0f} s ({stages}), at the rate measured just now",
            f"Memory: about {self.memory / 1e6:,.0f} MB beside the models; disk: about {self.disk / 1e6:,.0f} MB",
            "Nothing was written.",
        )
        return "\n".join(printable(line) for line in lines)


def plan(config: Config, *, progress: bool = False) -> RunPlan:
    """Read the data, measure short rates of the features and the influence function, and add up the stages' costs.

    Raises:
        NNCIFTError: the run itself would be refused.
    """
    RunFolder(config.folder).check(config.identity())
    with tempfile.TemporaryDirectory(prefix="nncift-plan-") as temporary:
        sources = sources_of(config, {})
        run = Run.resolve(config, RunFolder(temporary), sources, progress=progress)
        read(run)
        check(run)
        costs = [cost(run) for cost in _STAGES]
        on_disk = sum(path.stat().st_size for path in run.folder.samples("pool").path.iterdir())
        result = RunPlan(
            samples=len(run.pool),
            targets=len(run.target),
            known=0 if run.known is None else len(run.known),
            selected=None if run.budget.max_tokens is not None else run.budget.count(len(run.pool)),
            pairs=sum(cost.pairs for cost in costs),
            all_pairs=len(run.pool) * len(run.target),
            tokens=_tokens(costs),
            seconds={cost.stage: cost.seconds for cost in costs if cost.seconds},
            memory=sum(cost.memory for cost in costs),
            disk=2 * on_disk + sum(cost.disk for cost in costs),
            at_least="at least " if any(cost.at_least for cost in costs) else "",
        )
        del run  # its samples are memory-mapped from the temporary folder
        shutil.rmtree(Path(temporary), ignore_errors=True)
    return result


def _tokens(costs: list[PlannedCost]) -> int | None:
    """Tokens of all that is measured; a pair of the later stages is taken to read as many as one of the labels."""
    labels = next(cost for cost in costs if cost.stage == "labels")
    if labels.tokens is None or not labels.pairs:
        return labels.tokens
    return labels.tokens + round(labels.tokens / labels.pairs * sum(c.pairs for c in costs if c is not labels))
