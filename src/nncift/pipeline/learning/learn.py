"""From labels to the network of a run, and its fidelity on held-out samples."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.fidelity import measure_fidelity
from nncift.labels.pairs import LabelledPairs
from nncift.pipeline.learning.label import among_targets, planned_held_out
from nncift.pipeline.learning.without_labels import label_free
from nncift.run.progress import already, drawn
from nncift.run.storage.files import atomic_write, remove

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.pipeline.context import Run

_log = logging.getLogger("nncift")


def learn(run: Run, labels: LabelledPairs | None) -> InfluenceNetwork:
    """The network that estimates: fitted to the labels, or the given one as it is.

    Its fidelity is measured on held-out samples, by a network fitted to the others; then one is fitted to all.
    """
    if labels is None:
        assert run.prior is not None
        return run.prior
    bar = tqdm(total=2, desc="network", unit=" fits", **drawn(run.progress and not run.folder.is_fitted))
    with bar, run.costs.stage("network"):
        pointwise = labels.pointwise if run.influence is None else run.influence.traits.pointwise
        fit = functools.partial(_fit, run, pointwise=pointwise, prior=run.prior)
        described = (
            {"name": Path(str(run.config.labels_from)).name} if run.influence is None else run.describe_influence()
        )
        if run.earlier is not None and not run.folder.fidelity.exists():
            run.earlier.take_network()
        if run.folder.fidelity.exists():
            already(bar, 1)
        else:
            train, held_out = _split(run, labels)
            copies = _copies(run, held_out.take(~np.isin(held_out.pool_index, train.pool_index)))
            sides, others = (run.pool.features, run.target.features), label_free(run, labels)
            measured = measure_fidelity(fit(train, without=copies), *sides, held_out, train, others)
            replace(measured, influence=described["name"]).save(run.folder.fidelity)
            bar.update()
        remove(run.folder.labels.without_labels)
        if run.folder.is_fitted:
            return InfluenceNetwork.from_pretrained(run.folder.network)
        network = fit(labels)
        bar.update()
        network.description_ = {
            "features": run.features.describe(),
            "influence": described | {"pointwise": pointwise},
            "pairs": len(labels),
        }
        if (found := network.both_sides) is not None:
            network.description_["both_sides"] = {"used": found.used, "why": found.why}
            _log.log(logging.INFO if found.used else logging.WARNING, "network: %s", found)
        with atomic_write(run.folder.network) as temporary:
            network.save_pretrained(temporary)
        return network


def refit(
    run: Run, network: InfluenceNetwork, labels: LabelledPairs | None, measured: LabelledPairs
) -> InfluenceNetwork:
    """The network fitted to newly measured pairs too; of the recipe "paper", the given one.

    Args:
        run: the run.
        network: what the run estimates with.
        labels: what it was fitted to in this run; None where it was fitted before.
        measured: the new values.
    """
    if network.recipe == "paper":
        return network
    pointwise = bool(network.options["pointwise"])
    if labels is None:
        return _fit(run, measured, pointwise=pointwise, prior=network)
    both = LabelledPairs.joined([labels.without(measured), measured])
    return _fit(run, both, pointwise=pointwise, prior=run.prior)


def _fit(
    run: Run,
    pairs: LabelledPairs,
    *,
    pointwise: bool,
    prior: InfluenceNetwork | None,
    without: Sequence[int] = (),
) -> InfluenceNetwork:
    """Fitted to the pairs, and to the influence of their targets on each other but those `without`."""
    among = among_targets(run)
    if among is not None:
        among = among.take(~np.isin(among.pool_index, without) & ~np.isin(among.target_index, without))
    network = InfluenceNetwork(run.config.recipe, pointwise=pointwise, seed=run.config.seed)
    return network.fit(run.pool.features, run.target.features, pairs, prior=prior, among_targets=among)


def _copies(run: Run, held_out: LabelledPairs) -> list[int]:
    """Targets with the text of a held-out pool sample: as pool samples they would reveal it."""
    texts = {(row["prompt"], row["response"]) for row in run.pool.rows.select(np.unique(held_out.pool_index))}
    among = among_targets(run)
    targets = [] if among is None else np.unique(among.target_index).tolist()
    rows = zip(targets, run.target.rows.select(targets), strict=True)
    return [number for number, row in rows if (row["prompt"], row["response"]) in texts]


def _split(run: Run, labels: LabelledPairs) -> tuple[LabelledPairs, LabelledPairs]:
    """Pairs to fit to, and held-out pairs; samples with the same text are held out together."""
    train, held_out = labels.split(
        seed=run.config.seed,
        held_out=planned_held_out(run),
        pool_groups=_duplicate_groups(run.pool.rows, labels.pool_index),
        target_groups=_duplicate_groups(run.target.rows, labels.target_index),
    )
    return train, held_out if run.prior is None else _unseen(run, run.prior, train, held_out)


def _unseen(run: Run, prior: InfluenceNetwork, train: LabelledPairs, held_out: LabelledPairs) -> LabelledPairs:
    """The held-out pairs without those of a held-out sample that the prior was fitted to."""
    if not len(held_out):
        return held_out
    rows, row = np.unique(held_out.pool_index, return_inverse=True)
    columns, column = np.unique(held_out.target_index, return_inverse=True)
    pool, target = prior.learned_from(run.pool.features[rows], run.target.features[columns])
    pool &= ~np.isin(rows, train.pool_index)
    target &= ~np.isin(columns, train.target_index)
    if pool.any() or target.any():
        _log.warning(
            "fidelity: %d held-out samples are among those that the prior was fitted to; it is measured on the others"
            " (another `seed` holds out others)",
            int(pool.sum() + target.sum()),
        )
    return held_out.take(~(pool[row] | target[column]))


def _duplicate_groups(samples: Dataset, index: np.ndarray) -> np.ndarray:
    """A group number for each sample, (n,) int64; labelled samples with the same text share one."""
    groups = np.arange(len(samples))
    first: dict[tuple[str, str], int] = {}
    for i in np.unique(index):
        row = samples[int(i)]
        groups[i] = first.setdefault((row["prompt"], row["response"]), int(i))
    return groups
