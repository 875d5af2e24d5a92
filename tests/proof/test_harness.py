"""The adapter in lm-evaluation-harness: what docs/harness.md relies on, and its task itself."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from builders import word_rows, write_rows
from nncift import select
from nncift.proof.evaluate import evaluate
from nncift.training.model_card import model_card

PAGE = Path(__file__).resolve().parents[2] / "docs" / "harness.md"
HUB_ID, RUN = "HuggingFaceTB/SmolLM2-135M-Instruct", "runs/math"
TEST = ("held-out.jsonl", [*word_rows(4, offset=500), {"prompt": "List two.", "response": "One,\n\ntwo."}])


class Loader(yaml.SafeLoader):
    """Reads a task's `!function` as the name of the function."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language in Markdown."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> SimpleNamespace:
    """An evaluation, where the page has it but for the folder of the run."""
    folder = tmp_path_factory.mktemp("harness")
    pool, test = (write_rows(folder / name, rows) for name, rows in (("pool.jsonl", word_rows(12)), TEST))
    select(pool, budget=6, influence="bm25", model=tiny_model, output=folder / RUN)
    options: dict[str, Any] = {"methods": ["lora"], "metrics": ["loss"], "epochs": 2, "learning_rate": 0.05}
    done = evaluate(folder / RUN, test=test, progress=False, **options)
    return SimpleNamespace(folder=folder, evaluation=done.folder, adapter=done.folder / "adapter", base=tiny_model)


@pytest.fixture(scope="module")
def task(places: SimpleNamespace) -> Path:
    """The folder of the page's tasks, on this evaluation."""
    page, folder = PAGE.read_text(encoding="utf-8"), places.folder / "tasks"
    page = page.replace(HUB_ID, places.base).replace(RUN, str(places.folder / RUN))
    chat, plain = blocks(page, "yaml")
    functions, more = blocks(page, "python")[:2]
    folder.mkdir()
    for name, text in (("held_out.yaml", chat), ("held_out_plain.yaml", plain), ("held_out.py", functions + more)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def functions(task: Path) -> Any:
    """The page's functions, as a module."""
    spec = importlib.util.spec_from_file_location("held_out", task / "held_out.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def losses(places: SimpleNamespace) -> dict[str, float]:
    return losses_of(places.evaluation)


def losses_of(evaluation: Path) -> dict[str, float]:
    """Our response loss of each item with the adapter."""
    records = {path: json.loads(path.read_text()) for path in (evaluation / "trials").glob("*.json")}
    (trained,) = (path for path, record in records.items() if "tune" in record)
    table = pq.read_table(trained.with_suffix(".parquet")).to_pydict()
    return dict(zip(table["id"], table["loss"], strict=True))


@pytest.fixture(scope="module")
def loaded(places: SimpleNamespace) -> SimpleNamespace:
    return load(places.adapter, places.base)


def load(adapter: Path, base: str) -> SimpleNamespace:
    """Model and tokenizer, by the code on the card."""
    (code,) = blocks((adapter / "README.md").read_text(encoding="utf-8"), "python")
    found: dict[str, Any] = {}
    exec(code.replace('"..."', repr(base)).replace('"this folder"', repr(str(adapter))), found)
    return SimpleNamespace(model=found["model"], tokenizer=found["tokenizer"])


def log_likelihoods(loaded: SimpleNamespace, context: str, continuation: str) -> tuple[float, float]:
    """As the harness computes it, of the continuation, and of the part of it that is moved there from the context.

    Source: `LM._encode_pair` of lm_eval 0.4.13, which moves white space at the end of the context.
    """
    moved = context[len(context.rstrip()) :]
    encode = loaded.tokenizer.encode
    ids, start = encode(context + continuation), len(encode(context.rstrip()))
    with torch.no_grad():
        logits = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    values = [float(logits[k - 1, ids[k]]) for k in range(start, len(ids))]
    return sum(values), sum(values[: len(encode(moved))])


def test_the_adapter_can_go_to_the_hub(places):
    files = {path.name for path in places.adapter.iterdir()}
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors", "training.json"}
    config = json.loads((places.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == Path(places.base).name
    assert (config["peft_type"], config["task_type"], config["inference_mode"]) == ("LORA", "CAUSAL_LM", True)
    assert config["r"] <= 16  # what vLLM takes by default
    texts = [path.read_text(encoding="utf-8") for path in places.adapter.iterdir() if path.suffix != ".safetensors"]
    assert not any(str(Path(places.base).parent) in text or str(places.folder) in text for text in texts)


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, f"pretrained={HUB_ID},peft=THIS-FOLDER,dtype=float32 --tasks gsm8k --apply_chat_template"),
        ({"wording": "plain"}, f"pretrained={HUB_ID},peft=THIS-FOLDER,dtype=float32 --tasks gsm8k"),
        ({"dtype": "4bit", "wording": "plain"}, f"pretrained={HUB_ID},peft=THIS-FOLDER,dtype=bfloat16 --tasks gsm8k"),
        ({"model": "mine", "wording": "plain"}, "pretrained=FOLDER-OF-THE-BASE-MODEL,peft=THIS-FOLDER,dtype=float32"),
    ],
)
def test_the_card_has_the_command(places, changes, command):
    record = json.loads((places.adapter / "training.json").read_text())
    card = model_card(record | {"model": HUB_ID} | changes)
    (line,) = blocks(card, "console")
    assert command in line
    assert line.rstrip().endswith("--apply_chat_template") == (changes == {})
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "peft"
    assert header.get("base_model") == (None if "model" in changes else HUB_ID)
    (code,) = blocks(card, "python")
    assert ('base = "..."' if "model" in changes else f"base = {HUB_ID!r}") in code


def test_the_commands_of_the_page_are_those_of_the_card(places):
    record = json.loads((places.adapter / "training.json").read_text())
    (line,) = blocks(model_card(record | {"model": HUB_ID}), "console")
    adapter = f"{RUN}/evaluation/held-out/adapter"
    assert line.replace("THIS-FOLDER", adapter) in PAGE.read_text(encoding="utf-8")
    assert (places.folder / adapter) == places.adapter


def test_the_task_of_the_page_measures_our_response_loss(task, functions, losses, loaded, tmp_path):
    """But for the white space that ends the template, which the harness counts to the response."""
    config = yaml.load((task / "held_out.yaml").read_text(), Loader)
    data_files = config["dataset_kwargs"]["data_files"]
    rows = load_dataset(config["dataset_path"], data_files=data_files, cache_dir=str(tmp_path))[config["test_split"]]
    assert set(rows["id"]) == losses.keys()
    assert config["doc_to_target"] == "held_out.target"
    for row in rows:
        prompt = jinja2.Template(config["doc_to_text"]).render(row)
        turns = [{"role": "user", "content": prompt}]
        context = loaded.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        target = functions.target(row)
        total, moved = log_likelihoods(loaded, context, target)
        found = functions.response_loss(row, [(total, False)])
        assert list(found) == [config["metric_list"][0]["metric"]]
        tokens = len(loaded.tokenizer.encode(target))
        assert found["response_loss"] == pytest.approx(losses[row["id"]] - moved / tokens, abs=1e-5)
        assert moved < 0


def test_the_task_for_plain_text_measures_our_response_loss(places, task, functions, tmp_path):
    config = yaml.load((task / "held_out_plain.yaml").read_text(), Loader)
    options: dict[str, Any] = {"methods": ["lora"], "metrics": ["loss"], "epochs": 1, "wording": "plain"}
    test, output = places.folder / "held-out.jsonl", tmp_path / "plain"
    done = evaluate(places.folder / RUN, test=test, output=output, progress=False, **options)
    loaded, losses = load(done.folder / "adapter", places.base), losses_of(done.folder)
    for row in Dataset.from_file(str(done.folder / "test" / "samples.arrow")):
        context = jinja2.Template(config["doc_to_text"]).render(row)
        results = [(log_likelihoods(loaded, context, choice)[0], False) for choice in functions.choices(row)]
        found = functions.loss_after_line_break(row, results)["response_loss"]
        assert found == pytest.approx(losses[row["id"]], abs=1e-5)


def test_a_merged_model_is_the_model_with_its_adapter(places, loaded, tmp_path, monkeypatch):
    (code,) = (block for block in blocks(PAGE.read_text(encoding="utf-8"), "python") if "merge_and_unload" in block)
    monkeypatch.chdir(tmp_path)
    exec(code.replace(HUB_ID, places.base).replace(RUN, str(places.folder / RUN)), {})
    merged = AutoModelForCausalLM.from_pretrained("merged")
    ids = torch.tensor([AutoTokenizer.from_pretrained("merged").encode("Say river stone")])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, loaded.model(ids).logits, atol=1e-4)


def test_the_harness_itself(places, task, losses, loaded):
    """The page's command, where lm_eval is installed."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'lm_eval[hf]'")
    (command,) = (
        line
        for block in blocks(PAGE.read_text(encoding="utf-8"), "console")
        for line in block.splitlines()
        if "--log_samples" in line
    )
    command = command.replace(HUB_ID, places.base).replace(RUN, str(places.folder / RUN))
    arguments = command.split()[1:]
    subprocess.run([sys.executable, "-m", "lm_eval", *arguments, "--device", "cpu"], cwd=places.folder, check=True)
    (path,) = (places.folder / "harness").rglob("samples_*.jsonl")
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {sample["doc"]["id"] for sample in found} == losses.keys()
    for sample in found:
        context, target = sample["arguments"]["gen_args_0"]["arg_0"], sample["arguments"]["gen_args_0"]["arg_1"]
        total, moved = log_likelihoods(loaded, context, target)
        assert float(sample["resps"][0][0][0]) == pytest.approx(total, abs=1e-3)
        tokens = len(loaded.tokenizer.encode(target))
        assert sample["response_loss"] == pytest.approx(losses[sample["doc"]["id"]] - moved / tokens, abs=1e-5)
