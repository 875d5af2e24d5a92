from __future__ import annotations

import numpy as np
import pytest

from builders import chat, samples, word_rows
from nncift.errors import ConfigError, ModelError, RunError
from nncift.evaluation.answers import measurement
from nncift.evaluation.answers.in_context import Demonstrations
from nncift.evaluation.answers.items import Items
from nncift.evaluation.answers.measurement import SCORES, measure
from nncift.evaluation.answers.results import ItemScores
from nncift.evaluation.answers.text_metrics import exact_match
from nncift.evaluation.datamodels import mean_losses
from nncift.models.spec import EncoderSpec
from nncift.models.text.examples import encode_examples
from nncift.training.lora import adapted

LONG = "seven words that no one would ever repeat"
ROWS = [
    *word_rows(9),
    {"id": "long", "prompt": "Say much", "response": LONG},
    chat("chat", "Hi", "Hello", "Who?", "Me"),
]


@pytest.fixture
def items(tiny) -> Items:
    return Items.read(samples(ROWS), tiny)


def test_which_metric_applies_to_which_item(items):
    assert items.wording == "chat"
    assert items.applies("loss").all()
    assert np.flatnonzero(~items.applies("exact_match")).tolist() == [9]
    assert np.flatnonzero(items.applies("rougeL")).tolist() == [9]


def test_gsm8k_has_both_metrics(tiny):
    rows = [{"id": "g", "prompt": "How many?", "response": "She has 2 and buys 3 more, which makes 5.\n#### 5"}]
    found = Items.read(samples(rows), tiny)
    assert found.applies("exact_match").all()
    assert found.applies("rouge1").all()


def test_the_loss_is_that_of_training_whatever_else_is_measured(tiny, items, tiny_checkpoints, tmp_path):
    adapter = tiny_checkpoints[-1]
    examples = encode_examples(tiny, samples(ROWS), wording="chat")
    with adapted(tiny, adapter):
        expected = mean_losses(tiny, examples)
    alone = measure(tiny, items, folder=tmp_path / "a", adapter=adapter, metrics=["loss"])
    every = measure(tiny, items, folder=tmp_path / "b", adapter=adapter, max_new_tokens=4)
    base = measure(tiny, items, folder=tmp_path / "c", metrics=["loss"])
    np.testing.assert_allclose(alone.values["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(every.values["loss"], expected, rtol=1e-4)
    assert not np.allclose(base.values["loss"], expected, rtol=1e-2)
    assert alone.answers == ()
    assert len(every.answers) == len(ROWS)
    assert list(every.values) == ["loss", "exact_match", "rouge1", "rouge2", "rougeL"]


class Length:
    """A judge that grades by the length of the answer."""

    name = "length"

    def describe(self) -> dict:
        return {"judge": self.name}

    def rate(self, prompts, references, answers) -> np.ndarray:
        return np.array([1 + len(answer) % 5 for answer in answers], np.float64)


def test_scores_are_those_of_the_answers_in_the_order_of_the_items(tiny, items, small_encoder, tmp_path):
    encoder = EncoderSpec(small_encoder, device="cpu")
    found = measure(tiny, items, folder=tmp_path, encoder=encoder, judge=Length(), max_new_tokens=4)
    assert found.ids == tuple(row["id"] for row in ROWS)
    for k, (row, answer) in enumerate(zip(ROWS, found.answers, strict=True)):
        if k == 9:
            assert np.isnan(found.values["exact_match"][k])
            assert 0 <= found.values["rouge1"][k] <= 1
        else:
            assert found.values["exact_match"][k] == exact_match(answer, row["response"])
            assert np.isnan(found.values["rouge1"][k])
        assert found.values["judge"][k] == 1 + len(answer) % 5
        assert -1 <= found.values["similarity"][k] <= 1.0001
    assert sorted(path.name for path in tmp_path.iterdir()) == ["measurement.json", SCORES]
    again = ItemScores.load(tmp_path / SCORES)
    assert again.answers == found.answers


class Silent(Length):
    """A judge that gives some prompts no grade."""

    def __init__(self, prompts: list[str]) -> None:
        self.prompts = prompts

    def rate(self, prompts, references, answers) -> np.ndarray:
        return np.array([np.nan if prompt in self.prompts else 3.0 for prompt in prompts])


def test_too_few_grades_are_counted_over_all_items(tiny, items, tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "AT_A_TIME", 5)  # so that the last shard has one item
    options = {"folder": tmp_path, "metrics": ["judge"], "max_new_tokens": 1}
    found = measure(tiny, items, judge=Silent(items.prompts[-1:]), **options | {"folder": tmp_path / "one"})
    assert np.flatnonzero(np.isnan(found.values["judge"])).tolist() == [10]
    with pytest.raises(ModelError, match="'length' gave no grade from 1 to 5 in 3 of 11 replies: take another model"):
        measure(tiny, items, judge=Silent(items.prompts[-3:]), **options)
    again = measure(tiny, items, judge=Silent([]), **options)  # which asks again
    assert np.isfinite(again.values["judge"]).all()


class Killed(Exception):
    pass


def test_a_killed_measurement_ends_with_the_same_bytes(tiny, items, tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "SHARD", 4)
    monkeypatch.setattr(measurement, "AT_A_TIME", 4)
    options = {"judge": Length(), "max_new_tokens": 3}
    measure(tiny, items, folder=tmp_path / "whole", **options)
    calls, allowed = 0, 0
    answer, rate = measurement.answer, Length.rate

    def counted(*args, **named):
        nonlocal calls
        calls += 1
        if calls > allowed:
            raise Killed
        return (answer if "max_new_tokens" in named else rate)(*args, **named)

    monkeypatch.setattr(measurement, "answer", counted)
    monkeypatch.setattr(Length, "rate", counted)
    killed = 0
    while not (tmp_path / "killed" / SCORES).exists():
        calls, allowed = 0, 1
        try:
            measure(tiny, items, folder=tmp_path / "killed", **options)
        except Killed:
            killed += 1
    assert killed == 5  # of three shards of answers and three of grades, one each time
    for name in (SCORES, "measurement.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    calls, allowed = 0, 0
    measure(tiny, items, folder=tmp_path / "killed", **options)  # nothing is left to do


def test_an_answer_may_be_twice_as_long_as_its_reference_but_not_much_longer_than_all(tiny, items):
    lengths = [len(ids) - 1 for ids in tiny.encode([f"{row['response']}<|im_end|>\n" for row in ROWS])]
    assert items.new_tokens() == [min(2 * length, max(lengths)) + 8 for length in lengths]
    assert items.new_tokens(5) == [5] * len(items)
    long = Items.read(samples([{"id": "l", "prompt": "Count.", "response": "one two " * 160}]), tiny)
    assert long.new_tokens() == [256]


def test_in_context_learning_changes_the_loss(tiny, items, tmp_path):
    demonstrations = Demonstrations(items.samples, np.array([[k] for k in range(len(items))]))
    shown = demonstrations.before(items, tiny, new_tokens=[3] * len(items))
    found = measure(tiny, items, folder=tmp_path / "a", demonstrations=demonstrations, max_new_tokens=3)
    expected = mean_losses(tiny, shown.examples)
    np.testing.assert_allclose(found.values["loss"], expected, rtol=1e-4)
    alone = measure(tiny, items, folder=tmp_path / "b", metrics=["loss"])
    assert not np.allclose(alone.values["loss"], expected, rtol=2e-4)


def test_refusals(tiny, items, tmp_path):
    with pytest.raises(ConfigError, match="'bleu' is unknown"):
        measure(tiny, items, folder=tmp_path, metrics=["bleu"])
    with pytest.raises(ConfigError, match="needs `judge`"):
        measure(tiny, items, folder=tmp_path, metrics=["loss", "judge"])
    with pytest.raises(ConfigError, match="empty"):
        measure(tiny, items, folder=tmp_path, metrics=[])
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        measure(tiny, items, folder=tmp_path, adapter=tmp_path)
    assert not list(tmp_path.iterdir())
    measure(tiny, items, folder=tmp_path, metrics=["loss"])
    with pytest.raises(RunError, match="another model, test set or settings"):
        measure(tiny, items, folder=tmp_path, max_new_tokens=2)
