"""The linear datamodeling score against scipy, and training outcomes: resumed, and shared by processes."""

from __future__ import annotations

import gzip
import json
import multiprocessing
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from nncift.errors import ConfigError, RunError
from nncift.evaluation.datamodels import (
    TrainingOutcomes,
    draw_subsets,
    linear_datamodeling_score,
    mean_losses,
    measure_outcomes,
    noise_ceiling,
)
from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import encode_examples, response_losses
from nncift.training.lora import Lora, adapted
from nncift.training.trainer import Training, fine_tune

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "outcomes" / "p3-smollm2.safetensors"
QUICK = Training(lora=Lora(rank=2, alpha=8, dropout=0.0), epochs=2, learning_rate=5e-3, batch_size=2)


def synthetic(influence: np.ndarray, *, n_subsets: int = 30, noise: float = 0.0, n_seeds: int = 2) -> TrainingOutcomes:
    """Outcomes for additive influence, with independent noise for each seed."""
    n_pool, n_target = influence.shape
    rng = np.random.default_rng(1)
    subsets = draw_subsets(n_pool, n_subsets)
    drops = subsets @ influence + noise * rng.standard_normal((n_seeds, n_subsets, n_target))
    before = np.full(n_target, 5, np.float32)
    ids = tuple(map(str, range(n_pool))), tuple(map(str, range(n_target)))
    return TrainingOutcomes(*ids, subsets, before, (before - drops).astype(np.float32), {"made": "up"})


@pytest.fixture
def influence() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((20, 7))


@pytest.fixture
def few_resamples(monkeypatch) -> None:
    """No interval is judged."""
    monkeypatch.setattr("nncift.evaluation.datamodels._RESAMPLES", 10)


class TestScore:
    def test_of_true_influence_is_one_of_its_negative_minus_one_and_of_a_constant_zero(self, few_resamples, influence):
        assert linear_datamodeling_score(influence, synthetic(influence)).value == pytest.approx(1)
        assert linear_datamodeling_score(-influence, synthetic(influence)).value == pytest.approx(-1)
        assert linear_datamodeling_score(np.ones_like(influence), synthetic(influence)).value == 0

    def test_equals_scipy_target_by_target(self, influence):
        outcomes = synthetic(influence, noise=3.0)
        score = linear_datamodeling_score(influence, outcomes)
        drops = (outcomes.before - outcomes.after).mean(axis=0)
        slow = [spearmanr(outcomes.subsets @ influence[:, j], drops[:, j]).statistic for j in range(7)]
        assert score.per_target == pytest.approx(slow, abs=1e-6)
        assert score.value == pytest.approx(np.mean(slow), abs=1e-6)
        assert 0.2 < score.value < 0.9

    def test_the_interval_contains_the_value_and_narrows_with_more_subsets(self, influence):
        few = linear_datamodeling_score(influence, synthetic(influence, noise=3.0, n_subsets=12))
        many = linear_datamodeling_score(influence, synthetic(influence, noise=3.0, n_subsets=200))
        for score in (few, many):
            assert score.low < score.value < score.high
        assert many.high - many.low < few.high - few.low

    def test_is_invariant_to_scale_and_shift(self, few_resamples):
        influence = np.random.default_rng(0).integers(-50, 50, (10, 3)).astype(float)
        outcomes = synthetic(influence, noise=2.0)
        expected = linear_datamodeling_score(influence, outcomes).per_target

        @settings(deadline=None, max_examples=5)
        @given(st.integers(1, 1000), st.integers(-1000, 1000))
        def holds(scale, shift):
            moved = linear_datamodeling_score(scale * influence + shift, outcomes)  # all subsets hold as many samples
            assert moved.per_target == pytest.approx(expected)

        holds()

    def test_refuses_another_shape_and_values_that_are_not_finite(self, influence):
        outcomes = synthetic(influence)
        with pytest.raises(ConfigError, match=r"\(7, 20\).*\(20, 7\)"):
            linear_datamodeling_score(influence.T, outcomes)
        influence[3, 3] = np.nan
        with pytest.raises(ConfigError, match="not finite"):
            linear_datamodeling_score(influence, outcomes)


class TestNoiseCeiling:
    def test_is_the_score_of_true_influence(self, few_resamples, influence):
        again, ceiling = noise_ceiling(synthetic(influence))  # without noise
        assert (again.value, ceiling) == (pytest.approx(1), pytest.approx(1))
        outcomes = synthetic(influence, noise=4.0, n_subsets=1000)
        again, ceiling = noise_ceiling(outcomes)
        reached = linear_datamodeling_score(influence, outcomes).value
        assert again.value < 0.7
        assert ceiling == pytest.approx(reached, abs=0.03)

    def test_needs_two_seeds(self, influence):
        with pytest.raises(ConfigError, match="two seeds"):
            noise_ceiling(synthetic(influence, n_seeds=1))


class TestOutcomes:
    @pytest.fixture(scope="class")
    def data(self) -> tuple[Dataset, Dataset]:
        words = ["red", "green", "blue", "white", "black", "grey", "pink", "brown"]
        rows = [{"id": str(k), "prompt": f"Say {w}.", "response": f"{w} {w}"} for k, w in enumerate(words)]
        return Dataset.from_list(rows[:6]), Dataset.from_list(rows[5:])

    @pytest.fixture(scope="class")
    def outcomes(self, tiny, data, tmp_path_factory) -> tuple[TrainingOutcomes, Path]:
        folder = tmp_path_factory.mktemp("outcomes")
        return measure_outcomes(tiny, *data, draw_subsets(6, 3), QUICK, folder), folder

    def test_equal_separate_training(self, tiny, data, outcomes, tmp_path):
        found, _ = outcomes
        examples, targets = (encode_examples(tiny, rows) for rows in data)
        chosen = [examples[i] for i in np.flatnonzero(found.subsets[2])]
        seeded = replace(QUICK, seed=1, lora=replace(QUICK.lora, seed=1))
        last = fine_tune(tiny, chosen, seeded, tmp_path)[-1]
        with adapted(tiny, last.folder):
            after = one_by_one(tiny, targets)
        assert found.after.shape == (2, 3, 3)
        assert found.after[1, 2] == pytest.approx(after, rel=1e-5)
        assert found.before == pytest.approx(one_by_one(tiny, targets), rel=1e-5)
        assert not np.allclose(found.after[0], found.after[1], rtol=1e-4)

    def test_resume_after_a_kill_without_retraining(self, tiny, data, outcomes):
        found, folder = outcomes
        (folder / "seed-0-subset-0001.json").unlink()
        stamps = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
        again = measure_outcomes(tiny, *data, draw_subsets(6, 3), QUICK, folder)
        assert again.after.tobytes() == found.after.tobytes()
        assert {name: (folder / name).stat().st_mtime_ns for name in stamps} == stamps

    def test_are_shared_by_processes(self, tiny_model, data, outcomes, tmp_path):
        """By this process and another, which begin together."""
        context = multiprocessing.get_context("fork")  # to import everything again takes many seconds
        arguments = tiny_model, *data, tmp_path, context.Barrier(2)
        other = context.Process(target=work, args=arguments)
        other.start()
        work(*arguments)
        other.join(240)
        assert other.exitcode == 0
        shared = TrainingOutcomes.load(tmp_path / "outcomes.safetensors")
        assert shared.after == pytest.approx(outcomes[0].after, rel=1e-5)

    def test_refuse_the_folder_of_other_outcomes_and_an_empty_subset(self, tiny, data, outcomes):
        with pytest.raises(RunError, match="other samples or settings"):
            measure_outcomes(tiny, *data, draw_subsets(6, 3, seed=1), QUICK, outcomes[1])
        with pytest.raises(ConfigError, match="empty"):
            measure_outcomes(tiny, *data, np.zeros((1, 6), bool), QUICK, outcomes[1])

    def test_round_trip(self, outcomes, tmp_path):
        found, _ = outcomes
        found.save(tmp_path / "o.safetensors")
        again = TrainingOutcomes.load(tmp_path / "o.safetensors")
        for field in ("subsets", "before", "after"):
            assert (getattr(again, field) == getattr(found, field)).all()
        assert (again.pool_ids, again.target_ids, again.settings) == (found.pool_ids, found.target_ids, found.settings)

    def test_losses_do_not_depend_on_batches(self, tiny, data):
        examples = encode_examples(tiny, data[0])
        assert mean_losses(tiny, examples)[2:4] == pytest.approx(mean_losses(tiny, examples[2:4]), rel=1e-5)


def one_by_one(model: LanguageModel, examples: list) -> list[float]:
    return [float(response_losses(model, [example]).detach()) for example in examples]


def work(model: str, pool: Dataset, target: Dataset, folder: Path, loaded: Barrier) -> None:
    """One of several processes on the same folder."""
    language_model = LanguageModel.load(model, device="cpu")
    loaded.wait(240)
    found = measure_outcomes(language_model, pool, target, draw_subsets(6, 3), QUICK, folder)
    found.save(folder / "outcomes.safetensors")


class TestCommittedOutcomes:
    @pytest.fixture(scope="class")
    def committed(self) -> TrainingOutcomes:
        return TrainingOutcomes.load(COMMITTED)

    def test_are_complete_and_contain_no_texts(self, committed):
        assert committed.after.shape == (2, 40, 80)
        assert (committed.subsets.sum(axis=1) == 60).all()
        assert (len(committed.pool_ids), len(committed.target_ids)) == (120, 80)
        assert not set(committed.pool_ids) & set(committed.target_ids)
        assert committed.drops.mean() > 1  # nats
        assert len(np.unique(committed.subsets, axis=0)) == 40
        assert set(json.loads(COMMITTED.with_suffix(".json").read_text())) == {"pool_ids", "target_ids", "settings"}
        assert COMMITTED.stat().st_size < 100_000

    def test_are_mostly_signal_and_separate_task_families(self, committed, shared_data):
        with gzip.open(shared_data / "p3_pool.jsonl.gz", "rt", encoding="utf-8") as lines:
            family = {row["id"]: row["task"] for row in map(json.loads, lines)}
        of_pool, of_target = (np.array([family[i] for i in ids]) for ids in (committed.pool_ids, committed.target_ids))
        by_family = linear_datamodeling_score((of_pool[:, None] == of_target).astype(float), committed)
        again, ceiling = noise_ceiling(committed)
        assert by_family.low > 0
        assert again.value > by_family.high
        assert ceiling > again.value
