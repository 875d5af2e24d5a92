"""What belongs to a sample beside its turns, which turns are trained on, and the notations of chats."""

import json

import pytest

from nncift.data.chats.role_markers import marked_messages
from nncift.data.pool import ReadOptions, load_pool, read_pool
from nncift.errors import ConfigError, DataError

TOOL = {"name": "add", "description": "Adds.", "parameters": {}}
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def turn(role, content, **marks):
    return {"role": role, "content": content, **marks}


def roles_and_texts(messages):
    return [(message["role"], message["content"]) for message in messages]


# --- system, history, tools ----------------------------------------------------------------------------

BASES = [
    {"instruction": "q", "input": "", "output": "a"},
    {"prompt": "q", "response": "a"},
    {"query": "q", "response": "a"},
    {"messages": CHAT},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
]


@pytest.mark.parametrize("base", BASES)
def test_columns_beside_the_turns_belong_to_the_sample(base):
    more = {"system": "s", "history": [["q0", "a0"]], "tools": json.dumps([TOOL])}
    rows = [base, *(base | {name: value} for name, value in more.items()), base | more]
    pool, facts = read_pool(rows)
    assert (facts.rows, facts.duplicates) == (5, 0)
    last, tools = pool[4], json.dumps([{"type": "function", "function": TOOL}])
    expected = [("system", "s"), ("user", "q0"), ("assistant", "a0"), ("user", "q"), ("assistant", "a")]
    assert roles_and_texts(json.loads(last["messages"])) == expected
    assert last["prompt"] == f"System: s\nTools: {tools}\nUser: q0\nAssistant: a0\nUser: q"
    assert (last["response"], last["tools"]) == ("a", tools)
    assert {"system", "history", "tools"} <= set(facts.fields)


def test_empty_columns_beside_the_turns_change_nothing():
    plain = {"instruction": "q", "output": "a"}
    empty = {"system": "", "history": [], "tools": None, "functions": "[]"}
    [sample] = load_pool([plain | empty])
    assert {**sample, "original": None} == {**load_pool([plain])[0], "original": None}


@pytest.mark.parametrize("blank", ["", " \n", None, [], [{"type": "text", "text": ""}]])
def test_a_blank_system_message_yields_to_the_column(blank):
    [sample] = load_pool([{"system": "s", "messages": [turn("system", blank), *CHAT]}])
    assert roles_and_texts(json.loads(sample["messages"])) == [("system", "s"), ("user", "q"), ("assistant", "a")]
    [sample] = load_pool([{"system": "s", "messages": [turn("system", "own"), *CHAT]}])
    assert roles_and_texts(json.loads(sample["messages"]))[0] == ("system", "own")


def test_a_column_of_such_a_name_that_holds_something_else_is_noted():
    pool, facts = read_pool([{"prompt": "p", "response": "r", "tools": ["hammer"], "history": "long"}])
    assert (pool[0]["prompt"], pool[0]["messages"]) == ("p", None)
    assert facts.notes == (
        "history of 1 row is not used: not a list of earlier turns",
        "tools of 1 row is not used: not a list of tools",
    )
    with pytest.raises(DataError, match="field 'system': a number, not text"):
        load_pool([{"prompt": "p", "response": "r", "system": 3}])
    with pytest.raises(DataError, match=r"field 'history\[0\]': not a pair of texts"):
        load_pool([{"prompt": "p", "response": "r", "history": [["q"]]}])


# --- which turns are trained on ------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": "false"}, {"training": 0}])
def test_the_response_is_the_last_turn_that_is_trained_on(mark):
    messages = [*CHAT, turn("user", "q2"), turn("assistant", "bad", **mark)]
    [sample] = load_pool([{"messages": messages}])
    assert (sample["prompt"], sample["response"], json.loads(sample["messages"])) == ("q", "a", CHAT)


def test_undesired_rows_are_left_out_and_listed(tmp_path):
    rows = [
        {"prompt": "p", "completion": "good", "label": True},
        {"prompt": "p", "completion": "bad", "label": False},
        {"messages": [CHAT[0], CHAT[1] | {"weight": 0}]},
        {"instruction": "i", "output": "o", "kto_tag": "false"},
        {"instruction": "i", "output": "o", "label": 0},  # a class
    ]
    pool, facts = read_pool(rows, folder=tmp_path / "pool")
    assert pool["source_row"][:] == [0, 4]
    assert (facts.read, facts.rows, facts.undesired, facts.rejected) == (5, 2, 3, 0)
    listed = [json.loads(line) for line in (tmp_path / "pool" / "rejected.jsonl").read_text().splitlines()]
    assert [(each["row"], each["reason"]) for each in listed] == [
        (2, "marked as undesired"),
        (3, "every assistant turn is marked as not to be trained on"),
        (4, "marked as undesired"),
    ]
    with pytest.raises(DataError, match=r"every row is marked as not to be trained on: row 1, label: marked"):
        load_pool(rows[1:2])


def test_all_turns():
    messages = [turn("system", "s"), *CHAT, turn("user", "q2"), turn("assistant", "no", train=False)]
    messages += [turn("user", "q3"), turn("assistant", "a3")]
    rows = [{"messages": messages}, {"prompt": "p", "response": "r"}]
    pool = load_pool(rows, turns="all")
    assert pool["turns"][:] == [[2, 6], None]
    assert load_pool(rows)["turns"][:] == [None, None]
    assert load_pool(rows)["id"][:] == pool["id"][:]
    unmarked = [{key: value for key, value in message.items() if key != "train"} for message in messages]
    assert len(load_pool([{"messages": messages}, {"messages": unmarked}])) == 2
    greeting = [turn("assistant", "Hello!"), *CHAT]
    assert load_pool([{"messages": greeting}], turns="all")["turns"][:] == [[2]]
    with pytest.raises(ConfigError, match="`turns` is 'some'"):
        load_pool(rows, turns="some")


# --- notations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "turns",
    [
        ["q", "a"],
        ["q", "a", "thanks"],
        [{"human": "q", "assistant": "a"}],
        [{"input": "q", "output": "a"}],
        [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        [{"role": "human", "content": "q"}, {"role": "model", "content": ["a"]}],
        [{"role": "user", "content": "q", "from": None, "value": None}, {"role": "bot", "content": "a"}],
    ],
)
def test_lists_of_turns(turns):
    for row, options in (({"conversations": turns}, {}), ({"dialog": turns}, {"messages_field": "dialog"})):
        [sample] = load_pool([row], **options)
        assert (sample["prompt"], sample["response"]) == ("q", "a")
        assert [message["role"] for message in json.loads(sample["messages"])] == ["user", "assistant"]


def test_tool_roles_in_both_styles():
    roles = ("user", "tool_call", "tool_response", "assistant")
    for names in (("role", "content"), ("from", "value")):
        turns = [dict(zip(names, (role, f"t{i}"), strict=True)) for i, role in enumerate(roles)]
        [sample] = load_pool([{"messages": turns}])
        found = [message["role"] for message in json.loads(sample["messages"])]
        assert found == ["user", "assistant", "tool", "assistant"]


SYSTEM, TWO = ("system", "s"), [("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("### Human: q### Assistant: a### Human: q2### Assistant: a2", TWO),
        ("s\n### User:\nq\n\n### Assistant:\na\n", [SYSTEM, *TWO[:2]]),
        ("<|system|>\ns</s>\n<|user|>\nq</s>\n<|assistant|>\na</s>\n", [SYSTEM, *TWO[:2]]),
        ("<|prompter|>q<|endoftext|><|assistant|>a<|endoftext|>", TWO[:2]),
        ("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n",
         [SYSTEM, *TWO[:2]]),
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>", TWO[:2]),
        ("<bos><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n", TWO[:2]),
        ("<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST] a </s><s>[INST] q2 [/INST] a2 </s>", [SYSTEM, *TWO]),
        ("\n\nHuman: q\n\nAssistant: a\n\nHuman: q2\n\nAssistant: a2", TWO),
        ("s USER: q ASSISTANT: a</s>USER: q2 ASSISTANT: a2</s>", [SYSTEM, *TWO]),
        ("Below is an instruction that describes a task. Write a response.\n\n### Instruction:\nq\n\n### Response:\na",
         TWO[:2]),
        ("### Instruction:\ni\n\n### Input:\nn\n\n### Response:\na", [("user", "i\n\nn"), ("assistant", "a")]),
    ],
)  # fmt: skip
def test_role_markers(text, expected):
    assert roles_and_texts(marked_messages(text)) == expected
    assert load_pool([{"chosen": text, "rejected": text}])["response"][:] == [expected[-1][1]]
    [sample] = load_pool([{"text": text}])
    assert sample["response"] == expected[-1][1]
    assert load_pool([{"other": text}], messages_field="other")["response"][:] == [sample["response"]]


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nHow does Llama 2 mark?<|im_end|>\n<|im_start|>assistant\nWith {}.<|im_end|>\n",
        "### Human: How does Llama 2 mark?### Assistant: With {}.",
        "<s><|user|>\nHow does Llama 2 mark?</s>\n<|assistant|>\nWith {}.</s>",
    ],
)
@pytest.mark.parametrize("marker", ["[/INST]", "[INST] and [/INST]"])
def test_a_turn_can_mention_the_markers_of_llama(text, marker):
    assert roles_and_texts(marked_messages(text.format(marker))) == [
        ("user", "How does Llama 2 mark?"),
        ("assistant", f"With {marker}."),
    ]
    llama = "[INST] How does Vicuna mark? USER: x ASSISTANT: y [/INST] So."
    assert [message["role"] for message in marked_messages(llama)] == ["user", "assistant"]
    assert roles_and_texts(marked_messages("s [INST] q [/INST] a")) == [SYSTEM, *TWO[:2]]


@pytest.mark.parametrize("text", ["plain", "He said: Human: no", "### Human: q", "[INST] q [/INST]", "Human: q\nok"])
def test_no_role_markers(text):
    assert marked_messages(text) is None
    with pytest.raises(DataError, match="text without role markers such as ### Human:"):
        load_pool([{"other": text}], messages_field="other")


ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"question": "q", "chosen": "a"},
        {"instruction": "q", "input": "", "chosen": "a"},
        {"prompt": "q", "chosen": CHAT, "rejected": CHAT},
        {"prompt": CHAT[:1], "chosen": [ANSWER]},
        {"prompt": CHAT[:1], "chosen": CHAT},
        {"prompt": "q", "chosen": [ANSWER]},
        {"chosen": CHAT},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}},
        {"messages": CHAT, "chosen": CHAT, "rejected": CHAT},
    ],
)
def test_the_chosen_side_of_a_preference_is_the_sample(row):
    [sample] = load_pool([row])
    assert (sample["prompt"], sample["response"]) == ("q", "a")


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "response"),
    [
        ("Hello", "Hello! How can I help?", "Hello!", "Hello! How can I help?"),
        ("Hello", "Hello! How can I help?", "No.", "Hello! How can I help?"),
        ("Hello", "Hello there", "Go away", "Hello there"),
        ("Paris", "Paris", "Paris", "Paris"),
        ("Paris", "Paris is it", "Paris", "Paris is it"),
        ("Why? ", "Why? So.", "Why? Or so.", "So."),
        ("Why?", "Why? So.", "Why? Or so.", " So."),
        ("Why?", "Why?\nSo.", None, "\nSo."),
        ("\n\nHuman: q\n\nAssistant:", "\n\nHuman: q\n\nAssistant:a", "\n\nHuman: q\n\nAssistant: b", "a"),
        ("[INST] q [/INST]", "[INST] q [/INST]a", "[INST] q [/INST]b", "a"),
        ("<|user|>q", "<|user|>q<|assistant|>a", "<|user|>q<|assistant|>b", "<|assistant|>a"),
    ],
)
def test_a_prompt_before_the_chosen_response_is_left_out_only_where_it_is_repeated(prompt, chosen, rejected, response):
    [sample] = load_pool([{"prompt": prompt, "chosen": chosen, "rejected": rejected}])
    assert (sample["prompt"], sample["response"]) == (prompt, response)


# --- mixtures ------------------------------------------------------------------------------------------


def test_each_row_is_read_by_the_schema_that_it_fits():
    alpaca = {"instruction": "i", "input": "", "output": "o"}
    padded = {"instruction": None, "input": None, "output": None, "messages": CHAT}
    pool, facts = read_pool([alpaca | {"messages": None}, padded, {"question": "q1", "answer": "a1"}, alpaca])
    assert pool["response"][:] == ["o", "a", "a1"]
    assert facts.schemas == {"Alpaca": 2, "messages": 1, "question/answer": 1}
    assert facts.schema == "Alpaca, messages, question/answer"
    assert str(facts) == (
        "4 rows of <dataset> (Alpaca 2, messages 1, question/answer 1): 3 samples, 1 exact duplicate dropped"
    )
    fine = {"messages": None, "question": "q", "answer": "a"}
    assert load_pool([fine])["response"][:] == ["a"]


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"instruction": "i", "output": None}, "output", "null"),
        ({"instruction": "i", "output": None, "question": "q", "answer": "a"}, "output", "null"),
        ({"instruction": "i", "text": "### Human: q### Assistant: a"}, "output", "missing"),
        ({"alien": 1, "other": 2}, None, "no known schema fits its fields (alien, other)"),
    ],
)
def test_a_broken_row_is_not_read_by_a_weaker_schema(row, field, reason):
    rows = [{"instruction": f"i{i}", "output": "o"} for i in range(3)]
    with pytest.raises(DataError) as caught:
        load_pool([*rows, row])
    assert (caught.value.row, caught.value.field, caught.value.problem) == (4, field, reason)


def test_a_row_that_a_model_cannot_take_is_a_bad_row(tmp_path):
    rows = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(4)]

    def screen(text):
        return "too long" if text.response == "r2" else None

    with pytest.raises(DataError, match=r"<dataset>, row 3: too long: correct it, or skip it"):
        read_pool(rows, screen=screen)
    pool, facts = read_pool(rows, ReadOptions(skip_bad_rows=True), screen=screen, folder=tmp_path / "pool")
    assert (pool["source_row"][:], facts.rejected) == ([0, 1, 3], 1)
    assert json.loads((tmp_path / "pool" / "rejected.jsonl").read_text())["reason"] == "too long"
