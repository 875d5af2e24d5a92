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

from nncift.influence.catalogue import is_factored
from nncift.models.examples import encode_examples
from nncift.pipeline.plan import plan as plan_run
from nncift.proof.compare import Inputs, prepare
from nncift.proof.selectors import Selector
from nncift.proof.trials import Bench, Trial
from nncift.run.costs import duration, seconds_of
from nncift.run.records import counted
from nncift.training.finetune import fine_tune

_ROWS, _ITEMS = 6, 6  # of the trial training and test


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison would take.

    Attributes:
        trainings: fine-tunings.
        in_context: tests with examples in the context.
        choosing: name of each selector to expected seconds.
        tuning: expected seconds of all fine-tunings.
        testing: expected seconds of all tests.
    """

    trainings: int
    in_context: int
    choosing: Mapping[str, float]
    tuning: float
    testing: float

    def __str__(self) -> str:
        every = sum(self.choosing.values()) + self.tuning + self.testing
        choosing = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.choosing.items())
        context = f" and {counted(self.in_context, 'test')} in context" if self.in_context else ""
        return "\n".join(
            [
                f"Train: {counted(self.trainings, 'time')}{context}, at most (equal choices are trained on once)",
                f"Time: about {duration(every)} (choosing: {choosing}; tuning {duration(self.tuning)}, testing"
                f" {duration(self.testing)}), at the rate measured just now",
                "Several processes share the work if the same command is started several times.",
                "Nothing was written.",
            ]
        )


def plan(*arguments: Any, **options: Any) -> ComparisonPlan:
    """The plan of a comparison; arguments as of `compare`."""
    with tempfile.TemporaryDirectory(prefix="nncift-plan-") as temporary:
        inputs = prepare(*arguments, output=temporary, progress=False, **options)
        choosing = {selector.name: _choosing(selector, inputs) for selector in inputs.selectors}
        n = len(inputs.samples)
        rankings = {s: dict.fromkeys(inputs.budgets, np.arange(n)) for s in inputs.selectors}
        cells = inputs.grid(rankings).cells()
        trials = [trial for cell in cells for trial in cell.trials]
        tuning, testing = _rates(inputs.bench, Path(temporary))
        examples = encode_examples(inputs.bench.model.tokenization, inputs.samples, cut_responses=True)
        trained = [trial for trial in trials if trial.method == "lora"]
        shown = [trial for trial in trials if trial.method == "icl"]
        each = sum(len(example.ids) for example in examples) / n
        tokens = each * sum(len(trial.rows) for trial in trained)
        return ComparisonPlan(
            len(trained),
            len(shown),
            choosing,
            tuning * tokens * inputs.bench.tuning.epochs,
            testing * (1 + len(trained) + (1 + inputs.bench.shots) * len(shown)),
        )


def _choosing(selector: Selector, inputs: Inputs) -> float:
    """Expected seconds of a selector's choices."""
    config = inputs.config(selector)
    with tempfile.TemporaryDirectory(prefix="nncift-plan-") as folder:
        planned = plan_run(dataclasses.replace(config, output=folder))
    whole_run = selector.kind == "estimated" or is_factored(selector.influence)
    return sum(planned.seconds.values()) if whole_run else planned.exact_seconds or 0.0


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
