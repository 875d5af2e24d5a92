"""Options of evaluations and comparisons that change nothing beside the others are refused, with what to do."""

from __future__ import annotations

import pytest

from nncift.cli.messages import as_typed
from nncift.errors import ConfigError
from nncift.proof.inputs.inputs import Inputs
from nncift.proof.options import CompareOptions, ProofOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("lora",), "shots": 3}, "`shots` 3 is for examples in the context, .*: leave it out, or add icl"),
        ({"methods": ("icl",), "epochs": 2}, "`epochs` 2 is for fine-tuning, and `methods` icl trains .* add lora"),
        ({"methods": ("icl",), "report_to": ("wandb",)}, "`report_to` wandb is for fine-tuning"),
        ({"methods": ("icl",), "seeds": 3}, "`seeds` 3 is for fine-tuning"),
        ({"metrics": ("loss",), "max_new_tokens": 9}, "`max_new_tokens` 9 is for generated answers, .* to `metrics`"),
    ],
)
def test_options_of_an_evaluation_without_effect(options, message):
    with pytest.raises(ConfigError, match=message):
        ProofOptions(test="test.jsonl", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 3}, "`shots` 3 is for examples in the context, and `methods` lora shows none"),
        ({"methods": ("icl",), "rank": 8}, "`rank` 8 is for fine-tuning"),
        ({"max_new_tokens": 9}, "`max_new_tokens` 9 is for generated answers"),
        ({"methods": ("icl",), "curve": ("5",)}, "`curve` 5 is for fine-tuning with budgets in rows"),
        ({"units": ("tokens",), "curve": ("5", "9")}, "`curve` 5,9 is for fine-tuning with budgets in rows"),
        ({"test": None, "studies": ("depth",), "epochs": 2}, "`epochs` 2 is for training, .* give `test`"),
        ({"test": None, "studies": ("depth",), "budgets": ("5",)}, "`budgets` 5 is for training"),
        ({"test": None}, "there is no `test` file"),
    ],
)
def test_options_of_a_comparison_without_effect(options, message):
    with pytest.raises(ConfigError, match=message):
        CompareOptions(**{"test": "test.jsonl", **options})


def test_options_with_effect_are_taken():
    ProofOptions(test="test.jsonl", shots=3, epochs=2, max_new_tokens=9)
    ProofOptions(test="test.jsonl", metrics=("loss",), judge="embedded", max_new_tokens=9)
    CompareOptions(test="test.jsonl", methods=("icl",), seeds=2)  # which draws random rows too
    CompareOptions(studies=("depth",), influences=("less",), seeds=2)


def test_what_is_named_twice_counts_once():
    twice = {
        **{"methods": ("lora", "icl"), "metrics": ("loss", "rouge"), "units": ("rows",), "objectives": ("a",)},
        **{"influences": ("less", "delift"), "exact": ("all", "less"), "free": ("bm25",), "studies": ("depth",)},
        **{"budgets": ("0.1", "5"), "curve": ("5", "9"), "report_to": ("wandb",)},
    }
    options = CompareOptions(test="test.jsonl", **{name: 2 * values for name, values in twice.items()})
    assert {name: getattr(options, name) for name in twice} == twice


def test_exact_values_of_all_and_of_another_function():
    options = CompareOptions(test="test.jsonl", influences=("less",), exact=("delift", "all"), free=())
    inputs = Inputs(options, None, {}, None, [], None, None, 1, "", progress=False)
    assert [each.name for each in inputs.selectors] == ["less, exact", "delift, exact", "less, estimated"]


def test_the_command_line_names_them_as_typed():
    with pytest.raises(ConfigError) as raised:
        CompareOptions(studies=("depth",), budgets=("5",))
    assert as_typed(raised.value).startswith("--budget 5 is for training")
