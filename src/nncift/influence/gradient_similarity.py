"""Likeness of gradients: the cosine of what two samples would change in a fresh adapter (TracIn at one checkpoint).

No training and no target-specific preparation: one forward and one backward pass of each sample at the model as it
is. The adapter's second factor starts at zero, so it alone has gradients, which see the first factor as a random
projection of the layer's input.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nncift.adapters import Lora
from nncift.influence.gradient_influence import GradientInfluence, Point
from nncift.language_model import LanguageModel


class GradientSimilarity(GradientInfluence):
    """Cosine of the plain gradients of two samples' losses.

    Args:
        model: a folder, a hub id, "embedded", or a `LanguageModel`; loaded on first use.
        adapter: the shape of the fresh adapter, or the folder of a trained one; of LESS's shape unless given.
        **options: of `GradientInfluence`: dimension, seed, batch_size, dtype, device, max_length,
            trust_remote_code.

    Source: TracIn (arXiv:2002.08484), equation 1 at one checkpoint, normalised.
    """

    name = "gradient-similarity"

    def __init__(self, model: str | LanguageModel, *, adapter: Lora | str | Path | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        self.adapter: Lora | Path = Path(adapter) if isinstance(adapter, str) else adapter or Lora(seed=self.seed)

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        adapter = str(self.adapter) if isinstance(self.adapter, Path) else dataclasses.asdict(self.adapter)
        return super().describe() | {"adapter": json.loads(json.dumps(adapter))}

    def _adapters(self) -> Sequence[Point]:
        return [Point(self.adapter, 1.0)]
