"""DELIFT as the package computes it versus the naive form, on P3 pairs, in one run.

The naive form encodes the full prompt (example, query, response) for each pair and computes the logits of the whole
vocabulary at all positions; batch size, threads and length-sorted batches are the same. Both are interleaved over the
same pairs, so that a slowdown of the machine affects both.

    python benchmarks/influence.py speed        # this, then benchmarks/gradients.py
    python benchmarks/delift.py --rows 32 --targets 64
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import numpy as np
import torch

from nncift.influence.delift import Delift
from nncift.models.language_model import LanguageModel
from nncift.models.text.prompts import PlainPrompts, PromptTemplate
from nncift.run.folder.costs import peak_memory
from samples import shuffled_samples


def naive_distances(model: LanguageModel, contexts: list[list[int]], responses: list[list[int]], batch_size: int):
    """DELIFT's distance of each response after its context; full sequences, full logits."""
    distances = np.empty(len(contexts))
    order = sorted(range(len(contexts)), key=lambda k: -len(contexts[k]) - len(responses[k]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        sequences = [contexts[k] + responses[k] for k in batch]
        longest = max(map(len, sequences))
        ids = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in sequences])
        mask = torch.tensor([[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences])
        with torch.inference_mode():
            logits = model.model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        for row, k in enumerate(batch):
            end = len(contexts[k]) + len(responses[k])
            probabilities = logits[row, len(contexts[k]) - 1 : end - 1].float().softmax(dim=-1)
            wanted = torch.tensor(responses[k], device=model.device)
            right = probabilities.gather(1, wanted[:, None])[:, 0].cpu().numpy().astype(np.float64)
            distances[k] = np.sqrt(np.mean(np.square(1 - right)))
        del logits
    return distances


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--targets", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default=None)
    parser.add_argument("--blocks", type=int, default=4, help="how often the two take turns")
    parser.add_argument("--longest", type=int, default=None, help="characters of a sample, at most; any unless given")
    options = parser.parse_args(arguments)

    data = shuffled_samples()
    if options.longest is not None:
        lengths = [len(p) + len(r) for p, r in zip(data["prompt"], data["response"], strict=True)]
        data = data.select([k for k, length in enumerate(lengths) if length <= options.longest])
    pool = data.select(range(options.rows))
    target = data.select(range(options.rows, options.rows + options.targets))
    model = LanguageModel.load(options.model, dtype=options.dtype, device=options.device)
    function = Delift(model, wording="plain", batch_size=options.batch_size)
    prompts = PlainPrompts(model, PromptTemplate())
    examples, targets = prompts.render(pool), prompts.render(target)
    responses = [sample.queries[0].response for sample in targets]
    function.prepare(pool, target)  # warms up; both use the zero-shot distances
    alone = np.array([*function._cache.values()])

    tokens = model.forward_tokens
    fast = slow = 0.0
    naive_tokens, worst = 0, 0.0
    for rows in np.array_split(np.arange(options.rows), min(options.blocks, options.rows)):
        since = time.perf_counter()
        influence = function(pool.select(rows), target)
        fast += time.perf_counter() - since
        contexts = [examples[i].example + sample.queries[0].after_example for i in rows for sample in targets]
        since = time.perf_counter()
        distances = naive_distances(model, contexts, responses * len(rows), options.batch_size)
        slow += time.perf_counter() - since
        naive_tokens += sum(map(len, contexts)) + len(rows) * sum(map(len, responses))
        worst = max(worst, np.abs(alone - distances.reshape(len(rows), -1) - influence).max())
        print(f"rows {rows[0]}-{rows[-1]}: naive {slow:.1f} s, nncift {fast:.1f} s so far", file=sys.stderr, flush=True)
    tokens = model.forward_tokens - tokens

    device = torch.cuda.get_device_name() if model.device.type == "cuda" else model.device.type
    pairs = options.rows * options.targets
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}, {options.dtype}, {options.model}")
    print(f"{options.rows} x {options.targets} = {pairs} pairs, batches of {options.batch_size}")
    print(
        f"naive   {slow:8.1f} s  {pairs / slow:8.2f} pairs/s  {naive_tokens:9,} tokens  {naive_tokens / slow:8,.0f}/s"
    )
    print(f"nncift  {fast:8.1f} s  {pairs / fast:8.2f} pairs/s  {tokens:9,} tokens  {tokens / fast:8,.0f}/s")
    print(
        f"ratio   {slow / fast:8.2f}    largest difference {worst:.1e}    peak memory {peak_memory() / 2**30:.1f} GiB"
    )


if __name__ == "__main__":
    main()
