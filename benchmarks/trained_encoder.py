"""Does an encoder that is trained on exact influence predict it better than the network? Both sides new.

    python benchmarks/trained_encoder.py                # ours, and heads on frozen features: 10 minutes of a core
    python benchmarks/trained_encoder.py --encoders 1   # MiniLM too, trained with one seed

What is finished is kept in `--folder`, and a killed run goes on.

LESS on P3 (`exact/p3-less`, 240 x 160). A fifth of the pool samples and of the targets is held out, as in the task
"quadrants" of `fidelity.py`; 100 (60 x 40) or 300 (180 x 120) of the others are labelled. All methods see the same
labels, and are judged on the pairs of held-out samples, and by the linear datamodeling score (LDS) on the committed
outcomes, whose samples are never labelled.

MiniLM, or a head on frozen features, gives a vector of each sample, and influence is estimated by
exp(5 (cosine - 1)). The loss is listwise, for each target: the Kullback-Leibler divergence of the softmax over pool
samples from that of the standardized exact values, and 1 - Pearson correlation. Towers are shared by both sides, or
"separate": a head of its own for each, on top of MiniLM a linear one. Heads start as the cosine of the frozen
features; the number of steps is chosen on labelled samples that are held out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from encoder_training import Labelled, encoder_vectors, fit_head, similarity, train_encoder
from exact_values import FOLDER, ExactValues, p3_samples
from fidelity import interval, read_features
from fidelity_tasks import Row, Sides, grid, judged
from known_truth import OUTCOMES, trained_samples
from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.baselines import feature_similarities
from nncift.evaluation.datamodels import TrainingOutcomes, linear_datamodeling_score
from nncift.features.features import Features
from nncift.features.sources import SKETCH
from nncift.models.language_model import LanguageModel
from nncift.run.storage.files import read_json, read_tensors, write_json, write_tensors

FEATURES = "sentence,lm,gradient-sketch"
OURS = ("sentence", "prompt states", "response states", "scalars")  # what a run reads by default
FROZEN = ("sentence", "prompt states", "response states")
COMPONENTS, HIDDEN = 128, 256
NAMES = ("pool", "target", "outcomes pool", "outcomes target")  # of stored vectors
SIZES = {100: (60, 40), 300: (180, 120)}  # labelled samples: of the pool, and targets
SHOWN = {
    "subset_sum_correlation_within_target": "subset sum",
    "recall_of_top_tenth_within_target": "top tenth",
    "spearman_within_target": "Spearman",
    "lds": "LDS",
}

Predicted = tuple[np.ndarray, np.ndarray]
"""Estimates of all pairs of the samples with exact values, and of those of the outcomes."""


@dataclass(frozen=True)
class Problem:
    """What there is to learn from and to be judged on.

    Attributes:
        influence: (n_pool, n_target) exact values of P3.
        samples: pool and targets of P3, and those of the outcomes.
        features: of the same.
        outcomes: of trainings.
        apart: (n_pool,), (n_target,) bool, which samples of P3 are among those of the outcomes: they get no label.
    """

    influence: np.ndarray
    samples: tuple[tuple[Dataset, Dataset], tuple[Dataset, Dataset]]
    features: tuple[Sides, Sides]
    outcomes: TrainingOutcomes
    apart: tuple[np.ndarray, np.ndarray]

    def split(self, size: int, seed: int) -> tuple[Labelled, tuple[np.ndarray, np.ndarray]]:
        """The labels, and the held-out pool samples and targets, which are those of "quadrants"."""
        rng = np.random.default_rng([seed, 1])
        kept, new = [], []
        for side, count in zip(self.apart, SIZES[size], strict=True):
            order = rng.permutation(len(side))
            new.append(np.sort(order[: len(side) // 5]))
            rest = order[len(side) // 5 :]
            kept.append(rest[~side[rest]][:count])
        rows, columns = kept
        return Labelled(rows, columns, self.influence[np.ix_(rows, columns)]), (new[0], new[1])

    @cached_property
    def frozen(self) -> list[tuple[Tensor, Tensor]]:
        """Input of heads, of P3 and of the outcomes: unit vectors whose product is the mean of the blocks' cosines.

        Each block is standardized and rotated to its leading components over the samples of P3.
        """
        parts: list[list[list[Tensor]]] = [[[], []], [[], []]]
        for name in FROZEN:
            both = torch.from_numpy(np.concatenate([side.blocks[name] for side in self.features[0]]))
            mean, deviation = both.mean(0), both.std(0) + 1e-6
            rotation = torch.linalg.svd((both - mean) / deviation, full_matrices=False)[2][:COMPONENTS].T
            for which, sides in enumerate(self.features):
                for k, side in enumerate(sides):
                    scaled = (torch.from_numpy(np.array(side.blocks[name])) - mean) / deviation
                    parts[which][k].append(normalize(scaled @ rotation, dim=1) / len(FROZEN) ** 0.5)
        return [(torch.cat(sides[0], 1), torch.cat(sides[1], 1)) for sides in parts]

    def judge(self, predicted: Predicted, new: tuple[np.ndarray, np.ndarray]) -> Row:
        """Measures on the held-out samples, and LDS."""
        lds = linear_datamodeling_score(predicted[1], self.outcomes).value
        return judged(self.influence, predicted[0], *new) | {"lds": lds}


Method = Callable[[Problem, Labelled, int], Predicted]


def read_problem(model: LanguageModel, folder: Path) -> Problem:
    """The problem, with the features of the language model; they are kept in the folder."""
    exact = ExactValues.load(FOLDER / "p3-less.safetensors")
    samples = (p3_samples(240, 160), trained_samples()[:2])
    if [tuple(map(str, side["id"])) for side in samples[0]] != [exact.pool_ids, exact.target_ids]:
        raise SystemExit("the samples are not those of p3-less")
    features = [
        read_features(*sides, name, folder / FEATURES, model, FEATURES)
        for sides, name in zip(samples, ("p3-240x160", "truth-120x80"), strict=True)
    ]
    ids = [{*map(str, side["id"])} for side in samples[1]]
    pool, target = (np.isin(side, [*(ids[0] | ids[1])]) for side in (exact.pool_ids, exact.target_ids))
    sides = (features[0], features[1])
    return Problem(exact.influence, samples, sides, TrainingOutcomes.load(OUTCOMES), (pool, target))


def ours(blocks: tuple[str, ...], problem: Problem, labels: Labelled, seed: int) -> Predicted:
    """InfluenceNetwork on some blocks of features."""
    read = [[Features({name: side.blocks[name] for name in blocks}) for side in sides] for sides in problem.features]
    network = InfluenceNetwork(seed=seed).fit(*read[0], grid(problem.influence, labels.rows, labels.columns))
    first, second = (np.array(network.estimate(*sides).rows(slice(None))) for sides in read)
    return first, second


def free(name: str, problem: Problem, labels: Labelled, seed: int) -> Predicted:
    """A similarity of the features, without labels."""
    first, second = (
        feature_similarities(*sides)[name](*np.divmod(np.arange(len(sides[0]) * len(sides[1])), len(sides[1]))).reshape(
            len(sides[0]), len(sides[1])
        )
        for sides in problem.features
    )
    return first, second


def head(hidden: int | None, separate: bool, problem: Problem, labels: Labelled, seed: int) -> Predicted:
    """A head on frozen features."""
    inputs = problem.frozen
    towers = fit_head(inputs[0], labels, hidden, separate=separate, seed=seed)
    with torch.no_grad():
        first, second = (similarity(u @ v.T).numpy() for u, v in (towers(*sides) for sides in inputs))
    return first, second


def encoder(separate: bool, steps: int, folder: Path, problem: Problem, labels: Labelled, seed: int) -> Predicted:
    """MiniLM trained on the labels; its vectors are kept in the folder."""
    name = f"{len(labels.rows)}x{len(labels.columns)}-{steps}-steps-{seed}{'-separate' * separate}"
    path = folder / f"{name}.safetensors"
    if not path.exists():
        place = folder / "trainer"
        trained = train_encoder(*problem.samples[0], labels, steps=steps, separate=separate, seed=seed, folder=place)
        vectors = [side for sides in problem.samples for side in encoder_vectors(trained, *sides)]
        write_tensors(path, dict(zip(NAMES, vectors, strict=True)))
    stored = read_tensors(path)
    u, v, x, y = (torch.from_numpy(stored[name]) for name in NAMES)
    return similarity(u @ v.T).numpy(), similarity(x @ y.T).numpy()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--encoders", type=int, default=0, help="seeds that MiniLM is trained with")
    parser.add_argument("--separate", type=int, default=0, help="likewise with separate towers")
    parser.add_argument("--steps", type=int, default=36, help="of MiniLM's training; 36 are 6 epochs of 180 samples")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-trained-encoder"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    problem = read_problem(LanguageModel.load(options.model), options.folder)
    encoders = options.folder / "encoders"
    methods: dict[str, tuple[int, Method]] = {
        "`gradient-sketch` of the features, no labels": (options.seeds, partial(free, "gradient sketch")),
        "states (`response-similarity`), no labels": (options.seeds, partial(free, "response similarity")),
        "cosine of MiniLM's embeddings, no labels": (options.seeds, partial(free, "cosine")),
        "ours": (options.seeds, partial(ours, OURS)),
        "ours, gradient sketch among the features": (options.seeds, partial(ours, (*OURS, SKETCH))),
        "linear head": (options.seeds, partial(head, None, False)),
        "linear head, separate towers": (options.seeds, partial(head, None, True)),
        "two-layer head": (options.seeds, partial(head, HIDDEN, False)),
        "two-layer head, separate towers": (options.seeds, partial(head, HIDDEN, True)),
        f"MiniLM, {options.steps} steps": (options.encoders, partial(encoder, False, options.steps, encoders)),
        f"MiniLM, {options.steps} steps, separate towers": (
            options.separate,
            partial(encoder, True, options.steps, encoders),
        ),
    }
    path = options.folder / "report.json"
    report: dict[str, dict[str, dict[str, list[float]]]] = read_json(path) if path.exists() else {}
    for size in options.sizes:
        found = report.setdefault(str(size), {})
        steps = [(seed, name) for seed in range(max(seeds for seeds, _ in methods.values())) for name in methods]
        for seed, name in tqdm(steps, desc=f"{size} labelled samples"):
            seeds, method = methods[name]
            row = found.setdefault(name, {key: [] for key in SHOWN})
            if len(row["lds"]) <= seed < seeds:
                labels, new = problem.split(size, seed)
                judged_row = problem.judge(method(problem, labels, seed), new)
                for key in SHOWN:
                    row[key].append(float(judged_row[key]))
                write_json(path, report)
        show(size, found)


def show(size: int, found: dict[str, dict[str, list[float]]]) -> None:
    """Print a table: mean and 95 % interval over the seeds, and those of the difference to ours with the same seeds."""
    print(f"\n| {size} labelled samples | seeds | " + " | ".join(SHOWN.values()) + " | subset sum, less ours |")
    print("|---" * (len(SHOWN) + 3) + "|")
    first = next(iter(SHOWN))
    for name, row in found.items():
        if not row[first]:
            continue
        less_ours = [a - b for a, b in zip(row[first], found["ours"][first], strict=False)]
        cells = [interval(values) for values in (*row.values(), less_ours)]
        shown = (f"{mean:.3f} ± {half:.3f}" if half == half else f"{mean:.3f}" for mean, half in cells)
        print(f"| {name} | {len(row[first])} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
