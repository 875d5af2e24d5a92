"""`nncift demo`: the real main job on embedded real parts, and the share of the target families in the choice.

The pool mixes the distinct English pairs of chatterbot-corpus with 40 families of reasoning-gym tasks; the
target is fresh samples of four of those families. Their share in the choice stands beside that of a random choice and
of one by the cosine of the embeddings, which needs no language model.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nncift.data.demo import TARGET_FAMILIES, embedded_data
from nncift.matrix.matrix import InfluenceMatrix
from nncift.pipeline.select import select
from nncift.report.summary import summary_text
from nncift.run.files import cache_folder, read_array
from nncift.run.folder import RunFolder
from nncift.selection.greedy import lazy_greedy
from nncift.selection.objectives import ObjectiveOptions, make_objective
from nncift.selection.selection import Selection

BUDGET = 0.05
LABELS = 800


def run_demo(
    *,
    output: str | Path,
    model: str = "embedded",
    encoder: str = "embedded",
    labels: str | None = None,
    features: str | None = None,
    progress: bool | None = None,
) -> str:
    """Make the pool, run `select`, and return what the terminal shows.

    Args:
        output: the run folder.
        model: language model, or "embedded" for SmolLM2-135M-Instruct.
        encoder: sentence encoder, or "embedded" for MiniLM.
        labels: pairs to label; 800 unless given.
        features: the network's features of each sample, as `select` takes them.
        progress: show progress bars; in a terminal unless given.

    Raises:
        DependencyError: a package with embedded parts is missing.
    """
    pool, target = embedded_data(cache_folder() / "demo")
    selection = select(
        pool,
        target=target,
        budget=BUDGET,
        output=output,
        model=model,
        encoder=encoder,
        labels=labels or LABELS,
        features=features,
        progress=progress,
    )
    return "\n".join([summary_text(Path(output)), "", *_shares(selection, RunFolder(output))])


def _shares(selection: Selection, folder: RunFolder) -> list[str]:
    """Share of the target families in the subset, beside random's (expected) and the embedding cosine's."""
    assert selection.pool is not None
    wanted = np.array([json.loads(original)["family"] in TARGET_FAMILIES for original in selection.pool["original"]])
    features, targets = (np.asarray(read_array(folder.features.array(side))) for side in ("pool", "target"))
    cosine = InfluenceMatrix.from_array(features @ targets.T)
    count = len(selection.indices)
    objective = make_objective(None, cosine, ObjectiveOptions(has_target=True, expected=count))
    by_cosine = lazy_greedy(objective, count).indices
    rows = (
        ("estimated influence", wanted[selection.indices].mean()),
        ("cosine of the embeddings", wanted[by_cosine].mean()),
        ("random (expected)", wanted.mean()),
    )
    return [f"share of the {len(TARGET_FAMILIES)} target families in the subset"] + [
        f"  {name:<26} {share:6.1%}" for name, share in rows
    ]
