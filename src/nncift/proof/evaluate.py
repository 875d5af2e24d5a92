"""`nncift evaluate`: the model trained on the choice of a run, and with it as examples, on a test file.

`evaluate` reads top to bottom as the steps of an evaluation. Each leaves files in a folder, so a killed call resumes,
and ends with the same `results.json`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import Config
from nncift.errors import ConfigError, DataError, RunError
from nncift.evaluation.comparisons import adjust
from nncift.models.spec import ModelSpec
from nncift.pipeline.components.precision import settled
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
    tuning_of,
)
from nncift.proof.options import ProofOptions
from nncift.proof.results.analysis import as_record, differences, metric_record, table_of
from nncift.proof.results.pages import write_page
from nncift.proof.trials.trials import UNTRAINED, Bench, Trial
from nncift.report.html import write_report
from nncift.run.folder.folder import RunFolder
from nncift.run.storage.checksums import content_hash
from nncift.run.storage.files import read_json, write_json
from nncift.selection.selection import Selection

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.data.sources.sources import SourceLike

_INHERITED = (  # from the run, unless they are given
    *("model", "encoder", "dtype", "device", "batch_size", "max_length", "wording", "trust_remote_code", "seed"),
    *("prompt_field", "response_field", "messages_field", "turns", "skip_bad_rows", "max_row_bytes"),
)

_ADDED = ("seeds", "against")  # what may differ between calls with one folder


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        folder: with everything behind them.
        results: the content of `results.json`.
    """

    folder: Path
    results: dict[str, Any]

    def __repr__(self) -> str:
        return f"Evaluation({str(self.folder)!r}, {len(self.results['models'])} models)"


def evaluate(
    run: str | os.PathLike[str],
    *,
    test: SourceLike,
    against: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> Evaluation:
    """Fine-tune on the choice of a run, use it as examples in the context, and test both beside the model as it is.

    Args:
        run: the folder of a finished run.
        test: prompts with reference responses: a file, folder, hub id, dataset, DataFrame or dicts.
        against: another finished run, whose choice is used likewise and compared.
        output: the folder of the evaluation; `evaluation/NAME-OF-THE-TEST` in the run's unless given.
        progress: show progress bars.
        **options: as `nncift evaluate --help` describes them: methods, metrics, seeds, epochs, ...

    Returns:
        The results; the adapter of the first training lies in the folder's `adapter`.

    Raises:
        NNCIFTError: what went wrong.
    """
    check_installed()
    sides = [_Side.of("run", run), *([] if against is None else [_Side.of("against", against)])]
    if against is not None and sides[0].folder.path.samefile(sides[1].folder.path):
        raise ConfigError(f"`against` {os.fspath(against)} is the run itself", "give another run, or leave it out")
    proof, config = _options(sides[0], test, options)
    trials = [_trials(side, proof, config.seed) for side in sides]
    folder = ProofFolder(output or RunFolder(run).path / "evaluation" / _name(test))
    identity = proof.identity() | {side.name: side.identity() for side in sides} | _shared(config)
    config, identity = settled(config, _as_begun(folder, identity), folder.run)
    model, encoder = models_of(config)
    with folder.open(identity, model_names(config, proof)):
        items = read_test(test, folder.run.samples("test"), read_options(config, proof.test_split), progress=progress)
        check_metrics(proof, items)
        if not proof.allow_overlap:
            for side in sides:
                refuse_overlap(items, side.chosen, proof.test)
        benches = [bench_of(folder, model, encoder, side.pool, items, proof, progress=progress) for side in sides]
    trained = [group[0] for method, group in trials[0].items() if method not in UNTRAINED]
    keep = {trained[0]: folder.adapter} if trained else {}
    for bench, own in zip(benches, trials, strict=True):
        bench.run([trial for group in own.values() for trial in group], keep=keep if bench is benches[0] else None)
    results = _facts(sides, proof, model, items) | _results(sides, benches, trials)
    with folder.locked():  # all processes of a folder end at once
        write_json(folder.results, results)
        write_page(folder)
        _show_in_report(sides[0].folder, folder)
    return Evaluation(folder.path, results)


def _as_begun(folder: ProofFolder, identity: dict[str, Any]) -> dict[str, Any]:
    """The identity with seeds and the other run as a folder has them: other ones add trials to those that are there."""
    if not folder.run.config.is_file():
        return identity
    begun = read_json(folder.run.config)
    others = {name: value for name, value in identity.items() if name not in _ADDED}
    return others | {name: begun[name] for name in _ADDED if name in begun}


def _show_in_report(run: RunFolder, folder: ProofFolder) -> None:
    """Write the run's report again with these results, where they lie in its folder."""
    if run.report.is_file() and (run.path / "evaluation").resolve() in folder.path.resolve().parents:
        write_report(run)


@dataclass(frozen=True)
class _Side:
    """A finished run whose choice is tested."""

    name: str  # "run" or "against"
    folder: RunFolder
    config: dict[str, Any]
    selection: Selection

    @classmethod
    def of(cls, name: str, path: str | os.PathLike[str]) -> _Side:
        folder = RunFolder(path)
        if not folder.is_selected:
            raise RunError(f"{folder.path} is not the folder of a finished run", "run nncift select first")
        return cls(name, folder, read_json(folder.config), Selection.load(folder.path))

    @property
    def pool(self) -> Dataset:
        assert self.selection.pool is not None
        return self.selection.pool

    @property
    def chosen(self) -> Dataset:
        return self.pool.select(self.selection.indices)

    @property
    def influence(self) -> str:
        """The influence function that the run chose by; "" where an object or a network stands in its place."""
        function = self.folder.function
        return str(read_json(function).get("name", "")) if function.is_file() else ""

    def identity(self) -> dict[str, Any]:
        """What the results depend on of the run."""
        return {"folder": str(self.folder.path), "selection": content_hash(self.folder.selection)}


def _options(side: _Side, test: SourceLike, options: dict[str, Any]) -> tuple[ProofOptions, Config]:
    """The options of the evaluation, and a config with those of the run that hold for it too."""
    own, others = ProofOptions.split(options)
    for name in others:
        if name not in _INHERITED:
            known = sorted({*_INHERITED, *(field.name for field in dataclasses.fields(ProofOptions))})
            raise ConfigError(f"there is no option {name!r}", f"known: {', '.join(known)}")
    of_run: dict[str, Any] = {name: side.config.get(name) for name in _INHERITED if side.config.get(name) is not None}
    of_run.pop("trust_remote_code", None)  # the folder may be another's
    given = {name: value for name, value in others.items() if value is not None}
    return ProofOptions(test=stored("test", test), **own), Config("pool", **of_run | given)


def _shared(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _INHERITED}


def _trials(side: _Side, proof: ProofOptions, seed: int) -> dict[str, list[Trial]]:
    """The trials of a side by method, those of the model as it is first."""
    chosen = side.selection
    rows, seeds = tuple(chosen.indices.tolist()), range(seed, seed + proof.seeds)
    asked = {"phased": chosen.phase is not None, "weighted": chosen.weights is not None}
    methods: Sequence[str] = proof.methods or ["lora", "icl", *(method for method, there in asked.items() if there)]
    for method, option in (("phased", "phases"), ("weighted", "weights")):
        if method in methods and not asked[method]:
            problem = f"`methods` {method} needs a run with {option}, and {side.folder.path} has none"
            raise ConfigError(problem, f"choose again with `{option}`, and `from_run` that run")
    found = {"none": [Trial("none")]}
    if "lora" in methods:
        found["lora"] = [Trial("lora", rows, each) for each in seeds]
    if "phased" in methods:
        lengths = tuple(map(len, chosen.phases))
        found["phased"] = [Trial("lora", rows, each, phases=lengths) for each in seeds]
    if "weighted" in methods and chosen.weights is not None:
        weights = tuple(chosen.weights.tolist())
        found["weighted"] = [Trial("lora", rows, each, weights=weights) for each in seeds]
    if "icl" in methods:
        found["icl"] = [Trial("icl", rows)]
    return found


def _facts(sides: Sequence[_Side], proof: ProofOptions, model: ModelSpec, items: Dataset) -> dict[str, Any]:
    """What the results are of, ready for JSON."""
    return {
        "sides": {
            side.name: side.identity() | {"rows": len(side.selection), "influence": side.influence} for side in sides
        },
        "test": {"name": proof.test, "items": len(items)},
        "model": model.describe(),
        "tuning": tuning_of(proof).describe(),
        "seeds": proof.seeds,
    }


def _results(
    sides: Sequence[_Side], benches: Sequence[Bench], trials: Sequence[dict[str, list[Trial]]]
) -> dict[str, Any]:
    """Each model's metrics, and the comparisons with the model as it is and between the runs."""
    tables: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for side, bench, own in zip(sides, benches, trials, strict=True):
        for method, group in own.items():
            if method != "none" or side is sides[0]:
                tables[side.name if method != "none" else "", method] = table_of(group, bench.scores)
    pairs = [(key, ("", "none")) for key in tables if key[1] != "none"]
    pairs += [((name, other), (name, "lora")) for name, other in tables if other in ("phased", "weighted")]
    pairs += [(("run", method), ("against", method)) for name, method in tables if name == "against"]
    pairs = [pair for pair in pairs if pair[0] in tables and pair[1] in tables]
    compared = {}
    for a, b in pairs:
        compared[a, b] = differences(tables[a], tables[b], fixed=(a[1] in UNTRAINED, b[1] in UNTRAINED))
    adjusted = iter(adjust([found for each in compared.values() for found in each.values()]))
    return {
        "models": [
            {"run": name, "method": method, "metrics": {k: metric_record(v, method) for k, v in table.items()}}
            for (name, method), table in tables.items()
        ],
        "comparisons": [
            {"a": list(a), "b": list(b), "metrics": {metric: as_record(next(adjusted)) for metric in found}}
            for (a, b), found in compared.items()
        ],
    }


def _name(test: Any) -> str:
    """A short name of a test file."""
    if isinstance(test, str | os.PathLike):
        return Path(test).name.partition(".")[0] or "test"
    if isinstance(test, list | tuple) and not test:
        raise DataError("the test file is empty", "give some rows")
    return "test"
