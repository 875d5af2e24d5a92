"""Records that the stages of a run store as JSON for the report: a dataclass per file."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from nncift.run.storage.files import read_json, write_json
from nncift.run.storage.refusals import refuse_damaged


@dataclass(frozen=True)
class Record:
    """A JSON file of a run: written atomically; fields of other versions are ignored when it is read."""

    def save(self, path: Path) -> None:
        """Write the record."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record of this version or an earlier one; a missing or damaged one is a RunError."""
        stored, known = read_json(path), {f.name for f in fields(cls)}
        with refuse_damaged(path, "is not valid", TypeError, AttributeError):
            return cls(**{name: value for name, value in stored.items() if name in known})

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """The record, or None where there is none."""
        return cls.load(path) if path.is_file() else None


BETTER, NOT_BETTER, TOO_FEW = "better than", "not better than", "too few samples to tell"
"""The outcomes of comparing a network with the baselines."""
DRAWN = ("random", "stratified-random")
"""Influence functions that draw rows."""
MIN_SAMPLES = 10  # held out; fewer are inconclusive
_NEW = {"Q2": ("pool",), "Q4": ("pool", "target"), "Q3": ("target",)}
"""The sides of a quadrant whose samples are new, the quadrant that is most relevant to a selection first."""


@dataclass(frozen=True, repr=False)
class Fidelity(Record):
    """Fidelity of an InfluenceNetwork on held-out samples.

    `quadrants` maps a quadrant ("Q1" both samples seen, "Q2" new pool sample, "Q3" new target, "Q4" both new) to
    {"pairs": int, "samples": {"pool": int, "target": int}, "methods": {method: {metric: value or None}}}; Q1 is the fit
    to the training pairs. The others also have 95 % intervals over resamples of the held-out samples, [low, high] or
    None: "intervals" of each method, and "differences" of the network to each baseline. Records of earlier versions
    have neither intervals nor "samples".
    """

    quadrants: dict[str, dict[str, Any]]
    beats_baselines: bool  # the outcome is "better than"
    verdict: str  # the outcome as a sentence, and the figures that it follows from
    pairs: dict[str, int]  # number of pairs for training ("train") and "held_out"
    held_out: dict[str, int]  # number of "pool" samples and "target"s without training pairs
    scatter: dict[str, list[Any]]  # "exact" and "predicted" influence and "quadrant" of at most 2,000 held-out pairs
    influence: str = ""  # name of the influence function
    outcome: str = ""  # "better than", "not better than" or "too few samples to tell"; "" in earlier versions
    judged_by: str = ""  # the metric that the outcome is about; "" in earlier versions, which took R2 and ranks

    def __str__(self) -> str:
        facts = self.facts
        return f"{self.headline}: {facts}" if facts else f"{self.headline}."

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @property
    def is_pointwise(self) -> bool:
        """Whether the influence is one score for all targets, as far as the record shows it."""
        return bool(self.judged_by) and not self.judged_by.endswith("within_target")

    @property
    def judged(self) -> str | None:
        """The quadrant that the outcome is about; None where no sample was held out."""
        return next((name for name in _NEW if name in self.quadrants), None)

    @property
    def new_samples(self) -> dict[str, int]:
        """Held-out samples that the outcome is about, by side ("pool", "target")."""
        if self.judged is None:
            return {}
        found = self.quadrants[self.judged].get("samples", self.held_out)
        return {side: int(found[side]) for side in _NEW[self.judged]}

    @property
    def samples(self) -> int:
        """Held-out samples that the outcome is about; of two sides, of the smaller one."""
        return min(self.new_samples.values(), default=0)

    @property
    def where(self) -> str:
        """These samples in words."""
        kinds = {"pool": "new pool sample", "target": "new target"}
        return " and ".join(counted(number, kinds[side]) for side, number in self.new_samples.items())

    @property
    def conclusion(self) -> str:
        """The outcome; of a record of an earlier version by the number of samples and its comparison of the values."""
        if self.outcome:
            return self.outcome
        if self.samples < MIN_SAMPLES:
            return TOO_FEW
        return BETTER if self.beats_baselines else NOT_BETTER

    @property
    def headline(self) -> str:
        """The conclusion as a sentence, without the figures and a full stop."""
        if self.judged is None:
            return "Too few samples to tell whether the network is better than the baselines: none was held out"
        if self.conclusion == TOO_FEW:
            return f"Too few samples to tell whether the network is better than the baselines ({self.where})"
        bought_nothing = self.conclusion == NOT_BETTER and self.judged_by
        so = ", so the labels bought nothing" if bought_nothing else ""
        return f"The network is {self.conclusion} the baselines on {self.where}{so}"

    @property
    def facts(self) -> str:
        """The figures that the conclusion follows from."""
        return self.verdict.partition(": ")[2] if self.judged is not None else ""


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 sample", "1,200 samples"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(part: float) -> str:
    """A share in percent, with one decimal, below 1 % with two digits: "96.7 %", "0.12 %"; the space does not break."""
    value = 100 * part
    decimals = 1 if abs(value) >= 1 or not value else 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(decimals, 12)}f}\u00a0%".replace("-", "\u2212")


@dataclass(frozen=True)
class Reasons(Record):
    """Why the first samples of a subset were chosen, for the report.

    `samples` maps a pool row, as text, to its "targets", [target, influence] of those that it helps most, and its
    "twin", [pool row, cosine] of the most similar sample that was left out; None without any.
    """

    samples: dict[str, dict[str, Any]]
    among: int  # samples left out that were compared with them, those of the highest mean influence
    left_out: int  # all of these


@dataclass(frozen=True)
class FirstCut(Record):
    """What the first cut kept of the pool."""

    rows: int  # samples of the pool
    kept: int
    budgets: float  # that were to be kept
    encoder: str  # the static encoder
    by: str  # "target": the most similar to each target; "pool": representative of the pool
    similarity: dict[str, float] = field(default_factory=dict)  # mean largest cosine with a target, "kept" and "cut"

    def __str__(self) -> str:
        how = "the most similar to each target" if self.by == "target" else "representative of the pool"
        cosines = ""
        if self.similarity:
            cosines = f", cosine {self.similarity['kept']:.2f}, of the others {self.similarity['cut']:.2f}"
        return (
            f"{self.kept:,} of {counted(self.rows, 'sample')} kept ({self.budgets:g} budgets) by {self.encoder},"
            f" {how}{cosines}"
        )


@dataclass(frozen=True)
class Verification(Record):
    """Exact influence of a shortlist, compared with its estimates.

    `value` is the best influence in the subset, mean over the targets with exact influence: "exact", "estimated", and
    "exact_of_the_choice_by_estimates", exact for the selection from the shortlist by estimates alone.
    """

    samples: int  # with exact influence, as the next two
    targets: int
    pairs: int
    value: dict[str, float]
    mean_influence: dict[str, float]  # of the subset, with the keys of `value`
    measures: dict[str, float | None]  # accuracy of the shortlist's estimates (`evaluation.metrics.measures`)
    scatter: dict[str, list[float]]  # "exact" and "predicted" influence of at most 2,000 pairs


@dataclass(frozen=True)
class LabelHistory(Record):
    """The rounds of active learning.

    `rounds` has the "rows" of each, and once it is finished the number of training "pairs" so far, the correlation
    "reached" on the held-out rows (`metric`), and "seconds".
    """

    targets: list[int]  # all that are labelled
    columns: list[int]  # the targets of the held-out rows
    held_out: list[list[int]]  # rows and targets without training pairs, for evaluation
    rounds: list[dict[str, Any]]
    ended: str | None = None  # the stopping reason; None while labelling goes on
    pointwise: bool = False  # the influence is one score for all targets
    target_fidelity: float | None = None  # correlation at which it stops; None in records of earlier versions
    metric: str = ""  # of `evaluation.metrics` that this is; "" in earlier versions, which stopped by rank correlation

    @property
    def is_of_ranks(self) -> bool:
        """Whether it is of an earlier version, which stopped by rank correlation."""
        return not self.metric


@dataclass(frozen=True)
class Summary(Record):
    """Data, cost and result of a run."""

    pool: dict[str, Any]  # `data.facts.PoolFacts`, as of the target and the known samples
    target: dict[str, Any] | None
    labelled_pairs: int  # training pairs of the network; all pairs where `exact`
    all_pairs: int  # entries of the influence matrix; where `scored`, pool samples
    exact_all_pairs: dict[str, float] | None  # extrapolated "seconds" and "forward_tokens" of labelling every pair
    selected: int  # samples
    tokens_selected: int | None  # their tokens, under a token budget
    objective: str
    objective_options: dict[str, float]
    value: float  # of the objective for the subset
    encoder: dict[str, Any] | None  # "name", "width" and "truncated" (texts) of the pool's features; None without any
    language_model: dict[str, Any] | None  # "name", and "cut", the number of measured samples truncated to its context
    warnings: list[str] = field(default_factory=list)  # reasons not to rely on the selection as it is
    network: dict[str, Any] | None = None  # description of the given network, where nothing was labelled
    sources: dict[str, list[int]] | None = None  # name to samples selected and samples there; None of a single source
    arrangement: str = ""  # phases, order, difficulty and weights of the subset in words; "" where it is as selected
    exact: str = ""  # name of the influence function where it was computed exactly for every pair
    scored: bool = False  # whether each pool sample has one score for all targets, which is estimated
    averaged: list[int] | None = None  # targets that mean influence is over, of how many; None where it is over all
    in_place_of: str = ""  # name of the one that this is the estimate of, with `labels` 0
    measured_by: str = ""  # name of the one that measured the shortlist of that, from which the subset is chosen
    both_sides: dict[str, Any] | None = None  # whether labels on both sides are "used" by the network, and "why"
    known: dict[str, Any] | None = None  # also "value", their part in the value of the objective, or None
    served: dict[str, Any] | None = None  # `TargetsServed`, and the "id" of the most frequent target
    groups: list[dict[str, Any]] | None = None  # `GroupCount` of each value of the columns with quotas or caps
    near_duplicates: dict[str, Any] | None = (
        None  # "threshold", and "rows", the samples that could not be chosen for it
    )
    certificate: dict[str, Any] | None = None  # `Certificate`, and its "share" and "percent"
    first_cut: dict[str, Any] | None = None  # `FirstCut` and its "text"; None of a pool that nothing was cut from
    sparseness: dict[str, Any] | None = None  # `Sparseness` and its "text"; None of a choice from all pairs
