"""Principal components of wide blocks, from the matrix of inner products of few samples."""

from __future__ import annotations

import numpy as np

from nncift.estimator import pca
from nncift.features.features import Features

EVERY = np.arange(9)


def test_few_samples_of_a_wide_block_have_the_components_of_the_covariance(monkeypatch):
    rng = np.random.default_rng(0)
    pool, target = (Features({"wide": rng.standard_normal((9, 40)).astype(np.float32)}) for _ in range(2))
    covariance, _ = pca.fit_projections(pool, target, EVERY, EVERY)
    monkeypatch.setattr(pca, "_WIDE", 20)
    products, _ = pca.fit_projections(pool, target, EVERY, EVERY)
    old, new = covariance(pool[:]), products(pool[:])
    np.testing.assert_allclose(np.abs(new[:, :17]), np.abs(old[:, :17]), rtol=1e-3, atol=1e-5)  # 18 samples, centered
    assert not new[:, 17:].any()
    np.testing.assert_allclose(new @ new.T, old @ old.T, rtol=1e-4, atol=1e-4)
