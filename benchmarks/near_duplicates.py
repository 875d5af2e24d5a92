"""How many near-duplicates does the search by centres miss, and what does it take? Synthetic embeddings of 384 numbers.

    python benchmarks/near_duplicates.py

One row in twenty is a noisy copy of another, with a cosine around the threshold. On some of the rows the search is also
made over all pairs. CPU seconds.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from nncift.data.cleaning.near_duplicates import NearDuplicates, find_near_duplicates

WIDTH, CLUSTERS, THRESHOLD = 384, 500, 0.95


def embeddings(n: int) -> np.ndarray:
    """Clustered samples and noisy copies of them, (n, WIDTH)."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, WIDTH), dtype=np.float32)
    x = centres[rng.integers(0, CLUSTERS, n)] + 0.9 * rng.standard_normal((n, WIDTH), dtype=np.float32)
    copied, copies = rng.choice(n, n // 20, replace=False), rng.choice(n, n // 20, replace=False)
    x[copies] = x[copied] + 0.25 * rng.standard_normal((n // 20, WIDTH), dtype=np.float32)
    return x


def timed(x: np.ndarray, exact: int) -> tuple[NearDuplicates, float]:
    """The near-duplicates, and the CPU seconds that they took."""
    since = time.process_time()
    found = find_near_duplicates(x, THRESHOLD, exact=exact)
    return found, time.process_time() - since


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--compared", type=int, default=40_000, help="rows on which all pairs are searched")
    options = parser.parse_args()
    x = embeddings(options.samples)
    found, seconds = timed(x, 0)
    print(f"{options.samples:,} rows by centres: {len(found.rows):,} near-duplicates, {seconds:.1f} s")
    some = x[: options.compared]
    (every, slow), (found, fast) = timed(some, len(some)), timed(some, 0)
    missed = len(np.setdiff1d(every.rows, found.rows))
    print(f"{len(some):,} rows, all pairs: {len(every.rows):,}, {slow:.1f} s; by centres {fast:.1f} s, {missed} missed")


if __name__ == "__main__":
    main()
