"""LDS of per-sample gradients of some layers, and along a few directions of the targets, on the committed outcomes.

    python benchmarks/gradient_layers.py  # a quarter of an hour of two cores; the inner products are kept in --folder

Gradients are those after one epoch of a training like the ones to be predicted, divided by the root of Adam's second
moment. All figures follow from their inner products, layer by layer, without a projection.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import numpy as np
import torch

from functions import TRAINING
from known_truth import OUTCOMES, trained_samples
from nncift.evaluation.datamodels import TrainingOutcomes, linear_datamodeling_score
from nncift.models.hidden_states import layer_count
from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import Example, encode_examples, in_example_batches
from nncift.run.storage.files import read_array, write_array
from nncift.training.checkpoints import read_moments
from nncift.training.gradients import EPSILON, stream_gradients
from nncift.training.lora import adapted, adapter_layers, adapter_weights
from nncift.training.trainer import fine_tune

LAYERS: dict[str, list[int]] = {
    "all": [*range(30)],
    "last 16": [*range(14, 30)],
    "10, 15, 20": [10, 15, 20],
    "15, 20": [15, 20],
    "15 to 18": [15, 16, 17, 18],
    "15": [15],
    "10": [10],
    "20": [20],
    "first 8": [*range(8)],
    "last 8": [*range(22, 30)],
    "last 4": [*range(26, 30)],
    "last": [29],
}


def inner_products(model: LanguageModel, pool: list[Example], target: list[Example], folder: Path) -> np.ndarray:
    """Of all samples' gradients, pool before target, in each layer of the model, (layers, n, n)."""
    (point,) = fine_tune(model, pool, dataclasses.replace(TRAINING, epochs=1), folder / "warm-up", progress=True)
    examples = [*pool, *target]
    numbers = {id(example): number for number, example in enumerate(examples)}
    products = np.zeros((layer_count(model), len(examples), len(examples)))
    with adapted(model, point.folder):
        shapes = {name: (w.shape[0], w.shape[1]) for name, w in adapter_weights(model).items()}
        moments = read_moments(point.folder, shapes)
        gradients = {name: np.zeros((len(examples), o * i), np.float32) for name, (o, i) in shapes.items()}

        def work(batch: list[Example]) -> list[None]:
            rows = [numbers[id(example)] for example in batch]

            def consume(name: str, g: torch.Tensor, x: torch.Tensor) -> None:
                scaled = torch.bmm(g.transpose(1, 2), x) / (moments[name][1] + EPSILON).sqrt()
                gradients[name][rows] = scaled.flatten(1).numpy()

            stream_gradients(model, batch, adapter_layers(model), consume)
            return [None] * len(batch)

        in_example_batches(model, work, examples, batch_size=8)
    for name, rows in gradients.items():
        found = re.search(r"\.(\d+)\.", name)
        assert found is not None
        products[int(found[1])] += rows @ rows.T
    return products


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-gradient-layers"))
    folder = parser.parse_args().folder
    pool, target, _, families = trained_samples()
    outcomes = TrainingOutcomes.load(OUTCOMES)
    model = LanguageModel.load("embedded", device="cpu")
    examples = encode_examples(model, pool)
    path = folder / "inner-products.npy"
    if not path.exists():
        write_array(path, inner_products(model, examples, encode_examples(model, target), folder))
    products, n = read_array(path), len(examples)

    def lds(influence: np.ndarray) -> str:
        return f"{linear_datamodeling_score(influence, outcomes).value:.3f}"

    def cosines(of: np.ndarray) -> np.ndarray:
        lengths = np.sqrt(np.diag(of))
        return np.asarray((of / lengths / lengths[:, None])[:n, n:])

    print("| layers | LDS | exp(3 (cos - 1)) | mean of cosines per layer |\n|---|---|---|---|")
    for name, chosen in LAYERS.items():
        whole, mean = cosines(products[chosen].sum(0)), np.mean([cosines(products[k]) for k in chosen], axis=0)
        print(f"| {name} | {lds(whole)} | {lds(np.exp(3 * (whole - 1)))} | {lds(mean)} |", flush=True)
    print_directions(products.sum(0), np.sqrt([[example.scored] for example in examples]), families, outcomes)


def print_directions(whole: np.ndarray, tokens: np.ndarray, families: np.ndarray, outcomes: TrainingOutcomes) -> None:
    """LDS along directions, for each target and for the mean loss of each task.

    Args:
        whole: inner products of all samples' gradients, (n + m, n + m).
        tokens: roots of the pool samples' response tokens, (n, 1).
        families: the task of each target, (m,).
        outcomes: of the training.
    """
    n, lengths = len(tokens), np.sqrt(np.diag(whole))
    unit = whole[:, n:] / lengths[n:]  # <g_i, g_j> / |g_j|
    of_pool, among = unit[:n], unit[n:] / lengths[n:, None]
    names, counts = np.unique(families, return_counts=True)
    shares = (families[:, None] == names) / counts  # of each target in a task's mean
    before, after = (np.asarray(losses @ shares, np.float32) for losses in (outcomes.before, outcomes.after))
    of_tasks = dataclasses.replace(outcomes, target_ids=tuple(names), before=before, after=after)

    def show(kind: str, count: int, along: np.ndarray) -> None:
        scaled = (along * tokens, along / lengths[:n, None], along)
        each = [linear_datamodeling_score(influence, outcomes).value for influence in scaled]
        mean = [linear_datamodeling_score(influence @ shares, of_tasks).value for influence in scaled]
        print(f"| {kind} | {count} |", " | ".join(f"{value:.3f}" for value in each + mean), "|", flush=True)

    print(
        "\n| directions of | K | length by tokens | length known | no length | the same of the tasks' mean losses | | |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for kind, groups in (("each task", families), ("all tasks", np.zeros(len(families)))):
        for count in (1, 2, 4, 8, 10, 16, 32, len(families)):
            along = np.zeros_like(of_pool)
            for group in np.unique(groups):
                own = np.flatnonzero(groups == group)
                leading = np.linalg.eigh(among[np.ix_(own, own)])[1][:, ::-1][:, :count]
                along[:, own] = of_pool[:, own] @ leading @ leading.T
            show(kind, count, along)
    show("the mean of each task", len(names), of_pool @ shares @ (shares.T > 0))


if __name__ == "__main__":
    main()
