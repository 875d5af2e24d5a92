"""The columns of the explorer's table that hold one number or label of each sample, from the files of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from nncift.features.features import feature_facts
from nncift.labels.pairs import LabelledPairs
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.run.storage.checksums import verify
from nncift.run.storage.files import read_array
from nncift.run.storage.refusals import refuse_damaged

if TYPE_CHECKING:
    import pyarrow as pa

CHOSEN, LEFT_OUT = "chosen", "left out"
_LOSS = "scalars"  # block of a language model's features whose first column is the loss


def choice_columns(run: FinishedRun) -> dict[str, pa.Array]:
    """Whether each sample is chosen, its rank and gain, and what else the run has given it."""
    import pyarrow as pa

    selection, n = run.selection, len(run.pool)
    chosen = np.zeros(n, bool)
    chosen[selection.indices] = True
    columns = {"chosen": pa.array(np.where(chosen, CHOSEN, LEFT_OUT), pa.string())}

    def spread(values: np.ndarray, kind: pa.DataType) -> pa.Array:
        found = np.zeros(n, values.dtype)
        found[selection.indices] = values
        return pa.array(found, kind, mask=~chosen)

    columns["rank"] = spread(selection.ranks, pa.int32())
    columns["gain"] = spread(selection.gains, pa.float64())
    for name, kind in (("weights", pa.float64()), ("difficulty", pa.float32()), ("phase", pa.int32())):
        if (values := getattr(selection, name)) is not None:
            columns[name.removesuffix("s")] = spread(values, kind)
    return columns


def influence_columns(run: FinishedRun) -> dict[str, pa.Array]:
    """Mean influence over the targets, estimated or exact; of estimated influence, the mean of what was measured."""
    import pyarrow as pa

    means = pa.array(np.asarray(run.influence), pa.float32())
    exact = run.folder.vectors.is_finished("pool") or not (run.folder.is_fitted or run.options["network"])
    if exact:
        return {"influence_measured": means}
    columns = {"influence_estimated": means}
    if (pairs := measured_pairs(run)) is not None:
        counts = np.bincount(pairs.pool_index, minlength=len(run.pool))
        sums = np.bincount(pairs.pool_index, weights=pairs.influence, minlength=len(run.pool))
        found = np.divide(sums, counts, out=np.zeros(len(counts)), where=counts > 0)
        columns["influence_measured"] = pa.array(found, pa.float32(), mask=counts == 0)
        columns["measured_targets"] = pa.array(counts, pa.int32())
    return columns


def measured_pairs(run: FinishedRun) -> LabelledPairs | None:
    """All pairs whose influence the run measured, each once: labels, probes and the shortlist; None without any."""
    folder = run.folder
    files = [folder.labels.labels, folder.probes.labels, *sorted(folder.shortlist.path.rglob("labels.parquet"))]
    parts = [LabelledPairs.load(file) for file in files if file.is_file()]
    if not parts:
        return None
    pairs = LabelledPairs.joined(parts)
    key = pairs.pool_index.astype(np.int64) * max(run.target_rows, 1) + pairs.target_index
    return pairs.take(np.unique(key, return_index=True)[1])


def sample_columns(run: FinishedRun) -> dict[str, pa.Array]:
    """Lengths of the texts, tokens and loss, where the run has them; the source of a mixture."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {}
    for text in ("prompt", "response"):
        lengths = pc.utf8_length(run.pool.data.column(text)).cast(pa.int32())
        columns[f"{text}_characters"] = lengths.combine_chunks()
    if run.folder.tokens.is_file():
        columns["tokens"] = pa.array(read_array(run.folder.tokens), pa.int32())
    if (loss := _loss(run)) is not None:
        columns["loss"] = pa.array(loss, pa.float32())
    if "source" in run.pool.column_names and run.pool.data.column("source").null_count < len(run.pool):
        columns["source"] = run.pool.data.column("source").combine_chunks().cast(pa.string())
    return columns


def _loss(run: FinishedRun) -> np.ndarray | None:
    """The language model's loss of each sample's response, from the features that the run stored."""
    for name in run.folder.features.names("pool"):
        start = 0
        for block, width in feature_facts(run.folder.features, name).get("blocks", {}).items():
            if block == _LOSS:
                return np.ascontiguousarray(read_array(run.folder.features.array(name))[:, start])
            start += width
    return None


def duplicate_columns(run: FinishedRun) -> dict[str, pa.Array]:
    """The group of near-duplicates that a sample belongs to, by the id of the one that may be chosen; none is empty."""
    import pyarrow as pa

    file = run.folder.samples("pool").near_duplicates
    if not file.is_file():
        return {}
    verify(file)
    groups: dict[str, str] = {}
    cosines: dict[str, float] = {}
    with refuse_damaged(file, "is damaged", KeyError, TypeError, ValueError), open(file, encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            groups[str(entry["id"])] = str(entry["same_as"])
            cosines[str(entry["id"])] = float(entry["cosine"])
    groups = {identity: identity for identity in groups.values()} | groups
    ids = run.pool.data.column("id").to_pylist()
    return {
        "near_duplicate_group": pa.array([groups.get(identity) for identity in ids], pa.string()),
        "near_duplicate_cosine": pa.array([cosines.get(identity) for identity in ids], pa.float32()),
    }
