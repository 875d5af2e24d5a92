"""DELIFT's in-context influence: how much an example in the prompt improves the prediction of a target's response.

With d = ||p - 1||_2 / sqrt(T) over the probabilities p of the T tokens of target j's response (end-of-text
included, teacher forcing),

    influence[i, j] = d(no example, j) - d(example i, j),    in [-1, 1],

and where several turns of target j are trained on, the mean of that over the turns.

Both terms are forward passes of the language model. The second takes one for every pair, which makes exact influence
expensive: an example is therefore encoded once for all targets, and only response positions go through the output
layer (`LanguageModel.response_probabilities`). A pair costs the tokens of the target, a row those of the example.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from nncift.influence.base import Traits, look_up
from nncift.influence.model_functions import PromptedFunction
from nncift.models.language_model import LanguageModel, Prefix
from nncift.models.spec import ModelSpec
from nncift.models.text.chats import chunks, mean_over_turns
from nncift.models.text.prompts import Prompts, Query
from nncift.run.progress import drawn, moving
from nncift.run.storage.files import fingerprint, read_array, write_array

if TYPE_CHECKING:
    from datasets import Dataset

_BASELINE = np.dtype([("sample", "S24"), ("distance", "<f8")])


class Delift(PromptedFunction):
    """In-context influence of one sample on the response to another.

    Args:
        model: a folder, a hub id, "embedded", a `LanguageModel`, or a `ModelSpec`; loaded on first use.
        exponential: give exp(influence), DELIFT's variant.
        **options: batch_size, dtype, device, max_length, trust_remote_code of `ModelSpec`; and `wording`: "plain", or a
            `PromptTemplate` of your own; "chat", the model's chat template with the example as an earlier exchange;
            "auto", chat when any sample comes from a chat and the model has a template, else plain.

    Source: DELIFT (arXiv:2411.04425), equations 1 and 2.
    """

    name = "delift"
    traits = Traits(per_pair=True, asks_language_model=True)
    travels = True
    single = False
    _settings = ("exponential",)

    def __init__(self, model: str | LanguageModel | ModelSpec, *, exponential: bool = False, **options: Any) -> None:
        super().__init__(model, **options)
        self.exponential = exponential
        self._cache: dict[str, np.ndarray] = {}  # zero-shot distances by sample and setting

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Check that every sample fits, and compute the targets' zero-shot distances, kept in `delift-baseline.npy`."""
        prompts = self._choose(pool, target)
        for chunk in chunks(pool):
            self._render(prompts, chunk)
        targets = [query for sample in self._render(prompts, target) for query in sample.queries]
        path = None if folder is None else folder / "delift-baseline.npy"
        keys = [self._key(prompts, query) for query in targets]
        known = {} if path is None or not path.exists() else _read_baseline(path)
        if not known.keys() >= set(keys):
            self._cache = {}  # all are computed together, whatever was prepared before: the same bytes
            bar = tqdm(total=len(targets), desc="delift baseline", unit=" samples", **drawn(self.progress))
            with bar, moving(bar, len(targets)):
                known = dict(zip(keys, self._zero_shot(prompts, targets), strict=True))
            if path is not None:
                write_array(path, np.array([*known.items()], _BASELINE))
        self._prompts, self._cache = prompts, known

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Differences of distances, in [-1, 1], or their exponential."""
        prompts = self._prompts_for(pool_rows, target_rows)
        examples, targets = self._render(prompts, pool_rows), self._render(prompts, target_rows)
        queries = [query for target in targets for query in target.queries]
        zero_shot, asked = self._zero_shot(prompts, queries), [query.after_example for query in queries]
        influence = np.empty((len(queries), len(examples)), np.float32)
        for i, example in enumerate(examples):
            influence[:, i] = zero_shot - self._distances(self.language_model.prefix(example.example), asked, queries)
        turns = [target.queries for target in targets]
        return mean_over_turns(turns, np.exp(influence) if self.exponential else influence).T.copy()

    def tokens(self, pool_rows: Dataset, target_rows: Dataset, pool: Dataset | None = None) -> int:
        """Each target once without an example, then each row's example once and each target once per row."""
        prompts = self._prompts_for(pool_rows, target_rows)
        examples = [len(sample.example) for sample in self._render(prompts, pool_rows)]
        targets = [query for sample in self._render(prompts, target_rows) for query in sample.queries]
        if not targets:
            return 0
        queries = sum(len(query.after_example) + len(query.response) - 1 for query in targets)
        alone = sum(len(query.alone) + len(query.response) - 1 for query in targets)
        prefixes = 1 if self.language_model.shares_prefix else len(targets)  # passes over each prefix
        return alone + prefixes * (len(prompts.no_example) + sum(examples)) + len(examples) * queries

    def _key(self, prompts: Prompts, query: Query) -> str:
        """Identifies a zero-shot distance: the model, its precision and the tokens."""
        description = {name: self.describe()[name] for name in ("model", "dtype")}
        return fingerprint(description, prompts.no_example, query.alone, query.response)

    def _zero_shot(self, prompts: Prompts, targets: Sequence[Query]) -> np.ndarray:
        """Each query's distance without an example, (queries,) float64, cached by `prepare`."""
        keys = [self._key(prompts, target) for target in targets]

        def compute(which: list[int]) -> np.ndarray:
            new = [targets[k] for k in which]
            prefix = self.language_model.prefix(prompts.no_example)
            return self._distances(prefix, [target.alone for target in new], new)

        return look_up(self._cache, keys, compute)

    def _distances(self, prefix: Prefix, queries: Sequence[list[int]], targets: Sequence[Query]) -> np.ndarray:
        """Distance d of each query's response, (queries,) float64."""
        responses = [target.response for target in targets]
        probabilities = self.language_model.response_probabilities(
            prefix, queries, responses, batch_size=self.batch_size
        )
        return np.array([np.sqrt(np.mean(np.square(1 - p.astype(np.float64)))) for p in probabilities])


def _read_baseline(path: Path) -> dict[str, np.ndarray]:
    stored = read_array(path)
    if stored.dtype != _BASELINE:
        return {}
    return {sample.decode(): distance for sample, distance in stored}
