"""Test sets need only texts: the shapes of common benchmarks, chats, and named fields."""

import pytest

from nncift.data.pool import ReadOptions, load_pool, read_pool
from nncift.errors import ConfigError, DataError

QUESTION = "Which planet is known as the red one?"
POOL = [{"instruction": QUESTION, "output": "Mars."}, {"instruction": "Name a star.", "output": "Vega"}]


@pytest.mark.parametrize(
    "row",
    [
        {"question": QUESTION, "choices": ["Venus", "Mars"], "answer": 1, "subject": "x"},  # MMLU
        {"task_id": "x/0", "prompt": QUESTION, "canonical_solution": "y", "entry_point": "f", "test": "z"},  # HumanEval
        {"question": QUESTION, "answer": "Mars #### 4"},  # GSM8K
        {
            "id": "1",
            "question": QUESTION,
            "choices": {"text": ["a", "b"], "label": ["A", "B"]},
            "answerKey": "A",
        },  # ARC
        {"question": {"stem": QUESTION, "choices": [{"text": "a", "label": "A"}]}, "answerKey": "A"},
        {"ctx": QUESTION, "endings": ["a", "b"], "activity_label": "x", "label": "1"},  # HellaSwag
        {"question": QUESTION, "best_answer": "m", "correct_answers": ["m"], "category": "x"},  # TruthfulQA
        {"prompt": [QUESTION], "reference": []},  # MT-Bench
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": QUESTION}]},
        {"Problem_statement": QUESTION, "gold": "Mars"},  # of at least 8 words, by no known name
    ],
)
def test_shapes(row):
    pool, facts = read_pool(POOL, ReadOptions(exclude=[row]))
    assert (pool["source_row"][:], facts.excluded) == ([1], 1)


def test_ids_and_short_labels_never_match():
    pool = [{"prompt": "Vega", "response": "star"}, {"prompt": "A", "response": "B"}]
    test = {"id": "Vega", "label": "A", "text": "A", "choices": ["Vega", "A"], "target": "star"}
    assert len(load_pool(pool, exclude=[test])) == 2


@pytest.mark.parametrize("before", [[], [("user", "Hi"), ("assistant", "Hello")], [("system", "Be kind.")]])
def test_every_turn_of_a_chat_is_compared(before):
    turns = [*before, ("user", "Name a star."), ("assistant", "Vega"), ("user", "Thanks"), ("assistant", "Sure")]
    chat = [{"role": role, "content": content} for role, content in turns]
    rows = [{"messages": chat}, {"messages": [chat[-2], {"role": "assistant", "content": "Welcome"}]}]
    assert load_pool(rows, exclude=[{"question": "Name a star.", "answer": 0}])["source_row"][:] == [1]
    assert load_pool([*POOL, *rows], exclude=[{"messages": chat}])["source_row"][-1] == 3  # "Thanks" is no question


def test_named_fields_of_test_sets():
    tests = [{"aufgabe": "Name a star.", "prompt": QUESTION}]
    assert load_pool(POOL, exclude=tests)["source_row"][:] == [1]
    assert load_pool(POOL, exclude=tests, exclude_fields="aufgabe")["source_row"][:] == [0]
    with pytest.raises(DataError, match=r"no test set has the field 'none' .*: the fields are aufgabe, prompt"):
        load_pool(POOL, exclude=tests, exclude_fields=("none",))
    with pytest.raises(DataError, match=r"no text in its fields \(score\)"):
        load_pool(POOL, exclude=[{"score": 1}])
    with pytest.raises(ConfigError, match="give `exclude` too"):
        load_pool(POOL, exclude_fields="aufgabe")


def test_named_fields_apply_to_the_sides_that_have_them():
    tests = [{"prompt": QUESTION, "canonical_solution": "x"}]
    named = {"prompt_field": "prompt", "response_field": "canonical_solution"}
    assert load_pool(POOL, exclude=tests, **named)["source_row"][:] == [1]
    with pytest.raises(DataError, match=r"field 'prompt': there is no such field: the fields are instruction, output"):
        load_pool(POOL, **named)
    options = ReadOptions(**named)
    assert not read_pool(POOL, options, named_elsewhere=True)[1].has_named
