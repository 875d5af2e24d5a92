"""The table of contents: `select` reads top to bottom as the stages of a run.

Each stage writes a file into the run folder when it is finished and is skipped when the file is there, so
the same call resumes a killed run and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import DEFAULT_LABELS, Config, parse_budget, parse_labels
from nncift.costs import Costs
from nncift.errors import ConfigError
from nncift.feature_sources import FeatureReader, feature_sources
from nncift.fidelity import measure_fidelity
from nncift.given_labels import keep_labels
from nncift.greedy import lazy_greedy
from nncift.hub import network_folder
from nncift.inputs import (
    budget_count,
    check_budget,
    check_models,
    describe,
    learned_target,
    make_config,
    make_influence,
    read_samples,
    token_counts,
)
from nncift.labelling import PairPlan, measure_rate, plan_labels
from nncift.network import InfluenceNetwork
from nncift.objectives import FacilityLocation, FacilityLocationMutualInformation
from nncift.pairs import LabelledPairs, collect
from nncift.pool import open_pool
from nncift.report import write_report
from nncift.selection import Selection
from nncift.storage import atomic_write, open_run, read_array, read_json, run_log, write_array, write_json
from nncift.summary import write_summary

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.features import Features
    from nncift.influence import InfluenceFunction
    from nncift.matrix import InfluenceMatrix
    from nncift.objectives import Objective
    from nncift.pool import PoolFacts
    from nncift.sources import SourceLike

_log = logging.getLogger("nncift")


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
    learned = config.network is not None
    function = None if learned or config.labels_from is not None else make_influence(config, influence)
    with open_run(folder, config.identity()), run_log(folder):
        costs = Costs(folder / "costs.json")
        with costs.stage("read"):
            samples, facts = read_samples(config, pool, "pool", folder / "pool", progress=progress)
            targets, target_facts = _targets(config, target, folder, progress=progress)
        check_budget(config, len(samples))
        if not (folder / "selection.parquet").exists():
            check_models(config, function)
            if function is not None and hasattr(function, "check"):
                function.check(samples, samples if targets is None else targets)
        if config.labels_from is not None:
            with costs.stage("labels"):  # before the features: a file that cannot be used costs nothing else
                other = samples if targets is None else targets
                pairs = keep_labels(config.labels_from, samples, other, folder / "labels")
        with costs.stage("features") as cost:
            features, target_features = _features(config, function, samples, targets, folder, costs, progress=progress)
            cost.texts = len(features) + (len(target_features) if targets is not None else 0)
        if function is not None:
            with costs.stage("labels"):
                pairs = _label(config, function, samples, targets, folder, costs, progress=progress)
        if not learned:
            with costs.stage("network"):
                origin = describe(function) if function is not None else {"name": Path(str(config.labels_from)).name}
                alike = pairs.pointwise if function is None else bool(getattr(function, "pointwise", False))
                origin |= {"pointwise": alike}
                network = _learn(config, origin, samples, targets, features, target_features, pairs, folder)
        else:
            network = InfluenceNetwork.from_pretrained(network_folder(str(config.network)))
        with costs.stage("estimate"):
            matrix = network.estimate(features, target_features)
            influence_means = _row_means(matrix, folder)
        with costs.stage("select"):
            own = targets is None
            selection = _select(config, matrix, samples, influence_means, folder, own_target=own, progress=progress)
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
    samples: Dataset,
    targets: Dataset | None,
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

    sides = {"pool": samples} | ({"target": targets} if targets is not None else {})
    found = {
        side: reader.read(rows, side, folder / "features", progress=progress, after_shard=count_tokens)
        for side, rows in sides.items()
    }
    return found["pool"], found.get("target", found["pool"])


def _label(
    config: Config,
    function: InfluenceFunction,
    samples: Dataset,
    targets: Dataset | None,
    folder: Path,
    costs: Costs,
    *,
    progress: bool,
) -> LabelledPairs:
    place = folder / "labels"
    before = int(getattr(function, "forward_tokens", 0))  # the features may have been read with the same model
    plan = _plan(config, function, samples, targets, place / "plan.json")
    cost = costs.stages["labels"]
    earlier, earlier_back = cost.forward_tokens - before, cost.backward_tokens

    def count_tokens() -> None:
        cost.forward_tokens = earlier + int(getattr(function, "forward_tokens", 0))
        cost.backward_tokens = earlier_back + int(getattr(function, "backward_tokens", 0))
        costs.save()

    if hasattr(function, "warm_up") and not (place / "labels.parquet").exists():
        function.warm_up(samples, place / "warm-up", progress=progress)
    pairs = collect(
        function,
        samples,
        samples if targets is None else targets,
        plan.rows,
        plan.columns,
        one_per_row=plan.pointwise,
        folder=place,
        progress=progress,
        after_block=count_tokens,
    )
    if splits := getattr(function, "oom_splits", None):
        _log.info("labels: memory ran out on batches of %s, which were halved", splits)
    if (cut := getattr(function, "cut", None)) is not None and not (place / "notes.json").exists():
        write_json(place / "notes.json", {"cut": int(cut)})
    return pairs


def _plan(
    config: Config, function: InfluenceFunction, samples: Dataset, targets: Dataset | None, path: Path
) -> PairPlan:
    """The pairs to label, recorded before the first is labelled, so that a resumed run labels the same."""
    described = json.loads(json.dumps(describe(function), default=str))
    if path.exists():
        stored = read_json(path)
        finished = (path.parent / "labels.parquet").exists()
        if not finished and stored.get("function", described) != described:  # on another device, for example
            raise ConfigError(
                f"{path.parent} holds labels of {stored['function']}, now it is {described}",
                "give the same --dtype and --device, or choose another --output",
            )
        return PairPlan(np.array(stored["rows"]), np.array(stored["columns"]), stored.get("pointwise", False))
    amount = parse_labels(config.labels or DEFAULT_LABELS)
    rate = None
    if amount.kind == "seconds":
        rate = measure_rate(function, samples, samples if targets is None else targets, seed=config.seed)
    n_target = None if targets is None else len(targets)
    plan = plan_labels(function, amount, len(samples), n_target, rate=rate, seed=config.seed)
    stored = {"rows": plan.rows.tolist(), "columns": plan.columns.tolist(), "rate": rate and dataclasses.asdict(rate)}
    write_json(path, stored | {"pointwise": plan.pointwise, "function": described})
    return plan


def _learn(
    config: Config,
    origin: dict[str, Any],
    samples: Dataset,
    targets: Dataset | None,
    features: Features,
    target_features: Features,
    pairs: LabelledPairs,
    folder: Path,
) -> InfluenceNetwork:
    """Fit the network to the labels whose samples are not held out, and measure its fidelity on the others.

    `origin` describes where the labels come from.
    """
    place = folder / "network"
    train, held_out = pairs.split(
        seed=config.seed,
        pool_groups=_duplicate_groups(samples, pairs.pool_index),
        target_groups=_duplicate_groups(samples if targets is None else targets, pairs.target_index),
    )
    if place.exists():
        network = InfluenceNetwork.from_pretrained(place)
    else:
        network = InfluenceNetwork(config.recipe, pointwise=origin["pointwise"], seed=config.seed)
        network.fit(features, target_features, train)
        network.description_ = {
            "features": dataclasses.asdict(feature_sources(config)),
            "influence": origin,
            "pairs": len(train),
        }
        with atomic_write(place) as temporary:
            network.save_pretrained(temporary)
    if not (folder / "fidelity.json").exists():
        measured = measure_fidelity(network, features, target_features, held_out, train)
        write_json(folder / "fidelity.json", {"influence": origin["name"], **dataclasses.asdict(measured)})
    return network


def _duplicate_groups(samples: Dataset, index: np.ndarray) -> np.ndarray:
    """A group number for each sample, (n,) int64; labelled samples with the same text share one."""
    groups = np.arange(len(samples))
    first: dict[tuple[str, str], int] = {}
    for i in np.unique(index):
        row = samples[int(i)]
        groups[i] = first.setdefault((row["prompt"], row["response"]), int(i))
    return groups


def _row_means(matrix: InfluenceMatrix, folder: Path) -> np.ndarray:
    path = folder / "influence.npy"
    if not path.exists():
        write_array(path, matrix.row_means().astype(np.float32))
    return read_array(path)


def make_objective(matrix: InfluenceMatrix, *, eta: float | None) -> Objective:
    """The objective that follows from the data: `eta` is None where the pool is its own target."""
    if eta is None:
        return FacilityLocation(matrix)
    return FacilityLocationMutualInformation(matrix, eta=eta)


def default_eta(n_target: int, expected: float) -> float:
    """Weight of a sample's own relevance when about `expected` samples will be chosen.

    The modular term grows with the subset, the other is bounded by the number of targets: this puts both on
    one scale.
    """
    return n_target / max(expected, 1.0)


def _select(
    config: Config,
    matrix: InfluenceMatrix,
    samples: Dataset,
    means: np.ndarray,
    folder: Path,
    *,
    own_target: bool,
    progress: bool,
) -> Selection:
    if (folder / "selection.parquet").exists() and (folder / "subset.jsonl").exists():
        return Selection.load(folder, pool=samples)
    amount = parse_budget(config.budget)
    tokens = token_counts(config, samples, folder) if amount.kind == "tokens" else None
    count = budget_count(config, len(samples)) if tokens is None else None
    eta = None
    if not own_target:
        expected = amount.value / max(tokens.mean(), 1.0) if tokens is not None else float(count or 1)
        eta = config.eta if config.eta is not None else default_eta(matrix.shape[1], expected)
    selection = lazy_greedy(
        make_objective(matrix, eta=eta),
        count,
        costs=tokens,
        max_cost=None if tokens is None else amount.value,
        progress=progress,
    ).with_pool(samples, means)
    selection.save(folder)
    return selection
