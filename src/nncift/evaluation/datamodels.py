"""The last judge of an influence function: does it say what training really does?

A language model is fine-tuned on many random halves of a pool, and the loss of every target is measured before and
after. Influence that is true adds up: the sum of influence[i, j] over the samples i of a half ranks the halves as the
drop of target j's loss does. That rank correlation, averaged over the targets, is the linear datamodelling score.
Training the same halves again with another seed (other first weights, other order) says how much of the drops can
be foretold at all.

The outcomes of training are kept, so that any influence function is judged in seconds.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from scipy.stats import rankdata

from nncift.errors import ConfigError, RunError
from nncift.models.examples import Example, encode_examples, response_losses
from nncift.models.onednn import frozen_linears
from nncift.run.files import fingerprint, read_json, read_tensors, write_json, write_tensors
from nncift.training.lora import adapted
from nncift.training.trainer import Training, fine_tune

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.models.language_model import LanguageModel

_BATCH = 16  # targets per pass when their losses are measured
_REPEATS = 1000  # of the bootstrap


@dataclass(frozen=True)
class TrainingOutcomes:
    """What fine-tuning on subsets of a pool did to the targets; holds no texts.

    Attributes:
        pool_ids: ids of the n_pool samples.
        target_ids: ids of the n_target targets.
        subsets: (n_subsets, n_pool) bool, which samples each subset holds.
        before: (n_target,) float32, loss of each target's response before training.
        after: (n_seeds, n_subsets, n_target) float32, the same after training on a subset with a seed.
        settings: how the model was trained, ready for JSON.
    """

    pool_ids: tuple[str, ...]
    target_ids: tuple[str, ...]
    subsets: np.ndarray
    before: np.ndarray
    after: np.ndarray
    settings: Mapping[str, Any]

    @property
    def drops(self) -> np.ndarray:
        """How much training lowered each target's loss, (n_seeds, n_subsets, n_target) float64."""
        return np.asarray(self.before.astype(np.float64) - self.after)

    def save(self, path: Path) -> None:
        """Write `path` (safetensors) and beside it `.json` with the ids and the settings."""
        subsets = self.subsets.astype(np.uint8)
        write_tensors(path, {"subsets": subsets, "before": self.before, "after": self.after})
        facts = {"pool_ids": self.pool_ids, "target_ids": self.target_ids, "settings": self.settings}
        write_json(path.with_suffix(".json"), facts)

    @classmethod
    def load(cls, path: Path) -> TrainingOutcomes:
        """Read what `save` wrote.

        Raises:
            RunError: a file is missing or damaged.
        """
        facts = read_json(path.with_suffix(".json"))
        try:
            arrays = read_tensors(path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} is missing or damaged", "measure the outcomes again") from error
        return cls(
            tuple(facts["pool_ids"]),
            tuple(facts["target_ids"]),
            arrays["subsets"].astype(bool),
            arrays["before"],
            arrays["after"],
            facts["settings"],
        )


@dataclass(frozen=True)
class Score:
    """A linear datamodelling score.

    Attributes:
        value: mean over targets of the rank correlation over subsets, -1 to 1.
        low, high: 95 % bootstrap interval, over subsets and targets.
        per_target: (n_target,) float64.
    """

    value: float
    low: float
    high: float
    per_target: np.ndarray

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

    Each training is written when it is done, so the same call goes on after a kill, and several processes that are
    given the same folder share the work.

    Args:
        model: what is fine-tuned.
        pool: n_pool samples.
        target: n_target samples.
        subsets: (n_subsets, n_pool) bool.
        training: how. All of a subset is trained on, whatever its `fraction`, and `seeds` replace its seeds.
        folder: holds what is done.
        seeds: each trains all subsets once.
        progress: show a progress bar of each training.

    Raises:
        ConfigError: a subset is empty.
        RunError: the folder holds outcomes of other samples or settings.
    """
    if not subsets.any(axis=1).all():
        raise ConfigError("a subset is empty", "give each at least one sample")
    examples, targets = encode_examples(model, pool), encode_examples(model, target)
    settings = {
        "model": model.name,
        "dtype": model.precision,
        "training": json.loads(json.dumps(dataclasses.asdict(training))),
        "seeds": list(seeds),
    }
    identity = fingerprint(settings, [e.key for e in examples], [e.key for e in targets], subsets.tobytes())
    work = [(seed, number) for seed in seeds for number in range(len(subsets))]
    before = folder / "before.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        _same_work(folder, identity)
        if not before.exists():
            write_json(before, mean_losses(model, targets).tolist())
    for wait in (False, True):  # first what nobody else works on, then what somebody may have been killed at
        for seed, number in work:
            chosen = [example for example, inside in zip(examples, subsets[number], strict=True) if inside]
            _train_once(model, chosen, targets, _seeded(training, seed), folder, number, wait=wait, progress=progress)
    losses = [read_json(_place(folder, seed, number)) for seed, number in work]
    after = np.array(losses, np.float32).reshape(len(seeds), len(subsets), len(targets))
    ids = tuple(map(str, pool["id"])), tuple(map(str, target["id"]))
    return TrainingOutcomes(*ids, subsets, np.array(read_json(before), np.float32), after, settings)


def _same_work(folder: Path, identity: str) -> None:
    path = folder / "work.json"
    if not path.exists():
        write_json(path, {"fingerprint": identity})
    elif read_json(path) != {"fingerprint": identity}:
        raise RunError(f"{folder} holds outcomes of other samples or settings", "choose another folder")


def _seeded(training: Training, seed: int) -> Training:
    return dataclasses.replace(training, seed=seed, lora=dataclasses.replace(training.lora, seed=seed))


def _place(folder: Path, seed: int, number: int) -> Path:
    return folder / f"seed-{seed}-subset-{number:04d}.json"


def _train_once(
    model: LanguageModel,
    chosen: Sequence[Example],
    targets: Sequence[Example],
    training: Training,
    folder: Path,
    number: int,
    *,
    wait: bool,
    progress: bool,
) -> None:
    """One training, unless it is done, or another process is at it and `wait` does not ask to wait for that."""
    place = _place(folder, training.seed, number)
    if place.exists():
        return
    try:
        with FileLock(place.with_suffix(".lock"), blocking=wait):
            if not place.exists():
                adapters = place.with_suffix("")
                checkpoint = fine_tune(model, chosen, training, adapters, progress=progress)[-1]
                with adapted(model, checkpoint.folder):
                    losses = mean_losses(model, targets)
                write_json(place, losses.tolist())
                shutil.rmtree(adapters)
    except Timeout:
        pass


@torch.inference_mode()
def mean_losses(model: LanguageModel, examples: Sequence[Example]) -> np.ndarray:
    """Mean negative log-likelihood of each response's tokens, (n,) float32, without gradients."""

    def work(batch: list[int]) -> list[float]:
        return [float(loss) for loss in response_losses(model, [examples[k] for k in batch])]

    lengths = [len(example.ids) - 1 for example in examples]
    scored = [len(example.ids) - example.start for example in examples]
    with frozen_linears(model.model):
        return np.array(model.in_batches(work, lengths, scored, batch_size=_BATCH), np.float32)


def linear_datamodelling_score(influence: np.ndarray, outcomes: TrainingOutcomes, *, seed: int = 0) -> Score:
    """How well summed influence ranks the subsets, against the loss drops averaged over the seeds.

    Args:
        influence: (n_pool, n_target), rows and columns in the order of the outcomes' ids; larger is better.
        outcomes: what training did.
        seed: of the bootstrap.

    Raises:
        ConfigError: the influence has another shape, or values that are not finite.

    Source: TRAK (Park et al., ICML 2023, arXiv:2303.14186), section 2.
    """
    expected = (outcomes.subsets.shape[1], len(outcomes.target_ids))
    if influence.shape != expected:
        raise ConfigError(f"influence has the shape {influence.shape}, the outcomes have {expected}")
    if not np.isfinite(influence).all():
        raise ConfigError("influence holds values that are not finite")
    foretold = outcomes.subsets.astype(np.float64) @ influence.astype(np.float64)
    return _score(foretold, outcomes.drops.mean(axis=0), seed)


def noise_ceiling(outcomes: TrainingOutcomes, *, seed: int = 0) -> tuple[Score, float]:
    """How well one training foretells another with another seed, and so what the best score can be.

    Returns:
        The score of the first seed's drops against the second's; and about the most that any influence could score
        against the mean of all seeds: the root of the reliability that the Spearman-Brown formula gives. Where the
        targets differ in how noisy they are, the most is less.

    Raises:
        ConfigError: there are fewer than two seeds.
    """
    drops = outcomes.drops
    if len(drops) < 2:
        raise ConfigError("a noise ceiling needs the outcomes of two seeds")
    again = _score(drops[0], drops[1], seed)
    single = max(again.value, 0.0)
    return again, float(np.sqrt(len(drops) * single / (1 + (len(drops) - 1) * single)))


def _score(foretold: np.ndarray, found: np.ndarray, seed: int) -> Score:
    """Mean over columns of the rank correlation over rows of two arrays (n_subsets, n_target)."""
    rng = np.random.default_rng(seed)
    n_subsets, n_target = found.shape
    per_target = rank_correlations(foretold, found)
    repeats = np.empty(_REPEATS)
    for repeat in range(_REPEATS):
        rows, columns = rng.integers(n_subsets, size=n_subsets), rng.integers(n_target, size=n_target)
        repeats[repeat] = rank_correlations(foretold[rows][:, columns], found[rows][:, columns]).mean()
    low, high = np.quantile(repeats, [0.025, 0.975])
    return Score(float(per_target.mean()), float(low), float(high), per_target)


def rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of the columns of two arrays, (columns,); 0 where one is constant."""
    x, y = (ranks - ranks.mean(axis=0) for ranks in (rankdata(a, axis=0), rankdata(b, axis=0)))
    lengths = np.linalg.norm(x, axis=0) * np.linalg.norm(y, axis=0)
    return np.asarray((x * y).sum(axis=0) / np.where(lengths > 0, lengths, 1.0))
