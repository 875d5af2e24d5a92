"""The comparisons of `docs/results.md`, worked on by as many processes as are started: one per GPU, or several on it.

    python benchmarks/evidence.py DATA
    python benchmarks/evidence_compare.py DATA --settings gigaword broad --seconds 600
    python benchmarks/evidence_compare.py DATA --settings gigaword broad --tables

Each process makes choices, then trains, the first seed of every comparison before the second of any, so that a short
time gives something of each; 30 % of the pool, and choices of equal response tokens, come last. Rows that several
comparisons train on alike, random ones above all, are trained on once and tested for each; the costs of the first
comparison alone count that training. Comparisons lie in DATA/compared, one folder each; a killed process loses its
training alone. `--tables` writes what the finished trainings give, and trains nothing. `nncift compare` with the
command that is printed takes every training that is there, and does those that are missing.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evidence import OTHERS
from nncift.proof.compare import cells_of, costs
from nncift.proof.folder import claimed
from nncift.proof.inputs.inputs import Inputs, prepare
from nncift.proof.options import FREE
from nncift.proof.results.analysis import analyse, overlaps
from nncift.proof.results.tables import write_tables
from nncift.proof.trials.cells import Cell
from nncift.proof.trials.trials import Bench, Trial
from nncift.run.storage.files import remove, write_json

LATE = 0.2  # of the pool: choices of more rows than this are trained on last


@dataclass(frozen=True)
class Setting:
    """One comparison: files of `evidence.py`, and what is compared."""

    letter: str
    test: str = "test"
    target: str | None = None
    known: str | None = None
    pool: str = "pool"
    seeds: int = 3
    influence: tuple[str, ...] = ("less", "delift")  # estimated
    influence_options: tuple[str, ...] = ()  # of the one function that is estimated: NAME=VALUE
    exact: tuple[str, ...] = ("less",)
    free: tuple[str, ...] = FREE
    objectives: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("lora",)
    units: tuple[str, ...] = ("rows",)
    budget: tuple[str, ...] = ("0.05", "0.1", "0.3")
    curve: tuple[int, ...] = (25, 50, 100, 200, 400, 1000)  # rows of random choices


def of_default(letter: str, **others: Any) -> Setting:
    """A setting that looks at the default influence function alone."""
    own = {"influence": ("gradient-sketch",), "exact": (), "free": ("gradient-sketch",), "budget": ("0.05", "0.1")}
    return Setting(letter, **{**own, "curve": (50, 100), **others})


def large(**others: Any) -> Setting:
    """A setting with 5,000 rows."""
    free = ("gradient-sketch", "embedding-similarity", "stratified-random")
    shared = {"pool": "pool-large", "free": free, "budget": ("0.05",), "curve": (125, 250, 500), "seeds": 5}
    return of_default("a", **{**shared, **others})


def of_other(family: str) -> Setting:
    """A setting of a family that nothing was chosen on, with ten targets."""
    own = {"test": f"test-{family}", "target": f"target-{family}-few", "budget": ("50",), "curve": (50, 200)}
    return of_default("d", **own)


def of_layers(*chosen: str) -> Setting:
    """LESS as a training like the one to come has it, of some layers, exact and estimated, on one narrow target."""
    alike = ("epochs=3", "learning_rate=2e-4", "batch_size=8", "fraction=1.0", "lora.rank=16", "lora.alpha=32")
    options = ("preconditioned=both", "sharpness=3", *(f"training.{option}" for option in alike), *chosen)
    own = {"influence": ("less",), "exact": ("less",), "free": ("gradient-sketch",), "influence_options": options}
    return Setting("a", "test-qasc", "target-qasc", budget=("0.05",), curve=(25, 50), **own)


OBJECTIVES = tuple(f"facility-location{form}" for form in ("-reciprocal-rank", "-mutual-information", ""))
SETTINGS = {
    "gigaword": Setting("a", "test-gigaword", "target-gigaword", units=("rows", "tokens")),
    "qasc": Setting("a", "test-qasc", "target-qasc", units=("rows", "tokens")),
    "gsm8k": Setting("c", target="target", units=("rows", "tokens")),
    "broad": Setting("a", target="target"),
    "none": Setting("a"),
    "alpaca": Setting("b", target="target", curve=(25, 50, 100, 200, 500)),
    "large-none": large(),
    "large-broad": large(target="target"),
    "large-gigaword": large(test="test-gigaword", target="target-gigaword", seeds=3),
    "large-qasc": large(test="test-qasc", target="target-qasc", seeds=3),
    "objectives": of_default("a", target="target", objectives=OBJECTIVES),
    "qasc-few": of_default("a", test="test-qasc", target="target-qasc-few", objectives=OBJECTIVES),
    "alpaca-few": of_default("b", target="target-few", objectives=OBJECTIVES, budget=("50",), curve=(25, 50)),
    "gsm8k-few": of_default("c", target="target-few", objectives=OBJECTIVES),
    "methods": of_default("a", methods=("lora", "phased", "weighted")),
    "methods-qasc": of_default("a", test="test-qasc", target="target-qasc", methods=("lora", "phased", "weighted")),
    "continual": of_default("a", test="test-new", known="known"),
    "not-continual": of_default("a", test="test-new"),
    "layers-all": of_layers(),
    "layers-last": of_layers("layers=last:16"),
    "layers-one": of_layers("layers=15"),
    **{f"other-{family}": of_other(family) for family in OTHERS},
}


def sources_of(setting: Setting, data: Path) -> dict[str, str]:
    """Paths of the pool, the test set, the target and the known samples; those that there are."""
    named = {"pool": setting.pool, "test": setting.test, "target": setting.target, "known": setting.known}
    return {side: str(data / setting.letter / f"{name}.jsonl") for side, name in named.items() if name}


def options_of(setting: Setting, given: argparse.Namespace) -> dict[str, Any]:
    """The other options of the comparison."""
    found = {
        "influence": setting.influence,
        "influence_options": setting.influence_options,
        "exact": setting.exact,
        "free": setting.free,
        "objectives": setting.objectives,
        "methods": setting.methods,
        "units": setting.units,
        "budget": setting.budget,
        "curve": tuple(map(str, setting.curve)),
    }
    shared: dict[str, Any] = {"model": given.model, "encoder": given.encoder, "dtype": given.dtype}
    shared["seeds"] = given.seeds or setting.seeds
    return {name: value for name, value in found.items() if value} | shared


def command(setting: Setting, given: argparse.Namespace, output: Path) -> str:
    """The command of the same comparison."""
    sources = sources_of(setting, given.data)
    parts = ["nncift", "compare", sources.pop("pool")]
    options = options_of(setting, given)
    for option in options.pop("influence_options", ()):
        parts += ["--influence-option", option]
    for name, value in [*sources.items(), *options.items(), ("output", str(output))]:
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


def trials_of(inputs: Inputs, bench: Bench) -> Iterator[tuple[tuple[bool, int, float], Trial]]:
    """Every trial after its place in the order: late ones last, by the number of the seed, and as in the table."""
    cells = cells_of(inputs, bench)
    for place, cell in enumerate(cells):
        late = cell.unit == "tokens" or cell.budget > LATE * len(inputs.samples)
        for number, trial in enumerate(cell.trials):
            yield (late, number, place / len(cells)), trial


def in_order(benches: Sequence[tuple[Inputs, Bench]]) -> dict[str, list[tuple[Bench, Trial]]]:
    """The trials of all comparisons in the order of their places, by training: each at the first place it has."""
    test = benches[0][1].test  # any: what is trained does not depend on it
    found = [
        (place, k, bench, trial)
        for k, (inputs, bench) in enumerate(benches)
        for place, trial in trials_of(inputs, bench)
    ]
    alike: dict[str, list[tuple[Bench, Trial]]] = {}
    blind = [replace(bench, test=test, _keys={}) for _, bench in benches]
    for _, k, bench, trial in sorted(found, key=lambda one: one[:2]):
        alike.setdefault(blind[k].key(trial), []).append((bench, trial))
    return alike


def run(trials: Sequence[tuple[Bench, Trial]], adapter: Path) -> None:
    """Train once, unless another process does, and test for each comparison."""
    with claimed(adapter.with_suffix(".claim"), wait=False) as ours:  # a file that is never made
        if ours:
            for bench, trial in trials:
                bench.run([trial], keep={trial: adapter}, wait=False)
            remove(adapter)


def tables(inputs: Inputs, bench: Bench) -> None:
    """Write the results of the cells whose trainings are all there."""

    def finished(cell: Cell) -> bool:
        return all(bench.path(trial).exists() for trial in cell.trials)

    every = cells_of(inputs, bench)
    cells = [cell for cell in every if finished(cell)]
    print(f"{len(cells)} of {len(every)} rows of the table are finished")
    if cells:
        records = analyse(cells, bench.scores, bench.response_tokens)
        results, spent = inputs.facts() | {"cells": records, "overlaps": overlaps(cells)}, costs(inputs, bench, cells)
        write_json(inputs.folder.results, results)
        write_json(inputs.folder.costs, spent)
        write_tables(inputs.folder, results, spent)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--first", type=int, default=0, help="setting that this process makes choices for first")
    parser.add_argument("--seeds", type=int, default=None, help="of every setting; its own unless given")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no training is begun")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--encoder", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tables", action="store_true", help="train nothing, write what is there")
    given = parser.parse_args()
    end = time.monotonic() + given.seconds
    if given.tables:
        for inputs, bench in prepared(given):
            tables(inputs, bench)
        return
    todo = in_order(list(prepared(given)))
    for key, trials in tqdm(todo.items(), desc="trainings", unit=""):
        if time.monotonic() > end:
            break
        run(trials, given.data / "compared" / "adapters" / key)


if __name__ == "__main__":
    main()
