"""The record of a run (`Summary`) from the files of its stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nncift.data.composition import mean_length
from nncift.data.facts import PoolFacts, open_samples
from nncift.labels.pairs import LabelledPairs
from nncift.matrix.products import averaged_targets
from nncift.report.warnings import warnings_of
from nncift.run.folder.costs import Costs, Rates, Work
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.parts import SampleFolder
from nncift.run.folder.records import Fidelity, FirstCut, Summary, counted
from nncift.run.storage.files import read_array, read_json
from nncift.run.storage.vectors import read_vectors
from nncift.selection.certificate import Certificate
from nncift.selection.objectives.table import MEAN_INFLUENCE
from nncift.selection.selection import Selection
from nncift.selection.sparseness import Sparseness

_STAND_IN = "gradient-sketch"  # with `labels` 0


def write_summary(
    folder: RunFolder,
    selection: Selection,
    *,
    all_pairs: int,
    scored: bool = False,
    given: dict[str, Any] | None = None,
) -> Summary:
    """Write the summary of a run whose other files are there.

    Args:
        folder: of the run.
        selection: the subset.
        all_pairs: entries of the influence matrix; with `scored`, pool samples.
        scored: each pool sample has one score, which is estimated.
        given: description of the network that estimated, where nothing was labelled.
    """
    config, features = read_json(folder.config), _features(folder)
    pool, target, known = (_facts(folder.samples(side)) for side in ("pool", "target", "known"))
    assert pool is not None
    fidelity, exact = Fidelity.find(folder.fidelity), _exact_function(folder)
    labelled = all_pairs if exact else sum(fidelity.pairs.values()) if fidelity else 0
    cut = None if any(part.get("vectors") for part in features) else _cut(folder)
    served = _served(folder, selection)
    summary = Summary(
        pool=pool,
        target=target,
        known=known if known is None else known | {"value": _known_value(folder, selection)},
        labelled_pairs=labelled,
        all_pairs=all_pairs,
        scored=scored,
        exact_all_pairs=_exact_cost(folder),
        selected=len(selection),
        tokens_selected=_tokens(folder, selection),
        objective=selection.objective,
        objective_options=selection.objective_options,
        value=float(selection.value),
        encoder=_encoder(features),
        language_model=None if cut is None else {"name": config.get("model"), "cut": cut},
        warnings=warnings_of(
            target,
            fidelity,
            features,
            cut,
            selection.gains,
            exact=bool(exact),
            ordered=_ordered(folder, selection),
            served=served,
            lengths=_lengths(folder, selection),
        ),
        exact=exact,
        averaged=_averaged(folder, all_pairs) if exact else None,
        in_place_of=_in_place_of(config, exact),
        measured_by=_measured_by(folder),
        both_sides=_both_sides(folder),
        network=given,
        arrangement=_arrangement(config, selection),
        sources={name: list(counts) for name, counts in selection.by_source().items()} or None,
        served=served,
        groups=None if selection.groups is None else [asdict(each) for each in selection.groups],
        near_duplicates=_near_duplicates(folder, config),
        first_cut=_with_text(FirstCut.find(folder.first_cut.facts)),
        certificate=_certificate(selection.certificate),
        sparseness=_with_text(selection.sparseness),
    )
    summary.save(folder.summary)
    return summary


def _with_text(found: FirstCut | Sparseness | None) -> dict[str, Any] | None:
    """A record and what it says in words."""
    return None if found is None else asdict(found) | {"text": str(found)}


def _tokens(folder: RunFolder, selection: Selection) -> int | None:
    """Tokens of the subset under a token budget, which are kept of the samples to choose from; None under another."""
    if not folder.tokens.exists():
        return None
    if folder.first_cut.is_finished:
        selection = selection.among(read_array(folder.first_cut.rows))
    return int(read_array(folder.tokens)[selection.indices].sum())


def _lengths(folder: RunFolder, selection: Selection) -> tuple[float, float] | None:
    """Mean characters of the selected responses, and of the target's or else the pool's; None under a token budget."""
    if folder.tokens.exists():
        return None
    pool, target = (folder.samples(side).samples for side in ("pool", "target"))
    chosen = mean_length(open_samples(pool), "response", selection.indices)
    return chosen, mean_length(open_samples(target if target.exists() else pool), "response")


def _exact_function(folder: RunFolder) -> str:
    """The influence function of a run that computed it exactly for every pair; "" of another run."""
    return str(read_json(folder.function)["name"]) if folder.vectors.is_finished("pool") else ""


def _averaged(folder: RunFolder, all_pairs: int) -> list[int] | None:
    """Over how many targets the mean influence is, and how many there are; None where it is over all."""
    rows = max(len(read_array(folder.influence)), 1)
    targets = all_pairs // rows
    averaged = averaged_targets(rows, targets)
    return [averaged, targets] if averaged < targets else None


def _in_place_of(config: Mapping[str, Any], exact: str) -> str:
    """The influence function that was asked for, where `labels` 0 has gradient-sketch computed instead; else ""."""
    asked = str(config.get("influence") or "")
    name = str(json.loads(asked)["name"]) if asked.startswith("{") else asked
    return name if config.get("labels") == "0" and exact == _STAND_IN and name != exact else ""


def _measured_by(folder: RunFolder) -> str:
    """The influence function that measured a shortlist of gradient-sketch, as `pipeline.choosing.verify` keeps it."""
    described = RunFolder(folder.shortlist.path).function
    return str(read_json(described)["name"]) if described.is_file() else ""


def _both_sides(folder: RunFolder) -> dict[str, Any] | None:
    """What the run's network made of labels on both sides; None without any."""
    if not folder.is_fitted:
        return None
    found: dict[str, Any] | None = read_json(folder.network / "config.json").get("description", {}).get("both_sides")
    return found


def _encoder(features: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Name, width and truncated texts of the pool's features; None where there are none."""
    if not features:
        return None
    return {
        "name": " + ".join(str(part["encoder"]) for part in features),
        "truncated": max(part["truncated"] for part in features),
        "width": sum(part["width"] for part in features),
    }


def _cut(folder: RunFolder) -> int | None:
    """Measured samples that were truncated; None where none can be."""
    notes = next((part.notes for part in (folder.vectors, folder.labels) if part.notes.exists()), None)
    return None if notes is None else len(read_json(notes)["cut"])


def _facts(samples: SampleFolder) -> dict[str, Any] | None:
    """`PoolFacts` of one side, without the options it was read with."""
    stored = read_json(samples.facts) if samples.facts.exists() else None
    return stored and PoolFacts.from_dict(stored).to_dict()


def _known_value(folder: RunFolder, selection: Selection) -> float | None:
    """Coverage by the known samples, where the objective counts it: nu * the largest influence, summed over targets."""
    nu = selection.objective_options.get("nu")
    return None if nu is None else nu * float(np.maximum(read_array(folder.known), 0).sum(dtype=np.float64))


def _served(folder: RunFolder, selection: Selection) -> dict[str, Any] | None:
    """The targets that the selection serves, with the id of the most frequent one; None where they were not counted."""
    found = selection.served
    if found is None:
        return None
    target = folder.samples("target").samples
    samples = target if target.exists() else folder.candidates
    facts = {"id": open_samples(samples)[found.target]["id"], "largest_share": found.largest_share}
    return asdict(found) | facts | {"is_dominated": found.is_dominated}


def _near_duplicates(folder: RunFolder, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How many samples could not be chosen as near-duplicates; None where none were looked for."""
    path = folder.samples("pool").near_duplicates
    if config.get("near_duplicates") is None or not path.exists():
        return None
    with open(path, "rb") as file:
        return {"threshold": config["near_duplicates"], "rows": sum(1 for _ in file)}


def _ordered(folder: RunFolder, selection: Selection) -> bool:
    """Whether scores that differ decide among samples without a gain: of `mean-influence` alone."""
    by_score = selection.objective == MEAN_INFLUENCE and not selection.gains.any()
    return by_score and bool(np.ptp(read_array(folder.influence)) > 0)


def _certificate(found: Certificate | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found) | {"share": found.share, "percent": found.percent}


def _arrangement(config: Mapping[str, Any], selection: Selection) -> str:
    """Phases, order, difficulty and weights in a line."""
    parts, values, weights = [], selection.difficulty, selection.weights
    if values is not None:
        spans = [_span(values[places]) for places in selection.phases]
        by = f"by {config.get('difficulty')}"
        if selection.phase is not None:
            sizes = (f"{len(places):,} at {span}" for places, span in zip(selection.phases, spans, strict=True))
            parts.append(f"{counted(len(spans), 'phase')} from easy to hard {by} ({', '.join(sizes)})")
        elif config.get("order") == "curriculum":
            parts.append(f"from easy to hard {by} ({spans[0]})")
        else:
            parts.append(f"best first, difficulty {by} {spans[0]}")
    if weights is not None:
        effective = weights.sum() ** 2 / (weights**2).sum()
        parts.append(f"weights {_span(weights)}, effective sample size {effective:,.1f}")
    return "; ".join(parts)


def _span(values: np.ndarray) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"


def _features(folder: RunFolder) -> list[dict[str, Any]]:
    """Facts of the pool's features, the language model's last, or of the encoder whose vectors give the influence."""
    facts = [read_json(folder.features.facts(name)) for name in folder.features.names("pool")]
    if folder.vectors.is_finished("pool") and "encoder" in (function := read_json(folder.function)):
        rows = sum(stored["rows"] for side in ("pool", "target", "known") if (stored := _facts(folder.samples(side))))
        width = read_vectors(folder.vectors, "pool").shape[1]
        facts.append({"encoder": function["encoder"], "truncated": _cut(folder) or 0, "rows": rows, "width": width})
        facts[-1]["vectors"] = True
    return sorted(facts, key=lambda part: "blocks" in part)


def _exact_cost(folder: RunFolder) -> dict[str, float] | None:
    """Cost of labelling every pair, at the rates of the labels; None where the run did not record their parts."""
    all_pairs, cost = Work.find(folder.labels.work), Costs(folder.costs).stages.get("labels")
    taken = folder.taken.exists()  # some were measured in an earlier run
    if taken or all_pairs is None or cost is None or not cost.sample_seconds + cost.pair_seconds:
        return None
    labels = LabelledPairs.load(folder.labels.labels)
    samples = len(np.unique(labels.pool_index))
    if not read_json(folder.labels.plan).get("pointwise"):
        samples += len(np.unique(labels.target_index))
    tokens = None if all_pairs.tokens is None else cost.forward_tokens - all_pairs.warm_up
    labelled = Work(samples, len(labels), tokens, all_pairs.warm_up)
    return {"seconds": Rates.of(cost, labelled).seconds(all_pairs), "forward_tokens": all_pairs.all_tokens or 0}
