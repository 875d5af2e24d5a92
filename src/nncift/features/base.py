"""Feature sources: features of each sample from one pass over it, computed in shards that resume.

What an earlier run computed is taken from the cache (`cache.py`). It is looked up once and kept beside the shards until
the array is finished, so that a killed run ends with the same bytes whatever has become of the cache.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from tqdm import tqdm

from nncift.data.sources.memory import detached
from nncift.errors import ConfigError, DataError
from nncift.features.assembly import Kept, drop_found, keep_found, write_features
from nncift.features.cache import FeatureCache, Found, content_keys, settings_key
from nncift.features.features import Features, split, stored_features
from nncift.models.loading import best_device
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.models.text.chats import chunks
from nncift.run.executors.base import LOCAL, workers
from nncift.run.folder.parts import FeatureFolder
from nncift.run.progress import already, drawn
from nncift.run.shards import Arrays, Shards, TokenCounts
from nncift.run.storage.files import read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

SHARD = 1024
TRUNCATED = "truncated"
CONTENT = "content"  # checksum of the file that the features come from

_log = logging.getLogger("nncift")


class FeatureSource:
    """Features of samples. A source of your own overrides `__call__`, and the hooks that it needs.

    It is picklable: it holds specs instead of loaded models.
    """

    kind: ClassVar[str] = "own"
    """Part of its file names in the run folder: "sentence", "lm" or "own"."""
    name: str = ""
    """The model, file or column, recorded with the features."""
    counter: TokenCounts | None = None
    """What counts the tokens of its language model, if it runs one."""
    is_local: ClassVar[bool] = False
    """Whether it reads what other processes may not have, or is too cheap to be computed elsewhere."""

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

    def cache_settings(self) -> dict[str, Any] | None:
        """JSON values that determine, with `contents`, the features of a sample; None: they are not cached."""
        return None

    def contents(self, samples: Dataset) -> Sequence[str]:
        """Everything that it reads of each sample, as a text."""
        raise NotImplementedError

    def shard_size(self) -> int:
        """Samples that are stored together, and that a kill loses at most."""
        return SHARD


@dataclass(frozen=True)
class _Reading:
    """Features of a range of samples: the work of one shard."""

    source: FeatureSource
    size: int
    """Samples in a shard."""
    settings: dict[str, Any]
    begun: dict[str, Any]
    """The settings of shards without facts, of earlier versions."""

    def __call__(self, given: tuple[int, Dataset]) -> Arrays:
        first, part = given
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
        widths = {name: block.shape[1] for name, block in blocks.items()}
        facts = {"blocks": widths, "settings": self.settings, "first": first}
        stored = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        return {"features": features, TRUNCATED: truncated, "facts": stored}

    def accept(self, rows: range, arrays: Arrays) -> bool:
        """Refuse a stored shard of other settings; compute one of another size, or of another file, again."""
        facts = _facts(arrays) if "facts" in arrays else {}
        stored = facts.get("settings", self.begun)
        if CONTENT in self.settings and stored.get(CONTENT) != self.settings[CONTENT]:
            return False
        if stored != self.settings:
            raise ConfigError(
                f"the features of {self.source.name!r} were begun with {stored}, now it is {self.settings}",
                "give the same `dtype` and `device`, or choose another `output`",
            )
        first = facts.get("first", rows.start // self.size * SHARD)  # shards of earlier versions had this size
        return bool(first == rows.start and len(arrays["features"]) == len(rows))

    def widths(self, shards: Shards, sample: Dataset) -> dict[str, int]:
        """Widths of the blocks, as the first shard has them; where none has facts, as a sample has them."""
        first = next((arrays for arrays in shards if "facts" in arrays), None)
        return dict(_facts(self((0, sample)) if first is None else first)["blocks"])

    def checked(self, shards: Shards, widths: dict[str, int]) -> Iterator[Arrays]:
        """The arrays of each shard, which all have to have these blocks."""
        for arrays in shards:
            if "facts" in arrays and _facts(arrays)["blocks"] != widths:
                problem = f"the blocks of the features {self.source.name!r} differ between samples"
                raise DataError(problem, "give all samples the same blocks")
            yield arrays


@dataclass(frozen=True)
class _Known:
    """The samples of a source in the cache."""

    cache: FeatureCache
    source: FeatureSource
    samples: Dataset
    settings: dict[str, Any]

    @classmethod
    def of(cls, cache: FeatureCache, source: FeatureSource, samples: Dataset) -> Self | None:
        """None where the features of the source are not cached."""
        settings = source.cache_settings()
        return None if settings is None else cls(cache, source, samples, settings)

    @cached_property
    def keys(self) -> np.ndarray:
        """Of the samples, (n,)."""
        return content_keys(text for part in chunks(self.samples) for text in self.source.contents(part))

    def find(self) -> Found:
        """What the cache has."""
        return self.cache.find(self.settings, self.keys)

    def keep(self, array: Path, truncated: np.ndarray, widths: dict[str, int]) -> None:
        """Keep the finished array."""
        self.cache.keep(self.settings, self.keys, array, truncated, widths)


def read_source(
    samples: Dataset,
    source: FeatureSource,
    *,
    folder: FeatureFolder | None = None,
    name: str = "pool",
    progress: bool = False,
    after_shard: Callable[[], None] = lambda: None,
    cache: FeatureCache | None = None,
    count: Callable[[int], None] = lambda samples: None,
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
        cache: of features of earlier runs, used with a folder alone; what is computed is kept there.
        count: called before that with the number of samples that were computed.

    Raises:
        ConfigError: the folder holds shards that were computed with other settings.
        DataError: the source refuses the samples, or a feature is not finite.
        ModelError: a model cannot be loaded, or one sample alone does not fit into memory.
    """
    if folder is not None and folder.is_finished(name):
        drop_shards(folder, name)  # of a run that was killed right then
        return stored_features(folder, {source.kind: name})
    source.check(samples)
    known = None if folder is None or cache is None else _Known.of(cache, source, samples)
    kept = Kept.nothing(len(samples)) if folder is None else _look_up(folder, name, known, len(samples))
    shards = Shards(len(kept.missing), source.shard_size(), None if folder is None else folder.path, name)
    executor = LOCAL if source.is_local else workers()
    widths, computed, settings = kept.widths, iter(list[Arrays]()), dict[str, Any]()
    if len(kept.missing):
        work = _reading(source, folder, name)

        def send(rows: range) -> tuple[int, Dataset]:
            part = samples.select(kept.missing[rows.start : rows.stop])
            return rows.start, detached(part) if executor.elsewhere else part

        with tqdm(total=len(samples), desc=f"features {name}", unit=" samples", **drawn(progress)) as bar:
            already(bar, len(samples) - len(kept.missing))
            shards.compute(
                work,
                accept=work.accept,
                bar=bar,
                after_shard=after_shard,
                count=count,
                executor=executor,
                send=send,
                counter=source.counter,
            )
        widths = kept.widths or work.widths(shards, samples.select(kept.missing[:1]))
        settings = work.settings
        computed = work.checked(shards, widths)
    if folder is None:
        return Features(split(np.concatenate([arrays["features"] for arrays in computed]), widths))
    truncated = write_features(folder, name, kept, computed, sum(widths.values()))
    if known is not None and len(kept.missing):
        known.keep(folder.array(name), truncated, widths)
    facts: dict[str, Any] = {"encoder": source.name, TRUNCATED: int(truncated.sum())}
    facts |= {} if list(widths) == [source.kind] else {"blocks": widths}
    facts |= {} if (cached := source.cache_settings()) is None else {"settings": settings_key(cached)}
    facts |= {CONTENT: settings[CONTENT]} if CONTENT in settings else {}
    write_json(folder.facts(name), facts | {"width": sum(widths.values()), "rows": len(samples)})
    drop_shards(folder, name)
    return stored_features(folder, {source.kind: name})


def shard_size(device: str | None, slow: int) -> int:
    """Samples in a shard of a model on this device: `slow` where it is not CUDA, as a kill loses at most a shard."""
    return SHARD if (device or best_device()).partition(":")[0] == "cuda" else min(slow, SHARD)


def drop_shards(folder: FeatureFolder, name: str) -> None:
    """Remove what a finished array was made of, and what an earlier version began it with."""
    Shards(0, SHARD, folder.path, name).drop()
    drop_found(folder, name)
    folder.begun(name).unlink(missing_ok=True)


def _look_up(folder: FeatureFolder, name: str, known: _Known | None, n: int) -> Kept:
    """What the cache has of n samples, decided once: what was begun without the cache goes on without it."""
    if folder.found_facts(name).exists():
        return Kept.load(folder, name)
    if known is None or any(folder.path.glob(Shards(0, SHARD, folder.path, name).files)):
        return Kept.nothing(n)
    kept = keep_found(folder, name, known.find())
    _log.info("features %s: %d of %d samples from the cache", name, n - len(kept.missing), n)
    return kept


def _reading(source: FeatureSource, folder: FeatureFolder | None, name: str) -> _Reading:
    settings = source.settings()
    begun = folder is not None and folder.begun(name).exists() and read_json(folder.begun(name))
    return _Reading(source, source.shard_size(), settings, begun or settings)


def _facts(arrays: Arrays) -> dict[str, Any]:
    return dict(json.loads(arrays["facts"].tobytes()))
