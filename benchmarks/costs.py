"""What each built-in influence function costs: tokens and seconds per sample and per pair, on P3 samples.

Per sample is the cost of `prepare`, over pool samples and targets together (of a pointwise function: the whole cost,
over the pool samples); per pair is the cost of the call after that. The model is loaded and warmed up before.

    python benchmarks/costs.py --rows 24 --targets 12
"""

from __future__ import annotations

import argparse
import os
import time
from itertools import pairwise

import torch

from functions import make_function
from nncift.influence.base import InfluenceFunction
from nncift.influence.catalogue import BUILT_IN
from nncift.models.language_model import LanguageModel
from samples import shuffled_samples


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--targets", type=int, default=12)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--encoder", default="embedded")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--functions", nargs="*", default=list(BUILT_IN))
    options = parser.parse_args()

    data = shuffled_samples()
    pool = data.select(range(options.rows))
    target = data.select(range(options.rows, options.rows + options.targets))
    model = LanguageModel.load(options.model, device=options.device, dtype=options.dtype)
    tokens = sum(map(len, model.encode([f"{row['prompt']}\n{row['response']}" for row in pool])))
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {model.device.type}, {options.model}")
    print(f"{options.rows} x {options.targets} samples of P3, {tokens / options.rows:.0f} tokens each")
    print(f"{'':<26}{'per sample':>24}{'per pair':>24}")
    for name in options.functions:
        function = make_function(name, model, options.encoder)
        function.prepare(pool.select([0]), target.select([0]))
        function(pool.select([0]), target.select([0]))  # warm
        marks = [(time.perf_counter(), function_tokens(function))]
        function.prepare(pool, target)
        marks.append((time.perf_counter(), function_tokens(function)))
        function(pool, target)
        marks.append((time.perf_counter(), function_tokens(function)))
        (once, read), (block, more) = ((b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks))
        samples, pairs = options.rows + options.targets, options.rows * options.targets
        if function.traits.pointwise:
            once, read, block, more, samples = once + block, read + more, 0.0, 0, options.rows
        print(
            f"{name:<26}{read / samples:>10,.0f} tok {once / samples * 1e3:>7,.1f} ms"
            f"{more / pairs:>10,.0f} tok {block / pairs * 1e3:>7.3f} ms",
            flush=True,
        )


def function_tokens(function: InfluenceFunction) -> int:
    """LLM tokens of all passes so far."""
    return function.forward_tokens + function.backward_tokens


if __name__ == "__main__":
    main()
