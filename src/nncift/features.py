"""Per-sample features: blocks side by side, computed in shards that resume, memory-mapped afterwards.

Features cost one pass of a model per sample, so linear in the pool; everything that looks at pairs reads them instead
of the texts. A shard holds a fixed range of samples, so a killed run repeats at most one of them and ends with the same
bytes. Blocks differ in width and scale (a sentence embedding, a language model's states, a few scalars): who reads
them together has to know where each begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from nncift.errors import DataError
from nncift.storage import atomic_write, read_array, read_json, read_tensors, write_json, write_tensors

if TYPE_CHECKING:
    from datasets import Dataset

SHARD = 1024


class Features:
    """Blocks of features side by side, (n, d) float32, put together where they are looked at.

    Args:
        blocks: name to array (n, width), in memory or memory-mapped.

    Attributes:
        blocks: as given.
        widths: name to width.
        shape: (n, d).
    """

    def __init__(self, blocks: Mapping[str, np.ndarray]) -> None:
        self.blocks = dict(blocks)
        self.widths = {name: int(block.shape[1]) for name, block in self.blocks.items()}
        lengths = {len(block) for block in self.blocks.values()}
        if len(lengths) != 1:
            raise ValueError(f"the blocks have {sorted(lengths)} rows")
        self.shape = (lengths.pop(), sum(self.widths.values()))

    @classmethod
    def of(cls, features: Features | np.ndarray) -> Features:
        """As given, or an array as the one block "features"."""
        return features if isinstance(features, Features) else cls({"features": features})

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """All blocks of some samples (a slice or indices), (rows, d) float32."""
        parts = [np.asarray(block[rows], dtype=np.float32) for block in self.blocks.values()]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def in_shards(
    samples: Dataset,
    compute: Callable[[Dataset], dict[str, np.ndarray]],
    *,
    folder: Path | None,
    name: str,
    facts: dict[str, Any],
    blocks: Mapping[str, int] | None = None,
    progress: bool = False,
    after_shard: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Features of every sample.

    Args:
        samples: n rows.
        compute: some rows to "features" (rows, d) float32, and "truncated" (rows,) bool, which texts were cut.
        folder: keep shards here while running, then `<name>.npy` and `<name>.json`; what is there already is not
            computed again.
        name: file name in `folder`.
        facts: what to record beside rows, width and the number of texts cut.
        blocks: name to width, where the features are several blocks side by side.
        progress: show a progress bar.
        after_shard: called after each shard that was computed, for example to save the costs.

    Returns:
        (n, d) float32, memory-mapped when a folder is given.
    """
    if folder is not None and (folder / f"{name}.json").exists():
        _drop_shards(folder, name)
        return read_array(folder / f"{name}.npy")
    shards: list[Path | np.ndarray] = []
    truncated = 0
    with tqdm(total=len(samples), desc=f"features {name}", unit=" samples", disable=not progress) as bar:
        for start in range(0, len(samples), SHARD):
            path = folder / f"{name}-{start // SHARD:06d}.safetensors" if folder is not None else None
            if path is not None and path.exists():
                shard = read_tensors(path)
            else:
                shard = compute(samples.select(range(start, min(start + SHARD, len(samples)))))
                if path is not None:
                    write_tensors(path, shard)
                after_shard()
            truncated += int(shard["truncated"].sum())
            bar.update(len(shard["features"]))
            shards.append(path if path is not None else shard["features"])
    if folder is None:
        return np.concatenate([shard for shard in shards if isinstance(shard, np.ndarray)])
    paths = [shard for shard in shards if isinstance(shard, Path)]
    facts = {**facts, "truncated": truncated} | ({} if blocks is None else {"blocks": dict(blocks)})
    return _join(paths, len(samples), folder, name, facts)


def _join(shards: list[Path], n: int, folder: Path, name: str, facts: dict[str, Any]) -> np.ndarray:
    """One memory-mappable array from the shards, without holding it in memory; then drop the shards."""
    path = folder / f"{name}.npy"
    width = read_tensors(shards[0])["features"].shape[1]
    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n, width)}
        np.lib.format.write_array_header_1_0(handle, header)
        for shard in shards:
            handle.write(read_tensors(shard)["features"].tobytes())
    write_json(folder / f"{name}.json", {**facts, "width": int(width), "rows": n})
    _drop_shards(folder, name)
    return read_array(path)


def _drop_shards(folder: Path, name: str) -> None:
    """Remove the shards that the joined array holds by now, and what they were begun with."""
    for left in (*folder.glob(f"{name}-*.safetensors"), *folder.glob(f"{name}-begun.json")):
        left.unlink()


def own_features(
    samples: Dataset, source: str, *, folder: Path | None = None, name: str = "pool", source_rows: int | None = None
) -> np.ndarray:
    """The user's own features for the samples: a `.npy` file with a row per source row, or a column of the data.

    Args:
        samples: n rows as `load_pool` gives them; `source_row` says which row of the file is whose.
        source: path of a `.npy` file of shape (rows of the source, d), or the name of a column of lists of numbers.
        folder: keep them here as `<name>.npy`, as `embed` does.
        name: file name in `folder`.
        source_rows: how many rows the source has, where that is known: samples may be fewer.

    Returns:
        (n, d) float32.

    Raises:
        DataError: the shape does not fit, or a value is missing or not finite.
    """
    if folder is not None and (folder / f"{name}.json").exists():
        return read_array(folder / f"{name}.npy")
    features = (
        _features_file(samples, Path(source), source_rows)
        if source.endswith(".npy")
        else _features_column(samples, source)
    )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        row = int(np.asarray(samples["source_row"])[~finite][0]) + 1
        raise DataError("the features of this row are not finite", "mend or drop it", file=source, row=row)
    if folder is None:
        return features
    with atomic_write(folder / f"{name}.npy") as temporary, open(temporary, "wb") as handle:
        np.save(handle, features, allow_pickle=False)
    facts = {"encoder": source, "truncated": 0, "width": int(features.shape[1]), "rows": len(features)}
    write_json(folder / f"{name}.json", facts)
    return read_array(folder / f"{name}.npy")


def _features_file(samples: Dataset, path: Path, source_rows: int | None) -> np.ndarray:
    if not path.exists():
        raise DataError("no such features file", "give a .npy file or the name of a column", file=str(path))
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError("this is not an array of numbers", "write it with numpy.save", file=str(path)) from error
    rows = np.asarray(samples["source_row"], dtype=np.int64)
    least = int(rows.max()) + 1
    fits = len(array) >= least if source_rows is None else len(array) == source_rows
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not fits:
        raise DataError(
            f"expected numbers of shape (rows of the data, width), found {array.dtype} {array.shape}",
            f"the data has {f'at least {least}' if source_rows is None else source_rows} rows",
            file=str(path),
        )
    return np.ascontiguousarray(array[rows], dtype=np.float32)


def _features_column(samples: Dataset, column: str) -> np.ndarray:
    vectors: list[np.ndarray] = []
    for original, row in zip(samples["original"], samples["source_row"], strict=True):
        value = json.loads(original).get(column)
        try:
            vector = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.zeros(0, dtype=np.float32)
        if vector.ndim != 1 or not len(vector) or (vectors and len(vector) != len(vectors[0])):
            raise DataError(
                "expected a list of numbers, as long as in the first row",
                "give a .npy file or the name of a column of features",
                row=row + 1,
                field=column,
            )
        vectors.append(vector)
    return np.stack(vectors)


def feature_facts(folder: Path, name: str = "pool") -> dict[str, Any]:
    """What is known of stored features: `encoder`, `truncated` (texts the encoder cut), `width`, `rows`, `blocks`."""
    return dict(read_json(folder / f"{name}.json"))


def stored_features(folder: Path, names: Mapping[str, str]) -> Features:
    """Features that lie in a folder, side by side; `names` maps blocks, or what holds several, to file names."""
    blocks: dict[str, np.ndarray] = {}
    for whole, name in names.items():
        array, facts = read_array(folder / f"{name}.npy"), feature_facts(folder, name)
        first = 0
        for block, width in facts.get("blocks", {whole: facts["width"]}).items():
            blocks[block] = array[:, first : first + width]
            first += width
    return Features(blocks)
