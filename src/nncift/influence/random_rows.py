"""Random rows as influence functions, so that a run draws them as it chooses: without duplicates and test rows.

`random` gives each sample a random number of its own, `stratified-random` one that spreads the choice over clusters of
the sentence embeddings in proportion to their sizes. As with any pointwise function, a run selects the largest values
first, so any budget, in samples or in tokens, takes a random subset. They are what every other choice has to be better
than (`nncift compare`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nncift.errors import ConfigError
from nncift.influence.base import InfluenceFunction, Setup, Traits
from nncift.influence.embedding_similarity import EmbeddingSimilarity
from nncift.models.encoder import sample_texts
from nncift.models.spec import DEFAULT_ENCODER, EncoderSpec
from nncift.run.folder.costs import seconds_of
from nncift.run.storage.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

_TRIAL = (2048, 128)  # embeddings and clusters on which the rate of k-means is measured
_WIDTH = 384  # of a small sentence encoder's embeddings


class Random(InfluenceFunction):
    """A random number for each sample, uniform in [0, 1): rows drawn without looking.

    It depends on the seed, the sample's id and its texts alone, so a larger pool draws the same rows again before new
    ones.

    Args:
        draw: another number draws other rows with the same seed.
        seed: of the run.
    """

    name = "random"
    traits = Traits(pointwise=True, factored=True)
    _settings = ("draw", "seed")

    def __init__(self, *, draw: int = 0, seed: int = 0) -> None:
        self.draw = draw
        self.seed = seed

    @classmethod
    def build(cls, setup: Setup, **options: Any) -> Self:
        """The function with the run's seed."""
        return cls(seed=setup.seed, **options)

    def vectors(self, rows: Dataset) -> np.ndarray:
        """The numbers, (n, 1) float32."""
        hashes = (fingerprint(self.seed, self.draw, key)[:8] for key in _keys(rows))
        return np.array([[int(digits, 16) / 2**32] for digits in hashes], dtype=np.float32)

    def target_vectors(self, rows: Dataset) -> np.ndarray:
        """Ones, (n, 1) float32: the number counts for every target."""
        return np.ones((len(rows), 1), np.float32)


class StratifiedRandom(InfluenceFunction):
    """Random rows spread over clusters of the sentence embeddings: the same share of each cluster, up to one row.

    The clusters are those of k-means. The rows of each are in a random order, and the value of the one at place r of m
    is 1 - (r + u) / m, with u uniform in [0, 1) for each cluster: of the largest values of all, each cluster has its
    share (proportional allocation by systematic sampling; Cochran 1977, sections 5.4 and 8.1), and every row of the
    pool the same chance.

    Args:
        encoder: a sentence-transformers model, or its folder or hub id, or an `EncoderSpec`; loaded on first use.
        clusters: how many, at most as many as rows; as many as rows are chosen is a good number.
        seed: of clusters and rows.

    Raises:
        ConfigError: there is no cluster.
    """

    name = "stratified-random"
    traits = Traits(pointwise=True, relative=True, factored=True)
    _settings = ("clusters", "seed")

    def __init__(self, encoder: Any | EncoderSpec = DEFAULT_ENCODER, *, clusters: int = 100, seed: int = 0) -> None:
        if clusters < 1:
            raise ConfigError(f"`clusters` is {clusters}", "give at least 1")
        self._similarity = EmbeddingSimilarity(encoder)
        self.encoder_spec = self._similarity.encoder_spec
        self.clusters = clusters
        self.seed = seed
        self._values: dict[str, float] = {}  # of the samples given to `prepare`, by key

    @classmethod
    def build(cls, setup: Setup, **options: Any) -> Self:
        """The function on the run's sentence encoder, with its seed."""
        return cls(setup.encoder, seed=setup.seed, **options)

    @property
    def cut_ids(self) -> frozenset[str]:  # type: ignore[override]
        """Ids of the samples with a text that exceeds the encoder's maximum length."""
        return self._similarity.cut_ids

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Embed each distinct text of the pool once, and cluster them; `folder` caches the embeddings."""
        values = stratified_values(self.embed(pool, folder), self.clusters, self.seed)
        self._values = dict(zip(_keys(pool), values.tolist(), strict=True))

    def embed(self, pool: Dataset, folder: Path | None = None) -> np.ndarray:
        """What the clusters are made of: the sentence embeddings, (n, d) float32; `folder` caches them."""
        self._similarity.progress, self._similarity.on_cut = self.progress, self.on_cut
        self._similarity.prepare(pool, pool.select([]), folder)
        return self._similarity.vectors(pool)

    def joint_seconds(self, pool_rows: Dataset, samples: int) -> float:
        """Of k-means."""
        return kmeans_seconds(samples, self.clusters, self.embed(pool_rows.select([0])).shape[1])

    def vectors(self, rows: Dataset) -> np.ndarray:
        """The values, (n, 1) float32."""
        keys = _keys(rows)
        if missing := [row for row, key in enumerate(keys) if key not in self._values]:
            raise ConfigError(
                f"the pool sample {rows[missing[0]]['prompt'][:60]!r} is in no cluster of {self.name}",
                "call prepare(pool, target) with all samples",
            )
        return np.array([[self._values[key]] for key in keys], dtype=np.float32)

    def target_vectors(self, rows: Dataset) -> np.ndarray:
        """Ones, (n, 1) float32: the value counts for every target."""
        return np.ones((len(rows), 1), np.float32)

    def describe(self) -> dict[str, Any]:
        """With the encoder's name."""
        return super().describe() | {"encoder": self.encoder_spec.name}


def stratified_values(embeddings: np.ndarray, clusters: int, seed: int | Sequence[int]) -> np.ndarray:
    """The value of each row (`StratifiedRandom`), float64 (n,) in (0, 1]; the largest are a stratified random choice.

    Args:
        embeddings: (n, d) float32.
        clusters: of k-means, at most n.
        seed: of clusters and rows.
    """
    rng, n = np.random.default_rng(seed), len(embeddings)
    if not n:
        return np.zeros(0)
    cluster = _clusters(embeddings, min(clusters, n), int(rng.integers(2**31)))
    order = np.lexsort((rng.random(n), cluster))
    sizes = np.bincount(cluster)
    place = np.empty(n)
    place[order] = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.asarray(1 - (place + rng.random(len(sizes))[cluster]) / sizes[cluster])


def kmeans_seconds(n: int, clusters: int, width: int = _WIDTH) -> float:
    """Expected seconds of the clusters of n embeddings, from those of a few random ones.

    A pass over the embeddings costs n * clusters * width; as many passes are expected as for the few.
    """
    some, few = min(n, _TRIAL[0]), min(clusters, n, _TRIAL[1])
    if not some:
        return 0.0
    embeddings = np.random.default_rng(0).standard_normal((some, width), dtype=np.float32)
    _clusters(embeddings[:2], 1, 0)  # imports
    seconds = seconds_of(lambda: _clusters(embeddings, few, 0))
    return seconds * n / some * min(clusters, n) / few


def _clusters(embeddings: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """The cluster of each embedding by k-means, (n,) int32."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1, user_api="openmp"):  # whose threads add in any order
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        return np.asarray(KMeans(clusters, n_init=1, random_state=seed).fit(embeddings).labels_)


def _keys(rows: Dataset) -> list[str]:
    """What identifies each sample."""
    return [fingerprint(name, texts) for name, texts in zip(rows["id"], sample_texts(rows), strict=True)]
