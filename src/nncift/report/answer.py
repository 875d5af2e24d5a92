"""The answer of a comparison in a few sentences, by fixed rules from its verdicts, bad news included.

A way of choosing counts as better than random rows at a budget where the verdict on its test loss, after Holm's
correction, says so. The one that is better at most budgets leads, among equals that of the lowest loss; then it has to
stand beside the best choice that needs no labels, and beside stratified random rows. Where no choice is better than
random rows, random rows are what is offered. A verdict is never replaced by the order of the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nncift.evaluation.comparisons import BETTER, TIE, TOO_FEW, WORSE
from nncift.report.choices import CHOICES, Cell, Choices, listed, loss_against
from nncift.run.folder.records import counted

_PLACES = tuple((method, unit) for method in ("lora", "phased", "weighted", "icl") for unit in ("rows", "tokens"))
_THAN = {BETTER: "better than", TIE: "a tie with", WORSE: "worse than", TOO_FEW: "not distinguishable from"}
_DOES = {
    **{"lora": "trains better than", "phased": "trains better in phases than"},
    **{"weighted": "trains better with weights than", "icl": "is better in the context than"},
}


@dataclass(frozen=True)
class Answer:
    """What a comparison says.

    Attributes:
        headline: in one sentence without a full stop.
        sentences: the figures behind it.
        mark: "good" where a way of choosing is better than random rows at every budget, than stratified ones at one,
            and than the best choice without labels at one or is such a choice itself; "mixed" where one is better than
            random at some budget; "bad" where none is; "unknown" where the results cannot decide it.
        reservations: sentences on equal tokens, on choices that are no better than random rows, on a single seed.
        offer: sentences on random rows to take instead, where no choice is better than they are.
    """

    headline: str
    sentences: tuple[str, ...]
    mark: Literal["good", "mixed", "bad", "unknown"]
    reservations: tuple[str, ...] = ()
    offer: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """All of it, a line for each part."""
        rest = (self.sentences, self.reservations, self.offer)
        return [f"{self.headline}.", *(" ".join(part) for part in rest if part)]


def main_place(cells: Iterable[Cell]) -> tuple[str, str] | None:
    """The method and unit that the answer and the picture are of: trained on equally many rows where that was tried."""
    found = {(cell["method"], cell["unit"]) for cell in cells if cell["kind"] in CHOICES}
    return next((place for place in _PLACES if place in found), None)


def answer(results: Mapping[str, Any]) -> Answer:
    """What the results say about which way of choosing is worth it.

    Args:
        results: the content of `results.json` of a comparison.
    """
    place = main_place(results["cells"])
    if place is None:
        return Answer("No way of choosing was compared", (), "unknown")
    every = Choices(results, place)
    if not every.verdicts:
        problem = "The results have no random rows of the same budgets as a baseline."
        return Answer("There are no random rows to compare with", (every.lowest(), problem), "unknown")
    if all(verdict == TOO_FEW for found in every.verdicts.values() for verdict in found.values()):
        items = counted(results["test"]["items"], "test item")
        return Answer("Too few test items to tell", (f"There are {items}.", every.lowest()), "unknown")
    leader = every.leader
    wins = every.budgets_of(leader, BETTER)
    if not wins:
        return _nothing_better(every, results)
    headline = f"{every.title(leader)} {_DOES[place[0]]} random rows {every.at(wins, whole=True)}"
    stratified = every.against_stratified(leader)
    if stratified and BETTER not in stratified.values():
        headline += ", and no better than stratified random rows"
    sentences = (
        every.worth(leader),
        *_beside_stratified(every, leader),
        *_beside_free(every, leader),
        *_estimate_of(every, leader),
    )
    free = every.kind(leader) == "free"
    stands = free or not every.has_free or BETTER in every.against_free(leader).values()
    good = stands and len(wins) == len(every.verdicts[leader]) and (not stratified or BETTER in stratified.values())
    reservations = _reservations(every, results, leader)
    return Answer(headline, sentences, "good" if good else "mixed", reservations, _offer(every))


def _nothing_better(every: Choices, results: Mapping[str, Any]) -> Answer:
    verdicts = {verdict for found in every.verdicts.values() for verdict in found.values()}
    if verdicts == {WORSE}:
        headline = "Every way of choosing is worse than random rows here"
    else:
        headline = "No way of choosing is better than random rows here"
    better = [budget for budget, verdict in every.stratified_verdicts.items() if verdict == BETTER]
    if better:
        headline += f"; stratified random rows are {every.at(better)}"
    sentences = (every.lowest(), "Random rows cost nothing.")
    return Answer(headline, sentences, "bad", _reservations(every, results), _offer(every))


def _offer(every: Choices) -> tuple[str, ...]:
    """What to take at the budgets at which no choice is better than random rows, or than stratified ones."""
    random = every.unbeaten("random")
    stratified = [budget for budget in every.unbeaten("stratified") if budget not in random]
    spread = [budget for budget in random if every.stratified_verdicts.get(budget) == BETTER]
    plain = [budget for budget in random if budget not in spread]
    found = []
    for budgets, kind in ((plain, "random"), (sorted([*spread, *stratified]), "stratified random")):
        if budgets:
            first, place = budgets[0], every.at(budgets)
            draw = "random" if kind == "random" else f"stratified-random --influence-option clusters={first}"
            found.append(
                f"{place[:1].upper()}{place[1:]} no choice is better than {kind} rows, so take {kind} rows:"
                f" nncift select POOL --influence {draw} --budget {first}."
            )
    return (*found, "Duplicates and the rows of --exclude stay out of them.") if found else ()


def _beside_stratified(every: Choices, leader: str) -> list[str]:
    """How the leader stands beside stratified random rows."""
    found = every.against_stratified(leader)
    by_verdict = {word: [b for b, one in found.items() if one == verdict] for verdict, word in _THAN.items()}
    parts = [f"{word} them {every.at(budgets)}" for word, budgets in by_verdict.items() if budgets]
    return [f"Beside stratified random rows it is {listed(parts)}."] if parts else []


def _beside_free(every: Choices, leader: str) -> list[str]:
    """How the leader stands beside the best choice that needs no labels."""
    if not every.has_free:
        return ["No choice that needs no labels was compared."]
    if every.kind(leader) == "free":
        others = [name for name in every.verdicts if every.kind(name) != "free"]
        better = [
            f"{every.title(name)} is better than the best such choice {every.at(budgets)}"
            for name in others
            if (budgets := [b for b, verdict in every.against_free(name).items() if verdict == BETTER])
        ]
        compared = any(every.against_free(name) for name in others)
        none = ["no exact or estimated influence is better than the best such choice"] if compared else []
        return ["; ".join(["It needs no labels", *(better or none)]) + "."]
    found = every.against_free(leader)
    if not found:  # results without this comparison: their verdicts against random rows
        too = [n for n in every.verdicts if every.kind(n) == "free" and every.budgets_of(n, BETTER)]
        shown = [f"{every.title(name)} {every.at(every.budgets_of(name, BETTER))}" for name in too]
        needs = "Better than random rows without labels"
        return [f"{needs}: {listed(shown)}." if too else f"{needs}: none."]
    parts = []
    for verdict, word in _THAN.items():
        for free in dict.fromkeys(every.best_free(leader, budget) for budget in found):
            budgets = [b for b, v in found.items() if v == verdict and every.best_free(leader, b) == free]
            if budgets:
                parts.append(f"{word} {free} {every.at(budgets)}")
    return [f"Against the best choice without labels it is {listed(parts)}."]


def _estimate_of(every: Choices, leader: str) -> list[str]:
    """How the estimate of an exact leader stands beside it, since it costs less."""
    function = every.function(leader) if every.kind(leader) == "exact" else None
    found = {
        budget: difference["verdict"]
        for (name, budget), cell in every.cells.items()
        if cell["kind"] == "estimated"
        and every.function(name) == function
        and (difference := loss_against(cell, "exact"))
    }
    by_verdict = {word: [b for b, one in found.items() if one == verdict] for verdict, word in _THAN.items()}
    parts = [f"{word} it {every.at(budgets)}" for word, budgets in by_verdict.items() if budgets]
    return [f"{every.influence(leader)} (estimated) is {listed(parts)}."] if parts else []


def _reservations(every: Choices, results: Mapping[str, Any], leader: str | None = None) -> tuple[str, ...]:
    """What else belongs to the answer: equal tokens, choices that are worse than random, a single seed."""
    found = []
    method, unit = every.place
    if leader is not None and unit == "rows":
        tokens = Choices(results, (method, "tokens"))
        if verdicts := tokens.verdicts.get(leader):
            by_verdict = {v: [b for b, one in verdicts.items() if one == v] for v in (BETTER, TIE, WORSE, TOO_FEW)}
            words = {BETTER: "better", TIE: "a tie", WORSE: "worse", TOO_FEW: "undecided"}
            parts = [f"{words[v]} {tokens.at(budgets)}" for v, budgets in by_verdict.items() if budgets]
            found.append(f"With as many response tokens as random rows it is {listed(parts)}.")
    worse = [name for name in every.verdicts if every.budgets_of(name, WORSE)]
    if worse:
        shown = [f"{every.title(name)} {every.at(every.budgets_of(name, WORSE))}" for name in worse]
        found.append(f"Worse than random rows: {listed(shown)}.")
    level = [name for name in every.verdicts if name not in worse and not every.budgets_of(name, BETTER)]
    if level and leader is not None:
        found.append(f"Not better than random rows at any budget: {listed([every.title(name) for name in level])}.")
    if not every.seeds_counted:
        found.append("Each model was trained with one seed, so chance in the training is not in these verdicts.")
    return tuple(found)
