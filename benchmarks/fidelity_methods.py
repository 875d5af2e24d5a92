"""Methods of the fidelity benchmark: each is fitted to labelled pairs and predicts all pairs.

All read the same features in blocks: the sentence embedding, and those of the language model
(`nncift.features.language_model`). None reads the values of the pairs that it is evaluated on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.baselines import feature_similarities, predict_baselines
from nncift.features.features import Features
from nncift.features.sources import SKETCH
from nncift.labels.pairs import LabelledPairs
from nncift.models.locate import network_folder

Method = Callable[[Features, Features, LabelledPairs, int], np.ndarray]
"""Features of the pool and of the targets, labels and a seed to predictions of all pairs, (n_pool, n_target)."""


_SOUND = {"learning_rate": 3e-3, "batch_size": 256}


def constant(pool: Features, target: Features, train: LabelledPairs, seed: int) -> np.ndarray:
    """The mean of the labels."""
    return np.full((len(pool), len(target)), train.influence.mean(dtype=np.float64))


def target_mean(pool: Features, target: Features, train: LabelledPairs, seed: int) -> np.ndarray:
    """Each target's mean label, the mean of all for targets without one."""
    prediction = constant(pool, target, train, seed)
    for j in np.unique(train.target_index):
        prediction[:, j] = train.influence[train.target_index == j].mean(dtype=np.float64)
    return prediction


def similarity(block: str) -> Method:
    """The centered cosine of a block, scaled to the labels by least squares."""

    def method(pool: Features, target: Features, train: LabelledPairs, seed: int) -> np.ndarray:
        a, b = (side.blocks[block].astype(np.float64) for side in (pool, target))
        mean = np.concatenate([a, b]).mean(axis=0)
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a - mean, b - mean))
        cosine = a @ b.T
        seen = cosine[train.pool_index, train.target_index]
        slope = max(np.cov(seen, train.influence)[0, 1] / seen.var(ddof=1), 1e-6)
        return train.influence.mean() + slope * (cosine - seen.mean())

    return method


def without_labels(name: str) -> Method:
    """A label-free similarity of the language model's features, as a run compares its network with it."""

    def method(pool: Features, target: Features, train: LabelledPairs, seed: int) -> np.ndarray:
        similarity = feature_similarities(pool, target)[name]
        i, j = np.divmod(np.arange(len(pool) * len(target)), len(target))
        every = LabelledPairs(i.astype(np.int32), j.astype(np.int32), np.zeros(len(i), np.float32))
        predicted = predict_baselines(len(target), train, every, {"": similarity})[""]
        return predicted.reshape(len(pool), len(target))

    return method


def boosted_trees(pool: Features, target: Features, train: LabelledPairs, seed: int) -> np.ndarray:
    """Gradient-boosted trees on leading components of all blocks, the scalars, and the blocks' centered cosines.

    The number of trees is chosen on pairs of a fifth of the labelled pool samples.
    """
    from sklearn.decomposition import PCA
    from sklearn.ensemble import HistGradientBoostingRegressor

    n, cosines, sides = len(pool), [], []
    for name in pool.blocks:
        both = np.concatenate([pool.blocks[name], target.blocks[name]]).astype(np.float64)
        both = (both - both.mean(axis=0)) / (both.std(axis=0) + 1e-6)
        unit = both / np.linalg.norm(both, axis=1, keepdims=True)
        cosines.append(unit[:n] @ unit[n:].T)
        sides.append(PCA(min(16, *both.shape), random_state=0).fit_transform(both))
    samples = np.concatenate(sides, axis=1)

    def rows(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return np.concatenate([samples[i], samples[n + j], *(c[i, j][:, None] for c in cosines)], axis=1)

    rng = np.random.default_rng(seed)
    labelled = rng.permutation(np.unique(train.pool_index))
    aside = np.isin(train.pool_index, labelled[: max(len(labelled) // 5, 1)])
    x, y = rows(train.pool_index, train.target_index), train.influence
    settings = {"learning_rate": 0.05, "max_leaf_nodes": 15, "min_samples_leaf": 20, "l2_regularization": 1.0}
    settings |= {"max_features": 0.3, "random_state": seed}
    trees = 300
    if 0 < aside.sum() < len(aside):
        trial = HistGradientBoostingRegressor(max_iter=trees, early_stopping=False, **settings)
        trial.fit(x[~aside], y[~aside])
        errors = [np.square(p - y[aside]).mean() for p in trial.staged_predict(x[aside])]
        trees = int(np.argmin(errors)) + 1
    model = HistGradientBoostingRegressor(max_iter=trees, early_stopping=False, **settings).fit(x, y)
    i, j = np.divmod(np.arange(n * len(target)), len(target))
    return model.predict(rows(i, j)).reshape(n, -1)


def paper(pool: Features, target: Features, train: LabelledPairs, seed: int) -> np.ndarray:
    """NN-CIFT's network as published: sentence embeddings alone."""
    a, b = (np.asarray(side.blocks["sentence"]) for side in (pool, target))
    return InfluenceNetwork("paper", seed=seed).fit(a, b, train).estimate(a, b).rows(slice(None))


def paper_trained_well(pool: Features, target: Features, train: LabelledPairs, seed: int) -> np.ndarray:
    """The same network on all features, standardized, at thirty times the learning rate in larger steps, stopped early.

    The number of epochs is the best of a few on pairs of a fifth of the labelled pool samples.
    """
    a, b = (_standardized(side, pool, target) for side in (pool, target))
    rng = np.random.default_rng(seed)
    labelled = rng.permutation(np.unique(train.pool_index))
    aside = np.isin(train.pool_index, labelled[: max(len(labelled) // 5, 1)])
    epochs = 10
    if 0 < aside.sum() < len(aside):
        kept, tried = train.take(~aside), train.take(aside)
        errors = {}
        for number in (3, 10, 30):
            network = InfluenceNetwork("paper", seed=seed, epochs=number, **_SOUND).fit(a, b, kept)
            guess = network.predict(a[tried.pool_index], b[tried.target_index])
            errors[number] = float(np.square(guess - tried.influence).mean())
        epochs = min(errors, key=lambda number: errors[number])
    network = InfluenceNetwork("paper", seed=seed, epochs=epochs, **_SOUND).fit(a, b, train)
    return network.estimate(a, b).rows(slice(None))


def _standardized(side: Features, pool: Features, target: Features) -> np.ndarray:
    """All features at mean 0 and one deviation over both sides, rows of norm about 1, (n, d) float32."""
    both = np.concatenate([pool[:], target[:]]).astype(np.float64)
    scaled = (side[:] - both.mean(axis=0)) / (both.std(axis=0) + 1e-6)
    return (scaled / np.sqrt(both.shape[1])).astype(np.float32)


def ours(pool: Features, target: Features, train: LabelledPairs, seed: int) -> np.ndarray:
    """The default InfluenceNetwork."""
    return learned(pool, target, train, seed).estimate(pool, target).rows(slice(None))


def ours_sentence(pool: Features, target: Features, train: LabelledPairs, seed: int) -> np.ndarray:
    """The same from sentence embeddings alone."""
    return ours(*(Features({"sentence": side.blocks["sentence"]}) for side in (pool, target)), train, seed)


def ours_started(pool: Features, target: Features, train: LabelledPairs, seed: int) -> np.ndarray:
    """Ours with the bundled network as prior (fitted to other samples of P3)."""
    prior = InfluenceNetwork.from_pretrained(network_folder("pretrained"))
    return InfluenceNetwork(seed=seed).fit(pool, target, train, prior=prior).estimate(pool, target).rows(slice(None))


def learned(pool: Features, target: Features, train: LabelledPairs, seed: int) -> InfluenceNetwork:
    """The default InfluenceNetwork."""
    return InfluenceNetwork(seed=seed, pointwise=len(target) == 1).fit(pool, target, train)


METHODS: dict[str, Method] = {
    "constant": constant,
    "target mean": target_mean,
    "cosine": similarity("sentence"),
    "response similarity": similarity("response states"),
    "response similarity, exponential": without_labels("response similarity"),
    SKETCH: without_labels(SKETCH),
    "paper": paper,
    "paper, trained well": paper_trained_well,
    "ours": ours,
    "ours, sentence embeddings alone": ours_sentence,
    "ours, from the pretrained network": ours_started,
    "boosted trees": boosted_trees,
}
