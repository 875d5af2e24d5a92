"""Every built-in influence function against one set of demands, and each against a slow, obvious reference."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import reasoning_gym
import yaml
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

import references
from builders import chat, named, samples
from nncift.config import Config
from nncift.errors import ConfigError, DataError, ModelError, RunError
from nncift.influence.catalogue import BUILT_IN
from nncift.influence.delift import Delift
from nncift.influence.embedding_similarity import EmbeddingSimilarity
from nncift.models.encoder import embed_texts, sample_texts
from nncift.models.language_model import LanguageModel
from nncift.models.prompts import ChatPrompts, PlainPrompts, Wording
from nncift.run.files import package_folder
from nncift.run.registry import resolve


@pytest.fixture(scope="module")
def dialogues() -> list[tuple[str, str]]:
    """Question and answer, of chatterbot-corpus."""
    folder = package_folder("chatterbot_corpus", "chatterbot-corpus")
    data = yaml.safe_load((folder / "data" / "english" / "food.yml").read_text(encoding="utf-8"))
    return [(str(turns[0]), str(turns[1])) for turns in data["conversations"]]


@pytest.fixture(scope="module")
def tasks() -> list[tuple[str, str]]:
    """Question and answer of two families, of reasoning-gym."""
    families = [reasoning_gym.create_dataset(name, size=5, seed=3) for name in ("chain_sum", "simple_equations")]
    return [(sample["question"], sample["answer"]) for family in families for sample in family]


@pytest.fixture(scope="module")
def embedded_pairs(dialogues, tasks) -> tuple[Dataset, Dataset]:
    """Eight pool samples and eight targets; the first two targets have twins in the pool."""
    pool = [*tasks[:4], *dialogues[:4]]
    target = [pool[1], pool[5], *tasks[4:8], *dialogues[4:6]]
    return named(pool, "pool"), named(target, "target")


@pytest.fixture(scope="module")
def shared_pairs(shared_data) -> tuple[Dataset, Dataset]:
    """Eight pool samples of P3 and eight targets, half P3 and half GSM8K, of the short ones."""
    with gzip.open(shared_data / "p3_pool.jsonl.gz", "rt", encoding="utf-8") as handle:
        p3 = [(row["prompt"], row["response"]) for row in map(json.loads, handle)]
    with gzip.open(shared_data / "gsm8k_test.jsonl.gz", "rt", encoding="utf-8") as handle:
        gsm8k = [(row["question"], row["answer"]) for row in map(json.loads, handle)]
    p3 = [pair for pair in p3 if len("".join(pair)) < 120]
    gsm8k = [pair for pair in gsm8k if len("".join(pair)) < 220]
    return named(p3[::40][:8], "p3-"), named([*p3[20::40][:4], *gsm8k[:4]], "t-")


@pytest.fixture(scope="module")
def exact(smollm2_model, embedded_pairs) -> np.ndarray:
    return Delift(smollm2_model)(*embedded_pairs)


@pytest.fixture
def short(tiny_model) -> LanguageModel:
    """The tiny model, reading at most 128 tokens."""
    return LanguageModel.load(tiny_model, device="cpu", max_length=128)


# on what `prepare` sees, beside the two samples
DEPEND_ON_ALL = {"response-similarity", "bm25", "less", "in-run", "lossval"}


class TestEveryFunction:
    """What holds for every built-in, on a block of three pool samples and five targets."""

    @pytest.fixture
    def block(self, dialogues) -> tuple[Dataset, Dataset]:
        return named(dialogues[:3], "pool"), named(dialogues[3:8], "target")

    @pytest.fixture(params=BUILT_IN)
    def make(self, request, tiny_model, minilm, block):
        """Makes the function; one whose values depend on all samples has seen those of the block."""
        kind = resolve(request.param, BUILT_IN, "nncift.influence")
        model = {"embedding-similarity": minilm, "lossval": minilm, "bm25": None}.get(request.param, tiny_model)

        def make(name: str | None = model, *, ready: bool = True, **options):
            function = kind() if model is None else kind(name, device="cpu", **options)
            if ready and request.param in DEPEND_ON_ALL:
                function.prepare(*block)
            return function

        make.name, make.model = request.param, model
        return make

    def test_name_and_description(self, make):
        function = make()
        assert function.name == make.name
        assert json.loads(json.dumps(function.describe())) == function.describe()
        assert function.describe()["name"] == make.name
        assert make.model is None or make.model in json.dumps(function.describe())

    def test_from_config(self, make, tiny_model, minilm):
        config = Config("pool.jsonl", model=tiny_model, encoder=minilm, batch_size=3, device="cpu")
        function = type(make()).from_config(config)
        assert make.model is None or function.batch_size == 3
        assert function.describe() == make().describe()

    def test_shape_and_direction(self, make, block):
        pool, target = block
        function = make()
        influence = function(pool, target)
        assert influence.shape == (3, 5)
        assert influence.dtype == np.float32
        assert np.isfinite(influence).all()
        for i, j in [(0, 0), (2, 0), (0, 4), (2, 4)]:
            alone = function(pool.select([i]), target.select([j]))
            np.testing.assert_allclose(alone, influence[i : i + 1, j : j + 1], atol=1e-5)

    def test_does_not_depend_on_order_or_batch_size(self, make, block):
        pool, target = block
        influence = make()(pool, target)
        order = [3, 0, 4, 2, 1]
        np.testing.assert_allclose(make()(pool, target.select(order)), influence[:, order], atol=1e-5)
        np.testing.assert_allclose(make()(pool.select([2, 0, 1]), target), influence[[2, 0, 1]], atol=1e-5)
        np.testing.assert_allclose(make(batch_size=2)(pool, target), influence, atol=1e-5)

    def test_the_same_block_gives_the_same_bytes(self, make, block):
        pool, target = block
        function = make()
        first = function(pool, target)
        function(pool.select([1]), target.select([2, 0]))
        np.testing.assert_array_equal(function(pool, target), first)
        np.testing.assert_array_equal(make()(pool, target), first)

    def test_prepared_gives_the_same_values(self, make, block, tmp_path):
        pool, target = block
        function = make()
        expected = function(pool, target)
        if hasattr(function, "prepare"):
            function.prepare(pool, target, tmp_path)
        np.testing.assert_allclose(function(pool, target.select([4, 1])), expected[:, [4, 1]], atol=1e-5)

    def test_foretells_the_tokens_of_all_blocks(self, make, dialogues):
        function = make()
        if not hasattr(function, "tokens"):
            assert make.name in ("embedding-similarity", "bm25", "lossval")  # which ask no language model
            return
        pool, target = named([*dialogues[:7], dialogues[0]], "pool"), named(dialogues[5:10], "target")
        before = function.forward_tokens
        foretold = function.tokens(pool, target)
        assert function.forward_tokens == before
        function.prepare(pool, target)
        for start in range(0, 8, 3):
            function(pool.select(range(start, min(start + 3, 8))), target)
        assert function.forward_tokens - before == foretold > 0

    def test_no_samples(self, make, block):
        pool, target = block
        assert make()(pool.select([]), target).shape == (0, 5)
        assert make()(pool, target.select([])).shape == (3, 0)

    def test_a_pointwise_function_scores_samples_alone(self, make, block):
        pool, target = block
        function = make()
        if hasattr(function, "check"):  # may find out whether there is more than one score for a sample
            function.check(pool, target)
        influence = function(pool, target)
        equal = (influence == influence[:, :1]).all()
        assert equal == getattr(function, "pointwise", False)
        if equal:
            np.testing.assert_array_equal(function(pool, target.select([2])), influence[:, :1])
            assert len(np.unique(influence)) == 3

    @pytest.mark.parametrize("make", sorted(DEPEND_ON_ALL), indirect=True)
    def test_what_depends_on_all_samples_is_refused_before_it_has_seen_them(self, make, block):
        with pytest.raises(ConfigError, match=r"call prepare\(pool, target\)"):
            make(ready=False)(*block)

    @pytest.mark.parametrize("make", [name for name in BUILT_IN if name != "bm25"], indirect=True)
    def test_unknown_model(self, make, block):
        function = make("/no/such/model", ready=False)  # nothing is loaded yet
        if make.name in DEPEND_ON_ALL:
            with pytest.raises(ModelError, match="there is no folder '/no/such/model'"):
                function.prepare(*block)
            return
        with pytest.raises(ModelError, match="there is no folder '/no/such/model'"):
            function(*block)


def test_the_table_of_built_ins_imports_no_torch():
    code = (
        "import nncift.influence.catalogue, sys;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestDelift:
    def test_equals_the_reference_on_embedded_data(self, exact, smollm2_model, embedded_pairs):
        pool, target = embedded_pairs

        def context(example, query):
            return references.plain_context(smollm2_model.tokenizer, Wording(), example, query)

        expected = references.delift(
            smollm2_model.model, smollm2_model.tokenizer, context, pool.to_list(), target.to_list()
        )
        np.testing.assert_allclose(exact, expected, atol=1e-4)
        assert np.abs(expected).max() > 0.05  # there was something to get wrong

    def test_equals_the_reference_on_p3_and_gsm8k(self, smollm2_model, shared_pairs):
        pool, target = shared_pairs

        def context(example, query):
            return references.plain_context(smollm2_model.tokenizer, Wording(), example, query)

        expected = references.delift(
            smollm2_model.model, smollm2_model.tokenizer, context, pool.to_list(), target.to_list()
        )
        np.testing.assert_allclose(Delift(smollm2_model)(pool, target), expected, atol=1e-4)

    def test_chat_wording_equals_the_template_rendered_as_a_whole(self, smollm2_model, embedded_pairs):
        pool, target = (rows.select([0, 5, 6]) for rows in embedded_pairs)

        def context(example, query):
            return references.chat_context(smollm2_model.tokenizer, example, query)

        expected = references.delift(
            smollm2_model.model, smollm2_model.tokenizer, context, pool.to_list(), target.to_list()
        )
        np.testing.assert_allclose(Delift(smollm2_model, wording="chat")(pool, target), expected, atol=1e-4)

    def test_a_sample_helps_its_twin_most(self, exact):
        assert exact[:, 0].argmax() == 1
        assert exact[:, 1].argmax() == 5
        assert exact[1, 0] > 0
        assert exact[5, 1] > 0

    def test_exponential(self, tiny, embedded_pairs):
        plain, exponential = (Delift(tiny, exponential=flag)(*embedded_pairs) for flag in (False, True))
        np.testing.assert_array_equal(exponential, np.exp(plain))

    def test_a_response_is_certain_or_impossible_at_the_ends_of_the_scale(self, tiny):
        function = Delift(tiny)
        target = function._prompts_for(*[named([("a", "b c")], "x")] * 2).word(named([("a", "b c")], "x"))
        for certainty, distance in ((1.0, 0.0), (0.0, 1.0)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    tiny,
                    "response_probabilities",
                    lambda prefix, queries, responses, p=certainty, **options: [
                        np.full(len(response), p, np.float32) for response in responses
                    ],
                )
                assert function._distances(None, [target[0].query], target) == [distance]


class TestPrepare:
    def test_resumes_with_the_same_bytes(self, tiny, embedded_pairs, tmp_path):
        pool, target = embedded_pairs
        first, resumed = Delift(tiny), Delift(tiny)
        first.prepare(pool, target, tmp_path)
        content = (tmp_path / "delift-baseline.npy").read_bytes()
        blocks = [first(pool.select([i]), target) for i in range(3)]
        before = tiny.forward_tokens
        resumed.prepare(pool, target, tmp_path)
        assert tiny.forward_tokens == before  # read, not computed
        assert (tmp_path / "delift-baseline.npy").read_bytes() == content
        for i in (2, 0, 1):
            np.testing.assert_array_equal(resumed(pool.select([i]), target), blocks[i])

    @pytest.mark.parametrize(
        "wording",
        ["chat", Wording(without_example="Go.\n"), Wording(query="Q: {prompt}\nA: ")],
        ids=["chat", "go", "q"],
    )
    def test_the_stored_distances_belong_to_their_wording(self, tiny, embedded_pairs, tmp_path, wording):
        pool, target = embedded_pairs
        Delift(tiny).prepare(pool, target, tmp_path)
        function = Delift(tiny, wording=wording)
        expected = function(pool, target)
        before = tiny.forward_tokens
        function.prepare(pool, target, tmp_path)
        assert tiny.forward_tokens > before
        np.testing.assert_allclose(function(pool, target), expected, atol=1e-6)

    def test_what_was_prepared_before_changes_no_byte(self, tiny, embedded_pairs, tmp_path):
        pool, target = embedded_pairs
        fresh, measured = Delift(tiny), Delift(tiny)
        measured.prepare(pool.select([0]), target.select([4, 1]))  # as when a rate is measured first
        costs = []
        for function, folder in ((fresh, tmp_path / "fresh"), (measured, tmp_path / "measured")):
            before = tiny.forward_tokens
            function.prepare(pool, target, folder)
            costs.append(tiny.forward_tokens - before)
        assert costs[0] == costs[1]  # in the same batches, so that rounding is the same
        first, second = (tmp_path / name / "delift-baseline.npy" for name in ("fresh", "measured"))
        assert first.read_bytes() == second.read_bytes()
        np.testing.assert_array_equal(fresh(pool, target), measured(pool, target))

    def test_the_stored_distances_belong_to_their_samples(self, tiny, embedded_pairs, tmp_path):
        pool, target = embedded_pairs
        Delift(tiny).prepare(pool, target, tmp_path)
        before = tiny.forward_tokens
        Delift(tiny).prepare(pool, target.select([3, 1]), tmp_path)
        assert tiny.forward_tokens == before
        Delift(tiny).prepare(pool, pool, tmp_path)
        assert tiny.forward_tokens > before

    def test_a_damaged_file_is_refused(self, tiny, embedded_pairs, tmp_path):
        (tmp_path / "delift-baseline.npy").write_bytes(b"\x93NUMPY")
        with pytest.raises(RunError, match="delift-baseline"):
            Delift(tiny).prepare(*embedded_pairs, tmp_path)
        np.save(tmp_path / "delift-baseline.npy", np.zeros(3))
        Delift(tiny).prepare(*embedded_pairs, tmp_path)
        assert len(np.load(tmp_path / "delift-baseline.npy")) == 8

    @pytest.mark.parametrize("wording", ["plain", "chat"])
    @pytest.mark.parametrize("shares_prefix", [True, False])
    def test_tokens_foretells_what_the_blocks_cost(self, tiny_model, embedded_pairs, wording, shares_prefix):
        pool, target = embedded_pairs
        function = Delift(tiny_model, wording=wording)
        assert function.forward_tokens == 0
        function.language_model.shares_prefix = shares_prefix
        foretold = function.tokens(pool, target)
        assert function.forward_tokens == 0
        function.prepare(pool, target)
        for start in range(0, 8, 3):
            function(pool.select(range(start, min(start + 3, 8))), target)
        assert function.forward_tokens == foretold
        assert function.tokens(pool, target.select([])) == 0


class TestCutting:
    LONG = ("word " * 400, "right")

    def test_keeps_the_end_of_the_prompt_alike_in_both_roles(self, short):
        sample = named([("early " * 300 + "late words", "yes")], "x")
        (worded,) = PlainPrompts(short, Wording()).word(sample)
        assert worded.cut
        kept = short.encode(["early " * 300 + "late words"])[0][-10:]
        for ids in (worded.example, worded.query):
            assert any(ids[k : k + 10] == kept for k in range(len(ids)))
        example, query = (Wording().with_example, Wording().query)
        fixed = len(short.encode([example.partition("{prompt}")[0]])[0])
        shown = worded.example[fixed : worded.example.index(kept[-1], fixed) + 1]
        asked = worded.query[len(short.encode([query.partition("{prompt}")[0]])[0]) :][: len(shown)]
        assert shown == asked

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 300), st.integers(1, 20)), min_size=1, max_size=4),
        st.sampled_from(["plain", "chat"]),
    )
    def test_any_two_samples_fit_together(self, short_for_laws, sizes, style):
        model = short_for_laws
        rows = named([("ab " * prompt, "no " * response) for prompt, response in sizes], "x")
        prompts = ChatPrompts(model) if style == "chat" else PlainPrompts(model, Wording())
        worded = prompts.word(rows)
        assert [sample.response[-1] for sample in worded] == model.end_ids * len(worded)
        for query in worded:
            assert len(prompts.no_example) + len(query.alone) + len(query.response) <= model.context_length
            for example in worded:
                assert len(example.example) + len(query.query) + len(query.response) <= model.context_length
        room = prompts._room
        for sample, row in zip(worded, rows, strict=True):  # nothing is cut without need
            tokens = sum(len(ids) for ids in model.encode([row["prompt"], row["response"]])) + 1
            if sample.cut or style == "plain":
                assert sample.cut == (tokens > room)

    def test_is_counted_once_per_sample(self, short):
        function = Delift(short)
        pool = named([self.LONG, ("short", "right"), self.LONG], "x")
        function.prepare(pool, pool)
        function(pool, pool)
        assert function.cut == 2

    def test_the_wording_goes_by_all_samples_whichever_are_measured_together(self, short):
        mixed = samples([chat("asked", "one", "two"), {"id": "plain", "prompt": "three", "response": "four"}])
        plain = mixed.select([1])
        function = Delift(short)
        assert isinstance(function._prompts_for(plain, plain), PlainPrompts)
        function.check(mixed, mixed)
        assert isinstance(function._prompts_for(plain, plain), ChatPrompts)

    def test_a_chat_loses_its_oldest_exchanges_then_the_start_of_the_request(self, short):
        prompts = ChatPrompts(short)
        rows = samples(
            [
                chat("fits", "one", "two", "three", "four", system="Be brief."),
                chat("old", "old " * 100, "two", "three", "four", system="Be brief."),
                chat("all", "old", "two", "early " * 200 + "late", "four", system="Be brief."),
            ]
        )
        fits, old, last = prompts.word(rows)
        assert [sample.cut for sample in (fits, old, last)] == [False, True, True]

        def text(ids):
            return short.tokenizer.decode(ids)

        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "three"}]
        assert text(old.alone) == short.chat(turns)
        assert "Be brief." in text(last.alone)
        assert "early late<|im_end|>" in text(last.alone)
        assert "old" not in text(last.alone)
        for roles in zip(*((sample.example, sample.query, sample.alone) for sample in (fits, old, last)), strict=True):
            assert all(ids for ids in roles)
        assert "early late<|im_end|>" in text(last.example)
        assert text(last.example).endswith("four")

    @pytest.mark.parametrize("wording", ["plain", "chat"])
    def test_a_response_that_alone_does_not_fit_is_refused_before_any_work(self, short, wording):
        pool = named([("fine", "fine"), ("why", "so " * 200)], "x")
        for blocks in ((pool, pool.select([0])), (pool.select([0]), pool)):
            function = Delift(short, wording=wording)
            with pytest.raises(DataError, match=r"response of 'x1' takes 20\d tokens .* at most \d+ fit"):
                function.prepare(*blocks)
            with pytest.raises(DataError, match="'x1'"):
                function(*blocks)
            assert function.forward_tokens == 0

    def test_what_cannot_be_cut_of_a_chat_is_refused(self, short):
        with pytest.raises(DataError, match="the chat 'x' does not fit"):
            ChatPrompts(short).word(samples([chat("x", "one", "two", system="rule " * 200)]))

    @pytest.mark.parametrize("wording", ["plain", "chat"])
    def test_a_context_without_room(self, tiny_model, wording):
        model = LanguageModel.load(tiny_model, max_length=40, device="cpu")
        with pytest.raises(ModelError, match=r"40 tokens, and the wording alone takes .*: raise --max-length"):
            Delift(model, wording=wording).prepare(*[named([("a", "b")], "x")] * 2)


@pytest.fixture(scope="module")
def short_for_laws(tiny_model) -> LanguageModel:
    return LanguageModel.load(tiny_model, device="cpu", max_length=128)


class TestWording:
    def test_placeholders_in_data_stay_text(self, tiny):
        rows = named([("{response} {0} {prompt}", "{prompt}"), ("%s {", "}")], "x")
        (first, second) = PlainPrompts(tiny, Wording()).word(rows)
        assert "Example request:\n{response} {0} {prompt}\n" in tiny.tokenizer.decode(first.example)
        assert "Example response:\n{prompt}\n" in tiny.tokenizer.decode(first.example)
        assert tiny.tokenizer.decode(second.query).startswith("Request:\n%s {\n")
        assert np.isfinite(Delift(tiny)(rows, rows)).all()

    def test_your_own(self, smollm2_model, embedded_pairs):
        wording = Wording(without_example="", with_example="A: {response}\nQ: {prompt}\n", query="Q: {prompt}\nA:")
        (worded, *_) = PlainPrompts(smollm2_model, wording).word(embedded_pairs[0])
        prompt, response = embedded_pairs[0][0]["prompt"], embedded_pairs[0][0]["response"]
        assert smollm2_model.tokenizer.decode(worded.example) == f"A: {response}\nQ: {prompt}\n"
        assert smollm2_model.tokenizer.decode(worded.query) == f"Q: {prompt}\nA:"

    @pytest.mark.parametrize(
        ("field", "text"),
        [
            ("without_example", "{prompt}"),
            ("with_example", "{prompt}"),
            ("with_example", "{prompt} {response} {prompt}"),
            ("query", "Say something"),
            ("query", "{prompt} {response}"),
            ("query", "{prompt}"),
        ],
    )
    def test_templates_are_checked(self, field, text):
        with pytest.raises(ConfigError, match=f"the wording's {field}"):
            Wording(**{field: text})

    def test_unknown_style(self, tiny, embedded_pairs):
        with pytest.raises(ConfigError, match='wording \'loud\' is not known: give "auto", "chat", "plain"'):
            Delift(tiny, wording="loud")(*embedded_pairs)

    def test_auto_is_chat_for_chats_if_the_model_has_a_template(self, tiny, tiny_model, embedded_pairs):
        plain_rows = embedded_pairs[0].select(range(2))
        chats = samples([chat("a", "one", "two"), chat("b", "one", "two", "three", "four")])
        for pool, target, style in [
            (plain_rows, plain_rows, "plain"),
            (chats, plain_rows, "chat"),
            (plain_rows, chats, "chat"),
        ]:
            np.testing.assert_array_equal(Delift(tiny)(pool, target), Delift(tiny, wording=style)(pool, target))
        without_template = LanguageModel.load(tiny_model, device="cpu")
        without_template.tokenizer.chat_template = None
        np.testing.assert_array_equal(
            Delift(without_template)(chats, plain_rows), Delift(tiny, wording="plain")(chats, plain_rows)
        )

    def test_prepare_chooses_for_all_blocks(self, tiny, embedded_pairs):
        plain_rows, chats = embedded_pairs[0].select(range(2)), samples([chat("a", "one", "two")])
        function = Delift(tiny)
        function.prepare(chats, plain_rows)
        np.testing.assert_array_equal(
            function(plain_rows, plain_rows), Delift(tiny, wording="chat")(plain_rows, plain_rows)
        )

    def test_rows_without_a_messages_column(self, tiny, embedded_pairs):
        pool, target = embedded_pairs
        bare = pool.remove_columns("messages")
        for wording in ("auto", "chat"):
            function = Delift(tiny, wording=wording)
            np.testing.assert_array_equal(function(bare, target), function(pool, target))

    def test_the_first_token_comes_once_in_front(self, tiny_model, embedded_pairs):
        model = LanguageModel.load(tiny_model, device="cpu")
        model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        adding = LanguageModel(model.model, model.tokenizer)
        prompts, plain = PlainPrompts(adding, Wording()), PlainPrompts(model, Wording())
        assert prompts.no_example == [0, *plain.no_example]
        for sample, expected in zip(prompts.word(embedded_pairs[0]), plain.word(embedded_pairs[0]), strict=True):
            assert sample.example == [0, *expected.example]
            assert sample.query == expected.query
            assert sample.response == expected.response

    def test_without_an_end_token_the_response_alone_is_scored(self, tiny_model, embedded_pairs):
        model = LanguageModel.load(tiny_model, device="cpu")
        model.end_ids = []
        for sample, row in zip(PlainPrompts(model, Wording()).word(embedded_pairs[0]), embedded_pairs[0], strict=True):
            assert sample.response == model.encode([row["response"]])[0]
        with pytest.raises(DataError, match="'x0' holds no tokens"):
            PlainPrompts(model, Wording()).word(named([("a", "")], "x"))


class TestChatPrompts:
    def test_pieces_joined_are_the_whole_conversation(self, tiny):
        rows = samples(
            [
                chat("a", "one\n", "two"),
                chat("b", "one", "two", "three", " four", system="Be brief."),
                {"id": "c", "prompt": "a {question}", "response": "an answer"},
            ]
        )
        conversations = [json.loads(row["messages"]) if row["messages"] else None for row in rows]
        conversations[2] = [{"role": "user", "content": "a {question}"}, {"role": "assistant", "content": "an answer"}]
        worded = ChatPrompts(tiny).word(rows)
        for example, before in zip(worded, conversations, strict=True):
            for query, turns in zip(worded, conversations, strict=True):
                (whole,) = tiny.encode([tiny.chat([*before, *turns[:-1]])])
                assert example.example + query.query == whole
                assert query.alone == tiny.encode([tiny.chat(turns[:-1])])[0]

    def test_a_template_that_words_the_last_exchange_unlike_earlier_ones(self, tiny_model):
        """As reasoning models' templates do: an empty thought in the last turn, none in earlier ones."""
        model = LanguageModel.load(tiny_model, device="cpu")
        model.tokenizer.chat_template = (
            "{% for m in messages %}<{{ m.role }}>"
            "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
            "{{ m.content }};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        (worded,) = ChatPrompts(model).word(samples([chat("a", "one", "two")]))
        joined = model.tokenizer.decode(worded.example) + model.tokenizer.decode(worded.query)
        assert joined == "<user>one;<assistant>two;<user>one;<assistant>"

    @pytest.mark.parametrize("where", ["front", "end"])
    def test_an_example_that_changes_with_what_follows_is_refused(self, tiny_model, where):
        model = LanguageModel.load(tiny_model, device="cpu")
        count = "[{{ messages | length }}{{ messages[0].content }}]"
        turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}"
        model.tokenizer.chat_template = count + turns if where == "front" else turns + count
        with pytest.raises(ModelError, match="differently depending on what follows: use the plain wording"):
            ChatPrompts(model).word(samples([chat("a", "one", "two"), chat("b", "one", "two", "three", "four")]))

    def test_a_refusal_names_the_sample(self, tiny_model):
        model = LanguageModel.load(tiny_model, device="cpu")
        model.tokenizer.chat_template = (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            "<{{ m.role }}>{{ m.content }}{% endfor %}"
        )
        rows = samples([chat("fine", "one", "two"), chat("odd", "one", "two", system="Be brief.")])
        with pytest.raises(ModelError, match=r"sample 'odd': .* \(no system\): use the plain wording"):
            ChatPrompts(model).word(rows)


class TestEmbeddingSimilarity:
    def test_equals_the_reference(self, minilm, embedded_pairs):
        pool, target = embedded_pairs
        a, b = (embed_texts(sample_texts(rows), minilm).astype(np.float64) for rows in embedded_pairs)
        expected = [[x @ y / math.sqrt((x @ x) * (y @ y)) for y in b] for x in a]
        plain, scaled = (EmbeddingSimilarity(minilm, scaled=flag)(pool, target) for flag in (False, True))
        np.testing.assert_allclose(plain, expected, atol=1e-4)
        np.testing.assert_allclose(scaled, (np.array(expected) + 1) / 2, atol=1e-4)

    def test_a_sample_is_most_like_its_twin(self, minilm, embedded_pairs):
        similarity = EmbeddingSimilarity(minilm)(*embedded_pairs)
        assert similarity[1, 0] == pytest.approx(1, abs=1e-5)
        assert similarity[5, 1] == pytest.approx(1, abs=1e-5)
        assert (similarity.argmax(axis=0)[:2] == [1, 5]).all()
        assert similarity.max() <= 1

    def test_takes_a_loaded_encoder(self, minilm, embedded_pairs):
        from sentence_transformers import SentenceTransformer

        loaded = EmbeddingSimilarity(SentenceTransformer(minilm, device="cpu"))(*embedded_pairs)
        np.testing.assert_array_equal(loaded, EmbeddingSimilarity(minilm, device="cpu")(*embedded_pairs))
