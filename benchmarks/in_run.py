"""LoRA fine-tuning with and without the inner products of in-run data Shapley, on P3, in one run.

Both train the same samples in the same steps, from the same adapter, and end with the same weights, which is checked.
They take turns, `--rounds` times, in alternating order. A step has half as many targets as samples unless
`--target-batch` is given; the targets are other samples of P3, in `--groups` groups. The seconds are those of
whole trainings, the checkpoint at the end included: wall time, and processor time, which is the fairer one on a CPU
that other processes share.

    python benchmarks/in_run.py --samples 32 --rounds 1
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import Example, encode_examples
from nncift.run.folder.costs import peak_memory
from nncift.training.gradient_products import InnerProducts
from nncift.training.lora import Lora
from nncift.training.trainer import Training, fine_tune, samples_per_step, steps_per_epoch
from samples import shuffled_samples


def run(model: LanguageModel, examples: list[Example], training: Training, callback: InnerProducts | None):
    """Seconds of a training by the clock and of the processor, tokens through the model, and the adapter's bytes."""
    before = model.forward_tokens
    with tempfile.TemporaryDirectory() as folder:
        since = np.array([time.perf_counter(), time.process_time()])
        (point,) = fine_tune(model, examples, training, Path(folder), callback=callback)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = np.array([time.perf_counter(), time.process_time()]) - since
        weights = (point.folder / "adapter_model.safetensors").read_bytes()
    return seconds, model.forward_tokens - before, weights


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--targets", type=int, default=32)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128, help="fewer where an epoch would have less than 4 steps")
    parser.add_argument("--target-batch", type=int, default=None)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=None)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default=None)
    options = parser.parse_args()

    rows = shuffled_samples().select(range(options.samples + options.targets)).select_columns(["prompt", "response"])
    rows = rows.add_column("id", [str(k) for k in range(len(rows))])
    model = LanguageModel.load(options.model, dtype=options.dtype, device=options.device, max_length=options.max_length)
    both = encode_examples(model, rows)
    examples, targets = both[: options.samples], both[options.samples :]
    lora = Lora(rank=options.rank, alpha=4 * options.rank, dropout=0.0)
    training = Training(lora=lora, fraction=1.0, epochs=1, batch_size=options.batch_size, min_steps_per_epoch=4)
    each = samples_per_step(len(examples), training)
    size = options.target_batch or max(each // 2, options.groups)

    def callback() -> InnerProducts:
        groups = [k % options.groups for k in range(len(targets))]
        steps = steps_per_epoch(len(examples), training)
        return InnerProducts(len(examples), targets, groups, size=size, steps=steps, preconditioned=True)

    run(model, examples[:2], training, None)  # warms up
    seconds, tokens, weights = {"plain": np.zeros(2), "in-run": np.zeros(2)}, {}, {}
    for number in range(options.rounds):
        for what in ("plain", "in-run") if number % 2 == 0 else ("in-run", "plain"):
            taken, tokens[what], weights[what] = run(
                model, examples, training, callback() if what == "in-run" else None
            )
            seconds[what] += taken / options.rounds

    device = torch.cuda.get_device_name() if model.device.type == "cuda" else model.device.type
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}, {options.dtype}, {options.model}")
    print(f"rank {options.rank}, {len(examples)} samples, {each} a step with {size} of {len(targets)} targets")
    for what, (clock, processor) in seconds.items():
        print(
            f"{what:7} {clock:7.1f} s, {processor:7.1f} s of processor   {tokens[what]:8,} tokens"
            f" {tokens[what] / clock:7.0f} tokens/s {len(examples) / clock:7.2f} samples/s"
        )
    clock, processor = seconds["in-run"] / seconds["plain"]
    print(f"ratio   {clock:7.2f}    {processor:7.2f} of processor   {tokens['in-run'] / tokens['plain']:.2f} of tokens")
    print(f"same weights: {weights['plain'] == weights['in-run']}    peak memory {peak_memory() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
