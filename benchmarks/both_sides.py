"""Labels on both sides: LDS and fidelity of estimates where labelled targets are measured as pool samples too.

    python benchmarks/gradient_layers.py  # keeps all samples' inner products
    python benchmarks/both_sides.py

The influence is the cosine of all layers' gradients after one epoch of the trainings of the committed outcomes, both
sides divided by the root of Adam's second moment. A share of the pool's samples keep their exact values, the rest are
estimated, by the network fitted to these rows alone and with the targets' influence on each other.
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
from nncift.models.language_model import LanguageModel
from nncift.run.files import read_array

MEASURES = ("subset_sum_correlation_within_target", "recall_of_top_tenth_within_target", "r2")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=Path, default=Path("runs/benchmark-gradient-layers/inner-products.npy"))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-fidelity"))
    parser.add_argument("--features", default="sentence,lm", help="as of nncift select")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pool, target, _, _ = trained_samples()
    outcomes = TrainingOutcomes.load(OUTCOMES)
    products = read_array(options.products).sum(axis=0)
    lengths, n, m = np.sqrt(np.diag(products)), len(pool), len(target)
    cosines = products / lengths / lengths[:, None]
    influence, every = cosines[:n, n:], np.arange(m)
    model = LanguageModel.load("embedded")
    place = options.folder / ("" if options.features == "sentence,lm" else options.features)
    features = read_features(pool, target, f"truth-{n}x{m}", place, model, options.features)
    print(f"exact: LDS {linear_datamodeling_score(influence, outcomes).value:.3f}")
    print("| rows | labels | LDS | correlation | top tenth | R2 |\n|---|---|---|---|---|---|")
    for share in POOL_SHARES:
        for name, among in (("rows alone", None), ("both sides", grid(cosines[n:, n:], every, every))):
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
