"""Prompt, response and messages of every schema, and the reason of every bad row."""

import json

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncift.data.pool import ReadOptions, load_pool, read_pool
from nncift.data.schemas import chat_messages
from nncift.errors import ConfigError, DataError

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
HALF = "has half of a surrogate pair, which is not valid Unicode"
IMAGE, PART = {"type": "image_url", "image_url": {}}, "content has a part"
KNOWN = "(known: system, developer, user, assistant, tool, function, human, prompter, gpt, chatgpt, bard, bing, bot, "
KNOWN += "model, ai, function_call, tool_call, function_response, tool_response, observation, ipython)"
MARK = "does not say whether to train on it: give true, false or a weight from 0"
ONLY_TEXT, NUMBER_PART = (
    "of type 'image_url'; only text can be used",
    "content has a number as a part, where a text is expected",
)
TEXT_PART = {"role": "user", "content": [{"type": "text", "text": 3}]}
NOTHING = "nothing precedes the assistant's last turn"
CALLS = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}]


def one(row, **options):
    [sample] = load_pool([row], **options)
    return sample


def texts(row, **options):
    sample = one(row, **options)
    return sample["prompt"], sample["response"]


@pytest.mark.parametrize(
    ("row", "schema", "fields", "prompt"),
    [
        ({"instruction": "i", "input": "n", "output": "r"}, "Alpaca", "instruction input output", "i\n\nn"),
        ({"instruction": "i", "input": "", "output": "r"}, "Alpaca", "instruction input output", "i"),
        ({"instruction": "i", "input": " \n", "output": "r"}, "Alpaca", "instruction input output", "i"),
        ({"instruction": "i", "input": None, "output": "r"}, "Alpaca", "instruction input output", "i"),
        ({"instruction": "i", "output": "r"}, "Alpaca", "instruction input output", "i"),
        ({"instruction": "", "input": "n", "output": "r"}, "Alpaca", "instruction input output", "n"),
        ({"instruction": "i", "context": "c", "response": "r"}, "Dolly", "instruction context response", "i\n\nc"),
        ({"instruction": "i", "context": "", "response": "r"}, "Dolly", "instruction context response", "i"),
        ({"prompt": " p ", "response": "r\n"}, "prompt/response", "prompt response", " p "),
        ({"prompt": "p", "completion": "r"}, "prompt/completion", "prompt completion", "p"),
        ({"question": "p", "answer": "r"}, "question/answer", "question context answer", "p"),
    ],
)
def test_text_schemas(row, schema, fields, prompt):
    pool, facts = read_pool([row | {"extra": 1}])
    assert (pool[0]["prompt"], pool[0]["response"], pool[0]["messages"]) == (prompt, [*row.values()][-1], None)
    assert (facts.schema, facts.to_dict()["fields"]) == (schema, fields.split())


def test_named_fields_take_precedence():
    row = {"prompt": "wrong", "response": "wrong", "ask": "p", "reply": "r"}
    pool, facts = read_pool([row], ReadOptions(prompt_field="ask", response_field="reply"))
    assert (pool[0]["prompt"], pool[0]["response"], facts.schema) == ("p", "r", "ask/reply")
    chat = {"ask": [USER], "reply": [ANSWER]}
    assert texts(chat, prompt_field="ask", response_field="reply") == ("q", "a")
    with pytest.raises(ConfigError, match="go together"):
        load_pool([row], prompt_field="ask")
    with pytest.raises(ConfigError, match=r"same column 'ask': .*whole chats.*`messages_field`"):
        load_pool([row], prompt_field="ask", response_field="ask")
    message = r"field 'answer': there is no such field: the fields are prompt, response, ask"
    with pytest.raises(DataError, match=message):
        load_pool([row], prompt_field="ask", response_field="answer")


def test_chat_keeps_system_and_tool_messages_and_drops_what_follows_the_response():
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "add", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "thanks"},
    ]
    sample = one({"messages": messages})
    assert json.loads(sample["messages"]) == messages[:-1]
    assert sample["response"] == "two"
    assert sample["prompt"] == f"System: be kind\nUser: add\nAssistant: {json.dumps(CALLS)}\nTool: 2"
    assert json.loads(sample["original"]) == {"messages": messages}


def test_prompt_of_a_single_turn_is_the_users_text_unless_a_system_message_precedes_it():
    assert texts({"messages": [USER, ANSWER]}) == ("q", "a")
    assert texts({"messages": [{"role": "system", "content": " "}, USER, ANSWER]}) == ("q", "a")
    assert texts({"messages": [{"role": "system", "content": "s"}, USER, ANSWER]}) == ("System: s\nUser: q", "a")
    developer = {"role": "developer", "content": "s"}
    assert texts({"messages": [developer, USER, ANSWER, USER]}) == ("Developer: s\nUser: q", "a")
    assert texts({"messages": [USER, ANSWER, USER, ANSWER]}) == ("User: q\nAssistant: a\nUser: q", "a")
    assert texts({"messages": [{"role": "system", "content": "s"}, ANSWER]}) == ("System: s", "a")


def test_a_tool_call_can_be_the_response():
    last = {"role": "assistant", "content": "", "tool_calls": CALLS}
    assert texts({"messages": [USER, last]}) == ("q", json.dumps(CALLS))
    assert texts({"messages": [USER, last | {"content": "so:"}]}) == ("q", f"so:\n{json.dumps(CALLS)}")


def test_content_in_parts():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    sample = one({"messages": [{"role": "user", "content": parts}, ANSWER]})
    assert sample["prompt"] == "one two"
    assert json.loads(sample["messages"])[0]["content"] == parts
    assert chat_messages(sample["messages"])[0] == {"role": "user", "content": "one two"}


def test_sharegpt():
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q1", "weight": 0},
        {"from": "gpt", "value": "a1"},
        {"from": "tool", "value": "t"},
        {"from": "gpt", "value": "a2"},
        {"from": "human", "value": "q2"},
    ]
    sample = one({"conversations": turns})
    assert json.loads(sample["messages"]) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q1", "weight": 0},
        {"role": "assistant", "content": "a1"},
        {"role": "tool", "content": "t"},
        {"role": "assistant", "content": "a2"},
    ]
    assert (sample["prompt"], sample["response"]) == ("System: s\nUser: q1\nAssistant: a1\nTool: t", "a2")
    other = {"conversations": [{"role": "human", "content": "q1"}, {"role": "assistant", "content": "a1"}]}
    assert texts(other) == ("q1", "a1")


def test_conversational_prompt_and_completion():
    pool, facts = read_pool([{"prompt": [USER], "completion": [ANSWER]}])
    assert (pool[0]["prompt"], pool[0]["response"]) == ("q", "a")
    assert json.loads(pool[0]["messages"]) == [USER, ANSWER]
    assert facts.schema == "prompt/completion (messages)"
    with pytest.raises(DataError, match="'completion': no assistant turn"):
        load_pool([{"prompt": [USER, ANSWER], "completion": [USER]}])


def test_messages_as_json_text(tmp_path):
    row = {"messages": json.dumps([USER, ANSWER])}
    assert texts(row) == ("q", "a")
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([row]).to_parquet(path)
    assert load_pool(path)["messages"] == [row["messages"]]


def test_chat_messages_have_the_form_of_templates(tmp_path):
    """Parquet gives every message every key; a template would take `tool_calls: null` for a call."""
    rows = [{"messages": [USER, {"role": "assistant", "content": None, "tool_calls": CALLS}, ANSWER]}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    [sample] = load_pool(tmp_path / "a.parquet")
    assert json.loads(sample["messages"])[0] == USER | {"tool_calls": None}
    assert chat_messages(sample["messages"]) == rows[0]["messages"]


def test_a_chat_takes_precedence_over_its_excerpt():
    _, facts = read_pool([{"prompt": "excerpt", "response": "excerpt", "messages": [USER, ANSWER]}])
    assert facts.schema == "messages"
    assert texts({"prompt": "[1] is", "completion": "[2]"}) == ("[1] is", "[2]")


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"prompt": "p"}, "response", "missing"),
        ({"prompt": None, "response": "r"}, "prompt", "null"),
        ({"prompt": "p", "response": 3}, "response", "a number, not text"),
        ({"prompt": "p", "response": True}, "response", "a truth value, not text"),
        ({"prompt": "p", "response": ["r"]}, "response", "a list, not text"),
        ({"prompt": {"a": 1}, "response": "r"}, "prompt", "an object, not text"),
        ({"prompt": "p", "response": ""}, "response", "empty"),
        ({"prompt": "p", "response": " \n\t\u3000"}, "response", "empty"),
        ({"prompt": "  ", "response": "r"}, "prompt", "empty"),
        ({"prompt": "p", "response": "\ud800"}, "response", HALF),
        ({"prompt": "p\udfff", "response": "r"}, "prompt", HALF),
        ({"prompt": "p", "response": "r", "id": "\ud800"}, "id", HALF),
        ({"instruction": "i", "input": 1, "output": "r"}, "input", "a number, not text"),
        ({"instruction": " ", "input": " ", "output": "r"}, "instruction", "empty"),
        ({"messages": [USER]}, "messages", "no assistant turn"),
        ({"messages": []}, "messages", "no assistant turn"),
        ({"messages": [ANSWER]}, "messages", NOTHING),
        ({"messages": [{"role": "user", "content": " "}, ANSWER]}, "messages", NOTHING),
        ({"messages": None}, "messages", "null"),
        ({"messages": 3}, "messages", "a number, not a list of messages"),
        ({"messages": "hello"}, "messages", "text that is not a JSON list of messages"),
        ({"messages": "3"}, "messages", "a number, not a list of messages"),
        ({"messages": ["hello"]}, "messages", "no assistant turn"),
        ({"messages": ["q", {}]}, "messages[1]", "an object among texts that alternate between user and assistant"),
        ({"messages": [3]}, "messages[0]", "a number, not a message"),
        ({"messages": [{"content": "x"}, ANSWER]}, "messages[0].role", "missing"),
        ({"messages": [{"role": 1, "content": "x"}, ANSWER]}, "messages[0].role", "a number, not a role"),
        ({"messages": [{"role": "ET", "content": "x"}, ANSWER]}, "messages[0].role", f"unknown role 'ET' {KNOWN}"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1]", "no content"),
        ({"messages": [USER, {"role": "assistant", "content": 1}]}, "messages[1]", "content is a number, not text"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "messages[1]", "empty"),
        ({"messages": [USER | {"content": [IMAGE]}, ANSWER]}, "messages[0]", f"{PART} {ONLY_TEXT}"),
        ({"messages": [USER | {"content": [3]}, ANSWER]}, "messages[0]", NUMBER_PART),
        ({"messages": [TEXT_PART, ANSWER]}, "messages[0]", "content has a text part with a number as its text"),
        ({"messages": [USER, ANSWER | {"weight": [1]}]}, "messages[1].weight", f"[1] {MARK}"),
        ({"messages": [USER, ANSWER | {"train": "maybe"}]}, "messages[1].train", f"'maybe' {MARK}"),
        ({"conversations": [{"from": "ET", "value": "x"}]}, "conversations[0].from", f"unknown role 'ET' {KNOWN}"),
        ({"conversations": [{"from": "human"}, {"from": "gpt", "value": "a"}]}, "conversations[0]", "no content"),
        ({"conversations": [{"value": "x"}]}, "conversations[0].role", "missing"),
        ({"prompt": [USER], "completion": "a"}, "prompt", "a list, not text"),
    ],
)  # fmt: skip
def test_a_bad_row_has_a_field_and_a_reason(row, field, reason):
    with pytest.raises(DataError) as caught:
        load_pool([_mate(row), row])
    error = caught.value
    assert (error.file, error.row, error.field, error.problem) == ("<dataset>", 2, field, reason)
    assert str(error) == (f"<dataset>, row 2, field {field!r}: {reason}: correct it, or skip it with `skip_bad_rows`")


def _mate(row):
    """A good row of the bad one's schema."""
    if "messages" in row:
        return {"messages": [USER, ANSWER]}
    if "conversations" in row:
        return {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    if "instruction" in row:
        return {"instruction": "q", "output": "a"}
    return {"prompt": "q", "completion" if "completion" in row else "response": "a"}


def test_no_known_schema():
    rows = [{"text": "x", "label": 1}, {"text": "y", "score": 2}]
    for skip in (False, True):
        with pytest.raises(DataError) as caught:
            load_pool(rows, skip_bad_rows=skip)
        message = str(caught.value)
        assert message.startswith(
            "<dataset>: no known schema fits its fields (text, label, score): name two of them with `prompt_field` and "
            "`response_field`, or one that holds chats with `messages_field`; known are messages + chosen, "
        )
        assert "instruction + output, instruction + response, prompt + response, question + answer, " in message
        assert message.endswith(
            "text with role markers (### Human: / ### Assistant:, ### Instruction: / ### Response:, <|user|> / "
            "<|assistant|>, <|im_start|>, [INST], <|start_header_id|>, <start_of_turn>, or Human: / Assistant: at the "
            "start of a line)"
        )
    with pytest.raises(DataError, match=r"\(c0, c1, .*c19, \.\.\.\)"):
        load_pool([{f"c{i}": 1 for i in range(1000)}])


ROLES = st.sampled_from(["system", "user", "assistant", "tool"])


@given(st.lists(st.builds(dict, role=ROLES, content=st.text(st.characters(codec="utf-8"))), max_size=6))
def test_the_last_assistant_turn_is_the_response(messages):
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    if not any(message["content"].strip() for message in messages[:last]) or not messages[last]["content"].strip():
        with pytest.raises(DataError):
            one({"messages": messages})
        return
    sample = one({"messages": messages})
    kept = json.loads(sample["messages"])
    assert kept == messages[: len(kept)]
    assert kept[-1] == {"role": "assistant", "content": sample["response"]}
    assert "assistant" not in {message["role"] for message in messages[len(kept) :]}
    assert all(message["content"] in sample["prompt"] for message in kept[:-1] if message["role"] == "user")
