"""Cost of estimation as the pool grows: from 10 thousand to a million samples, against 1,000 and 10,000 targets.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --pool 10000 100000 --targets 1000

A network fitted to 200 x 50 labels of random features (as wide as a sentence embedding and the states of SmolLM2)
computes the towers of the pool and then each sample's mean influence over all targets (exact, scoring no pair), its
mean clipped at 0 (on 1,024 targets, with a standard error), and, for comparison, the mean by scoring all pairs. Linear
cost has a constant column "per sample". The features are on disk, as in a run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from nncift.estimator.network import InfluenceNetwork
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs

WIDTHS = {"sentence": 384, "prompt states": 576, "response states": 576, "scalars": 6}
EVERY_PAIR = 2 * 10**9  # scored for comparison, at most


def features(n: int, folder: Path, seed: int) -> Features:
    """Random features, memory-mapped."""
    rng = np.random.default_rng(seed)
    blocks = {}
    for name, width in WIDTHS.items():
        path = folder / f"{name}-{n}-{seed}.npy"
        array = np.lib.format.open_memmap(path, "w+", np.float32, (n, width))
        for start in range(0, n, 1 << 14):
            rows = array[start : start + (1 << 14)]
            rows[:] = rng.standard_normal(rows.shape, dtype=np.float32)
        blocks[name] = np.load(path, mmap_mode="r")
    return Features(blocks)


def fitted(folder: Path) -> InfluenceNetwork:
    """A network fitted to 200 x 50 labels."""
    pool, target = features(200, folder, 1), features(50, folder, 2)
    i, j = np.divmod(np.arange(200 * 50), 50)
    values = np.random.default_rng(0).standard_normal(len(i)).astype(np.float32)
    return InfluenceNetwork().fit(pool, target, LabelledPairs(i.astype(np.int32), j.astype(np.int32), values))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, nargs="*", default=[10_000, 30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--targets", type=int, nargs="*", default=[1000, 10_000])
    options = parser.parse_args()
    print(
        "| pool | targets | towers, s | mean influence, s | clipped mean, s | per sample, us | all pairs, s | error |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        network = fitted(folder)
        for n in options.pool:
            pool = features(n, folder, 3)
            for m in options.targets:
                print(row(network, pool, features(m, folder, 4)), flush=True)
            for path in folder.glob(f"*-{n}-3.npy"):
                path.unlink()


def row(network: InfluenceNetwork, pool: Features, target: Features) -> str:
    """One line of the table."""
    times = [time.perf_counter()]
    matrix = network.estimate(pool, target)
    times.append(time.perf_counter())
    means = matrix.row_means()
    times.append(time.perf_counter())
    matrix.clipped_row_means()
    times.append(time.perf_counter())
    towers, mean, clipped = np.diff(times)
    each = 1e6 * (towers + mean + clipped) / len(pool)
    cells = [f"{len(pool):,}", f"{len(target):,}", f"{towers:.1f}", f"{mean:.3f}", f"{clipped:.2f}", f"{each:.0f}"]
    if len(pool) * len(target) > EVERY_PAIR:
        return "| " + " | ".join([*cells, "", ""]) + " |"
    since = time.perf_counter()
    sums, _ = matrix._row_statistics  # scores all pairs
    scored = time.perf_counter() - since
    error = np.abs(means - sums / len(target)).max()
    return "| " + " | ".join([*cells, f"{scored:.2f}", f"{error:.1e}"]) + " |"


if __name__ == "__main__":
    main()
