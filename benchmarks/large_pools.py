"""How long does it take to choose from a million samples and more without a target, and how much memory?

    python benchmarks/large_pools.py --samples 1000000 --budget 0.001

Synthetic clusters with vectors of 128 numbers, memory-mapped from a file that is written first. Graph cut, lazily and
by stochastic greedy; facility location in parts. Each is a process of its own, whose CPU seconds and peak memory are
shown: resident with the pages of the file, which the system may drop, and without them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.parts import of_targets
from nncift.matrix.selectors import row_slices
from nncift.selection.maximizers.table import maximize
from nncift.selection.objectives.table import ObjectiveOptions, make_objective

WIDTH, CLUSTERS, BLOCK = 128, 200, 1 << 16
CHOICES = {
    "graph cut": ("graph-cut", "lazy"),
    "graph cut, stochastic greedy": ("graph-cut", "stochastic"),
    "facility location in parts": ("facility-location", "partitioned"),
}


class Similarity(InfluenceMatrix):
    """Inner products of memory-mapped vectors, whose means are linear in their number."""

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__((len(vectors), len(vectors)), lambda i, j: vectors[i] @ vectors[j].T)
        self._vectors = vectors

    def row_means(self) -> np.ndarray:
        """Mean of each row, float32."""
        total = np.zeros(WIDTH)
        for part in row_slices(len(self._vectors), WIDTH):
            total += self._vectors[part].sum(axis=0, dtype=np.float64)
        mean, means = (total / len(self._vectors)).astype(np.float32), np.empty(len(self._vectors), np.float32)
        for part in row_slices(len(self._vectors), WIDTH):
            means[part] = self._vectors[part] @ mean
        return means


def write_vectors(path: Path, n: int) -> None:
    """Clustered samples of length 1, (n, WIDTH) float32, unless they are there."""
    if path.exists() and np.load(path, mmap_mode="r").shape == (n, WIDTH):
        return
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, WIDTH), dtype=np.float32)
    shares = rng.dirichlet(np.full(CLUSTERS, 0.5))  # some clusters are large
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (n, WIDTH))
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        x = centres[rng.choice(CLUSTERS, size, p=shares)] + 0.8 * rng.standard_normal((size, WIDTH), dtype=np.float32)
        vectors[start : start + size] = x / np.linalg.norm(x, axis=1, keepdims=True)
    vectors.flush()


def choose(path: Path, budget: int, name: str, maximizer: str, found: Any) -> None:
    """Choose once, in this process, and send what it took."""
    vectors = np.load(path, mmap_mode="r")
    if name == "graph-cut":
        matrix: InfluenceMatrix = Similarity(vectors)
    else:
        none = np.zeros(len(vectors), np.float32)
        matrix = InfluenceMatrix.from_towers(vectors, vectors, pool_bias=none, target_bias=none)

    def make(targets: np.ndarray | None = None) -> Any:
        part = matrix if targets is None else of_targets(matrix, targets)
        return make_objective(name, part, ObjectiveOptions(features=vectors, expected=budget))

    wall, cpu = time.perf_counter(), time.process_time()
    selection = maximize(make, budget, maximizer=maximizer, own_targets=True, certify=True)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert selection.certificate is not None
    found.put((selection.value, selection.certificate.percent, wall, cpu, _peak("VmHWM"), _peak("RssAnon")))


def _peak(field: str) -> float:
    """GiB of this process, from the system's table."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


def in_process(call: Callable[..., None], *arguments: Any) -> Any:
    """What a call sends from a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=call, args=(*arguments, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--budget", type=float, default=0.001)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-large-pools"))
    parser.add_argument("--only", nargs="*", default=[], choices=list(CHOICES))
    options = parser.parse_args()
    path, budget = options.folder / f"{options.samples}.npy", round(options.budget * options.samples)
    write_vectors(path, options.samples)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{budget:,} of {options.samples:,}, vectors of {WIDTH} numbers, {threads} threads")
    print("| choice | value | of the best possible | s | CPU s | peak GiB | at the end without the file |")
    print("|---|---|---|---|---|---|---|")
    for label in options.only or CHOICES:
        value, percent, wall, cpu, peak, own = in_process(choose, path, budget, *CHOICES[label])
        print(
            f"| {label} | {value:.6g} | {percent or '-'} | {wall:.0f} | {cpu:.0f} | {peak:.2f} | {own:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
