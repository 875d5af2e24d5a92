"""The HTML page of `nncift evaluate`: the verdict, the models behind it, every metric, and the settings folded.

One self-contained file like that of html.py, and as safe. The same results give the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nncift.evaluation.answers.results import METRICS
from nncift.report.sections.worth import evaluated
from nncift.report.template import template
from nncift.run.storage.files import atomic_write


def write_evaluation_report(path: str | os.PathLike[str], results: Mapping[str, Any]) -> Path:
    """Write the page of an evaluation to a file and return its path.

    Args:
        path: of the page.
        results: the content of the evaluation's `results.json`.
    """
    with atomic_write(Path(path)) as temporary:
        temporary.write_text(evaluation_page(results), encoding="utf-8")
    return Path(path)


def evaluation_page(results: Mapping[str, Any]) -> str:
    """The page of an evaluation, from the content of its `results.json`."""
    found = evaluated(results["test"]["name"], results)
    names = [
        name
        for name in METRICS
        if name != "loss" and any(model["metrics"].get(name, {}).get("items") for model in results["models"])
    ]
    return template("evaluation.html.jinja").render(
        results=results,
        found=found,
        metrics={name: METRICS[name] for name in names},
        others=[
            {"name": shown["name"], "ours": shown["ours"], "metrics": model["metrics"]}
            for shown, model in zip(found.models, results["models"], strict=True)
        ],
        version=importlib.metadata.version("nncift"),
    )
