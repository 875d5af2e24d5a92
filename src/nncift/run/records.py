"""Records that the stages of a run store as JSON for the report: a dataclass per file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from nncift.run.files import read_json, refuse_damaged, write_json


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


@dataclass(frozen=True)
class Fidelity(Record):
    """Fidelity of an InfluenceNetwork on held-out samples.

    `quadrants` maps a quadrant ("Q1" both samples seen, "Q2" new pool sample, "Q3" new target, "Q4" both new) to
    {"pairs": int, "methods": {method: {metric: value or None}}}; Q1 is the fit to the training pairs.
    """

    quadrants: dict[str, dict[str, Any]]
    beats_baselines: bool  # the network is better than every baseline on new pool samples
    verdict: str  # the same as a sentence
    pairs: dict[str, int]  # number of pairs for training ("train") and "held_out"
    held_out: dict[str, int]  # number of "pool" samples and "target"s without training pairs
    scatter: dict[str, list[Any]]  # "exact" and "predicted" influence and "quadrant" of at most 2,000 held-out pairs
    influence: str = ""  # name of the influence function

    def __str__(self) -> str:
        return self.verdict


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

    `rounds` has the "rows" of each, and once it is finished the number of training "pairs" so far, the rank correlation
    "reached" on the held-out rows, and "seconds".
    """

    targets: list[int]  # all that are labelled
    columns: list[int]  # the targets of the held-out rows
    held_out: list[list[int]]  # rows and targets without training pairs, for evaluation
    rounds: list[dict[str, Any]]
    ended: str | None = None  # the stopping reason; None while labelling goes on
    pointwise: bool = False  # the influence is one score for all targets
    target_fidelity: float | None = None  # rank correlation at which it stops; None in records of earlier versions


@dataclass(frozen=True)
class Summary(Record):
    """Data, cost and result of a run."""

    pool: dict[str, Any]  # `data.pool.PoolFacts`, as of the target and the known samples
    target: dict[str, Any] | None
    labelled_pairs: int  # training pairs of the network
    all_pairs: int  # entries of the influence matrix
    exact_all_pairs: dict[str, float] | None  # extrapolated "seconds" and "forward_tokens" of labelling every pair
    selected: int  # samples
    tokens_selected: int | None  # their tokens, under a token budget
    objective: str
    objective_options: dict[str, float]
    value: float  # of the objective for the subset
    encoder: dict[str, Any]  # "name", "width" and "truncated" (texts) of the pool's features
    language_model: dict[str, Any] | None  # "name", and "cut", the number of labelled samples truncated to its context
    warnings: list[str] = field(default_factory=list)  # reasons not to rely on the selection as it is
    known: dict[str, Any] | None = None  # also "value", their part in the value of the objective, or None
