"""The HTML report of a finished run folder, in the order in which a person asks.

What was chosen, can I trust it, is it worth it, what did it cost, what next; how it was computed is folded below.

One self-contained file: pictures are inline SVG, there is no script and no outside link, and a Content-Security-Policy
forbids the browser to fetch any. The data may be hostile, so the template escapes everything it prints, and invisible
characters (control characters, bidirectional overrides) are written as escapes. Only files of the run folder are read;
without labels, network or target their sections state so, and without features there is no map. The same folder gives
the same bytes. Costs about a second, and some more per million samples, whose original rows are read.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
from pathlib import Path

import numpy as np

from nncift.report import plots
from nncift.report.files import FinishedFiles, relative
from nncift.report.sections import chosen, machinery
from nncift.report.sections.next_steps import next_steps
from nncift.report.sections.trust import trust
from nncift.report.sections.worth import evaluations
from nncift.report.template import template
from nncift.report.terminal import averaged_text, known_share, limit_text, optimal_share, optimality, value_name
from nncift.run.folder.folder import RunFolder
from nncift.run.storage.files import atomic_write


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write the report into a run folder and return its path.

    Raises:
        RunError: the folder is not a finished run (the message names what is missing), or is damaged.
    """
    run = FinishedFiles(RunFolder(folder))
    summary = run.summary
    facts = {side: found for side in ("pool", "target", "known") if (found := getattr(summary, side))}
    said = () if run.fidelity is None else (run.fidelity.verdict, str(run.fidelity))
    columns = chosen.columns(run)
    found, gains = evaluations(run.folder), plots.gain_curve(run.gains)
    page = template("report.html.jinja", relative).render(
        config=run.config,
        summary=summary,
        folder=run.folder,
        warnings=[warning for warning in summary.warnings if warning not in said],
        columns=columns,
        contrast=chosen.contrast(columns[0]) if columns else "",
        lengths=chosen.lengths(run),
        best=chosen.first_samples(run),
        worst=chosen.lowest_samples(run),
        reasons=run.reasons,
        trust=trust(run),
        evaluations=found,
        cost=machinery.costs(run),
        steps=next_steps(run, found, gains),
        explore=f"nncift explore {shlex.quote(str(run.folder.path))}",
        fidelity=machinery.fidelity(run),
        history=machinery.history(run),
        verification=machinery.verification(run),
        known_share=known_share(summary),
        limit_text=limit_text,
        value_name=value_name,
        optimality=optimality(summary),
        optimal_share=optimal_share,
        averaged_text=averaged_text,
        influence={
            side: values.mean(dtype=np.float64)
            for side, values in (("pool", run.influence), ("subset", run.influence[run.chosen]))
        },
        gains=gains,
        map=None if run.features is None else plots.embedding_map(run.features, run.chosen, run.target_features),
        sides=facts,
        schemas=sorted({name for f in facts.values() for name in f.get("schemas") or {f.get("schema"): 0} if name}),
        version=importlib.metadata.version("nncift"),
    )
    with atomic_write(run.folder.report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run.folder.report
