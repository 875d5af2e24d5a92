"""`nncift compare --dry-run`: what a comparison would train and cost. Writes nothing.

The selection of each function is planned as a run's dry run is; the trials are extrapolated from a training and a test
on a handful of samples, by tokens.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nncift.config import Config
from nncift.evaluation.studies import points
from nncift.influence.catalogue import is_factored
from nncift.influence.random_rows import kmeans_seconds
from nncift.models.text.examples import encode_examples
from nncift.pipeline.plan import RunPlan
from nncift.pipeline.plan import plan as plan_run
from nncift.proof.inputs.inputs import Inputs, prepare
from nncift.proof.trials.cells import STRATIFIED
from nncift.proof.trials.selectors import Ranking, Selector
from nncift.proof.trials.trials import Bench, Trial
from nncift.run.folder.costs import duration, seconds_of
from nncift.run.folder.records import counted
from nncift.training.finetune import fine_tune

_ROWS, _ITEMS = 6, 6  # of the trial training and test


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison would take.

    Attributes:
        trainings: fine-tunings.
        in_context: tests with examples in the context.
        choosing: name of each way of choosing to expected seconds.
        tuning: expected seconds of all fine-tunings.
        testing: expected seconds of all tests.
        networks: of the studies, whose time is not counted.
    """

    trainings: int
    in_context: int
    choosing: Mapping[str, float]
    tuning: float
    testing: float
    networks: int = 0

    def __str__(self) -> str:
        every = sum(self.choosing.values()) + self.tuning + self.testing
        choosing = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.choosing.items())
        context = f" and {counted(self.in_context, 'test')} in context" if self.in_context else ""
        lines = [
            f"Train: {counted(self.trainings, 'time')}{context}, at most (equal choices are trained on once)",
            f"Time: about {duration(every)} (choosing: {choosing}; tuning {duration(self.tuning)}, testing"
            f" {duration(self.testing)}), at the rate measured just now",
            "Several processes share the work if the same command is started several times.",
            "Nothing was written.",
        ]
        if self.networks:
            fitted = f"Fit for the studies: {counted(self.networks, 'network')}, seconds each, which are not counted"
            lines.insert(1, fitted)
        if not self.testing:
            lines[0] = "Train: nothing, without a test file"
        return "\n".join(lines)


def plan(pool: Any, **options: Any) -> ComparisonPlan:
    """The plan of a comparison; arguments as of `compare`."""
    sources = {"pool": pool} | {name: options.pop(name, None) for name in ("test", "target", "known")}
    with tempfile.TemporaryDirectory(prefix="nncift-plan-") as temporary:
        inputs = prepare(sources, options, output=temporary, progress=False)
        choosing = _choosing(inputs)
        each_function = sum(len(points(study, range(inputs.proof.seeds))) for study in inputs.proof.studies)
        networks = each_function * len(inputs.influences)
        if inputs.bench is None:
            return ComparisonPlan(0, 0, choosing, 0.0, 0.0, networks)
        bench, n = inputs.bench, len(inputs.samples)
        every = Ranking(np.arange(n), np.ones(n))
        rankings = {selector: dict.fromkeys(inputs.budgets, every) for selector in inputs.selectors}
        draws = [np.roll(np.arange(n), seed) for seed in inputs.seeds]
        stratified = dict.fromkeys(inputs.budgets if inputs.draws_stratified else (), draws)
        cells = inputs.grid(rankings, stratified, np.zeros(n), bench.response_tokens).cells()
        trials = [trial for cell in cells for trial in cell.trials]
        tuning, testing = _rates(bench, Path(temporary))
        examples = encode_examples(bench.model.tokenization, inputs.samples, cut_responses=True)
        trained = [trial for trial in trials if trial.method == "lora"]
        shown = [trial for trial in trials if trial.method == "icl"]
        each = sum(len(example.ids) for example in examples) / n
        tokens = each * sum(len(trial.rows) for trial in trained)
        return ComparisonPlan(
            len(trained),
            len(shown),
            choosing,
            tuning * tokens * bench.tuning.epochs,
            testing * (1 + len(trained) + (1 + bench.shots) * len(shown)),
            networks,
        )


def _choosing(inputs: Inputs) -> dict[str, float]:
    """Expected seconds of the values that choices are made from, each counted once, and of shortlists."""
    selectors = inputs.selectors if inputs.bench is not None else []
    drawn = [STRATIFIED] if inputs.draws_stratified and inputs.bench is not None else []
    studied = [Selector("exact", name) for name in inputs.influences] if inputs.proof.studies else []
    found = {}
    for selector in dict.fromkeys([*drawn, *(selector.values for selector in selectors), *studied]):
        config = inputs.config(selector)
        if selector in drawn:  # whose clusters are counted below
            config = dataclasses.replace(config, influence_options={"clusters": 1})
        planned = _planned(config)
        exact = (planned.exact_seconds or 0.0) + (planned.seconds.get("features", 0.0) if selector in studied else 0.0)
        whole_run = selector.kind == "estimated" or is_factored(selector.influence)
        found[selector.name] = sum(planned.seconds.values()) if whole_run else exact
    for selector in drawn:
        found[selector.name] += inputs.proof.seeds * sum(kmeans_seconds(len(inputs.samples), k) for k in inputs.budgets)
    for selector in selectors:
        if selector.kind == "verified":
            config = dataclasses.replace(
                inputs.config(selector), verify=selector.shortlist, budget=str(max(inputs.budgets))
            )
            largest = _planned(config).seconds.get("verify", 0.0)
            found[selector.name] = largest * sum(inputs.budgets) / max(inputs.budgets)
    if inputs.bench is not None and "phased" in inputs.proof.methods:
        config = dataclasses.replace(inputs.difficulty_config, budget="100%")
        found[f"difficulty, {inputs.difficulty}"] = _planned(config).seconds.get("difficulty", 0.0)
    return found


def _planned(config: Config) -> RunPlan:
    """The plan of a run in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="nncift-plan-") as folder:
        return plan_run(dataclasses.replace(config, output=folder))


def _rates(bench: Bench, folder: Path) -> tuple[float, float]:
    """Seconds per trained token, and of one test of all items, from a few short samples."""
    model, settings = bench.model, dataclasses.replace(bench.tuning, epochs=1, batch_size=_ROWS // 2)
    lengths = np.array([len(p) + len(r) for p, r in zip(bench.pool["prompt"], bench.pool["response"], strict=True)])
    rows = bench.pool.select(np.argsort(lengths, kind="stable")[len(lengths) // 2 :][:_ROWS])
    tokens = sum(len(example.ids) for example in encode_examples(model.loaded, rows))
    tuning = seconds_of(lambda: fine_tune(model, rows, settings, folder / "adapter"))
    few = dataclasses.replace(bench, folder=folder / "trials", test=bench.test.first(_ITEMS))
    testing = seconds_of(lambda: few.run([Trial("none")]))
    return tuning / max(tokens, 1), testing / _ITEMS * len(bench.test.items)
