"""Training of an encoder on exact influence: the listwise loss, MiniLM by sentence-transformers, heads on features."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import Tensor, nn
from torch.nn.functional import gelu, kl_div, log_softmax, normalize, softmax

from nncift.models.encoder import embed_texts, load_encoder, sample_texts

Vectors = tuple[np.ndarray, np.ndarray]
"""Of the samples of both sides, (n, d) and (m, d) float32 of length 1."""

SHARPNESS = 5.0  # as of the label-free similarities

STEPS, EVERY, FOLDS = 100, 10, 3  # of heads
HEAD_RATE, GAIN_RATE = 5e-4, 1e-2
BATCH, ENCODER_RATE = 32, 1e-4
CHUNK = 8  # texts that are padded to one length


def standardized(values: Tensor) -> Tensor:
    """At mean 0 and deviation 1 over the pool samples of each target, (n, m)."""
    centered = values - values.mean(0)
    return centered / centered.square().mean(0).sqrt().clamp(min=1e-6)


def similarity(cosines: Tensor) -> Tensor:
    """Estimate of influence from the cosine of two vectors."""
    return torch.exp(SHARPNESS * (cosines - 1))


class ListwiseLoss(nn.Module):
    """For each target, over its pool samples: KL divergence of softmaxes, and 1 - Pearson correlation; their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(2.3))  # of cosines to logits

    def forward(self, cosines: Tensor, influence: Tensor) -> Tensor:
        """Of cosines and exact values, (n, m) each, to a scalar."""
        exact = standardized(influence)
        logits = log_softmax(self.log_scale.exp() * cosines, dim=0)
        divergence = kl_div(logits, softmax(exact, dim=0), reduction="sum") / exact.shape[1]
        return divergence + 1 - (standardized(similarity(cosines)) * exact).mean()


class Head(nn.Module):
    """D x + W x, or D x + B gelu(A x), at length 1, with a diagonal D; the identity at first."""

    def __init__(self, width: int, hidden: int | None) -> None:
        super().__init__()
        self.inner = None if hidden is None else nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden or width, width, bias=False)
        nn.init.zeros_(self.outer.weight)
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, width) to the same."""
        return normalize(self.gain * x + self.outer(x if self.inner is None else gelu(self.inner(x))), dim=1)


class Towers(nn.ModuleList):
    """A head for each side, or one for both."""

    def __init__(self, width: int, hidden: int | None, *, separate: bool) -> None:
        first = Head(width, hidden)
        super().__init__([first, copy.deepcopy(first) if separate else first])

    def forward(self, pool: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of both sides."""
        return self[0](pool), self[1](target)


@dataclass(frozen=True)
class Labelled:
    """Exact influence of labelled pool samples on labelled targets.

    Attributes:
        rows, columns: (n,) and (m,) indices of the samples.
        influence: (n, m) float32.
    """

    rows: np.ndarray
    columns: np.ndarray
    influence: np.ndarray

    def halves(self, fold: int, folds: int) -> tuple[Labelled, Labelled]:
        """Without every so manyth sample on both sides, and the pairs of these."""
        i, j = (np.arange(len(side)) % folds == fold for side in (self.rows, self.columns))
        pairs = ((~i, ~j), (i, j))
        first, second = (Labelled(self.rows[a], self.columns[b], self.influence[np.ix_(a, b)]) for a, b in pairs)
        return first, second


def fit_head(
    sides: tuple[Tensor, Tensor], labels: Labelled, hidden: int | None, *, separate: bool, seed: int
) -> Towers:
    """Towers trained for the number of steps that is best, on average, for labelled samples that are held out."""
    scores = np.zeros(STEPS // EVERY + 1)
    for fold in range(FOLDS):
        kept, tried = labels.halves(fold, FOLDS)
        _, found = _train(sides, kept, hidden, separate=separate, seed=seed, steps=STEPS, tried=tried)
        scores += found
    best = int(scores.argmax()) * EVERY
    towers, _ = _train(sides, labels, hidden, separate=separate, seed=seed, steps=best)
    return towers


def _train(
    sides: tuple[Tensor, Tensor],
    labels: Labelled,
    hidden: int | None,
    *,
    separate: bool,
    seed: int,
    steps: int,
    tried: Labelled | None = None,
) -> tuple[Towers, np.ndarray]:
    """Towers after so many full-batch steps, and the correlation within targets on other pairs on the way."""
    torch.manual_seed(seed)
    towers, loss = Towers(sides[0].shape[1], hidden, separate=separate), ListwiseLoss()
    gains, others = [], []
    for name, parameter in [*towers.named_parameters(), *loss.named_parameters()]:
        (gains if name.endswith(("gain", "log_scale")) else others).append(parameter)
    optimizer = torch.optim.Adam([{"params": others}, {"params": gains, "lr": GAIN_RATE}], lr=HEAD_RATE)
    pool, target = sides[0][labels.rows], sides[1][labels.columns]
    influence, scores = torch.from_numpy(labels.influence), []
    for step in range(steps + 1):
        if tried is not None and step % EVERY == 0:
            with torch.no_grad():
                u, v = towers(sides[0][tried.rows], sides[1][tried.columns])
                exact = standardized(torch.from_numpy(tried.influence))
                scores.append(float((standardized(similarity(u @ v.T)) * exact).mean()))
        if step < steps:
            optimizer.zero_grad()
            u, v = towers(pool, target)
            loss(u @ v.T, influence).backward()
            optimizer.step()
    return towers, np.array(scores)


class EncoderLoss(nn.Module):
    """The listwise loss among the samples of a batch.

    Args:
        model: the encoder.
        influence: (n, m) exact values of all labelled samples.
        separate: each side has a linear layer of its own.
    """

    def __init__(self, model: SentenceTransformer, influence: np.ndarray, *, separate: bool) -> None:
        super().__init__()
        self.model, self.listwise = model, ListwiseLoss()
        width = model.get_embedding_dimension()
        self.towers = Towers(width, None, separate=True) if separate else None
        self.influence = torch.from_numpy(influence)

    def forward(self, sentence_features: Sequence[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Of a batch's pool samples and targets, and their numbers (batch, 2)."""
        u, v = (self._embed(side) for side in sentence_features)
        if self.towers is not None:
            u, v = self.towers(u, v)
        return self.listwise(u @ v.T, self.influence[labels[:, 0]][:, labels[:, 1]])

    def _embed(self, side: dict[str, Tensor]) -> Tensor:
        """Embeddings (batch, d), texts of about the same length at a time: most are short."""
        lengths = side["attention_mask"].sum(1)
        order = lengths.argsort()
        parts = []
        for rows in order.split(CHUNK):
            longest = int(lengths[rows].max())
            inputs = {name: x[rows, :longest] for name, x in side.items() if isinstance(x, Tensor) and x.ndim == 2}
            parts.append(self.model(inputs)["sentence_embedding"])
        return torch.cat(parts)[order.argsort()]


def train_encoder(
    pool: Dataset, target: Dataset, labels: Labelled, *, steps: int, separate: bool, seed: int, folder: Path
) -> EncoderLoss:
    """MiniLM trained on the labelled samples, 32 of each side in a step."""
    torch.manual_seed(seed)
    encoder = load_encoder("embedded", device="cpu")
    loss = EncoderLoss(encoder, labels.influence, separate=separate)
    numbers = np.arange(len(labels.rows))
    paired = np.resize(np.random.default_rng(seed).permutation(len(labels.columns)), len(numbers))
    texts = [
        ["\n".join(sample) for sample in sample_texts(side.select(chosen))]
        for side, chosen in ((pool, labels.rows), (target, labels.columns[paired]))
    ]
    data = Dataset.from_dict({"pool": texts[0], "target": texts[1], "label": np.stack([numbers, paired], 1).tolist()})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=ENCODER_RATE,
        learning_rate_mapping={"log_scale|gain": GAIN_RATE},
        warmup_steps=0.1,
        seed=seed,
        use_cpu=True,
        bf16=True,  # half the time
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
    )
    SentenceTransformerTrainer(model=encoder, args=arguments, train_dataset=data, loss=loss).train()
    return loss


def encoder_vectors(trained: EncoderLoss, pool: Dataset, target: Dataset) -> Vectors:
    """Vectors of any samples."""
    texts = (["\n".join(sample) for sample in sample_texts(side)] for side in (pool, target))
    u, v = (torch.from_numpy(embed_texts(side, trained.model)) for side in texts)
    if trained.towers is not None:
        with torch.no_grad():
            u, v = trained.towers(u, v)
    return u.numpy(), v.numpy()
