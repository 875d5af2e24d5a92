"""The comparisons of `docs/results.md`, worked on by as many processes as are started: one per GPU, or several on it.

    python benchmarks/evidence.py DATA
    python benchmarks/evidence_compare.py DATA --settings gigaword broad --seconds 600

Each process makes choices, then trains, the first seed of every comparison before the second of any, so that a short
time gives something of each. Comparisons lie in DATA/compared, one folder each; a killed process loses its training
alone. At the end, or at any time, `nncift compare` with the command that is printed gives the tables: it takes every
training that is there, and does those that are missing.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nncift.proof.compare import cells_of
from nncift.proof.inputs import Inputs, prepare
from nncift.proof.trials import Bench, Trial

CURVE = (25, 50, 100, 200, 400)  # rows of random choices
ESTIMATED, EXACT = ("less", "delift"), ("less",)


@dataclass(frozen=True)
class Setting:
    """One comparison: files of `evidence.py`, and what is compared."""

    letter: str
    target: str | None
    test: str
    exact: tuple[str, ...] = EXACT
    objectives: tuple[str, ...] = ()
    curve: tuple[int, ...] = CURVE


OBJECTIVES = ("facility-location-mutual-information", "facility-location", "concave-cover")
SETTINGS = {
    "gigaword": Setting("a", "target-gigaword", "test-gigaword", (*EXACT, "delift", "selectit")),
    "qasc": Setting("a", "target-qasc", "test-qasc"),
    "gsm8k": Setting("c", "target", "test"),
    "broad": Setting("a", "target", "test", (*EXACT, "selectit"), OBJECTIVES),
    "alpaca": Setting("b", "target", "test", curve=(25, 50, 100, 200, 500)),
    "none": Setting("a", None, "test"),
}


def sources_of(setting: Setting, data: Path) -> dict[str, str]:
    """Paths of the pool, the test set and the target."""
    named = {"pool": "pool", "test": setting.test, "target": setting.target}
    return {side: str(data / setting.letter / f"{name}.jsonl") for side, name in named.items() if name}


def options_of(setting: Setting, given: argparse.Namespace) -> dict[str, Any]:
    """The other options of the comparison."""
    return {
        "influence": ESTIMATED,
        "exact": setting.exact,
        "budget": ("0.05", "0.1"),
        "curve": tuple(map(str, setting.curve)),
        "units": ("rows",),
        "seeds": given.seeds,
        "model": given.model,
        "encoder": given.encoder,
        "dtype": "float32",
        **({"objectives": setting.objectives} if setting.objectives else {}),
    }


def command(setting: Setting, given: argparse.Namespace, output: Path) -> str:
    """The command of the same comparison."""
    sources = sources_of(setting, given.data)
    parts = ["nncift", "compare", sources.pop("pool")]
    for name, value in [*sources.items(), *options_of(setting, given).items(), ("output", str(output))]:
        parts += [f"--{name}", ",".join(value) if isinstance(value, tuple) else str(value)]
    return shlex.join(parts)


def prepared(given: argparse.Namespace) -> Iterator[tuple[Inputs, Bench]]:
    """The comparisons' inputs, all with one model in memory."""
    shared, first = None, given.first % len(given.settings)
    for name in given.settings[first:] + given.settings[:first]:
        setting, output = SETTINGS[name], given.data / "compared" / name
        print(command(setting, given, output), flush=True)
        inputs = prepare(sources_of(setting, given.data), options_of(setting, given), output=output, progress=False)
        assert inputs.bench is not None
        shared = shared or inputs.bench.model
        yield inputs, replace(inputs.bench, model=shared)


def trials_of(inputs: Inputs, bench: Bench) -> Iterator[tuple[int, float, Trial]]:
    """Every trial, with the number of its seed and its place in the table, 0 to 1."""
    cells = cells_of(inputs, bench)
    for place, cell in enumerate(cells):
        for number, trial in enumerate(cell.trials):
            yield number, place / len(cells), trial


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--first", type=int, default=0, help="setting that this process makes choices for first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no training is begun")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--encoder", default="embedded")
    given = parser.parse_args()
    end = time.monotonic() + given.seconds
    todo = [
        (number, place, k, trial, bench)
        for k, (inputs, bench) in enumerate(list(prepared(given)))
        for number, place, trial in trials_of(inputs, bench)
    ]
    todo.sort(key=lambda one: one[:3])
    for *_, trial, bench in tqdm(todo, desc="trainings", unit=""):
        if time.monotonic() > end:
            break
        bench.run([trial], wait=False)


if __name__ == "__main__":
    main()
