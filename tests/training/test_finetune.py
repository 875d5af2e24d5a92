"""LoRA fine-tuning through trl: the same tokens and loss as trl's, the same bytes after a kill, an unchanged model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from builders import SMALL, chat, chat_rows, make_model, samples, word_rows
from nncift.errors import ModelError, RunError
from nncift.models.language_model import LanguageModel
from nncift.models.spec import ModelSpec
from nncift.models.text.examples import encode_examples, response_losses
from nncift.run.progress import moving
from nncift.selection.sft import chat_dataset
from nncift.training import finetune
from nncift.training.finetune import fine_tune
from nncift.training.isolation import silent, unchanged
from nncift.training.lora import Lora, adapted
from nncift.training.settings import FineTuning

SHORT = FineTuning(epochs=2, learning_rate=5e-2, batch_size=4, rank=2, alpha=4, dropout=0.1)
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "training.json"}
ROWS = samples(word_rows(11))


@pytest.fixture(scope="module")
def spec(tiny) -> ModelSpec:
    return ModelSpec(tiny)


@pytest.fixture(scope="module")
def trained(spec, tmp_path_factory) -> Path:
    return fine_tune(spec, ROWS, SHORT, tmp_path_factory.mktemp("trained") / "adapter")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Interrupt(Exception):
    """Stops a training as a kill does: nothing is tidied up."""


class Limit:
    """A progress bar that interrupts after so many samples."""

    def __init__(self, samples: int) -> None:
        self.left = samples

    def update(self, samples: int) -> None:
        self.left -= samples
        if self.left <= 0:
            raise Interrupt


def interrupted(after: int, *arguments, **options) -> None:
    with pytest.raises(Interrupt), moving(Limit(after), 1000):
        fine_tune(*arguments, **options)


def mean_loss(model: LanguageModel, rows, adapter: Path | None = None) -> float:
    examples = encode_examples(model, rows, wording="chat")
    with torch.no_grad():
        if adapter is None:
            return float(response_losses(model, examples).mean())
        with adapted(model, adapter):
            return float(response_losses(model, examples).mean())


def labels(example) -> list[int]:
    found = [-100] * len(example.ids)
    for start, end in example.spans:
        found[start:end] = example.ids[start:end]
    return found


def test_tokens_and_loss_are_trls_but_for_what_the_template_prints_after_a_response(tiny, tmp_path):
    from trl import SFTConfig, SFTTrainer

    rows = [chat("a", "Hi", "Hello", "And?", " Fine.\n"), chat("b", "2+2?", "4", system="Be brief."), *word_rows(2)]
    options = {"max_length": None, "use_cpu": True, "bf16": False, "report_to": "none"}
    with silent(), unchanged(tiny):
        arguments = SFTConfig(output_dir=str(tmp_path), **options)
        dataset = chat_dataset(samples(rows))
        trainer = SFTTrainer(tiny.model, arguments, train_dataset=dataset, processing_class=tiny.tokenizer)
    after = tiny.encode(["\n"])[0]
    for example, row in zip(encode_examples(tiny, samples(rows), wording="chat"), trainer.train_dataset, strict=True):
        assert row["input_ids"] == example.ids + after
        assert row["labels"] == labels(example) + after
        assert example.ids[-1] == tiny.tokenizer.eos_token_id


def test_training(spec, trained, tmp_path, capfd):
    tiny = spec.loaded
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    attributes, config = dict(vars(tiny.model)), tiny.model.config.to_dict()
    loss, state = mean_loss(tiny, ROWS), torch.random.get_rng_state()
    counted = tiny.backward_tokens
    again = fine_tune(spec, ROWS, SHORT, tmp_path / "again")
    assert mean_loss(tiny, ROWS, again) < loss - 0.1
    assert content(again) == content(trained)  # also: the second training in one process is as the first
    assert {path.name for path in again.iterdir()} == FILES
    assert tiny.backward_tokens - counted == 2 * sum(
        len(e.ids) - 1 for e in encode_examples(tiny, ROWS, wording="chat")
    )
    assert mean_loss(tiny, ROWS) == loss
    assert dict(vars(tiny.model)) == attributes
    assert tiny.model.config.to_dict() == config
    assert all(weight.requires_grad for weight in tiny.model.parameters())
    assert not any(module.training for module in tiny.model.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in tiny.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


def test_finished_training_is_returned_and_others_refused(spec, trained, tmp_path):
    times = {path: path.stat().st_mtime_ns for path in trained.iterdir()}
    again = ModelSpec(spec.model)
    assert fine_tune(again, ROWS, dataclasses.replace(SHORT, report_to=("tensorboard",)), trained) == trained
    assert {path: path.stat().st_mtime_ns for path in trained.iterdir()} == times
    for rows, settings, options in (
        (ROWS, dataclasses.replace(SHORT, epochs=3), {}),
        (ROWS.select(range(10)), SHORT, {}),
        (ROWS, SHORT, {"wording": "plain"}),
        (ROWS, SHORT, {"weights": np.arange(1, 12)}),
        (ROWS, SHORT, {"phases": [np.arange(5), np.arange(5, 11)]}),
    ):
        with pytest.raises(RunError, match="other rows or settings"):
            fine_tune(spec, rows, settings, trained, **options)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(RunError, match="another adapter"):
        fine_tune(spec, ROWS, SHORT, tmp_path)


def test_the_training_of_a_model_whose_files_have_changed_is_refused(trained, tiny_model, tmp_path):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    folder = Path(shutil.copytree(trained, tmp_path / "adapter"))  # of a model that was given as an object
    assert "files" not in json.loads((folder / "training.json").read_text())
    again = fine_tune(ModelSpec(str(model)), ROWS, SHORT, tmp_path / "of-a-folder")
    assert fine_tune(ModelSpec(str(model)), ROWS, SHORT, again) == again
    (model / "generation_config.json").write_text("{}")
    with pytest.raises(RunError, match="a training of 'model' with other files than it has now"):
        fine_tune(ModelSpec(str(model)), ROWS, SHORT, again)


def test_a_finished_training_whose_card_was_lost_writes_it_again(spec, trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "adapter"))
    assert finetune.is_trained(folder)
    (folder / "README.md").unlink()
    assert not finetune.is_trained(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    fine_tune(spec, ROWS, SHORT, folder)
    assert content(folder) == content(trained)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (folder / "adapter_config.json").unlink()
    fine_tune(spec, ROWS, SHORT, folder)
    assert content(folder) == content(trained)


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [((0.0, 600.0), 1), ((0.0, 0.0), 2), ((600.0, 600.0), 0)],
    ids=["after an epoch", "within an epoch", "none in a short training"],
)
def test_interrupted_training_ends_with_the_same_bytes(spec, trained, tmp_path, monkeypatch, seconds, kept):
    monkeypatch.setattr(finetune, "_SECONDS", seconds)
    folder = tmp_path / "adapter"
    interrupted(19, spec, ROWS, SHORT, folder)  # in the second step of the second epoch
    assert not (folder / "adapter_model.safetensors").exists()
    assert len(list(folder.rglob("checkpoint-*"))) == kept
    assert mean_loss(spec.loaded, ROWS) == mean_loss(spec.loaded, ROWS)
    fine_tune(spec, ROWS, SHORT, folder)
    assert content(folder) == content(trained)


def test_damaged_checkpoints_are_skipped(spec, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "_SECONDS", (0.0, 0.0))
    folder = tmp_path / "adapter"
    interrupted(19, spec, ROWS, SHORT, folder)
    first, second = sorted(folder.rglob("checkpoint-*"))
    optimizer = first / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-9])
    (second / "seal.json").unlink()
    fine_tune(spec, ROWS, SHORT, folder)
    assert content(folder) == content(trained)


def test_adapter_loads_with_peft(tiny, tiny_model, trained):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = json.loads((trained / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == Path(tiny_model).name
    texts = [path.read_text() for path in trained.iterdir() if path.suffix in (".md", ".json")]
    assert not any(str(Path(tiny_model).parent) in text for text in texts)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(trained))
    loaded = LanguageModel(model, AutoTokenizer.from_pretrained(tiny_model))
    assert mean_loss(loaded, ROWS) == pytest.approx(mean_loss(tiny, ROWS, trained), abs=1e-5)


class TestLoss:
    def losses(self, tiny, tmp_path, weights=None, stock=False) -> float:
        """Of one pass with all rows."""
        from nncift.training.sft_trainer import LoraTrainer, collate, sft_arguments, tokenized

        rows = tokenized(encode_examples(tiny, ROWS, wording="chat"), weights)
        lora = Lora(rank=2, alpha=4, dropout=0.0)
        with silent(), unchanged(tiny), adapted(tiny, lora, trainable=True) as adapter:
            arguments = sft_arguments(tiny, SHORT, 11, tmp_path, 0, 4)
            trainer = LoraTrainer(tiny, 4, model=adapter, args=arguments, train_dataset=rows)
            batch = collate(list(rows))
            method = super(LoraTrainer, trainer).compute_loss if stock else trainer.compute_loss
            return float(method(adapter, batch))

    def test_without_weights_and_with_equal_ones_it_is_trls(self, tiny, tmp_path):
        stock = self.losses(tiny, tmp_path, stock=True)
        assert self.losses(tiny, tmp_path) == pytest.approx(stock, rel=1e-6)
        assert self.losses(tiny, tmp_path, np.ones(11)) == pytest.approx(stock, rel=1e-6)

    def test_weights(self, tiny, tmp_path):
        weights = np.random.default_rng(0).random(11)
        examples = encode_examples(tiny, ROWS, wording="chat")
        with torch.no_grad():  # a fresh adapter changes nothing
            means = [float(response_losses(tiny, [example])[0]) for example in examples]
        tokens = [example.scored for example in examples]
        expected = sum(w * m * t for w, m, t in zip(weights, means, tokens, strict=True)) / sum(tokens)
        assert self.losses(tiny, tmp_path, weights) == pytest.approx(expected, rel=1e-5)


def test_training_with_weights(spec, tmp_path):
    """Equal weights of any size train as none; a sample of weight 0 is not learned."""
    settings = dataclasses.replace(SHORT, dropout=0.0)
    tiny, losses = spec.loaded, []
    for k, weights in enumerate((None, np.full(11, 7.0), np.r_[np.ones(6), np.zeros(5)])):
        folder = fine_tune(spec, ROWS, settings, tmp_path / str(k), weights=weights)
        losses.append([mean_loss(tiny, ROWS.select(part), folder) for part in (range(6), range(6, 11))])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2][0] < losses[0][0]
    assert losses[2][1] > losses[0][1]


def test_phases(spec, trained, tmp_path):
    """Trained in turn; interrupted in the last one, they end with the same bytes."""
    phases = [np.arange(4), np.arange(4, 11)]
    whole = fine_tune(spec, ROWS, SHORT, tmp_path / "whole", phases=phases)
    record = json.loads((whole / "training.json").read_text())
    assert (record["phases"], record["steps"]) == ([4, 7], 2 * (1 + 2))
    folder = tmp_path / "interrupted"
    interrupted(16, spec, ROWS, SHORT, folder, phases=phases)
    assert [path.name for path in folder.rglob("phase-*")] == ["phase-0"]
    fine_tune(spec, ROWS, SHORT, folder, phases=phases)
    assert content(folder) == content(whole)
    assert fine_tune(spec, ROWS, SHORT, trained, phases=[np.arange(11)]) == trained


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["GPT2", "Qwen3"])
def test_other_models(tiny_model, tmp_path, architecture, dtype):
    """Layers of other names and kinds, no chat template, and a narrower dtype."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4} if architecture == "GPT2" else SMALL
    special = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    model = make_model(architecture, {**sizes, **special}).to(getattr(torch, dtype))
    language_model = LanguageModel(model, tokenizer, name="random")
    folder = fine_tune(ModelSpec(language_model), ROWS, SHORT, tmp_path / "adapter")
    examples = encode_examples(language_model, ROWS, wording="plain")
    with torch.no_grad():
        before = response_losses(language_model, examples).mean()
        with adapted(language_model, folder):
            assert response_losses(language_model, examples).mean() < before
    names = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    modules = {name.split(".")[-1] for name in names}
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert modules == ({"c_attn", "c_fc", "c_proj"} if architecture == "GPT2" else attention | mlp)
    assert json.loads((folder / "training.json").read_text())["wording"] == "plain"


def test_every_turn_of_a_chat_is_trained_on(spec, tmp_path):
    rows = chat_rows([{"messages": json.loads(chat("a", "Hi", "Hello", "And?", "Fine.")["messages"])}])
    rows = rows.add_column("turns", [[1, 3]])
    folder = fine_tune(spec, rows, SHORT, tmp_path / "adapter")
    record = json.loads((folder / "training.json").read_text())
    last = encode_examples(spec.loaded, rows.remove_columns("turns"), wording="chat")[0]
    assert record["response_tokens"] > last.scored
    assert mean_loss(spec.loaded, rows, folder) < mean_loss(spec.loaded, rows)


def test_trackers(spec, tmp_path):
    pytest.importorskip("tensorboard")
    folder = fine_tune(spec, ROWS, dataclasses.replace(SHORT, report_to=("tensorboard",)), tmp_path / "adapter")
    assert list((folder / "runs").rglob("events*"))


def test_passes_are_halved_when_memory_runs_out(spec, tmp_path):
    """Passes are halved when memory runs out, and the training begins again; one sample has to fit."""
    most = 2

    def fail(module, arguments):
        if arguments[0].shape[0] > most:
            raise torch.OutOfMemoryError("out of memory")

    hook = spec.loaded.model.get_input_embeddings().register_forward_pre_hook(fail)
    try:
        folder = fine_tune(spec, ROWS, SHORT, tmp_path / "halved")
        most = 0
        with pytest.raises(ModelError, match="ran out of memory"):
            fine_tune(spec, ROWS, SHORT, tmp_path / "none")
    finally:
        hook.remove()
    assert mean_loss(spec.loaded, ROWS, folder) < mean_loss(spec.loaded, ROWS)


@pytest.mark.parametrize(
    ("seconds", "problem"), [((0.0, 0.0), "cannot write"), ((600.0, 600.0), "largest size of a file")]
)
def test_files_that_cannot_be_written(spec, tmp_path, monkeypatch, seconds, problem):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(finetune, "_SECONDS", seconds)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RunError, match=problem):
            fine_tune(spec, ROWS, SHORT, tmp_path / "adapter")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
