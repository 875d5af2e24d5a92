"""The language model's own view of each sample: features from one forward pass, so linear in the data.

A sentence encoder knows what a sample is about; influence depends as much on what the language model makes of it.
The pass that scores a sample's response gives, without a second one:

    states of the middle layer, averaged over the prompt's tokens          (hidden,)
    the same over the response's tokens, the end-of-text token left out    (hidden,)
    scalars: SCALARS                                                       (len(SCALARS),)

in this order. Samples are worded as fine-tuning words them (`examples`); what does not fit into the context is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from nncift.errors import ConfigError, DataError
from nncift.models.examples import Example, encode_examples, response_positions
from nncift.models.hidden_states import layer_count, layer_module
from nncift.models.language_model import LanguageModel, token_log_probabilities
from nncift.run.files import read_json, write_json
from nncift.run.shards import in_shards

if TYPE_CHECKING:
    from datasets import Dataset

SCALARS = (
    "loss",  # mean negative log-probability of the response's tokens, natural logarithm
    "distance",  # DELIFT's distance without an example: root mean square of 1 - probability
    "first token",  # log-probability of the response's first token
    "last token",  # of its last one, the end-of-text token where the model has one: how surely the response ends here
    "prompt length",  # logarithm of the number of tokens
    "response length",
)
LANGUAGE_BLOCKS = ("prompt states", "response states", "scalars")


def feature_blocks(model: LanguageModel) -> dict[str, int]:
    """The blocks of a sample's features and their widths."""
    hidden = int(model.model.config.get_text_config().hidden_size)
    return dict(zip(LANGUAGE_BLOCKS, (hidden, hidden, len(SCALARS)), strict=True))


def language_features(
    samples: Dataset,
    model: LanguageModel | Callable[[], LanguageModel],
    *,
    folder: Path | None = None,
    name: str = "pool.lm",
    batch_size: int = 32,
    source: str | None = None,
    progress: bool = False,
    after_shard: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Features of every sample, in shards that resume.

    Args:
        samples: n rows with `id`, `prompt`, `response`, and `messages` where they come from a chat.
        model: the language model, or what loads it when it is needed.
        folder: keep shards here while running, then `<name>.npy` and `<name>.json`; what is there already is not
            computed again.
        name: file name in `folder`.
        batch_size: samples per forward pass, at most.
        source: the name to record for the model, its own unless given.
        progress: show a progress bar.
        after_shard: called after each shard, for example to save the costs.

    Returns:
        (n, d) float32 in the blocks that `feature_blocks` names; memory-mapped when a folder is given.

    Raises:
        ConfigError: the folder holds features that were begun in another precision.
        DataError: a feature is not finite.
        ModelError: one sample alone does not fit into memory, or the model cannot be loaded.
    """

    def compute(rows: Dataset) -> dict[str, np.ndarray]:
        examples = encode_examples(loaded(), rows, cut_responses=True)
        features = read_language_features(loaded(), examples, batch_size=batch_size)
        if not (finite := np.isfinite(features).all(axis=1)).all():
            bad = examples[int(np.flatnonzero(~finite)[0])].id
            raise DataError(
                f"{loaded().name!r} gives features that are not finite for {bad!r}",
                "look at this sample; with --dtype float16, try bfloat16 or float32",
            )
        if begun is not None:
            write_json(begun, reading)
        return {"features": features, "truncated": np.array([example.cut for example in examples])}

    def loaded() -> LanguageModel:
        return model if isinstance(model, LanguageModel) else model()

    if folder is not None and (folder / f"{name}.json").exists():
        return in_shards(samples, compute, folder=folder, name=name, facts={})
    begun = None if folder is None else folder / f"{name}-begun.json"
    reading = {"dtype": loaded().precision, "max_length": loaded().context_length}
    if begun is not None and begun.exists() and (before := read_json(begun)) != reading:  # as on another device
        raise ConfigError(
            f"{folder} holds features that were begun with {before}, now it is {reading}",
            "give the same --dtype and --device, or choose another --output",
        )
    facts = {"encoder": source or loaded().name}
    blocks = feature_blocks(loaded())
    return in_shards(
        samples,
        compute,
        folder=folder,
        name=name,
        facts=facts,
        blocks=blocks,
        progress=progress,
        after_shard=after_shard,
    )


def read_language_features(
    model: LanguageModel, examples: Sequence[Example], *, batch_size: int = 32, layer: int | None = None
) -> np.ndarray:
    """Features of n samples, in batches that are halved when memory runs out.

    Args:
        model: the language model.
        examples: the samples in its token ids.
        batch_size: samples per forward pass, at most.
        layer: whose input is averaged; the middle layer's unless given.

    Returns:
        (n, 2 * hidden + len(SCALARS)) float32.

    Raises:
        ModelError: one sample alone does not fit into memory, or the model's layers cannot be told apart.
    """
    module = layer_module(model, layer_count(model) // 2 if layer is None else layer)

    def work(batch: list[int]) -> list[np.ndarray]:
        return _read(model, module, [examples[j] for j in batch])

    lengths = [len(example.ids) for example in examples]
    scored = [len(example.ids) - example.start for example in examples]
    found = model.in_batches(work, lengths, scored, batch_size=batch_size)
    return np.stack(found) if found else np.zeros((0, sum(feature_blocks(model).values())), np.float32)


def _read(model: LanguageModel, module: torch.nn.Module, batch: Sequence[Example]) -> list[np.ndarray]:
    rows, columns, wanted = response_positions(batch)
    logits, states = model.logits_and_states(module, [example.ids for example in batch], rows, columns)
    log_probabilities = token_log_probabilities(logits, wanted.to(model.device)).double().cpu().numpy()
    states = states.float()
    found = []
    for number, example in enumerate(batch):
        ends = len(model.end_ids)
        end = len(example.ids) - ends if len(example.ids) - ends > example.start else len(example.ids)
        means = [states[number, : example.start].mean(dim=0), states[number, example.start : end].mean(dim=0)]
        values = log_probabilities[rows.numpy() == number]
        distance = np.sqrt(np.mean(np.square(1 - np.exp(values))))
        scalars = [-values.mean(), distance, values[0], values[-1], np.log(example.start), np.log(len(values))]
        found.append(np.concatenate([*(mean.cpu().numpy() for mean in means), scalars]).astype(np.float32))
    return found
