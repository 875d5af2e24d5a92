"""Chats as models read them: tools, tool calls and null content in templates, and turns that are trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import references
from builders import chat, chat_rows, samples
from nncift.errors import ModelError
from nncift.models.language_model import LanguageModel
from nncift.models.text.chat_prompts import ChatPrompts
from nncift.models.text.chats import any_turns, conversations, mean_over_turns
from nncift.models.text.examples import encode_examples, response_losses
from nncift.models.text.prompts import PlainPrompts, PromptTemplate

CALL = {"id": "c0", "type": "function", "function": {"name": "tide", "arguments": '{"harbour": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}]
MESSAGES = [
    {"role": "user", "content": "What is the tide?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "0.1"},
    {"role": "assistant", "content": "It is 0.1 metres."},
]
RENDERS_CALLS = (
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}{{ call.function.arguments.harbour }}!{% endfor %}"
    "{% else %}{{ m.content }}{% endif %};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


class TestTemplates:
    def test_tool_calls_and_tools_that_the_template_does_not_know_are_text(self, tiny):
        text = tiny.chat(MESSAGES[:-1], TOOLS)
        assert "None" not in text
        assert json.dumps(TOOLS) in text.partition("<|im_start|>user")[0]
        assert f"<|im_start|>assistant\n{json.dumps([CALL])}<|im_end|>" in text
        system = {"role": "system", "content": "Be brief."}
        assert tiny.chat([system, *MESSAGES[:-1]], TOOLS).startswith("<|im_start|>system\nBe brief.\n\nTools:\n[")

    def test_a_template_that_takes_them_gets_them(self, fresh):
        fresh.tokenizer.chat_template = RENDERS_CALLS
        text = fresh.chat(MESSAGES[:-1], TOOLS)
        assert text.startswith(f"<tools>{json.dumps(TOOLS)}")
        assert "<assistant>1!;<tool>0.1;<assistant>" in text

    @pytest.mark.parametrize(
        ("turn", "text"),
        [("{{ m.content }}", ""), ("{{ 'a' + m.content }}", "a"), ("{{ 'null' if m.content is not string }}", "null")],
    )
    def test_null_content_is_empty_unless_the_template_knows_it(self, fresh, turn, text):
        fresh.tokenizer.chat_template = "{% for m in messages %}" + turn + "{% endfor %}{{ tool_calls }}"
        assert fresh.chat([{"role": "assistant", "content": None}]) == text

    def test_of_several_templates_none_may_fit(self, fresh):
        fresh.tokenizer.chat_template = {"rag": "x"}
        with pytest.raises(ModelError, match=r'refuses the messages .*: set `wording` to "plain"'):
            fresh.chat(MESSAGES[:1])

    def test_they_reach_prompts_and_examples(self, tiny):
        rows = chat_rows([{"messages": MESSAGES, "tools": TOOLS}, {"messages": MESSAGES}])
        both = [
            [sample.queries[0].alone for sample in ChatPrompts(tiny, single=single).render(rows)] for single in (0, 1)
        ]
        both.append([example.ids for example in encode_examples(tiny, rows)])
        for with_tools, without in both:
            assert json.dumps(TOOLS) in tiny.tokenizer.decode(with_tools)
            assert json.dumps([CALL]) in tiny.tokenizer.decode(without)
            assert "Tools" not in tiny.tokenizer.decode(without)


def four_turns(name: str = "a", system: str | None = None) -> dict:
    return chat(name, "one", "two three", "four", "five six seven", "eight", "nine", system=system)


class TestTurns:
    """With `turns`, every turn counts: its loss is that of the conversation up to it."""

    @pytest.fixture(params=["chat", "plain"])
    def wording(self, request) -> str:
        return request.param

    @pytest.fixture
    def rows(self):
        rows = [four_turns(), four_turns("b", system="Be brief."), chat("c", "ten", "eleven")]
        return samples(rows).add_column("turns", [[1, 3, 5], [2, 6], None])

    def test_each_turn_is_a_query_of_its_own(self, tiny, rows, wording):
        prompts = ChatPrompts(tiny) if wording == "chat" else PlainPrompts(tiny, PromptTemplate())
        rendered = prompts.render(rows)
        assert [len(sample.queries) for sample in rendered] == [3, 2, 1]
        asked = [("one", "two three"), ("one", "two three", "four", "five six seven")]
        parts = prompts.render(samples([chat("x", *texts) for texts in asked]))
        assert rendered[0].queries[0] == parts[0].queries[0]
        if wording == "chat":
            assert rendered[0].queries[1] == parts[1].queries[0]
        (whole,) = prompts.render(samples([four_turns()]))
        assert (rendered[0].example, rendered[0].queries[2]) == (whole.example, whole.queries[0])
        assert any_turns(rows)
        assert not any_turns(rows.select([2]), samples([four_turns()]))

    def test_mean_over_turns(self):
        values = np.array([[1, 2, 6, 4, 5, 7]], np.float32).T
        found = mean_over_turns(["abc", "de", "f"], values)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, [[3], [4.5], [7]])

    def test_the_spans_are_the_turns_and_their_end_tokens(self, tiny, rows, wording):
        for example, texts in zip(
            encode_examples(tiny, rows, wording=wording),
            (["two three", "five six seven", "nine"], ["two three", "nine"], ["eleven"]),
            strict=True,
        ):
            spans = [tiny.tokenizer.decode(example.ids[start:end]) for start, end in example.spans]
            assert spans == [f"{text}<|im_end|>" for text in texts]
        if wording == "chat":
            whole = encode_examples(tiny, rows)[0]
            assert whole.ids == encode_examples(tiny, samples([four_turns()]))[0].ids

    def test_the_loss_is_the_mean_over_turns(self, tiny, rows, wording):
        examples = encode_examples(tiny, rows, wording=wording)
        expected = []
        for example in examples:
            turns = [references.response_loss(tiny.model, example.ids[:end], start) for start, end in example.spans]
            expected.append(float(torch.stack(turns).mean().detach()))
        np.testing.assert_allclose(response_losses(tiny, examples).detach(), expected, rtol=1e-5)
        if wording == "chat":  # a turn's own example is the conversation up to it
            alone = encode_examples(tiny, samples([chat("x", "one", "two three", "four", "five six seven")]))[0]
            (start, end) = examples[0].spans[1]
            assert examples[0].ids[:end] == alone.ids
            assert start == alone.start

    def test_keys_tell_turns_apart(self, tiny, rows):
        all_turns, last = (encode_examples(tiny, some)[0] for some in (rows, rows.remove_columns("turns")))
        assert all_turns.ids == last.ids
        assert all_turns.key != last.key

    def test_a_long_chat_loses_its_first_turns(self, tiny_model):
        short = LanguageModel.load(tiny_model, device="cpu", max_length=64)
        row = chat("a", "one", "two", "early " * 100 + "late", "three", "four", "five")
        rows = samples([row]).add_column("turns", [[1, 3, 5]])
        for wording in ("chat", "plain"):
            (example,) = encode_examples(short, rows, wording=wording)
            assert example.cut
            assert len(example.ids) == 64
            texts = [short.tokenizer.decode(example.ids[start:end]) for start, end in example.spans]
            assert texts == ["three<|im_end|>", "five<|im_end|>"]

    def test_a_template_that_drops_earlier_thoughts(self, fresh):
        """As reasoning models' templates do; what is scored is what the template shows."""
        fresh.tokenizer.chat_template = (
            "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] | trim }}<|im_end|>"
            "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        rows = samples([chat("a", "one", "<think>hm</think> two", "three", "four")]).add_column("turns", [[1, 3]])
        (example,) = encode_examples(fresh, rows)
        texts = [fresh.tokenizer.decode(example.ids[start:end]) for start, end in example.spans]
        assert texts == ["two<|im_end|>", "four<|im_end|>"]

    def test_a_template_whose_turns_depend_on_others_is_refused(self, fresh):
        fresh.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ messages[1].content }};{% endfor %}"
        rows = samples([four_turns()]).add_column("turns", [[1, 3, 5]])
        with pytest.raises(ModelError, match=r'renders a turn differently .* set `wording` to "plain"'):
            encode_examples(fresh, rows)


def test_a_pool_of_an_earlier_version_has_fewer_columns(tiny):
    rows = samples([four_turns()])
    (old,) = conversations(rows)
    (new,) = conversations(rows.add_column("tools", [None]).add_column("turns", [None]))
    assert old == new
    assert old.trained == (5,)
    (bare,) = conversations(rows.remove_columns("messages"))
    assert bare.turns is None
