"""SelectionCallback in real trainings of a tiny model."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

import nncift
from builders import word_rows
from nncift.data.chats.messages import exchange
from nncift.errors import ConfigError
from nncift.handover.reselection import Reselection
from nncift.pipeline.earlier_runs.finished import FinishedRun
from static_encoders import write_static_encoder

EPOCHS, BATCH = 3, 4


class Recorded(TrainerCallback):
    """Stops after a step."""

    def __init__(self, stop: int | None) -> None:
        self.stop = stop

    def on_save(self, args, state, control, **_):
        control.should_training_stop = control.should_training_stop or state.global_step == self.stop


def tokenized(callback: nncift.SelectionCallback, tokenizer, *, chat: bool = False) -> list[dict]:
    rows = callback.pool_dataset(chat=chat)
    if chat:
        rows = [{name: " ".join(turn["content"] for turn in turns) for name, turns in row.items()} for row in rows]
    ids = [tokenizer(row["prompt"] + " " + row["completion"])["input_ids"] for row in rows]
    return [{"input_ids": each, "labels": each} for each in ids]


def trained(
    run: Path, model: str, output: Path, *, stop: int | None = None, resume: Path | None = None, chat: bool = False
):
    """The callback, the rows of each batch, and the trained model."""
    callback = nncift.SelectionCallback(run)
    tokenizer = AutoTokenizer.from_pretrained(model)
    arguments = TrainingArguments(
        str(output), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, learning_rate=0.05, seed=3,
        use_cpu=True, report_to=[], disable_tqdm=True, logging_strategy="no", save_strategy="steps", save_steps=3,
    )  # fmt: skip
    seen: list[list[int]] = []
    rows = tokenized(callback, tokenizer, chat=chat)
    places = {tuple(row["input_ids"]): place for place, row in enumerate(rows)}

    def collate(batch):
        seen.append([places[tuple(row["input_ids"])] for row in batch])
        ids = [torch.tensor(row["input_ids"]) for row in batch]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-100)
        return {"input_ids": padded, "labels": labels}

    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(model), arguments, collate, rows, processing_class=tokenizer,
        callbacks=[Recorded(stop)],
    )  # fmt: skip
    callback.attach(trainer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return callback, seen, trainer.model


@pytest.fixture(scope="module")
def whole(sketch_run, tiny_model, tmp_path_factory):
    return trained(sketch_run, tiny_model, tmp_path_factory.mktemp("whole"))


def test_each_epoch_trains_on_the_rows_chosen_for_it(whole, sketch_run):
    callback, seen, _ = whole
    steps = len(seen) // EPOCHS
    epochs = [sorted(row for batch in seen[k * steps : (k + 1) * steps] for row in batch) for k in range(EPOCHS)]
    assert epochs[0] == sorted(nncift.Selection.load(sketch_run).indices.tolist())
    assert epochs[-1] == sorted(callback.rows.tolist())
    assert [record["epoch"] for record in callback.history] == [1, 2]
    changed = [len({*epochs[k]} - {*epochs[k - 1]}) for k in range(1, EPOCHS)]
    assert [record["new"] for record in callback.history] == changed
    assert sum(changed) > 0
    pool = FinishedRun.open(sketch_run).pool
    kinds = ['"kind": "odd"' in pool[row]["original"] for row in callback.rows.tolist()]
    assert sum(kinds) == len(kinds) / 2  # the quota holds


def test_the_choice_is_that_of_a_run_with_the_model_as_it_is_then(
    whole, sketch_pool, sketch_options, sketch_run, tiny_model, tmp_path
):
    _, _, model = whole
    model.save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path / "model")
    options = {**sketch_options, "model": str(tmp_path / "model"), "quota": {"kind": "equal"}}
    anew = nncift.select(sketch_pool, target=word_rows(5, offset=200), output=str(tmp_path / "run"), **options)
    reselection = Reselection.of(FinishedRun.open(sketch_run))
    rows, influence = reselection.choose(copy.deepcopy(model), tokenizer)
    assert rows.tolist() == anew.indices.tolist()
    assert np.allclose(influence[rows], anew.influence, rtol=1e-4)


def test_the_same_seeds_give_the_same_training_and_a_killed_one_resumes_with_its_rows(
    whole, sketch_run, tiny_model, tmp_path
):
    callback, seen, model = whole
    stopped, first, _ = trained(sketch_run, tiny_model, tmp_path, stop=3)  # in the middle of the second epoch
    assert first[:3] == seen[:3]
    assert stopped.history == callback.history[:1]
    resumed, rest, again = trained(sketch_run, tiny_model, tmp_path, resume=tmp_path / "checkpoint-3")
    assert rest[-3:] == seen[-3:]
    assert resumed.history == callback.history
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), again.parameters(), strict=True))


def test_a_budget_in_tokens_chats_of_several_trained_turns_and_a_first_cut(sketch_options, tiny_model, tmp_path):
    turns = [(row["prompt"], row["response"]) for row in word_rows(60)]
    exchanges = [turns[k : k + 1 + k % 3] for k in range(0, 56, 2)]  # one to three in a chat
    pool = [{"messages": [message for one in some for message in exchange(*one)]} for some in exchanges]
    encoder = write_static_encoder(tmp_path / "encoder", sorted({word for pair in turns for word in pair[1].split()}))
    options = {**sketch_options, "budget": "90tok", "turns": "all", "first_cut": 3, "first_cut_encoder": encoder}
    nncift.select(pool, target=word_rows(4, offset=200), output=str(tmp_path / "run"), **options)
    finished = FinishedRun.open(tmp_path / "run")
    assert len(finished.pool) < len(pool)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    same, _ = Reselection.of(finished).choose(model, tokenizer)
    assert same.tolist() == finished.selection.indices.tolist()

    callback, seen, _ = trained(tmp_path / "run", tiny_model, tmp_path / "out", chat=True)
    count = [sum(message["role"] == "assistant" for message in json.loads(row)) for row in finished.pool["messages"]]
    rows_of = [[sum(count[:row]) + turn for turn in range(count[row])] for row in range(len(count))]
    first = [place for row in finished.selection.indices for place in rows_of[row]]
    steps = -(-len(first) // BATCH)
    epochs = [[place for batch in seen[k * steps : (k + 1) * steps] for place in batch] for k in range(EPOCHS)]
    assert sorted(epochs[0]) == sorted(first)
    assert len(callback.history) == EPOCHS - 1
    last = [place for row in callback.rows for place in rows_of[row]]
    assert sorted(epochs[-1]) == sorted((last * len(first))[: len(first)])  # cut, or the first ones again


def test_every_other_epoch(sketch_run):
    callback = nncift.SelectionCallback(sketch_run, every=2)
    callback.on_epoch_begin(None, transformers.TrainerState(epoch=1.0), None)  # looks at nothing
    with pytest.raises(ConfigError, match="attach"):
        callback.on_epoch_begin(None, transformers.TrainerState(epoch=2.0), None)


def test_a_network_estimates_again_from_the_features_of_the_model(network_run, tiny_model):
    reselection = Reselection.of(FinishedRun.open(network_run))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    selection = nncift.Selection.load(network_run)
    rows, influence = reselection.choose(model, tokenizer)
    assert rows.tolist() == selection.indices.tolist()  # of the model that it was fitted with
    before = reselection.finished.influence
    assert np.allclose(influence, before, atol=1e-3 * np.abs(before).max())
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1.5)
    assert not np.allclose(reselection.choose(model, tokenizer)[1], before, rtol=1e-2)


@pytest.mark.parametrize(
    ("influence", "sides"), [("representation-similarity", {}), ("response-similarity", {"known": 4, "target": 6})]
)
def test_the_same_model_makes_the_same_choice(influence, sides, sketch_options, tiny_model, tmp_path):
    options = {**sketch_options, "influence": influence, "influence_options": None, "near_duplicates": 0.99}
    options |= {side: word_rows(size, offset=300) for side, size in sides.items()}
    if sides:
        options.pop("near_duplicates")
    else:
        options["encoder"] = "embedded"
    selection = nncift.select(word_rows(30), output=str(tmp_path / "run"), **options)
    reselection = Reselection.of(FinishedRun.open(tmp_path / "run"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    rows, influence_now = reselection.choose(model, tokenizer)
    assert rows.tolist() == selection.indices.tolist()
    assert np.allclose(influence_now, reselection.finished.influence, atol=1e-5)


def test_sft_trainer_with_an_adapter_and_nothing_is_left_behind_in_the_run(sketch_run, tiny_model, tmp_path):
    import peft
    import trl

    before = {path: path.stat().st_mtime_ns for path in sketch_run.rglob("*")}
    callback = nncift.SelectionCallback(sketch_run)
    arguments = trl.SFTConfig(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=8, learning_rate=0.5, use_cpu=True, bf16=False,
        report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trl's own
        trainer = trl.SFTTrainer(tiny_model, args=arguments, train_dataset=callback.pool_dataset(), peft_config=adapter)
        callback.attach(trainer)
        trainer.train()
    assert len(callback.history) == 1
    assert trainer.train_dataset.indices.tolist() == callback.rows.tolist()
    assert trainer.model.training
    assert {path: path.stat().st_mtime_ns for path in sketch_run.rglob("*")} == before


class Distributed(TrainingArguments):
    """One of two processes."""

    world_size = 2


def test_what_cannot_work_is_refused_in_one_line(sketch_run, chat_run, phased_run, tiny_model, tmp_path):
    callback = nncift.SelectionCallback(sketch_run)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True}

    def trainer(arguments, rows) -> Trainer:
        return Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)

    rows = tokenized(callback, tokenizer)
    plain = TrainingArguments(str(tmp_path), **options)
    with pytest.raises(ConfigError, match="in one process, and there are 2"):
        callback._check(Distributed.__new__(Distributed))
    with pytest.raises(ConfigError, match=r"data have 39 rows, and the pool .* has 40"):
        callback.attach(trainer(plain, rows[1:]))
    forgotten = trainer(plain, rows)
    forgotten.add_callback(callback)
    with pytest.raises(ConfigError, match=r"call callback\.attach"):
        forgotten.train()
    with pytest.raises(ConfigError, match="does not depend on the language model"):
        nncift.SelectionCallback(write_bm25(tmp_path))
    with pytest.raises(ConfigError, match="`phases`"):
        nncift.SelectionCallback(phased_run)
    with pytest.raises(ConfigError, match="`every` is 0"):
        nncift.SelectionCallback(sketch_run, every=0)


def write_bm25(folder: Path) -> Path:
    nncift.select(word_rows(10), influence="bm25", budget=2, output=str(folder / "bm25"))
    return folder / "bm25"


def test_a_checkpoint_made_without_the_callback_is_refused(sketch_run):
    callback = nncift.SelectionCallback(sketch_run)
    state = transformers.TrainerState(global_step=3)
    with pytest.raises(ConfigError, match="made without SelectionCallback"):
        callback._resume(state)
