"""In-run data Shapley against a backward pass per sample; the training is the same as without it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import references
from builders import families, prepared
from nncift.errors import ConfigError, ModelError, RunError
from nncift.influence.gradients.in_run import InRun, InRunTraining
from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import encode_examples
from nncift.training.gradient_products import InnerProducts, draw_targets, inner_products
from nncift.training.lora import Lora, adapted, adapter_layers
from nncift.training.trainer import Training, fine_tune

SMALL = InRunTraining(lora=Lora(rank=2, alpha=8, dropout=0.0), epochs=2, learning_rate=5e-3, batch_size=3, seed=4)


@pytest.fixture(scope="module")
def pool() -> Dataset:
    """Fourteen samples: five steps of three or two per epoch."""
    return families("chain_sum", "spell_backward", size=7).remove_columns("task")


@pytest.fixture(scope="module")
def tasks() -> Dataset:
    return families("chain_sum", "spell_backward", size=4, seed=9).select(range(7))


@pytest.fixture(scope="module")
def target(tasks) -> Dataset:
    return tasks.remove_columns("task")


def expected_scores(
    model: LanguageModel, training: Training, pool: Dataset, target: Dataset, size: int, preconditioned: bool
) -> np.ndarray:
    """Influence of the rows by the definition."""
    samples, targets = encode_examples(model, pool), encode_examples(model, target)
    names = target["task"] if "task" in target.column_names else [""] * len(targets)
    in_order = sorted(range(len(samples)), key=lambda k: samples[k].key)
    targets_in_order = sorted(range(len(targets)), key=lambda k: (names[k], targets[k].key))
    groups = [sorted(set(names)).index(names[k]) for k in targets_in_order]
    each = min(training.batch_size, max(len(samples) // training.min_steps_per_epoch, 1))
    per_epoch = -(-len(samples) // each)
    total = training.epochs * per_epoch
    warm_up = int(np.ceil(training.warmup_ratio * total))
    rates = [
        training.learning_rate * min((t + 1) / (warm_up + 1), (total - t) / max(total - warm_up, 1))
        for t in range(total)
    ]
    batches = []
    for epoch in range(training.epochs):
        order = np.random.default_rng([training.seed, 1, epoch]).permutation(len(samples))
        batches += [part.tolist() for part in np.array_split(order, per_epoch)]
    drawn = [list(step.elements()) for step in draw_targets(groups, size, total, training.seed)]
    with adapted(model, training.lora) as adapter:
        scores = references.in_run(
            adapter,
            [(samples[k].ids, samples[k].start) for k in in_order],
            [(targets[k].ids, targets[k].start) for k in targets_in_order],
            groups,
            list(zip(rates, batches, drawn, strict=True)),
            preconditioned,
            training.max_grad_norm,
        )
    found = np.empty((len(samples), len(targets)))
    for place, j in enumerate(targets_in_order):
        found[in_order, j] = scores[:, groups[place]]
    return found


def content(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class TestInRun:
    @pytest.mark.parametrize("preconditioned", ["no", "yes"])
    def test_equals_the_definition(self, tiny, pool, tasks, preconditioned):
        """Two tasks of unlike size, three targets a step: steps see unlike numbers of each."""
        function = prepared(InRun(tiny, training=SMALL, target_batch=3, preconditioned=preconditioned), pool, tasks)
        expected = expected_scores(tiny, SMALL, pool, tasks, 3, preconditioned == "yes")
        scale = expected.std()
        np.testing.assert_allclose(function(pool, tasks) / scale, expected / scale, atol=5e-3)
        assert expected.shape == (14, 7)
        assert not function.traits.pointwise

    def test_equals_the_definition_on_smollm2(self, smollm2, pool, target):
        model = LanguageModel.load(smollm2, device="cpu")
        training = dataclasses.replace(SMALL, epochs=1, learning_rate=1e-3)
        few, targets = pool.select([0, 7]), target.select([0])
        function = prepared(InRun(model, training=training), few, targets)
        expected = expected_scores(model, training, few, targets, 1, True)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(function(few, targets) / scale, expected / scale, atol=5e-3)

    def test_predicts_the_loss_reduction_of_a_step(self, tiny, pool, target):
        """One step along one sample's gradient, small enough that first order suffices."""
        rate = 1e-2
        training = dataclasses.replace(SMALL, epochs=1, learning_rate=rate, warmup_ratio=0.0)
        function = prepared(InRun(tiny, training=training, preconditioned="no"), pool.select([0]), target.select([0]))
        (sample,), (aim,) = (encode_examples(tiny, rows.select([0])) for rows in (pool, target))
        with adapted(tiny, training.lora) as adapter, torch.no_grad():
            before = references.response_loss(adapter, aim.ids, aim.start)
            with torch.enable_grad():
                gradients = references.adapter_gradients(adapter, sample.ids, sample.start)
            for name, weight in adapter.named_parameters():
                weight -= rate * gradients.get(name, torch.zeros(()))
            after = references.response_loss(adapter, aim.ids, aim.start)
        assert function(pool.select([0]), target.select([0]))[0, 0] == pytest.approx(float(before - after), rel=0.02)

    def test_samples_of_the_targets_family_score_higher(self, smollm2):
        pool = families("chain_sum", "spell_backward", size=2)
        target = families("chain_sum", "spell_backward", size=1, seed=9)
        training = dataclasses.replace(SMALL, epochs=1, batch_size=2, min_steps_per_epoch=2, learning_rate=1e-4)
        function = prepared(InRun(smollm2, device="cpu", training=training), pool, target)
        scores = function(pool, target)
        assert scores[:2, 0].mean() > scores[2:, 0].mean()
        assert scores[2:, 1].mean() > scores[:2, 1].mean()

    def test_a_column_for_each_task(self, tiny, pool, tasks, target):
        function = prepared(InRun(tiny, training=SMALL, target_batch=2), pool, tasks)
        influence = function(pool, tasks)
        assert len(np.unique(influence, axis=1).T) == 2
        np.testing.assert_array_equal(influence[:, :4], influence[:, :1].repeat(4, axis=1))
        np.testing.assert_array_equal(function(pool.select([7]), tasks.select([5, 1])), influence[7:8, [5, 1]])
        # if each step draws the only target of each task, the whole is the mean over the tasks
        whole = prepared(InRun(tiny, training=SMALL, target_batch=2, preconditioned="no"), pool, target.select([0, 4]))
        apart = prepared(InRun(tiny, training=SMALL, target_batch=2, preconditioned="no"), pool, tasks.select([0, 4]))
        mean = apart(pool, tasks.select([0, 4])).mean(axis=1)
        np.testing.assert_allclose(whole(pool, target.select([0]))[:, 0], mean, atol=1e-3 * mean.std())

    def test_is_pointwise_where_there_is_one_task(self, tiny, pool, tasks, target):
        original = [json.dumps({"task": f"t{k % 2}"}) for k in range(len(target))]
        for rows, alike in (
            (target, True),
            (tasks, False),
            (target.add_column("original", original), False),
            (target.add_column("original", [json.dumps({"task": "same"})] * len(target)), True),
        ):
            function = InRun(tiny, training=SMALL)
            function.check(pool, rows)
            assert function.traits.pointwise == alike

    def test_the_order_of_the_rows_does_not_matter(self, tiny, pool, tasks):
        functions = [InRun(tiny, training=SMALL) for _ in range(2)]
        functions[0].prepare(pool, tasks)
        functions[1].prepare(pool.shuffle(seed=1), tasks.shuffle(seed=2))
        np.testing.assert_array_equal(functions[0](pool, tasks), functions[1](pool, tasks))
        other = prepared(InRun(tiny, training=dataclasses.replace(SMALL, seed=5)), pool, tasks)
        assert np.abs(other(pool, tasks) - functions[0](pool, tasks)).max() > 0

    def test_copies_share_their_mean(self, tiny, pool, target):
        twice = Dataset.from_list([*pool.select(range(7)), *pool.select(range(7))])
        function = prepared(InRun(tiny, training=SMALL), twice, target)
        influence = function(twice, target)
        np.testing.assert_array_equal(influence[:7], influence[7:])
        assert len(np.unique(influence)) == 7


class TestTraining:
    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    def test_is_the_same_as_without_scores(self, tiny, pool, tasks, dropout, tmp_path):
        training = dataclasses.replace(SMALL, lora=dataclasses.replace(SMALL.lora, dropout=dropout))
        prepared(InRun(tiny, training=training), pool, tasks, tmp_path)
        examples = sorted(encode_examples(tiny, pool), key=lambda example: example.key)
        fine_tune(tiny, examples, training, tmp_path / "plain")
        for pattern in ("adapter_model.safetensors", "optimizer.safetensors"):
            assert content(tmp_path / "in-run", pattern) == content(tmp_path / "plain", pattern)
        assert not tiny.model.training
        assert not adapter_layers(tiny)
        assert all(weight.grad is None for weight in tiny.model.parameters())

    def test_resumes_with_the_same_bytes(self, tiny, pool, tasks, tmp_path, monkeypatch):
        whole = prepared(InRun(tiny, training=SMALL), pool, tasks, tmp_path / "whole")
        influence = whole(pool, tasks)
        plain = InnerProducts.before_step

        def killed(self, model, step):
            if step.number == 7:  # of 10
                raise KeyboardInterrupt
            plain(self, model, step)

        with monkeypatch.context() as patch:
            patch.setattr(InnerProducts, "before_step", killed)
            with pytest.raises(KeyboardInterrupt):
                InRun(tiny, training=SMALL).prepare(pool, tasks, tmp_path / "killed")
        assert [path.name for path in (tmp_path / "killed/in-run").iterdir()] == ["epoch-1"]
        resumed = InRun(tiny, training=SMALL)
        before = tiny.forward_tokens
        resumed.prepare(pool, tasks, tmp_path / "killed")
        assert 0 < tiny.forward_tokens - before < 0.6 * resumed.tokens(pool, tasks)
        np.testing.assert_array_equal(resumed(pool, tasks), influence)
        assert content(tmp_path / "killed") == content(tmp_path / "whole")

    def test_counts_tokens(self, tiny_model, pool, tasks):
        function = InRun(tiny_model, training=SMALL, target_batch=5, device="cpu")
        expected = function.tokens(pool, tasks)
        function.prepare(pool, tasks)
        assert function.forward_tokens == function.backward_tokens == expected
        assert function.tokens(pool, tasks.select([])) == function.tokens(pool.select([]), tasks) == 0

    def test_out_of_memory(self, tiny, pool, tasks, monkeypatch):
        def full(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        for module in ("nncift.training.trainer", "nncift.training.gradients"):
            with monkeypatch.context() as patch:
                patch.setattr(f"{module}.response_losses", full)
                with pytest.raises(ModelError, match=r"ran out of memory while (training|computing target).*: lower"):
                    InRun(tiny, training=SMALL).prepare(pool, tasks)
        assert not tiny.model.training


class TestErrors:
    def test_a_target_of_another_task_was_not_prepared(self, tiny, pool, tasks):
        function = prepared(InRun(tiny, training=SMALL), pool.select(range(5)), tasks.select(range(3)))
        with pytest.raises(ConfigError, match="was not trained with"):
            function(pool.select([0]), tasks.select([0]).remove_columns("task"))

    def test_nothing_to_train_on(self, tiny, pool, target):
        for rows, targets in ((pool.select([]), target), (pool, target.select([]))):
            with pytest.raises(ConfigError, match="give a pool and a target"):
                InRun(tiny, training=SMALL).prepare(rows, targets)

    def test_each_step_draws_each_task(self, tiny, pool, tasks):
        each = tasks.remove_columns("task").add_column("task", [str(k) for k in range(7)])
        few, training = pool.select(range(3)), dataclasses.replace(SMALL, epochs=1)
        function = prepared(InRun(tiny, training=training), few, each)
        assert (function(few, each) != 0).all()
        with pytest.raises(ConfigError, match="`target_batch` 6 is less than the targets' 7 tasks: give a larger"):
            InRun(tiny, training=training, target_batch=6).prepare(few, each)

    def test_other_samples_or_settings_in_the_folder(self, tiny, pool, tasks, target, tmp_path):
        few = pool.select(range(6))
        InRun(tiny, training=SMALL).prepare(few, tasks, tmp_path)
        for change, rows, targets in (
            ({"preconditioned": "no"}, few, tasks),
            ({"target_batch": 3}, few, tasks),
            ({}, pool.select(range(5)), tasks),
            ({}, few, target),
            ({}, few, tasks.select(range(6))),
        ):
            with pytest.raises(RunError, match=r"(holds|contains) the training of other samples or settings"):
                InRun(tiny, training=SMALL, **change).prepare(rows, targets, tmp_path)


class TestInnerProducts:
    @given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 5))
    @settings(max_examples=50, deadline=None)
    def test_groups_alternate_and_targets_are_drawn_without_replacement(self, sizes, size, seed):
        groups = [group for group, n in enumerate(sizes) for _ in range(n)]
        steps = draw_targets(groups, size, 40, seed)
        assert all(step.total() == size for step in steps)
        assert steps == draw_targets(groups, size, 40, seed)
        total: Counter[int] = sum(steps, Counter())
        for group, n in enumerate(sizes):
            counts = [total[k] for k in range(len(groups)) if groups[k] == group]
            assert len(counts) == n
            assert max(counts) - min(counts) <= 1
            assert abs(sum(counts) - 40 * size / len(sizes)) < 1

    @pytest.mark.parametrize(("out", "width"), [(3, 5), (5, 3)])
    def test_inner_products_equal_those_of_the_gradients(self, out, width):
        generator = torch.Generator().manual_seed(0)
        g, x, gradient = (
            torch.randn(*shape, generator=generator) for shape in ((4, 7, out), (4, 7, width), (out, width))
        )
        expected = [float(((g[k].T @ x[k]) * gradient).sum()) for k in range(4)]
        torch.testing.assert_close(inner_products(g, x, gradient).tolist(), expected, rtol=1e-4, atol=1e-4)
