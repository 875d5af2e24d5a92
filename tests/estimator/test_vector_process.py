"""Influence as an inner product of vectors: the formula against its slow definition, towers, storage, held-out rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from builders import pairs_of, smooth_vectors
from nncift.errors import ModelError
from nncift.estimator.network import InfluenceNetwork
from nncift.estimator.pca import fit_projections
from nncift.estimator.vector_process import VectorProcess, _completed
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs

EVERY = slice(None)
ROWS, TARGETS = np.array([1, 4, 5, 9, 13]), np.array([0, 2, 3, 4, 5, 6, 8])


def fitted(labels: LabelledPairs | None = None) -> tuple[VectorProcess, Features, Features, np.ndarray, np.ndarray]:
    pool, target, influence, among = smooth_vectors()
    labels = pairs_of(influence, ROWS, TARGETS) if labels is None else labels
    projection, _ = fit_projections(pool, target, ROWS, TARGETS)
    process = VectorProcess.of(projection, pool, target, labels, pairs_of(among, TARGETS, TARGETS))
    assert process is not None
    return process, pool, target, influence, among


def covariance(process: VectorProcess, x: np.ndarray, y: np.ndarray) -> float:
    """The covariance of two samples' vectors, given their coordinates."""
    *weights, nugget = process.log_weights.exp().tolist()
    kernels = []
    for block in process.projection.slices:
        if block.stop - block.start == 1:
            kernels.append(np.exp(-((x[block] - y[block]) ** 2) / 2)[0])
    for block in process.projection.slices:
        if block.stop - block.start > 1:
            cosine = x[block] @ y[block] / np.linalg.norm(x[block]) / np.linalg.norm(y[block])
            kernels += [cosine, np.exp(5 * (cosine - 1)), np.exp(30 * (cosine - 1))]
    return float(np.dot(weights, [*kernels, 1.0]) + nugget * np.allclose(x, y))


def test_it_is_the_expected_inner_product_of_vectors_given_the_labelled_ones():
    process, pool, target, influence, among = fitted()
    x, y = (process.projection(side[EVERY]) for side in (pool, target))
    seen = np.concatenate([x[ROWS], y[TARGETS]])

    def grid(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([[covariance(process, u, v) for v in b] for u in a])

    weights = np.linalg.solve(grid(seen, seen) + 1e-6 * np.eye(len(seen)), grid(seen, x)).T
    among_seen = grid(y[TARGETS], y[TARGETS]) + 1e-6 * np.eye(len(TARGETS))
    of_targets = np.linalg.solve(among_seen, grid(y[TARGETS], y)).T
    measured = np.concatenate([influence[np.ix_(ROWS, TARGETS)], among[np.ix_(TARGETS, TARGETS)]]) / process.unit
    expected = grid(x, y) + weights @ (measured - grid(seen, y[TARGETS])) @ of_targets.T
    found = process.grid(process.units(pool[EVERY]), process.units(target[EVERY])).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(process.unit * found[np.ix_(ROWS, TARGETS)], influence[np.ix_(ROWS, TARGETS)], atol=1e-3)
    i, j = np.array([0, 4, 23]), np.array([1, 3, 9])
    pairs = process.pairs(process.units(pool[i]), process.units(target[j])).numpy()
    np.testing.assert_allclose(
        pairs, found[i, j], atol=1e-6
    )  # some processors round products of another size otherwise


def test_left_out_rows_are_predicted_as_by_a_process_without_them():
    process, pool, target, influence, _ = fitted()
    for number, row in enumerate(ROWS):
        kept = np.delete(np.arange(len(process.train)), number)
        without = VectorProcess(
            process.projection, process.train[kept], process.log_weights, process.measured[kept], process.unit
        )
        predicted = without.grid(without.units(pool[[row]]), without.units(target[TARGETS])).numpy()[0]
        expected = influence[row, TARGETS] - process.unit * predicted
        np.testing.assert_allclose(process.left_out(np.arange(len(ROWS)))[number], expected, atol=1e-4)
    parts, kept = np.array([1, 0, 1, 2, 0]), np.array([0, 2, 3, *range(5, len(process.train))])
    without = VectorProcess(
        process.projection, process.train[kept], process.log_weights, process.measured[kept], process.unit
    )
    predicted = without.grid(without.units(pool[ROWS[[1, 4]]]), without.units(target[TARGETS])).numpy()
    expected = influence[np.ix_(ROWS[[1, 4]], TARGETS)] - process.unit * predicted
    np.testing.assert_allclose(process.left_out(parts)[[1, 4]], expected, atol=1e-4)


def test_a_row_without_some_targets_is_completed_from_the_others():
    """A vector in the span of the targets' is known from its products with as many of these as there are dimensions."""
    rng = np.random.default_rng(2)
    vectors, own, expected = (torch.from_numpy(rng.standard_normal((n, 3))) for n in (7, 2, 2))
    exact, before = own @ vectors.T, expected @ vectors.T
    measured = exact.clone()
    measured[0, 4:] = torch.nan
    found = _completed(measured, before, vectors @ vectors.T)
    np.testing.assert_array_equal(found[1], exact[1])
    np.testing.assert_array_equal(found[0, :4], exact[0, :4])
    assert (found[0] - exact[0]).abs().max() < 0.1 * (before[0] - exact[0])[4:].abs().max()
    process, *_ = fitted(
        pairs_of(smooth_vectors()[2], ROWS, TARGETS).take(np.arange(3, 35))
    )  # three targets of the first row lack
    assert process.measured.isfinite().all()
    assert process.measured.shape == (12, 7)


def test_labels_on_both_sides_predict_new_rows_far_better_and_are_stored(tmp_path: Path):
    pool, target, influence, among = smooth_vectors()
    rows = ROWS[:2]
    labels, both = pairs_of(influence, rows, TARGETS), pairs_of(among, TARGETS, TARGETS)
    alone = InfluenceNetwork().fit(pool, target, labels)
    network = InfluenceNetwork().fit(pool, target, labels, among_targets=both)
    new = np.setdiff1d(np.arange(len(pool)), rows)
    estimated = {name: one.estimate(pool, target).block(EVERY, EVERY) for name, one in (("1", alone), ("2", network))}
    errors = {name: np.square(values - influence)[new].mean() for name, values in estimated.items()}
    assert errors["2"] < 0.6 * errors["1"]
    np.testing.assert_allclose(estimated["2"][rows][:, TARGETS], influence[np.ix_(rows, TARGETS)], atol=1e-2)
    i, j = np.divmod(np.arange(influence.size), len(target))
    np.testing.assert_allclose(network.predict(pool[i], target[j]), estimated["2"].ravel(), atol=1e-2)
    assert network.learned_from(target[TARGETS], target[TARGETS])[0].all()
    assert network.uncertainty(pool).shape == (len(pool),)

    network.save_pretrained(tmp_path / "network")
    again = InfluenceNetwork.from_pretrained(tmp_path / "network")
    np.testing.assert_array_equal(again.predict(pool[i], target[j]), network.predict(pool[i], target[j]))
    config = tmp_path / "network" / "config.json"
    config.write_text(config.read_text().replace('"vectors": true', '"vectors": true, "shared": false'))
    with pytest.raises(ModelError, match="no InfluenceNetwork of this version"):
        InfluenceNetwork.from_pretrained(tmp_path / "network")


def test_what_is_no_product_of_vectors_is_left_out():
    pool, target, influence, among = smooth_vectors()
    labels, both = pairs_of(influence, ROWS, TARGETS), pairs_of(among, TARGETS, TARGETS)
    i, j = labels.pool_index, labels.target_index
    expected = InfluenceNetwork().fit(pool, target, labels).predict(pool[i], target[j])
    negative = LabelledPairs(both.pool_index, both.target_index, -both.influence)
    for others in (negative, both.take(both.target_index != both.pool_index)):
        network = InfluenceNetwork().fit(pool, target, labels, among_targets=others)
        np.testing.assert_array_equal(network.predict(pool[i], target[j]), expected)
        assert str(network.both_sides).startswith("labels on both sides are not used: the targets' influence")
