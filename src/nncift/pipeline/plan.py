"""`--dry-run`: what a run would do and cost, from the data's sizes and a short measured rate. Writes nothing."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import DEFAULT_LABELS, Amount, Config, parse_budget, parse_labels
from nncift.data.pool import open_pool
from nncift.errors import printable
from nncift.estimator.gaussian_process import RANK
from nncift.features.language_model import language_features
from nncift.features.sources import FeatureReader
from nncift.influence.base import is_pointwise
from nncift.labels.design import PairPlan, measure_rate, plan_labels
from nncift.labels.imported import read_labels
from nncift.models.encoder import embed_texts, sample_texts
from nncift.pipeline.active import COLUMNS, FIRST, HELD_OUT
from nncift.pipeline.context import (
    budget_count,
    check_budget,
    check_function,
    learned_target,
    make_influence,
    read_samples,
)
from nncift.pipeline.learn import earlier_network
from nncift.pipeline.verify import VERIFY_TARGETS
from nncift.run.folder import check_run

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.influence.base import InfluenceFunction

_TRIAL_TEXTS, _TRIAL_READINGS, _TRIAL_ROWS = 64, 16, 128
_TOWER_BYTES = 3 * 4 * (RANK + 1)  # of a sample on a side: float32, and again while it is put together


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run.

    Attributes:
        samples: pool samples after duplicates, excluded and bad rows are out.
        targets: target samples; the pool's number without a target.
        selected: how many will be chosen; None for a budget in tokens.
        pairs: pairs to measure exactly: labels, probes and a shortlist.
        all_pairs: pairs to estimate.
        tokens: LLM tokens of that; None when the influence function cannot tell.
        seconds: stage to expected seconds, from the measured rates.
        memory: bytes that the arrays of the run take, models not counted.
        disk: bytes the run folder will take.
        at_least: "at least " where labels come in rounds, of which the first is planned, and where a shortlist's number
            is not known, as of a budget in tokens.
    """

    samples: int
    targets: int
    selected: int | None
    pairs: int
    all_pairs: int
    tokens: int | None
    seconds: dict[str, float]
    memory: int
    disk: int
    at_least: str = ""

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in self.seconds.items())
        tokens = "" if self.tokens is None else f", {self.tokens:,} LLM tokens"
        chosen = "by tokens" if self.selected is None else f"{self.selected:,}"
        lines = (
            f"Pool: {self.samples:,} samples; targets: {self.targets:,}; to choose: {chosen}",
            f"Measure exactly: {self.at_least}{self.pairs:,} of {self.all_pairs:,} pairs"
            f" ({self.pairs / self.all_pairs:.2%}){tokens}",
            f"Time: about {sum(self.seconds.values()):,.0f} s ({stages}), at the rate measured just now",
            f"Memory: about {self.memory / 1e6:,.0f} MB beside the models; disk: about {self.disk / 1e6:,.0f} MB",
            "Nothing was written.",
        )
        return "\n".join(printable(line) for line in lines)


def plan(config: Config, *, progress: bool = False) -> RunPlan:
    """Read the data, measure short rates of the encoder and the influence function, and work out the plan.

    Raises:
        NNCIFTError: the run itself would be refused.
    """
    check_run(config.folder, config.identity())
    function = make_influence(config) if config.measures else None
    with tempfile.TemporaryDirectory(prefix="nncift-plan-") as temporary:
        folder = Path(temporary)
        samples, _ = read_samples(config, config.pool, "pool", folder / "pool", progress=progress)
        data_bytes = sum(path.stat().st_size for path in (folder / "pool").iterdir())
        targets, own_target = samples, False
        if config.target is not None:
            targets, _ = read_samples(config, config.target, "target", folder / "target", progress=progress)
        elif (learned := learned_target(config)) is not None:
            targets, _ = open_pool(learned / "target")
        else:
            own_target = True
        check_budget(config, samples, folder, own_target=own_target)
        reading, width = _feature_rate(config, samples)
        seconds = {"features": reading * (len(samples) + (0 if own_target else len(targets)))}
        pairs, tokens = 0, None
        if config.labels_from is not None:
            pairs = len(read_labels(config.labels_from, samples, targets))
        earlier_network(config, function)
        if function is not None:
            pairs, tokens, measured = _measuring_plan(config, function, samples, None if own_target else targets)
            seconds |= measured
        rows = len(samples) + (0 if own_target else len(targets))
        seconds["select"] = len(samples) * len(targets) / _scoring_rate()
        by_tokens = parse_budget(config.budget).kind == "tokens"
        result = RunPlan(
            samples=len(samples),
            targets=len(targets),
            selected=None if by_tokens else budget_count(config, len(samples)),
            pairs=pairs,
            all_pairs=len(samples) * len(targets),
            tokens=tokens,
            seconds=seconds,
            memory=(len(samples) + len(targets)) * (_TOWER_BYTES + 24),
            disk=2 * data_bytes + rows * width * 4,
            at_least="at least " if config.in_rounds or (by_tokens and config.verify is not None) else "",
        )
        del samples, targets  # memory-mapped from the temporary folder
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _feature_rate(config: Config, samples: Dataset) -> tuple[float, int]:
    """Seconds that a sample's features take, and their width; nothing for the user's own features."""
    reader, seconds, width = FeatureReader(config), 0.0, 0
    rows = np.linspace(0, len(samples) - 1, min(_TRIAL_TEXTS, len(samples))).astype(int)
    if reader.sources.encoder is not None:
        texts, encoder = sample_texts(samples.select(rows)), reader.encoder()
        embed_texts(texts[:2], encoder)  # warms up
        since = time.perf_counter()
        width += embed_texts(texts, encoder, batch_size=config.batch_size).shape[1]
        seconds += (time.perf_counter() - since) / len(texts)
    if reader.sources.language_model is not None:
        some = samples.select(rows[:: max(len(rows) // _TRIAL_READINGS, 1)])
        language_features(some.select([0]), reader.language_model)  # warms up
        since = time.perf_counter()
        width += language_features(some, reader.language_model).shape[1]
        seconds += (time.perf_counter() - since) / len(some)
    return seconds, width


def _measuring_plan(
    config: Config, function: InfluenceFunction, samples: Dataset, targets: Dataset | None
) -> tuple[int, int | None, dict[str, float]]:
    """Pairs to label; LLM tokens of all that is measured; seconds of each stage: labels, probes, verify.

    A pair of the later stages is taken to read as many tokens as one of the labels.
    """
    seen_targets = samples if targets is None else targets
    check_function(config, function, samples, seen_targets)
    rate = measure_rate(function, samples, seen_targets, seed=config.seed)
    n, m = len(samples), len(seen_targets)
    work: dict[str, tuple[int, int, int]] = {}  # rows, targets, pairs
    labels, tokens = 0, None
    if config.learns:
        amount = parse_labels(config.labels or DEFAULT_LABELS) if not config.in_rounds else _first_round(function, m)
        chosen = plan_labels(function, amount, n, None if targets is None else m, rate=rate, seed=config.seed)
        labels = len(chosen)
        work["labels"] = len(chosen.rows), len(chosen.targets), labels
        if hasattr(function, "tokens"):
            tokens = _label_tokens(function, samples, seen_targets, chosen)
    if config.probes is not None:
        work["probes"] = n, min(config.probes, m), n * min(config.probes, m)
    if config.verify is not None and parse_budget(config.budget).kind != "tokens":
        shortlist = min(round(budget_count(config, n) * config.verify), n)
        columns = 1 if is_pointwise(function) else min(m, VERIFY_TARGETS)
        work["verify"] = shortlist, columns, shortlist * columns
    more = sum(pairs for stage, (_, _, pairs) in work.items() if stage != "labels")
    if tokens is not None and labels:
        tokens += round(tokens / labels * more)
    return labels + more, tokens, {stage: rate.seconds(*amount) for stage, amount in work.items()}


def _label_tokens(function: Any, samples: Dataset, targets: Dataset, chosen: PairPlan) -> int:
    """Tokens that labelling reads; of many rows with targets of their own, told from an even part of them."""
    warm_up = {"pool": samples} if hasattr(function, "warm_up") else {}
    if chosen.columns.ndim == 1 or is_pointwise(function):
        return int(function.tokens(samples.select(chosen.rows), targets.select(chosen.targets), **warm_up))
    none = samples.select([])
    some = range(0, len(chosen.rows), max(len(chosen.rows) // _TRIAL_ROWS, 1))
    read = 0
    for i in some:  # what is read once for a target is not read again for each row
        own = targets.select(chosen.columns[i])
        read += function.tokens(samples.select(chosen.rows[[i]]), own, **warm_up)
        read -= function.tokens(none, own, **warm_up)
    once = function.tokens(none, targets.select(chosen.targets), **warm_up)
    return int(once + round(read * len(chosen.rows) / len(some)))


def _first_round(function: InfluenceFunction, n_target: int) -> Amount:
    """The labels of the first round and of the rows held out: the least that `--labels auto` takes."""
    columns = 1 if is_pointwise(function) else min(COLUMNS, n_target)
    return Amount("count", (HELD_OUT + FIRST) * columns)


def _scoring_rate() -> float:
    """Pairs per second of scoring on this machine."""
    rng = np.random.default_rng(0)
    from nncift.matrix.matrix import InfluenceMatrix

    factors = rng.standard_normal((2048, 100), dtype=np.float32)
    weight = rng.standard_normal(100, dtype=np.float32)
    matrix = InfluenceMatrix.from_factors(factors, factors, output_weight=weight, output_bias=0.0)
    matrix.row_means()  # compiles
    since = time.perf_counter()
    matrix.row_means()
    return 2048 * 2048 / (time.perf_counter() - since)
