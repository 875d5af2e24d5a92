"""Scores of single samples (SelectIT, IFD, perplexity) against slow references, and where they end."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import concatenate_datasets
from tokenizers.processors import TemplateProcessing

import references
from builders import SMALL, chat, make_model, named, prepared, samples
from nncift.errors import ConfigError, DataError, ModelError
from nncift.influence.ifd import IFD, Perplexity, beginning
from nncift.influence.ratings import RatingPrompts, answer_tokens, token_rating
from nncift.influence.selectit import SelectIT
from nncift.models.language_model import LanguageModel
from nncift.models.text.prompts import PromptTemplate

PAIRS = [
    ("What is the capital of France?", "Paris"),
    ("Compute 12 + 30.", "The sum is 42."),
    ("Name a fruit.", "purple monkey dishwasher"),
    ("Say the word twice: yes", "yes yes"),
]


@pytest.fixture(scope="module")
def rows():
    return named(PAIRS, "x")


@pytest.fixture(scope="module")
def one_target():
    return named([("any", "thing")], "t")


@pytest.fixture(params=["tiny", "smollm2_model"])
def model(request) -> LanguageModel:
    return request.getfixturevalue(request.param)


def scores(function, rows, targets) -> np.ndarray:
    return function(rows, targets)[:, 0]


class TestSelectIT:
    @pytest.mark.parametrize(
        ("model", "softmax"), [("tiny", False), ("tiny", True), ("smollm2_model", True)], indirect=["model"]
    )
    def test_equals_the_reference(self, model, rows, one_target, softmax):
        given, some = RatingPrompts.load(), rows.select([0, 2])
        expected = [
            references.selectit(
                model.model, model.tokenizer, given.prompts, given.levels, row, alpha=0.2, softmax=softmax
            )
            for row in some
        ]
        found = scores(SelectIT(model, softmax=softmax), some, one_target)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5)
        assert np.ptp(expected) > 0

    def test_a_rating_is_the_answer_times_its_margin(self):
        sure, unsure = token_rating(np.log(np.array([[0.0001, 0.0001, 0.9998], [0.3, 0.3, 0.4]]))).tolist()
        assert sure == pytest.approx(3 * 0.9997, abs=1e-3)
        assert unsure == pytest.approx(3 * 0.1)
        assert token_rating(np.zeros((1, 5)))[0] == 0

    def test_models_are_averaged_by_size(self, tiny, rows, one_target, tmp_path):
        other = LanguageModel(make_model("Llama", SMALL | {"vocab_size": len(tiny.tokenizer)}), tiny.tokenizer)
        function = prepared(SelectIT([tiny, other]), rows, one_target, tmp_path)
        small, large = (scores(SelectIT(one), rows, one_target) for one in (tiny, other))
        sizes = [sum(p.numel() for p in one.model.parameters()) for one in (tiny, other)]
        np.testing.assert_allclose(
            scores(function, rows, one_target), np.average([small, large], axis=0, weights=sizes), rtol=1e-5
        )
        assert np.abs(small - large).max() > 0.01
        shards = sorted(path.name for path in tmp_path.iterdir())
        assert shards == ["selectit-0-000000.safetensors", "selectit-1-000000.safetensors"]

    def test_the_prefix_is_encoded_once_and_the_sample_once_per_prompt(self, tiny_model, rows, one_target):
        model = LanguageModel.load(tiny_model, device="cpu")
        prompts = RatingPrompts(3, ("Rate this: {prompt}\nReply: {response}\nDigit:\n", "Q {prompt} A {response} D:\n"))
        function = prepared(SelectIT(model, rating_prompts=prompts), rows, one_target)

        def length(text: str) -> int:
            return len(model.encode([text])[0])

        expected = 0
        for before, between, after in (("Rate this: ", "\nReply: ", "\nDigit:\n"), ("Q ", " A ", " D:\n")):
            expected += length(before)
            expected += sum(length(p) + length(between) + length(r) + length(after) for p, r in PAIRS)
        assert function.forward_tokens == expected
        function(rows, named(PAIRS, "t"))
        assert function.forward_tokens == expected  # cached

    def test_custom_rating_prompts(self, tiny, rows, one_target, tmp_path):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({"levels": 3, "prompts": ["Rate: {prompt} {response} Digit:\n"]}))
        own = SelectIT(tiny, rating_prompts=path)
        assert own.describe()["levels"] == 3
        expected = references.selectit(
            tiny.model, tiny.tokenizer, own.rating_prompts.prompts, 3, rows[0], alpha=0.2, softmax=False
        )
        assert scores(own, rows, one_target)[0] == pytest.approx(expected, abs=1e-6)
        for text in ("{", "[]", '{"levels": 5}', '{"levels": "many", "prompts": []}'):
            path.write_text(text)
            with pytest.raises(ConfigError, match=r"mine\.json contains no rating prompts"):
                RatingPrompts.load(path)
        with pytest.raises(ConfigError, match="contains no rating prompts"):
            RatingPrompts.load(tmp_path / "none.json")

    @pytest.mark.parametrize(
        "prompt", ["Rate {prompt}:", "A {response} B {prompt}:", "{prompt} {response}:", "A {prompt} {response}"]
    )
    def test_rating_prompts_are_validated(self, prompt):
        with pytest.raises(ConfigError, match="is incomplete"):
            RatingPrompts(5, (prompt,))

    def test_answers_that_are_not_single_tokens(self, tiny):
        assert tiny.tokenizer.convert_ids_to_tokens(answer_tokens(tiny, "Rating:\n", 5)) == list("12345")
        with pytest.raises(ModelError, match=r"'10' is not a single token of .* after 'Rating:"):
            answer_tokens(tiny, "Rating:\n", 10)

    def test_a_long_prompt_loses_its_start(self, tiny_model, one_target):
        model = LanguageModel.load(tiny_model, device="cpu", max_length=160)
        function = SelectIT(model)
        late = scores(function, named([("early " * 300 + "late", "yes")], "x"), one_target)
        assert function.cut_ids == {"x0"}
        np.testing.assert_array_equal(
            late, scores(function, named([("early " * 299 + "early late", "yes")], "y"), one_target)
        )


class TestIFD:
    def test_equals_the_reference(self, model, rows, one_target):
        expected, perplexities = [], []
        for row in rows:
            context = references.plain_context(model.tokenizer, PromptTemplate(), None, row)
            response = [*model.tokenizer(row["response"])["input_ids"], model.tokenizer.eos_token_id]
            given = references.loss(model.model, context, response)
            expected.append(given / references.loss(model.model, [model.tokenizer.bos_token_id], response))
            perplexities.append(np.exp(given))
        np.testing.assert_allclose(scores(IFD(model), rows, one_target), expected, rtol=1e-4)
        np.testing.assert_allclose(scores(Perplexity(model), rows, one_target), perplexities, rtol=1e-3)

    def test_the_prompt_helps_with_the_matching_response_only(self, smollm2_model, one_target):
        right = named([PAIRS[0], PAIRS[3]], "x")
        wrong = named([(PAIRS[0][0], PAIRS[3][1]), (PAIRS[3][0], PAIRS[0][1])], "y")
        assert (scores(IFD(smollm2_model), right, one_target) < scores(IFD(smollm2_model), wrong, one_target)).all()

    def test_zero_where_the_prompt_does_not_help(self, tiny, rows, one_target):
        plain, zeroed = (scores(IFD(tiny, zero_above_one=flag), rows, one_target) for flag in (False, True))
        np.testing.assert_array_equal(zeroed, np.where(plain < 1, plain, 0))
        assert 0 < (plain < 1).sum() < len(rows)

    def test_losses_whose_probability_underflows(self, tiny_model, one_target):
        model = LanguageModel.load(tiny_model, device="cpu")
        model.model.get_output_embeddings().weight.data.mul_(3000)  # ties the embeddings too
        ratio = scores(IFD(model), named(PAIRS, "x"), one_target)
        assert np.isfinite(ratio).all()
        assert (model.response_probabilities(model.prefix([]), [[5]], [[7, 8]])[0] == 0).any()

    def test_one_prompt_style_for_all_blocks(self, tiny, rows, one_target):
        chats = samples([chat("a", "one", "two", "three", "four")])
        function = prepared(IFD(tiny), concatenate_datasets([rows, chats]), one_target)
        np.testing.assert_array_equal(function(rows, one_target), IFD(tiny, wording="chat")(rows, one_target))

    def test_a_sample_may_fill_the_whole_context(self, tiny_model, one_target):
        model = LanguageModel.load(tiny_model, device="cpu", max_length=128)
        function = IFD(model)
        assert np.isfinite(function(named([("why", "so " * 95)], "x"), one_target)).all()
        with pytest.raises(
            DataError, match=r"'x0': its response takes 20\d tokens .* at most \d+ fit in its context of 128"
        ):
            function.prepare(named([("why", "so " * 200)], "x"), one_target)

    def test_the_beginning_of_a_text(self, tiny_model):
        model = LanguageModel.load(tiny_model, device="cpu")
        assert beginning(model) == [model.tokenizer.bos_token_id]
        model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_end|> $A", special_tokens=[("<|im_end|>", 2)]
        )
        assert beginning(LanguageModel(model.model, model.tokenizer)) == [2]
        model.tokenizer.bos_token = None
        assert beginning(model) == model.end_ids
        model.end_ids = []
        with pytest.raises(ModelError, match="no token that begins or ends a text"):
            beginning(model)
