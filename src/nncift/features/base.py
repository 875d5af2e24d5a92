"""Feature sources: features of each sample from one pass over it, computed in shards that resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from tqdm import tqdm

from nncift.errors import ConfigError, DataError
from nncift.features.features import Features, split, stored_features
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.run.files import atomic_write, read_json, write_json
from nncift.run.folder import FeatureFolder
from nncift.run.shards import Arrays, Shards

if TYPE_CHECKING:
    from datasets import Dataset

SHARD = 1024
TRUNCATED = "truncated"
CONTENT = "content"  # checksum of the file that the features come from


class FeatureSource:
    """Features of samples. A source of your own overrides `__call__`, and the hooks that it needs.

    It is picklable: it holds specs instead of loaded models.
    """

    kind: ClassVar[str] = "own"
    """Part of its file names in the run folder: "sentence", "lm" or "own"."""
    name: str = ""
    """The model, file or column, recorded with the features."""

    @classmethod
    def build(cls, encoder: EncoderSpec, model: ModelSpec) -> Self:
        """The source that a run makes; one without a model takes neither."""
        return cls()

    def __call__(self, samples: Dataset) -> dict[str, np.ndarray]:
        """Named blocks of features of some samples.

        Args:
            samples: n rows with `id`, `prompt`, `response`, and `messages` where they come from a chat.

        Returns:
            Name to (n, width) float32, in a fixed order. Each row depends on its sample alone. Optionally also
            "truncated", (n,) bool: which samples were truncated.
        """
        raise NotImplementedError

    def check(self, samples: Dataset) -> None:
        """Called with all samples before the first is read: refuse some."""

    def memory(self, samples: Dataset) -> int:
        """Bytes that it takes at its peak on samples like these, beyond its model's weights; for a dry run."""
        return 0

    def settings(self) -> dict[str, Any]:
        """JSON values that have to be the same when a half-finished computation is resumed."""
        return {}


@dataclass(frozen=True)
class _Reading:
    """Features of a range of samples: the work of one shard."""

    source: FeatureSource
    samples: Dataset
    settings: dict[str, Any]
    begun: dict[str, Any]
    """The settings of shards without facts, of earlier versions."""

    def __call__(self, rows: range) -> Arrays:
        part = self.samples.select(rows)
        blocks = {name: np.asarray(block) for name, block in self.source(part).items()}
        truncated = blocks.pop(TRUNCATED, np.zeros(len(part), bool))
        if not blocks or any(block.ndim != 2 or len(block) != len(part) for block in blocks.values()):
            shapes = {name: block.shape for name, block in blocks.items()}
            raise DataError(
                f"the features {self.source.name!r} gave blocks of shape {shapes} for {len(part)} samples",
                "each block must have one row per sample",
            )
        features = np.ascontiguousarray(np.concatenate([*blocks.values()], axis=1), np.float32)
        if not (finite := np.isfinite(features).all(axis=1)).all():
            sample = part[int(np.flatnonzero(~finite)[0])]
            raise DataError(
                f"{self.source.name!r} gives features that are not finite for {sample.get('id', sample['prompt'])!r}",
                "check this sample; with `dtype` float16, use bfloat16 or float32",
            )
        facts = {"blocks": {name: block.shape[1] for name, block in blocks.items()}, "settings": self.settings}
        stored = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        return {"features": features, TRUNCATED: truncated, "facts": stored}

    def accept(self, _: range, arrays: Arrays) -> bool:
        """Refuse a stored shard that was computed with other settings; of a file that has changed it is no use."""
        stored = _facts(arrays)["settings"] if "facts" in arrays else self.begun
        if CONTENT in self.settings and stored.get(CONTENT) != self.settings[CONTENT]:
            return False
        if stored != self.settings:
            raise ConfigError(
                f"the features of {self.source.name!r} were begun with {stored}, now it is {self.settings}",
                "give the same `dtype` and `device`, or choose another `output`",
            )
        return True

    def widths(self, shards: Shards) -> dict[str, int]:
        """Widths of the blocks, as the first shard has them; where none has facts, as the first sample has them."""
        first = next((arrays for arrays in shards if "facts" in arrays), None)
        return dict(_facts(self(range(1)) if first is None else first)["blocks"])

    def checked(self, shards: Shards, widths: dict[str, int]) -> Iterator[Arrays]:
        """The arrays of each shard, which all have to have these blocks."""
        for arrays in shards:
            if "facts" in arrays and _facts(arrays)["blocks"] != widths:
                problem = f"the blocks of the features {self.source.name!r} differ between samples"
                raise DataError(problem, "give all samples the same blocks")
            yield arrays


def read_source(
    samples: Dataset,
    source: FeatureSource,
    *,
    folder: FeatureFolder | None = None,
    name: str = "pool",
    progress: bool = False,
    after_shard: Callable[[], None] = lambda: None,
) -> Features:
    """Features of every sample from one source.

    Args:
        samples: n rows.
        source: where they come from.
        folder: keep shards here while running, then the array and its facts, which is memory-mapped; what is stored is
            not computed again.
        name: file name in `folder`.
        progress: show a progress bar.
        after_shard: called after each computed shard, for example to save the costs.

    Raises:
        ConfigError: the folder holds shards that were computed with other settings.
        DataError: the source refuses the samples, or a feature is not finite.
        ModelError: a model cannot be loaded, or one sample alone does not fit into memory.
    """
    shards = Shards(len(samples), SHARD, None if folder is None else folder.path, name)
    if folder is None or not folder.is_finished(name):
        source.check(samples)
        settings = source.settings()
        begun = folder is not None and folder.begun(name).exists() and read_json(folder.begun(name))
        work = _Reading(source, samples, settings, begun or settings)
        with tqdm(total=len(samples), desc=f"features {name}", unit=" samples", disable=not progress) as bar:
            shards.compute(work, accept=work.accept, bar=bar, after_shard=after_shard)
        widths = work.widths(shards)
        parts = work.checked(shards, widths)
        if folder is None:
            return Features(split(np.concatenate([arrays["features"] for arrays in parts]), widths))
        truncated = _join(parts, (len(samples), sum(widths.values())), folder.array(name))
        facts: dict[str, Any] = {"encoder": source.name, TRUNCATED: truncated}
        facts |= {CONTENT: settings[CONTENT]} if CONTENT in settings else {}
        facts |= {} if list(widths) == [source.kind] else {"blocks": widths}
        write_json(folder.facts(name), facts | {"width": sum(widths.values()), "rows": len(samples)})
    drop_shards(folder, name)
    return stored_features(folder, {source.kind: name})


def drop_shards(folder: FeatureFolder, name: str) -> None:
    """Remove the shards that a finished array holds, and what an earlier version began them with."""
    Shards(0, SHARD, folder.path, name).drop()
    folder.begun(name).unlink(missing_ok=True)


def _join(parts: Iterator[Arrays], shape: tuple[int, int], path: Path) -> int:
    """Write one memory-mappable array, with one shard in memory at a time; returns how many samples were truncated."""
    truncated = 0
    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for arrays in parts:
            handle.write(arrays["features"].tobytes())
            truncated += int(arrays[TRUNCATED].sum())
    return truncated


def _facts(arrays: Arrays) -> dict[str, Any]:
    return dict(json.loads(arrays["facts"].tobytes()))
