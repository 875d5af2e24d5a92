"""Inner products of every training sample's gradient with the targets', computed during the training.

Before a step, one forward and one backward pass of a few targets give their gradient G (out, in) at each of the
adapter's layers, at the step's initial weights. The step's own backward pass then gives, layer by layer and sample by
sample, the gradient g of the layer's output and its input x, and

    <g_n^T x_n, G> = sum over positions t of <g[n, t], G x[n, t]>,

one matrix product as small as the adapter (the "ghost dot-product"): no sample has a backward pass of its own, and no
per-sample gradient is materialized. The extra cost is that of the targets, and a matrix product for each of their
groups. Samples' gradients are those of the training pass, with its dropout; targets' are computed without dropout.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
import torch

from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import Example
from nncift.run.storage.files import fingerprint
from nncift.training.gradients import BETAS, EPSILON, stream_gradients, watched
from nncift.training.lora import adapter_layers, adapter_weights
from nncift.training.trainer import PASS, Step, TrainingCallback

SCORES = "scores"


def draw_targets(groups: Sequence[int], size: int, steps: int, seed: int) -> list[Counter[int]]:
    """For each step the counts of its targets' numbers, `size` in all, drawn from `groups`, the group of each target.

    The groups take turns, each in random order without replacement, reshuffled when used up.
    """
    turns = cycle([_endless(np.flatnonzero(np.equal(groups, group)), seed, 2, group) for group in sorted(set(groups))])
    return [Counter(next(next(turns)) for _ in range(size)) for _ in range(steps)]


def _endless(numbers: np.ndarray, *seed: int) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(numbers).tolist()


class InnerProducts(TrainingCallback):
    """A `TrainingCallback` that sums learning rate x <gradient of a sample, gradient of the targets> over the steps.

    A group's gradient is the sum over its drawn targets, each weighted by groups / size: their mean where
    a step draws equally many of each group, else their mean on average over the steps.

    Args:
        n: training samples.
        targets: the target examples.
        groups: the group of each of them, 0, 1, ... without a gap.
        size: targets of each step.
        steps: of the whole training.
        preconditioned: divide the targets' gradient by the root of Adam's second moment.
        seed: of the drawn targets.
        pass_size: targets that go through the model together.
    """

    def __init__(
        self,
        n: int,
        targets: Sequence[Example],
        groups: Sequence[int],
        *,
        size: int,
        steps: int,
        preconditioned: bool,
        seed: int = 0,
        pass_size: int = PASS,
    ) -> None:
        self.targets, self.groups, self.preconditioned, self.pass_size = targets, groups, preconditioned, pass_size
        self.drawn = draw_targets(groups, size, steps, seed)
        self.weight = len(set(groups)) / size
        self.identity = fingerprint([target.key for target in targets], list(groups), size, preconditioned)
        self._scores = np.zeros((n, len(set(groups))))
        self._layers: dict[str, torch.nn.Module] = {}
        self._gradients: dict[str, dict[int, torch.Tensor]] = {}  # layer to group to the targets' gradient (out, in)
        self._factor = 0.0  # learning rate x batch size, since the loss of the pass is divided by the batch size

    def before_step(self, model: LanguageModel, step: Step) -> None:
        """Compute the gradients of the step's targets."""
        self._layers = adapter_layers(model)
        self._factor = step.rate * step.samples
        self._gradients = {name: {} for name in self._layers}
        counts = self.drawn[step.number]
        drawn = sorted(counts, key=lambda k: len(self.targets[k].ids))
        with _eval_mode(model):
            for start in range(0, len(drawn), self.pass_size):
                self._accumulate(model, drawn[start : start + self.pass_size], counts)
        if self.preconditioned:
            for name, gradients in self._gradients.items():
                for gradient in gradients.values():
                    _precondition(gradient, step.second_moments.get(name), step.number + 1)

    def _accumulate(self, model: LanguageModel, numbers: Sequence[int], counts: Counter[int]) -> None:
        """Add some targets' gradients to their groups'."""
        groups = np.array([self.groups[k] for k in numbers])
        weights = torch.tensor([self.weight * counts[k] for k in numbers], device=model.device)

        def consume(name: str, g: torch.Tensor, x: torch.Tensor) -> None:
            g, x = g.float() * weights[:, None, None], x.float()
            for group in np.unique(groups).tolist():
                rows = np.flatnonzero(groups == group)
                gradient = g[rows].flatten(0, 1).T @ x[rows].flatten(0, 1)
                self._gradients[name][group] = self._gradients[name].get(group, 0) + gradient

        stream_gradients(model, [self.targets[k] for k in numbers], self._layers, consume)

    @contextlib.contextmanager
    def during_pass(self, numbers: Sequence[int]) -> Iterator[None]:
        """Add the inner products of the backward pass inside the block to these samples' scores."""
        products: dict[int, torch.Tensor] = {}

        def consume(name: str, g: torch.Tensor, x: torch.Tensor) -> None:
            g, x = g.float(), x.float()
            for group, gradient in self._gradients[name].items():
                products[group] = products.get(group, 0) + inner_products(g, x, gradient)

        with watched(self._layers, len(numbers), consume):
            yield
        for group, product in products.items():
            self._scores[numbers, group] += self._factor * product.cpu().double().numpy()

    def after_epoch(self) -> dict[str, np.ndarray]:
        """The epoch's part of the scores, (n, groups) float64."""
        found = {SCORES: self._scores}
        self._scores = np.zeros_like(self._scores)
        return found


def inner_products(g: torch.Tensor, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """<g[k]^T x[k], gradient> for each sample k of n, (n,) float32.

    Args:
        g: gradients of a linear layer's output, (n, positions, out) float32.
        x: its inputs, (n, positions, in) float32.
        gradient: (out, in) float32.
    """
    narrow = gradient.shape[0] <= gradient.shape[1]  # the intermediate product is as wide as the adapter's rank
    left, right = (g, x @ gradient.T) if narrow else (g @ gradient, x)
    return (left * right).sum((1, 2))


def _precondition(gradient: torch.Tensor, second_moment: torch.Tensor | None, number: int) -> None:
    """In place, G -> G / (sqrt(v') + eps), v' being Adam's bias-corrected second moment after step `number` (from 1).

    G counts as that step's gradient, which bounds the quotient in the first steps.
    """
    squares = (1 - BETAS[1]) * gradient.square()
    if second_moment is not None:
        squares += BETAS[1] * second_moment
    gradient.div_(squares.div_(1 - BETAS[1] ** number).sqrt_().add_(EPSILON))


@contextlib.contextmanager
def _eval_mode(model: LanguageModel) -> Iterator[None]:
    """A model in training with the adapter frozen and dropout off inside the block, for `stream_gradients`."""
    weights = adapter_weights(model).values()
    model.model.eval()
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
        model.model.train()
