"""Decontamination against a slow reference, and of pools."""

import json
import unicodedata

import datasets
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from builders import write_jsonl
from nncift.data.cleaning.decontamination import MIN_WORDS, NGRAM, Contamination, Texts, prompt_key, words
from nncift.data.pool import ReadOptions, load_pool, read_pool
from nncift.errors import DataError

LONG = " ".join(f"w{i}" for i in range(NGRAM))


def why(sample, *tests):
    contamination = Contamination()
    for i, (prompt, response) in enumerate(tests):
        contamination.add(f"t{i}", "test.jsonl", Texts((prompt,), (response,)))
    found = contamination.find(Texts((sample[0],), (sample[1],)))
    return found and (found[0], found[1])


def reference(sample, tests):
    """Words by character category; n-grams by substring search between spaces."""

    def plain(text, symbols=""):
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        kept = "".join(c if unicodedata.category(c)[0] in "LNM" else f" {c} " if c in symbols else " " for c in folded)
        return f" {' '.join(kept.split())} "

    def key(text):
        return plain(text, "+-*/=<>#%^&|~@$" if len(plain(text).split()) < MIN_WORDS else "")

    if key(sample[0]).strip() and any(key(sample[0]) == key(other) for other, _ in tests):
        return "same prompt"
    (prompt, response), tests = map(plain, sample), [tuple(map(plain, test)) for test in tests]
    for where, text in (("prompt", prompt), ("response", response)):
        if len(text.split()) >= MIN_WORDS and any(text == other for test in tests for other in test):
            return f"same {where}"
    for where, text in (("prompt", prompt), ("response", response)):
        found = text.split()
        for i in range(len(found) - NGRAM + 1):
            run = f" {' '.join(found[i : i + NGRAM])} "
            if any(run in other for test in tests for other in test):
                return f"{NGRAM} shared words in the {where}:{run}".rstrip()
    return None


WORDS = ["a", "A", "b", "Ärger", "Straße", "STRASSE", "ﬁ", "fi", "x_y", "don't", "3.5", "हिन्दी", "-", "."]
text = st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join)
pair = st.tuples(text, text)


@given(sample=pair, tests=st.lists(pair, max_size=3))
@example(sample=(LONG, "r"), tests=[("p", f"{LONG}!")])
@example(sample=("p", f"so {LONG} it is"), tests=[("x", "y"), (LONG, "r")])
@example(sample=("...", "r"), tests=[("?!", "r")])
def test_equals_the_reference(sample, tests):
    found = why(sample, *tests)
    assert (found and found[0]) == reference(sample, tests)


@given(sample=pair)
def test_a_sample_with_words_matches_itself(sample):
    assert why(sample, sample) == (
        ("same prompt", "t0") if prompt_key(sample[0]) else why(("", sample[1]), ("", sample[1]))
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2 * 2 =", "2 + 2 = ?", False),
        ("C", "C++?", False),
        ("What is C#?", "What is C?", False),
        ("Costs 5 €", "Costs 5 $", False),
        ("a ≤ b", "a ≥ b", False),
        ("+ - ?", "=>", False),
        ("👍", "👎", False),
        ("?!", "...", False),
        ("2 + 2 = ?", "2+2=", True),
        ("Is 'C++' fast?", "is (C++) fast", True),
        ("What does `ls` do?", "What does ls do?", True),
        ("=>", "=> ?", True),
        ("one two three four five six seven - eight", "One two three four five six seven eight!", True),
    ],
)
def test_symbols_of_a_short_prompt_count(one, other, same):
    for first, second in ((one, other), (other, one)):
        assert (why((first, "x"), (second, "y")) == ("same prompt", "t0")) == same


def test_names_the_test_sample():
    tests = [("first question", "r"), ("second question", "one two three four five six seven eight"), (LONG, "r")]
    assert why(("Second   QUESTION?", "x"), *tests) == ("same prompt", "t1")
    assert why(("x", "One, two; three: four five six seven EIGHT."), *tests) == ("same response", "t1")
    shared = f"{NGRAM} shared words in the prompt: {LONG}"
    assert why((f"before {LONG.upper()} after", "r"), *tests) == (shared, "t2")


@pytest.mark.parametrize(
    ("sample", "test"),
    [
        (("p", "Yes."), ("q", "Yes.")),
        (("p", "one two three four five six seven"), ("q", "one two three four five six seven")),
        (("?", "r"), ("!", "r")),
        ((LONG[: LONG.rindex(" ")], "r"), (LONG, "s")),
        (("question", "r"), ("answer", "question")),
    ],
)
def test_clean(sample, test):
    assert why(sample, test) is None


def test_scripts():
    plain = ["full", "width", "fine", "strasse", "don", "t", "under", "score"]
    assert words("\uff26\uff35LL width ﬁne Straße don\u2019t under_score") == plain
    assert words("हिन्दी वाक्य।") == ["हिन्दी", "वाक्य"]
    assert words("你好\uff0cworld 3") == ["你", "好", "world", "3"]
    chinese = "床前明月光疑是地上霜举头望明月低头思故乡"
    assert why((f"请背诵 {chinese[:NGRAM]}", "r"), (f"《静夜思》{chinese}", "r"))[1] == "t0"


def test_every_turn_and_paragraph_is_compared():
    question = "Which of these eight words are a question?"
    contamination = Contamination()
    contamination.add("t", "test.jsonl", Texts(("Short question?", question), (), ("a choice",)))
    assert contamination.find(Texts(("Hello!", "short question", "Thanks"))) == ("same prompt", "t", "test.jsonl")
    assert contamination.find(Texts(("x",), ("y", question))) == ("same response", "t", "test.jsonl")
    found = contamination.find(Texts((f"Answer it.\n\n{question}",)))
    assert found == ("same paragraph in the prompt", "t", "test.jsonl")
    assert (
        contamination.find(Texts(("Answer it.\n\nShort question?", "a choice"), ("a choice",), ("a choice",))) is None
    )


def test_half_a_surrogate_pair_in_a_test_set(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"id": "\\ud800", "question": "What is a \\ud800 half?", "answer": "a"}\n')
    rows = [{"prompt": "What is a \ufffd half?", "response": "b"}, {"prompt": "p", "response": "q"}]
    pool = load_pool(rows, exclude=str(tmp_path / "test.jsonl"), folder=tmp_path / "pool")
    assert pool["prompt"] == ["p"]  # words leave out what is no letter
    assert json.loads((tmp_path / "pool/excluded.jsonl").read_text())["test_id"] == "\ud800"


def test_a_test_set_without_a_header(tmp_path):
    """MMLU's CSV files have none: the first question stands where the names of the columns are read."""
    first, second = "Which planet of our solar system has the largest mass?", "How many legs does a common spider have?"
    (tmp_path / "mmlu.csv").write_text(f"{first},Mars,Jupiter,Venus,Earth,B\n{second},2,4,6,8,D\n")
    rows = [{"prompt": text, "response": "a"} for text in (first, second, "Something else that is no test question")]
    assert load_pool(rows, exclude=str(tmp_path / "mmlu.csv"))["prompt"] == [rows[2]["prompt"]]


def row(i):
    return {"prompt": f"p{i}", "response": f"r{i}"}


def test_decontamination(tmp_path):
    run = "the quick brown fox jumps over the lazy dog and then sleeps well"
    shared = {"prompt": "P1!", "response": "x"}, {"prompt": "x", "response": f"so {run}"}
    path = write_jsonl(tmp_path / "a.jsonl", [row(0), *shared, row(0), row(3), row(0)])
    first = write_jsonl(tmp_path / "t1.jsonl", [{"question": "p1", "answer": "?"}, {"question": run, "answer": "?"}])
    second = write_jsonl(tmp_path / "t2.csv", ["instruction,output,id", "p0,r,seven"])
    pool, facts = read_pool(path, ReadOptions(exclude=[first, second]), folder=tmp_path / "pool")
    assert pool["source_row"][:] == [4]
    assert (facts.read, facts.rows, facts.excluded, facts.duplicates) == (6, 1, 5, 0)
    listed = [json.loads(line) for line in (tmp_path / "pool" / "excluded.jsonl").read_text().splitlines()]
    assert {entry["row"]: entry["why"] for entry in listed} == dict.fromkeys((1, 2, 4, 6), "same prompt") | {
        3: f"13 shared words in the response: {run}"
    }
    place = {"id": load_pool([row(0)])["id"][0], "row": 1, "file": str(path)}
    assert listed[0] == place | {"why": "same prompt", "test_id": "seven", "test_file": str(second)}
    assert listed[2]["test_id"] == load_pool(first)["id"][1]


def test_test_sets_are_any_source(tmp_path):
    rows = [row(i) for i in range(4)]
    tests = datasets.Dataset.from_list([row(1)])
    path = write_jsonl(tmp_path / "t.jsonl", [row(2)])
    for exclude, left in [
        (str(path), [0, 1, 3]),
        (path, [0, 1, 3]),
        ([path, tests], [0, 3]),
        (tests, [0, 2, 3]),
        ([row(0)], [1, 2, 3]),
        (datasets.DatasetDict(train=datasets.Dataset.from_list([row(3)]), test=tests), [0, 2, 3]),
        ((), [0, 1, 2, 3]),
    ]:
        assert load_pool(rows, exclude=exclude)["source_row"][:] == left


def test_named_fields_apply_to_test_sets_too():
    rows = [{"ask": f"p{i}", "reply": "r"} for i in range(3)]
    tests = [[rows[0]], [{"question": "p1", "answer": "r"}]]
    pool = load_pool(rows, prompt_field="ask", response_field="reply", exclude=tests)
    assert pool["source_row"][:] == [2]


def test_a_bad_test_set_is_an_error(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [row(0), "{"])
    with pytest.raises(DataError, match=f"{path}, row 2: invalid JSON .*`skip_bad_rows`"):
        load_pool([row(1)], exclude=path)
    with pytest.raises(DataError, match="no such file"):
        load_pool([row(1)], exclude=str(tmp_path / "none.jsonl"))
    assert len(load_pool([row(0), row(1)], exclude=path, skip_bad_rows=True)) == 1


# --- real data -----------------------------------------------------------------------------------------


def test_a_contaminated_pool(shared_data):
    """40 GSM8K test questions, reworded in case and punctuation, among 500 training questions."""
    train = load_pool(shared_data / "gsm8k_train.jsonl.gz").select(range(500)).to_list()
    test = shared_data / "gsm8k_test.jsonl.gz"
    questions = load_pool(test)["prompt"][:40]
    hidden = [{"question": text.upper().replace(".", " ;"), "answer": "unknown"} for text in questions]
    clean = [{"question": sample["prompt"], "answer": sample["response"]} for sample in train]
    pool, facts = read_pool([*clean, *hidden], ReadOptions(exclude=test))
    assert set(range(500, 540)).isdisjoint(pool["source_row"][:])
    assert 40 <= facts.excluded <= 45
