"""Prompts in plain text and in chat templates: rendering, truncation, room in the context."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from builders import chat, named, samples
from nncift.errors import ConfigError, DataError, ModelError
from nncift.models.language_model import LanguageModel
from nncift.models.text.chat_prompts import ChatPrompts, choose_prompts
from nncift.models.text.prompts import PlainPrompts, PromptTemplate

ROWS = named([("one two", "three"), ("four", "five six")], "x")


@pytest.fixture(scope="module")
def short(tiny_model) -> LanguageModel:
    """The tiny model with a context of 128 tokens."""
    return LanguageModel.load(tiny_model, device="cpu", max_length=128)


class TestTruncation:
    def test_keeps_the_same_end_of_the_prompt_in_both_roles(self, short):
        (rendered,) = PlainPrompts(short, PromptTemplate()).render(named([("early " * 300 + "late words", "yes")], "x"))
        assert rendered.cut
        kept = short.encode(["early " * 300 + "late words"])[0][-10:]
        for ids in (rendered.example, rendered.queries[0].after_example):
            assert any(ids[k : k + 10] == kept for k in range(len(ids)))
        texts = (PromptTemplate().with_example, PromptTemplate().query)
        before, asks = map(len, short.encode([text.partition("{prompt}")[0] for text in texts]))
        shown = rendered.example[before : rendered.example.index(kept[-1], before) + 1]
        assert shown == rendered.queries[0].after_example[asks:][: len(shown)]

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 300), st.integers(1, 20)), min_size=1, max_size=4),
        st.sampled_from(["plain", "chat"]),
    )
    def test_any_two_samples_fit_together(self, short, sizes, style):
        rows = named([("ab " * prompt, "no " * response) for prompt, response in sizes], "x")
        prompts = choose_prompts(short, style)
        rendered = prompts.render(rows)
        assert [sample.queries[0].response[-1] for sample in rendered] == short.end_ids * len(rendered)
        for (query,) in (sample.queries for sample in rendered):
            assert len(prompts.no_example) + len(query.alone) + len(query.response) <= short.context_length
            for example in rendered:
                assert len(example.example) + len(query.after_example) + len(query.response) <= short.context_length
        for sample, row in zip(rendered, rows, strict=True):  # no unnecessary truncation
            tokens = sum(len(ids) for ids in short.encode([row["prompt"], row["response"]])) + 1
            if sample.cut or style == "plain":
                assert sample.cut == (tokens > prompts._room)

    def test_a_chat_loses_its_oldest_exchanges_then_the_start_of_the_request(self, short):
        asked = (("one", "three"), ("old " * 100, "three"), ("old", "early " * 200 + "late"))
        rows = samples([chat(one, one, "two", three, "four", system="Be brief.") for one, three in asked])
        rendered = ChatPrompts(short).render(rows)
        assert [sample.cut for sample in rendered] == [False, True, True]
        text = short.tokenizer.decode
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "three"}]
        assert text(rendered[1].queries[0].alone) == short.chat(turns)
        for last in (text(rendered[2].queries[0].alone), text(rendered[2].example)):
            assert "Be brief." in last
            assert "early late<|im_end|>" in last
            assert "old" not in last
        assert last.endswith("four")

    def test_a_chat_that_cannot_be_truncated_enough_is_an_error(self, short):
        with pytest.raises(DataError, match="sample 'x': it does not fit into"):
            ChatPrompts(short).render(samples([chat("x", "one", "two", system="rule " * 200)]))

    @pytest.mark.parametrize("style", ["plain", "chat"])
    def test_a_context_without_room_is_an_error(self, tiny_model, style):
        model = LanguageModel.load(tiny_model, max_length=40, device="cpu")
        with pytest.raises(ModelError, match=r"40 tokens, and the template alone takes .*: raise `max_length`"):
            choose_prompts(model, style)


class TestPlainPrompts:
    def test_placeholders_in_data_are_text(self, tiny):
        rows = named([("{response} {0} {prompt}", "{prompt}"), ("%s {", "}")], "x")
        first, second = PlainPrompts(tiny, PromptTemplate()).render(rows)
        assert "Example request:\n{response} {0} {prompt}\n" in tiny.tokenizer.decode(first.example)
        assert "Example response:\n{prompt}\n" in tiny.tokenizer.decode(first.example)
        assert tiny.tokenizer.decode(second.queries[0].after_example).startswith("Request:\n%s {\n")

    def test_a_custom_template(self, tiny):
        template = PromptTemplate("", "A: {response}\nQ: {prompt}\n", "Q: {prompt}\nA:")
        rendered = PlainPrompts(tiny, template).render(ROWS)[0]
        assert tiny.tokenizer.decode(rendered.example) == "A: three\nQ: one two\n"
        assert tiny.tokenizer.decode(rendered.queries[0].after_example) == "Q: one two\nA:"

    @pytest.mark.parametrize(
        ("field", "text"),
        [
            ("without_example", "{prompt}"),
            ("with_example", "{prompt}"),
            ("with_example", "{prompt} {response} {prompt}"),
            ("query", "Say something"),
            ("query", "{prompt} {response}"),
            ("query", "{prompt}"),
        ],
    )
    def test_placeholders_are_validated(self, field, text):
        with pytest.raises(ConfigError, match=f"the template's {field}"):
            PromptTemplate(**{field: text})

    def test_an_unknown_style_is_an_error(self, tiny):
        with pytest.raises(ConfigError, match='`wording` \'loud\' is unknown: give "auto", "chat", "plain"'):
            choose_prompts(tiny, "loud")

    def test_leading_tokens_come_once(self, fresh):
        plain = PlainPrompts(fresh, PromptTemplate())
        fresh.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        adding = PlainPrompts(LanguageModel(fresh.model, fresh.tokenizer), PromptTemplate())
        assert adding.no_example == [0, *plain.no_example]
        for sample, expected in zip(adding.render(ROWS), plain.render(ROWS), strict=True):
            assert sample.example == [0, *expected.example]
            assert sample.queries == expected.queries

    def test_without_an_end_token_the_response_is_its_text(self, fresh):
        fresh.end_ids = []
        prompts = PlainPrompts(fresh, PromptTemplate())
        assert [sample.queries[0].response for sample in prompts.render(ROWS)] == fresh.encode(ROWS["response"])
        with pytest.raises(DataError, match="sample 'x0': its response has no tokens"):
            prompts.render(named([("a", "")], "x"))


class TestChatPrompts:
    def test_pieces_joined_are_the_whole_conversation(self, tiny):
        chats = [
            chat("a", "one\n", "two"),
            chat("b", "one", "two", "three", " four", system="Be brief."),
            chat("c", "a {question}", "an answer"),
        ]
        conversations = [json.loads(row["messages"]) for row in chats]
        rows = samples([*chats[:2], {**chats[2], "messages": None}])
        rendered = ChatPrompts(tiny).render(rows)
        for example, before in zip(rendered, conversations, strict=True):
            for query, turns in zip(rendered, conversations, strict=True):
                (whole,) = tiny.encode([tiny.chat([*before, *turns[:-1]])])
                assert example.example + query.queries[0].after_example == whole
                assert query.queries[0].alone == tiny.encode([tiny.chat(turns[:-1])])[0]

    def test_a_template_that_renders_the_last_exchange_differently(self, fresh):
        """As reasoning models' templates do: an empty thought in the last turn, none in earlier ones."""
        fresh.tokenizer.chat_template = (
            "{% for m in messages %}<{{ m.role }}>"
            "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
            "{{ m.content }};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        (rendered,) = ChatPrompts(fresh).render(samples([chat("a", "one", "two")]))
        joined = fresh.tokenizer.decode(rendered.example + rendered.queries[0].after_example)
        assert joined == "<user>one;<assistant>two;<user>one;<assistant>"

    @pytest.mark.parametrize("where", ["front", "end"])
    def test_an_example_that_depends_on_what_follows_is_an_error(self, fresh, where):
        count = "[{{ messages | length }}{{ messages[0].content }}]"
        turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}"
        fresh.tokenizer.chat_template = count + turns if where == "front" else turns + count
        with pytest.raises(ModelError, match='depending on what follows: set `wording` to "plain"'):
            ChatPrompts(fresh).render(samples([chat("a", "one", "two"), chat("b", "one", "two", "three", "four")]))

    def test_an_error_names_the_sample(self, fresh):
        fresh.tokenizer.chat_template = (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            "<{{ m.role }}>{{ m.content }}{% endfor %}"
        )
        rows = samples([chat("fine", "one", "two"), chat("odd", "one", "two", system="Be brief.")])
        with pytest.raises(ModelError, match=r"sample 'odd': .* \(no system\)"):
            ChatPrompts(fresh).render(rows)
