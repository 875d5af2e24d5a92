"""Samples and models that tests of several rooms build, and the command line called."""

from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import Dataset, Features, Value
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from nncift.cli import main
from nncift.features.features import Features as Blocks
from nncift.influence.base import InfluenceFunction, Traits
from nncift.influence.bm25 import BM25
from nncift.influence.embedding_similarity import EmbeddingSimilarity
from nncift.influence.ifd import IFD
from nncift.labels.pairs import LabelledPairs
from nncift.models.loading import quiet
from nncift.run.storage.files import package_folder

TOKENS = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LAYERS = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {**LAYERS, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
WITH_PREFIX_CACHE = {
    "Llama": SMALL,
    "Mistral": {**SMALL, "sliding_window": 8},  # the prefix of the test is longer than the window
    "Gemma2": {**SMALL, "sliding_window": 8, "final_logit_softcapping": 2.0},
    "Cohere": {**SMALL, "logit_scale": 3.0},
    "Granite": {**SMALL, "logits_scaling": 3.0},
    "Qwen3": SMALL,
    "Mixtral": {**SMALL, "num_local_experts": 4},
    "GPT2": {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "Bloom": {**TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "OPT": {**LAYERS, "ffn_dim": 64, "word_embed_proj_dim": 32},
}
WITHOUT = {"Mamba": {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}}


def make_model(architecture: str, options: dict):
    """A model of random weights, large enough that its predictions differ from token to token."""
    torch.manual_seed(0)
    with quiet():
        model = AutoModelForCausalLM.from_config(getattr(transformers, f"{architecture}Config")(**options))
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(4)
    return model


def samples(rows: list[dict]) -> Dataset:
    """Rows as `load_pool` gives them, as far as influence functions look."""
    columns = ("id", "prompt", "response", "messages")
    features = Features({column: Value("string") for column in columns})
    return Dataset.from_list([{column: row.get(column) for column in columns} for row in rows], features=features)


def named(pairs: list[tuple[str, str]], prefix: str) -> Dataset:
    return samples([{"id": f"{prefix}{k}", "prompt": p, "response": r} for k, (p, r) in enumerate(pairs)])


class EstimatedBM25(BM25):
    """BM25 for runs that estimate: a cheap function without a model that is not computed for every pair."""

    name = "estimated-bm25"
    traits = Traits(relative=True)


class EstimatedCosine(EmbeddingSimilarity):
    """Cosine of embeddings for runs that estimate."""

    name = "estimated-cosine"
    traits = Traits()


class EstimatedIFD(IFD):
    """One score for all targets by a language model, for runs that estimate."""

    name = "estimated-ifd"
    traits = Traits(pointwise=True, asks_language_model=True)


def prepared(function: InfluenceFunction, pool: Dataset, target: Dataset, folder: Path | None = None):
    function.prepare(pool, target, folder)
    return function


def families(*names: str, size: int, seed: int = 0) -> Dataset:
    """Samples of task families of reasoning-gym, each with its family as `task`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of a package that it needs, where pip compiled nothing
        import reasoning_gym

    rows = [
        {"id": f"{name}-{k}", "prompt": sample["question"], "response": sample["answer"], "task": name}
        for name in names
        for k, sample in enumerate(reasoning_gym.create_dataset(name, size=size, seed=seed))
    ]
    return Dataset.from_list(rows)


def dialogues() -> list[tuple[str, str]]:
    """Question and answer, of chatterbot-corpus."""
    import yaml

    folder = package_folder("chatterbot_corpus", "chatterbot-corpus")
    data = yaml.safe_load((folder / "data" / "english" / "food.yml").read_text(encoding="utf-8"))
    return [(str(turns[0]), str(turns[1])) for turns in data["conversations"]]


def chat(name: str, *contents: str, system: str | None = None) -> dict:
    """A row that comes from a chat of user and assistant in turn."""
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"id": name, "prompt": contents[0], "response": contents[-1], "messages": json.dumps(messages)}


def chat_rows(rows: list[dict]) -> Dataset:
    """Rows of `messages`, and `tools` where there are some, as `load_pool` gives them."""
    return Dataset.from_list(
        [
            {
                "id": str(k),
                "prompt": row["messages"][0]["content"],
                "response": row["messages"][-1]["content"],
                "messages": json.dumps(row["messages"]),
                "tools": json.dumps(row["tools"]) if "tools" in row else None,
            }
            for k, row in enumerate(rows)
        ]
    )


WORDS = ("river", "stone", "engine", "garden", "planet", "violin", "harbour", "letter", "market", "window")


def word_rows(n: int, offset: int = 0) -> list[dict]:
    """Prompts and responses of a few words each."""
    return [
        {"id": f"row-{i}", "prompt": f"Say {WORDS[i % 10]} {WORDS[i // 10 % 10]} {i}", "response": WORDS[i * 3 % 10]}
        for i in range(offset, offset + n)
    ]


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def token_ids(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 290, length).tolist() for length in lengths]


def labelled(influence: np.ndarray, keep: float = 1.0, seed: int = 0) -> LabelledPairs:
    """Labels of a random share of the entries of a matrix (n_pool, n_target)."""
    chosen = np.random.default_rng(seed).random(influence.shape) < keep
    chosen[:1, :1] = True
    i, j = np.nonzero(chosen)
    return LabelledPairs(i.astype(np.int32), j.astype(np.int32), influence[i, j].astype(np.float32))


def random_labels(n_pool: int, n_target: int, seed: int = 0) -> LabelledPairs:
    """Labels of all pairs, independent of the samples."""
    return labelled(np.random.default_rng(seed).standard_normal((n_pool, n_target)))


def write_jsonl(path: Path, rows: list) -> Path:
    """JSON Lines of objects, or of lines as they are."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def write_text(path: Path, text: str | bytes) -> Path:
    """A file, compressed if its name ends in .gz."""
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


json_objects = st.dictionaries(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=5,
)


def tokenizer_of_bytes() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer with a token for each byte and a chat template, which needs no file of a model."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]  # as in TOKENS
    tokens = Tokenizer(models.BPE({token: k for k, token in enumerate([*special, *letters])}, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    named = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, model_max_length=512, **named)
    found.chat_template = (
        "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    return found


def keep_first_tokens(file: Path, n: int) -> None:
    """Cut the vocabulary of a `tokenizer.json` of byte-level BPE, whose merges are in the order of their tokens."""
    stored = json.loads(file.read_text(encoding="utf-8"))
    model = stored["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < n}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    file.write_text(json.dumps(stored), encoding="utf-8")


def smooth_vectors(
    n: int = 24, m: int = 10, *, topics: int = 4, noise: float = 0.3
) -> tuple[Blocks, Blocks, np.ndarray, np.ndarray]:
    """Features of both sides; influence of pool samples and of targets on targets: vectors smooth in the features."""
    rng, size = np.random.default_rng(0), n + m
    place = np.eye(topics).repeat(2, axis=0)[rng.integers(2 * topics, size=size)]
    place += 0.1 * rng.standard_normal((size, topics))
    blocks = {"sentence": place @ rng.standard_normal((topics, 20)), "scalars": rng.standard_normal((size, 2))}
    vectors = place @ rng.standard_normal((topics, 30)) + noise * rng.standard_normal((size, 30))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sides = [
        Blocks({name: block[part].astype(np.float32) for name, block in blocks.items()})
        for part in (slice(n), slice(n, None))
    ]
    products = 3 * vectors @ vectors[n:].T
    return sides[0], sides[1], products[:n], products[n:]


def pairs_of(influence: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> LabelledPairs:
    """The labels of rows x columns."""
    pairs = labelled(influence)
    return pairs.take(np.isin(pairs.pool_index, rows) & np.isin(pairs.target_index, columns))


def called(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()
