"""`nncift demo`: the real main job on embedded real parts, ending with what a model learns from the choice.

The pool mixes pairs of chatterbot-corpus with 40 families of reasoning-gym tasks; the target is fresh samples of four
of those families. The model is then trained shortly on the choice, and likewise on as many rows chosen by the cosine of
the embeddings, which needs no language model, and on random rows; all are tested on new samples of the four families.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import Config
from nncift.data.demo import DEMO_FAMILIES, demo_data
from nncift.data.pool import load_pool
from nncift.influence.embedding_similarity import EmbeddingSimilarity
from nncift.matrix.matrix import InfluenceMatrix
from nncift.pipeline.select import select
from nncift.proof.folder import ProofFolder
from nncift.proof.inputs.held_out import read_test
from nncift.proof.inputs.setup import bench_of, check_installed, models_of, read_options
from nncift.proof.options import ProofOptions
from nncift.proof.results.analysis import as_record, differences, metric_record, table_of
from nncift.proof.results.pages import write_page
from nncift.proof.results.tables import as_text, with_interval
from nncift.proof.trials.trials import Bench, Trial
from nncift.report.html import write_report
from nncift.report.terminal import summary_text
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import percent
from nncift.run.storage.files import cache_folder, read_json, write_json
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.table import ObjectiveOptions, make_objective
from nncift.selection.selection import Selection

if TYPE_CHECKING:
    from datasets import Dataset

BUDGET: float = 0.05
EPOCHS = 2  # of the short trainings
AS_IT_IS, CHOSEN, COSINE, RANDOM = "model as it is", "chosen by influence", "cosine of the embeddings", "random"


def run_demo(
    *,
    output: str | Path,
    model: str = "embedded",
    encoder: str = "embedded",
    influence: str | None = None,
    progress: bool = True,
) -> str:
    """Make the data, run `select`, train on its choice and two others, and return what the terminal shows.

    Args:
        output: the run folder.
        model: language model, or "embedded" for SmolLM2-135M-Instruct.
        encoder: sentence encoder, or "embedded" for MiniLM.
        influence: the influence function, as `select` takes it.
        progress: show progress bars.

    Raises:
        DependencyError: a package with embedded parts, or one of the extra `proof`, is missing.
    """
    check_installed()
    pool, target, test = demo_data(cache_folder() / "demo")
    selection = select(
        pool,
        target=target,
        budget=BUDGET,
        output=output,
        model=model,
        encoder=encoder,
        influence=influence,
        progress=progress,
    )
    config = Config("pool", model=model, encoder=encoder)
    choices = _choices(selection, load_pool(target), config)
    bench = _bench(selection, test, config, Path(output), progress=progress)
    tables = _trained(bench, choices)
    _show_in_report(Path(output), bench, choices, tables, test)
    return "\n\n".join([summary_text(Path(output)), _shares(selection, choices), _losses(tables)])


def _choices(selection: Selection, target: Dataset, config: Config) -> dict[str, np.ndarray]:
    """The run's choice, and as many rows by the cosine of the embeddings and at random."""
    pool, count = selection.pool, len(selection)
    assert pool is not None
    _, encoder = models_of(config)
    cosines = EmbeddingSimilarity(encoder)(pool, target)
    options = ObjectiveOptions(has_target=True)
    objective = make_objective(None, InfluenceMatrix.from_array(cosines), options)
    shuffled = np.random.default_rng(0).permutation(len(pool))
    return {CHOSEN: selection.indices, COSINE: lazy_greedy(objective, count).indices, RANDOM: shuffled[:count]}


def _bench(selection: Selection, test: Path, config: Config, output: Path, *, progress: bool) -> Bench:
    """Where the choices are tried."""
    options = ProofOptions(test=str(test), metrics=("loss",), epochs=EPOCHS)
    folder = ProofFolder(output / "evaluation" / "demo")
    items = read_test(test, folder.run.samples("test"), read_options(config, None))
    assert selection.pool is not None
    return bench_of(folder, *models_of(config), selection.pool, items, options, progress=progress)


def _shares(selection: Selection, choices: Mapping[str, np.ndarray]) -> str:
    """Share of the target families in each choice."""
    assert selection.pool is not None
    wanted = np.array([json.loads(original)["family"] in DEMO_FAMILIES for original in selection.pool["original"]])
    lines = [f"share of the {len(DEMO_FAMILIES)} target families in {len(selection)} rows"]
    lines += [f"  {name:<26} {percent(wanted[rows].mean()):>7}" for name, rows in choices.items()]
    return "\n".join(lines)


def _trained(bench: Bench, choices: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Metric to its values, (1, n_items), of the model as it is (`AS_IT_IS`) and trained on each choice."""
    trials = {AS_IT_IS: Trial("none")} | {name: Trial("lora", tuple(rows.tolist())) for name, rows in choices.items()}
    bench.run([*trials.values()])
    return {name: table_of([trial], bench.scores) for name, trial in trials.items()}


def _losses(tables: Mapping[str, dict[str, np.ndarray]]) -> str:
    """The test losses for the terminal."""
    as_it_is = metric_record(tables[AS_IT_IS]["loss"], "none")
    lines = [
        f"test loss on {as_it_is['items']} new samples of these families, after one training of {EPOCHS} epochs",
        "[95 % interval over the samples], and the difference from random",
        f"  {AS_IT_IS:<26} {with_interval(as_it_is)}",
    ]
    for name in (CHOSEN, COSINE, RANDOM):
        line = f"  {name:<26} {with_interval(metric_record(tables[name]['loss'], 'lora'))}"
        if name != RANDOM:
            line += "  " + as_text(_difference(tables, name, RANDOM))
        lines.append(line)
    return "\n".join(lines)


def _difference(tables: Mapping[str, dict[str, np.ndarray]], name: str, other: str) -> dict[str, Any]:
    fixed = (name == AS_IT_IS, other == AS_IT_IS)
    return dict(as_record(differences(tables[name], tables[other], fixed=fixed)["loss"]))


def _show_in_report(
    output: Path,
    bench: Bench,
    choices: Mapping[str, np.ndarray],
    tables: Mapping[str, dict[str, np.ndarray]],
    test: Path,
) -> None:
    """Keep the results as `nncift evaluate` does, and write the run's report again with them."""
    sides = {CHOSEN: "run", COSINE: "cosine", RANDOM: "random"}
    influence = {
        RANDOM: "random",
        COSINE: EmbeddingSimilarity.name,
        CHOSEN: read_json(RunFolder(output).function)["name"],
    }
    results = {
        "sides": {
            side: {
                "folder": str(output),
                "rows": len(choices[name]),
                "influence": influence[name],
                "title": f"the choice by the {name}",
            }
            for name, side in sides.items()
        },
        "test": {"name": str(test), "items": metric_record(tables[RANDOM]["loss"], "lora")["items"]},
        "model": bench.model.describe(),
        "tuning": bench.tuning.describe(),
        "seeds": 1,
        "models": [
            {
                "run": sides.get(name, ""),
                "method": "none" if name == AS_IT_IS else "lora",
                "metrics": {"loss": metric_record(table["loss"], "none" if name == AS_IT_IS else "lora")},
            }
            for name, table in tables.items()
        ],
        "comparisons": [
            {
                "a": [sides[name], "lora"],
                "b": ["random", "lora"],
                "metrics": {"loss": _difference(tables, name, RANDOM)},
            }
            for name in (CHOSEN, COSINE)
        ],
    }
    folder = ProofFolder(output / "evaluation" / "demo")
    write_json(folder.results, results)
    write_page(folder)
    write_report(output)
