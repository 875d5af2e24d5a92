"""A finished run, opened again from its folder alone: its subset, and the influence of every pair.

No language model runs, and the sources of its data need not be there any more: exact influence comes from the vectors
that the run keeps, estimated influence from its network and features. Whether that is still the influence that the run
chose by is checked on a few rows against the means that it stored.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import Config, default_fields
from nncift.data.facts import open_pool, open_samples
from nncift.errors import RunError
from nncift.estimator.network import InfluenceNetwork
from nncift.features.features import stored_features
from nncift.features.sources import FeatureSources
from nncift.influence.base import Setup
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.products import product_matrix
from nncift.models.locate import network_folder
from nncift.models.spec import DEFAULT_ENCODER, EncoderSpec, ModelSpec
from nncift.pipeline.components.influences import make_influence
from nncift.run.folder.folder import RunFolder
from nncift.run.storage.files import read_array, read_json
from nncift.run.storage.refusals import refuse_damaged
from nncift.run.storage.vectors import read_vectors
from nncift.selection.objectives.table import COMPARES_FEATURES, Objective, ObjectiveOptions, make_objective
from nncift.selection.selection import Selection

if TYPE_CHECKING:
    from datasets import Dataset

_OF_PROOF = "test"  # option of an evaluation or comparison, whose folder has a config too
_CHECKED = 32  # rows whose mean influence is compared
_TOLERANCE = 1e-3  # of a mean, relative to the largest: sums of other orders and other processors


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run; a damaged file is a RunError when it is read.

    Attributes:
        folder: where it lies; only read.
        options: of its config, with the defaults of those that its version lacked.
        pool: the samples that it chose from; after a first cut, those that this kept.
        selection: what it chose, numbered in them.
    """

    folder: RunFolder
    options: dict[str, Any]
    pool: Dataset
    selection: Selection

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> FinishedRun:
        """The run in a folder.

        Raises:
            RunError: the folder has no finished run, or is damaged.
        """
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise RunError(f"{path!r} is not a folder", "give that of a finished run")
        folder = RunFolder(Path(path).expanduser())
        if not folder.path.is_dir():
            raise RunError(f"there is no folder {folder.path}", "give that of a finished run")
        if not folder.is_run:
            raise RunError(f"{folder.path} is not the folder of a run", "give one that nncift select has written")
        options = read_json(folder.config)
        with refuse_damaged(folder.config, "is not valid", TypeError, ValueError):
            options = default_fields() | dict(options)
        if _OF_PROOF in options:
            raise RunError(f"{folder.path} holds an evaluation or comparison", "give the folder of a run")
        verified = options["verify"] is None or folder.verification.is_file()
        if not (folder.is_selected and verified and folder.samples("pool").is_finished):
            problem = f"the run in {folder.path} is not finished"
            raise RunError(problem, "run its command again, which resumes it")
        pool = open_samples(folder.candidates)
        with refuse_damaged(folder.selection, "is damaged", KeyError, TypeError, ValueError):
            selection = Selection.load(folder.path, pool=pool)
            if folder.first_cut.is_finished:
                selection = selection.among(read_array(folder.first_cut.rows), pool)
            if len(selection) and not 0 <= selection.indices.min() <= selection.indices.max() < len(pool):
                raise ValueError("rows that the pool does not have")
        return cls(folder, options, pool, selection)

    @property
    def own_target(self) -> bool:
        """Whether the pool is its own target."""
        return not self.folder.samples("target").facts.is_file()

    @property
    def target_rows(self) -> int:
        """How many targets there are."""
        return len(self.pool) if self.own_target else len(open_pool(self.folder.samples("target").path)[0])

    @cached_property
    def influence(self) -> np.ndarray:
        """Mean influence of each pool sample over the targets as the run chose by it, float32 (n_pool,)."""
        means = read_array(self.folder.influence)
        with refuse_damaged(self.folder.influence, "is damaged", ValueError):
            if means.shape != (len(self.pool),):
                raise ValueError("another number of rows")
        return means

    @property
    def influence_name(self) -> str:
        """The influence function, or what else its values come from."""
        if self.folder.function.is_file():
            return str(read_json(self.folder.function).get("name", "influence"))
        for option in ("labels_from", "network"):
            if self.options[option] is not None:
                return f"`{option}` {self.options[option]}"
        return str(self.options["influence"])

    def matrix(self) -> InfluenceMatrix:
        """Influence of every pair, (n_pool, n_target), as the run chose by it; of a verified run, as before that.

        Raises:
            NNCIFTError: why it cannot be computed again from the folder.
        """
        if not len(self.pool):
            raise RunError(f"{self.folder.path} has no samples")
        vectors = self.folder.vectors.is_finished("pool")
        matrix = self._exact_matrix() if vectors else self._estimated_matrix()
        if matrix.shape[0] != len(self.pool):
            raise RunError(f"the influence in {self.folder.path} is of {matrix.shape[0]:,} rows", "run it again")
        rows = np.unique(np.linspace(0, len(self.pool) - 1, _CHECKED).astype(np.int64))
        stored, now = self.influence[rows], matrix.block(rows, matrix.averaged).mean(axis=1, dtype=np.float64)
        if np.abs(stored - now).max() > _TOLERANCE * max(float(np.abs(self.influence).max()), 1e-30):
            raise RunError(
                f"its influence comes out otherwise than when {self.folder.path} was written",
                "run it again with this version, into another folder",
            )
        return matrix

    def _exact_matrix(self) -> InfluenceMatrix:
        options, vectors = self.options, self.folder.vectors
        name = str(options["influence"] or read_json(self.folder.function)["name"])
        if name.startswith("{"):
            raise RunError("its influence function was given as an object", "give it by name")
        own = {option: options[option] for option in ("influence_options", "model", "labels", "verify")}
        config = Config("pool", influence=name, **own)
        models = tuple(map(ModelSpec, config.models))
        setup = Setup(models, EncoderSpec(options["encoder"] or DEFAULT_ENCODER), options["seed"])
        function = make_influence(config, setup=setup)
        targets = "target" if vectors.is_finished("target") else "pool"
        return product_matrix(
            read_vectors(vectors, "pool"), read_vectors(vectors, targets), function.from_products, held=0
        )

    def _estimated_matrix(self) -> InfluenceMatrix:
        network = self.network()
        sources = FeatureSources.described(network.description_)
        pool = stored_features(self.folder.features, sources.names("pool"))
        target = pool if self.own_target else stored_features(self.folder.features, sources.names("target"))
        return network.estimate(pool, target, probes=self._probes())

    def network(self) -> InfluenceNetwork:
        """That it estimated with: its own, or the one that it was given."""
        if self.folder.is_fitted:
            return InfluenceNetwork.from_pretrained(self.folder.network)
        if self.options["network"] is None:
            raise RunError(f"{self.folder.path} has neither vectors nor a network", "run its command again")
        return InfluenceNetwork.from_pretrained(network_folder(self.options["network"]))

    def _probes(self) -> Probes | None:
        if self.options["probes"] is None:
            return None
        folder = self.folder.probes
        columns = np.array(read_json(folder.plan)["columns"], dtype=np.int64)
        return Probes.of_grid(LabelledPairs.load(folder.labels), len(self.pool), columns, own_target=self.own_target)

    def objective(self, matrix: InfluenceMatrix) -> Objective:
        """The run's objective of its matrix, without a sample in it.

        Raises:
            NNCIFTError: it is one of the user's own that cannot be imported now, or a file is damaged.
        """
        folder, selected = self.folder, self.selection.objective_options
        name = self.options["objective"] or self.selection.objective
        known = read_array(folder.known) if folder.known.is_file() else None
        options = ObjectiveOptions(
            has_target=not self.own_target,
            eta=selected.get("eta", self.options["eta"]),
            nu=selected.get("nu", self.options["nu"]),
            known=known,
            expected=float(max(len(self.selection), 1)),
            costs=read_array(folder.tokens) if folder.tokens.is_file() else None,
            features=self._compared_by() if name in COMPARES_FEATURES else None,
            redundancy=self.options["redundancy"],
        )
        return make_objective(name, matrix, options)

    def _compared_by(self) -> Any:
        """Vectors by which the objective compares samples, (n_pool, d), as `pipeline.choosing.choose` gives them."""
        if self.folder.vectors.is_finished("pool"):
            return read_vectors(self.folder.vectors, "pool")
        names = FeatureSources.described(self.network().description_).names("pool")
        features = stored_features(self.folder.features, names)
        return features.blocks.get("sentence", features)
