from __future__ import annotations

import sys
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.errors import DependencyError
from nncift.evaluation.answers.text_metrics import (
    embedding_similarity,
    exact_match,
    final_number,
    is_short,
    normalized,
    rouge,
    rouge_scorer,
)
from nncift.models.spec import EncoderSpec


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("The Eiffel tower.", "eiffel   Tower", True),
        ("Yes", "No", False),
        ("3.5", "35", False),  # by SQuAD's rule equal
        ("-5", "5", False),
        ("$1,200.", "1200", True),
        ("0.50", "0.5", True),
        ("+", "-", False),  # nothing but punctuation
        ("+", "+", True),
        ("", "the", False),
        ("The", "the", True),
        ("5 apples", "5", False),
        ("A.", "A", True),  # the last word is no article
        ("(A)", "A", True),
        ("**A**", "A", True),
        ("The A.", "A", True),
        ("", "A", False),
        ("An", "A", False),
        ("the B", "B", True),
        ("vitamin", "Vitamin A", False),
        ("a group, the A", "Group A", True),
        ("a group A", "The Group A.", True),
        ("北京。", "北京", True),
        ("نعم؟", "نعم", True),
        ("\u201cParis\u201d", "Paris", True),
        ("Jose\u0301", "José", True),
        ("\uff22\uff22\uff23", "BBC", True),  # of full width
        ("\uff01", "?", False),
        ("\uff01", "!", True),
        ("5$", "5", True),
        ("3,5", "35", False),  # no thousands separator
        ("1,2,3", "123", False),
        ("1,234,567", "1234567", True),
        ("12,34,567", "1234567", True),
        ("1,000 dollars", "1000 dollars", True),
        ("3.5 kg", "35 kg", False),
        ("1/2", "12", False),
        ("1914\u20131918", "1914-1918", True),
        ("\u22125", "-5", True),
        ("\u22125", "5", False),
        ("10²", "102", False),
        ("10²", "10^2", True),
        ("H₂O", "H2O", True),
    ],
)
def test_exact_match(answer, reference, equal):
    assert exact_match(answer, reference) == float(equal)


@pytest.mark.parametrize(
    ("answer", "equal"),
    [
        ("She has 3 - 1 = 2.\n#### 1,234", True),
        ("#### $1234.", True),
        ("#### 1234.00 dollars, not 5", True),
        ("So the answer is 1,234.", True),  # without the format the last number counts
        ("1234 and then 5", False),
        ("5, and 1234", True),
        ("one of 5,1234", True),
        ("#### 1235\nof 1234", False),
        ("no number", False),
        ("####", False),
        ("", False),
    ],
)
def test_final_number_of_gsm8k(answer, equal):
    assert exact_match(answer, "1000 + 234 = 1234\n#### 1,234") == float(equal)


def test_final_number_needs_its_mark():
    assert final_number("it is 5") is None
    assert final_number("#### none") is None
    assert final_number("a\n#### -7") == Decimal(-7)


def test_short_references():
    assert is_short("Not enough information")
    assert is_short("The cat sat on the mat")  # articles do not count
    assert not is_short("the lehman brothers sell off some assets")
    assert not is_short("漢" * 65)


@settings(deadline=None)
@given(*2 * [st.text() | st.text(st.sampled_from("aà1٣,.-²½_$€。e\u0301\u0338 \u00b4Aİ"))])
def test_exact_match_is_symmetric_and_normalization_idempotent(one, other):
    assert exact_match(one, one) == 1 or (final_number(one) is None and "####" in one)
    assert normalized(normalized(one)) == normalized(one)
    if "####" not in one + other:
        assert exact_match(one, other) == exact_match(other, one)


def overlap_f1(answer: list[str], reference: list[str], n: int) -> float:
    """ROUGE-n by its definition."""
    grams = [[tuple(words[k : k + n]) for k in range(len(words) - n + 1)] for words in (answer, reference)]
    common = sum(min(grams[0].count(gram), grams[1].count(gram)) for gram in set(grams[1]))
    return 2 * common / max(len(grams[0]) + len(grams[1]), 1)


def longest_common(one: list[str], other: list[str]) -> int:
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return 1 + longest_common(one[:-1], other[:-1])
    return max(longest_common(one[:-1], other), longest_common(one, other[:-1]))


words = st.lists(st.sampled_from(["red", "green", "blue", "sky", "sea"]), max_size=6)


@settings(deadline=None)
@given(words, words)
def test_rouge_by_its_definition(answer, reference):
    found = rouge([" ".join(answer)], [" ".join(reference)])
    assert found["rouge1"][0] == pytest.approx(overlap_f1(answer, reference, 1))
    assert found["rouge2"][0] == pytest.approx(overlap_f1(answer, reference, 2))
    expected = 2 * longest_common(answer, reference) / max(len(answer) + len(reference), 1)
    assert found["rougeL"][0] == pytest.approx(expected)


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127)), st.text(st.characters(max_codepoint=127)))
def test_rouge_is_that_of_rouge_score_on_ascii(answer, reference):
    from rouge_score.rouge_scorer import RougeScorer

    stock = RougeScorer(["rouge1", "rougeL"]).score(reference, answer)
    found = rouge([answer], [reference])
    assert all(found[name][0] == stock[name].fmeasure for name in stock)


def test_rouge_reads_other_scripts():
    assert rouge(["猫は庭にいる"], ["猫は家にいる"])["rouge1"][0] == pytest.approx(5 / 6)
    assert rouge(["большой дом"], ["большой сад"])["rouge1"][0] == pytest.approx(1 / 2)
    assert rouge(["Jose\u0301 sings"], ["José sings"])["rouge1"][0] == 1


def test_rouge_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(DependencyError, match=r'pip install "nncift\[proof\]"'):
        rouge_scorer()


def test_embedding_similarity(minilm):
    texts = ["A cat sleeps on the sofa.", "A cat sleeps on the sofa.", "  "]
    references = ["A cat sleeps on the sofa.", "The central bank raised interest rates.", "A cat."]
    same, other, empty = embedding_similarity(texts, references, EncoderSpec(minilm, device="cpu"))
    assert same == pytest.approx(1, abs=1e-5)
    assert other < 0.3
    assert empty == 0
    assert np.shape(embedding_similarity([], [], EncoderSpec(minilm))) == (0,)
