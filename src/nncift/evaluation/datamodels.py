"""Linear datamodeling score (LDS): rank correlation between predicted and measured effects of training.

A language model is fine-tuned on many random halves of a pool, and the loss of every target is measured before and
after. If influence is additive, the sum of influence[i, j] over the samples i of a half ranks the halves as the
reductions of target j's loss do. That rank correlation, averaged over the targets, is the LDS. Training the same halves
with another seed (other adapter initialization, other order) gives the noise ceiling: how reproducible loss reductions
are across seeds.

Training outcomes are stored, so that any influence function is evaluated in seconds.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from nncift.errors import ConfigError, RunError
from nncift.evaluation.metrics import rank_correlations
from nncift.models.onednn import onednn_linears
from nncift.models.text.examples import Example, encode_examples, in_example_batches, response_losses
from nncift.run.storage.files import fingerprint, read_json, read_tensors, write_json, write_tensors
from nncift.training.lora import adapted
from nncift.training.trainer import Training, fine_tune

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.models.language_model import LanguageModel

_BATCH = 16  # targets per forward pass
_RESAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class TrainingOutcomes:
    """Losses of the targets before and after fine-tuning on subsets of a pool; contains no texts."""

    pool_ids: tuple[str, ...]
    target_ids: tuple[str, ...]
    subsets: np.ndarray  # (n_subsets, n_pool) bool, membership of each sample
    before: np.ndarray  # (n_target,) float32, loss of each target's response before training
    after: np.ndarray  # (n_seeds, n_subsets, n_target) float32, the same after training on a subset with a seed
    settings: Mapping[str, Any]  # of the training, JSON-able

    @property
    def drops(self) -> np.ndarray:
        """Reduction of each target's loss by training, (n_seeds, n_subsets, n_target) float64."""
        return np.asarray(self.before.astype(np.float64) - self.after)

    def save(self, path: Path) -> None:
        """Write `path` (safetensors) and next to it a `.json` with ids and settings; processes take turns."""
        arrays = {"subsets": self.subsets.astype(np.uint8), "before": self.before, "after": self.after}
        facts = {"pool_ids": self.pool_ids, "target_ids": self.target_ids, "settings": self.settings}
        with FileLock(path.parent / ".lock"):
            write_tensors(path, arrays)
            write_json(path.with_suffix(".json"), facts)

    @classmethod
    def load(cls, path: Path) -> TrainingOutcomes:
        """The inverse of `save`.

        Raises:
            RunError: a file is missing or damaged.
        """
        facts = read_json(path.with_suffix(".json"))
        try:
            arrays = read_tensors(path)
        except (OSError, RunError) as error:
            raise RunError(f"{path} is missing or damaged", "measure the outcomes again") from error
        ids = tuple(facts["pool_ids"]), tuple(facts["target_ids"])
        return cls(*ids, arrays["subsets"].astype(bool), arrays["before"], arrays["after"], facts["settings"])


@dataclass(frozen=True)
class Score:
    """A linear datamodeling score."""

    value: float  # mean over targets of the rank correlation over subsets, -1 to 1
    low: float  # 95 % bootstrap interval, over subsets and targets
    high: float
    per_target: np.ndarray  # (n_target,) float64

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def draw_subsets(n_pool: int, n_subsets: int, *, seed: int = 0) -> np.ndarray:
    """Random halves of a pool, (n_subsets, n_pool) bool."""
    rng = np.random.default_rng(seed)
    subsets = np.zeros((n_subsets, n_pool), bool)
    for subset in subsets:
        subset[rng.permutation(n_pool)[: n_pool // 2]] = True
    return subsets


def measure_outcomes(
    model: LanguageModel,
    pool: Dataset,
    target: Dataset,
    subsets: np.ndarray,
    training: Training,
    folder: Path,
    *,
    seeds: Sequence[int] = (0, 1),
    progress: bool = False,
) -> TrainingOutcomes:
    """Fine-tune on every subset with every seed, and measure the targets' losses.

    Each finished training is stored, so the same call resumes after a kill, and processes with the same folder share
    the work.

    Args:
        model: the model to fine-tune.
        pool: n_pool samples.
        target: n_target samples.
        subsets: (n_subsets, n_pool) bool.
        training: its settings; `fraction` is ignored, and `seeds` replace its seeds.
        folder: of finished trainings.
        seeds: each trains all subsets once.
        progress: show a progress bar of each training.

    Raises:
        ConfigError: a subset is empty.
        RunError: the folder has outcomes of other samples or settings.
    """
    if not subsets.any(axis=1).all():
        raise ConfigError("a subset is empty", "give each at least one sample")
    examples, targets = encode_examples(model, pool), encode_examples(model, target)
    settings = {"model": model.name, "dtype": model.precision, "training": training.describe(), "seeds": list(seeds)}
    parts = settings, [e.key for e in examples], [e.key for e in targets], subsets.tobytes()
    identity = {"fingerprint": fingerprint(*parts)}
    identified, before = folder / "work.json", folder / "before.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not identified.exists():
            write_json(identified, identity)
        elif read_json(identified) != identity:
            raise RunError(f"{folder} has outcomes of other samples or settings", "choose another folder")
        if not before.exists():
            write_json(before, mean_losses(model, targets).tolist())
    runs = {folder / f"seed-{s}-subset-{k:04d}.json": (s, k) for s in seeds for k in range(len(subsets))}
    for wait in (False, True):  # first those no other process holds, then those whose process may have been killed
        for path, (seed, number) in runs.items():
            if path.exists():
                continue
            seeded = replace(training, seed=seed, lora=replace(training.lora, seed=seed))
            chosen = [examples[i] for i in np.flatnonzero(subsets[number])]
            with contextlib.suppress(Timeout), FileLock(path.with_suffix(".lock"), blocking=wait):
                if not path.exists():
                    _train(model, chosen, targets, seeded, path, progress=progress)
    after = np.array([read_json(path) for path in runs], np.float32).reshape(len(seeds), len(subsets), len(targets))
    ids = tuple(map(str, pool["id"])), tuple(map(str, target["id"]))
    return TrainingOutcomes(*ids, subsets, np.array(read_json(before), np.float32), after, settings)


def _train(
    model: LanguageModel,
    chosen: Sequence[Example],
    targets: Sequence[Example],
    training: Training,
    path: Path,
    *,
    progress: bool,
) -> None:
    """Write the targets' losses after one training."""
    adapters = path.with_suffix("")
    checkpoint = fine_tune(model, chosen, training, adapters, progress=progress)[-1]
    with adapted(model, checkpoint.folder):
        losses = mean_losses(model, targets)
    write_json(path, losses.tolist())
    shutil.rmtree(adapters)


@torch.inference_mode()
def mean_losses(model: LanguageModel, examples: Sequence[Example]) -> np.ndarray:
    """Mean negative log-likelihood of each response's tokens, (n,) float32."""

    def work(batch: list[Example]) -> list[float]:
        return response_losses(model, batch).tolist()

    with onednn_linears(model.model):
        return np.array(in_example_batches(model, work, examples, batch_size=_BATCH), np.float32)


def linear_datamodeling_score(influence: np.ndarray, outcomes: TrainingOutcomes, *, seed: int = 0) -> Score:
    """LDS of summed influence against the loss reductions averaged over the seeds.

    Args:
        influence: (n_pool, n_target), rows and columns in the order of the outcomes' ids; larger is better.
        outcomes: measured effects of training.
        seed: of the bootstrap.

    Raises:
        ConfigError: the influence has another shape or non-finite values.

    Source: TRAK (Park et al., ICML 2023, arXiv:2303.14186), section 2.
    """
    expected = (outcomes.subsets.shape[1], len(outcomes.target_ids))
    if influence.shape != expected:
        raise ConfigError(f"influence has the shape {influence.shape}, the outcomes have {expected}")
    if not np.isfinite(influence).all():
        raise ConfigError("influence has values that are not finite")
    predicted = outcomes.subsets.astype(np.float64) @ influence.astype(np.float64)
    return _score(predicted, outcomes.drops.mean(axis=0), seed)


def noise_ceiling(outcomes: TrainingOutcomes, *, seed: int = 0) -> tuple[Score, float]:
    """LDS of one seed's loss reductions against another's, and an upper bound of the LDS of any influence.

    Returns:
        The score of the first seed against the second; and the approximate bound against the mean of all seeds, the
        square root of the reliability by the Spearman-Brown formula (lower if noise differs between targets).

    Raises:
        ConfigError: there are fewer than two seeds.
    """
    drops = outcomes.drops
    if len(drops) < 2:
        raise ConfigError("a noise ceiling needs the outcomes of two seeds")
    again = _score(drops[0], drops[1], seed)
    single = max(again.value, 0.0)
    return again, float(np.sqrt(len(drops) * single / (1 + (len(drops) - 1) * single)))


def _score(predicted: np.ndarray, measured: np.ndarray, seed: int) -> Score:
    """Mean over columns of the rank correlation over rows of two arrays (n_subsets, n_target)."""
    rng = np.random.default_rng(seed)
    n_subsets, n_target = measured.shape
    per_target = rank_correlations(predicted, measured)
    repeats = np.empty(_RESAMPLES)
    for repeat in range(_RESAMPLES):
        rows, columns = rng.integers(n_subsets, size=n_subsets), rng.integers(n_target, size=n_target)
        repeats[repeat] = rank_correlations(predicted[rows][:, columns], measured[rows][:, columns]).mean()
    low, high = np.quantile(repeats, [0.025, 0.975])
    return Score(float(per_target.mean()), float(low), float(high), per_target)
