"""A synthetic run's folder, and its report as a reader sees it."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from nncift.matrix.matrix import InfluenceMatrix
from nncift.report.html import write_report
from nncift.report.reasons import explain
from nncift.run.folder.costs import Costs, StageCost
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import Fidelity, Summary
from nncift.run.storage.files import atomic_write, write_array, write_json
from nncift.selection.selection import Selection

HOSTILE = [
    "<script>alert(1)</script>",
    "</svg></style></title><img src=x onerror=alert(2)>",
    "\"'><a href=\"javascript:alert(3)\" onmouseover='alert(4)'>x</a>",
    "[click](javascript:alert(5)) http://evil.example/x.png",
    "\x1b[31mred\x1b[0m \x07 \x00 {{ 7 * 7 }} {% raw %}",
    "abc\u202egnp.exe\u2066 zero\u200bwidth \ufeff",
    "</details></section><iframe src=https://evil.example></iframe><!--",
    "]]><svg onload=alert(6)><foreignObject>&lt;script&gt;&amp;",
]


FAMILIES = ["arithmetic", "<b>syllogism</b>", "word ladder", "support"]


EVERYDAY = "How do I reset the password of my router when the label on its back cannot be read any more? "


COLUMNS = ("id", "prompt", "response", "messages", "source_row", "original")


SCHEMA = pa.schema([(name, pa.int64() if name == "source_row" else pa.string()) for name in COLUMNS])


RANKS = ("spearman_within_target", "spearman_row_mean")


NEW = ("subset_sum_correlation_within_target", "recall_of_top_tenth_within_target")  # not in earlier versions


METRICS = (*NEW, RANKS[0], "r2", "r2_over_target_mean", RANKS[1], "mse")  # in the order of the table


def make_samples(count: int, seed: int) -> tuple[list[dict], np.ndarray]:
    """Rows of a pool and their features: four families with a centre each, every 7th row hostile."""
    rng = np.random.default_rng(seed)
    family = rng.choice(4, count, p=[0.4, 0.3, 0.2, 0.1])
    centres = np.random.default_rng(1).normal(size=(4, 32)) * 0.6
    rows = []
    for i in range(count):
        bad = HOSTILE[i // 7 % len(HOSTILE)] if i % 7 == 0 else ""
        prompt = bad + (EVERYDAY * (1 + int(rng.integers(12))))
        response = (bad + "Hold the reset button for ten seconds.\nThen sign in as admin.\n") * (1 + i % 5)
        original = {"instruction": prompt, "output": response, "family": FAMILIES[family[i]], "source": f"file {i}"}
        values = (f"{bad}sample-{i}", prompt if i % 31 else "", response, None, i, json.dumps(original))
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    features = centres[family] + rng.normal(size=(count, 32)) * 0.4
    return rows, (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def save_samples(folder: RunFolder, side: str, rows: list[dict]) -> None:
    with atomic_write(folder.samples(side).samples) as temporary, pa.ipc.new_stream(str(temporary), SCHEMA) as stream:
        stream.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), max_chunksize=100)


def make_fidelity(rng: np.random.Generator, good: bool) -> Fidelity:
    heights = {"network": 0.45 if good else 0.05, "cosine": 0.1, "target mean": 0.2, "constant": -0.1}
    quadrants: dict[str, dict] = {}
    for name, pairs in (("Q1", 900), ("Q2", 300), ("Q3", 200), ("Q4", 100)):
        methods = {
            method: {metric: float(height + rng.normal() * 0.02) for metric in METRICS}
            | {"mse": rng.uniform(0.002, 0.01)}
            for method, height in heights.items()
        }
        methods["constant"] |= dict.fromkeys(RANKS)
        quadrants[name] = {"pairs": pairs, "methods": methods}
    exact = rng.standard_t(4, 600) * 0.05
    predicted = (0.5 if good else 0.02) * exact + rng.normal(size=600) * 0.015
    quadrant = np.repeat(["Q2", "Q3", "Q4"], [300, 200, 100])
    verdict = f"The network {'beats' if good else 'does not beat'} the baselines on new pool samples: R2 0.46"
    return Fidelity(
        influence="delift",
        pairs={"train": 900, "held_out": 600},
        held_out={"pool": 42, "target": 9},
        quadrants=quadrants,
        scatter={"exact": exact.tolist(), "predicted": predicted.tolist(), "quadrant": quadrant.tolist()},
        beats_baselines=good,
        verdict=f"{verdict} (best baseline: target mean 0.21). {HOSTILE[0]}",
    )


CONFIG = {
    "pool": f"pool {HOSTILE[1]}.jsonl",
    "target": "gsm8k_test.jsonl",
    "budget": "10%",
    "model": "org/model",
    "encoder": "org/encoder",
    "influence": "delift",
    "labels": "1500",
    "network": None,
    "seed": 0,
    "exclude": ["test.jsonl", HOSTILE[2]],
}


def make_run(
    path: Path, *, pool: int = 60, target: int = 5, chosen: int = 6, good: bool = True, **changes: object
) -> RunFolder:
    """A finished `nncift select` with DELIFT; `changes` are fields of its summary."""
    folder, rng = RunFolder(path), np.random.default_rng(5)
    for side, count, seed in (("target", target, 3), ("pool", pool, 2)):
        if count:
            rows, features = make_samples(count, seed)
            save_samples(folder, side, rows)
            write_array(folder.features.array(side), features)
    for name in ("duplicates", "excluded", "rejected"):
        with atomic_write(getattr(folder.samples("pool"), name)) as file:
            file.write_text('{"row": 3}\n', encoding="utf-8")
    influence = (rng.normal(size=pool) * 0.02 + 0.01).astype(np.float32)
    write_array(folder.influence, influence)
    hostile = 7 * np.arange(len(HOSTILE))  # one row of each, so that all are shown
    order = np.argsort(-influence + rng.normal(size=pool) * 0.01)
    order = np.concatenate([hostile[hostile < pool], order[~np.isin(order, hostile)]])[:chosen]
    gains = np.sort(rng.exponential(size=chosen) ** 3)[::-1]
    objective = ("facility-location-mutual-information", {"eta": 0.5714})
    selection = Selection(order, gains, float(gains.sum()), *objective)
    selection.with_pool(Dataset.from_list(rows), influence).save(folder)
    make_fidelity(rng, good).save(folder.fidelity)
    write_json(folder.config, CONFIG)
    costs = Costs(folder.costs)
    costs.stages = {
        "pool": StageCost(3.21, peak_memory=412 * 2**20),
        "features": StageCost(14.5, texts=740),
        "labels": StageCost(314.0, forward_tokens=1_234_567, peak_memory=3 * 2**30),
        "network": StageCost(6.4),
    }
    costs.save()
    read = {"source": CONFIG["pool"], "schema": "Alpaca", "fields": ["instruction", "output"], "rows": pool}
    read |= {"read": pool + 31, "duplicates": 17, "excluded": 11, "rejected": 3}
    summary = Summary(
        pool=read,
        target={**read, "source": "gsm8k_test.jsonl", "rows": target, "rejected": 0} if target else None,
        labelled_pairs=1500,
        all_pairs=pool * (target or pool),
        exact_all_pairs={"seconds": 5861.0, "forward_tokens": 23_045_250},
        selected=chosen,
        tokens_selected=98_765,
        objective=selection.objective,
        objective_options=selection.objective_options,
        value=selection.value,
        encoder={"name": "org/encoder", "truncated": 19, "width": 32},
        language_model={"name": "org/model", "cut": 13},
        warnings=["19 texts were truncated", *HOSTILE],
    )
    dataclasses.replace(summary, **changes).save(folder.summary)
    return folder


def make_reasons(folder: RunFolder) -> None:
    """Reasons for the first samples, of random influence."""
    selection = Selection.load(folder.path)
    shape = (len(np.load(folder.influence)), len(np.load(folder.features.array("target"))))
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    explain(folder, InfluenceMatrix.from_array(values), selection)


def evaluation(verdict: str = "better", influence: str = "random", **changes: Any) -> dict[str, Any]:
    """Results as `nncift evaluate --against` leaves them."""

    def loss(value: float) -> dict[str, Any]:
        return {"loss": {"value": value, "low": value - 0.1, "high": value + 0.1, "items": 24, "by_seed": {"0": value}}}

    def compared(a: list[str], b: list[str], value: float, verdict: str) -> dict[str, Any]:
        facts = {"value": value, "low": value - 0.05, "high": value + 0.05, "verdict": verdict}
        return {"a": a, "b": b, "metrics": {"loss": facts}}

    folder = {"folder": "runs/other", "selection": "x", "rows": 6}
    return {
        "sides": {"run": folder | {"influence": "less"}, "against": folder | {"influence": influence}},
        "test": {"name": f"test {HOSTILE[0]}.jsonl", "items": 24},
        "seeds": 3,
        "models": [
            {"run": "", "method": "none", "metrics": loss(3.0)},
            {"run": "run", "method": "lora", "metrics": loss(2.0)},
            {"run": "against", "method": "lora", "metrics": loss(2.25)},
        ],
        "comparisons": [
            compared(["run", "lora"], ["", "none"], -1.0, "better"),
            compared(["against", "lora"], ["", "none"], -0.75, "better"),
            compared(["run", "lora"], ["against", "lora"], -0.25, verdict),
        ],
    } | changes


def make_evaluation(folder: RunFolder) -> None:
    """An evaluation in the run's folder."""
    write_json(folder.path / "evaluation/one/results.json", evaluation())


class Page(HTMLParser):
    """What a browser would make of a run's report: its elements, attributes and text."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.source = write_report(folder).read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def section(self, name: str) -> str:
        """The text of the section with that id, spaces folded."""
        start = self.source.index(f'id="{name}"')
        inside = self.source[start:].partition(">")[2].partition("</section>")[0]
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", inside)).split())


def missing(page: Page, facts: dict[str, list[str]]) -> list[str]:
    """Those of the facts of each section that are not in it."""
    return [fact for name, some in facts.items() for fact in some if fact not in page.section(name)]


def with_correlation(folder: RunFolder, value: float, **changes: Any) -> None:
    fidelity = Fidelity.load(folder.fidelity)
    name = "subset_sum_correlation_within_target"
    fidelity.quadrants["Q2"]["methods"]["network"][name] = value
    fidelity.quadrants["Q2"]["intervals"] = {"network": {name: [value - 0.1, value + 0.1]}}
    dataclasses.replace(fidelity, judged_by=name, **changes).save(folder.fidelity)
