"""`nncift demo`: the real main job on embedded real parts, and how much of the wished families it recovers.

The pool mixes the distinct English pairs of chatterbot-corpus with 40 families of reasoning-gym tasks; the
target is fresh samples of four of those families. A good choice is rich in the four, so what the network
learned is beside chance and beside the cosine of the embeddings, which needs no language model.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nncift.data.demo import WISHED, embedded_data
from nncift.matrix.matrix import InfluenceMatrix
from nncift.pipeline.select import select
from nncift.report.summary import summary_text
from nncift.run.files import cache_folder, read_array
from nncift.selection.greedy import lazy_greedy
from nncift.selection.objectives import default_eta, make_objective
from nncift.selection.selection import Selection

BUDGET = 0.05
LABELS = 800


def run_demo(
    *,
    output: Path,
    model: str = "embedded",
    encoder: str = "embedded",
    labels: str | None = None,
    features: str | None = None,
    progress: bool = False,
) -> str:
    """Make the pool, run `select`, and return what the terminal shows.

    Args:
        output: the run folder.
        model: language model, or "embedded" for SmolLM2-135M-Instruct.
        encoder: sentence encoder, or "embedded" for MiniLM.
        labels: pairs to label; 800 unless given.
        features: what the network knows of each sample, as `select` takes it.
        progress: show progress bars.

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
    return "\n".join([summary_text(output), "", *_shares(selection, output)])


def _shares(selection: Selection, folder: Path) -> list[str]:
    """Share of the wished families in the subset, beside random's (expected) and the embedding cosine's."""
    assert selection.pool is not None
    wished = np.array([json.loads(original)["family"] in WISHED for original in selection.pool["original"]])
    features, targets = read_array(folder / "features" / "pool.npy"), read_array(folder / "features" / "target.npy")
    cosine = InfluenceMatrix.from_array(np.asarray(features) @ np.asarray(targets).T)
    count = len(selection.indices)
    objective = make_objective(cosine, eta=default_eta(len(targets), count))
    by_cosine = lazy_greedy(objective, count).indices
    rows = (
        ("estimated influence", wished[selection.indices].mean()),
        ("cosine of the embeddings", wished[by_cosine].mean()),
        ("random (expected)", wished.mean()),
    )
    return [f"share of the {len(WISHED)} wished families in the subset"] + [
        f"  {name:<26} {share:6.1%}" for name, share in rows
    ]
