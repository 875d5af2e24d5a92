"""Pairs scored per second, beside what the machine allows.

    python benchmarks/pair_scoring.py

From two towers of rank 128 (the default network at its widest: the fused kernel beside a matrix product) and at 100
hidden units (the paper's network: the fused kernel, a batched network in torch, the factored formula in numpy). The
limit is a loop of the kernel's operations on values that stay in registers. Seconds are CPU seconds divided by the
threads, so that other processes do not count; every number is the best of several rounds, in which the contestants take
turns. Ratios are what carries over to another machine.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1))

import numba
import numpy as np
import torch

from nncift.matrix.compiled import kernels
from nncift.matrix.matrix import InfluenceMatrix

WIDTH, UNITS, RANK = 384, 99, 128
SAMPLES, SOME = 2048, 32  # on either side where pairs are scored; rows that a slow contestant scores
STEPS = 32  # operations on a value between its load and its store


def best(rounds: int, **contestants: Callable[[], object]) -> dict[str, float]:
    """CPU seconds for each thread of the fastest call of each, after one call to warm up; they take turns."""
    seconds = dict.fromkeys(contestants, float("inf"))
    for number in range(rounds + 1):
        for name, call in contestants.items():
            since = time.process_time()
            call()
            if number:
                seconds[name] = min(seconds[name], (time.process_time() - since) / kernels.THREADS)
    return seconds


@numba.njit(nogil=True, fastmath={"contract"})
def multiply_add(values: np.ndarray, rounds: int) -> None:
    """A chain of multiply-adds on each value."""
    for _ in range(rounds):
        for i in range(len(values)):
            value = values[i]
            for _ in range(STEPS):
                value = value * np.float32(0.999) + np.float32(0.001)
            values[i] = value


@numba.njit(nogil=True)
def largest_add(values: np.ndarray, other: np.ndarray, rounds: int) -> None:
    """Sums of maxima; as in the kernel, a maximum does not wait for the sum."""
    for _ in range(rounds):
        for i in range(len(values)):
            value, number = values[i], other[i]
            for step in range(STEPS):
                bar = np.float32(step)
                value += number if number > bar else bar
            values[i] = value


def machine_limit() -> dict[str, float]:
    """Operations per second on all threads: fused multiply-adds, and pairs of a maximum and an addition."""
    threads, rounds, n = kernels.THREADS, 20_000, 512
    with ThreadPoolExecutor(threads) as pool:

        def run(function: Callable[..., None], arrays: int) -> None:
            work = [[np.zeros(n, dtype=np.float32) for _ in range(arrays)] for _ in range(threads)]
            list(pool.map(lambda arguments: function(*arguments, rounds), work))

        seconds = best(5, fma=lambda: run(multiply_add, 1), pair=lambda: run(largest_add, 2))
    return {name: threads * rounds * n * STEPS / spent for name, spent in seconds.items()}


def towers(n: int) -> np.ndarray:
    """Samples of length 1 in 200 clusters, block by block: float32 (n, RANK)."""
    rng = np.random.default_rng(0)
    centres, x = rng.standard_normal((200, RANK)), np.empty((n, RANK), dtype=np.float32)
    for first in range(0, n, 1 << 16):
        size = min(1 << 16, n - first)
        block = centres[rng.integers(0, 200, size)] + 0.6 * rng.standard_normal((size, RANK))
        x[first : first + size] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return x


def estimated(n: int) -> InfluenceMatrix:
    """Two towers that measure nearness."""
    x, bias = towers(n), np.zeros(n, dtype=np.float32)
    return InfluenceMatrix.from_towers(x, x, pool_bias=bias, target_bias=bias)


def show_rates(seconds: dict[str, float], limit: float, **labels: str) -> None:
    """Pairs per second of each, beside `limit`; those whose label ends in a star scored `SOME` rows alone."""
    pairs = {
        name: SAMPLES * (SOME if labels[name].endswith("*") else SAMPLES) / spent for name, spent in seconds.items()
    }
    for name, label in labels.items():
        print(
            f"  {label.rstrip(' *'):<38} {pairs[name] / 1e6:9.1f} M pairs/s   {pairs[name] / limit:6.1%} of the limit"
            f"   {pairs['fused'] / pairs[name]:7.1f} x slower than the first"
        )


def compare_towers(limit: float) -> None:
    """Pairs per second from towers, beside `limit`."""
    x, covered, everyone = towers(SAMPLES), np.full(SAMPLES, 0.5, dtype=np.float32), np.arange(SAMPLES)
    matrix, left, least = estimated(SAMPLES), torch.from_numpy(x), torch.from_numpy(covered)

    def torch_gains() -> torch.Tensor:
        return (left @ left.T - least).clamp_(min=0).sum(1, dtype=torch.float64)

    assert np.allclose(matrix.coverage_gains(everyone, covered), torch_gains().numpy(), rtol=1e-4, atol=1e-4)
    seconds = best(
        5,
        fused=lambda: matrix.coverage_gains(everyone, covered),
        block=lambda: matrix.rows(everyone),
        torch_gains=torch_gains,
        torch_product=lambda: left @ left.T,
    )
    print(f"\nscoring, two towers of rank {RANK}")
    show_rates(
        seconds,
        limit,
        fused="nncift, gains, nothing stored",
        torch_gains="torch, gains from the stored product",
        block="nncift, entries stored",
        torch_product="torch, matrix product",
    )


def compare_units(limit: float) -> None:
    """Pairs per second from the paper's network, beside `limit`."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.standard_normal((SAMPLES, WIDTH), dtype=np.float32))
    network = torch.nn.Sequential(torch.nn.Linear(2 * WIDTH, UNITS), torch.nn.ReLU(), torch.nn.Linear(UNITS, 1))
    first, second = network[0], network[2]
    with torch.no_grad():
        left = (features @ first.weight[:, :WIDTH].T + first.bias).numpy()
        right = (features @ first.weight[:, WIDTH:].T).numpy()
    weight = second.weight.detach().numpy()[0]
    bias = float(second.bias.detach())
    matrix = InfluenceMatrix.from_factors(left, right, output_weight=weight, output_bias=bias)
    covered, everyone = np.zeros(SAMPLES, dtype=np.float32), np.arange(SAMPLES)

    @torch.no_grad()
    def torch_batches() -> torch.Tensor:
        pairs = torch.cat([features[:SOME].repeat_interleave(SAMPLES, 0), features.repeat(SOME, 1)], dim=1)
        return network(pairs)

    def torch_factored() -> torch.Tensor:
        return (torch.from_numpy(left)[:SOME, None] + torch.from_numpy(right)).relu_() @ torch.from_numpy(weight) + bias

    def numpy_factored() -> np.ndarray:
        return np.stack([np.maximum(left[i] + right, 0) @ weight + bias for i in range(SOME)])

    assert np.allclose(matrix.rows(slice(0, SOME)).ravel(), torch_batches().numpy()[:, 0], atol=1e-5)
    seconds = best(
        5,
        fused=lambda: matrix.coverage_gains(everyone, covered),
        block=lambda: matrix.rows(everyone),
        torch_batches=torch_batches,
        torch_factored=torch_factored,
        numpy_factored=numpy_factored,
    )
    print(f"\nscoring, {UNITS} units, features {WIDTH} wide (first layer of the factored ones not counted)")
    show_rates(
        seconds,
        limit,
        fused="nncift, gains, nothing stored",
        block="nncift, entries stored",
        torch_factored="torch, factored *",
        numpy_factored="numpy, factored *",
        torch_batches="torch, concatenated pairs in batches *",
    )


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(kernels.THREADS)
    limits = machine_limit()
    most, most_towers = limits["pair"] / UNITS, limits["fma"] / (RANK + 1)
    print(f"{processor()}, {kernels.THREADS} threads; numba {numba.__version__}, torch {torch.__version__}")
    print(f"  fused multiply-adds      {limits['fma'] / 1e9:7.1f} G/s, so at most {most_towers / 1e6:,.0f} M pairs/s")
    print(f"  maxima with an addition  {limits['pair'] / 1e9:7.1f} G/s, so at most {most / 1e6:,.0f} M pairs/s")
    compare_towers(most_towers)
    compare_units(most)


if __name__ == "__main__":
    main()
