"""nncift in Python: the README's example, the options of `select` and their types, one-line descriptions."""

from __future__ import annotations

import re
import typing
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import nncift
from builders import EstimatedBM25, word_rows, write_rows
from nncift.cli import app
from nncift.config import Config
from nncift.errors import ConfigError
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.configuration.options import GROUPS, SelectOptions
from report_pages import make_fidelity

README = Path(__file__).parents[1] / "README.md"
NAMED = {"pool", "target", "known", "append", "influence"}  # by `select` itself
OPTIONS = {field.name for field in fields(Config)} - NAMED


def test_the_readmes_example(tmp_path, minilm, tiny_model):
    section = README.read_text(encoding="utf-8").partition("## From Python, step by step")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    smaller = {
        '"alpaca.jsonl"': repr(write_rows(tmp_path / "pool.jsonl", word_rows(60))),
        '"HuggingFaceTB/SmolLM2-135M-Instruct"': f"{tiny_model!r}, device='cpu'",
        '"sentence-transformers/all-MiniLM-L6-v2"': f"{minilm!r}, device='cpu'",
        "5000": "60",
        "1000": "6",
    }
    for text, other in smaller.items():
        assert text in code
        code = code.replace(text, other)
    scope: dict = {}
    exec(code, scope)
    rows = scope["selection"].dataset
    assert len(rows) == len(scope["selection"].sft_dataset()) == 6
    assert np.isfinite(rows["nncift_influence"][:]).all()
    assert set(scope["features"].widths) == {"sentence", "prompt states", "response states", "scalars"}


def test_select_has_the_options_of_the_config():
    assert set(SelectOptions.__annotations__) == OPTIONS
    hints, wider = typing.get_type_hints(Config), typing.get_type_hints(SelectOptions)
    for name in (name for name in OPTIONS if typing.get_origin(hints[name]) is not tuple):  # here one or a sequence
        members, taken = ({*typing.get_args(hint)} or {hint} for hint in (hints[name], wider[name]))
        assert members <= taken or hints[name] is wider[name] or hints[name] in taken, name


def test_every_option_has_a_line_in_the_docstring_and_one_heading():
    documented = re.findall(r"^ {12}(\w+): ", nncift.select.__doc__, re.MULTILINE)
    assert sorted(documented) == sorted(OPTIONS)
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(field.name for field in fields(Config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verify": "2"}, "`verify` is '2': give a number"),
        ({"seed": 1.5}, "`seed` is 1.5: give a whole number"),
        ({"seed": True}, "`seed` is True: give a whole number"),
        ({"seed": 2**70}, "below 2"),
        ({"known": 3}, "`known` is 3: give a path, a hub id, a dataset"),
        ({"pool": None}, "`pool` is None: give a path"),
        ({"pool": ""}, "`pool` is empty"),
        ({"dtype": "fp8"}, "give one of float32, bfloat16"),
        ({"labels": True}, "`labels` True is not an amount"),
        ({"budget": None}, "`budget` None is not an amount"),
        ({"exclude": 5}, "`exclude` is 5: give the path or hub id of a test set"),
        ({"exclude": [{"prompt": "a"}]}, "`exclude` is data in memory: give the path or hub id of a test set"),
        ({"exclude": ["a.jsonl", ""]}, "`exclude` is empty"),
        ({"output": ""}, "`output` is empty"),
        ({"trust_remote_code": "no"}, "give True or False"),
        ({"influence": 3}, "3 is not an influence function"),
        ({"budgte": 3}, "there is no option 'budgte'"),
    ],
)
def test_a_value_of_another_type_is_one_line(options, message):
    with pytest.raises(ConfigError) as caught:
        make_config(**{"pool": "pool.jsonl"} | options)
    assert message in str(caught.value)


def test_paths_and_numbers_of_other_types_are_taken():
    config = make_config(
        Path("pool.jsonl"),
        exclude=[Path("one.jsonl"), "two.jsonl"],
        output=Path("run"),
        seed=np.int64(3),
        verify=np.float32(2.5),
        budget=np.float64(0.25),
        labels=40,
    )
    assert (config.pool, config.exclude, config.output) == ("pool.jsonl", ("one.jsonl", "two.jsonl"), "run")
    assert (config.seed, config.verify, config.budget, config.labels) == (3, 2.5, "0.25", "40")
    assert make_config("pool.jsonl", exclude=Path("one.jsonl")).exclude == ("one.jsonl",)
    assert make_config("pool.jsonl", exclude=None).exclude == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("features", np.ones((3, 2))),
        ("labels", np.ones(3)),
        ("network", object()),
        ("exclude", [{"prompt": "a", "response": "b"}]),
        ("exclude", 5),
    ],
)
@pytest.mark.parametrize("from_run", [None, "run"])
def test_objects_that_are_no_options_are_refused_in_one_line(tmp_path, monkeypatch, name, value, from_run):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"^`{name}` is .*: give ") as error:
        make_config("pool.jsonl", from_run=from_run, **{name: value})
    assert "\n" not in str(error.value)


def test_every_command_on_a_run_is_a_function_of_the_same_name():
    otherwise = {"demo", "doctor", "env", "influences", "pretrain", "report"}  # docs/reference/index.md names these
    commands = {command for command in app if not command.startswith("-")} - otherwise
    assert {"select", "explore", "repair", "push"} <= commands <= set(nncift.__all__)


def test_objects_describe_themselves_in_one_line(tmp_path, capsys):
    pool = write_rows(tmp_path / "pool.jsonl", word_rows(12))
    np.save(tmp_path / "features.npy", np.random.default_rng(0).random((12, 4)))
    options = {"influence": EstimatedBM25(), "labels": 40, "budget": 3, "features": tmp_path / "features.npy"}
    selection = nncift.select(pool, output=tmp_path / "run", **options)
    assert capsys.readouterr().err == ""  # outside a terminal, no line of what takes seconds
    loaded = nncift.Selection.load(str(tmp_path / "run"))
    assert repr(loaded) == repr(selection)
    assert re.fullmatch(r"Selection\(3 of 12 samples, facility-location [\d.]+\)", repr(selection))
    network = nncift.InfluenceNetwork.from_pretrained(str(tmp_path / "run/network"))
    assert repr(network) == "InfluenceNetwork('process', features 4 and 4 wide)"
    assert repr(nncift.InfluenceNetwork("paper")) == "InfluenceNetwork('paper', not fitted)"
    features = nncift.Features({"one": np.zeros((12, 4)), "two": np.zeros((12, 2))})
    assert repr(features) == "Features(12 samples; one 4, two 2)"
    assert repr(nncift.InfluenceMatrix.from_array(np.zeros((3, 2)))) == "InfluenceMatrix(3 x 2)"
    pairs = nncift.LabelledPairs(np.array([0, 1, 1]), np.array([0, 0, 1]), np.ones(3, np.float32))
    assert repr(pairs) == "LabelledPairs(3 pairs, 2 pool samples, 2 targets)"
    assert repr(make_fidelity(np.random.default_rng(0), good=True)).startswith(
        "Fidelity('The network is better than the baselines on 42 new pool samples: "
    )
    assert "license" not in (tmp_path / "run/network/README.md").read_text()  # that is its owner's to choose
    assert nncift.__version__ == "0.1.0"
