"""What a model cannot take, by its tokenizer alone: before any pass, and the same as the rendering itself refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from builders import chat, samples
from nncift.data.pool import ReadOptions, read_pool
from nncift.data.schemas import Text
from nncift.errors import ConfigError, DataError, ModelError
from nncift.influence.bm25 import BM25
from nncift.influence.delift import Delift
from nncift.influence.gradients.gradient_similarity import GradientSimilarity
from nncift.influence.gradients.less import Less
from nncift.influence.ifd import IFD
from nncift.influence.selectit import SelectIT
from nncift.models.spec import ModelSpec
from nncift.models.text.chats import Conversation, conversations
from nncift.models.text.screening import ExampleScreen, RowScreen

LONG = {"id": "long", "prompt": "why", "response": "so " * 200}
FINE = {"id": "fine", "prompt": "word " * 300, "response": "because"}


@pytest.fixture
def spec(tiny_model) -> ModelSpec:
    return ModelSpec(tiny_model, device="cpu", max_length=128)


def why(screen, row: dict) -> str | None:
    (sample,) = conversations(samples([row]))
    return screen(sample)


@pytest.mark.parametrize("kind", [Delift, IFD, Less, GradientSimilarity, SelectIT])
def test_a_response_that_does_not_fit_is_refused_without_the_weights(kind, spec):
    screen = kind(spec).screen("pool")
    assert why(screen, FINE) is None
    found = why(screen, LONG)
    assert re.match(r"its response takes 20\d tokens of '.*', and at most \d+ fit", found)
    assert found.endswith("in its context of 128 (raise `max_length`)")
    assert "beside" not in found or kind is Delift
    assert not spec.is_loaded
    long = {**LONG, "response": "so " * 600}
    assert "(take a model with a longer context)" in why(screen, long)
    if kind is not SelectIT:
        with pytest.raises(DataError, match="sample 'long': its response takes"):
            kind(spec).prepare(samples([LONG]), samples([FINE]))


def test_functions_that_do_not_read_a_side_refuse_nothing(spec):
    assert IFD(spec).screen("target") is None
    assert SelectIT(spec).screen("target") is None
    assert BM25().screen("pool") is None


@pytest.mark.parametrize("kind", [Delift, IFD, Less])
def test_chats_are_rendered(kind, tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(Path(tiny_model) / "config.json", tmp_path)
    row = chat("a", "one", "two")
    messages = json.loads(row["messages"])
    odd = {**row, "messages": json.dumps([messages[0], {"role": "tool", "content": "x"}, messages[1]])}
    spec = ModelSpec(str(tmp_path), device="cpu", max_length=128)
    screen = kind(spec).screen("pool")
    assert why(screen, row) is None
    found = why(screen, odd)
    assert found.endswith('refuses the messages (no tools) (set `wording` to "plain")')
    assert not why(kind(ModelSpec(str(tmp_path), wording="plain")).screen("pool"), odd)
    if kind is not Less:
        rules = chat("a", "one", "two", system="rule " * 200)
        assert "does not fit into" in why(screen, rules)


def test_features_truncate_what_is_too_long(spec):
    screen = ExampleScreen(spec, cut_responses=True)
    assert why(screen, LONG) is None
    assert why(screen, chat("a", "one", "so " * 200)) is None


def test_rows_are_refused_while_they_are_read(spec, tmp_path):
    rows = [{"prompt": f"why {k}", "response": "so " * (200 if k in (1, 3) else 2)} for k in range(5)]
    screen = RowScreen([Less(spec).screen("pool")])
    with pytest.raises(DataError, match=r"2 of 5 rows .* row 2: its response takes .* row 4: .*`skip_bad_rows`"):
        read_pool(rows, screen=screen)
    pool, facts = read_pool(rows, ReadOptions(skip_bad_rows=True), screen=screen, folder=tmp_path / "pool")
    assert (len(pool), facts.rejected) == (3, 2)
    listed = (tmp_path / "pool" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["row"] for line in listed] == [2, 4]


def test_a_chat_that_comes_again_is_rendered_once():
    seen: list[Conversation] = []

    def screen(sample: Conversation) -> str:
        seen.append(sample)
        return "no"

    row = chat("a", "one", "two")
    text = Text(row["prompt"], row["response"], row["messages"])
    rows = RowScreen([screen, screen])
    assert [rows(text), rows(text)] == ["no", "no"]
    assert len(seen) == 1
    assert seen[0].turns[0] == {"role": "user", "content": "one"}


def test_one_wording_for_all_functions(tiny_model):
    spec = ModelSpec(tiny_model, device="cpu", wording="plain")
    rows = samples([chat("a", "one", "two")])
    assert Delift(spec).wording == "plain"
    assert Less(spec).describe()["wording"] == "plain"
    assert "wording" not in Less(tiny_model).describe()
    assert Less(tiny_model).describe() == Less(tiny_model, wording="auto").describe()
    (example,) = Less(spec)._examples(rows)
    assert spec.loaded.tokenizer.decode(example.ids[: example.start]) == "Request:\none\n\nResponse:\n"
    (example,) = Less(tiny_model, device="cpu", wording="chat")._examples(rows.remove_columns("messages"))
    assert spec.loaded.tokenizer.decode(example.ids).endswith("<|im_start|>assistant\ntwo<|im_end|>")
    with pytest.raises(ConfigError, match="`wording` was given for the run and for delift"):
        Delift(spec, wording="chat")
    with pytest.raises(ConfigError, match="`wording` 'loud' is unknown"):
        Less(tiny_model, wording="loud")
    with pytest.raises(ModelError, match="there is no folder"):
        _ = ModelSpec("/nowhere").tokenization
