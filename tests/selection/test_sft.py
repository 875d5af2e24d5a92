"""`sft_dataset` in trl's SFTTrainer: the loss is on the tokens of the responses, and on no others."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from nncift.data.pool import load_pool
from nncift.selection.selection import Selection


def turn(role: str, content: str | None, **more) -> dict:
    return {"role": role, "content": content, **more}


ANSWERS = ["It is 17.", "See you soon, Ada"]
PLAIN = [
    {"instruction": "Add the numbers:", "input": "8 and 9", "output": ANSWERS[0]},
    {"instruction": "Say goodbye.", "output": ANSWERS[1]},
]
CHATS = [
    {"messages": [turn("user", "Add 8 and 9."), turn("assistant", ANSWERS[0])]},
    {
        "messages": [
            turn("system", "Be brief."),
            turn("user", "Hello, I am Ada."),
            turn("assistant", "Welcome!"),
            turn("user", "Bye."),
            turn("assistant", ANSWERS[1]),
        ]
    },
]
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]
CALL = [{"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}]
TOOL_CHAT = [
    turn("user", "What time is it?"),
    turn("assistant", None, tool_calls=CALL),
    turn("tool", "noon"),
    turn("assistant", "It is noon."),
]


def chosen(pool: Dataset) -> Selection:
    return Selection(np.arange(len(pool))[::-1].copy(), np.ones(len(pool)), 1.0).with_pool(pool)


def chat_pool(messages: list[dict], **columns) -> Dataset:
    """A pool of one chat with the columns that newer pools have."""
    row = {"id": "a", "prompt": "", "response": messages[-1]["content"], "messages": json.dumps(messages)}
    return Dataset.from_list([row | {"tools": None, "turns": None, "original": "{}"} | columns])


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """Of each row of a dataset: all tokens of a real SFTTrainer with its default options, and those that carry loss."""
    trl = pytest.importorskip("trl")
    folder = tmp_path_factory.mktemp("sft")

    def read(dataset: Dataset, tokenizer=None) -> list[tuple[str, str]]:
        arguments = trl.SFTConfig(output_dir=str(folder), max_steps=1, report_to=[], use_cpu=True, bf16=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # trl's own
            trainer = trl.SFTTrainer(tiny_model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
            assert trainer.train().global_step == 1
        decode = trainer.processing_class.decode
        batches = (trainer.data_collator([row]) for row in trainer.train_dataset)
        return [(decode(b["input_ids"][0]), decode(b["labels"][0][b["labels"][0] != -100])) for b in batches]

    return read


@pytest.mark.parametrize("rows", [PLAIN, CHATS], ids=["plain", "chats"])
def test_only_responses_carry_loss(rows, trained):
    dataset = chosen(load_pool(rows)).sft_dataset()
    assert [loss for _, loss in trained(dataset)] == [f"{answer}<|im_end|>\n" for answer in ANSWERS[::-1]]


def test_the_number_of_loss_tokens_is_that_of_the_response(trained, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    for chat, end in ((True, 2), (False, 1)):  # the end-of-text token, and the line break of SmolLM2's template
        texts = trained(chosen(load_pool(PLAIN)).sft_dataset(chat=chat))
        assert [count(loss) for _, loss in texts] == [count(answer) + end for answer in ANSWERS[::-1]]


def test_every_turn_that_is_trained_on_is_a_row_of_its_own(trained):
    dataset = chosen(chat_pool(CHATS[1]["messages"], turns=[2, 4])).sft_dataset()
    assert [loss for _, loss in trained(dataset)] == ["Welcome!<|im_end|>\n", f"{ANSWERS[1]}<|im_end|>\n"]
    greeting = [turn("assistant", "Hi"), *CHATS[0]["messages"]]
    assert len(chosen(chat_pool(greeting, turns=[0, 2])).sft_dataset()) == 1


def test_tools_and_system_prompts_are_in_the_columns():
    row = chosen(chat_pool(TOOL_CHAT, tools=json.dumps(TOOLS), turns=[1, 3])).sft_dataset()[0]
    assert row["prompt"] == TOOL_CHAT[:1]
    assert row["completion"] == [TOOL_CHAT[1] | {"content": ""}]  # templates join it to text
    assert row["tools"] == TOOLS
    mixed = Dataset.from_list([*chat_pool(TOOL_CHAT, tools=json.dumps(TOOLS)), *chat_pool(CHATS[1]["messages"])])
    system, tools = chosen(mixed).sft_dataset()
    assert system == {"prompt": CHATS[1]["messages"][:4], "completion": CHATS[1]["messages"][4:], "tools": None}
    assert "tool_calls" not in tools["prompt"][0]  # templates test for the presence of a key


TEMPLATE = """{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}{% for message in messages %}
{{- message.role + ":\n" + message.content }}{{ message.tool_calls[0].function.name if message.tool_calls is defined }};
{%- endfor %}{% if add_generation_prompt %}assistant:
{% endif %}"""


def test_tools_and_their_calls_reach_the_chat_template(trained, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    dataset = chosen(chat_pool(TOOL_CHAT, tools=json.dumps(TOOLS), turns=[1, 3])).sft_dataset()
    (_, call), (whole, answer) = trained(dataset, tokenizer)
    assert (call, answer) == ("clock;", "It is noon.;")
    assert whole == "clock user:\nWhat time is it?;assistant:\nclock;tool:\nnoon;assistant:\nIt is noon.;"
