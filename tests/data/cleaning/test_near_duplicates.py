"""Near-duplicates: against a slow reference, and planted ones among many samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.data.cleaning import near_duplicates
from nncift.data.cleaning.near_duplicates import find_near_duplicates
from nncift.errors import ConfigError


def one_by_one(x: np.ndarray, threshold: float) -> dict[int, float]:
    """The definition: row to its largest cosine with an earlier row that is kept."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    kept: list[int] = []
    found: dict[int, float] = {}
    for i in range(len(x)):
        cosines = [float(unit[i] @ unit[k]) for k in kept]
        if max(cosines, default=-1.0) >= threshold - 1e-6:
            found[i] = max(cosines)
        else:
            kept.append(i)
    return found


@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), threshold=st.sampled_from([0.5, 0.9, 1.0]))
@settings(deadline=None, max_examples=60)
def test_equals_the_definition(seed, n, threshold):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, 3))[rng.integers(0, 8, n)] + 0.2 * rng.standard_normal((n, 3))
    x[rng.random(n) < 0.3] = x[0]  # of any length
    x = (x * rng.uniform(0.1, 5, (n, 1))).astype(np.float32)
    expected = one_by_one(x, threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_BLOCK", int(rng.integers(1, 30)))
        patch.setattr(near_duplicates, "_KEPT", int(rng.integers(1, 10)))
        found = find_near_duplicates(x, threshold)
    assert found.rows.tolist() == sorted(expected)
    assert found.cosines == pytest.approx([expected[i] for i in sorted(expected)], abs=1e-5)
    assert not set(found.twins.tolist()) & set(found.rows.tolist())  # a twin is kept
    assert (found.twins < found.rows).all()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for row, twin, cosine in zip(found.rows, found.twins, found.cosines, strict=True):
        assert unit[row] @ unit[twin] == pytest.approx(cosine, abs=1e-5)


def test_zero_vectors_are_like_no_other():
    x = np.zeros((4, 3), np.float32)
    x[1] = x[3] = 1
    found = find_near_duplicates(x, 0.5)
    assert (found.rows.tolist(), found.twins.tolist(), found.cosines.tolist()) == ([3], [1], [pytest.approx(1)])


def test_planted_ones_are_found_by_their_centres(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 32))[rng.integers(0, 50, 4000)] + rng.standard_normal((4000, 32))
    copies = rng.choice(4000, 500, replace=False)
    x = np.concatenate([x, x[copies] + 0.2 * rng.standard_normal((500, 32))]).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    exact = find_near_duplicates(x, 0.95)
    assert set(range(4000, 4500)) & {*exact.rows.tolist()}
    grouped = find_near_duplicates(np.load(tmp_path / "x.npy", mmap_mode="r"), 0.95, exact=1000)
    missed = {*exact.rows.tolist()} - {*grouped.rows.tolist()}
    assert len(missed) <= 0.05 * len(exact.rows)
    assert not {*grouped.rows.tolist()} - {*exact.rows.tolist()}
    again = find_near_duplicates(x, 0.95, exact=1000)
    assert again.rows.tolist() == grouped.rows.tolist()
    assert again.twins.tolist() == grouped.twins.tolist()


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan")])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(ConfigError, match="`near_duplicates` is"):
        find_near_duplicates(np.ones((2, 2)), threshold)
