"""Choosing again from a finished run's pool, by the influence that another state of its language model has.

Influence that is exact for every pair is computed anew, a pass per sample. Where it was estimated, the run's network
estimates it again from the features that the language model has now; the others, such as the sentence embeddings, stay.
The network is not fitted again, so its estimates grow less sure as the model moves away from the one that it was
fitted with. Probes and a verified shortlist, which are exact values of the model as it was, are not used.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import Config
from nncift.data.facts import open_pool
from nncift.errors import ConfigError, DataError
from nncift.estimator.network import InfluenceNetwork
from nncift.features.base import read_source
from nncift.features.features import Features, SampleSet, stored_features
from nncift.features.gradient_sketch import GradientSketchFeatures
from nncift.features.language_model import LanguageModelFeatures
from nncift.features.sources import FeatureSources
from nncift.influence.base import InfluenceFunction, Setup
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.products import product_matrix
from nncift.models.language_model import LanguageModel
from nncift.models.spec import ModelSpec
from nncift.models.text.chats import chunks
from nncift.pipeline.choosing.choose import pick
from nncift.pipeline.choosing.near_duplicates import listed_rows
from nncift.pipeline.components.influences import make_influence
from nncift.pipeline.context import Run
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.pipeline.inputs.first_cut import keep
from nncift.run.storage.files import read_array
from nncift.run.storage.vectors import VectorFolder, read_vectors, write_vectors

if TYPE_CHECKING:
    from datasets import Dataset

_NOT_AGAIN = {
    "keep_selection": "a choice that is made again keeps no earlier one",
    "phases": "an epoch trains on all rows at once",
    "weights": "rows that are chosen again have no weights",
}
"""Options of a run whose choice cannot be made again under the same terms, and why."""


@dataclass(frozen=True, eq=False)
class Reselection:
    """A finished run whose choice can be made again.

    Attributes:
        finished: the run; its folder is only read.
        run: its config, samples, budget, quotas and objective, resolved.
        network: that it estimates with; None where influence is exact for every pair.
    """

    finished: FinishedRun
    run: Run
    network: InfluenceNetwork | None

    @classmethod
    def of(cls, finished: FinishedRun) -> Reselection:
        """The run's choice.

        Raises:
            ConfigError: influence does not depend on the language model, or the choice cannot be made again.
        """
        options, folder = finished.options, finished.folder
        if str(options["influence"] or "").startswith("{"):
            raise ConfigError(f"the influence function of {folder.path} was an object", "give it by name: `influence`")
        known = {field.name for field in dataclasses.fields(Config)}
        stored = {name: _stored(value) for name, value in options.items() if name in known}
        _refuse(finished)
        run = Run.resolve(Config(**stored), folder, {})
        for side in ("pool", "target", "known"):
            if folder.samples(side).is_finished:
                run.samples[side] = SampleSet(*open_pool(folder.samples(side).path))
        if (cut := folder.first_cut).is_finished:
            run.whole, run.kept_rows = run.pool, np.asarray(read_array(cut.rows))
            keep(run, SampleSet(finished.pool, run.pool.facts), len(run.whole))
        if run.influence is not None:
            run.influence.check(run.pool.rows, run.target.rows)  # settles its traits
        if options["near_duplicates"] is not None:
            listed = listed_rows(folder.samples("pool").near_duplicates)
            run.kept = np.flatnonzero(np.isin(run.pool_rows(np.arange(len(finished.pool))), listed, invert=True))
        network = None if run.is_exact else finished.network()
        found = cls(finished, run, network)
        if not found.reads_model:
            raise ConfigError(
                f"the influence in {folder.path} does not depend on the language model, so the choice stays the same",
                "take a run with gradient-sketch, or with a network that reads the features lm",
            )
        return found

    @property
    def reads_model(self) -> bool:
        """Whether the influence depends on the language model."""
        return bool(self.run.function.models) if self.network is None else self._sources.language_model is not None

    @cached_property
    def _sources(self) -> FeatureSources:
        assert self.network is not None
        return FeatureSources.described(self.network.description_)

    def choose(self, model: Any, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
        """The choice by the influence that a model has now.

        Args:
            model: a transformers causal language model, in evaluation mode afterwards.
            tokenizer: its tokenizer.

        Returns:
            The chosen pool rows in the order selected, int64 (k,), and the mean influence of every pool row over the
            targets, float32 (n_pool,).

        Raises:
            ModelError: the model cannot be run, or its features have another width than the network's.
            DataError: a value is not finite.
        """
        config = self.run.config
        spec = ModelSpec(
            LanguageModel(model, tokenizer, name="the model in training", max_length=config.max_length),
            batch_size=config.batch_size,
            wording=config.wording,
        )
        with tempfile.TemporaryDirectory() as folder:
            matrices = self._exact(spec, Path(folder)) if self.network is None else self._estimated(spec)
            matrix = matrices["pool"]
            known = matrices["known"].column_max().astype(np.float32) if "known" in matrices else None
            chosen = pick(self.run, matrix, known=known).indices
            return chosen, matrix.row_means().astype(np.float32)

    def _rows(self) -> dict[str, Dataset]:
        """The samples of each side that there is."""
        return {side: samples.rows for side, samples in self.run.samples.items()}

    def _exact(self, spec: ModelSpec, folder: Path) -> dict[str, InfluenceMatrix]:
        """Influence of the pool, and of the known samples, on the targets."""
        run, rows, vectors = self.run, self._rows(), VectorFolder(folder)
        function = make_influence(run.config, setup=Setup((spec,), run.encoder, run.config.seed))
        targets = rows.get("target", rows["pool"])
        function.progress = True
        function.check(rows["pool"], targets)
        function.prepare(_joined([rows[side] for side in ("pool", "known") if side in rows]), targets)
        two_forms = type(function).target_vectors is not InfluenceFunction.target_vectors
        if two_forms:
            rows = {**rows, "target": targets}
        for side, some in rows.items():
            write_vectors(vectors, side, len(some), _blocks(function, some, side))
        found = {side: read_vectors(vectors, side) for side in rows}
        others = found.get("target", found["pool"])
        return {
            side: product_matrix(found[side], others, function.from_products, held=0)
            for side in ("pool", "known")
            if side in rows
        }

    def _estimated(self, spec: ModelSpec) -> dict[str, InfluenceMatrix]:
        """The same by the network."""
        assert self.network is not None
        sketch, folder = self._sources.gradient_sketch, self.finished.folder.features
        source = LanguageModelFeatures(spec) if sketch is None else GradientSketchFeatures(spec, sketch)
        features = {}
        for side, rows in self._rows().items():
            stored = stored_features(folder, self._sources.names(side))
            features[side] = Features(stored.blocks | read_source(rows, source, name=side, progress=True).blocks)
        targets = features.get("target", features["pool"])
        return {side: self.network.estimate(features[side], targets) for side in ("pool", "known") if side in features}


def _stored(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _refuse(finished: FinishedRun) -> None:
    """Refuse choices that cannot be made again under the same terms."""
    options, path = finished.options, finished.folder.path
    for option, why in _NOT_AGAIN.items():
        if options.get(option):
            raise ConfigError(f"{path} was chosen with `{option}`, and {why}", f"choose without `{option}` first")


def _joined(parts: list[Dataset]) -> Dataset:
    from datasets import concatenate_datasets

    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _blocks(function: InfluenceFunction, rows: Dataset, side: str) -> Iterator[Any]:
    """Vectors of the rows in order.

    Raises:
        DataError: one is not finite.
    """
    for part in chunks(rows):
        block = function.target_vectors(part) if side == "target" else function.vectors(part)
        if isinstance(block, np.ndarray) and not np.isfinite(block).all():
            raise DataError(
                f"{function.name} is not finite for the model in training", "check its loss and its precision"
            )
        yield block
