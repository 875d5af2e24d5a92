"""The runs that are killed and damaged, small: every influence function and stage, a comparison, an evaluation."""

from __future__ import annotations

import gc
import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

WORDS = ("river", "stone", "engine", "garden", "planet", "violin", "harbour", "letter", "market", "window")
EXEMPT = {"run.log", "costs.json", "report.html", "summary.json", "checksums.jsonl", "results.csv", "results.md"}
"""Files whose bytes differ between two runs: they hold seconds, or the order of writing."""
_SECONDS = re.compile(rb'"seconds":\s*[-+.e\d]+')  # of a round of active learning, of a trial
_NOTHING: dict[str, Any] = {}
_SMALL_TRAINING = {"training.epochs": 1, "training.batch_size": 8}


@dataclass(frozen=True)
class Kind:
    """A kind of run: its name, what is called, and the arguments beside the folder."""

    name: str
    options: dict[str, Any]
    call: Literal["select", "compare", "evaluate"] = "select"


def kinds(folder: Path, only: Sequence[str] = (), model: Path | None = None, encoder: str = "embedded") -> list[Kind]:
    """All kinds, or those whose names have one of some texts, with their data made in `folder`.

    Two of them run in this process: what they import, compile and load is there for every child.
    """
    data = _data(folder, model)
    language_model = {"model": data["model"], "features": data["features"], "labels": 60}
    cheap = {"influence": "estimated:EstimatedBM25", "features": data["features"], "labels": 200}
    similarity = {"influence": "estimated:EstimatedCosine", "encoder": encoder, "labels": 200}
    fitted, embedded = folder / "fitted", folder / "embedded"
    for earlier, options in ((fitted, cheap), (embedded, similarity)):
        _select(data["pool"], earlier, options)
    gc.freeze()  # a child's collections of garbage would copy every page of it
    grown = {"pool": None, "from_run": str(embedded), "append": data["more"]}
    functions: dict[str, dict[str, Any]] = {
        "delift": _NOTHING,
        "selectit": _NOTHING,
        "less": _SMALL_TRAINING,
        "gradient-similarity": _NOTHING,
        "in-run": {"training.epochs": 1},
    }
    runs = {
        **{name: language_model | {"influence": name} | _own(options) for name, options in functions.items()},
        "lossval": similarity | {"influence": "lossval", "labels": 40} | _own({"epochs": 1}),
        **{
            name: {"influence": name, "model": data["model"]}
            for name in ("response-similarity", "bm25", "ifd", "perplexity")
        },
        "gradient-sketch": {"influence": "gradient-sketch", "model": data["model"]},
        "gradient-sketch for a target": {"model": data["model"], "target": data["target"], "known": data["target"]},
        "gradient sketches among the features": language_model
        | {"influence": "delift", "features": "lm,gradient-sketch"},
        "representation-similarity": {"influence": "representation-similarity", "model": data["model"]},
        "embedding-similarity": {"influence": "embedding-similarity", "encoder": encoder, "known": data["target"]},
        "features of the language model": {"influence": "delift", "model": data["model"], "features": "lm"},
        "bm25 from labels": cheap,
        "embeddings from labels": similarity,
        "target": cheap | {"target": data["target"], "target_features": data["target_features"]},
        "known": similarity | {"known": data["target"]},
        "probes": similarity | {"probes": 6},
        "verified shortlist": similarity | {"verify": 2},
        "active learning": similarity | {"labels": "auto"},
        "phases and weights": cheap | {"phases": 3, "weights": True, "model": data["model"]},
        "token budget": cheap | {"budget": "200tok", "model": data["model"]},
        "quotas": cheap | {"quota": ["task=equal"], "cap": ["kind=0.6"]},
        "quotas of tokens, verified": similarity
        | {"quota": ["task=river:0.4+"], "budget": "400tok", "verify": 2, "model": data["model"]},
        "stratified random rows": {"influence": "stratified-random", "encoder": encoder},
        "recipe of the paper": cheap | {"recipe": "paper"},
        "fitted network": {"network": str(fitted), "features": data["features"]},
        "values of another tool": {"labels_from": data["labels"], "features": data["features"]},
        "first cut": {"first_cut": 3, "first_cut_encoder": encoder, "model": data["model"]},
        "first cut for a target": cheap
        | {"features": "sentence", "encoder": encoder, "first_cut": 3, "first_cut_encoder": encoder}
        | {"target": data["target"], "known": data["target"]},
        "worker processes": {"influence": "gradient-sketch", "model": data["model"], "workers": 2},
        "labels by worker processes": language_model | {"influence": "delift", "workers": 2},
        "larger budget": {"pool": None, "from_run": str(fitted), "budget": 20},
        "appended": grown,
        "appended, choice kept": grown | {"keep_selection": True},
    }
    tried = {"test": data["target"], "methods": ["lora"], "metrics": ["loss"], "epochs": 1, "encoder": encoder}
    compared = {"influence": ["estimated:EstimatedBM25"], "free": ["bm25", "stratified-random"], "seeds": 1}
    compared |= {"curve": ["6", "12"], "units": ["rows"], "labels": 200, "features": "sentence", "model": data["model"]}
    found = [Kind(name, {"pool": data["pool"], "budget": 12, "device": "cpu"} | given) for name, given in runs.items()]
    found += [
        Kind("comparison", {"pool": data["pool"], "budget": 12, "device": "cpu"} | compared | tried, "compare"),
        Kind("evaluation", {"pool": str(fitted), "model": data["model"]} | tried, "evaluate"),
    ]
    return [kind for kind in found if not only or any(text in kind.name for text in only)]


def _own(options: dict[str, Any]) -> dict[str, Any]:
    return {"influence_options": options} if options else {}


def start(kind: Kind, folder: Path) -> Callable[[], Any]:
    """The call of this kind in this folder."""
    options = dict(kind.options)
    if kind.call == "select":
        return lambda: _select(options.pop("pool"), folder, options)
    import trl  # noqa: F401 (once, before any child)

    from nncift.proof.compare import compare
    from nncift.proof.evaluate import evaluate

    call: Callable[..., Any] = compare if kind.call == "compare" else evaluate
    return lambda: len(call(options.pop("pool"), output=folder, progress=False, **options).results)


def _select(pool: str | None, folder: Path, options: dict[str, Any]) -> int:
    import nncift

    return len(nncift.select(pool, output=folder, progress=False, **options))


def contents(folder: Path) -> dict[str, str]:
    """A hash of each file whose bytes a resumed run has to repeat."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_exempt(path))
    return {str(path.relative_to(folder)): _hash(path) for path in files}


def _is_exempt(path: Path) -> bool:
    costs = path.suffix == ".json" and path.parent.name in ("trials", "choices")  # of a comparison or an evaluation
    return path.name in EXEMPT or path.suffix == ".lock" or path.name == ".lock" or costs


def _hash(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha256(_SECONDS.sub(b"", data) if path.suffix == ".json" else data).hexdigest()


def _data(folder: Path, model: Path | None) -> dict[str, str]:
    """The pool (plain rows and chats, duplicates among them), targets, features, values, and a model."""
    rng, paths = random.Random(0), {}
    for side, n in (("pool", 80), ("target", 24), ("more", 30)):
        path = folder / f"{side}.jsonl"
        path.write_text("".join(json.dumps(_row(side, number, rng)) + "\n" for number in range(n)))
        features = np.random.default_rng(len(side)).standard_normal((n, 8)).astype(np.float32)
        np.save(folder / f"{side}.npy", features)
        paths |= {side: str(path), "features" if side == "pool" else f"{side}_features": str(folder / f"{side}.npy")}
    pairs = [(f"pool-{i}", f"pool-{j}", rng.random()) for i in range(0, 60, 2) for j in range(1, 40, 3) if i != j]
    lines = [json.dumps({"pool_id": i, "target_id": j, "influence": value}) for i, j, value in pairs]
    (folder / "labels.jsonl").write_text("\n".join(lines) + "\n")
    if model is None:
        _make_model(model := folder / "model")
    return paths | {"labels": str(folder / "labels.jsonl"), "model": str(model)}


def _row(side: str, number: int, rng: random.Random) -> dict[str, Any]:
    words = " ".join(rng.choices(WORDS, k=rng.randint(3, 9)))
    answer = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
    values = {"task": WORDS[number % 3], "kind": "even" if number % 2 else "odd"}
    if number % 4:
        return {**values, "id": f"{side}-{number}", "prompt": f"Say {words} {number}", "response": answer}
    turns = [("user", f"Say {words}"), ("assistant", answer), ("user", f"And {number}?"), ("assistant", words)]
    return {**values, "id": f"{side}-{number}", "messages": [{"role": role, "content": text} for role, text in turns]}


def _make_model(folder: Path) -> None:
    """A random two-layer Llama with SmolLM2's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from nncift.models.locate import embedded_language_model

    tokenizer = AutoTokenizer.from_pretrained(embedded_language_model())
    torch.manual_seed(0)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **heads, **special)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
