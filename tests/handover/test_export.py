"""Every trainer's file has the same conversations, with a loss on the same turns."""

from __future__ import annotations

import json
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import nncift
from builders import word_rows
from nncift.cli import main
from nncift.errors import ConfigError, RunError
from nncift.handover.chats import TrainingChat
from nncift.handover.export import TRAINERS
from nncift.handover.trainers import LeftOut
from nncift.handover.trl import SCRIPT

Trained = list[tuple[list[tuple[str, str]], str, object]]
"""Of each turn with a loss: the turns before it, its text, and the tools."""


def rows_of(file: Path) -> list[dict]:
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def spoken(message: dict) -> tuple[str, str]:
    """Role and text of an OpenAI message, tool calls as LLaMA-Factory writes them."""
    calls = message.get("tool_calls")
    if not calls:
        return message["role"], message["content"]
    functions = [call["function"] for call in calls]
    read = [
        arguments if isinstance(arguments := each["arguments"], dict) else json.loads(arguments) for each in functions
    ]
    named = [{"name": each["name"], "arguments": found} for each, found in zip(functions, read, strict=True)]
    return "assistant", json.dumps(named, ensure_ascii=False)


def of_messages(messages: list[dict], trained: list[int], tools) -> Trained:
    tools = json.loads(tools) if isinstance(tools, str) else tools
    turns = [spoken(message) for message in messages]
    return [(turns[:place], turns[place][1], tools or None) for place in trained]


def read_trl(row: dict) -> Trained:
    return of_messages(row["prompt"] + row["completion"], [len(row["prompt"])], row.get("tools"))


def read_llama_factory(row: dict) -> Trained:
    """As its converter does: odd turns of one kind, even ones of the other; the loss on the last (`mask_history`)."""
    assert all(turn["from"] in ("human", "observation") for turn in row["conversations"][::2])
    assert all(turn["from"] in ("gpt", "function_call") for turn in row["conversations"][1::2])
    roles = {"human": "user", "observation": "tool", "gpt": "assistant", "function_call": "assistant"}
    turns = [(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]
    system = [("system", row["system"])] if row["system"] else []
    return [(system + turns[:-1], turns[-1][1], json.loads(row["tools"] or "null"))]


def read_marked(mark: str):
    def read(row: dict) -> Trained:
        trained = [place for place, message in enumerate(row["messages"]) if message.get(mark)]
        return of_messages(row["messages"], trained, row.get("tools"))

    return read


READERS = {
    "trl": read_trl,
    "llama-factory": read_llama_factory,
    "axolotl": read_marked("train"),
    "ms-swift": read_marked("loss"),
}


def wanted(run: Path) -> Trained:
    """What `sft_dataset` has, which tests of its own hold to trl's loss."""
    rows = nncift.Selection.load(run).sft_dataset()
    return [of_messages(row["prompt"] + row["completion"], [len(row["prompt"])], row.get("tools"))[0] for row in rows]


@pytest.mark.parametrize("format", READERS)
def test_every_format_has_the_turns_of_the_run_with_a_loss(format, chat_run, tmp_path):
    written = nncift.export(chat_run, format, tmp_path / "out")
    found = [each for row in rows_of(tmp_path / "out" / "train.jsonl") for each in READERS[format](row)]
    expected = wanted(chat_run)
    if format == "llama-factory":  # whose turns begin with a user's
        expected = [each for each in expected if each[0][0][0] != "assistant"]
        assert sum(written.left_out.values()) == len(rows_of(tmp_path / "out" / "left-out.jsonl")) == 1
    else:
        assert not written.left_out
    assert found == expected
    assert written.samples + sum(written.left_out.values()) == 5


@st.composite
def chats(draw) -> TrainingChat:
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    messages = [{"role": "system", "content": draw(text)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(text)})
        if draw(st.booleans()):
            call = {"function": {"name": draw(text), "arguments": draw(st.dictionaries(text, text, max_size=2))}}
            messages += [
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": draw(text)},
            ]
        messages.append({"role": "assistant", "content": draw(text)})
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    trained = sorted(draw(st.sets(st.sampled_from(answers), min_size=1)))
    return TrainingChat("a", messages, trained, draw(st.none() | st.just([{"type": "function"}])))


@settings(max_examples=40)
@given(chats())
def test_any_chat_survives_every_format(chat):
    expected = of_messages(chat.messages, chat.trained, chat.tools)
    for format, reader in READERS.items():
        rows = [json.loads(json.dumps(row)) for row in TRAINERS[format]().rows(chat)]
        assert [each for row in rows for each in reader(row)] == expected


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([("user", "a"), ("user", "b"), ("assistant", "c")], "alternate"),
        ([("user", "a"), ("system", "b"), ("assistant", "c")], "system prompt"),
        ([("system", "a"), ("assistant", "b")], "first turn is an assistant's"),
        ([("assistant", "a"), ("user", "b"), ("assistant", "c")], "first turn is an assistant's"),
        ([("user", "a"), ("assistant", "b"), ("tool", "c"), ("tool", "d"), ("assistant", "e")], "alternate"),
    ],
)
def test_llama_factory_names_why_a_chat_cannot_be_held(messages, reason):
    turns = [{"role": role, "content": content} for role, content in messages]
    with pytest.raises(LeftOut, match=reason):
        list(TRAINERS["llama-factory"]().rows(TrainingChat("a", turns, [len(turns) - 1])))


def turn(role: str, content: str | None, **more) -> dict:
    return {"role": role, "content": content, **more}


FUNCTION = {"name": "f", "arguments": {"x": 1}}
CALL = {"type": "function", "function": FUNCTION}


def chat_with(**call) -> TrainingChat:
    messages = [turn("user", "a"), turn("assistant", "", **call), turn("tool", "b"), turn("assistant", "c")]
    return TrainingChat("a", messages, [3])


@pytest.mark.parametrize("format", TRAINERS)
@pytest.mark.parametrize(
    "calls",
    [json.dumps([CALL]), CALL, json.dumps(CALL), [json.dumps(CALL)]],
    ids=["text", "one", "text of one", "texts"],
)
def test_tool_calls_in_other_forms_become_a_list(format, calls):
    rows = list(TRAINERS[format]().rows(chat_with(tool_calls=calls)))
    assert rows == list(TRAINERS[format]().rows(chat_with(tool_calls=[CALL])))


@pytest.mark.parametrize("format", TRAINERS)
def test_a_function_call_as_text_is_read(format):
    rows = list(TRAINERS[format]().rows(chat_with(function_call=json.dumps(FUNCTION))))
    assert rows == list(TRAINERS[format]().rows(chat_with(function_call=FUNCTION)))
    for empty in ({"function_call": ""}, {"tool_calls": ""}, {"tool_calls": []}):
        list(TRAINERS[format]().rows(chat_with(**empty)))


@pytest.mark.parametrize(
    "call",
    [
        {"tool_calls": ["f(1)"]},
        {"tool_calls": "f(1)"},
        {"tool_calls": [CALL, {"type": "function", "function": {"arguments": "{}"}}]},
        {"tool_calls": [{"function": "f"}]},
        {"tool_calls": [3]},
        {"tool_calls": {"f": 1}},
        {"function_call": "f(x)"},
        {"function_call": {"arguments": "{}"}},
    ],
)
def test_a_chat_with_calls_of_no_known_form_is_left_out(call):
    for format in TRAINERS:
        with pytest.raises(LeftOut, match="a tool call is not an object with the name of a function"):
            list(TRAINERS[format]().rows(chat_with(**call)))


@pytest.mark.parametrize("format", TRAINERS)
def test_a_run_with_calls_of_no_known_form_can_be_exported(format, tmp_path):
    odd = [turn("user", "Call f"), turn("assistant", None, tool_calls=["f(1)"]), turn("assistant", "done")]
    nncift.select([*word_rows(4), {"messages": odd}], influence="bm25", budget=5, output=str(tmp_path / "run"))
    written = nncift.export(tmp_path / "run", format, tmp_path / "out")
    assert (written.samples, *written.left_out.values()) == (4, 1)
    [left] = rows_of(tmp_path / "out" / "left-out.jsonl")
    assert left["reason"] == "a tool call is not an object with the name of a function"


@pytest.mark.parametrize("format", ["axolotl", "ms-swift"])
def test_arrow_which_these_trainers_read_with_keeps_tools_and_calls(format, chat_run, tmp_path):
    nncift.export(chat_run, format, tmp_path / "out")
    loaded = load_dataset("json", data_files=str(tmp_path / "out" / "train.jsonl"), split="train", cache_dir=tmp_path)
    rows = [{name: without_nulls(value) for name, value in row.items()} for row in loaded]
    found = [each for row in rows for each in READERS[format](row)]
    assert found == wanted(chat_run)


def without_nulls(value):
    """As axolotl and ms-swift drop what Arrow has added."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def test_the_entries_name_the_files_and_the_options_that_the_data_need(phased_run, tmp_path):
    for format in TRAINERS:
        nncift.export(phased_run, format, tmp_path / format)
        assert {path.name for path in (tmp_path / format).glob("*.jsonl")} == {"phase-1.jsonl", "phase-2.jsonl"}
    info = json.loads((tmp_path / "llama-factory" / "dataset_info.json").read_text())
    assert [entry["file_name"] for entry in info.values()] == ["phase-1.jsonl", "phase-2.jsonl"]
    options = yaml.safe_load((tmp_path / "llama-factory" / "train-phase-2.yaml").read_text())
    assert (options["dataset"], options["mask_history"]) == ("nncift_phase_2", True)
    [data] = yaml.safe_load((tmp_path / "axolotl" / "axolotl-phase-1.yaml").read_text())["datasets"]
    assert (data["path"], data["type"], data["message_field_training"]) == ("phase-1.jsonl", "chat_template", "train")
    assert "--is_binary_loss_scale false" in (tmp_path / "ms-swift" / "README.md").read_text()


def test_weights_reach_the_trainers_that_take_them(phased_run, tmp_path):
    selection = nncift.Selection.load(phased_run)
    for format in ("trl", "ms-swift"):
        nncift.export(phased_run, format, tmp_path / format)
    for number, places in enumerate(selection.phases, 1):
        rows = rows_of(tmp_path / "trl" / f"phase-{number}.jsonl")
        assert [row["weight"] for row in rows] == selection.weights[places].tolist()
        rows = rows_of(tmp_path / "ms-swift" / f"phase-{number}.jsonl")
        assert [row["messages"][-1]["loss_scale"] for row in rows] == selection.weights[places].tolist()
    written = nncift.export(phased_run, "axolotl", tmp_path / "axolotl")
    assert "weights are not in it" in str(written)


def test_the_command_writes_and_replaces_its_own_folder_alone(chat_run, tmp_path, capsys):
    arguments = ["export", str(chat_run), "--format", "axolotl", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    assert "5 samples for axolotl" in capsys.readouterr().out
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "holds 'mine.txt'" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_the_working_folder_is_not_replaced_and_a_link_stays_one(chat_run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    nncift.export(chat_run, "trl", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "here" / "train.jsonl").is_file()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (".", tmp_path / "here"):
        with pytest.raises(RunError, match="the folder that you are in"):
            nncift.export(chat_run, "trl", folder)


def test_progress_is_shown_unless_it_is_not_wanted(phased_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nncift.run.progress.interactive", lambda: True)
    nncift.export(phased_run, "trl", tmp_path / "out", progress=False)
    nncift.push(phased_run, "org/name", to_folder=tmp_path / "up", progress=False)
    assert capsys.readouterr().err == ""
    nncift.export(phased_run, "trl", tmp_path / "out")
    nncift.push(phased_run, "org/name", to_folder=tmp_path / "up")
    shown = capsys.readouterr().err
    assert "exporting: 100%" in shown
    assert "8/8" in shown
    assert "writing the data set: 100%" in shown
    assert "16/16" in shown  # in two configurations


def test_errors_are_one_line(chat_run, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'axolotl'"):
        nncift.export(chat_run, "axolotel", tmp_path / "out")
    with pytest.raises(RunError, match="not empty"):
        nncift.export(chat_run, "trl", chat_run)
    with pytest.raises(RunError, match="not the folder of a run"):
        nncift.export(tmp_path, "trl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def script():
    """The names that the script defines."""
    return runpy.run_path(str(SCRIPT))


def quietly_run(folder: Path, *arguments: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trl's own
        runpy.run_path(str(folder / "train.py"), run_name="__main__")


OPTIONS = ("--use_cpu", "true", "--report_to", "none", "--max_steps", "2", "--save_strategy", "no")


def test_the_script_of_trl_trains_phase_after_phase(phased_run, tiny_model, tmp_path, monkeypatch, capsys):
    nncift.export(phased_run, "trl", tmp_path / "data")
    options = ("--model_name_or_path", tiny_model, "--output_dir", str(tmp_path / "model"), *OPTIONS)
    quietly_run(tmp_path / "data", *options, "--use_peft", "--lora_r", "2", monkeypatch=monkeypatch)
    assert "phase 2 of 2" in capsys.readouterr().out
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()


def test_the_script_of_trl_reads_chats_and_weights_their_loss(chat_run, tiny_model, script, tmp_path):
    import trl

    nncift.export(chat_run, "trl", tmp_path / "data")
    dataset = script["read"](tmp_path / "data" / "train.jsonl")
    selection = nncift.Selection.load(chat_run)
    again = [of_messages(row["prompt"] + row["completion"], [len(row["prompt"])], row["tools"])[0] for row in dataset]
    assert again == wanted(chat_run)
    arguments = trl.SFTConfig(
        str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False, per_device_train_batch_size=4
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trl's own
        trainer = script["WeightedTrainer"](tiny_model, args=arguments, train_dataset=dataset)
        batch = next(iter(trainer.get_train_dataloader()))
        loss = trainer.compute_loss(trainer.model, dict(batch))
    expected, tokens = 0.0, 0
    for ids, labels, weight in zip(batch["input_ids"], batch["labels"], batch["weight"], strict=True):
        logits = trainer.model(ids[None]).logits[0]
        for place in range(1, len(ids)):
            if labels[place] != -100:
                expected -= weight * torch.log_softmax(logits[place - 1], 0)[labels[place]]
                tokens += 1
    assert len({*batch["weight"].tolist()}) > 1
    assert torch.allclose(loss, expected / tokens, rtol=1e-4)
    assert sorted(dataset["weight"])[-1] == pytest.approx(selection.weights.max(), rel=1e-6)


def test_nothing_but_names_of_files_is_in_an_export(chat_run, tmp_path):
    for format in TRAINERS:
        nncift.export(chat_run, format, tmp_path / format)
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".md", ".json", ".yaml")]
    assert not any(str(part) in text for text in texts for part in (tmp_path, chat_run, Path.home()))
