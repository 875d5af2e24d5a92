"""The answer of a comparison in a few sentences, by fixed rules from its verdicts, bad news included.

A way of choosing counts as better than random rows at a budget where the verdict on its test loss, after Holm's
correction, says so. The one that is better at most budgets leads, among equals that of the lowest loss; then it has to
stand beside the best choice that needs no labels. A verdict is never replaced by the order of the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nncift.evaluation.comparisons import BETTER, TIE, TOO_FEW, WORSE
from nncift.report.template import share, shown_value
from nncift.run.records import counted

Cell = Mapping[str, Any]
_CHOICES = ("free", "exact", "estimated", "verified")
_PLACES = tuple((method, unit) for method in ("lora", "phased", "weighted", "icl") for unit in ("rows", "tokens"))
_THAN = {BETTER: "better than", TIE: "a tie with", WORSE: "worse than", TOO_FEW: "not to be told from"}
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
        mark: "good" where a way of choosing is better than random rows at every budget, and than the best choice
            without labels at one or is such a choice itself; "mixed" where one is better than random at some budget;
            "bad" where none is; "unknown" where the results cannot decide it.
        reservations: sentences on equal tokens, on choices that are no better than random rows, on a single seed.
    """

    headline: str
    sentences: tuple[str, ...]
    mark: Literal["good", "mixed", "bad", "unknown"]
    reservations: tuple[str, ...] = ()


def main_place(cells: Iterable[Cell]) -> tuple[str, str] | None:
    """The method and unit that the answer and the picture are of: trained on equally many rows where that was tried."""
    found = {(cell["method"], cell["unit"]) for cell in cells if cell["kind"] in _CHOICES}
    return next((place for place in _PLACES if place in found), None)


def loss_against(cell: Cell, other: str) -> dict[str, Any] | None:
    """The difference of a cell's test loss to that of "random", "none", "free" or "exact"; None without one."""
    found: dict[str, Any] | None = cell.get(f"against_{other}", {}).get("loss")
    return found


def answer(results: Mapping[str, Any]) -> Answer:
    """What the results say about which way of choosing is worth it.

    Args:
        results: the content of `results.json` of a comparison.
    """
    place = main_place(results["cells"])
    if place is None:
        return Answer("No way of choosing was compared", (), "unknown")
    every = _Choices(results, place)
    if not every.verdicts:
        problem = "The results have no random rows of the same budgets, which a way of choosing has to be better than."
        return Answer("There are no random rows to compare with", (every.lowest(), problem), "unknown")
    if all(verdict == TOO_FEW for found in every.verdicts.values() for verdict in found.values()):
        items = counted(results["test"]["items"], "test item")
        return Answer("Too few test items to tell", (f"There are {items}.", every.lowest()), "unknown")
    leader = every.leader
    wins = every.budgets_of(leader, BETTER)
    if not wins:
        return _nothing_better(every, results)
    headline = f"{every.title(leader)} {_DOES[place[0]]} random rows {every.at(wins, whole=True)}"
    sentences = (
        every.worth(leader),
        *_beside_free(every, leader),
        *_estimate_of(every, leader),
    )
    free = every.kind(leader) == "free"
    stands = free or not every.has_free or BETTER in every.against_free(leader).values()
    good = stands and len(wins) == len(every.verdicts[leader])
    return Answer(headline, sentences, "good" if good else "mixed", _reservations(every, results, leader))


def _nothing_better(every: _Choices, results: Mapping[str, Any]) -> Answer:
    verdicts = {verdict for found in every.verdicts.values() for verdict in found.values()}
    if verdicts == {WORSE}:
        headline = "Every way of choosing is worse than random rows here"
    else:
        headline = "No way of choosing is better than random rows here"
    sentences = (every.lowest(), "Random rows cost nothing.")
    return Answer(headline, sentences, "bad", _reservations(every, results))


def _beside_free(every: _Choices, leader: str) -> list[str]:
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
        return [f"{needs}: {_listed(shown)}." if too else f"{needs}: none."]
    parts = []
    for verdict, word in _THAN.items():
        for free in dict.fromkeys(every.best_free(leader, budget) for budget in found):
            budgets = [b for b, v in found.items() if v == verdict and every.best_free(leader, b) == free]
            if budgets:
                parts.append(f"{word} {free} {every.at(budgets)}")
    return [f"Against the best choice without labels it is {_listed(parts)}."]


def _estimate_of(every: _Choices, leader: str) -> list[str]:
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
    return [f"{every.influence(leader)} (estimated) is {_listed(parts)}."] if parts else []


def _reservations(every: _Choices, results: Mapping[str, Any], leader: str | None = None) -> tuple[str, ...]:
    """What else belongs to the answer: equal tokens, choices that are worse than random, a single seed."""
    found = []
    method, unit = every.place
    if leader is not None and unit == "rows":
        tokens = _Choices(results, (method, "tokens"))
        if verdicts := tokens.verdicts.get(leader):
            by_verdict = {v: [b for b, one in verdicts.items() if one == v] for v in (BETTER, TIE, WORSE, TOO_FEW)}
            words = {BETTER: "better", TIE: "a tie", WORSE: "worse", TOO_FEW: "not to be told"}
            parts = [f"{words[v]} {tokens.at(budgets)}" for v, budgets in by_verdict.items() if budgets]
            found.append(f"With as many response tokens as random rows it is {_listed(parts)}.")
    worse = [name for name in every.verdicts if every.budgets_of(name, WORSE)]
    if worse:
        shown = [f"{every.title(name)} {every.at(every.budgets_of(name, WORSE))}" for name in worse]
        found.append(f"Worse than random rows: {_listed(shown)}.")
    level = [name for name in every.verdicts if name not in worse and not every.budgets_of(name, BETTER)]
    if level and leader is not None:
        found.append(f"Not better than random rows at any budget: {_listed([every.title(name) for name in level])}.")
    if not every.seeds_counted:
        found.append("Each model was trained with one seed, so chance in the training is not in these verdicts.")
    return tuple(found)


class _Choices:
    """The choices of one method and unit that are compared, with their verdicts against random rows by budget."""

    def __init__(self, results: Mapping[str, Any], place: tuple[str, str]) -> None:
        cells: Sequence[Cell] = results["cells"]
        self.place, self.pool = place, results["pool"]["rows"]
        here = [cell for cell in cells if (cell["method"], cell["unit"]) == place and not cell["curve"]]
        self.random = {cell["budget"]: cell for cell in here if cell["kind"] == "random"}
        self.cells = {(cell["selector"], cell["budget"]): cell for cell in here if cell["kind"] in _CHOICES}
        self.budgets = sorted({budget for _, budget in self.cells})
        self.verdicts: dict[str, dict[int, str]] = {}
        for (name, budget), cell in self.cells.items():
            if found := loss_against(cell, "random"):
                self.verdicts.setdefault(name, {})[budget] = found["verdict"]

    @property
    def has_free(self) -> bool:
        """Whether a choice needs no labels."""
        return any(cell["kind"] == "free" for cell in self.cells.values())

    @property
    def seeds_counted(self) -> bool:
        """Whether the verdicts count the spread over seeds."""
        return all(found["seeds_counted"] for c in self.cells.values() if (found := loss_against(c, "random")))

    @property
    def leader(self) -> str:
        """The choice that is better than random rows at most budgets; among equals that of the lowest loss."""

        def rank(name: str) -> tuple[int, float]:
            differences = [loss_against(self.cells[name, b], "random") for b in self.verdicts[name]]
            return -len(self.budgets_of(name, BETTER)), float(np.mean([d["value"] for d in differences if d]))

        return min(self.verdicts, key=rank)

    def kind(self, name: str) -> str:
        """Whether a choice is free, exact, estimated or verified."""
        return next(str(cell["kind"]) for (other, _), cell in self.cells.items() if other == name)

    def title(self, name: str) -> str:
        """A choice's name inside a sentence."""
        influence = self.influence(name)
        rest = name.removeprefix(influence).removeprefix(", ")  # its kind, and the objective where there are several
        return f"{influence} ({rest})" if rest else name

    def influence(self, name: str) -> str:
        """The influence function of a choice."""
        return next(str(cell["influence"]) for (other, _), cell in self.cells.items() if other == name)

    def function(self, name: str) -> tuple[str, str]:
        """The influence function of a choice, and its objective where there are several."""
        cell = next(cell for (other, _), cell in self.cells.items() if other == name)
        return str(cell["influence"]), str(cell.get("objective", ""))

    def budgets_of(self, name: str, verdict: str) -> list[int]:
        """Budgets where a choice has that verdict against random rows."""
        return [budget for budget, found in self.verdicts[name].items() if found == verdict]

    def against_free(self, name: str) -> dict[int, str]:
        """Verdicts of a choice against the best one that needs no labels, by budget."""
        found = {b: loss_against(cell, "free") for (other, b), cell in self.cells.items() if other == name}
        return {budget: difference["verdict"] for budget, difference in found.items() if difference}

    def best_free(self, name: str, budget: int) -> str:
        """The choice without labels that one is compared with."""
        return str(self.cells[name, budget]["best_free"])

    def at(self, budgets: Sequence[int], *, whole: bool = False) -> str:
        """Budgets in words: "at every budget", or "at 50 and 100 rows"."""
        if len(budgets) == len(self.budgets) > 1:
            return "at every budget"
        unit = "rows" if self.place[1] == "rows" else "mean rows' tokens"
        shown = f"at {_listed([f'{budget:,}' for budget in budgets])} {unit}"
        others = len(self.budgets) - len(budgets)
        if whole and others:
            rest = [f"{budget:,}" for budget in self.budgets if budget not in budgets]
            shown += f", but not at {_listed(rest)}"
        return shown

    def worth(self, name: str) -> str:
        """A choice's equivalent random rows at every budget, or its loss beside that of random rows."""
        cells = [self.cells[name, budget] for budget in self.verdicts[name]]
        equal = {c["budget"]: c["equivalent"]["text"].removesuffix(" random rows") for c in cells if "equivalent" in c}
        if not equal:
            return self._beside_random(cells[0])
        parts = [
            f"its {budget:,} ({share(budget / self.pool)}) like {text}"
            if number
            else f"Its {budget:,} rows ({share(budget / self.pool)} of the pool) train like {text} random ones"
            for number, (budget, text) in enumerate(equal.items())
        ]
        return f"{', '.join(parts)}."

    def lowest(self) -> str:
        """The lowest loss of a choice at the smallest budget, beside that of random rows."""
        cells = [cell for (_, budget), cell in self.cells.items() if budget == self.budgets[0]]
        losses = {c["selector"]: value for c in cells if (value := _loss(c)) is not None}
        if not losses:
            return "The test loss was not measured."
        name = min(losses, key=losses.__getitem__)
        return self._beside_random(self.cells[name, self.budgets[0]])

    def _beside_random(self, cell: Cell) -> str:
        unit = "rows" if self.place[1] == "rows" else "mean rows' tokens"
        name, loss = self.title(cell["selector"]), shown_value(_loss(cell), 3)
        start = f"At {cell['budget']:,} {unit}, {name} has a test loss of {loss}"
        random = self.random.get(cell["budget"])
        difference = loss_against(cell, "random")
        if random is None or difference is None:
            return f"{start}."
        interval = f"[{signed(difference['low'])}, {signed(difference['high'])}]"
        verdict = "a tie" if difference["verdict"] == TIE else difference["verdict"]
        facts = f"{verdict}, {signed(difference['value'])} {interval}"
        return f"{start}, random rows have {shown_value(_loss(random), 3)} ({facts})."


def signed(number: float | None) -> str:
    """A difference with its sign and three decimals."""
    return ("+" if number is not None and number > 0 else "") + shown_value(number, 3)


def _loss(cell: Cell) -> float | None:
    value: float | None = cell["metrics"].get("loss", {}).get("value")
    return value


def _listed(parts: Sequence[str]) -> str:
    """Parts joined by commas, the last by "and"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""
