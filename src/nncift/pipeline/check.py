"""Refusing what cannot work before anything costly is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import ConfigError
from nncift.influence.random_rows import Random, StratifiedRandom
from nncift.labels.imported import keep_labels
from nncift.matrix.matrix import InfluenceMatrix
from nncift.models.loading import check_device
from nncift.models.locate import find_model
from nncift.pipeline.choosing.arrange import check_arrangement
from nncift.pipeline.choosing.exact import check_not_estimated
from nncift.pipeline.choosing.forms import check_form
from nncift.pipeline.choosing.quotas import check_quotas
from nncift.pipeline.components.model_files import models_of
from nncift.pipeline.earlier_runs.growing import samples_budgeted, selection_kept
from nncift.pipeline.learning.label import check_labels
from nncift.selection.budget import check_shortlist
from nncift.selection.maximizers.table import check_maximizer
from nncift.selection.objectives.table import COMPARES_FEATURES, GRAPH_CUT, Objective, ObjectiveOptions, make_objective

if TYPE_CHECKING:
    from nncift.influence.base import InfluenceFunction
    from nncift.pipeline.context import Run


def check(run: Run) -> None:
    """Refuse a budget, models, samples or exact values that the run cannot use.

    Raises:
        ConfigError: options do not go together, or not with the data.
        DataError: a sample lacks what the function needs, or imported values do not fit the samples.
        ModelError: a model does not exist.
    """
    if run.is_exact:
        check_not_estimated(run)
    if not run.is_chosen:
        _check_budget(run)
        check_quotas(run)
        check_form(run)
        check_arrangement(run)
        _check_weights(run)
        check_models(run)
        _check_wording(run)
        if run.is_exact:
            run.function.check(run.pool.rows, run.target.rows)
            if run.verifier is not None:
                _check_function(run, run.verifier)
        elif run.influence is not None:
            _check_function(run, run.influence)
            check_labels(run)
    else:  # a lost file may have to be computed again
        for function in filter(None, (run.influence, run.verifier)):
            function.check(run.pool.rows, run.target.rows)
    if run.config.labels_from is not None:
        with run.costs.stage("labels"):
            keep_labels(run.config.labels_from, run.pool.rows, run.target.rows, run.folder.labels)
    if not run.is_chosen:
        trial_objective(run)  # after what finds out whether influence is pointwise


def trial_objective(run: Run) -> Objective:
    """The run's objective on a small matrix.

    Raises:
        ConfigError: there is no such objective, or options do not go with it.
    """
    ones, config = np.ones((2, 2), np.float32), run.config
    known = None if run.known is None else ones[0]
    weights: dict[str, Any] = {"eta": config.eta, "nu": config.nu, "redundancy": config.redundancy}
    options = ObjectiveOptions(has_target=not run.own_target, known=known, features=ones, **weights)
    if run.is_exact and run.is_pointwise and run.objective in COMPARES_FEATURES:
        problem = f"{run.function.name} has scores alone, and the `objective` {run.objective} compares samples"
        raise ConfigError(problem, "give another `influence` or `objective`")
    objective = make_objective(run.objective, InfluenceMatrix.from_array(ones), options)
    if config.keep_selection and (config.maximizer not in (None, "lazy") or objective.name == GRAPH_CUT):
        what = "`objective` graph-cut" if objective.name == GRAPH_CUT else f"`maximizer` {config.maximizer}"
        raise ConfigError(f"`keep_selection` cannot be given with the {what}", "leave one of them out")
    check_maximizer(config.maximizer, objective, limited=bool(config.quota or config.cap))
    return objective


def _check_budget(run: Run) -> None:
    kept = selection_kept(run)
    number = run.size("pool") - len(kept)  # of a selection that is kept, old samples may join it too
    in_samples = run.budget.max_tokens is None
    if run.config.keep_selection and in_samples and run.budget.count(samples_budgeted(run)) > number:
        problem = f"`budget` {run.budget.amount} is more than the {number:,} samples that are not selected yet"
        raise ConfigError(problem, "give a smaller one")
    tokens = None if run.sizes.get("pool") else run.tokens  # those of a part are not the pool's
    run.budget.check(number, None if tokens is None else np.delete(tokens, kept))
    if run.own_target and run.config.verify is not None and in_samples:
        check_shortlist(run.budget.count(number, run.config.verify), number)


def _check_weights(run: Run) -> None:
    if run.config.weights and isinstance(run.influence, Random | StratifiedRandom):
        problem = f"the gains of {run.influence.name} rows are random numbers, so `weights` would be random too"
        raise ConfigError(problem, "leave it out")


def _check_wording(run: Run) -> None:
    asked = any(function.traits.asks_language_model for function in run.functions)
    if run.config.wording is not None and run.features.language_model is None and not asked:
        problem = f"no language model reads samples in this run, so `wording` {run.config.wording} changes nothing"
        raise ConfigError(problem, "leave it out")


def check_models(run: Run) -> None:
    """Refuse models that do not exist, and a device that is not there; loads none."""
    if run.config.device is not None:
        check_device(run.config.device)
    if run.features.encoder is not None:
        find_model(run.features.encoder, "encoder")
    if run.features.language_model is not None:
        find_model(run.features.language_model, "language model")
    for name, kind in (part for function in run.functions for part in models_of(function)):
        find_model(name, kind)


def _check_function(run: Run, function: InfluenceFunction) -> None:
    config = run.config
    function.check(run.pool.rows, run.target.rows)
    stages = {"`probes`": config.probes, "`verify`": config.verify, "`labels` auto": config.in_rounds or None}
    later = [name for name, wanted in stages.items() if wanted is not None]
    if later and function.traits.relative:
        raise ConfigError(
            f"the values of {function.name} depend on all samples that are measured together, so {later[0]} cannot"
            " measure more of them later",
            "give `labels` a number" if "labels" in later[0] else "leave it out, and raise `labels` instead",
        )
    if config.probes is not None and function.traits.pointwise:
        raise ConfigError(
            f"{function.name} gives a sample one score for all targets, so `probes` would measure every sample",
            "give `labels` 100% instead",
        )
