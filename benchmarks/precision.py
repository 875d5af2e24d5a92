"""bfloat16 beside float32 on this CPU: seconds of one thread, and how far features and losses agree.

    python benchmarks/precision.py                       # features with the gradient sketch
    python benchmarks/precision.py --what training       # a LoRA epoch of LESS's warm-up, and of `nncift evaluate`

Both precisions take turns, and CPU seconds are counted, so that other work on the machine disturbs the ratio little.
What the values are worth: `benchmarks/influence.py judge --dtype bfloat16`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from known_truth import LONGEST, p3, short_samples
from nncift.features.gradient_sketch import GradientSketchFeatures
from nncift.features.language_model import SCALARS
from nncift.features.sources import SKETCH
from nncift.models.examples import encode_examples
from nncift.models.loading import multiplies_bfloat16
from nncift.models.spec import ModelSpec
from nncift.training.finetune import FineTuning
from nncift.training.finetune import fine_tune as tune
from nncift.training.trainer import Training, fine_tune

DTYPES = ("float32", "bfloat16")


def features(specs: dict[str, ModelSpec], rows: Dataset, repeats: int) -> None:
    """Samples per second, and the agreement of each block."""
    sources = {name: GradientSketchFeatures(spec) for name, spec in specs.items()}
    for source in sources.values():
        _ = source.sketch  # the whitening, once in a run
    found: dict[str, dict[str, np.ndarray]] = {}

    def read(name: str) -> None:
        found[name] = sources[name](rows)

    table("features", read, len(rows), repeats)
    one, other = (found[name] for name in DTYPES)
    for block in ("prompt states", "response states", SKETCH):
        left, right = (some[block] / np.linalg.norm(some[block], axis=1, keepdims=True) for some in (one, other))
        i, j = np.triu_indices(len(rows), 1)
        alike = np.corrcoef((left @ left.T)[i, j], (right @ right.T)[i, j])[0, 1]
        print(f"{block}: mean cosine {(left * right).sum(1).mean():.4f}, correlation of all pairs' cosines {alike:.4f}")
    losses = [some["scalars"][:, SCALARS.index("loss")] for some in (one, other)]
    difference = np.abs(losses[1] - losses[0])
    print(f"response loss: mean {losses[0].mean():.4f} and {losses[1].mean():.4f}", end=", ")
    print(f"difference {difference.mean():.4f}, at most {difference.max():.4f}", end="; ")
    print(f"correlation {np.corrcoef(*losses)[0, 1]:.5f}")


def training(specs: dict[str, ModelSpec], rows: Dataset, repeats: int) -> None:
    """Samples per second of one epoch."""
    for spec in specs.values():
        _ = spec.loaded

    def warm_up(name: str) -> None:
        model = specs[name].loaded
        with tempfile.TemporaryDirectory() as folder:
            fine_tune(model, encode_examples(model, rows), Training(epochs=1, batch_size=8), Path(folder))

    def evaluated(name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            tune(specs[name], rows, FineTuning(epochs=1), Path(folder) / "adapter")

    table("warm-up of less", warm_up, len(rows), repeats)
    table("training of evaluate", evaluated, len(rows), repeats)


def table(title: str, work: Callable[[str], None], samples: int, repeats: int) -> None:
    """Run the work in each precision in turn, and print the least CPU seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in DTYPES}
    for _ in range(repeats):
        for name in DTYPES:
            since = time.process_time()
            work(name)
            seconds[name].append(time.process_time() - since)
    plain, half = (min(seconds[name]) for name in DTYPES)
    rates = f"{samples / plain:.2f} and {samples / half:.2f} samples per CPU second"
    print(f"{title}: float32 {plain:.1f} s, bfloat16 {half:.1f} s: {rates}, {plain / half:.2f} times", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("features", "training"), default="features")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", default="embedded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"products of bfloat16 in this CPU: {'yes' if multiplies_bfloat16('cpu') else 'no'}")
    order = np.random.default_rng(5).permutation(short_samples(LONGEST))
    rows = p3()[0].select(np.sort(order[: options.rows]))
    specs = {name: ModelSpec(options.model, dtype=name, device="cpu") for name in DTYPES}
    {"features": features, "training": training}[options.what](specs, rows, options.repeats)


if __name__ == "__main__":
    main()
