"""A map of the pool: two coordinates of each sample, by UMAP (McInnes, Healy and Melville 2018, arXiv:1802.03426).

UMAP takes some ten seconds of CPU for 10,000 samples, so of a pool above `MAPPED` samples it places that many random
ones, and each other sample at the mean of its nearest placed ones, weighted by cosine. Pools of a few samples get their
first two principal components.
"""

from __future__ import annotations

import warnings

import numpy as np

from nncift.explorer.space import nearest
from nncift.run.progress import drawn

MAPPED = 10_000
_NEIGHBOURS = 15
_FEW = 4 * _NEIGHBOURS  # samples that need no UMAP
_EPOCHS = 200  # UMAP's own number for more than 10,000 samples
_NEAREST = 3  # placed samples whose mean places another
_VISITS = 512  # placed samples that another is compared with where there are many


def positions(
    space: np.ndarray, *, seed: int = 0, cells: list[np.ndarray] | None = None, progress: bool = False
) -> np.ndarray:
    """Two coordinates of each sample, float32 (n, 2).

    Args:
        space: unit vectors, float32 (n, d).
        seed: of the sample and of UMAP.
        cells: of all samples, as for `nearest`.
        progress: show bars.
    """
    n = len(space)
    if n <= _FEW:
        return _first_components(space)
    if n <= MAPPED:
        return _umap(space, seed, progress)
    placed = np.sort(np.random.default_rng(seed).choice(n, MAPPED, replace=False))
    found = np.empty((n, 2), np.float32)
    found[placed] = _umap(space[placed], seed, progress)
    others = np.delete(np.arange(n), placed)
    rows, cosines = nearest(space, others, _NEAREST, among=placed, visits=_VISITS, cells=cells, progress=progress)
    weights = np.exp(10 * (cosines - cosines[:, :1]))[:, :, None]
    found[others] = (weights * found[rows]).sum(axis=1) / weights.sum(axis=1)
    return found


def _first_components(space: np.ndarray) -> np.ndarray:
    centred = space.astype(np.float64) - space.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(space), 2), np.float32)
    width = min(2, left.shape[1])
    found[:, :width] = left[:, :width] * scale[:width]
    return found


def _umap(space: np.ndarray, seed: int, progress: bool) -> np.ndarray:
    """UMAP with the nearest neighbours given: exact, and without pynndescent's own compiled search."""
    own = np.arange(len(space))
    rows, cosines = nearest(space, own, _NEIGHBOURS - 1)
    indices = np.concatenate([own[:, None], rows], axis=1)  # a sample is its own nearest
    distances = np.concatenate([np.zeros((len(space), 1), np.float32), np.maximum(1 - cosines, 0)], axis=1)
    bar = {"desc": "map", "unit": " epochs", **drawn(progress)}
    with warnings.catch_warnings():  # of packages that it can do without, and that it cannot place new samples
        warnings.simplefilter("ignore")
        from umap import UMAP

        mapper = UMAP(
            n_neighbors=_NEIGHBOURS,
            metric="cosine",
            random_state=seed,
            n_epochs=_EPOCHS,
            n_jobs=1,
            precomputed_knn=(indices, distances),
            tqdm_kwds=bar,
            init="pca",
        )
        found: np.ndarray = mapper.fit_transform(space)
    return found.astype(np.float32)
