"""Per-sample features: blocks side by side, concatenated for the rows that are read.

Features cost one pass of a model per sample, so linear in the pool; everything that compares samples reads them
instead of the texts. Blocks differ in width and scale (a sentence embedding, a language model's hidden states, a few
scalars), so each keeps its name and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.run.folder.parts import FeatureFolder
from nncift.run.storage.files import read_array, read_json
from nncift.run.storage.refusals import refuse_damaged

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.data.facts import PoolFacts


class Features:
    """Blocks of features side by side, (n, d) float32, concatenated for the rows that are read.

    Args:
        blocks: name to array (n, width), in memory or memory-mapped.
    """

    def __init__(self, blocks: Mapping[str, np.ndarray]) -> None:
        self.blocks = dict(blocks)
        self.widths = {name: int(block.shape[1]) for name, block in self.blocks.items()}
        lengths = {len(block) for block in self.blocks.values()}
        if len(lengths) != 1:
            raise ValueError(f"the blocks have {sorted(lengths)} rows")
        self.shape = (lengths.pop(), sum(self.widths.values()))  # (n, d)

    @classmethod
    def of(cls, features: Features | np.ndarray) -> Features:
        """As given, or an array as the one block "features"."""
        return features if isinstance(features, Features) else cls({"features": features})

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        widths = ", ".join(f"{name} {width}" for name, width in self.widths.items())
        return f"Features({len(self)} samples; {widths})"

    def __getitem__(self, rows: Any) -> np.ndarray:
        """All blocks of some samples (a slice or indices), (rows, d) float32."""
        parts = [np.asarray(block[rows], dtype=np.float32) for block in self.blocks.values()]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class SampleSet:
    """The samples of one side: pool, target or known."""

    rows: Dataset
    facts: PoolFacts | None = None
    """Counts of their reading; None for samples in memory."""
    features: Features = None  # type: ignore[assignment]
    """Set once they are computed."""

    def __len__(self) -> int:
        return len(self.rows)


def feature_facts(folder: FeatureFolder, name: str = "pool") -> dict[str, Any]:
    """Facts of stored features: `encoder`, `truncated` (number of truncated samples), `width`, `rows`, `blocks`."""
    stored = read_json(folder.facts(name))
    with refuse_damaged(folder.facts(name), "is not valid", TypeError, ValueError):
        return dict(stored)


def stored_features(folder: FeatureFolder, names: Mapping[str, str]) -> Features:
    """The features stored in a folder; `names` maps kinds ("sentence", "own", "lm") to file names."""
    blocks: dict[str, np.ndarray] = {}
    for kind, name in names.items():
        facts, array = feature_facts(folder, name), read_array(folder.array(name))
        with refuse_damaged(folder.facts(name), "is not valid", KeyError, TypeError, AttributeError, ValueError):
            widths = facts.get("blocks", {kind: facts["width"]})
            if array.ndim != 2 or array.shape[1] != sum(widths.values()):
                raise ValueError("another width")
            blocks |= split(array, widths)
    return Features(blocks)


def split(features: np.ndarray, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The blocks (n, width) of an array (n, sum of widths), as views."""
    parts = np.split(features, np.cumsum([*widths.values()])[:-1], axis=1)
    return dict(zip(widths, parts, strict=True))
