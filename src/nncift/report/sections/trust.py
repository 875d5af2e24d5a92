"""Can the choice be trusted: one verdict by fixed rules, a plain sentence, and the figures behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncift.report.files import FinishedFiles
from nncift.report.template import shown_value
from nncift.report.terminal import optimal_share, unmeasured
from nncift.run.folder.records import BETTER, DRAWN, NOT_BETTER, TOO_FEW, Fidelity, Summary, counted

_CLOSE, _PARTLY = 0.7, 0.4  # subset-sum correlations
_SUMS = ("subset_sum_correlation_within_target", "subset_sum_correlation")
_SHORT = "not measured"
_LABEL = {"gradient sketch": "gradient-sketch", "cosine": "embedding cosine"}  # of baselines


@dataclass(frozen=True)
class Figure:
    """A figure with its name and what it means."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Trust:
    """What a run says about itself.

    Attributes:
        mark: "good", "bad", or "" where it is neither.
        sign: the same for those who see no colours.
        short: the answer in a few words, for the head of the page.
        headline: in one sentence without a full stop.
        sentence: what follows from it, in plain words.
        facts: the figures of the verdict in a sentence; may be empty.
        figures: correlation, certificate and verified value, as far as there are.
    """

    mark: Literal["good", "bad", ""]
    sign: str
    short: str
    headline: str
    sentence: str
    facts: str
    figures: list[Figure]


def trust(run: FinishedFiles) -> Trust:
    """How far the choice of a run can be trusted."""
    figures = [*_correlation(run), *_certificate(run), *_verified(run)]
    if run.fidelity is not None:
        return _of_estimates(run, run.fidelity, figures)
    return _of_exact(run.summary, figures) if run.summary.exact else _untested(run, figures)


def _of_exact(summary: Summary, figures: list[Figure]) -> Trust:
    pairs = counted(summary.all_pairs, "pair")
    if summary.exact in DRAWN:
        sentence = "They are the baseline that a choice has to beat; nothing in this run can be wrong about them."
        return Trust("", "=", "drawn at random", "These rows were drawn at random", sentence, "", [])
    if summary.measured_by:
        return Trust(
            mark="",
            sign="=",
            short="measured on a shortlist",
            headline=f"Shortlist by {summary.exact}, measured by {summary.measured_by}",
            sentence=f"The subset was chosen by exact values of {summary.measured_by} from what {summary.exact} would"
            " choose first. What it would have found among the others is not known.",
            facts=f"{summary.exact}, which needs no labels, was computed for all {pairs}.",
            figures=figures,
        )
    if summary.in_place_of:
        return Trust(
            mark="",
            sign="=",
            short="exact, of another function",
            headline=f"Influence by {summary.exact}, in place of {summary.in_place_of}",
            sentence=f"Nothing was lost to estimates of {summary.exact}; how well it predicts {summary.in_place_of} was"
            " not measured. Only training on the choice shows whether it makes a better model.",
            facts=f"With labels 0 nothing of {summary.in_place_of} was computed: {summary.exact} stands in for it.",
            figures=figures,
        )
    return Trust(
        mark="good",
        sign="✓",
        short="exact influence",
        headline="Influence is exact for every pair",
        sentence="Nothing was lost to estimates: the choice is as good as this influence function. Only training on it"
        " shows whether that makes a better model.",
        facts=f"{summary.exact} was computed for all {pairs}.",
        figures=figures,
    )


def _untested(run: FinishedFiles, figures: list[Figure]) -> Trust:
    reason = (unmeasured(run.summary, run.config) or "").partition(": ")[2]
    if reason:
        facts = f"{reason[:1].upper()}{reason[1:]} The report of the run that fitted it has its fidelity there."
    elif (network := run.config.get("network")) is not None:
        facts = (
            f"The influence was estimated by the network of {network} without exact values on this data. The report of"
            " that run has its fidelity on its own data."
        )
    else:
        facts = "There are no exact values to compare the estimates with."
    sentence = "The choice may be right, but nothing in this run shows it: label some pairs, or verify a shortlist."
    if run.verification is not None:
        sentence = "The estimates were not tested, but the chosen samples were measured exactly afterwards."
    return Trust("", "?", _SHORT, "Fidelity was not measured in this run", sentence, facts, figures)


def _of_estimates(run: FinishedFiles, fidelity: Fidelity, figures: list[Figure]) -> Trust:
    marks: dict[str, tuple[Literal["good", "bad", ""], str]] = {
        BETTER: ("good", "✓"),
        NOT_BETTER: ("bad", "!"),
        TOO_FEW: ("", "?"),
    }
    conclusion, found = fidelity.conclusion, subset_sums(fidelity)
    if conclusion == TOO_FEW:
        short = "too few samples to tell"
        sentence = "More labelled samples are needed before the estimates can be judged."
    else:
        short, sentence = _strength(found)
        if conclusion == NOT_BETTER:
            short = "no better than without labels"
            sentence = "What needs no labels predicts as well, so choose by that, or spend more labels."
    if run.verification is not None:
        sentence += " The chosen samples themselves were measured exactly afterwards."
    facts = fidelity.facts[:1].upper() + fidelity.facts[1:]
    return Trust(*marks[conclusion], short, fidelity.headline, sentence, facts, figures)


def _strength(correlation: float | None) -> tuple[str, str]:
    """What a correlation of subset sums is worth, in a few words and in a sentence."""
    if correlation is None:
        return "better than without labels", "The estimates are better than what costs nothing."
    shown = shown_value(correlation, 2)
    if correlation >= _CLOSE:
        return f"mostly: r = {shown}", "The estimates rank subsets almost as exact influence would: rely on them."
    if correlation >= _PARTLY:
        sentence = "The estimates rank subsets partly as exact influence would: good for the choice as a whole, not for"
        return f"partly: r = {shown}", f"{sentence} a single sample."
    sentence = (
        "The estimates follow exact influence weakly: better than chance, but verify the choice before relying on"
    )
    return f"hardly: r = {shown}", f"{sentence} it."


def subset_sums(fidelity: Fidelity) -> float | None:
    """The network's correlation of subset sums on the new samples; None where it was not measured."""
    row = {} if fidelity.judged is None else fidelity.quadrants[fidelity.judged]["methods"].get("network", {})
    return next((row[name] for name in _SUMS if row.get(name) is not None), None)


def _correlation(run: FinishedFiles) -> list[Figure]:
    fidelity = run.fidelity
    if fidelity is None or fidelity.judged is None or (value := subset_sums(fidelity)) is None:
        return []
    quadrant = fidelity.quadrants[fidelity.judged]
    name = next(name for name in _SUMS if quadrant["methods"]["network"].get(name) is not None)
    span = quadrant.get("intervals", {}).get("network", {}).get(name)
    others = {
        method: row[name]
        for method, row in quadrant["methods"].items()
        if method != "network" and row.get(name) is not None
    }
    beside = ""
    if others:
        best = max(others, key=others.__getitem__)
        beside = f" The best baseline, {_LABEL.get(best, best)}, has {shown_value(others[best], 2)}."
    title = "Subset-sum correlation" + (" within target" if name == _SUMS[0] else "")
    shown = shown_value(value, 2)
    if span is not None:
        shown += f" [{shown_value(span[0], 2)}, {shown_value(span[1], 2)}]"
    meaning = f"of estimated and exact influence summed over random subsets, on {fidelity.where}; 1 is perfect.{beside}"
    return [Figure(title, shown, meaning)]


def _certificate(run: FinishedFiles) -> list[Figure]:
    found = run.summary.certificate
    if found is None:
        return []
    title = "Optimality"
    if found["bound"] is None:
        return [Figure(title, "unknown", f"{found['reason']}.")]
    near_duplicates = (run.summary.near_duplicates or {}).get("rows", 0)
    cut, among = run.summary.first_cut, ""
    kept = run.summary.pool["rows"] if cut is None else cut["kept"]
    if found["among"] < kept - near_duplicates:
        among = f" of the {counted(found['among'], 'shortlisted sample')}"
    elif cut is not None:
        among = f" of the {counted(kept, 'sample')} that the first cut kept"
    influence = "this influence" if run.summary.exact else "these estimates"
    meaning = f"of the best value that any subset{among} within the budget could have by {influence}."
    return [Figure(title, optimal_share(found), meaning)]


def _verified(run: FinishedFiles) -> list[Figure]:
    if (found := run.verification) is None:
        return []
    exact, estimated, by_estimates = (
        shown_value(found.value[name]) for name in ("exact", "estimated", "exact_of_the_choice_by_estimates")
    )
    meaning = f"best influence in the subset, mean over {counted(found.targets, 'target')}, measured exactly;"
    if run.summary.measured_by:
        meaning += f" of the selection by {run.summary.exact} alone: {by_estimates}."
    else:
        meaning += f" estimated before: {estimated}, by estimates alone: {by_estimates}."
    return [Figure("Verified value", exact, meaning)]
