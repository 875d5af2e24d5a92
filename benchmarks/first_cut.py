"""How long does a first cut take on a million samples, and how much memory, once their texts are embedded?

    python benchmarks/first_cut.py --samples 1000000

Synthetic clusters of vectors in float16, in memory; a tenth is kept: by 1,000 targets, then without any. CPU seconds,
and the peak memory of the process so far.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from nncift.data.cleaning.near_duplicates import unit
from nncift.features.static import SHARD, StaticVectors
from nncift.run.folder.costs import peak_memory
from nncift.selection.first_cut import Cut, most_similar, representative

WIDTH, CLUSTERS, TARGETS = 256, 200, 1000


def clusters(n: int, rng: np.random.Generator) -> StaticVectors:
    """Vectors around their mean."""
    centres = rng.standard_normal((CLUSTERS, WIDTH), dtype=np.float32)
    sizes = [min(SHARD, n - start) for start in range(0, n, SHARD)]
    noise = (rng.standard_normal((size, WIDTH), dtype=np.float32) for size in sizes)
    shards = [unit(centres[rng.integers(0, CLUSTERS, len(part))] + part).astype(np.float16) for part in noise]
    vectors = StaticVectors(shards)
    return vectors.around(vectors.mean)


def report(title: str, work: Callable[[], Cut]) -> None:
    """Run the work and print what it took."""
    since = time.process_time()
    found = work()
    print(f"{title}: {time.process_time() - since:.1f} CPU s, {len(found.rows):,} kept", end=", ")
    print(f"{peak_memory() / 2**30:.2f} GiB", flush=True)


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    vectors = clusters(options.samples, rng)
    targets = vectors[rng.choice(options.samples, TARGETS, replace=False)]
    most_similar(vectors[:100], targets[:3], 5)  # compiles
    report(f"by {TARGETS:,} targets", lambda: most_similar(vectors, targets, options.samples // 10))
    report("without a target", lambda: representative(vectors, options.samples // 10))


if __name__ == "__main__":
    main()
