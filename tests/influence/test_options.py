"""Options of influence functions: parsing, validation, defaults, errors, and the same options in every form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from nncift.errors import ConfigError
from nncift.influence.base import InfluenceFunction, PlainFunction, Setup, Traits
from nncift.influence.catalogue import BUILT_IN, explain
from nncift.influence.options import make_function, nested, option_texts, options_of, read_options, read_value
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.run.options.registry import resolve


class Lengths(InfluenceFunction):
    """A user's function that takes nothing from the run."""

    name = "lengths"
    traits = Traits(pointwise=True)

    def __init__(self, field: Literal["prompt", "response"] = "prompt", *, power: float = 1.0, model: str = "") -> None:
        self.field, self.power, self.model = field, power, model

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
        self.shape = shape


class Shaped(Lengths):
    name = "shaped"

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape


class Closed(Lengths):
    """With a `build` that takes no options."""

    @classmethod
    def build(cls, setup):
        return cls()


class Unannotated:
    """A plain callable, which its class makes."""

    name = "unannotated"

    def __init__(self, scale=2.0, *, flag=False, note="x", **ignored):
        self.values = scale, flag, note

    def __call__(self, pool_rows, target_rows):
        return np.zeros((len(pool_rows), len(target_rows)), np.float32)


@dataclass
class Dataclass(Unannotated):
    name: str = "dataclass"
    shape: Shape = field(default_factory=lambda: Shape(3))


def factory(width: int = 2) -> Unannotated:
    return Unannotated(width)


def made(influence: str, options: Any = None, setup: Setup | None = None) -> Any:
    """The function, or the callable that it wraps."""
    name = influence if influence in BUILT_IN else f"{__name__}:{influence}"
    kind = resolve(influence, BUILT_IN, "nncift.influence") if influence in BUILT_IN else globals()[influence]
    function = make_function(kind, setup or Setup(), options, name=name)
    return function.function if isinstance(function, PlainFunction) else function


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
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
        ("1", int | str, 1),
        (True, int | bool, True),
        ("a, b", tuple[str, ...], ("a", "b")),
        (["a", "b"], Sequence[str | Path], ("a", "b")),
        ('["a, b", "c"]', list[str], ["a, b", "c"]),
        ("1,2", tuple[int, ...], (1, 2)),
        ("", tuple[str, ...], ()),
        ("no", Literal["no", "pool"], "no"),
        (False, Literal["no", "pool"], "no"),  # as YAML parses it
        ("false", Literal["no", "pool"], "no"),
        ("file.json", str | Path | None, "file.json"),
        ("file.json", Path, Path("file.json")),
        (Path("file.json"), str, "file.json"),
    ],
)
def test_valid_values(value, hint, expected):
    found = read_value(value, hint)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("two", int),
        ("2.5", int),
        (2.5, int),
        (True, int),
        (10**400, int),
        ("nan", float),
        ("maybe", bool),
        (None, int),
        ("both", Literal["no", "pool"]),
        ("a,b", tuple[int, ...]),
        ("[1", tuple[int, ...]),
        (3, tuple[int, ...]),
        (3, str),
    ],
)
def test_invalid_values(value, hint):
    with pytest.raises(ValueError, match="is not"):
        read_value(value, hint)


def test_options_are_those_of_the_signature():
    assert {"preconditioned", "dimension", "wording", "training.epochs", "training.lora.rank"} <= {
        *options_of(resolve("less", BUILT_IN, "nncift.influence")),
        *options_of(resolve("response-similarity", BUILT_IN, "nncift.influence")),
    }
    assert list(options_of(Lengths)) == ["field", "power", "model"]
    assert list(options_of(Unannotated)) == ["scale", "flag", "note"]
    assert list(options_of(Dataclass)) == ["name", "shape.width", "shape.names"]
    assert list(options_of(factory)) == ["width"]
    assert not options_of(Closed)


@pytest.mark.parametrize("name", BUILT_IN)
def test_defaults_can_be_given(name, tiny_model, minilm):
    kind, setup = resolve(name, BUILT_IN, "nncift.influence"), Setup((ModelSpec(tiny_model),), EncoderSpec(minilm))
    options = {
        option: default
        for option, (_, default) in options_of(kind).items()
        if not option.startswith(("wording.", "rating_prompts.", "adapter."))  # or the whole, `wording`
    }
    assert options
    assert made(name, options, setup).describe() == made(name, None, setup).describe()
    assert read_options(kind, option_texts(nested(options)), name=name) == read_options(kind, options, name=name)


def test_explain_lists_them():
    text = explain("less")
    assert "training.epochs          int, default 4" in text
    assert "one of no, pool, both, default pool" in text
    assert "rating_prompts.levels    int, required" in explain("selectit")
    assert all(line == line.rstrip() for line in explain("delift").splitlines())


def test_a_dataclass_given_in_part_keeps_the_other_defaults():
    less = made("less", ["preconditioned=both", "training.epochs=2", "training.lora.rank=8"], Setup(seed=3))
    assert less.preconditioned == "both"
    assert (less.training.epochs, less.training.lora.rank) == (2, 8)
    assert (less.training.seed, less.training.lora.seed, less.training.learning_rate) == (3, 3, 2e-5)
    similarity = made("gradient-similarity", {"adapter": {"rank": 4, "modules": ["q_proj"]}})
    assert (similarity.adapter.rank, similarity.adapter.modules) == (4, ("q_proj",))
    assert made("selectit", {"rating_prompts.levels": 9}).rating_prompts.levels == 9
    assert made("delift", {"wording": {"query": "Q: {prompt}\nA: "}}).wording.query == "Q: {prompt}\nA: "
    assert made("Dataclass", ["shape.names=b,c"]).shape == Shape(3, ("b", "c"))


def test_whole_values_of_built_ins(tmp_path):
    assert made("gradient-similarity", {"adapter": "some/folder"}).adapter == Path("some/folder")
    assert made("ifd", {"zero_above_one": "true"}).zero_above_one
    assert made("delift", {"wording": "chat"}).wording == "chat"
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"levels": 3, "prompts": ["Look: {prompt} {response} Rate it: "]}))
    setup = Setup((ModelSpec("a/b"), ModelSpec("c/d")))
    rated = made("selectit", [f"rating_prompts={prompts}", "alpha=0.5", "softmax=yes"], setup)
    assert (rated.rating_prompts.levels, rated.alpha, rated.softmax) == (3, 0.5, True)
    assert rated.models == setup.models


def test_a_users_own_functions():
    lengths = made("Lengths", {"field": "response", "power": "2", "model": "mine"})
    assert (lengths.field, lengths.power, lengths.model) == ("response", 2.0, "mine")  # nothing from the run
    needy = made("Needy", ["exponent=3", "shape.width=4"])
    assert (needy.power, needy.shape) == (3, Shape(4))
    assert made("Shaped", {"shape": Shape(2)}).shape == Shape(2)
    assert made("Unannotated", ["scale=3", "flag=on", "note=1"]).values == (3.0, True, "1")
    assert made("factory", "width=5").values[0] == 5


@pytest.mark.parametrize(
    ("influence", "options", "message"),
    [
        ("less", ["preconditoned=both"], "less has no option 'preconditoned': did you mean 'preconditioned'? Known:"),
        ("less", {"training": {"epoch": 2}}, "did you mean 'training.epochs'?"),
        ("less", {"training.epochs": "two"}, "less cannot use training.epochs=two: expected int"),
        ("less", {"training": {"lora": {"rank": None}}}, "training.lora.rank=none: expected int"),
        ("less", {"training.epochs": 10**400}, "expected int"),
        ("less", {"preconditioned": "target"}, "preconditioned=target: expected one of no, pool, both"),
        ("less", {"training.epochs": 0}, "epochs` 0 is too small"),
        ("less", {"batch_size": 4}, "`batch_size` is an option of the run, not of less: give `batch_size`"),
        ("less", ["preconditioned"], "`influence_options` 'preconditioned' is not NAME=VALUE"),
        ("less", 5, "`influence_options` 5 is neither a mapping nor NAME=VALUE texts"),
        ("less", [{"training.epochs": 2}], "is neither a mapping nor NAME=VALUE texts"),
        ("delift", {"wording": "loud"}, "wording=loud: expected one of auto, chat, plain"),
        ("delift", ["wording=chat", "wording.query=Q {prompt}"], "given both wording and wording.query"),
        ("selectit", {"rating_prompts": "no-such.json"}, "no-such.json contains no rating prompts"),
        ("Lengths", {"field": "id"}, "field=id: expected one of prompt, response"),
        ("Closed", {"power": 2}, "Closed has no option 'power': it has none"),
        ("Needy", {}, "Needy needs exponent: give it in `influence_options`: exponent=VALUE"),
        ("Shaped", {}, "Shaped needs shape"),
        ("Needy", ["exponent=1", "shape.names=a"], "Needy needs shape.width"),
    ],
)
def test_errors_are_one_line(influence, options, message):
    with pytest.raises(ConfigError) as caught:
        made(influence, options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
