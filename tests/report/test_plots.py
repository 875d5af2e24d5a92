"""Figures of the report's pictures: saturation, principal components, what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from nncift.report import plots


def test_gain_curve_saturation():
    gains = np.array([50.0, 30, 9, 1] + [1.0] * 10)
    found = plots.gain_curve(gains)
    reference = next(r for r in range(1, 15) if gains[:r].sum() >= 0.9 * gains.sum())
    assert (found["rank"], found["value"], found["flattens"]) == (reference, 100.0, True)
    assert found["tail_share"] == pytest.approx(0.01)
    straight = plots.gain_curve(np.ones(1000))
    assert (straight["rank"], straight["flattens"]) == (900, False)
    assert plots.gain_curve(np.zeros(3)) is None
    assert plots.gain_curve(np.zeros(0)) is None


def test_map_axes_are_the_principal_components():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(300, 6)) * [5, 3, 1, 1, 1, 1] @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    centre, axes, explained = plots._principal_axes(sample)
    values, vectors = np.linalg.eigh(np.cov(sample.T))
    np.testing.assert_allclose(centre, sample.mean(axis=0))
    np.testing.assert_allclose(np.abs(axes @ vectors[:, ::-1][:, :2]), np.eye(2), atol=1e-9)
    np.testing.assert_allclose(explained, values[::-1][:2] / values.sum())


@pytest.mark.parametrize(("count", "width"), [(1, 8), (5, 1), (4, 3)])
def test_map_of_constant_features(count: int, width: int):
    features = np.ones((count, width), dtype=np.float32)
    found = plots.embedding_map(features, np.array([0]), None)
    assert found["explained"] == [0.0, 0.0]
    assert "svg" in found["plot"]


def test_large_clouds_are_subsampled_and_rasterised():
    features = np.random.default_rng(0).normal(size=(6000, 4)).astype(np.float32)
    large = plots.embedding_map(features, np.arange(500), features[:20])
    assert large["drawn"] == {"not selected": 5000, "selected": 500, "target": 20}
    assert large["all"] == {"not selected": 5500, "selected": 500, "target": 20}
    assert large["plot"].count("data:image/png;base64,") == 1
    assert len(large["plot"]) < 500_000
    small = plots.embedding_map(features[:1000], np.arange(100), None)
    assert "data:image" not in small["plot"]
    assert small["plot"].count("<use ") > 1000
