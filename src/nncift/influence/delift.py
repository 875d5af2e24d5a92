"""DELIFT's in-context influence: how much closer an example in the prompt brings a model to the right response.

With d = ||p - 1||_2 / sqrt(T) over the probabilities p of the T tokens of target j's response (end-of-text
included, teacher forcing, each token predicted by the position before it),

    influence[i, j] = d(no example, j) - d(example i, j),    in [-1, 1].

Both terms are forward passes of the language model. The second is one for every pair, which is what makes exact
influence dear: an example is therefore encoded once for all targets, and nothing but response positions meets
the output layer (see `language_model`). A pair costs the tokens of the target, a row those of the example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from nncift.influence.base import LanguageModelFunction, ModelOptions
from nncift.models.language_model import LanguageModel, Prefix
from nncift.models.prompts import Prompts, Style, WordedSample, Wording, check_fit, choose_prompts, in_parts
from nncift.run.files import fingerprint, read_array, write_array

if TYPE_CHECKING:
    from datasets import Dataset

_BASELINE = np.dtype([("sample", "S24"), ("distance", "<f8")])


class Delift(LanguageModelFunction):
    """In-context influence of one sample on the response to another.

    Args:
        model: a folder, a hub id, "embedded", or a `LanguageModel`; loaded on first use.
        wording: "plain" or a `Wording` of your own; "chat", the model's chat template with the example as an
            earlier exchange; "auto", chat when any sample comes from a chat and the model has a template, else plain.
        exponential: give exp(influence), DELIFT's variant.
        **options: batch_size, dtype, device, max_length, trust_remote_code of `LanguageModelFunction`.

    Source: DELIFT (arXiv:2411.04425), equations 1 and 2.
    """

    name = "delift"
    works_per_pair = True

    def __init__(
        self,
        model: str | LanguageModel,
        *,
        wording: Style | Wording = "auto",
        exponential: bool = False,
        **options: Unpack[ModelOptions],
    ) -> None:
        super().__init__(model, **options)
        self.wording = wording
        self.exponential = exponential
        self._prompts: Prompts | None = None  # chosen by `prepare` for all samples
        self._known: dict[str, float] = {}  # distances without an example, by sample and setting

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        plain = self.wording if isinstance(self.wording, Wording) else Wording()
        return {
            **super().describe(),
            "wording": "own" if plain is self.wording else self.wording,
            "plain_wording": asdict(plain),
            "exponential": self.exponential,
        }

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Check that every sample fits, and compute the targets' distances without an example once.

        Args:
            pool: the samples that may help, all that will be asked for.
            target: the samples to be helped, likewise.
            folder: keep the distances here as `delift-baseline.npy`, each with what it was computed from, so
                that a resumed run goes on with the same bytes.

        Raises:
            DataError: a response does not fit into the context.
            ModelError: the model cannot be loaded, or leaves no room beside the wording.
            RunError: the stored distances are damaged.
        """
        prompts = self._prompts_for(pool, target)
        for part in in_parts(pool):  # none is kept
            self._word(prompts, part)
        targets = self._word(prompts, target)
        path = None if folder is None else folder / "delift-baseline.npy"
        keys = [self._key(prompts, sample) for sample in targets]
        known = {} if path is None or not path.exists() else _read_baseline(path)
        if not known.keys() >= set(keys):
            self._known = {}  # all are computed together, whatever was prepared before: the same bytes each time
            known = dict(zip(keys, self._distances_alone(prompts, targets), strict=True))
            if path is not None:
                write_array(path, np.array([*known.items()], _BASELINE))
        self._prompts, self._known = prompts, known

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Influence of each pool sample as an example for each target.

        Args:
            pool_rows: n_pool samples.
            target_rows: n_target samples.

        Returns:
            (n_pool, n_target) float32; larger is better, negative where the example does harm.

        Raises:
            DataError: a response does not fit into the context.
            ModelError: the model cannot be loaded, or one sequence alone does not fit into memory.
        """
        prompts = self._prompts or self._prompts_for(pool_rows, target_rows)
        examples, targets = self._word(prompts, pool_rows), self._word(prompts, target_rows)
        alone = self._distances_alone(prompts, targets)
        influence = np.empty((len(examples), len(targets)), np.float32)
        queries = [target.query for target in targets]
        for i, example in enumerate(examples):
            influence[i] = alone - self._distances(self.language_model.prefix(example.example), queries, targets)
        return np.exp(influence) if self.exponential else influence

    def tokens(self, pool_rows: Dataset, target_rows: Dataset) -> int:
        """The exact number of tokens that labelling these rows x targets sends through the model.

        Each target once without an example, then each row's example once and each target once per row.
        """
        prompts = self._prompts or self._prompts_for(pool_rows, target_rows)
        examples = [len(sample.example) for sample in self._word(prompts, pool_rows)]
        targets = self._word(prompts, target_rows)
        if not targets:
            return 0
        queries = sum(len(sample.query) + len(sample.response) - 1 for sample in targets)
        alone = sum(len(sample.alone) + len(sample.response) - 1 for sample in targets)
        again = 1 if self.language_model.shares_prefix else len(targets)  # how often a prefix is read
        return alone + again * (len(prompts.no_example) + sum(examples)) + len(examples) * queries

    def _prompts_for(self, pool: Dataset, target: Dataset) -> Prompts:
        """The prompts that the wording asks for, and these samples when it leaves the choice to them."""
        return choose_prompts(self.language_model, self.wording, pool, target, chats=self._chats)

    def check_lengths(self, pool: Dataset, target: Dataset) -> None:
        """Refuse a sample that does not fit; loads the model.

        Raises:
            DataError: which.
            ModelError: the model cannot be loaded, or leaves no room beside the wording.
        """
        check_fit(self._prompts_for(pool, target), pool, target)

    def _word(self, prompts: Prompts, rows: Dataset) -> list[WordedSample]:
        samples = prompts.word(rows)
        self._cut.update(sample.id for sample in samples if sample.cut)
        return samples

    def _key(self, prompts: Prompts, sample: WordedSample) -> str:
        """What a distance without an example was computed from: the model, its precision and the exact tokens."""
        description = {name: self.describe()[name] for name in ("model", "dtype")}
        return fingerprint(description, prompts.no_example, sample.alone, sample.response)

    def _distances_alone(self, prompts: Prompts, targets: Sequence[WordedSample]) -> np.ndarray:
        """Each target's distance without an example, (n_target,) float64; what `prepare` computed is not repeated."""
        known = [self._known.get(self._key(prompts, target)) for target in targets]
        missing = [target for target, distance in zip(targets, known, strict=True) if distance is None]
        if missing:
            prefix = self.language_model.prefix(prompts.no_example)
            found = iter(self._distances(prefix, [target.alone for target in missing], missing))
            known = [next(found) if distance is None else distance for distance in known]
        return np.array(known, np.float64)

    def _distances(self, prefix: Prefix, queries: Sequence[list[int]], targets: Sequence[WordedSample]) -> np.ndarray:
        """Distance of each target's response from certainty, (n_target,) float64."""
        responses = [target.response for target in targets]
        probabilities = self.language_model.response_probabilities(
            prefix, queries, responses, batch_size=self.batch_size
        )
        return np.array([np.sqrt(np.mean(np.square(1 - p.astype(np.float64)))) for p in probabilities])


def _read_baseline(path: Path) -> dict[str, float]:
    stored = read_array(path)
    if stored.dtype != _BASELINE:
        return {}
    return {sample.decode(): float(distance) for sample, distance in stored.tolist()}
