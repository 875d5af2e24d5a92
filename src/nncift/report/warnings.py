"""Warnings of a run, for its summary and its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nncift.run.folder.records import BETTER, Fidelity, counted, percent

_SHORT = 0.5  # of the mean length that is wanted: responses that are shorter on average deserve a warning


def warnings_of(
    target: dict[str, Any] | None,
    fidelity: Fidelity | None,
    features: Sequence[dict[str, Any]],
    cut: int | None,
    gains: np.ndarray,
    *,
    exact: bool = False,
    ordered: bool = False,
    served: dict[str, Any] | None = None,
    lengths: tuple[float, float] | None = None,
) -> list[str]:
    """Reasons not to rely on a selection as it is.

    Args:
        target: facts of the target, if there is one.
        fidelity: of the network, if it was measured.
        features: facts of the features that were read.
        cut: measured samples that were truncated to a model's context; None where none can be.
        gains: of the selected samples.
        exact: influence is exact for every pair.
        ordered: samples without a gain were selected by scores that differ.
        served: `Summary.served`.
        lengths: mean characters of the selected responses, and of the target's, or of the pool's without a target;
            None where the budget is in tokens.
    """
    warnings = []
    if target is not None and target["rows"] == 1:
        warnings.append("The target is one sample: the subset serves that sample, not a task.")
    if fidelity is not None and fidelity.conclusion != BETTER:
        warnings.append(str(fidelity))
    for part in features:
        if part["truncated"] > part["rows"] / 10:
            longest = f"context of {part['encoder']}" if "blocks" in part else "encoder's maximum length"
            exceed = "exceeds" if part["truncated"] == 1 else "exceed"
            were = "was" if part["truncated"] == 1 else "were"
            warnings.append(
                f"{part['truncated']:,} of {counted(part['rows'], 'text')} {exceed} the {longest} and {were} truncated."
            )
    if cut:
        kind = "sample" if exact else "labelled sample"
        verbs = ("exceeds", "was") if cut == 1 else ("exceed", "were")
        warnings.append(f"{counted(cut, kind)} {verbs[0]} the language model's context and {verbs[1]} truncated.")
    if served is not None and served["is_dominated"]:
        warnings.append(_dominated(served, "pool" if target is None else "target"))
    if lengths is not None and lengths[0] < _SHORT * lengths[1]:
        side = "pool" if target is None else "target"
        warnings.append(
            f"The selected responses are short: {lengths[0]:,.0f} characters on average, those of the {side}"
            f" {lengths[1]:,.0f}. As many random rows have more tokens to learn from and may train a better model:"
            " take more samples (a larger `budget`), or compare by training."
        )
    warnings += _without_gain(gains, "gains" if exact else "estimated gains", ordered)
    return warnings


def _without_gain(gains: np.ndarray, name: str, ordered: bool) -> list[str]:
    """That selected samples add nothing, or take something away."""
    harmful, idle = int(np.sum(gains < 0)), int(np.sum(gains == 0))
    if harmful:
        verb = "lowers" if harmful == 1 else "lower"
        which = f"{harmful:,} of the {counted(len(gains), 'selected sample')} {verb} the value"
        return [f"{which}: a smaller `budget` has a larger one."]
    if idle and idle == len(gains):
        what = "no score is above 0, and the largest were selected" if ordered else "the selection is arbitrary"
        return [f"All {name} are 0: {what}."]
    if idle:
        without = f"{idle:,} of the {len(gains):,} selected samples {'has' if idle == 1 else 'have'} no gain"
        return [f"{without}: the objective is saturated; a smaller `budget` has the same value."]
    return []


def _dominated(served: dict[str, Any], side: str) -> str:
    """That too many selected samples influence the same target most."""
    samples = f"{served['most']:,.0f} of the {counted(served['selected'], 'selected sample')}"
    top = f"{served['id']!r} ({percent(served['largest_share'])})"
    return (
        f"{samples} have the same top target, {top}, which dominates the selection. If it is an outlier, remove it"
        f" from `{side}`."
    )
