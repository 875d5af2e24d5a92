"""Mutated inputs: every file that a user can give, changed at random.

Each either works or is refused in one line. What works is right: every sample has a prompt and a response, is valid
Unicode, keeps its row as valid JSON, and of JSON Lines the good rows are all there, unchanged.
"""

from __future__ import annotations

import bz2
import functools
import gc
import gzip
import io
import json
import lzma
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import numpy as np

BATCH = 100  # inputs in one child; one that dies is tried again input by input
_TOKENS = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b"\n", b"\r\n", b"\t", b";",
    b"null", b"NaN", b"1e999", b"-0", b"1" * 400, b"\\ud800", b"\xc3\x28", b"[" * 2000, b"true",
    b"\x1b[31m", b"<script>",
    b"1e20", b"-1", b"99999999999999999999", b"''", b"!!python/object", b": ", b"- ", b"&a", b"*a",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, 0, -1, 1e300, 10**30, float("nan"), "", " ", "\ud800", "x" * 5000, [], [[]], {}, {"a": {}}, [None],
    ["a", 1], [{"role": "assistant", "content": None}], [{"role": "x", "content": "y"}], "\x1b]0;x\x07", "a\x00b",
]  # fmt: skip


def campaign(folder: Path, amount: int, seed: int) -> tuple[list[dict[str, object]], list[str]]:
    """Try `amount` mutated inputs; a row of the table for each kind of input, and what failed."""
    rng = random.Random(seed)
    seeds = _seeds(folder)
    shares = [(seed_, amount // len(seeds) + (number < amount % len(seeds))) for number, seed_ in enumerate(seeds)]
    table, failures = [], []
    for (name, data, use), share in shares:
        counts: Counter[str] = Counter()
        for start in range(0, share, BATCH):
            mutated = [_mutate(data, rng) for _ in range(min(BATCH, share - start))]
            for content, outcome in zip(mutated, _batch(name, mutated, use, folder / "work"), strict=True):
                counts[outcome.kind] += 1
                if outcome.kind not in ("ok", "refused"):
                    kept = _keep(name, content, len(failures))
                    failures.append(f"{name}: {outcome.kind} {outcome.text} ({kept})")
        table.append({"input": name, "tried": share, "worked": counts["ok"], "refused in one line": counts["refused"]})
        print(f"inputs: {name} {share}, {len(failures)} failures so far", file=sys.stderr)
    names = ("tried", "worked", "refused in one line")
    return [*table, {"input": "all"} | {name: sum(int(row[name]) for row in table) for name in names}], failures


Use = Callable[[Path], Any]
"""What is done with a file."""


def _seeds(folder: Path) -> list[tuple[str, bytes, Use]]:
    """Names, contents and uses of good inputs."""
    plain = [{"id": f"r{i}", "prompt": f"What is {i}?", "response": f"It is {i}.", "score": i / 3} for i in range(12)]
    chats = [
        {"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": f"a {i}", "weight": 1}]}
        for i in range(8)
    ]
    alpaca = [
        {"instruction": "Add", "input": f"{i}", "output": f"{i + 1}", "system": "s", "history": []} for i in range(8)
    ]
    lines = {"plain": _lines(plain), "chats": _lines(chats), "alpaca": _lines(alpaca)}
    packed = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    seeds: list[tuple[str, bytes, Use]] = [(f"{name}.jsonl", text, _load) for name, text in lines.items()]
    seeds += [
        ("array.json", json.dumps(plain, indent=1).encode(), _load),
        ("wrapped.json", json.dumps({"version": 1, "data": plain}).encode(), _load),
        ("table.csv", b"prompt,response\n" + b"".join(b'"q, %d","a %d"\n' % (i, i) for i in range(9)), _load),
        ("table.tsv", b"prompt\tresponse\n" + b"".join(b"q %d\ta %d\n" % (i, i) for i in range(9)), _load),
        ("table.parquet", _parquet(plain), _load),
        ("utf16.jsonl", lines["plain"].decode().encode("utf-16"), _load),
        *[(f"packed.jsonl.{suffix}", pack(lines["plain"]), _load) for suffix, pack in packed.items()],
        ("test-set.jsonl", lines["plain"], _exclude),
        ("features.npy", _array(np.ones((12, 4), np.float32)), _features),
        ("labels.jsonl", _labels(), _labels_from),
        (
            "options.yaml",
            b"budget: 3\nseed: 1\ninfluence: estimated:EstimatedBM25\nlabels: 40\nskip_bad_rows: true\n",
            _config,
        ),
        (
            "mixture.yaml",
            b"- name: a\n  path: good.jsonl\n  weight: 0.5\n- name: b\n  path: good.jsonl\n  cap: 3\n",
            _load,
        ),
    ]
    network = _network(folder)
    seeds += [
        (name, (network / name).read_bytes(), _network_file(network)) for name in ("config.json", "model.safetensors")
    ]
    return seeds


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def _array(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def _labels() -> bytes:
    return _lines(
        [{"pool_id": f"r{i}", "target_id": f"r{j}", "influence": i / (j + 1)} for i in range(6) for j in range(6, 12)]
    )


def _network(folder: Path) -> Path:
    pool, features = folder / "good.jsonl", folder / "good.npy"
    pool.write_bytes(_lines([{"id": f"r{i}", "prompt": f"q {i}", "response": f"a {i}"} for i in range(12)]))
    features.write_bytes(_array(np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)))
    _select(pool, folder / "run", features=str(features))  # in this process: what it loads is there for every child
    gc.freeze()
    return folder / "run" / "network"


def _select(pool: Path, output: Path, **options: Any) -> int:
    import nncift

    shutil.rmtree(output, ignore_errors=True)
    given = (
        {"influence": "estimated:EstimatedBM25", "labels": 40, "budget": 3}
        if not {"network", "labels_from"} & set(options)
        else {"budget": 3}
    )
    return len(nncift.select(str(pool), output=output, progress=False, **given | options))


def _load(path: Path) -> int:
    import nncift

    shutil.copy(path.parent.parent / "good.jsonl", path.parent / "good.jsonl")
    skip = path.stat().st_size % 2 == 0
    pool = nncift.load_pool(path, skip_bad_rows=skip)
    for row in pool:
        assert min(len(row["prompt"].strip()), len(row["response"].strip())), f"an empty text: {row}"
        assert "\n" not in row["original"], "a row of two lines"
        json.loads(row["original"])
        "".join(str(value) for value in row.values()).encode()
    if path.name == "plain.jsonl":
        kept = set(zip(pool["prompt"], pool["response"], strict=True))
        for line in path.read_bytes().splitlines():
            if _is_good(line):
                row = json.loads(line)
                assert (row["prompt"], row["response"]) in kept, f"a good row is missing: {line!r}"
    return len(pool)


def _is_good(line: bytes) -> bool:
    try:
        row = json.loads(line)
        return (
            set(row) == {"id", "prompt", "response", "score"}
            and row["prompt"][:8] == "What is "
            and row["response"][:5] == "It is"
        )
    except (ValueError, TypeError, RecursionError):
        return False


def _exclude(path: Path) -> int:
    import nncift

    return len(nncift.load_pool(path.parent.parent / "good.jsonl", exclude=path))


def _features(path: Path) -> int:
    return _select(path.parent.parent / "good.jsonl", path.parent / "out", features=str(path))


def _labels_from(path: Path) -> int:
    good = path.parent.parent
    return _select(good / "good.jsonl", path.parent / "out", features=str(good / "good.npy"), labels_from=str(path))


def _config(path: Path) -> int:
    """Through the command line, which turns errors into exit code 2."""
    import damage

    from nncift.cli import main
    from nncift.errors import NNCIFTError

    good, output = path.parent.parent, path.parent / "out"
    shutil.rmtree(output, ignore_errors=True)
    arguments = ["select", str(good / "good.jsonl"), "--config", str(path), "--features", str(good / "good.npy")]
    code = damage._code(lambda: main([*arguments, "--output", str(output), "--quiet", "--device", "cpu"]))
    assert code in (0, 2), f"exit code {code}"
    if code == 2:
        raise NNCIFTError("exit code 2")
    return code


def _network_file(network: Path) -> Use:
    def use(path: Path) -> int:
        good, copy = path.parent.parent, path.parent / "network"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(network, copy)
        shutil.copy(path, copy / path.name)
        return _select(good / "good.jsonl", path.parent / "out", features=str(good / "good.npy"), network=str(copy))

    return use


def _mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: a value of a row, flipped, removed, doubled, inserted or cut bytes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        b = min(b, a + rng.choice((1, 8, 64, 4096)))
        how = rng.randrange(7)
        if how == 0 and data:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif how == 1:
            data = data[:a] + data[b:]
        elif how == 2:
            data = data[:b] + data[a:b] + data[b:]
        elif how == 3:
            data = data[:a]
        elif how == 4:
            data = _other_value(data, rng)
        else:
            data = data[:a] + rng.choice(_TOKENS) + data[a:]
    return data


def _other_value(data: bytes, rng: random.Random) -> bytes:
    """Another value at a random place of a random JSON line."""
    lines = data.splitlines()
    at = rng.randrange(len(lines)) if lines else 0
    try:
        row = json.loads(lines[at])
        field = rng.choice([*row])
        row[field] = rng.choice(_VALUES)
        lines[at] = json.dumps(row).encode()
    except (ValueError, TypeError, IndexError, RecursionError):
        return data
    return b"\n".join(lines) + b"\n"


def _batch(name: str, mutated: list[bytes], use: Use, work: Path) -> list[children.Outcome]:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    log = work / "outcomes.jsonl"

    def each() -> None:
        for number, content in enumerate(mutated):
            path = work / name
            path.write_bytes(content)
            outcome = children._tried(lambda p=path: use(p))
            with open(log, "a") as file:
                file.write(json.dumps([number, *outcome]) + "\n")

    children.run(each, timeout=30 + 3 * len(mutated))
    found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    outcomes = [children.Outcome(*entry[1:]) for entry in found]
    while len(outcomes) < len(mutated):  # the child died, or hung, on the next one
        path = work / name
        path.write_bytes(mutated[len(outcomes)])
        outcomes.append(children.run(functools.partial(use, path), timeout=60))
    return outcomes


def _keep(name: str, content: bytes, number: int) -> Path:
    """Where a failing input is kept."""
    path = Path("reliability-failures") / f"{number:03d}-{name}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path
