"""Features of a pool that has grown: those of its first samples are there, the others are computed.

The new samples are a source of their own until they are finished, with shards that resume; then both are written as one
array, with a few rows in memory at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import RunError
from nncift.features.base import TRUNCATED, FeatureSource, drop_shards, read_source
from nncift.features.features import Features, feature_facts, stored_features
from nncift.run.folder.parts import FeatureFolder
from nncift.run.storage.files import atomic_write, read_array, write_json

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS = 4096  # copied at a time
_NEW = "new."  # begins the name of the new samples' features; no side begins so


@dataclass(frozen=True)
class FirstFeatures:
    """Where the features of a pool's first samples are.

    Attributes:
        folder: an earlier run's.
        name: of the array there.
    """

    folder: FeatureFolder
    name: str


def extend_source(
    samples: Dataset,
    source: FeatureSource,
    first: FirstFeatures,
    *,
    folder: FeatureFolder,
    name: str,
    **reading: Any,
) -> Features:
    """Features of every sample from one source, of which those of the first samples are there.

    Args:
        samples: n rows.
        source: where the others come from.
        first: of the first m samples, with the same settings.
        folder: of the whole array.
        name: of it.
        **reading: as `read_source` takes it.

    Raises:
        RunError: the blocks of the first samples and of the others differ.
    """
    before, facts = read_array(first.folder.array(first.name)), feature_facts(first.folder, first.name)
    new = _NEW + name
    rest = read_source(samples.select(range(len(before), len(samples))), source, folder=folder, name=new, **reading)
    added = feature_facts(folder, new)
    if rest.shape[1] != before.shape[1] or added.get("blocks") != facts.get("blocks"):
        raise RunError(
            f"{first.folder.path} has features of other blocks than {source.name!r} gives now",
            "choose again without `append`, from all data",
        )
    with atomic_write(folder.array(name)) as temporary, open(temporary, "wb") as handle:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(samples), before.shape[1])}
        np.lib.format.write_array_header_1_0(handle, header)
        for part in (before, read_array(folder.array(new))):
            for start in range(0, len(part), _ROWS):
                handle.write(np.ascontiguousarray(part[start : start + _ROWS], dtype="<f4").tobytes())
    truncated = int(facts[TRUNCATED]) + int(added[TRUNCATED])
    write_json(folder.facts(name), facts | {TRUNCATED: truncated, "rows": len(samples)})
    drop_new(folder, name)
    return stored_features(folder, {source.kind: name})


def drop_new(folder: FeatureFolder, name: str) -> None:
    """Remove the new samples' own features, once they are part of the whole array."""
    drop_shards(folder, _NEW + name)
    for path in (folder.facts(_NEW + name), folder.array(_NEW + name)):
        path.unlink(missing_ok=True)
