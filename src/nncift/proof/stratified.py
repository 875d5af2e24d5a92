"""Stratified random rows of a comparison: spread over as many clusters as the budget has rows, drawn anew each seed.

The clusters are of the sentence embeddings, which are computed once; each budget and draw has clusters and rows of its
own, as `select` with `influence` "stratified-random" draws them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nncift.influence.random_rows import StratifiedRandom, stratified_values
from nncift.proof.folder import Group, share_groups
from nncift.proof.runs import opened
from nncift.proof.trials.cells import STRATIFIED
from nncift.proof.trials.selectors import costs_of
from nncift.run.storage.files import read_array, write_array, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nncift.proof.inputs.inputs import Inputs

Draw = tuple[int, int]
"""A budget in rows, and the seed of a draw."""


def stratified_draws(inputs: Inputs) -> dict[int, list[np.ndarray]]:
    """For each budget a ranking of all rows for each seed, int64 (n,); only those that the folder lacks are made."""
    if not inputs.draws_stratified:
        return {}
    draws = [(budget, seed) for budget in inputs.budgets for seed in inputs.seeds]
    files = {draw: _path(inputs, draw) for draw in draws}
    share_groups({inputs.folder.choices / STRATIFIED.slug: Group(files, partial(_make, inputs))})
    return {
        budget: [np.asarray(read_array(_path(inputs, (budget, seed)))) for seed in inputs.seeds]
        for budget in inputs.budgets
    }


def _path(inputs: Inputs, draw: Draw) -> Path:
    budget, seed = draw
    return inputs.folder.choices / f"{STRATIFIED.slug}-{budget}-{seed}.npy"


def _make(inputs: Inputs, draws: Sequence[Draw]) -> None:
    """Make some rankings."""
    config = inputs.config(STRATIFIED)
    with opened(inputs, config) as run:
        function = run.function
        assert isinstance(function, StratifiedRandom)
        function.progress = run.progress
        with run.costs.stage("influence"):
            embeddings = function.embed(run.pool.rows, run.folder.vectors.prepared)
        found = []
        with run.costs.stage("select"):
            for budget, seed in draws:
                values = stratified_values(embeddings, budget, [seed, budget])
                found.append(np.argsort(-values, kind="stable"))
    write_json(inputs.folder.choices / f"{STRATIFIED.slug}.json", costs_of(run.folder.costs))
    for draw, ranking in zip(draws, found, strict=True):
        write_array(_path(inputs, draw), ranking)
