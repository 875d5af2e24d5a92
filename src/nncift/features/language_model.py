"""The language model's view of each sample: features from one forward pass, so linear in the data.

A sentence encoder gives the topic of a sample; influence depends as much on the language model's loss and hidden
states. The pass that scores a sample's response gives, without a second one:

    states of the middle layer, averaged over the prompt's tokens          (hidden,)
    the same over the response's tokens, the end-of-text token left out    (hidden,)
    scalars: SCALARS                                                       (len(SCALARS),)

in this order. Samples are formatted as for fine-tuning (`examples`); longer ones are truncated to the context. Where
several turns of a chat are trained on, each figure of the response is the mean over the turns, but for the length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from nncift.features.base import TRUNCATED, FeatureSource, read_source, shard_size
from nncift.features.features import split
from nncift.models.hidden_states import layer_count, layer_module
from nncift.models.language_model import LanguageModel, response_positions, token_log_probabilities
from nncift.models.loading import best_device
from nncift.models.locate import model_identity
from nncift.models.memory import batch_memory
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.models.text.examples import Example, encode_examples, in_example_batches
from nncift.run.folder.parts import FeatureFolder

if TYPE_CHECKING:
    from datasets import Dataset

SCALARS = (
    "loss",  # mean negative log-probability of the response's tokens, natural logarithm
    "distance",  # DELIFT's distance without an example: root mean square of 1 - probability
    "first token",  # log-probability of the response's first token
    "last token",  # of its last one, the end-of-text token where the model has one
    "prompt length",  # logarithm of the number of tokens
    "response length",
)
_READ = ("prompt", "response", "messages", "tools", "turns")  # columns that a prompt is made of
LANGUAGE_BLOCKS = ("prompt states", "response states", "scalars")


def feature_blocks(model: LanguageModel) -> dict[str, int]:
    """The blocks of a sample's features and their widths."""
    hidden = int(model.model.config.get_text_config().hidden_size)
    return dict(zip(LANGUAGE_BLOCKS, (hidden, hidden, len(SCALARS)), strict=True))


class LanguageModelFeatures(FeatureSource):
    """The blocks `LANGUAGE_BLOCKS` of a language model."""

    kind = "lm"

    def __init__(self, model: ModelSpec) -> None:
        self.model, self.name = model, model.name
        self.counter = model

    @classmethod
    def build(cls, encoder: EncoderSpec, model: ModelSpec) -> Self:
        """With the run's language model."""
        return cls(model)

    def settings(self) -> dict[str, Any]:
        """Precision and context length of the model, whose weights may be loaded by other processes alone."""
        model = self.model
        wording = {} if model.wording in (None, "auto") else {"wording": model.wording}
        named = isinstance(model.model, str) and model.dtype != "auto"
        precision = model.precision if named else model.loaded.precision
        return {"dtype": precision, "max_length": model.tokenization.context_length} | wording

    def memory(self, samples: Dataset) -> int:
        """Those of the largest batch."""
        model = self.model.loaded
        examples = encode_examples(model, samples, cut_responses=True)
        return batch_memory(model, examples, batch_size=self.model.sequences())

    def cache_settings(self) -> dict[str, Any] | None:
        """The model's files, precision, longest sequence and device; None for one that is given as an object."""
        if not isinstance(self.model.model, str):
            return None
        files = model_identity(self.model.model, "language model")
        run = self.model.describe() | {"model": files, "device": self.model.device or best_device()}
        return None if files is None else {"kind": self.kind, **run}

    def contents(self, samples: Dataset) -> list[str]:
        """What the model can be prompted with."""
        columns = [name for name in _READ if name in samples.column_names]
        values = zip(*(samples[name] for name in columns), strict=True)
        return [json.dumps({name: v for name, v in zip(columns, row, strict=True) if v is not None}) for row in values]

    def shard_size(self) -> int:
        """Few on the CPU."""
        return shard_size(self.model.device, 64)

    def __call__(self, samples: Dataset) -> dict[str, np.ndarray]:
        """The blocks, and which samples were truncated to the context."""
        model = self.model.loaded
        examples = encode_examples(model, samples, wording=self.model.wording, cut_responses=True)
        features = read_language_features(model, examples, batch_size=self.model.sequences())
        truncated = np.array([example.cut for example in examples], bool)
        return {**split(features, feature_blocks(model)), TRUNCATED: truncated}


def language_features(
    samples: Dataset,
    model: str | LanguageModel | ModelSpec,
    *,
    folder: Path | None = None,
    name: str = "pool.lm",
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """The blocks `LANGUAGE_BLOCKS` of every sample, to stand beside others in a `Features`.

    Args:
        samples: n rows with `prompt` and `response`.
        model: the language model: a hub id or folder, or how it is run.
        folder: keep shards here while running, then `<name>.npy` and `<name>.json`; what is stored is not computed
            again.
        name: file name in `folder`.
        progress: show a progress bar.

    Returns:
        Name to (n, width) float32: the states of prompt and response, and `SCALARS`.

    Raises:
        ModelError: the model cannot be loaded.
        DataError: a feature is not finite.
    """
    source = LanguageModelFeatures(ModelSpec.of(model))
    place = None if folder is None else FeatureFolder(folder)
    return read_source(samples, source, folder=place, name=name, progress=progress).blocks


def read_language_features(model: LanguageModel, examples: Sequence[Example], *, batch_size: int = 32) -> np.ndarray:
    """Features of n samples, (n, 2 * hidden + len(SCALARS)) float32."""
    found = in_example_batches(model, partial(_read, model, middle_layer(model)), examples, batch_size=batch_size)
    return np.stack(found) if found else np.zeros((0, sum(feature_blocks(model).values())), np.float32)


def middle_layer(model: LanguageModel) -> torch.nn.Module:
    """The layer whose input states are averaged."""
    module: torch.nn.Module = layer_module(model, layer_count(model) // 2)
    return module


def _read(model: LanguageModel, module: torch.nn.Module, batch: Sequence[Example]) -> list[np.ndarray]:
    sequences = [example.ids for example in batch]
    rows, columns, _ = response_positions(sequences, [example.spans for example in batch])
    return [*pass_features(model, batch, *model.logits_and_states(module, sequences, rows, columns))]


def pass_features(
    model: LanguageModel, batch: Sequence[Example], logits: torch.Tensor, states: torch.Tensor
) -> np.ndarray:
    """The blocks of each sample of a batch, side by side, from one forward pass over its tokens.

    Args:
        model: the language model.
        batch: n samples.
        logits: those that predict the response tokens, (positions, vocabulary).
        states: entering the middle layer, (n, longest, hidden).

    Returns:
        (n, 2 * hidden + len(SCALARS)) float32.
    """
    _, _, wanted = response_positions([example.ids for example in batch], [example.spans for example in batch])
    values = token_log_probabilities(logits, wanted.to(model.device)).double().cpu().numpy()
    shares = np.zeros((len(batch), 2, states.shape[1]), np.float32)
    for of_sample, example in zip(shares, batch, strict=True):
        _share(model, example, *of_sample)
    weights = torch.from_numpy(shares).to(states.device)
    counted = states.float().masked_fill((weights == 0).all(dim=1)[..., None], 0)  # else 0 times a padding's infinity
    means = torch.bmm(weights, counted)
    return np.concatenate([means.flatten(1).cpu().numpy(), _scalars(values, batch).astype(np.float32)], axis=1)


def _share(model: LanguageModel, example: Example, prompt: np.ndarray, responses: np.ndarray) -> None:
    """Each token's weight (longest,) in the mean states of the prompt, and in the mean of the turns' means."""
    prompt[: len(example.ids)] = 1
    for start, end in example.spans:
        prompt[start:end] = 0
        last = end == len(example.ids)
        text = end - (len(model.end_ids) if last else int(model.ends_turn(example.ids[end - 1 :])))
        tokens = slice(start, text if text > start else end)
        responses[tokens] = 1 / (tokens.stop - start) / len(example.spans)
    prompt /= prompt.sum()


def _scalars(values: np.ndarray, batch: Sequence[Example]) -> np.ndarray:
    """`SCALARS` of n samples, (n, len(SCALARS)) float64, from their log-probabilities one after another."""
    lengths = np.array([end - start for example in batch for start, end in example.spans])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    mean, distance = (np.add.reduceat(some, starts) / lengths for some in (values, np.square(1 - np.exp(values))))
    turns = np.stack([-mean, np.sqrt(distance), values[starts], values[ends - 1]], axis=1)
    counts = np.array([len(example.spans) for example in batch])
    scored = np.array([example.scored for example in batch])
    prompts = np.array([len(example.ids) for example in batch]) - scored
    averaged = np.add.reduceat(turns, np.cumsum(counts) - counts) / counts[:, None]
    return np.column_stack([averaged, np.log(prompts), np.log(scored)])
