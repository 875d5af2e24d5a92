"""bfloat16 beside float32: seconds of one thread of the CPU, or of a GPU, and how far features and losses agree.

    python benchmarks/precision.py                       # features with the gradient sketch
    python benchmarks/precision.py --device cuda --rows 1000
    python benchmarks/precision.py --what training       # a LoRA epoch of LESS's warm-up, and of `nncift evaluate`
    python benchmarks/precision.py --what int8           # forward passes, also with int8 products (torch.ao, dynamic)

Both precisions take turns, and on a CPU its seconds are counted, so that other work on the machine disturbs the ratio
little.
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
from nncift.models.loading import multiplies_bfloat16
from nncift.models.spec import ModelSpec
from nncift.models.text.examples import encode_examples
from nncift.training.finetune import fine_tune as tune
from nncift.training.settings import FineTuning
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


def int8(specs: dict[str, ModelSpec], rows: Dataset, repeats: int) -> None:
    """Milliseconds a token of forward passes, and the agreement of states and losses with those in float32."""
    loaded = specs["float32"].load()
    encoded = [loaded.encode([f"{p}\n{r}"])[0][:90] for p, r in zip(rows["prompt"], rows["response"], strict=True)]
    length = min(map(len, encoded))
    ids = torch.tensor([tokens[:length] for tokens in encoded])
    models = {name: spec.load().model for name, spec in specs.items()}
    per_channel = torch.ao.quantization.per_channel_dynamic_qconfig
    linear = [name for name, module in loaded.model.named_modules() if isinstance(module, torch.nn.Linear)]
    some = dict.fromkeys((name for name in linear if not name.endswith(("down_proj", "lm_head"))), per_channel)
    quantised = {"int8": {torch.nn.Linear}, "int8 by channel": {torch.nn.Linear: per_channel}}
    quantised |= {"int8 by channel, all but outputs of the blocks and the model": some}
    for name, layers in quantised.items():
        models[name] = torch.ao.quantization.quantize_dynamic(loaded.model, layers, dtype=torch.qint8)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for _ in range(repeats):
        for name, model in models.items():
            since = time.process_time()
            with torch.inference_mode():
                out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
            seconds[name].append(time.process_time() - since)
            states = out.hidden_states[len(out.hidden_states) // 2].float().mean(dim=1)
            logits = out.logits[:, :-1].float().transpose(1, 2)
            losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:], reduction="none").mean(dim=1)
            found[name] = (states.numpy(), losses.numpy())
    i, j = np.triu_indices(len(ids), 1)

    def cosines(states: np.ndarray) -> np.ndarray:
        unit = states - states.mean(axis=0)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        return np.asarray((unit @ unit.T)[i, j])

    exact = found["float32"]
    print(f"{len(ids)} rows of {length} tokens, engine {torch.backends.quantized.engine}")
    for name, (states, losses) in found.items():
        alike = np.corrcoef(cosines(states), cosines(exact[0]))[0, 1]
        rate, difference = 1000 * min(seconds[name]) / ids.numel(), np.abs(losses - exact[1])
        print(f"{name}: {rate:.2f} ms a token; correlation of pairs' cosines {alike:.4f}", end="; ")
        print(f"loss {losses.mean():.3f}, difference {difference.mean():.3f}, at most {difference.max():.3f}")


def table(title: str, work: Callable[[str], None], samples: int, repeats: int) -> None:
    """Run the work in each precision in turn, and print the least seconds of each."""
    clock = time.perf_counter if torch.cuda.is_initialized() else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in DTYPES}
    for _ in range(repeats):
        for name in DTYPES:
            since = clock()
            work(name)
            seconds[name].append(clock() - since)
    plain, half = (min(seconds[name]) for name in DTYPES)
    rates = f"{samples / plain:.2f} and {samples / half:.2f} samples per second"
    print(f"{title}: float32 {plain:.1f} s, bfloat16 {half:.1f} s: {rates}, {plain / half:.2f} times", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("features", "training", "int8"), default="features")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.device == "cuda":
        torch.cuda.init()
        print(torch.cuda.get_device_name())
    else:
        print(f"products of bfloat16 in this CPU: {'yes' if multiplies_bfloat16('cpu') else 'no'}")
    order = np.random.default_rng(5).permutation(short_samples(LONGEST))
    rows = p3()[0].select(np.sort(order[: options.rows]))
    specs = {name: ModelSpec(options.model, dtype=name, device=options.device) for name in DTYPES}
    {"features": features, "training": training, "int8": int8}[options.what](specs, rows, options.repeats)


if __name__ == "__main__":
    main()
