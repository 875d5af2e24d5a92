"""Per-sample gradients and their projection beside a loop of one backward pass per sample, on P3, in one run.

The loop runs the model on one sample, with the logits of all positions, takes the backward pass of its loss, and
joins the adapter's gradients into one vector; a batch of vectors then goes through Adam's formula and a dense
projection with random signs, made block by block, since the whole matrix would not fit. Only `--share` of those
blocks are computed and their time is scaled up. Both sides take turns over the same samples, `--batch-size` of like
length at a time; nncift may cut such a batch further where that spares padding.

    python benchmarks/gradients.py --samples 32 --batch-size 16
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch

from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import Example, encode_examples
from nncift.run.folder.costs import peak_memory
from nncift.training.gradients import Adam, batched_features, stream_gradients
from nncift.training.lora import Lora, adapted, adapter_layers, adapter_weights
from nncift.training.random_projection import SignSketch
from samples import shuffled_samples

BLOCK = 2**13  # parameters whose signs are made at a time


def loop_gradients(model: LanguageModel, weights: dict[str, torch.Tensor], batch: list[Example]) -> torch.Tensor:
    """Gradients of each sample, (n, parameters), one forward and one backward pass for each."""
    vectors = []
    for example in batch:
        ids = torch.tensor([example.ids], device=model.device)
        labels = ids.clone()
        labels[:, : example.start] = -100
        model.model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        vectors.append(torch.cat([weight.grad.flatten() for weight in weights.values()]))
        for weight in weights.values():
            weight.grad = None
    return torch.stack(vectors)


def dense_projection(gradients: torch.Tensor, dimension: int, share: float) -> tuple[torch.Tensor, float]:
    """Adam's formula and a dense projection of vectors (n, parameters); seconds scaled from a share of the blocks."""
    n, parameters = gradients.shape
    first, second = torch.zeros(parameters, device=gradients.device), torch.full((parameters,), 1e-6).to(gradients)
    since = time.perf_counter()
    moved = (0.9 * first + 0.1 * gradients) / torch.sqrt(0.999 * second + 0.001 * gradients**2 + 1e-8)
    adam = time.perf_counter() - since
    since = time.perf_counter()
    features, rng = torch.zeros(n, dimension, device=gradients.device), np.random.default_rng(0)
    blocks = range(0, parameters, BLOCK)[: max(round(share * parameters / BLOCK), 1)]
    for start in blocks:
        part = moved[:, start : start + BLOCK]
        bits = np.unpackbits(np.frombuffer(rng.bytes(part.shape[1] * dimension // 8), np.uint8))
        signs = torch.from_numpy(bits).to(gradients.device).float().mul_(2).sub_(1).view(part.shape[1], dimension)
        features += part @ signs
    _wait(gradients.device)
    return features, adam + (time.perf_counter() - since) * parameters / (len(blocks) * BLOCK)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def like_batches(model: LanguageModel, examples: list[Example], batch_size: int) -> list[list[int]]:
    """The numbers of the examples in batches of like length, so that little is padded, the longest first."""
    lengths = [len(example.ids) - 1 for example in examples]
    scored = [len(example.ids) - example.start for example in examples]
    order = sorted(range(len(examples)), key=lambda k: -lengths[k])
    return model.batches(order, lengths, scored, batch_size)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--dimension", type=int, default=8192)
    parser.add_argument("--share", type=float, default=0.02, help="of the dense projection's blocks")
    parser.add_argument("--max-length", type=int, default=None)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default=None)
    options = parser.parse_args(arguments)

    data = shuffled_samples()
    rows = data.select(range(options.samples))
    rows = rows.remove_columns([c for c in rows.column_names if c not in ("prompt", "response")])
    rows = rows.add_column("id", [str(k) for k in range(len(rows))])
    model = LanguageModel.load(options.model, dtype=options.dtype, device=options.device, max_length=options.max_length)
    examples = sorted(encode_examples(model, rows), key=lambda example: -len(example.ids))
    seconds = dict.fromkeys(("loop", "dense", "gradients", "features"), 0.0)
    worst = 0.0
    with adapted(model, Lora(rank=options.rank, alpha=4 * options.rank)):
        layers, weights = adapter_layers(model), adapter_weights(model)
        for name, weight in weights.items():
            if ".lora_B." in name:  # a fresh one is zero
                torch.nn.init.normal_(weight, std=0.01, generator=torch.Generator(weight.device).manual_seed(1))
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        ends = np.cumsum([weight.numel() for weight in weights.values()])
        place = {name: slice(end - weights[name].numel(), end) for name, end in zip(weights, ends, strict=True)}
        sketch = SignSketch(shapes, options.dimension, device=model.device)
        moments = {name: (torch.zeros(shape), torch.full(shape, 1e-6)) for name, shape in shapes.items()}
        adam = Adam(moments, sketch.widths, device=model.device)

        def timed(what: str, work):
            _wait(model.device)
            since = time.perf_counter()
            found = work()
            _wait(model.device)
            seconds[what] += time.perf_counter() - since
            return found

        def gradients(batch: list[Example], keep: torch.Tensor | None = None) -> None:
            for part in like_batches(model, batch, options.batch_size):

                def consume(name: str, g: torch.Tensor, x: torch.Tensor, part: list[int] = part) -> None:
                    found = torch.bmm(g.transpose(1, 2), x)
                    if keep is not None:
                        keep[part, place[name]] = found.flatten(1)

                stream_gradients(model, [batch[k] for k in part], layers, consume)

        def features(batch: list[Example]) -> np.ndarray:
            return batched_features(model, batch, layers, sketch, adam.update, batch_size=options.batch_size)

        gradients(examples[-2:])  # warms up
        for start in range(0, len(examples), options.batch_size):
            batch = examples[start : start + options.batch_size]
            for weight in weights.values():
                weight.requires_grad_(True)
            vectors = timed("loop", lambda batch=batch: loop_gradients(model, weights, batch))
            for weight in weights.values():
                weight.requires_grad_(False)
            if start == 0:
                found = torch.empty_like(vectors)
                gradients(batch, found)
                worst = float(((found - vectors).norm(dim=1) / vectors.norm(dim=1)).max())
                del found
            seconds["dense"] += dense_projection(vectors, options.dimension, options.share)[1]
            del vectors
            timed("gradients", lambda batch=batch: gradients(batch))
            timed("features", lambda batch=batch: features(batch))

    tokens = sum(len(example.ids) for example in examples)
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else model.device.type
    parameters = sum(weight.numel() for weight in weights.values())
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}, {options.dtype}, {options.model}")
    print(f"{len(examples)} samples, {tokens:,} tokens, batches of {options.batch_size}")
    print(f"rank {options.rank}, {parameters:,} weights, projected to {options.dimension}")
    together = {"loop": seconds["loop"] + seconds["dense"], "nncift": seconds["features"]}
    for who, alone in (("loop", seconds["loop"]), ("nncift", seconds["gradients"])):
        print(
            f"{who:7} gradients {alone:8.1f} s, with Adam and projection {together[who]:8.1f} s,"
            f" {len(examples) / together[who]:7.3f} samples/s, {tokens / together[who]:7.0f} tokens/s"
        )
    print(
        f"ratio   gradients {seconds['loop'] / seconds['gradients']:8.2f}, with Adam and projection"
        f" {together['loop'] / together['nncift']:8.2f}"
    )
    print(f"largest relative difference of a gradient {worst:.1e}    peak memory {peak_memory() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
