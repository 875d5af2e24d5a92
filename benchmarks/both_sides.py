"""Labels on both sides: LDS and fidelity of estimates where labelled targets are measured as pool samples too.

    python benchmarks/both_sides.py                 # LESS at the checkpoints of the same training: the committed values
    python benchmarks/gradient_layers.py            # keeps the inner products of all samples after one epoch
    python benchmarks/both_sides.py --one-epoch     # of these

Both sides' gradients are divided by the root of Adam's second moment. A share of the pool's samples keep their exact
values, the rest are estimated, by the network fitted to these rows alone and with the targets' influence on each other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from fidelity import read_features
from fidelity_tasks import POOL_SHARES, grid, judged
from known_truth import OUTCOMES, trained_samples
from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.datamodels import TrainingOutcomes, linear_datamodeling_score
from nncift.labels.pairs import LabelledPairs
from nncift.models.language_model import LanguageModel
from nncift.run.storage.files import read_array
from objective_influences import less, less_among_targets

MEASURES = ("subset_sum_correlation_within_target", "recall_of_top_tenth_within_target", "r2")


def after_one_epoch(path: Path, n: int) -> tuple[np.ndarray, LabelledPairs]:
    """Cosines of all layers' gradients: of the pool on the targets, and among the targets."""
    products = read_array(path).sum(axis=0)
    lengths = np.sqrt(np.diag(products))
    cosines = products / lengths / lengths[:, None]
    every = np.arange(len(products) - n)
    return cosines[:n, n:], grid(cosines[n:, n:], every, every)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one-epoch", action="store_true", help="inner products of gradient_layers.py")
    parser.add_argument("--products", type=Path, default=Path("runs/benchmark-gradient-layers/inner-products.npy"))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-fidelity"))
    parser.add_argument("--features", default="sentence,lm", help="as of nncift select")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pool, target, _, _ = trained_samples()
    outcomes = TrainingOutcomes.load(OUTCOMES)
    model, every = LanguageModel.load("embedded"), np.arange(len(target))
    if options.one_epoch:
        influence, among_targets = after_one_epoch(options.products, len(pool))
    else:
        influence = less(model, pool, target, options.folder).on_target
        among_targets = less_among_targets(model, pool, target, options.folder)
    n, m = influence.shape
    place = options.folder / ("" if options.features == "sentence,lm" else options.features)
    features = read_features(pool, target, f"truth-{n}x{m}", place, model, options.features)
    print(f"exact: LDS {linear_datamodeling_score(influence, outcomes).value:.3f}")
    print("| rows | labels | LDS | correlation | top tenth | R2 |\n|---|---|---|---|---|---|")
    for share in POOL_SHARES:
        for name, among in (("rows alone", None), ("both sides", among_targets)):
            found = []
            for seed in range(options.seeds):
                rows = np.random.default_rng([seed, 5]).permutation(n)[: round(share * n)]
                network = InfluenceNetwork(seed=seed)
                network.fit(*features, grid(influence, rows, every), among_targets=among)
                estimated = network.estimate(*features).rows(slice(None)).astype(np.float64)
                measured = judged(influence, estimated, np.setdiff1d(np.arange(n), rows), every)
                estimated[rows] = influence[rows]
                score = linear_datamodeling_score(estimated, outcomes).value
                found.append([score, *(measured[one] for one in MEASURES)])
            means, deviations = np.mean(found, axis=0), np.std(found, axis=0)
            cells = (f"{mean:.3f} ({deviation:.3f})" for mean, deviation in zip(means, deviations, strict=True))
            print(f"| {round(share * n)} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
