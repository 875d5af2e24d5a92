"""Errors survive pickling and are one printable line."""

from __future__ import annotations

import pickle

import pytest

from nncift.errors import ConfigError, DataError, DependencyError, ModelError, NNCIFTError, RunError, printable


@pytest.mark.parametrize("kind", [NNCIFTError, ConfigError, ModelError, RunError, DependencyError])
def test_errors_survive_pickling(kind):
    error = pickle.loads(pickle.dumps(kind("what", "do this")))
    assert type(error) is kind
    assert (error.problem, error.fix, str(error)) == ("what", "do this", "what: do this")


def test_data_error_names_file_row_and_field_and_survives_pickling():
    error = pickle.loads(pickle.dumps(DataError("is empty", "fill it", file="a.jsonl", row=3, field="response")))
    assert str(error) == "a.jsonl, row 3, field 'response': is empty: fill it"


def test_messages_hold_no_control_characters():
    error = DataError("odd \x1b[31m text\nnext", file="evil\x07.jsonl")
    assert all(c.isprintable() for c in str(error))
    assert printable("a\u202eb") == "a\\u202eb"
    assert printable("5.0\u00a0% of\u2003it\u2028") == "5.0 % of it\\u2028"  # spaces, and a line separator
