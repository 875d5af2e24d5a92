"""InfluenceNetwork: a tiny network that predicts the influence of one sample on another from their features.

Two recipes make it. "process" is ours: two towers of radial units in closed form (`process_network`). "paper" is
NN-CIFT's: one hidden layer over the concatenated features (`paper_network`). Both are cheap for the reason that
matters: the features of a sample are worked through once, and a pair costs about a hundred multiplications.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from huggingface_hub import ModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from nncift.errors import ConfigError, ModelError
from nncift.estimator.gaussian_process import ProcessNetwork
from nncift.estimator.mlp import PaperNetwork
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.matrix.matrix import InfluenceMatrix

FeatureArray = np.ndarray | Features

RECIPES: dict[str, type[PaperNetwork] | type[ProcessNetwork]] = {"process": ProcessNetwork, "paper": PaperNetwork}
_CARD = """---
library_name: nncift
tags: [data-selection, influence]
license: apache-2.0
---
An InfluenceNetwork of [nncift](https://arxiv.org/abs/2502.09969): it predicts how much one instruction-tuning
sample helps a language model on another from their features. `InfluenceNetwork.from_pretrained(...)` loads it;
config.json names the features it reads and the influence function it learned from.
"""


class InfluenceNetwork(ModelHubMixin):
    """Learns the influence of pool samples on targets from labelled pairs.

    Args:
        recipe: "process": standardised features in blocks, interactions of the two samples, weights in closed form;
            it knows what it does not know. "paper": NN-CIFT's network and training.
        pointwise: the influence is one score for each pool sample, whatever the target.
        seed: of all that is random.
        **options: the recipe's own: `hidden`, `learning_rate`, `epochs`, `batch_size` of "paper".

    Attributes:
        model: the `ProcessNetwork` or `PaperNetwork`.
        description_: JSON-able facts that travel with the weights: the features it needs, the influence it
            learned; empty unless the caller fills it.

    Raises:
        ConfigError: there is no such recipe, or it has no such option.
    """

    def __init__(
        self, recipe: Literal["process", "paper"] = "process", *, pointwise: bool = False, seed: int = 0, **options: Any
    ) -> None:
        if recipe not in RECIPES:
            raise ConfigError(f"there is no recipe {recipe!r}", f"choose from {', '.join(RECIPES)}")
        self.options = {"recipe": recipe, "pointwise": pointwise, "seed": seed, **options}
        try:
            self.model = RECIPES[recipe](pointwise=pointwise, seed=seed, **options)
        except TypeError as error:
            raise ConfigError(f"the recipe {recipe!r} has no such option: {error}") from error
        self.widths: tuple[int, int] | None = None
        self.description_: dict[str, Any] = {}

    def fit(
        self,
        pool_features: FeatureArray,
        target_features: FeatureArray,
        pairs: LabelledPairs,
        *,
        prior: InfluenceNetwork | None = None,
    ) -> Self:
        """Learn from labelled pairs.

        Args:
            pool_features: (n_pool, pool_width) float32.
            target_features: (n_target, target_width) float32.
            pairs: exact influence; indices into the two arrays.
            prior: a network that learned before from the same kind of features, of other data, and be it another
                influence: what it says is weighed by least squares on the labels, and what it leaves over is learned.

        Raises:
            ConfigError: the recipe "paper" takes no prior.
            ModelError: there are no pairs, or the prior needs other features.
        """
        if not len(pairs):
            raise ModelError("there is no labelled pair to learn from", "raise --labels")
        pool, target = Features.of(pool_features), Features.of(target_features)
        if prior is None:
            self.model.fit(pool, target, pairs)
        elif isinstance(self.model, ProcessNetwork):
            prior._check_widths(pool, target)
            self.model.fit(pool, target, pairs, prior=prior._process)
        else:
            raise ConfigError('the recipe "paper" takes no prior', 'take the recipe "process"')
        self.widths = pool.shape[1], target.shape[1]
        return self

    def predict(self, pool_features: np.ndarray, target_features: np.ndarray) -> np.ndarray:
        """Influence of n pairs on the influence function's own scale: (n, width), (n, width) -> (n,) float32.

        Raises:
            ModelError: the network has not learned, or the features have another width than it learned with.
        """
        self._check_widths(pool_features, target_features)
        return self.model.predict(pool_features, target_features)

    def estimate(
        self,
        pool_features: FeatureArray,
        target_features: FeatureArray,
        *,
        probes: Probes | None = None,
        device: str | None = None,
    ) -> InfluenceMatrix:
        """The influence of every pool sample on every target, computed where it is looked at.

        Args:
            pool_features: (n_pool, pool_width) float32, may be memory-mapped.
            target_features: (n_target, target_width) float32, may be memory-mapped.
            probes: exact influence of every pool sample on a few targets, which completes the estimate.
            device: where pairs are scored, for example "cuda"; the CPU unless given.

        Returns:
            A matrix of shape (n_pool, n_target) that holds up to (n_pool + n_target) x 129 numbers, with probes and a
            prior more.

        Raises:
            ConfigError: the recipe "paper" knows no probes.
            ModelError: the network has not learned, or the features have another width than it learned with.
        """
        self._check_widths(pool_features, target_features)
        if probes is None:
            return self.model.estimate(pool_features, target_features, device=device)
        return self._process.estimate(pool_features, target_features, probes=probes, device=device)

    def uncertainty(self, pool_features: FeatureArray) -> np.ndarray:
        """How little is known of each pool sample's influence, in the influence's unit: (n_pool, width) -> (n_pool,).

        Raises:
            ConfigError: the recipe "paper" does not know.
            ModelError: the network has not learned.
        """
        return self._process.uncertainty(pool_features)

    def choose_probes(self, target_features: FeatureArray, count: int) -> np.ndarray:
        """The targets whose exact influence tells most of a new sample's influence on all, (count,) int64.

        Raises:
            ConfigError: the recipe "paper" does not know.
            ModelError: the network has not learned.
        """
        return self._process.choose_probes(target_features, count)

    def choose_samples(self, pool_features: FeatureArray, count: int) -> np.ndarray:
        """The pool samples whose labels would tell most of all of these, (count,) int64, best first.

        Raises:
            ConfigError: the recipe "paper" does not know.
            ModelError: the network has not learned.
        """
        return self._process.choose_samples(pool_features, count)

    def learned_from(self, pool_features: np.ndarray, target_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which samples it has learned from, told by their features: (n, width), (m, width) -> (n,), (m,) bool.

        Raises:
            ConfigError: the recipe "paper" does not know.
            ModelError: the network has not learned, or the features have another width than it learned with.
        """
        self._check_widths(pool_features, target_features)
        return self._process.learned_from(pool_features, target_features)

    @property
    def recipe(self) -> str:
        """Which recipe it is made by."""
        return str(self.options["recipe"])

    @property
    def _process(self) -> ProcessNetwork:
        """Our recipe's model, which knows what it does not know."""
        if isinstance(self.model, PaperNetwork):
            raise ConfigError('the recipe "paper" knows no uncertainty and no probes', 'take the recipe "process"')
        if self.widths is None:
            raise ModelError("this InfluenceNetwork has not learned yet", "call fit, or load one with from_pretrained")
        return self.model

    def _check_widths(self, pool_features: FeatureArray, target_features: FeatureArray) -> None:
        if self.widths is None:
            raise ModelError("this InfluenceNetwork has not learned yet", "call fit, or load one with from_pretrained")
        for side, features, width in (
            ("pool", pool_features, self.widths[0]),
            ("target", target_features, self.widths[1]),
        ):
            if features.shape[1] != width:
                raise ModelError(
                    f"the {side} features are {features.shape[1]} wide, and the network learned with {width}",
                    f"it needs the features {_named(self.description_.get('features'))}",
                )

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.widths is None:
            raise ModelError("this InfluenceNetwork has not learned yet", "call fit before saving it")
        arrays, facts = self.model.state()
        config = {**self.options, "widths": self.widths, "facts": facts, "description": self.description_}
        (save_directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (save_directory / "README.md").write_text(_CARD, encoding="utf-8")
        (save_directory / "model.safetensors").write_bytes(save(arrays))

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
            widths, facts, description = (config.pop(name) for name in ("widths", "facts", "description"))
            network = cls(**config)
            network.model.load(load_file(paths[1]), facts)
        except (KeyError, TypeError, ValueError, RuntimeError, ConfigError, SafetensorError) as error:
            raise ModelError(f"{model_id} holds no InfluenceNetwork of this version ({error})") from error
        network.widths, network.description_ = (widths[0], widths[1]), description
        return network


def _named(features: Mapping[str, str | None] | None) -> str:
    """The features of a description in a few words."""
    return ", ".join(str(source) for source in (features or {}).values() if source is not None) or "it learned with"
