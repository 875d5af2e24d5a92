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
from nncift.data.pool import ReadOptions
from nncift.errors import ConfigError, DataError, RunError
from nncift.evaluation.comparisons import Difference, adjust, compare_scores
from nncift.models.spec import DEFAULT_ENCODER, EncoderSpec, ModelSpec
from nncift.proof.folder import ProofFolder
from nncift.proof.held_out import read_test, refuse_overlap
from nncift.proof.options import ProofOptions
from nncift.proof.setup import measurement_of, tuning_of
from nncift.proof.trials import Bench, Trial
from nncift.run.checksums import content_hash
from nncift.run.files import read_json, write_json
from nncift.run.folder import RunFolder
from nncift.run.progress import in_terminal
from nncift.selection.selection import Selection

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.data.sources import SourceLike

_INHERITED = (  # from the run, unless they are given
    *("model", "encoder", "dtype", "device", "batch_size", "max_length", "wording", "trust_remote_code", "seed"),
    *("prompt_field", "response_field", "messages_field", "turns", "skip_bad_rows", "max_row_bytes"),
)


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
    progress: bool | None = None,
    **options: Any,
) -> Evaluation:
    """Fine-tune on the choice of a run, use it as examples in the context, and test both beside the model as it is.

    Args:
        run: the folder of a finished run.
        test: prompts with reference responses: a file, folder, hub id, dataset, DataFrame or dicts.
        against: another finished run, whose choice is used likewise and compared.
        output: the folder of the evaluation; `evaluation/NAME-OF-THE-TEST` in the run's unless given.
        progress: show progress bars; in a terminal unless given.
        **options: as `nncift evaluate --help` describes them: methods, metrics, seeds, epochs, ...

    Returns:
        The results; the adapter of the first training lies in the folder's `adapter`.

    Raises:
        NNCIFTError: what went wrong.
    """
    sides = [_Side.of("run", run), *([] if against is None else [_Side.of("against", against)])]
    proof, config = _options(sides[0], test, options)
    folder = ProofFolder(output or RunFolder(run).path / "evaluation" / _name(test))
    shown = in_terminal() if progress is None else progress
    identity = proof.identity() | {side.name: side.identity() for side in sides} | _shared(config)
    with folder.open(identity):
        items = read_test(test, folder.run.samples("test"), _read_options(config, proof), progress=shown)
        if not proof.allow_overlap:
            for side in sides:
                refuse_overlap(items, side.chosen, proof.test)
    model, encoder = _models(config)
    measurement = measurement_of(items, model, encoder, proof, folder, progress=shown)
    benches = [
        Bench(
            folder.trials,
            model,
            side.pool,
            measurement,
            tuning_of(proof, model),
            shots=proof.shots,
            progress=shown,
        )
        for side in sides
    ]
    trials = [_trials(side, proof, config.seed) for side in sides]
    for bench, own in zip(benches, trials, strict=True):
        bench.run([trial for group in own.values() for trial in group], keep=_kept(own, folder, bench is benches[0]))
    results = _results(proof, sides, benches, trials)
    write_json(folder.results, results)
    return Evaluation(folder.path, results)


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

    def identity(self) -> dict[str, Any]:
        """What the results depend on of the run."""
        return {"folder": str(self.folder.path), "selection": content_hash(self.folder.selection)}


def _options(side: _Side, test: SourceLike, options: dict[str, Any]) -> tuple[ProofOptions, Config]:
    """The options of the evaluation, and a config with those of the run that hold for it too."""
    own = {field.name for field in dataclasses.fields(ProofOptions)}
    for name in options:
        if name not in own and name not in _INHERITED:
            raise ConfigError(f"there is no option {name!r}", f"known: {', '.join(sorted({*own, *_INHERITED}))}")
    stored = {name: side.config.get(name) for name in _INHERITED if side.config.get(name) is not None}
    given = {name: options[name] for name in _INHERITED if options.get(name) is not None}
    proof = ProofOptions(
        test=_name(test) if not isinstance(test, str | Path) else str(test),
        **{name: _stored(value) for name, value in options.items() if name in own},
    )
    return proof, Config("pool", **stored | given)


def _stored(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else str(value) if isinstance(value, Path) else value


def _shared(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _INHERITED}


def _read_options(config: Config, proof: ProofOptions) -> ReadOptions:
    return ReadOptions(
        split=proof.test_split,
        prompt_field=config.prompt_field,
        response_field=config.response_field,
        messages_field=config.messages_field,
        turns=config.turns,
        skip_bad_rows=config.skip_bad_rows,
        max_row_bytes=config.row_bytes,
        seed=config.seed,
    )


def _models(config: Config) -> tuple[ModelSpec, EncoderSpec]:
    shared: dict[str, Any] = {
        "device": config.device,
        "batch_size": config.batch_size,
        "trust_remote_code": config.trust_remote_code,
    }
    model = ModelSpec(
        config.models[0], dtype=config.dtype, max_length=config.max_length, wording=config.wording, **shared
    )
    return model, EncoderSpec(config.encoder or DEFAULT_ENCODER, **shared)


def _trials(side: _Side, proof: ProofOptions, seed: int) -> dict[str, list[Trial]]:
    """The trials of a side by method, those of the model as it is first."""
    rows = tuple(side.selection.indices.tolist())
    found = {"none": [Trial("none")]}
    if "lora" in proof.methods:
        found["lora"] = [Trial("lora", rows, seed + number) for number in range(proof.seeds)]
    if "icl" in proof.methods:
        found["icl"] = [Trial("icl", rows)]
    return found


def _kept(trials: dict[str, list[Trial]], folder: ProofFolder, first: bool) -> dict[Trial, Path]:
    return {trials["lora"][0]: folder.adapter} if first and "lora" in trials else {}


def _results(
    proof: ProofOptions, sides: Sequence[_Side], benches: Sequence[Bench], trials: Sequence[dict[str, list[Trial]]]
) -> dict[str, Any]:
    raise NotImplementedError


def _name(test: Any) -> str:
    """A short name of a test file."""
    if isinstance(test, str | os.PathLike):
        return Path(test).name.partition(".")[0] or "test"
    if isinstance(test, list | tuple) and not test:
        raise DataError("the test file is empty", "give some rows")
    return "test"
