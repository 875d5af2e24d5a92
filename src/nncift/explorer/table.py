"""The explorer's table: a row for each sample of the pool, with its place on the map and why it was chosen or left out.

It is written once, into the run's folder: first the map, then the table, a piece of the pool at a time. Texts are held
once, by Arrow's memory map of the pool; the rest takes some 500 bytes a sample.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from nncift.data.facts import open_pool
from nncift.errors import NNCIFTError, RunError
from nncift.explorer.columns import choice_columns, duplicate_columns, influence_columns, sample_columns
from nncift.explorer.layout import positions
from nncift.explorer.origin import source_columns
from nncift.explorer.page import NEIGHBOURS, ROW, X, Y, chart_columns
from nncift.explorer.reasons import HELPED, Reasons, find_reasons
from nncift.explorer.space import divided, nearest, sample_space
from nncift.explorer.texts import Texts
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.run.progress import drawn, moving
from nncift.run.storage.checksums import content_hash, verify
from nncift.run.storage.files import atomic_write, fingerprint, read_array, write_array

if TYPE_CHECKING:
    import pyarrow as pa

Cells = list[np.ndarray] | None
FACTS = "nncift"  # key of the Parquet file's metadata
_FORMAT = 1
_NEIGHBOURS = 10
_ROWS = 1 << 15  # of the pool that are written together
_OWN_TEXTS = {"id", "prompt", "response"}  # which hardly repeat


def write_table(run: FinishedRun, *, progress: bool = False) -> Path:
    """The table of a run, written unless it is there already.

    Args:
        run: a finished run.
        progress: show bars.

    Returns:
        The Parquet file.

    Raises:
        RunError: the folder is in use, damaged or cannot be written.
    """
    if not len(run.pool):
        raise RunError(f"{run.folder.path} has no samples")
    files, expected = run.folder.explorer, _fingerprint(run)
    if files.table.is_file() and _is_whole(files.table) and read_facts(files.table).get("fingerprint") == expected:
        return files.table
    with run.folder.locked():
        n = len(run.pool)
        with tqdm(total=2 * n, desc="reading", unit=" rows", **drawn(progress)) as bar:
            with moving(bar, n):
                columns = _columns(run)
            with moving(bar, n):
                space = sample_space(run)
        cells = divided(space, progress=progress)
        found = _positions(run, space, cells, progress)
        columns |= {X: found[:, 0], Y: found[:, 1]}
        rows, cosines = nearest(space, np.arange(n), _NEIGHBOURS, cells=cells, progress=progress)
        reasons, notes = _reasons(run, space, rows, cells, progress)
        columns |= _twins(run, space, (rows, cosines), cells, progress)
        facts = {"fingerprint": expected, "notes": notes, "charts": chart_columns(columns)}
        _write(files.table, run, columns, (rows, cosines), reasons, facts, progress)
    return files.table


def read_facts(path: Path) -> dict[str, Any]:
    """What `write_table` noted about its file; nothing of a file that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return dict(json.loads((pq.read_schema(path).metadata or {})[FACTS.encode()]))
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return {}


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except RunError:
        return False
    return True


def _fingerprint(run: FinishedRun) -> str:
    """Of what the table is made of; the map depends on the pool alone, which does not change."""
    files = [run.folder.selection, run.folder.influence]
    return fingerprint(_FORMAT, *(content_hash(file) for file in files), len(run.pool))


def _columns(run: FinishedRun) -> dict[str, Any]:
    import pyarrow as pa

    ids = run.pool.data.column("id").cast(pa.string())
    columns: dict[str, Any] = {ROW: pa.array(np.arange(len(run.pool)), pa.int32()), "id": ids}
    columns |= choice_columns(run) | influence_columns(run) | sample_columns(run) | duplicate_columns(run)
    reserved = [*columns, X, Y, "prompt", "response", *_reason_names(), *_twin_names()]
    fields = open_pool(run.folder.samples("pool").path)[1].fields
    return columns | source_columns(run.pool, reserved, fields)


def _positions(run: FinishedRun, space: np.ndarray, cells: Cells, progress: bool) -> np.ndarray:
    file = run.folder.explorer.map
    if file.is_file() and (stored := read_array(file)).shape == (len(space), 2):
        return np.asarray(stored)
    found = positions(space, seed=int(run.options["seed"]), cells=cells, progress=progress)
    write_array(file, found)
    return found


def _reasons(
    run: FinishedRun, space: np.ndarray, neighbours: np.ndarray, cells: Cells, progress: bool
) -> tuple[Reasons | None, list[str]]:
    """The reasons, and what the reader should know about them."""
    try:
        found = find_reasons(
            run.matrix(),
            run.selection.indices,
            space,
            neighbours,
            own_target=run.own_target,
            seed=int(run.options["seed"]),
            cells=cells,
            progress=progress,
        )
    except NNCIFTError as error:
        return None, [f"the influence of pairs cannot be computed again, so no targets are shown: {error}"]
    if found is None:
        return None, ["the influence function scores samples for all targets alike, so no targets are shown"]
    if found.sampled is None:
        return found, []
    of = "nearest neighbours of each sample" if run.own_target else "randomly drawn targets"
    return found, [f"the targets that a sample helps most are the best of {found.sampled:,} {of}"]


def _twins(
    run: FinishedRun, space: np.ndarray, neighbours: tuple[np.ndarray, np.ndarray], cells: Cells, progress: bool
) -> dict[str, np.ndarray]:
    """Of each chosen sample the nearest one left out; from its neighbours where one of them is."""
    (rows, cosines), chosen = neighbours, np.sort(run.selection.indices)
    left_out = np.ones(len(space), bool)
    left_out[chosen] = False
    twin, cosine = np.full(len(space), -1), np.full(len(space), np.nan, np.float32)
    there = (rows[chosen] >= 0) & left_out[np.maximum(rows[chosen], 0)]
    first = there.argmax(axis=1)
    near = there.any(axis=1)
    twin[chosen[near]] = rows[chosen[near], first[near]]
    cosine[chosen[near]] = cosines[chosen[near], first[near]]
    far = chosen[~near]
    found, values = nearest(space, far, 1, among=np.flatnonzero(left_out), cells=cells, progress=progress)
    twin[far], cosine[far] = found[:, 0], values[:, 0]
    text, row, value = _twin_names()
    return {text: twin, row: twin, value: cosine}


def _reason_names() -> list[str]:
    return [
        *(f"helps_{k + 1}{end}" for k in range(HELPED) for end in ("", "_influence")),
        *("covered_by", "covered_by_row", "covered_by_influence"),
    ]


def _twin_names() -> tuple[str, str, str]:
    return "left_out_twin", "left_out_twin_row", "left_out_twin_cosine"


def _write(
    path: Path,
    run: FinishedRun,
    columns: Mapping[str, Any],
    neighbours: tuple[np.ndarray, np.ndarray],
    reasons: Reasons | None,
    facts: Mapping[str, Any],
    progress: bool,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, shown = len(run.pool), [columns[_twin_names()[0]]]
    if reasons is not None:
        shown += [reasons.covered_by, *(reasons.helps.T if run.own_target else ())]
    texts = Texts(run, shown)
    parts = [slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS)]
    pieces = (pa.table(_piece(part, texts, columns, neighbours, reasons)) for part in parts)
    first = next(pieces)
    schema = first.schema.with_metadata({FACTS: json.dumps(dict(facts))})
    repeated = [field.name for field in schema if pa.types.is_string(field.type) and field.name not in _OWN_TEXTS]
    with (
        tqdm(total=n, desc="explorer's table", unit=" rows", **drawn(progress)) as bar,
        atomic_write(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=repeated) as writer,
    ):
        for piece in itertools.chain([first], pieces):
            writer.write_table(piece.replace_schema_metadata(schema.metadata))
            bar.update(len(piece))


def _piece(
    part: slice,
    texts: Texts,
    columns: Mapping[str, Any],
    neighbours: tuple[np.ndarray, np.ndarray],
    reasons: Reasons | None,
) -> dict[str, pa.Array]:
    """The columns of some rows, in the order of the page's table."""
    import pyarrow as pa

    held = {name: column[part] for name, column in columns.items()}
    first = {name: held.pop(name) for name in (ROW, "id", "chosen")}
    found = first | {name: texts.cut(name, part) for name in ("prompt", "response")}
    names = ("rank", "gain", "influence_estimated", "influence_measured", "measured_targets")
    found |= {name: held.pop(name) for name in names if name in held}
    if reasons is not None:
        for k in range(HELPED):
            found[f"helps_{k + 1}"] = texts.of_targets(reasons.helps[part, k])
            found[f"helps_{k + 1}_influence"] = _numbers(reasons.helped[part, k])
        covered = reasons.covered_by[part]
        found |= {"covered_by": texts.of_pool(covered), "covered_by_row": _rows(covered)}
        found["covered_by_influence"] = _numbers(reasons.coverage[part])
    text, row, value = _twin_names()
    twins = held.pop(text)
    held.pop(row)
    found |= {text: texts.of_pool(twins), row: _rows(twins), value: _numbers(held.pop(value))}
    found |= {
        name: column.combine_chunks() if hasattr(column, "combine_chunks") else column for name, column in held.items()
    }
    rows, cosines = (each[part] for each in neighbours)
    found[NEIGHBOURS] = _neighbours(rows, cosines)
    return {name: pa.array(column) if isinstance(column, np.ndarray) else column for name, column in found.items()}


def _numbers(values: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, pa.float32(), mask=~np.isfinite(values))


def _rows(rows: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.array(rows, pa.int32(), mask=rows < 0)


def _neighbours(rows: np.ndarray, cosines: np.ndarray) -> pa.Array:
    """As embedding-atlas has them: {"ids": ..., "distances": ...} of each row, nearest first."""
    import pyarrow as pa

    there = rows >= 0
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    distances = np.maximum(1 - cosines[there], 0)
    parts = (pa.array(rows[there], pa.int32()), pa.array(distances, pa.float32()))
    lists = [pa.ListArray.from_arrays(pa.array(offsets), part) for part in parts]
    return pa.StructArray.from_arrays(lists, ["ids", "distances"])
