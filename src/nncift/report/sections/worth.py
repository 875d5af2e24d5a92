"""Is the choice worth it: the evaluations and comparisons in the run's folder, told by their verdicts.

`nncift evaluate` leaves its results in `evaluation/NAME`; a comparison is found there, too, where its `output` was set
so. A verdict is never replaced by the order of the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nncift.evaluation.comparisons import note_on_ties
from nncift.report.answer import answer
from nncift.report.choices import listed
from nncift.report.template import shown_value, signed
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import DRAWN, counted
from nncift.run.storage.files import read_json

Mark = Literal["good", "bad", ""]
NO_TUNING, TUNED = "none", "lora"
_TRAINED = (TUNED, "phased", "weighted")  # the first one that was trained decides
_METHODS = {
    **{NO_TUNING: "The model as it is", TUNED: "Fine-tuned", "phased": "Fine-tuned in phases"},
    **{"weighted": "Fine-tuned with weights", "icl": "Examples in the context"},
}
_HOW = {"phased": " in phases", "weighted": " with weights"}
_MARKS: dict[str, tuple[Mark, str]] = {"better": ("good", "✓"), "worse": ("bad", "!"), "tie": ("", "≈")}
_OF_ANSWER: dict[str, tuple[Mark, str]] = {"good": ("good", "✓"), "mixed": ("", "≈"), "bad": ("bad", "!")}
_WORDS = {"better": "is better than", "worse": "is worse than", "tie": "is no better than"}
_CHANGES = {
    **{"better": "improves the model", "worse": "makes the model worse"},
    **{"tie": "does not change the model measurably"},
}
_UNTRAINED = "the model as it is"
_UNCOMPARED = (
    "It was not compared with as many random rows, which would show what choosing brings: draw them with"
    " nncift select --from RUN --influence random, and evaluate with --against the folder of that run."
)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation as the page shows it.

    Attributes:
        name: of its folder.
        short: the answer in a few words, for the head of the page.
        headline: in one sentence without a full stop.
        sentences: the figures behind it.
        mark, sign: "good", "bad" or "", and the same for those who see no colours.
        models: "name", "loss", "low", "high", "against" (the difference to random rows or to the model as it is) and
            "verdict" of each model; empty of a comparison, which has a page of its own.
        compared: what "against" is; empty where nothing is compared.
        page: the comparison's own, as a path in the run's folder; empty without one.
        has_random: whether there are random rows to compare with.
        facts: what it was tested on.
    """

    name: str
    short: str
    headline: str
    sentences: tuple[str, ...]
    mark: Mark
    sign: str
    models: Sequence[Mapping[str, Any]] = ()
    compared: str = ""
    page: str = ""
    has_random: bool = True
    facts: str = ""


def evaluations(folder: RunFolder) -> list[Evaluated]:
    """The finished evaluations and comparisons in a run's folder, those with random rows first."""
    found = []
    for path in sorted((folder.path / "evaluation").glob("*/results.json")):
        results = read_json(path)
        if results.get("cells"):
            found.append(_compared(path, results, folder))
        elif results.get("models"):
            found.append(evaluated(path.parent.name, results))
    return sorted(found, key=lambda one: not one.has_random)


def evaluated(name: str, results: Mapping[str, Any]) -> Evaluated:
    """An evaluation, from the content of its `results.json`."""
    sides = results.get("sides", {})
    titles = {side: _side(side, facts) for side, facts in sides.items()}
    drawn = [side for side, facts in sides.items() if facts.get("influence") in DRAWN]
    other = "against" if "against" in sides else next((side for side in drawn if side != "run"), None)
    has_random = other is not None and bool(drawn)  # on either side: the run itself may be of random rows
    to_none, to_other = _differences(results, ("", NO_TUNING)), {} if other is None else _differences(results, other)
    methods = [method for method in _TRAINED if ("run", method) in to_other or ("run", method) in to_none]
    method = methods[0] if methods else TUNED
    deciding, compared = to_none.get(("run", method)), _UNTRAINED
    if other is not None and ("run", method) in to_other:
        deciding, compared = to_other["run", method], titles[other]
    models = [
        {
            "name": _title(used, titles.get(side, side)),
            "loss": model["metrics"].get("loss"),
            "against": (to_other if to_other else to_none).get((side, used)),
            "ours": side == "run" and used == method,
        }
        for model in results["models"]
        for side, used in [(model["run"], model["method"])]
    ]
    test = results["test"]
    seeds = results.get("seeds", 1)
    facts = f"Tested on {counted(test['items'], 'item')} of {test['name']}, {counted(seeds, 'training seed')}."
    if deciding is None:
        headline = "Nothing was trained on the choice and compared"
        return Evaluated(name, "not trained", headline, (), "", "?", models, compared, has_random=False, facts=facts)
    verdict = deciding["verdict"]
    sentences = [_figures(results, method, compared, deciding)]
    if not drawn:
        sentences.append(_UNCOMPARED)
    every = [one["metrics"] for one in results.get("comparisons", ())]
    shown = [model["against"] for model in models if model["against"]]
    if note := note_on_ties(shown, sum(map(len, every))):
        sentences.append(note)
    if seeds == 1:
        sentences.append("With one seed, chance in the training is not in the interval.")
    short = f"{verdict}: loss {signed(deciding['value'])}" if has_random else "not yet compared with random rows"
    headline = _headline(verdict, (titles["run"] if "run" in drawn else "the choice") + _HOW.get(method, ""), compared)
    mark, sign = _MARKS.get(verdict, ("", "?"))
    if not has_random and mark == "good":
        mark, sign = "", "?"  # almost any training improves the model: that says nothing about the choice
    told = (name, short, headline, tuple(sentences), mark, sign)
    return Evaluated(*told, models, compared, has_random=has_random, facts=facts)


def _headline(verdict: str, rows: str, compared: str) -> str:
    if verdict not in _WORDS:
        return f"Too few test items to tell {rows} from {compared}"
    if compared == _UNTRAINED:
        return f"Training on {rows} {_CHANGES[verdict]}"
    return f"Training on {rows} {_WORDS[verdict]} on {compared}"


def _figures(results: Mapping[str, Any], method: str, compared: str, difference: Mapping[str, Any]) -> str:
    own = next(m for m in results["models"] if (m["run"], m["method"]) == ("run", method))
    loss = shown_value(own["metrics"]["loss"]["value"], 3)
    other = shown_value(own["metrics"]["loss"]["value"] - difference["value"], 3)
    interval = f"[{signed(difference['low'])}, {signed(difference['high'])}]"
    return f"Test loss {loss}, against {other} of {compared}: {signed(difference['value'])} {interval}."


def _differences(results: Mapping[str, Any], other: Any) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(side, method) to the difference of its loss to a model, or to the same method on another side."""
    found = {}
    for one in results.get("comparisons", ()):
        a, b = tuple(one["a"]), tuple(one["b"])
        if "loss" in one["metrics"] and b == (other if isinstance(other, tuple) else (other, a[1])):
            found[a] = one["metrics"]["loss"]
    return found


def _title(method: str, of: str) -> str:
    """A model in words."""
    if method == NO_TUNING:
        return _METHODS[method]
    return f"{_METHODS.get(method, method)} {'from' if method == 'icl' else 'on'} {of}"


def _side(side: str, facts: Mapping[str, Any]) -> str:
    """What a model was trained on, in words."""
    if facts.get("influence") in DRAWN:
        return f"{facts['rows']:,} {'stratified ' * (facts['influence'] != 'random')}random rows"
    if side == "run":
        return f"the choice ({counted(facts['rows'], 'row')})"
    return f"{facts.get('title') or 'the choice of ' + Path(facts['folder']).name} ({counted(facts['rows'], 'row')})"


def _compared(path: Path, results: Mapping[str, Any], folder: RunFolder) -> Evaluated:
    """A comparison: its answer, and the link to its page."""
    found = answer(results)
    mark, sign = _OF_ANSWER.get(found.mark, ("", "?"))
    page = path.with_name("report.html")
    return Evaluated(
        path.parent.name,
        {"good": "better than random", "mixed": "partly", "bad": "no better than random"}.get(found.mark, "undecided"),
        found.headline,
        (*found.sentences, *found.reservations, *found.offer),
        mark,
        sign,
        page=page.relative_to(folder.path).as_posix() if page.is_file() else "",
        facts=f"Tested on {counted(results['test']['items'], 'item')} of {results['test']['name']};"
        f" seeds {listed([str(seed) for seed in results['seeds']])}.",
    )
