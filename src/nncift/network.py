"""InfluenceNetwork: a tiny network that predicts the influence of one sample on another from their features.

NN-CIFT (arXiv 2502.09969, section 4.1): the two samples' sentence embeddings, concatenated, through one
hidden layer of 100 ReLU units to a number. The first layer is linear in the concatenation,
W [a; b] = W_a a + W_b b, so `estimate` projects every sample once, and a pair then costs `hidden`
add-max-multiply steps instead of 2 x width x hidden. `forward` is the plain form, which tests compare with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nncift.errors import ModelError
from nncift.features import Features
from nncift.matrix import InfluenceMatrix
from nncift.pairs import LabelledPairs

FeatureArray = np.ndarray | Features

_PROJECTION_ROWS = 65_536
_CARD = """---
library_name: nncift
tags: [data-selection, influence]
license: apache-2.0
---
An InfluenceNetwork of [nncift](https://arxiv.org/abs/2502.09969): it predicts how much one instruction-tuning
sample helps a language model on another from their features. `InfluenceNetwork.from_pretrained(...)` loads it;
config.json names the features it reads and the influence function it learned from.
"""


class InfluenceNetwork(nn.Module, ModelHubMixin):
    """Two-layer network over a pair of feature vectors.

    Args:
        recipe: "paper": mean squared error on influence scaled to [0, 1], Adam, and the values below.
        hidden: hidden units.
        learning_rate: Adam's.
        epochs: passes over the labelled pairs.
        batch_size: pairs per step.
        seed: of the initial weights and of the order of pairs.

    Attributes:
        description_: JSON-able facts that travel with the weights: the features it needs, the influence it
            learned; empty unless the caller fills it.
        losses_: mean training loss of each epoch, on the [0, 1] scale.
    """

    low: Tensor
    range: Tensor

    def __init__(
        self,
        recipe: Literal["paper"] = "paper",
        *,
        hidden: int = 100,
        learning_rate: float = 1e-4,
        epochs: int = 20,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.options = {
            "recipe": recipe,
            "hidden": hidden,
            "learning_rate": learning_rate,
            "epochs": epochs,
            "batch_size": batch_size,
            "seed": seed,
        }
        self.recipe = recipe
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.description_: dict[str, Any] = {}
        self.losses_: list[float] = []

    def _build(self, pool_width: int, target_width: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.first = nn.Linear(pool_width + target_width, self.hidden)
            self.second = nn.Linear(self.hidden, 1)
        self.pool_width, self.target_width = pool_width, target_width
        # Influence is learned on [0, 1]; these bring the output back to the influence function's own scale.
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("range", torch.ones(()))

    def forward(self, pool_features: Tensor, target_features: Tensor) -> Tensor:
        """Scaled influence of n pairs: (n, pool_width), (n, target_width) -> (n,), about 0 to 1."""
        hidden = torch.relu(self.first(torch.cat([pool_features, target_features], dim=1)))  # (n, hidden)
        return self.second(hidden).squeeze(1)  # type: ignore[no-any-return]

    def fit(self, pool_features: FeatureArray, target_features: FeatureArray, pairs: LabelledPairs) -> Self:
        """Learn from labelled pairs.

        Args:
            pool_features: (n_pool, pool_width) float32; only rows that occur in `pairs` are read.
            target_features: (n_target, target_width) float32.
            pairs: exact influence; indices into the two arrays.

        Raises:
            ModelError: there are no pairs.
        """
        if not len(pairs):
            raise ModelError("there is no labelled pair to learn from", "raise --labels")
        self._build(pool_features.shape[1], target_features.shape[1])
        low, high = float(pairs.influence.min()), float(pairs.influence.max())
        self.low.fill_(low)
        self.range.fill_(high - low if high > low else 1.0)
        pool_rows, pool_of = np.unique(pairs.pool_index, return_inverse=True)
        target_rows, target_of = np.unique(pairs.target_index, return_inverse=True)
        data = (
            _tensor(pool_features[pool_rows]),
            torch.from_numpy(pool_of),
            _tensor(target_features[target_rows]),
            torch.from_numpy(target_of),
            (torch.from_numpy(pairs.influence.copy()) - self.low) / self.range,
        )
        self._train(*data)
        return self

    def _train(self, pool: Tensor, pool_of: Tensor, target: Tensor, target_of: Tensor, label: Tensor) -> None:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        order = torch.Generator().manual_seed(self.seed)
        self.losses_ = []
        for _ in range(self.epochs):
            total = 0.0
            for batch in torch.split(torch.randperm(len(label), generator=order), self.batch_size):
                loss = nn.functional.mse_loss(self(pool[pool_of[batch]], target[target_of[batch]]), label[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.item() * len(batch)
            self.losses_.append(total / len(label))

    @torch.no_grad()
    def predict(self, pool_features: np.ndarray, target_features: np.ndarray) -> np.ndarray:
        """Influence of n pairs on the influence function's own scale: (n, width), (n, width) -> (n,) float32.

        Raises:
            ModelError: the network has not learned, or the features have another width than it learned with.
        """
        self._check_widths(pool_features, target_features)
        scaled = self(_tensor(pool_features), _tensor(target_features))
        return (scaled * self.range + self.low).numpy()  # type: ignore[no-any-return]

    @torch.no_grad()
    def estimate(
        self, pool_features: FeatureArray, target_features: FeatureArray, *, device: str | None = None
    ) -> InfluenceMatrix:
        """The influence of every pool sample on every target, computed where it is looked at.

        Args:
            pool_features: (n_pool, pool_width) float32, may be memory-mapped.
            target_features: (n_target, target_width) float32, may be memory-mapped.
            device: where pairs are scored, for example "cuda"; the CPU unless given.

        Returns:
            A matrix of shape (n_pool, n_target) that holds (n_pool + n_target) x hidden numbers.

        Raises:
            ModelError: the network has not learned, or the features have another width than it learned with.
        """
        self._check_widths(pool_features, target_features)
        weight = self.first.weight.numpy()  # (hidden, pool_width + target_width)
        pool = _project(pool_features, weight[:, : self.pool_width]) + self.first.bias.numpy()
        target = _project(target_features, weight[:, self.pool_width :])
        scale = float(self.range)
        output_weight = np.ascontiguousarray(self.second.weight.numpy()[0] * scale, dtype=np.float32)
        output_bias = float(self.second.bias) * scale + float(self.low)
        return InfluenceMatrix.from_factors(
            pool, target, output_weight=output_weight, output_bias=output_bias, device=device
        )

    def _check_widths(self, pool_features: FeatureArray, target_features: FeatureArray) -> None:
        if not hasattr(self, "first"):
            raise ModelError("this InfluenceNetwork has not learned yet", "call fit, or load one with from_pretrained")
        for side, features, width in (
            ("pool", pool_features, self.pool_width),
            ("target", target_features, self.target_width),
        ):
            if features.shape[1] != width:
                raise ModelError(
                    f"the {side} features are {features.shape[1]} wide, and the network learned with {width}",
                    f"it needs the features {_named(self.description_.get('features'))}",
                )

    def _save_pretrained(self, save_directory: Path) -> None:
        if not hasattr(self, "first"):
            raise ModelError("this InfluenceNetwork has not learned yet", "call fit before saving it")
        config = {
            **self.options,
            "pool_width": self.pool_width,
            "target_width": self.target_width,
            "description": self.description_,
        }
        (save_directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (save_directory / "README.md").write_text(_CARD, encoding="utf-8")
        (save_directory / "model.safetensors").write_bytes(save(self.state_dict()))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> InfluenceNetwork:
        """Called by `from_pretrained` with a folder or hub id; weights come from safetensors alone, never pickle."""
        folder = Path(model_id)
        download = {k: options[k] for k in ("revision", "cache_dir", "force_download", "token", "local_files_only")}
        paths: list[Path] = []
        for name in ("config.json", "model.safetensors"):
            if not folder.is_dir():
                paths.append(Path(hf_hub_download(model_id, name, **download)))
            elif (folder / name).exists():
                paths.append(folder / name)
            else:
                raise ModelError(f"{folder} holds no {name}", "is this a folder that save_pretrained wrote?")
        try:
            config = json.loads(paths[0].read_text(encoding="utf-8"))
            pool_width, target_width = config.pop("pool_width"), config.pop("target_width")
            description = config.pop("description")
            network = cls(**config)
            network._build(pool_width, target_width)
            network.load_state_dict(load_file(paths[1]))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{model_id} holds no InfluenceNetwork of this version ({error})") from error
        network.description_ = description
        return network


def _named(features: Mapping[str, str | None] | None) -> str:
    """The features of a description in a few words."""
    return ", ".join(str(source) for source in (features or {}).values() if source is not None) or "it learned with"


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _project(features: FeatureArray, weight: np.ndarray) -> np.ndarray:
    """Product features @ weight.T, (n, hidden) float32, without a second copy of the features."""
    projected = np.empty((len(features), len(weight)), dtype=np.float32)
    for start in range(0, len(features), _PROJECTION_ROWS):
        rows = slice(start, start + _PROJECTION_ROWS)
        np.matmul(features[rows], weight.T, out=projected[rows])
    return projected
