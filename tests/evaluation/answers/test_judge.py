"""Judges: the grades of a model, the check on known answers, and endpoints that misbehave."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from builders import samples
from nncift.errors import ConfigError, DataError, ModelError
from nncift.evaluation.answers.endpoint import EndpointJudge, parse_grade
from nncift.evaluation.answers.items import Items
from nncift.evaluation.answers.judge import JudgeCheck, LocalJudge, Rubric, check_judge
from nncift.models.language_model import LanguageModel

SHORT = Rubric("Q: {prompt}\nR: {reference}\nA: {answer}\nGrade:")
TEXTS = (["one", "two {answer}"], ["uno", "dos"], ["eins", "zwei {prompt}"])


def test_a_rubric_has_each_placeholder_once(tmp_path):
    assert "{answer}" in Rubric.load().text
    assert SHORT.fill("{answer}", "r", "{prompt}") == "Q: {answer}\nR: r\nA: {prompt}\nGrade:"
    (tmp_path / "rubric.txt").write_text("{prompt} {answer} {answer}")
    with pytest.raises(ConfigError, match=r"contains \{answer\}, \{answer\}, \{prompt\}: it needs"):
        Rubric.load(tmp_path / "rubric.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        Rubric.load(tmp_path / "none.txt")


@pytest.mark.parametrize("wording", ["chat", "plain"])
def test_the_grade_is_the_expectation_over_the_digits(tiny, wording):
    grades = LocalJudge(tiny, SHORT, wording=wording).rate(*TEXTS)
    for grade, texts in zip(grades, zip(*TEXTS, strict=True), strict=True):
        text = SHORT.fill(*texts)
        rendered = tiny.chat([{"role": "user", "content": text}]) if wording == "chat" else f"{text}\n"
        with torch.inference_mode():
            logits = tiny.model(torch.tensor(tiny.encode([rendered]))).logits[0, -1]
        digits = torch.tensor([tiny.encode([str(k)])[0][0] for k in range(1, 6)])
        expected = (logits[digits].double().softmax(0) * torch.arange(1, 6)).sum()
        assert grade == pytest.approx(float(expected), rel=1e-5)


def test_long_prompts_are_cut_and_long_answers_refused(tiny_model):
    judge = LocalJudge(LanguageModel.load(tiny_model, device="cpu", max_length=90), SHORT)
    (cut,) = judge.rate(["word " * 500 + "end"], ["a"], ["b"])
    assert 1 <= cut <= 5
    with pytest.raises(DataError, match=r"exceed the context of the judge .* 90 tokens: take a judge with a longer"):
        judge.rate(["p"], ["a"], ["word " * 100])


@pytest.fixture(scope="module")
def items(tiny) -> Items:
    rows = [
        {"id": str(k), "prompt": f"Count from {k}", "response": " ".join(map(str, range(k, k + 10)))} for k in range(20)
    ]
    return Items.read(samples(rows), tiny)


class Graded:
    """A judge that is a function of reference and answer."""

    name = "graded"

    def __init__(self, grade: Callable[[str, str], float]) -> None:
        self.grade = grade

    def describe(self) -> dict:
        return {}

    def rate(self, prompts, references, answers) -> np.ndarray:
        return np.array([self.grade(*texts) for texts in zip(references, answers, strict=True)], np.float64)


def test_a_judge_that_grades_by_overlap_passes(items):
    def overlap(reference: str, answer: str) -> float:
        words = reference.split()
        return 1 + 4 * sum(a == b for a, b in zip(words, answer.split(), strict=False)) / len(words)

    check = check_judge(Graded(overlap), items)
    assert check == JudgeCheck(20, 20, 5.0, 1.0, 3.0, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    assert "reference 5.00, another item's 1.00 (AUC 1.00 [1.00, 1.00], 20 items), first half of the ref" in str(check)


def test_the_auc_counts_pairs(items):
    rng = np.random.default_rng(0)
    given: list[np.ndarray] = []

    class Noisy(Graded):
        def rate(self, prompts, references, answers) -> np.ndarray:
            level = [4.0, 2.5, 2.5][len(given)]
            given.append(np.round(level + rng.standard_normal(len(answers)), 1))
            return given[-1]

    check = check_judge(Noisy(lambda *_: 0), items)
    pairs = [(a > b) + 0.5 * (a == b) for a in given[0] for b in given[1]]
    assert check.auc_shuffled[0] == pytest.approx(np.mean(pairs))
    assert check.auc_shuffled[1] < check.auc_shuffled[0] < check.auc_shuffled[2]


@pytest.mark.parametrize(
    "grade",
    [
        lambda reference, answer: 3.0,
        lambda reference, answer: 5.0 if answer[0] == reference[0] else 1.0,  # takes the half for the whole
        lambda reference, answer: 1.0 if answer == reference else 5.0,
    ],
)
def test_a_judge_that_cannot_tell_is_refused_with_its_figures(items, grade):
    with pytest.raises(ModelError, match=r"cannot tell right answers from wrong ones: mean grades reference \d\.\d\d"):
        check_judge(Graded(grade), items)


def test_a_random_model_is_no_judge(tiny, items):
    with pytest.raises(ModelError, match=r"'.*' cannot tell right answers from wrong ones"):
        check_judge(LocalJudge(tiny, SHORT), items)


def test_a_check_leaves_out_what_has_no_grade_and_refuses_too_much_of_it(items):
    def grade(reference: str, answer: str) -> float:
        return np.nan if answer.startswith(missing) else 5.0 if answer == reference else 1.0

    missing = ("7 8",)  # reference and half of one item, and the reference of another
    check = check_judge(Graded(grade), items)
    assert (check.n, check.n_truncated) == (18, 19)
    assert (check.reference, check.auc_shuffled) == (5.0, (1.0, 1.0, 1.0))
    missing = ("7 8", "1", "2 3")
    with pytest.raises(ModelError, match=r"'graded' gave no grade from 1 to 5 in 39 of 60 replies: take another model"):
        check_judge(Graded(grade), items)


def test_a_check_needs_different_references(tiny):
    rows = [{"id": str(k), "prompt": f"p {k}", "response": "yes"} for k in range(20)]
    with pytest.raises(ConfigError, match="cannot be checked on 0 items"):
        check_judge(Graded(lambda *_: 3.0), Items.read(samples(rows), tiny))


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("4", 4),
        ("Grade: 3.", 3),
        ("**5**", 5),
        ("2/5", 2),
        ("<think>maybe 1, or 2</think>\n4", 4),
        ("I give it a 4, since 10 of 12 words match", 4),
        ("10", None),
        ("3.5", None),
        ("a fine answer", None),
        ("", None),
    ],
)
def test_grades_in_replies(reply, grade):
    assert parse_grade(reply) == grade


Respond = Callable[[int, dict], tuple[int, str]]


@contextmanager
def endpoint(respond: Respond) -> Iterator[tuple[str, list[dict]]]:
    """A server on this machine in the format of chat completions: status and text of each request in turn."""
    requests: list[dict] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                requests.append({"path": self.path, "key": self.headers["Authorization"], **body})
                status, text = respond(len(requests), body)
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
            data = json.dumps(answer if status == 200 else {"error": {"message": text}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def judge(respond: Respond, **options) -> Iterator[tuple[EndpointJudge, list[dict]]]:
    with endpoint(respond) as (url, requests):
        found = EndpointJudge(url, "grader", SHORT, **{"retries": 1, "timeout": 30} | options)
        try:
            yield found, requests
        finally:
            found.close()


def graded(number: int, body: dict) -> tuple[int, str]:
    return 200, str(1 + len(body["messages"][0]["content"]) % 5)


def rate(judge: EndpointJudge, n: int = 9) -> np.ndarray:
    return judge.rate(["p"] * n, ["r"] * n, ["a" * k for k in range(n)])


def test_an_endpoint_grades_in_order(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with judge(graded) as (found, requests):
        expected = [1 + len(SHORT.fill("p", "r", "a" * k)) % 5 for k in range(9)]
        np.testing.assert_array_equal(rate(found), expected)
        assert rate(found, 0).shape == (0,)
    assert {(one["path"], one["key"], one["model"]) for one in requests} == {
        ("/v1/chat/completions", "Bearer secret", "grader")
    }
    assert "secret" not in json.dumps(found.describe())


def test_a_server_error_once_is_repeated():
    with judge(lambda n, body: (500, "busy") if n == 2 else graded(n, body)) as (found, requests):
        assert np.isfinite(rate(found)).all()
        assert len(requests) == 10


def test_a_parameter_that_is_refused_is_left_out():
    def picky(number: int, body: dict) -> tuple[int, str]:
        return (400, "temperature does not support 0") if "temperature" in body else graded(number, body)

    with judge(picky, concurrency=1) as (found, requests):
        assert np.isfinite(rate(found)).all()
        assert len(requests) == 10
        assert requests[-1]["max_tokens"] > 0


def test_a_reply_without_a_grade_has_none_and_a_whole_shard_of_prose_is_refused():
    with judge(lambda n, body: (200, "What a\nlovely answer!\x1b[31m")) as (found, _):
        assert np.isnan(rate(found, 1)).all()  # which may be the last of many
        with pytest.raises(ModelError, match=r"no grade from 1 to 5 in 16 of 16 replies, such as") as error:
            rate(found, 16)
        assert "\n" not in str(error.value)
        assert "\x1b" not in str(error.value)
    with judge(lambda n, body: (200, "hm") if n < 4 else graded(n, body)) as (found, _):
        assert np.isnan(rate(found, 16)).sum() == 3


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "refuses the key: set OPENAI_API_KEY"),
        (404, "has no model 'grader' .*check `judge_url`"),
        (400, "failed .*context too long"),
        (503, "failed .*run the same command again"),
    ],
)
def test_errors_of_an_endpoint_are_one_line(status, message):
    down = judge(lambda n, body: (status, "context too long"), retries=0)
    with down as (found, _), pytest.raises(ModelError, match=message):
        rate(found)


def test_an_endpoint_that_is_down():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        found = EndpointJudge(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", "grader", retries=0)
        with pytest.raises(ModelError, match=r"cannot be reached \(.+\): start it, or check `judge_url`"):
            rate(found, 1)
        found.close()


def test_options_of_an_endpoint():
    with pytest.raises(ConfigError, match="'localhost:8000' is no URL"):
        EndpointJudge("localhost:8000", "grader")
    with pytest.raises(ConfigError, match="at least one request"):
        EndpointJudge("http://localhost/v1", "grader", concurrency=0)
