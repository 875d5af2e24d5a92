"""The table of contents: `select` reads top to bottom as the stages of a run.

Each stage writes a file into the run folder when it is finished and is skipped when the file is there, so
the same call resumes a killed run and ends with the same bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nncift.pipeline.check import check
from nncift.pipeline.choose import choose, estimate
from nncift.pipeline.context import Run, make_config
from nncift.pipeline.featurize import featurize
from nncift.pipeline.inherit import sources_of
from nncift.pipeline.label import label, probe
from nncift.pipeline.learn import learn
from nncift.pipeline.read import read
from nncift.pipeline.verify import Evidence, verify
from nncift.report.html import write_report
from nncift.report.summary import write_summary
from nncift.run.progress import in_terminal

if TYPE_CHECKING:
    from nncift.data.sources import SourceLike
    from nncift.influence.base import InfluenceFunction
    from nncift.selection.selection import Selection


def select(
    pool: SourceLike,
    *,
    target: SourceLike | None = None,
    known: SourceLike | None = None,
    influence: str | InfluenceFunction | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Selection:
    """Choose the subset of a pool worth fine-tuning on.

    Args:
        pool: the data to choose from: a file, folder or hub id, a `datasets.Dataset`, or a list of dicts.
        target: samples of the task to get better at; the pool itself unless given.
        known: samples that the model was trained on before: only what the subset adds to them counts.
        influence: the exact influence function: a name, an `InfluenceFunction`, or a callable with a name.
        progress: show progress bars; in a terminal unless given.
        **options: the other fields of `Config`: budget, output, labels, model, encoder, ...

    Returns:
        The chosen samples in the order chosen; `.dataset` holds their rows. The run folder holds
        `subset.jsonl`, `report.html` and everything that led there.

    Raises:
        NNCIFTError: what went wrong; nothing half-written is left behind.
    """
    config = make_config(pool, target=target, known=known, influence=influence, **options)
    sources = sources_of(config, {"pool": pool, "target": target, "known": known})
    shown = in_terminal() if progress is None else progress
    with Run.open(config, sources, influence, progress=shown) as run:
        read(run)
        check(run)
        featurize(run)
        labels = label(run)
        network = learn(run, labels)
        probes = probe(run, network)
        matrix = estimate(run, network, probes)
        selection = choose(run, matrix)
        selection = verify(run, matrix, selection, Evidence(network, labels, probes))
        with run.costs.stage("report"):
            write_summary(run.folder, selection, all_pairs=math.prod(matrix.shape))
            write_report(run.folder)
    return selection
