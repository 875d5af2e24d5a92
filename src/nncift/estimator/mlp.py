"""The network of the recipe "paper": NN-CIFT's MLP (arXiv 2502.09969, section 4.1) over both samples' features.

The first layer is linear in the concatenation, W [a; b] = W_a a + W_b b, so `estimate` projects every sample once and a
pair costs `hidden` add-max-multiply steps instead of 2 x width x hidden. `forward` is the reference for tests. Further
hidden layers, which the published network lacks, cost hidden^2 multiplications a pair each.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs
from nncift.matrix.matrix import InfluenceMatrix

_PROJECTION_ROWS = 65_536
_BLOCK = 1 << 22  # hidden values at a time: 16 MiB


class PaperNetwork(nn.Module):
    """Hidden ReLU layers over two feature vectors; mean squared error on influence scaled to [0, 1], Adam.

    Args:
        hidden: units of each hidden layer.
        depth: hidden layers.
        learning_rate: Adam's.
        epochs: passes over the labelled pairs.
        batch_size: pairs per step.
        pointwise: no effect: it always reads both samples.
        seed: of the initialization and the order of pairs.

    Attributes:
        losses_: mean training loss of each epoch, on the [0, 1] scale.
    """

    low: Tensor
    range: Tensor

    def __init__(
        self,
        *,
        hidden: int = 100,
        depth: int = 1,
        learning_rate: float = 1e-4,
        epochs: int = 20,
        batch_size: int = 64,
        pointwise: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.depth = depth
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.losses_: list[float] = []

    def _build(self, pool_width: int, target_width: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # `torch.manual_seed` would seed the GPUs too
            self.first = nn.Linear(pool_width + target_width, self.hidden)
            self.second = nn.Linear(self.hidden, 1)
            self.middle = nn.ModuleList(nn.Linear(self.hidden, self.hidden) for _ in range(self.depth - 1))
        self.pool_width, self.target_width = pool_width, target_width
        # Min-max scaling of the labels, inverted in `predict`.
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("range", torch.ones(()))

    def forward(self, pool_features: Tensor, target_features: Tensor) -> Tensor:
        """Scaled influence of n pairs: (n, pool_width), (n, target_width) -> (n,)."""
        hidden = torch.relu(self.first(torch.cat([pool_features, target_features], dim=1)))  # (n, hidden)
        return self._output(hidden)

    def _output(self, hidden: Tensor) -> Tensor:
        """From the first hidden layer on: (..., hidden) -> (...)."""
        for layer in self.middle:
            hidden = torch.relu(layer(hidden))
        return self.second(hidden).squeeze(-1)  # type: ignore[no-any-return]

    def fit(self, pool_features: Features, target_features: Features, pairs: LabelledPairs) -> None:
        """Train on labelled pairs; reads only their samples' features."""
        self._build(pool_features.shape[1], target_features.shape[1])
        low, high = float(pairs.influence.min()), float(pairs.influence.max())
        self.low.fill_(low)
        self.range.fill_(high - low if high > low else 1.0)
        pool_rows, pool_of = np.unique(pairs.pool_index, return_inverse=True)
        target_rows, target_of = np.unique(pairs.target_index, return_inverse=True)
        pool, target = _tensor(pool_features[pool_rows]), _tensor(target_features[target_rows])
        of_pool, of_target = torch.from_numpy(pool_of), torch.from_numpy(target_of)
        label = (torch.from_numpy(pairs.influence.copy()) - self.low) / self.range
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        order = torch.Generator().manual_seed(self.seed)
        self.losses_ = []
        for _ in range(self.epochs):
            total = 0.0
            for batch in torch.split(torch.randperm(len(label), generator=order), self.batch_size):
                loss = nn.functional.mse_loss(self(pool[of_pool[batch]], target[of_target[batch]]), label[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.item() * len(batch)
            self.losses_.append(total / len(label))

    @torch.no_grad()
    def predict(self, pool_features: np.ndarray, target_features: np.ndarray) -> np.ndarray:
        """Influence of n pairs: (n, width), (n, width) -> (n,) float32."""
        scaled = self(_tensor(pool_features), _tensor(target_features))
        return (scaled * self.range + self.low).numpy()  # type: ignore[no-any-return]

    @torch.no_grad()
    def estimate(self, pool_features: Any, target_features: Any, *, device: str | None = None) -> InfluenceMatrix:
        """Influence of all pairs, computed on access; stores (n_pool + n_target) x hidden floats.

        With several hidden layers on the CPU, whatever the device.
        """
        weight = self.first.weight.numpy()  # (hidden, pool_width + target_width)
        pool = _project(pool_features, weight[:, : self.pool_width]) + self.first.bias.numpy()
        target = _project(target_features, weight[:, self.pool_width :])
        if self.depth > 1:
            return InfluenceMatrix((len(pool), len(target)), partial(self._block, pool, target))
        scale = float(self.range)
        output_weight = np.ascontiguousarray(self.second.weight.numpy()[0] * scale, dtype=np.float32)
        output_bias = float(self.second.bias) * scale + float(self.low)
        return InfluenceMatrix.from_factors(
            pool, target, output_weight=output_weight, output_bias=output_bias, device=device
        )

    @torch.no_grad()
    def _block(self, pool: np.ndarray, target: np.ndarray, rows: Any, columns: Any) -> np.ndarray:
        """Influence of some pairs from both sides' projections, (n, hidden) each."""
        left, right = torch.from_numpy(pool[rows]), torch.from_numpy(target[columns])
        height = max(_BLOCK // max(right.numel(), 1), 1)
        parts = [self._output(torch.relu(part[:, None] + right)) for part in torch.split(left, height)]
        return (torch.cat(parts) * self.range + self.low).numpy()  # type: ignore[no-any-return]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON-able facts for `load`."""
        facts = {"pool_width": self.pool_width, "target_width": self.target_width}
        return {name: value.numpy() for name, value in self.state_dict().items()}, facts

    def load(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._build(facts["pool_width"], facts["target_width"])
        self.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _project(features: Any, weight: np.ndarray) -> np.ndarray:
    """Product features @ weight.T, (n, hidden) float32, without a second copy of the features."""
    projected = np.empty((len(features), len(weight)), dtype=np.float32)
    for start in range(0, len(features), _PROJECTION_ROWS):
        rows = slice(start, start + _PROJECTION_ROWS)
        np.matmul(features[rows], weight.T, out=projected[rows])
    return projected
