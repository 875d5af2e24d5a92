"""The choices of a comparison that its answer is about, with their verdicts, and budgets and figures in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nncift.evaluation.comparisons import BETTER, TIE, TOO_FEW, note_on_ties
from nncift.report.template import shown_value, signed
from nncift.run.folder.records import percent

Cell = Mapping[str, Any]
CHOICES = ("free", "exact", "estimated", "verified")
"""Kinds that choose; the others draw rows, or take none or all."""


def loss_against(cell: Cell, other: str) -> dict[str, Any] | None:
    """The difference of a cell's test loss to that of "random", "stratified", "none", "free", "exact" or "lora".

    "lora" is one-off training on the same rows. None without one.
    """
    found: dict[str, Any] | None = cell.get(f"against_{other}", {}).get("loss")
    return found


def notes_on_ties(cells: Sequence[Cell]) -> list[str]:
    """Sentences on ties whose interval leaves 0 out, among the differences that a table of these cells shows.

    Args:
        cells: of one method and unit, with the same budgets as in the table.
    """
    together: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for cell in cells:
        for other in ("random", "lora"):
            if difference := loss_against(cell, other):
                together.setdefault((other, cell["budget"]), []).append(difference)
    return list(dict.fromkeys(note for same in together.values() if (note := note_on_ties(same, len(same)))))


class Choices:
    """The choices of one method and unit that are compared, with their verdicts against random rows by budget."""

    def __init__(self, results: Mapping[str, Any], place: tuple[str, str]) -> None:
        cells: Sequence[Cell] = results["cells"]
        self.place, self.pool = place, results["pool"]["rows"]
        here = [cell for cell in cells if (cell["method"], cell["unit"]) == place and not cell["curve"]]
        self.random, self.stratified = (
            {cell["budget"]: cell for cell in here if cell["kind"] == kind} for kind in ("random", "stratified")
        )
        self._here = here
        self.cells = {(cell["selector"], cell["budget"]): cell for cell in here if cell["kind"] in CHOICES}
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

    def against_stratified(self, name: str) -> dict[int, str]:
        """Verdicts of a choice against stratified random rows, by budget."""
        found = {b: loss_against(cell, "stratified") for (other, b), cell in self.cells.items() if other == name}
        return {budget: difference["verdict"] for budget, difference in found.items() if difference}

    @property
    def stratified_verdicts(self) -> dict[int, str]:
        """Verdicts of stratified random rows against random ones, by budget."""
        found = {budget: loss_against(cell, "random") for budget, cell in self.stratified.items()}
        return {budget: difference["verdict"] for budget, difference in found.items() if difference}

    def unbeaten(self, drawn: str) -> list[int]:
        """Budgets at which no choice is better than "random" or "stratified" rows, though there are items to tell."""
        found: dict[int, set[str]] = {}
        for name in self.verdicts:
            verdicts = self.verdicts[name] if drawn == "random" else self.against_stratified(name)
            for budget, verdict in verdicts.items():
                found.setdefault(budget, set()).add(verdict)
        return [b for b in self.budgets if found.get(b, {TOO_FEW}) - {TOO_FEW} and BETTER not in found[b]]

    def best_free(self, name: str, budget: int) -> str:
        """The choice without labels that one is compared with."""
        return str(self.cells[name, budget]["best_free"])

    def at(self, budgets: Sequence[int], *, whole: bool = False) -> str:
        """Budgets in words: "at every budget", or "at 50 and 100 rows"."""
        if len(budgets) == len(self.budgets) > 1:
            return "at every budget"
        unit = "rows" if self.place[1] == "rows" else "mean rows' tokens"
        shown = f"at {listed([f'{budget:,}' for budget in budgets])} {unit}"
        others = len(self.budgets) - len(budgets)
        if whole and others:
            rest = [f"{budget:,}" for budget in self.budgets if budget not in budgets]
            shown += f", but not at {listed(rest)}"
        return shown

    def worth(self, name: str) -> str:
        """A choice's equivalent random rows at every budget, or its loss beside that of random rows."""
        cells = [self.cells[name, budget] for budget in self.verdicts[name]]
        equal = {c["budget"]: c["equivalent"]["text"].removesuffix(" random rows") for c in cells if "equivalent" in c}
        if not equal:
            return self._beside_random(cells[0])
        parts = [
            f"its {budget:,} ({percent(budget / self.pool)}) like {text}"
            if number
            else f"Its {budget:,} rows ({percent(budget / self.pool)} of the pool) train like {text} random ones"
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
        sentence = f"{start}, random rows have {shown_value(_loss(random), 3)} ({facts})."
        together = sum(c["budget"] == cell["budget"] and "against_random" in c for c in self._here)
        return f"{sentence} {note_on_ties([difference], together)}".rstrip()


def _loss(cell: Cell) -> float | None:
    value: float | None = cell["metrics"].get("loss", {}).get("value")
    return value


def listed(parts: Sequence[str]) -> str:
    """Parts joined by commas, the last by "and"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""
