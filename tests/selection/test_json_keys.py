"""Rows are written back byte for byte: only the keys that are set change."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nncift.selection.json_keys import with_keys

KEYS = {"nncift_rank": 3, "nncift_gain": 0.5, "nncift_influence": None}
ADDED = '"nncift_rank": 3, "nncift_gain": 0.5, "nncift_influence": null'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1.10, "b": 1E5, "c": 12345678901234567890.5, "d": 1e400}', '{"a": 1.10, "b": 1E5, ...d": 1e400, +}'),
        ("{}", "{+}"),
        ("{ }", "{+ }"),
        ('{ "a" : [1,{"b":2 }] }', '{ "a" : [1,{"b":2 }], + }'),
        ('{"a":"names nncift_rank","b":{"nncift_rank":1.10}}', '{"a":"names nncift_rank","b":{"nncift_rank":1.10}, +}'),
        ('{"a": 1.10, "nncift_rank": 1, "nncift_gain": 2.5, "nncift_influence": 0.1}', '{"a": 1.10, +}'),
        ('{"nncift_rank": [1, {"x": "}"}], "a": 1, "a": 1e400}', '{ "a": 1, "a": 1e400, +}'),
        ('{"nncift\\u005frank": 9, "a": "\\ud83d \\"nncift_rank\\": "}', '{ "a": "\\ud83d \\"nncift_rank\\": ", +}'),
        ('{"nncift_rank": 1}', "{+}"),
        ('{\n  "a": 1,\r\n\t"b": "\\n"\n}', '{ "a": 1, "b": "\\n", + }'),
        ('{"a": "\\\\", "nncift_rank": 1}', '{"a": "\\\\", +}'),
    ],
)
def test_only_the_keys_change(text, expected):
    expected = expected.replace("+", ADDED).replace("...", '"c": 12345678901234567890.5, "')
    assert with_keys(text, KEYS) == expected


def test_members_that_are_left_out():
    text = '{"a": 1.10, "nncift_weight": 0.5, "b": {"nncift_weight": 1}}'
    assert with_keys(text, KEYS, without=["nncift_weight"]) == f'{{"a": 1.10, "b": {{"nncift_weight": 1}}, {ADDED}}}'


SPACE = st.sampled_from(["", " ", "\t "])
NAMES = st.sampled_from(["a", "b", "nncift", "nncift_rank2", 'quoted"key', "back\\slash", ""]) | st.text(max_size=4)
NUMBERS = ["1.10", "1E5", "-0", "12345678901234567890.5", "1e400", "0.30000000000000000001", "true", "null"]
STRINGS = st.sampled_from(["nncift_rank", '"nncift_rank": 1', "}{][,:", "\\", '\\"', "\ud83d"]) | st.text(max_size=6)


@st.composite
def literals(draw, depth=2):
    """JSON text with numbers, escapes and white space that `json` would not write again as they are."""
    kind = draw(st.integers(0, 3 if depth else 1))
    if kind == 0:
        return draw(st.sampled_from(NUMBERS))
    if kind == 1:
        return json.dumps(draw(STRINGS), ensure_ascii=draw(st.booleans()))
    items = draw(st.lists(literals(depth - 1), max_size=3))
    if kind == 2:
        return "[" + ",".join(draw(SPACE) + item + draw(SPACE) for item in items) + "]"
    return "{" + ",".join(f"{draw(SPACE)}{json.dumps(draw(NAMES))}{draw(SPACE)}:{item}" for item in items) + "}"


@st.composite
def members(draw):
    own = draw(st.booleans())
    name = draw(st.sampled_from(list(KEYS))) if own else draw(NAMES)
    text = f"{draw(SPACE)}{json.dumps(name)}{draw(SPACE)}:{draw(SPACE)}{draw(literals())}{draw(SPACE)}"
    return text, name in KEYS


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # reading Unicode's tables
@given(st.lists(members(), max_size=6))
def test_every_other_byte_is_equal(row):
    result = with_keys("{" + ",".join(text for text, _ in row) + "}", KEYS)
    assert "\n" not in result
    before, found, after = result.partition(ADDED)
    assert found
    rest = ",".join(text for text, replaced in row if not replaced)
    assert before.removesuffix(", ") + after == "{" + rest + "}"
    assert _pairs(result) == _pairs("{" + rest + "}") + _pairs("{" + ADDED + "}")


def _pairs(text: str) -> list:
    """Members with numbers as they are written, duplicate keys included."""
    return json.loads(text, object_pairs_hook=list, parse_int=str, parse_float=str)
