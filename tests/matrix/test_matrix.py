"""InfluenceMatrix: estimated entries equal the formula; exact and estimated, tiles and threads are bitwise equal."""

from __future__ import annotations

import multiprocessing
import resource
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.errors import ConfigError, ModelError
from nncift.matrix.compiled import kernels
from nncift.matrix.compiled.factored import factor
from nncift.matrix.estimated import DeviceMatrix
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.selectors import TILE

EVERY = slice(None)


def make_factors(seed: int, n: int, m: int, hidden: int, offset: float = 0.0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "pool_side": (rng.standard_normal((n, hidden)) + offset).astype(np.float32),
        "target_side": (rng.standard_normal((m, hidden)) - offset).astype(np.float32),
        "output_weight": (rng.standard_normal(hidden) / hidden**0.5).astype(np.float32),
        "output_bias": float(rng.standard_normal()),
    }


def estimate(factors: dict) -> InfluenceMatrix:
    return InfluenceMatrix.from_factors(**factors)


def reference(factors: dict) -> np.ndarray:
    """The formula, in double precision."""
    hidden = factors["pool_side"].astype(np.float64)[:, None] + factors["target_side"].astype(np.float64)
    return np.maximum(hidden, 0) @ factors["output_weight"].astype(np.float64) + factors["output_bias"]


@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 40),
    m=st.integers(1, 200),
    hidden=st.integers(1, 40),
    signs=st.sampled_from(
        [np.array, np.abs, lambda w: -np.abs(w), lambda w: w * (np.arange(len(w)) % 2 == 1), np.zeros_like]
    ),
    offset=st.sampled_from([0.0, 3.0, -200.0]),
)
@settings(deadline=None, max_examples=60)
def test_factors_equal_the_formula(seed, n, m, hidden, signs, offset):
    factors = make_factors(seed, n, m, hidden, offset)
    factors["output_weight"] = signs(factors["output_weight"])
    np.testing.assert_allclose(estimate(factors).block(EVERY, EVERY), reference(factors), atol=1e-5)


def test_an_offset_that_cancels_loses_no_precision():
    factors = make_factors(0, 30, 70, 100, offset=5000.0)
    assert np.abs(estimate(factors).rows(EVERY) - reference(factors)).max() < 1e-5


def make_towers(seed: int, n: int, m: int, rank: int) -> dict:
    rng = np.random.default_rng(seed)
    shapes = {"pool_side": (n, rank), "target_side": (m, rank), "pool_bias": (n,), "target_bias": (m,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@given(seed=st.integers(0, 1000), n=st.integers(1, 40), m=st.integers(1, 200), rank=st.integers(0, 40))
@settings(deadline=None, max_examples=60)
def test_towers_equal_the_formula(seed, n, m, rank):
    towers = make_towers(seed, n, m, rank)
    f, g, p, q = (part.astype(np.float64) for part in towers.values())
    expected = f @ g.T + p[:, None] + q
    matrix = InfluenceMatrix.from_towers(**towers)
    np.testing.assert_allclose(matrix.block(EVERY, EVERY), expected, atol=2e-5)
    matrix._function = None  # row means score no pair
    np.testing.assert_allclose(matrix.row_means(), expected.mean(axis=1), atol=2e-6)


def test_the_clipped_mean_has_calibrated_standard_errors_and_is_exact_on_all_targets(pair):
    matrix, dense = pair
    exact = np.maximum(dense.astype(np.float64), 0).mean(axis=1)
    means, errors = matrix.clipped_row_means(400)
    np.testing.assert_allclose(means, exact, rtol=1e-5, atol=1e-6)
    assert not errors.any()
    drawn = [matrix.clipped_row_means(60, seed=seed) for seed in range(40)]
    off = np.sqrt(np.mean([np.square(means - exact) for means, _ in drawn]))
    stated = np.sqrt(np.mean([np.square(errors) for _, errors in drawn]))
    assert 0.8 < off / stated < 1.25
    assert matrix.clipped_row_means(1)[0].shape == (150,)


@pytest.mark.parametrize("part", ["pool_side", "target_side", "pool_bias", "target_bias"])
def test_towers_that_do_not_match_are_refused(part):
    towers = make_towers(0, 4, 5, 3)
    for wrong in (towers[part][1:], np.full_like(towers[part], np.nan)):
        with pytest.raises(ModelError):
            InfluenceMatrix.from_towers(**{**towers, part: wrong})


@pytest.fixture(params=["estimated", "towers", "exact", "memory-mapped", "own function"])
def pair(request, tmp_path) -> tuple[InfluenceMatrix, np.ndarray]:
    """A matrix of each kind, 150 x 333, and all its entries."""
    matrix = estimate(make_factors(1, 150, 333, 20))
    if request.param == "towers":
        matrix = InfluenceMatrix.from_towers(**make_towers(1, 150, 333, 20))
    dense = matrix.block(EVERY, EVERY)
    if request.param == "exact":
        matrix = InfluenceMatrix.from_array(dense)
    elif request.param == "memory-mapped":
        np.save(tmp_path / "influence.npy", dense)
        matrix = InfluenceMatrix.from_array(np.load(tmp_path / "influence.npy", mmap_mode="r"))
    elif request.param == "own function":
        matrix = InfluenceMatrix(dense.shape, lambda rows, columns: dense[rows][:, columns].astype(np.float64))
    return matrix, dense


@pytest.mark.parametrize("rows", [EVERY, slice(7, 20), slice(3, 3), slice(-5, None), np.array([5, 0, 149, 5])])
@pytest.mark.parametrize(
    "columns", [EVERY, slice(64, 192), slice(65, 130), slice(0, 300, 7), np.array([332, 1, 1]), np.array([], int)]
)
def test_a_block_is_a_part_of_the_matrix(pair, rows, columns):
    matrix, dense = pair
    block = matrix.block(rows, columns)
    assert block.dtype == np.float32
    assert block.flags.c_contiguous
    np.testing.assert_array_equal(block, dense[rows][:, columns])


def test_rows_and_columns(pair):
    matrix, dense = pair
    np.testing.assert_array_equal(matrix.rows(4), dense[[4]])
    np.testing.assert_array_equal(matrix.columns(np.array([300, 2])), dense[:, [300, 2]])


@pytest.mark.parametrize("size", [1, 50, 64, 1000])
def test_tiles_cover_the_matrix_once(pair, size):
    matrix, dense = pair
    seen = np.full_like(dense, np.nan)
    for rows, columns, block in matrix.tiles(size):
        assert np.isnan(seen[rows, columns]).all()
        assert max(block.shape) <= size
        seen[rows, columns] = block
    np.testing.assert_array_equal(seen, dense)


def test_entries_of_pairs(pair, monkeypatch):
    matrix, dense = pair
    monkeypatch.setattr("nncift.matrix.selectors.TILE", 500)
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, 150, 400), rng.integers(0, 333, 400)
    np.testing.assert_array_equal(matrix.entries(i, j), dense[i, j])
    assert matrix.entries(i[:0], j[:0]).shape == (0,)


def test_row_and_column_statistics(pair):
    matrix, dense = pair
    np.testing.assert_allclose(matrix.row_means(), dense.mean(axis=1, dtype=np.float64), rtol=1e-6, atol=1e-6)
    assert matrix.row_means().dtype == np.float32
    np.testing.assert_array_equal(matrix.row_max(), dense.max(axis=1))
    np.testing.assert_array_equal(matrix.column_max(), dense.max(axis=0))


def test_coverage_gains(pair):
    matrix, dense = pair
    covered = np.random.default_rng(2).random(333).astype(np.float32)
    rows = np.array([149, 3, 3, 80])
    expected = np.maximum(dense[rows].astype(np.float64) - covered, 0).sum(axis=1)
    np.testing.assert_allclose(matrix.coverage_gains(rows, covered), expected, rtol=1e-6)
    assert matrix.coverage_gains(np.array([], int), covered).shape == (0,)


@pytest.mark.parametrize(("axis", "k"), [(1, 5), (0, 3)])
def test_top_k_is_a_stable_sort(pair, axis, k):
    matrix, dense = pair
    lines = dense if axis else dense.T
    values, indices = matrix.top_k(k, axis=axis)
    expected = np.argsort(-lines, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(lines, expected, axis=1))


@pytest.mark.parametrize("axis", [0, 1])
def test_top_k_over_several_tiles_and_with_ties(monkeypatch, axis):
    dense = np.random.default_rng(0).integers(0, 3, (90, 70)).astype(np.float32)
    matrix = InfluenceMatrix.from_array(dense)
    monkeypatch.setattr(matrix, "tiles", lambda: InfluenceMatrix.tiles(matrix, 16))
    expected = np.argsort(-(dense if axis else dense.T), axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(matrix.top_k(20, axis=axis)[1], expected)


def reductions(matrix: InfluenceMatrix) -> list[np.ndarray]:
    every, covered = np.arange(matrix.shape[0]), np.linspace(0, 1, matrix.shape[1], dtype=np.float32)
    gains = [matrix.coverage_gains(rows, covered) for rows in (every, every[::-7])]
    return [matrix.rows(EVERY), *gains, matrix.row_means(), matrix.row_max()]


def assert_equal(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("tile", [1, 1000, 33300, TILE])
def test_exact_tiles_and_estimated_are_bitwise_equal(monkeypatch, tile):
    estimated = estimate(make_factors(3, 100, 333, 30))
    expected = reductions(estimated)
    monkeypatch.setattr("nncift.matrix.selectors.TILE", tile)
    assert_equal(reductions(InfluenceMatrix.from_array(estimated.rows(EVERY))), expected)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_are_bitwise_equal(monkeypatch, threads):
    factors = make_factors(4, 1000, 333, 30)
    monkeypatch.setattr(kernels, "THREADS", 1)
    expected = reductions(estimate(factors))
    monkeypatch.setattr(kernels, "THREADS", threads)
    assert_equal(reductions(estimate(factors)), expected)


def test_a_forked_process_works_without_the_threads(monkeypatch):
    monkeypatch.setattr(kernels, "THREADS", 2)
    matrix = estimate(make_factors(5, 400, 333, 30))

    def gains() -> list[float]:
        return matrix.coverage_gains(np.arange(400), np.zeros(333, np.float32)).tolist()

    expected = gains()  # starts the threads
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(gains()))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert queue.get() == expected


@given(seed=st.integers(0, 100), step=st.floats(0, 1, width=32))
@settings(deadline=None, max_examples=30)
def test_gains_do_not_increase_with_coverage_even_by_rounding(seed, step):
    matrix = estimate(make_factors(seed, 40, 200, 10))
    covered = np.random.default_rng(seed).random(200).astype(np.float32)
    more = covered + np.float32(step) * np.random.default_rng(seed + 1).random(200).astype(np.float32)
    everyone = np.arange(40)
    assert (matrix.coverage_gains(everyone, more) <= matrix.coverage_gains(everyone, covered)).all()


def test_the_device_form_is_close_to_the_kernels():
    factors = make_factors(6, 300, 333, 100)
    sides = factors["pool_side"], factors["target_side"]
    on_device = DeviceMatrix(
        factor(*sides, output_weight=factors["output_weight"], output_bias=factors["output_bias"]), "cpu"
    )
    for one, other in zip(reductions(on_device), reductions(estimate(factors)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        on_device.block(np.array([3, 1]), slice(60, 99)), reference(factors)[[3, 1], 60:99], atol=1e-5
    )


def test_concatenated_networks_are_averaged():
    one, other = make_factors(7, 20, 30, 10), make_factors(8, 20, 30, 15)
    both = InfluenceMatrix.from_factors(
        np.hstack([one["pool_side"], other["pool_side"]]),
        np.hstack([one["target_side"], other["target_side"]]),
        output_weight=np.concatenate([one["output_weight"], other["output_weight"]]) / 2,
        output_bias=(one["output_bias"] + other["output_bias"]) / 2,
    )
    np.testing.assert_allclose(both.rows(EVERY), (reference(one) + reference(other)) / 2, atol=1e-5)


def test_twenty_thousand_squared_entries_are_not_stored():
    n = 20_000  # 1.6 GB as float32
    matrix = estimate(make_factors(9, n, n, 4))
    matrix.coverage_gains(np.arange(2), np.zeros(n, np.float32))  # compiles
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    means, gains = matrix.row_means(), matrix.coverage_gains(np.arange(n), np.zeros(n, np.float32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 100e6
    np.testing.assert_allclose(means[:3], matrix.rows(slice(0, 3)).mean(axis=1, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(gains[-1], np.maximum(matrix.rows(n - 1), 0).sum(dtype=np.float64), rtol=1e-5)


def test_reductions_read_tiles():
    n = 20_000
    sizes = []

    def function(rows, columns):
        shape = len(np.arange(n)[rows]), len(np.arange(n)[columns])
        sizes.append(shape[0] * shape[1])
        return np.broadcast_to(np.float32(1), shape)

    matrix = InfluenceMatrix((n, n), function)
    matrix.coverage_gains(np.arange(1000), np.zeros(n, np.float32))
    assert matrix.row_means()[0] == 1
    assert sum(sizes) == 1000 * n + n * n
    assert max(sizes) <= TILE


@pytest.mark.parametrize("bad", [20, -1, np.array([0, 20]), np.array([-1, 3]), np.array([0.5]), np.zeros((1, 1), int)])
def test_an_index_out_of_range_is_refused(bad):
    matrix = estimate(make_factors(0, 20, 20, 3))
    for call in (matrix.rows, matrix.columns, lambda i: matrix.coverage_gains(i, np.zeros(20, np.float32))):
        with pytest.raises(IndexError, match=r"out of range|selector"):
            call(bad)


@pytest.mark.parametrize("part", ["pool_side", "target_side", "output_weight"])
def test_a_non_finite_network_is_refused(part):
    factors = make_factors(0, 5, 5, 3)
    factors[part].flat[0] = np.nan
    with pytest.raises(ModelError, match="not all finite"):
        estimate(factors)


def test_shapes_that_do_not_match_are_refused():
    factors = make_factors(0, 5, 5, 3)
    factors["target_side"] = factors["target_side"][:, :2]
    with pytest.raises(ModelError, match=r"\(5, 3\) and \(5, 2\) do not fit 3"):
        estimate(factors)
    with pytest.raises(ConfigError, match="two dimensions, not 1"):
        InfluenceMatrix.from_array(np.zeros(3))
    with pytest.raises(ConfigError, match=r"returned \(5, 5\) instead of \(1, 5\)"):
        InfluenceMatrix((5, 5), lambda rows, columns: np.zeros((5, 5))).rows(0)
    with pytest.raises(ValueError, match="covered has the shape"):
        estimate(make_factors(0, 5, 5, 3)).coverage_gains(np.arange(2), np.zeros(6, np.float32))
    for k in (0, 6):
        with pytest.raises(ConfigError, match="between 1 and 5"):
            InfluenceMatrix.from_array(np.zeros((5, 5))).top_k(k, axis=0)
