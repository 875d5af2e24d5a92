"""InfluenceNetwork: predicts the influence of one sample on another from their features.

The recipe "process" is a Gaussian process in closed form (`gaussian_process`), "paper" NN-CIFT's MLP (`mlp`). Both
transform the features of a sample once; a pair then costs about a hundred multiplications.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from huggingface_hub import ModelHubMixin, hf_hub_download
from safetensors.numpy import save

from nncift.errors import ConfigError, ModelError, first_line
from nncift.estimator.gaussian_process import GaussianProcess
from nncift.estimator.left_out import BothSides
from nncift.estimator.mlp import PaperNetwork
from nncift.estimator.stored import read_network
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.matrix.matrix import InfluenceMatrix

FeatureArray = np.ndarray | Features

RECIPES: dict[str, type[PaperNetwork] | type[GaussianProcess]] = {"process": GaussianProcess, "paper": PaperNetwork}
_CARD = """---
library_name: nncift
tags: [data-selection, influence]
---
An InfluenceNetwork of [nncift](https://arxiv.org/abs/2502.09969): it predicts how much one instruction-tuning
sample helps a language model on another from their features. `InfluenceNetwork.from_pretrained(...)` loads it;
config.json names the features it reads and the influence function it learned from.
"""


class InfluenceNetwork(ModelHubMixin):
    """Predicts the influence of pool samples on targets, fitted to labelled pairs.

    Args:
        recipe: "process": a Gaussian process over pairs, with posterior variance. "paper": NN-CIFT's MLP.
        pointwise: the influence is one score for each pool sample, whatever the target.
        seed: of all random choices.
        **options: of the recipe "paper": `hidden`, `depth`, `learning_rate`, `epochs`, `batch_size`.

    Attributes:
        model: the `GaussianProcess` or `PaperNetwork`.
        description_: JSON-able facts stored with the weights: the features it reads, the influence it was fitted to;
            set by the caller.

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

    def __repr__(self) -> str:
        state = "not fitted" if self.widths is None else f"features {self.widths[0]} and {self.widths[1]} wide"
        return f"InfluenceNetwork({self.options['recipe']!r}, {state})"

    def fit(
        self,
        pool_features: FeatureArray,
        target_features: FeatureArray,
        pairs: LabelledPairs,
        *,
        prior: InfluenceNetwork | None = None,
        among_targets: LabelledPairs | None = None,
    ) -> Self:
        """Fit to labelled pairs.

        Args:
            pool_features: (n_pool, pool_width) float32.
            target_features: (n_target, target_width) float32.
            pairs: exact influence; indices into the two arrays.
            prior: a network fitted earlier on the same features, to other data or another influence. Its predictions
                are rescaled by least squares; this one is fitted to the residuals.
            among_targets: exact influence of labelled targets on each other, indices into the targets on both sides: of
                an influence that is an inner product of two samples' gradients, the most that labels can give. Not used
                with a prior, by the recipe "paper", where the two sides have different features, or where labelled
                pairs alone predict labelled pool samples better that they did not see; see `both_sides`.

        Raises:
            ConfigError: the recipe "paper" takes no prior.
            ModelError: there are no pairs, or the prior reads other features.
        """
        if not len(pairs):
            raise ModelError("there is no labelled pair to fit", "raise `labels`")
        pool, target = Features.of(pool_features), Features.of(target_features)
        if isinstance(self.model, GaussianProcess):
            if prior is not None:
                prior._check_widths(pool, target)
            before = None if prior is None else prior._process
            self.model.fit(pool, target, pairs, prior=before, among=among_targets)
        elif prior is None:
            self.model.fit(pool, target, pairs)
        else:
            raise ConfigError('the recipe "paper" takes no prior', 'take the recipe "process"')
        self.widths = pool.shape[1], target.shape[1]
        return self

    def predict(self, pool_features: np.ndarray, target_features: np.ndarray) -> np.ndarray:
        """Influence of n pairs on the influence function's own scale: (n, width), (n, width) -> (n,) float32.

        Raises:
            ModelError: the network is not fitted, or the features have another width.
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
        """The influence of every pool sample on every target, computed on access.

        Args:
            pool_features: (n_pool, pool_width) float32, may be memory-mapped.
            target_features: (n_target, target_width) float32, may be memory-mapped.
            probes: exact influence of every pool sample on a few targets, to condition on.
            device: where pairs are scored, for example "cuda"; default CPU.

        Returns:
            A matrix of shape (n_pool, n_target) that stores up to (n_pool + n_target) x 129 floats, more with probes
            or a prior.

        Raises:
            ConfigError: the recipe "paper" takes no probes.
            ModelError: the network is not fitted, or the features have another width.
        """
        self._check_widths(pool_features, target_features)
        if probes is None:
            return self.model.estimate(pool_features, target_features, device=device)
        return self._process.estimate(pool_features, target_features, probes=probes, device=device)

    def uncertainty(self, pool_features: FeatureArray) -> np.ndarray:
        """Posterior standard deviation of each pool sample's influence, on its scale: (n_pool, width) -> (n_pool,).

        Raises:
            ConfigError: the recipe "paper" has no posterior.
            ModelError: the network is not fitted.
        """
        return self._process.uncertainty(pool_features)

    def choose_probes(self, target_features: FeatureArray, count: int) -> np.ndarray:
        """Targets whose exact influence most reduces a new sample's posterior variance on all: (count,) int64.

        Raises as `uncertainty`.
        """
        return self._process.choose_probes(target_features, count)

    def choose_samples(self, pool_features: FeatureArray, count: int) -> np.ndarray:
        """Pool samples whose labels most reduce the posterior variance of all of these: (count,) int64, best first.

        Raises as `uncertainty`.
        """
        return self._process.posterior.choose_samples(pool_features, count)

    def learned_from(self, pool_features: np.ndarray, target_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which samples are among its training inputs, by their features: (n, width), (m, width) -> (n,), (m,) bool.

        Raises:
            ConfigError: the recipe "paper" stores no training inputs.
            ModelError: the network is not fitted, or the features have another width.
        """
        self._check_widths(pool_features, target_features)
        return self._process.learned_from(pool_features, target_features)

    @property
    def both_sides(self) -> BothSides | None:
        """What `fit` made of labels on both sides; None without any, and of a stored network."""
        return self.model.both_sides if isinstance(self.model, GaussianProcess) else None

    @property
    def recipe(self) -> str:
        """The recipe, "process" or "paper"."""
        return str(self.options["recipe"])

    @property
    def _process(self) -> GaussianProcess:
        """The fitted Gaussian process."""
        if isinstance(self.model, PaperNetwork):
            raise ConfigError('the recipe "paper" has no posterior variance and no probes', 'take the recipe "process"')
        self._fitted()
        return self.model

    def _fitted(self) -> tuple[int, int]:
        """Widths of the features it is fitted to."""
        if self.widths is None:
            raise ModelError("this InfluenceNetwork is not fitted", "call fit, or load one with from_pretrained")
        return self.widths

    def _check_widths(self, *features: FeatureArray) -> None:
        for side, given, width in zip(("pool", "target"), features, self._fitted(), strict=True):
            if given.shape[1] != width:
                raise ModelError(
                    f"the {side} features are {given.shape[1]} wide, the network is fitted to {width}",
                    f"it reads the features {_named(self.description_.get('features'))}",
                )

    def _save_pretrained(self, save_directory: Path) -> None:
        self._fitted()
        arrays, facts = self.model.state()
        config = {**self.options, "widths": self.widths, "facts": facts, "description": self.description_}
        (save_directory / "config.json").write_text(
            json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        (save_directory / "README.md").write_text(_CARD, encoding="utf-8")
        (save_directory / "model.safetensors").write_bytes(save(arrays))

    @classmethod
    def from_pretrained(cls, name: str | Path, **download: Any) -> InfluenceNetwork:  # type: ignore[override]
        """Load a stored network; reads JSON and safetensors only, never pickle.

        Args:
            name: a folder that `save_pretrained` wrote, or a hub id.
            **download: from the hub: `revision`, `cache_dir`, `force_download`, `token`, `local_files_only`.

        Raises:
            ModelError: there is no network of this version, or it is damaged.
            RunError: it lies in a run folder, and its checksum differs.
        """
        folder, model_id = Path(name), str(name)
        paths: list[Path] = []
        for name in ("config.json", "model.safetensors"):
            if not folder.is_dir():
                paths.append(Path(hf_hub_download(model_id, name, **download)))
            elif (folder / name).exists():
                paths.append(folder / name)
            else:
                raise ModelError(f"{folder} has no {name}", "give a folder written by save_pretrained")
        stored = read_network(paths[0], paths[1], model_id)
        try:
            network = cls(**stored.options)
            network.model.load(stored.arrays, stored.facts)
            network.widths, network.description_ = stored.widths, stored.description
            network._check_finite()
        except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
            raise ModelError(f"{model_id} has no InfluenceNetwork of this version ({first_line(error)})") from error
        return network

    def _check_finite(self) -> None:
        """Raise a ValueError if a prediction is not finite."""
        trial = [np.zeros((1, width), np.float32) for width in self._fitted()]
        with np.errstate(all="ignore"):
            if not np.isfinite(self.predict(*trial)).all():
                raise ValueError("its predictions are not finite")


def _named(features: Mapping[str, str | None] | None) -> str:
    """The features of a description, for messages."""
    return ", ".join(str(source) for source in (features or {}).values() if source is not None) or "it was fitted to"
