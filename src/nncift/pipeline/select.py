"""The table of contents: `select` reads top to bottom as the stages of a run.

Each stage writes a file into the run folder when it is finished and is skipped when the file is there, so
the same call resumes a killed run and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import Config
from nncift.data.pool import open_pool
from nncift.features.sources import FeatureReader, feature_sources
from nncift.labels.imported import keep_labels
from nncift.pipeline.choose import Chooser
from nncift.pipeline.context import (
    check_budget,
    check_function,
    check_models,
    learned_target,
    make_config,
    make_influence,
    read_samples,
)
from nncift.pipeline.label import Measuring
from nncift.pipeline.learn import earlier_network, learn, learn_more
from nncift.pipeline.verify import select_verified
from nncift.report.html import write_report
from nncift.report.summary import write_summary
from nncift.run.costs import Costs
from nncift.run.files import atomic_write, read_array, write_array
from nncift.run.folder import open_run, run_log
from nncift.selection.selection import Selection

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.data.pool import PoolFacts
    from nncift.data.sources import SourceLike
    from nncift.features.features import Features
    from nncift.influence.base import InfluenceFunction
    from nncift.labels.pairs import LabelledPairs
    from nncift.matrix.matrix import InfluenceMatrix


def select(
    pool: SourceLike,
    *,
    target: SourceLike | None = None,
    influence: str | InfluenceFunction | None = None,
    progress: bool = False,
    **options: Any,
) -> Selection:
    """Choose the subset of a pool worth fine-tuning on.

    Args:
        pool: the data to choose from: a file, folder or hub id, a `datasets.Dataset`, or a list of dicts.
        target: samples of the task to get better at; the pool itself unless given.
        influence: the exact influence function: a name, or an object that satisfies `InfluenceFunction`.
        progress: show progress bars.
        **options: the other fields of `Config`: budget, output, labels, model, encoder, ...

    Returns:
        The chosen samples in the order chosen; `.dataset` holds their rows. The run folder holds
        `subset.jsonl`, `report.html` and everything that led there.

    Raises:
        NNCIFTError: what it says; nothing half-written is left behind.
    """
    config = make_config(pool, target=target, influence=influence, **options)
    folder = config.folder
    function = make_influence(_with_learned_encoder(config), influence) if config.measures else None
    with open_run(folder, config.identity()), run_log(folder):
        costs = Costs(folder / "costs.json")
        with costs.stage("read"):
            samples, facts = read_samples(config, pool, "pool", folder / "pool", progress=progress)
            targets, target_facts = _targets(config, target, folder, progress=progress)
        others = samples if targets is None else targets
        if not (folder / "selection.parquet").exists():
            check_budget(config, samples, folder, own_target=targets is None)
            check_models(config, function)
            if function is not None:
                check_function(config, function, samples, others)
        earlier = earlier_network(config, function)
        pairs: LabelledPairs | None = None
        if config.labels_from is not None:
            with costs.stage("labels"):  # before the features: a file that cannot be used costs nothing else
                pairs = keep_labels(config.labels_from, samples, others, folder / "labels")
        with costs.stage("features") as cost:
            read = (samples, facts), (targets, target_facts)
            features, target_features = _features(config, function, *read, folder, costs, progress=progress)
            cost.texts = len(features) + (len(target_features) if targets is not None else 0)
        measuring = None
        if function is not None:
            measuring = Measuring(config, function, samples, others, folder, costs, progress=progress)
        if earlier is not None and not config.learns:
            network = earlier
        else:
            if measuring is not None:
                with costs.stage("labels"):
                    pairs = measuring.labels(features, target_features)
            assert pairs is not None
            with costs.stage("network"):
                network = learn(config, function, samples, others, features, target_features, pairs, folder, earlier)
        probes = None
        if measuring is not None and config.probes is not None:
            with costs.stage("probes"):
                probes = measuring.probes(network, target_features)
        with costs.stage("estimate"):
            matrix = network.estimate(features, target_features, probes=probes)
            influence_means = _row_means(matrix, folder)
        choose = Chooser(config, samples, folder, own_target=targets is None, progress=progress)
        with costs.stage("select"):
            selection = _stored_selection(folder, samples)
            if selection is None and config.verify is None:
                selection = choose(matrix).with_pool(samples, influence_means)
                selection.save(folder)
        if selection is None and measuring is not None:
            with costs.stage("verify"):
                sides = features, target_features
                more = functools.partial(learn_more, config, *sides, network, pairs, earlier)
                selection, rows, means = select_verified(measuring, matrix, sides, choose, more, pairs, probes)
                influence_means = np.array(influence_means)
                influence_means[rows] = means
                selection = selection.with_pool(samples, influence_means)
                selection.save(folder)
        assert selection is not None
        with costs.stage("report"):
            write_summary(folder, config, selection, pool=facts, target=target_facts, all_pairs=math.prod(matrix.shape))
            write_report(folder)
    return selection


def _targets(
    config: Config, target: SourceLike | None, folder: Path, *, progress: bool
) -> tuple[Dataset | None, PoolFacts | None]:
    """The target's samples: the given ones, else those that a learned run had, else none."""
    if (learned := learned_target(config)) is not None:
        names = feature_sources(config).names("target").values()
        stored = [f"features/{name}.{kind}" for name in names for kind in ("npy", "json")]
        for part in ("target/samples.arrow", *stored, "target/facts.json"):
            if not (folder / part).exists():
                with atomic_write(folder / part) as temporary:
                    shutil.copyfile(learned / part, temporary)
        return open_pool(folder / "target")
    if target is None:
        return None, None
    return read_samples(config, target, "target", folder / "target", progress=progress)


def _features(
    config: Config,
    function: InfluenceFunction | None,
    pool: tuple[Dataset, PoolFacts],
    target: tuple[Dataset | None, PoolFacts | None],
    folder: Path,
    costs: Costs,
    *,
    progress: bool,
) -> tuple[Features, Features]:
    """Features of the pool (n_pool, d) and of the targets (n_target, d); the pool's own without a target."""
    reader = FeatureReader(config, function)
    cost = costs.stages["features"]
    earlier = cost.forward_tokens

    def count_tokens() -> None:
        cost.forward_tokens = earlier + reader.forward_tokens
        costs.save()

    sides = {"pool": pool} | ({"target": target} if target[0] is not None else {})
    found = {
        side: reader.read(
            rows,
            side,
            folder / "features",
            source_rows=None if its_facts is None else its_facts.read,
            progress=progress,
            after_shard=count_tokens,
        )
        for side, (rows, its_facts) in sides.items()
    }
    return found["pool"], found.get("target", found["pool"])


def _with_learned_encoder(config: Config) -> Config:
    """The config for the influence function: the encoder is a learned network's where none is given."""
    return (
        config if config.encoder is not None else dataclasses.replace(config, encoder=feature_sources(config).encoder)
    )


def _row_means(matrix: InfluenceMatrix, folder: Path) -> np.ndarray:
    path = folder / "influence.npy"
    if not path.exists():
        write_array(path, matrix.row_means().astype(np.float32))
    return read_array(path)


def _stored_selection(folder: Path, samples: Dataset) -> Selection | None:
    if (folder / "selection.parquet").exists() and (folder / "subset.jsonl").exists():
        return Selection.load(folder, pool=samples)
    return None
