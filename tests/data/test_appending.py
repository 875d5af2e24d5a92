"""Rows added to a finished pool give the pool that a list of both sources gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from builders import word_rows, write_rows
from nncift.data.appending import rows_before
from nncift.data.facts import PoolFacts, open_pool
from nncift.data.pool import ReadOptions, read_pool
from nncift.errors import DataError
from nncift.run.folder.parts import SampleFolder

LISTS = ("duplicates.jsonl", "excluded.jsonl", "rejected.jsonl")


def chat(text: str) -> dict:
    return {"messages": [{"role": "user", "content": f"Say {text}"}, {"role": "assistant", "content": text}]}


def counts(facts: PoolFacts) -> PoolFacts:
    return replace(facts, notes=())


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, str, str]:
    """Two sources with repeated rows, repeated ids, chats and bad rows; and a test set that has rows of both."""
    old, new = word_rows(12), word_rows(9, offset=40)
    first = [*old, old[3], {"id": "a", **chat("river")}, {"id": "a", **chat("stone")}, {"prompt": "no response"}]
    second = [new[0], old[5], {"id": "a", **chat("lake")}, {"id": "b", **chat("river")}, {"id": "a#2", **chat("sea")}]
    second += [new[0], {"prompt": 3, "response": 4}, *new[1:]]
    return (
        write_rows(tmp_path / "first.jsonl", first),
        write_rows(tmp_path / "second.jsonl", second),
        write_rows(tmp_path / "test.jsonl", [old[7], new[4]]),
    )


@pytest.mark.parametrize("options", [{}, {"keep_duplicates": True}, {"turns": "all"}])
def test_it_is_the_pool_of_both_sources(sources, tmp_path: Path, options):
    first, second, test = sources
    given = ReadOptions(exclude=[test], skip_bad_rows=True, **options)
    read_pool(first, given, folder=tmp_path / "first")
    whole, facts = read_pool([first, second], given, folder=tmp_path / "whole")
    pool, found = read_pool(second, given, after=tmp_path / "first", folder=tmp_path / "pool")
    assert pool[:] == whole[:]
    assert pool.features == whole.features
    assert counts(found) == counts(facts)
    for name in LISTS:
        assert (tmp_path / "pool" / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    assert (facts.duplicates, facts.excluded, facts.rejected) == (0 if options.get("keep_duplicates") else 4, 2, 2)
    again, same = read_pool(second, given, after=tmp_path / "gone", folder=tmp_path / "pool")  # finished: only opened
    assert (again[:], same) == (whole[:], found)
    assert rows_before(SampleFolder(tmp_path / "pool"))[0] == len(open_pool(tmp_path / "first")[0])
    assert rows_before(SampleFolder(tmp_path / "first")) == (0, "")


def test_a_pool_grows_again(sources, tmp_path: Path):
    first, second, _ = sources
    third = write_rows(tmp_path / "third.jsonl", [*word_rows(3, offset=41), *word_rows(2, offset=60)])
    given = ReadOptions(skip_bad_rows=True)
    read_pool([first, second], given, folder=tmp_path / "two")
    whole, facts = read_pool([first, second, third], given)
    pool, found = read_pool(third, given, after=tmp_path / "two", folder=tmp_path / "three")
    assert (pool[:], counts(found)) == (whole[:], counts(facts))


def test_sources_of_a_mixture_keep_their_names(sources, tmp_path: Path):
    first, second, _ = sources
    (tmp_path / "old.yaml").write_text(f"- {{name: words, path: {first}, cap: 6}}\n")
    (tmp_path / "new.yaml").write_text(f"- {{name: words, path: {second}, weight: 0.5}}\n")
    given = ReadOptions(skip_bad_rows=True)
    read_pool(tmp_path / "old.yaml", given, folder=tmp_path / "first")
    pool, _ = read_pool(tmp_path / "new.yaml", given, after=tmp_path / "first", folder=tmp_path / "pool")
    assert {*pool["source"]} == {"words"}
    pool, facts = read_pool(word_rows(4, offset=90), given, after=tmp_path / "pool", folder=tmp_path / "more")
    assert {*pool["source"]} == {"words", "<dataset>"}
    assert facts.rows == len(pool)


def test_nothing_new_is_refused(sources, tmp_path: Path):
    first, _, _ = sources
    read_pool(first, ReadOptions(skip_bad_rows=True), folder=tmp_path / "first")
    with pytest.raises(DataError, match="0 of 2 also occur in a test set and 2 in the pool"):
        read_pool(word_rows(2), after=tmp_path / "first", folder=tmp_path / "pool")
    assert not (tmp_path / "pool" / "samples.arrow").exists()
    assert json.loads((tmp_path / "first/facts.json").read_text())["rows"] == 14


SAME_TO_A_MODEL = [
    {"role": "user", "content": "q", "name": None},
    {"role": "user", "content": [{"type": "text", "text": "q"}]},
    {"role": "user", "content": "q", "tool_calls": None},
]


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": " "}], [{"role": "developer", "content": ""}]])
@pytest.mark.parametrize("user", SAME_TO_A_MODEL)
def test_chats_that_are_the_same_to_a_model_are_duplicates(system, user, tmp_path: Path):
    before = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]
    plain = {"messages": [*before, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    other = {"messages": [*system, *before, user, {"role": "assistant", "content": "a"}]}
    for first, second in ((plain, other), (other, plain)):
        folder = tmp_path / ("plain" if first is plain else "other")
        pool, facts = read_pool([first, second], folder=folder / "both")
        assert (len(pool), facts.duplicates, json.loads(pool[0]["original"])) == (1, 1, first)
        assert json.loads(pool[0]["messages"]) == first["messages"]  # stored as it is
        kept, _ = read_pool([first, second], ReadOptions(keep_duplicates=True))
        assert len({*kept["id"]}) == 2
        assert pool["id"][0] == kept["id"][0]
        read_pool([first], folder=folder / "one")
        grown, facts = read_pool([second, word_rows(1)[0]], after=folder / "one", folder=folder / "grown")
        assert (len(grown), facts.duplicates) == (2, 1)


def test_chats_that_differ_for_a_model_are_no_duplicates():
    chats = [
        [
            {"role": "system", "content": system},
            {"role": "user", "content": user},
            {"role": "assistant", "content": "a"},
        ]
        for system, user in (("", "q"), ("s", "q"), ("null", "q"), ("", "null"), ("", ["q", "null"]))
    ]
    pool, _ = read_pool([{"messages": messages} for messages in chats])
    assert len(pool) == 5
