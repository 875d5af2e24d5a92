"""Options of an influence function's own: how they are given, read, refused, kept and applied."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import nncift
from nncift.cli import main
from nncift.config import Config
from nncift.errors import ConfigError
from nncift.features.sources import default_features
from nncift.influence.catalogue import BUILT_IN, explain
from nncift.influence.option_types import read_value
from nncift.influence.options import nested, option_texts, options_of, read_options
from nncift.pipeline.context import make_config, make_influence
from nncift.run.registry import resolve


def made(influence: str, options, **config):
    return make_influence(Config("pool.jsonl", influence=influence, influence_options=options, **config))


class Lengths:
    """A function of a user's own, without `from_config`."""

    name = "lengths"
    pointwise = True

    def __init__(self, field: Literal["prompt", "response"] = "prompt", *, power: float = 1.0, model: str = "") -> None:
        self.field, self.power, self.model = field, power, model

    def describe(self):
        return {"name": self.name, "field": self.field, "power": self.power}

    def __call__(self, pool_rows, target_rows):
        lengths = np.array([len(text) for text in pool_rows[self.field]], np.float32) ** self.power
        return np.repeat(lengths[:, None], len(target_rows), axis=1)


@dataclass(frozen=True)
class Shape:
    width: int
    names: tuple[str, ...] = ("a",)


class Needy(Lengths):
    name = "needy"

    def __init__(self, exponent: int, shape: Shape | None = None) -> None:
        super().__init__(power=exponent)
        self.given = shape


class Shaped(Lengths):
    name = "shaped"

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape


class Closed(Lengths):
    """With a `from_config` that takes no options."""

    @classmethod
    def from_config(cls, config):
        return cls()


class Unannotated:
    name = "unannotated"

    def __init__(self, scale=2.0, *, flag=False, note="x", **ignored):
        self.values = scale, flag, note


@dataclass
class Dataclass:
    name: str = "dataclass"
    shape: Shape = field(default_factory=lambda: Shape(3))


OWN = f"{__name__}:Lengths"


class TestReading:
    @pytest.mark.parametrize(
        ("value", "hint", "read"),
        [
            ("2", int, 2),
            (2.0, int, 2),
            ("1e-4", float, 1e-4),
            (1, float, 1.0),
            ("none", int | None, None),
            (None, int | None, None),
            ("12", int | None, 12),
            ("yes", bool, True),
            (False, bool, False),
            ("a, b", tuple[str, ...], ("a", "b")),
            (["a", "b"], Sequence[str | Path], ("a", "b")),
            ('["a, b", "c"]', list[str], ["a, b", "c"]),
            ("1,2", tuple[int, ...], (1, 2)),
            ("", tuple[str, ...], ()),
            ("no", Literal["no", "pool"], "no"),
            (False, Literal["no", "pool"], "no"),  # as YAML reads it
            ("false", Literal["no", "pool"], "no"),
            ("file.json", str | Path | None, "file.json"),
            ("file.json", Path, Path("file.json")),
        ],
    )
    def test_what_stands_for_a_value(self, value, hint, read):
        found = read_value(value, hint)
        assert found == read
        assert type(found) is type(read)

    @pytest.mark.parametrize(
        ("value", "hint"),
        [
            ("two", int),
            ("2.5", int),
            (2.5, int),
            (True, int),
            ("nan", float),
            ("maybe", bool),
            (None, int),
            ("both", Literal["no", "pool"]),
            ("a,b", tuple[int, ...]),
            (3, tuple[int, ...]),
            (3, str),
        ],
    )
    def test_what_does_not(self, value, hint):
        with pytest.raises(ValueError, match="is not"):
            read_value(value, hint)


class TestOptions:
    def test_are_those_of_the_signature(self):
        assert {"preconditioned", "dimension", "training.epochs", "training.lora.rank"} <= options_of(
            resolve("less", BUILT_IN, "nncift.influence")
        ).keys()
        assert list(options_of(Lengths)) == ["field", "power", "model"]
        assert list(options_of(Unannotated)) == ["scale", "flag", "note"]
        assert list(options_of(Dataclass)) == ["name", "shape.width", "shape.names"]
        assert not options_of(Closed)

    @pytest.mark.parametrize("name", BUILT_IN)
    def test_of_every_built_in_can_be_given_with_their_defaults(self, name, tiny_model, minilm):
        kind = resolve(name, BUILT_IN, "nncift.influence")
        options = {option: default for option, (_, default) in options_of(kind).items()}
        for parts in ("wording.", "rating_prompts.", "adapter."):  # a whole or its parts
            options = {option: default for option, default in options.items() if not option.startswith(parts)}
        assert options
        config = {"model": tiny_model, "encoder": minilm}
        assert made(name, options, **config).describe() == made(name, None, **config).describe()
        assert read_options(kind, option_texts(nested(options)), name=name) == read_options(kind, options, name=name)

    def test_each_stands_in_the_explanation(self):
        text = explain("less")
        assert "training.epochs          a whole number; 4 unless given" in text
        assert "one of no, pool, both; pool unless given" in text
        assert all(line == line.rstrip() for line in explain("delift").splitlines())

    def test_reach_the_constructor(self):
        less = made("less", ["preconditioned=both", "training.epochs=2", "training.lora.rank=8"], seed=3)
        assert less.preconditioned == "both"
        assert (less.training.epochs, less.training.lora.rank) == (2, 8)
        assert (less.training.seed, less.training.lora.seed, less.training.learning_rate) == (3, 3, 2e-5)
        similarity = made("gradient-similarity", {"adapter": {"rank": 4, "modules": ["q_proj"]}})
        assert similarity.adapter.rank == 4
        assert similarity.adapter.modules == ("q_proj",)
        assert made("gradient-similarity", {"adapter": "some/folder"}).adapter == Path("some/folder")
        assert made("ifd", {"zero_above_one": "true"}).zero_above_one

    def test_of_selectit_and_delift(self, tmp_path):
        prompts = tmp_path / "prompts.json"
        prompts.write_text(json.dumps({"levels": 3, "prompts": ["Look: {prompt} {response} Rate it: "]}))
        rated = made("selectit", [f"rating_prompts={prompts}", "alpha=0.5", "softmax=yes"], model="a/b,c/d")
        assert (rated.rating_prompts.levels, rated.alpha, rated.softmax) == (3, 0.5, True)
        assert rated.models == ("a/b", "c/d")
        assert made("selectit", {"rating_prompts.levels": 9}).rating_prompts.levels == 9
        delift = made("delift", {"exponential": True, "wording": {"query": "Q: {prompt}\nA: "}})
        assert delift.exponential
        assert delift.wording.query == "Q: {prompt}\nA: "
        assert made("delift", {"wording": "chat"}).wording == "chat"

    def test_of_a_users_own_function(self):
        assert made(OWN, {"field": "response", "power": "2"}).describe() == {
            "name": "lengths",
            "field": "response",
            "power": 2.0,
        }
        assert made(OWN, {"model": "mine"}).model == "mine"  # nothing of the run's reaches its constructor
        needy = made(f"{__name__}:Needy", ["exponent=3", "shape.width=4"])
        assert (needy.power, needy.given) == (3, Shape(4))
        assert made(f"{__name__}:Unannotated", ["scale=3", "flag=on", "note=1"]).values == (3.0, True, "1")
        assert made(f"{__name__}:Shaped", {"shape": Shape(2)}).shape == Shape(2)
        assert made(f"{__name__}:Dataclass", ["shape.names=b,c"]).shape == Shape(3, ("b", "c"))


@pytest.mark.parametrize(
    ("influence", "options", "message"),
    [
        ("less", ["preconditoned=both"], "less has no option 'preconditoned': did you mean 'preconditioned'? Known:"),
        ("less", {"training": {"epoch": 2}}, "did you mean 'training.epochs'?"),
        ("less", {"training.epochs": "two"}, "less cannot take training.epochs=two: give a whole number"),
        ("less", {"training": {"lora": {"rank": None}}}, "training.lora.rank=none: give a whole number"),
        ("less", {"preconditioned": "target"}, "preconditioned=target: give one of no, pool, both"),
        ("less", {"training.epochs": 0}, "epochs 0 is too small"),
        ("less", {"batch_size": 4}, "batch_size is no option of less but of the run: give --batch-size"),
        ("less", ["preconditioned"], "--influence-option 'preconditioned' is not NAME=VALUE"),
        ("delift", {"wording": "loud"}, "wording=loud: give one of auto, chat, plain"),
        ("delift", ["wording=chat", "wording.query=Q {prompt}"], "given both wording and wording.query"),
        ("selectit", {"rating_prompts": "no-such.json"}, "no-such.json holds no rating prompts"),
        (OWN, {"field": "id"}, "field=id: give one of prompt, response"),
        (f"{__name__}:Closed", {"power": 2}, "Closed has no option 'power': it takes none"),
        (f"{__name__}:Needy", {}, "Needy needs exponent: give --influence-option exponent=VALUE"),
        (f"{__name__}:Shaped", {}, "Shaped needs shape"),
        (f"{__name__}:Needy", ["exponent=1", "shape.names=a"], "Needy needs shape.width"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_any_work(tmp_path, influence, options, message):
    with pytest.raises(ConfigError) as caught:
        nncift.select("no-such-pool.jsonl", influence=influence, influence_options=options, output=tmp_path / "run")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("other", [{"network": "runs/a"}, {"labels_from": "exact.parquet"}])
def test_they_need_a_function(other):
    with pytest.raises(ConfigError, match="so --influence-option cannot be given with it"):
        Config("pool.jsonl", influence_options={"alpha": 1}, **other)


def test_an_object_takes_its_own():
    with pytest.raises(ConfigError, match="give them to the object itself"):
        make_config("pool.jsonl", influence=Lengths(), influence_options={"power": 2})


def test_the_config_holds_them_in_one_form():
    forms = (
        ["training.epochs=2", "preconditioned=no", "checkpoints=a,b"],
        {"preconditioned": False, "training": {"epochs": 2}, "checkpoints": ("a", Path("b"))},
        {"checkpoints": ["a", "b"], "training.epochs": "2", "preconditioned": "no"},
    )
    expected = {"checkpoints": ["a", "b"], "preconditioned": "no", "training": {"epochs": 2}}
    for options in forms:
        config = make_config("pool.jsonl", influence="less", influence_options=options)
        assert config.identity()["influence_options"] == expected
        with pytest.raises(ConfigError, match="both checkpoints and a training"):
            make_influence(config)
    for nothing in (None, (), {}):
        assert make_config("pool.jsonl", influence_options=nothing).influence_options is None


@pytest.mark.parametrize("wrong", [5, [{"training.epochs": 2}], {"training.epochs": 10**400}])
def test_what_is_no_option_is_a_user_error(wrong):
    with pytest.raises(ConfigError):
        make_config("pool.jsonl", influence="less", influence_options=wrong)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    return stop.value.code


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.jsonl"
    rows = [{"prompt": f"What is {i} plus {i % 5}?", "response": f"{i + i % 5}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_from_the_command_line_a_file_and_python(pool, minilm, tmp_path, capsys):
    file, folder = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(
        f"pool: {pool}\noutput: {folder}\nencoder: {minilm}\ndevice: cpu\nlabels: '60'\nbudget: '4'\n"
        "influence: bm25\ninfluence_options:\n  k1: 2\n  b: 0.5\n"
    )
    assert run("select", "--config", str(file), "--quiet") == 0
    assert json.loads((folder / "config.json").read_text())["influence_options"] == {"b": 0.5, "k1": 2.0}
    assert json.loads((folder / "network/config.json").read_text())["description"]["influence"]["k1"] == 2.0
    given = f"select {pool} --output {folder} --encoder {minilm} --device cpu --labels 60 --budget 4"
    given += " --influence bm25 --quiet"
    assert run(*given.split(), "--influence-option", "b=0.50", "--influence-option", "k1=2") == 0  # resumes it
    options = {"encoder": minilm, "device": "cpu", "labels": 60, "budget": 4, "influence": "bm25"}
    nncift.select(pool, output=folder, influence_options={"k1": 2, "b": "0.5"}, **options)
    with pytest.raises(ConfigError, match=r"influence_options: .*2\.0.* there, None now"):
        nncift.select(pool, output=folder, **options)
    capsys.readouterr()
    assert run(*given.split(), "--influence-option", "k=2", "--dry-run") == 2
    assert capsys.readouterr().err == "nncift: bm25 has no option 'k': did you mean 'k1'? Known: b, k1\n"


def test_a_dry_run_takes_them(pool, tiny_model, minilm, capsys):
    given = f"select {pool} --model {tiny_model} --encoder {minilm} --device cpu --labels 20 --influence ifd --dry-run"
    assert run(*given.split(), "--quiet", "--influence-option", "zero_above_one=true") == 0
    assert "LLM tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("sentence", "lm")),
        ({"influence": "selectit"}, ("sentence", "lm")),
        ({"influence": "less"}, ("sentence", "lm")),
        ({"influence": "embedding-similarity"}, ("sentence",)),
        ({"influence": "bm25"}, ("sentence",)),
        ({"influence": "lossval"}, ("sentence",)),
        ({"influence": '{"name": "delift"}'}, ("sentence", "lm")),
        ({"influence": '{"name": "mine"}'}, ("sentence",)),
        ({"recipe": "paper"}, ("sentence",)),
        ({"labels_from": "labels.csv"}, ("sentence",)),
    ],
)
def test_the_language_model_is_a_feature_where_it_is_asked_anyway(options, expected):
    assert default_features(Config("pool.jsonl", **options)) == expected
