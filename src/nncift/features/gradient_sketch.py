"""The gradient sketch of each sample, from the pass that gives the language model's other features.

The block "gradient sketch" has vectors of unit length whose inner products are the similarity that the influence
function gradient-sketch takes an exponential of (`training/token_products.py`); they add to the language model's pass
the backward pass of its output layer. So a run with it compares its network with that function for nothing more, and a
network may learn from it.

The function whitens over the pool. Here each row has to depend on its sample alone, as features are cached, grow with
the pool and are those of a network's new data too. So whitening is over the responses of `whitening_texts.json`, about
a thousand tokens of every kind, which are read once in a run: it removes what all tokens of a model share, and that
hardly depends on the texts; what is common to a pool is removed by centering the vectors (`evaluation/baselines.py`;
docs/measurements.md has the figures). That file never changes: caches and networks depend on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property, partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from tqdm import tqdm

from nncift.features.base import TRUNCATED
from nncift.features.features import split
from nncift.features.language_model import LanguageModelFeatures, feature_blocks, middle_layer, pass_features
from nncift.features.sources import SKETCH, SketchSettings
from nncift.models.hidden_states import layer_count
from nncift.models.language_model import LanguageModel
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.models.text.examples import Example, encode_examples, in_example_batches
from nncift.models.token_gradients import logits_and_factors, token_factors
from nncift.run.progress import moving
from nncift.training.token_products import Sketch, layers_at_sixths, states_layer, whitening

if TYPE_CHECKING:
    from datasets import Dataset


def whitening_texts() -> Dataset:
    """The samples over which is whitened: `id`, `prompt`, `response`."""
    from datasets import Dataset

    texts = json.loads((files("nncift.features") / "whitening_texts.json").read_text(encoding="utf-8"))
    return Dataset.from_list([{"id": f"text {n}", "prompt": p, "response": r} for n, (p, r) in enumerate(texts)])


class GradientSketchFeatures(LanguageModelFeatures):
    """The blocks `LANGUAGE_BLOCKS` of a language model and "gradient sketch", (n, dimension + hidden).

    Args:
        model: the language model.
        sketch: what the block depends on beside it.
    """

    def __init__(self, model: ModelSpec, sketch: SketchSettings | None = None) -> None:
        super().__init__(model)
        self.sketch_settings = sketch or SketchSettings()

    @classmethod
    def build(cls, encoder: EncoderSpec, model: ModelSpec) -> Self:
        """With the run's language model."""
        return cls(model)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "sketch"}

    def settings(self) -> dict[str, Any]:
        """Those of the other blocks, and of the sketch."""
        return super().settings() | {"sketch": asdict(self.sketch_settings)}

    def cache_settings(self) -> dict[str, Any] | None:
        """Those of the other blocks, and of the sketch."""
        found = super().cache_settings()
        return found and {**found, "sketch": asdict(self.sketch_settings)}

    def memory(self, samples: Dataset) -> int:
        """Those of the largest batch, and of the whitening, whose moments are in float64."""
        hidden = int(self.model.loaded.model.config.get_text_config().hidden_size)
        return super().memory(samples) + 5 * 4 * len(self._layers) * hidden**2

    @cached_property
    def sketch(self) -> Sketch:
        """The projection, whitened over the texts; one pass over them."""
        model, settings, layers = self.model.loaded, self.sketch_settings, self._layers
        examples = encode_examples(model, whitening_texts(), wording=self.model.wording, cut_responses=True)
        work = partial(token_factors, model, layers=layers)
        with tqdm(disable=True) as bar, moving(bar, 0):  # its batches are not samples of the bar around it
            factors = in_example_batches(model, work, examples, batch_size=self.model.sequences())
        matrices = whitening(factors, settings.damping)
        return Sketch(
            matrices,
            int(model.model.config.get_text_config().hidden_size),
            dimension=settings.dimension,
            states=settings.states,
            states_layer=states_layer(layers),
            seed=settings.seed,
            device=model.device,
        )

    @property
    def _layers(self) -> tuple[int, ...]:
        return layers_at_sixths(layer_count(self.model.loaded))

    def __call__(self, samples: Dataset) -> dict[str, np.ndarray]:
        """The blocks, and which samples were truncated to the context."""
        model, sketch = self.model.loaded, self.sketch
        examples = encode_examples(model, samples, wording=self.model.wording, cut_responses=True)
        work = partial(_read, model, middle_layer(model), self._layers, sketch)
        found = in_example_batches(model, work, examples, batch_size=self.model.sequences())
        widths = feature_blocks(model) | {SKETCH: sketch.width}
        features = np.stack(found) if found else np.zeros((0, sum(widths.values())), np.float32)
        return {**split(features, widths), TRUNCATED: np.array([example.cut for example in examples], bool)}


def _read(
    model: LanguageModel, module: torch.nn.Module, layers: Sequence[int], sketch: Sketch, batch: Sequence[Example]
) -> list[np.ndarray]:
    with model.entering(module, stop=False) as states:
        logits, factors = logits_and_factors(model, [example.ids for example in batch], batch, layers)
    plain = pass_features(model, batch, logits, states[0])
    return [*np.concatenate([plain, sketch.vectors(factors).cpu().numpy()], axis=1)]
