from __future__ import annotations

import numpy as np
import pytest

from builders import chat, samples, word_rows
from nncift.errors import ConfigError
from nncift.evaluation.answers.in_context import Demonstrations, most_similar
from nncift.evaluation.answers.items import Items
from nncift.models.spec import EncoderSpec
from nncift.models.text.chats import Conversation
from nncift.models.text.examples import encode_samples
from nncift.models.text.tokenization import Tokenization


def shown(model: Tokenization, items: Items) -> list[str]:
    return [model.tokenizer.decode(example.ids) for example in items.examples]


def test_most_similar_first_and_ties_in_order():
    rng = np.random.default_rng(0)
    queries, keys = (rng.standard_normal((n, 6)).astype(np.float32) for n in (7, 9))
    keys[4] = keys[2]
    expected = [
        sorted(range(9), key=lambda k: (-np.float64(queries[q] @ keys[k].astype(np.float64)), k))[:3] for q in range(7)
    ]
    np.testing.assert_array_equal(most_similar(queries, keys, 3), expected)
    assert most_similar(queries, keys, 20).shape == (7, 9)


def test_demonstrations_are_earlier_exchanges_the_most_similar_last(tiny, minilm):
    rows = samples(
        [
            {"id": "a", "prompt": "Translate cat into French", "response": "chat"},
            {"id": "b", "prompt": "Translate dog into French", "response": "chien"},
            {"id": "c", "prompt": "What is two plus two?", "response": "four"},
        ]
    )
    items = Items.read(samples([{"id": "t", "prompt": "Translate the dog into French", "response": "le chien"}]), tiny)
    found = Demonstrations.choose(items, rows, EncoderSpec(minilm, device="cpu"), k=2)
    assert found.nearest.tolist() == [[1, 0]]
    turns = [("user", "Translate cat into French"), ("assistant", "chat")]
    turns += [("user", "Translate dog into French"), ("assistant", "chien"), ("user", "Translate the dog into French")]
    before = tiny.chat([{"role": role, "content": content} for role, content in turns])
    together = found.before(items, tiny, new_tokens=[16])
    assert shown(tiny, together) == [f"{before}le chien<|im_end|>"]
    assert together.prompt_ids == tiny.encode([before])
    assert together.references == items.references


def test_plain_demonstrations_are_blocks(tiny):
    rows, test = samples(word_rows(3)), samples(word_rows(1, 5))
    items = Items.read(test, tiny, wording="plain")
    demonstrations = Demonstrations(tuple(Items.read(rows, tiny).samples), np.array([[2, 0]]))
    (text,) = shown(tiny, demonstrations.before(items, tiny, new_tokens=[4]))
    blocks = [f"Request:\n{row['prompt']}\n\nResponse:\n{row['response']}" for row in (*word_rows(1), word_rows(3)[2])]
    own = f"Request:\n{test[0]['prompt']}\n\nResponse:\n{test[0]['response']}"
    assert text == "\n\n".join([*blocks, own]) + "<|im_end|>"


def test_turns_that_are_trained_on_stay_so_after_a_system_message(tiny):
    row = chat("t", "one", "two", "three", "four", system="Be brief.")
    sample = Conversation.read("t", "one", "four", row["messages"], None, [2, 4])
    items = Items((sample,), tuple(encode_samples(tiny, [sample], wording="chat")), "chat")
    demonstrations = Demonstrations(Items.read(samples(word_rows(1)), tiny).samples, np.array([[0]]))
    together = demonstrations.before(items, tiny, new_tokens=[4])
    pieces = [
        [tiny.tokenizer.decode(e.ids[a:b]) for a, b in e.spans] for e in (items.examples[0], together.examples[0])
    ]
    assert pieces[0] == pieces[1]
    assert len(pieces[0]) == 2
    (text,) = shown(tiny, together)
    assert text.index("Be brief.") < text.index(word_rows(1)[0]["prompt"]) < text.index("one")


def test_the_least_similar_go_first_where_the_context_is_short(tiny_model):
    rows = samples(word_rows(6))
    lengths = (110, 140, 200, 512)
    models = [Tokenization.read(tiny_model, max_length=length) for length in lengths]
    for wording in ("chat", "plain"):
        kept = []
        for length, model in zip(lengths, models, strict=True):
            items = Items.read(samples(word_rows(1, 9)), model, wording=wording)
            demonstrations = Demonstrations(Items.read(rows, model).samples, np.array([[3, 1, 4, 0, 5]]))
            together = demonstrations.before(items, model, new_tokens=[40])
            (text,) = shown(model, together)
            assert len(together.prompt_ids[0]) + 40 <= length
            order = [k for k in (5, 0, 4, 1, 3) if rows[k]["prompt"] + "\n" in text.replace("<|im_end|>", "\n")]
            assert order == [5, 0, 4, 1, 3][5 - len(order) :]
            kept.append(len(order))
        assert kept == sorted(kept)
        assert kept[0] < kept[-1] == 5


def test_no_demonstrations(tiny, minilm):
    items = Items.read(samples(word_rows(2)), tiny)
    for rows, k in ((samples(word_rows(2)), 0), (samples(word_rows(2)).select([]), 5)):
        with pytest.raises(ConfigError, match="no demonstrations"):
            Demonstrations.choose(items, rows, EncoderSpec(minilm), k=k)
