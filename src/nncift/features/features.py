"""Per-sample features: blocks side by side, put together where they are looked at.

Features cost one pass of a model per sample, so linear in the pool; everything that looks at pairs reads them instead
of the texts. Blocks differ in width and scale (a sentence embedding, a language model's states, a few scalars): who
reads them together has to know where each begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nncift.run.files import read_array, read_json


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
