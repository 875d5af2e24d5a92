"""The report of a synthetic run: its sections, the figures of the files, and hostile data escaped."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from nncift.errors import RunError
from nncift.report.html import write_report
from nncift.report.template import visible
from nncift.report.terminal import summary_text
from nncift.run.costs import Costs, StageCost
from nncift.run.files import atomic_write, read_table, write_array, write_json
from nncift.run.folder import RunFolder
from nncift.run.records import Fidelity, LabelHistory, Summary, Verification
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


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("run"), pool=700, target=40, chosen=70)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: RunFolder) -> Page:
    return Page(run)


def test_all_sections(page: Page):
    names = {attributes.get("id") for _, attributes in page.elements}
    assert names >= {"verdict", "warnings", "configuration", "selection", "fidelity", "cost"}
    assert names >= {"gains", "map", "groups", "top", "bottom", "data"}
    assert not names & {"known", "rounds", "verification"}
    assert [name for name, _ in page.elements].count("svg") == 3
    assert {c for c in page.source if not c.isprintable()} <= {"\n", "\u00a0"}


def test_no_active_content_and_no_outside_links(page: Page):
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "img", "object", "embed", "link", "base", "form", "foreignobject", "a"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"href", "src", "xlink:href", "srcset", "action", "formaction", "data", "poster"}:
                assert value.startswith(("#", "data:image/png;base64,")), (tag, value)
            assert not re.search(r"url\((?!#)|expression|@import", value), (tag, value)
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert page.source.count("<style") == 1
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_escaped(page: Page, text: str):
    assert visible(text) in page.section("warnings")
    assert page.text.count(visible(text)) > 1  # in samples, too
    assert text not in page.source or html.escape(visible(text)) == text


@given(st.text())
def test_visible_escapes_invisible_characters_only(text: str):
    shown = visible(text)
    assert not {unicodedata.category(c) for c in shown if c not in "\n\t\u200c\u200d"} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    shown.encode("utf-8")  # no lone surrogate is left
    plain = "".join(c for c in text if c.isprintable())
    assert visible(plain) == plain


def test_lone_surrogates_are_escaped(tmp_path: Path):
    folder = make_run(tmp_path)
    stored = dataclasses.asdict(Summary.load(folder.summary)) | {"warnings": ["cut \ud83d here"]}
    folder.summary.write_text(json.dumps(stored), encoding="utf-8")  # JSON can encode what UTF-8 cannot
    assert "cut \\ud83d here" in Page(folder).source


def missing(page: Page, facts: dict[str, list[str]]) -> list[str]:
    """Those of the facts of each section that are not in it."""
    return [fact for name, some in facts.items() for fact in some if fact not in page.section(name)]


def test_facts(run: RunFolder, page: Page):
    influence, order = np.load(run.influence), read_table(run.selection)["pool_index"].to_numpy()
    facts = {
        "configuration": ["gsm8k_test.jsonl", "Budget 10%", "Influence delift", "org/model", "org/encoder, 32 wide"],
        "selection": [
            *("Samples 70 of 700", "Tokens 98,765", "eta 0.5714", "subset.jsonl"),
            f"{influence[order].mean():.5f} in the subset, {influence.mean():.6f} in the pool",
        ],
        "fidelity": ["900 exactly labelled pairs", "42 pool samples and 9 target samples"],
        "cost": [
            *("pool 3.2 s", "labels 5 min 14 s", "Total 5 min 38 s"),
            *("1,234,567", "3.00 GiB", "1,500 of 28,000 pairs", "5.4 %"),
            "1 h 37 min and 23,045,250 language-model tokens (extrapolated), 17.3 times",
            "All pairs exactly (extrapolated) \u2248 1 h 37 min \u2248 23,045,250",
        ],
        "data": [
            "read 731 731 \u2013",
            "exact duplicates, removed 17 17 pool/duplicates.jsonl",
            "excluded, found in a test set 11 11 pool/excluded.jsonl",
            "rejected, not usable 3 0 pool/rejected.jsonl",
            "kept 700 40 pool/samples.arrow",
            "truncated by the encoder 19",
            "truncated to the language model's context 13",
        ],
    }
    assert missing(page, facts) == []
    assert "backward" not in page.section("cost")  # columns of zeros are left out


def test_fidelity_table(run: RunFolder, page: Page):
    section = page.section("fidelity")
    for name, quadrant in Fidelity.load(run.fidelity).quadrants.items():
        block = section[section.index(f" {name} ") :]
        assert f"{quadrant['pairs']} pairs" in block
        labels = {"network": "InfluenceNetwork", "constant": "constant", "cosine": "embedding cosine"}
        for method, label in labels.items():
            values = quadrant["methods"][method]
            cells = " ".join(
                "\u2013" if values[m] is None else f"{values[m]:.{4 if m == 'mse' else 3}f}".replace("-", "\u2212")
                for m in METRICS
            )
            assert f"{label} {cells}" in block


@pytest.mark.parametrize("good", [True, False])
def test_verdict_first(tmp_path: Path, good: bool):
    folder = make_run(tmp_path, good=good)
    fidelity = Fidelity.load(folder.fidelity)  # as an earlier version stored it
    warnings = [fidelity.verdict, str(fidelity), "another"]
    dataclasses.replace(Summary.load(folder.summary), warnings=warnings).save(folder.summary)
    page = Page(folder)
    style = next(attributes["class"] for _, attributes in page.elements if attributes.get("id") == "verdict")
    assert style == ("verdict good" if good else "verdict bad")
    assert page.source.index('id="verdict"') < page.source.index('id="configuration"')
    outcome = "better than" if good else "not better than"
    assert f"The network is {outcome} the baselines on 42 new pool samples" in page.section("verdict")
    assert "R2 0.46 (best baseline: target mean 0.21)" in page.section("verdict")
    assert page.section("warnings").endswith("1 warning another")  # the verdict is not repeated


@pytest.mark.parametrize(("held_out", "mark"), [(4, "?"), (42, "✓")])
def test_a_tick_needs_enough_samples(tmp_path: Path, held_out: int, mark: str):
    """Of a record of an earlier version too, which has no intervals."""
    folder = make_run(tmp_path)
    dataclasses.replace(Fidelity.load(folder.fidelity), held_out={"pool": held_out, "target": 9}).save(folder.fidelity)
    page = Page(folder)
    assert page.section("verdict").startswith(mark)
    assert ("Too few samples to tell" in page.section("verdict")) == (mark == "?")
    assert ("✓" in page.text) == (mark == "✓")
    assert f"fidelity on {held_out} new pool samples, 300 pairs" in summary_text(folder)


def test_every_figure_has_its_interval(tmp_path: Path):
    folder = make_run(tmp_path)
    fidelity = Fidelity.load(folder.fidelity)
    quadrant = fidelity.quadrants["Q2"]
    quadrant["samples"] = {"pool": 17, "target": 1}
    spans = {method: {name: [-0.25, 0.75] for name in METRICS} for method in quadrant["methods"]}
    quadrant |= {"intervals": spans | {"constant": dict.fromkeys(METRICS)}, "differences": {}}
    dataclasses.replace(fidelity, outcome="too few samples to tell").save(folder.fidelity)
    section = Page(folder).section("fidelity")
    assert "300 pairs of 17 pool samples and 1 target" in section
    value = quadrant["methods"]["network"]["r2"]
    assert f"{value:.3f} [\u22120.25, 0.75]" in section
    assert f"{value:.2f} [-0.25, 0.75]" in summary_text(folder)
    assert "(17 new pool samples)" in Page(folder).section("verdict")


def test_no_savings_where_all_pairs_cost_less_than_the_run(tmp_path: Path):
    folder = make_run(tmp_path, exact_all_pairs={"seconds": 2.0, "forward_tokens": 0})
    assert "estimation saved nothing" in Page(folder).section("cost")


@pytest.mark.parametrize("has_target", [True, False])
def test_targets_served(tmp_path: Path, has_target: bool):
    served = {"targets": 40, "selected": 30, "served": 7, "target": 3, "most": 22, "covered": 38, "covering": 12}
    served |= {"widest": 9, "id": HOSTILE[0], "largest_share": 22 / 30, "is_dominated": True}
    section = Page(make_run(tmp_path, target=5 if has_target else 0, served=served)).section("selection")
    assert "Top targets 7 of 40 targets" in section
    assert f"Most frequent top target {HOSTILE[0]}: 22 of 30 samples (73.3 %)" in section
    assert "Targets helped 38 of 40" in section
    assert "Best samples 12; the most frequent is best for 9 targets" in section
    assert ("itself excluded" in section) is not has_target


def test_certificate(tmp_path: Path):
    certificate = {"value": 3.0, "bound": 3.1, "among": 300, "reason": "", "share": 3 / 3.1, "percent": "96.7 %"}
    section = Page(make_run(tmp_path / "new", certificate=certificate)).section("selection")
    assert "Optimality at least 96.7 % of the optimal value for these estimates (upper bound 3.1)" in section
    assert "not the accuracy of the estimates" in section
    assert "Optimality" not in Page(make_run(tmp_path / "old")).section("selection")


def test_composition_table(run: RunFolder, page: Page):
    chosen = read_table(run.selection)["pool_index"].to_pylist()
    originals = [json.loads(text) for text in Dataset.from_file(str(run.samples("pool").samples))["original"]]
    section = page.section("groups")
    assert "By family of the original rows" in section  # not by `source`, where every row has its own
    for family in FAMILIES:
        pool = sum(row["family"] == family for row in originals)
        subset = sum(originals[i]["family"] == family for i in chosen)
        assert f"{family} {subset} {subset / 70:.1%} {pool / 700:.1%}".replace("%", " %") in section
        assert f"{subset / 70 / (pool / 700):.2f}\u00d7" in section


def test_samples_at_either_end(run: RunFolder, page: Page):
    selection, influence = read_table(run.selection), np.load(run.influence)
    top, bottom = page.section("top"), page.section("bottom")
    places = [top.index(f"{rank} {visible(name)} ") for rank, name in enumerate(selection["id"].to_pylist()[:20], 1)]
    assert places == sorted(places)
    assert f" 21 {visible(selection['id'][20].as_py())} " not in top
    rows = sorted(range(700), key=lambda i: influence[i])[:20]
    places = [bottom.index(f"sample-{i} ") for i in rows]
    assert places == sorted(places)
    assert top.count("mean influence") == bottom.count("mean influence", bottom.index("nevertheless")) == 20
    values = f"gain {selection['gain'][0].as_py():.1f} mean influence {influence[0]:.6f}".replace("-", "\u2212")
    assert values in top  # row 0 is chosen first
    assert "prompt (empty) response" in top


def test_long_texts_are_truncated_with_more_on_demand(tmp_path: Path):
    folder = make_run(tmp_path, pool=30, target=3, chosen=3)
    rows, _ = make_samples(30, seed=2)
    for row in rows:
        row |= {"prompt": "word " * 10_000 + "END", "response": "line\n" * 50 + "LAST"}
    save_samples(folder, "pool", rows)
    text = Page(folder).source
    heads = re.findall(r'<div class="head" dir="auto">(.*?)</div>', text, flags=re.DOTALL)
    assert len(heads) == 2 * (3 + 20)
    assert all(len(head) <= 402 and head.count("\n") < 12 for head in heads)
    assert text.count("all 50,003 characters") == 3 + 20
    assert "the full text is in pool/samples.arrow" in text
    assert "END" not in text  # beyond what is kept on demand
    assert text.count("LAST") == 3 + 20


def test_without_exact_values(tmp_path: Path):
    nothing = {"labelled_pairs": 0, "exact_all_pairs": None, "language_model": None, "tokens_selected": None}
    folder = make_run(tmp_path, **nothing, warnings=[])
    folder.fidelity.unlink()
    write_json(folder.config, CONFIG | {"influence": None, "labels": None, "network": "runs/<b>math"})
    page = Page(folder)
    facts = {
        "verdict": ["not measured in this run The influence was estimated by the network of runs/<b>math"],
        "cost": ["No exact influence was computed"],
        "selection": ["Tokens not counted"],
        "configuration": ["Language model none used"],
    }
    assert missing(page, facts) == []
    assert "The run gave no warnings." in page.text
    assert "(extrapolated" not in page.text


def test_without_target_lists_or_held_out_pairs(tmp_path: Path):
    folder = make_run(tmp_path, target=0, chosen=60)
    pool = folder.samples("pool")
    for path in (pool.duplicates, pool.excluded, pool.rejected):
        path.unlink()
    fidelity = Fidelity.load(folder.fidelity)
    fidelity.quadrants["Q1"]["methods"].pop("cosine")  # undefined for features of different widths
    stored = dataclasses.asdict(fidelity) | {
        "quadrants": {"Q1": fidelity.quadrants["Q1"]},
        "scatter": {"exact": [], "predicted": [], "quadrant": []},
        "beats_baselines": False,
        "verdict": "Fidelity is unknown: too few samples were labelled to hold any out.",
    }
    write_json(folder.fidelity, stored)
    page = Page(folder)
    headline = "Too few samples to tell whether the network is better than the baselines: none was held out"
    assert page.section("verdict") == f"? {headline}"
    assert "Target none: the pool itself" in page.section("configuration")
    assert [name for name, _ in page.elements].count("svg") == 2  # no scatter plot
    assert "Q2" not in page.section("fidelity")
    assert "exact duplicates, removed 17 \u2013" in page.section("data")
    assert "60 selected. Two" in page.section("map")
    assert "Target" not in page.section("data")


def test_undefined_values_are_dashes_and_not_drawn(tmp_path: Path):
    folder = make_run(tmp_path)
    fidelity = Fidelity.load(folder.fidelity)
    network = fidelity.quadrants["Q2"]["methods"]["network"]
    network["r2"] = fidelity.scatter["predicted"][0] = None
    fidelity.save(folder.fidelity)
    section = Page(folder).section("fidelity")
    assert f"{network['spearman_within_target']:.3f} \u2013 {network['r2_over_target_mean']:.3f}" in section
    assert "599 held-out pairs" in section


def test_an_unfinished_or_damaged_run(tmp_path: Path):
    with pytest.raises(RunError, match=r"it lacks config\.json, costs\.json"):
        write_report(tmp_path / "nowhere")
    folder = make_run(tmp_path / "run", pool=30, target=3, chosen=3)
    write_array(folder.influence, np.zeros(29, dtype=np.float32))
    with pytest.raises(RunError, match=r"do not belong together \(.*influence\.npy has 29 rows"):
        write_report(folder)
    lacking: list[str] = []
    for path in (folder.selection, folder.features.array("pool"), folder.summary, folder.config):
        path.unlink()
        lacking.insert(0, re.escape(str(path.relative_to(folder.path))))
        with pytest.raises(RunError, match=f"not the folder of a finished run: it lacks {', .*'.join(lacking)}"):
            write_report(folder)
    assert not folder.report.exists()


def test_labels_that_bought_nothing_in_words(tmp_path: Path):
    folder = make_run(tmp_path, good=False)
    stored = dataclasses.replace(
        Fidelity.load(folder.fidelity), outcome="not better than", judged_by="subset_sum_correlation_within_target"
    )
    verdict = f"{stored.headline}: subset-sum correlation 0.05. Without labels, `influence` bm25 predicts as well."
    stored = dataclasses.replace(stored, verdict=verdict)
    stored.save(folder.fidelity)
    assert str(stored) == verdict
    shown = Page(folder).section("verdict")
    assert "not better than the baselines on 42 new pool samples, so the labels bought nothing Subset-sum" in shown
    assert shown.endswith("Without labels, `influence` bm25 predicts as well.")


def test_a_record_of_an_earlier_version_has_the_metrics_of_then(tmp_path: Path):
    folder = make_run(tmp_path, good=False)
    fidelity = Fidelity.load(folder.fidelity)
    for quadrant in fidelity.quadrants.values():
        for row in quadrant["methods"].values():
            for metric in NEW:
                del row[metric]
    write_json(folder.fidelity, {k: v for k, v in dataclasses.asdict(fidelity).items() if k != "judged_by"})
    page = Page(folder)
    network = fidelity.quadrants["Q2"]["methods"]["network"]
    cells = " ".join(f"{network[m]:.{4 if m == 'mse' else 3}f}".replace("-", "\u2212") for m in METRICS if m not in NEW)
    assert f"InfluenceNetwork {cells}" in page.section("fidelity")
    assert "Subset-sum" not in page.section("fidelity")
    assert "bought nothing" not in page.section("verdict")
    assert "subset sums" not in summary_text(folder)
    assert f"{network['r2']:.2f}" in summary_text(folder)


def test_a_score_for_all_targets_is_shown_over_all_samples(tmp_path: Path):
    folder = make_run(tmp_path)
    fidelity = Fidelity.load(folder.fidelity)
    for quadrant in fidelity.quadrants.values():
        for row in quadrant["methods"].values():
            row |= {"subset_sum_correlation": 0.625, "recall_of_top_tenth": 0.375, "spearman": 0.125}
    dataclasses.replace(fidelity, judged_by="subset_sum_correlation").save(folder.fidelity)
    section = Page(folder).section("fidelity")
    assert "InfluenceNetwork 0.625 0.375 0.125" in section
    assert "within target" not in section
    assert "0.62" in summary_text(folder)
    assert "within a target" not in summary_text(folder)


@pytest.mark.parametrize("metric", ["", "subset_sum_correlation_within_target"])
@pytest.mark.parametrize(
    ("ended", "target", "shown"),
    [
        ("no improvement in two rounds", 0.6, "1 round : no improvement in two rounds (target fidelity 0.60"),
        ("in words of an earlier version", None, "target fidelity reached (target fidelity 0.30"),
    ],
)
def test_active_learning(tmp_path: Path, ended: str, target: float | None, shown: str, metric: str):
    folder = make_run(tmp_path)
    write_json(folder.config, CONFIG | {"fidelity": 0.3})
    rounds = [{"pairs": 96, "reached": 0.31, "seconds": 12.0}]
    history = LabelHistory([1, 2], [1], [[4, 5], []], rounds, ended=ended, target_fidelity=target, metric=metric)
    history.save(folder.labels.history)
    page = Page(folder)
    assert shown in page.section("rounds")
    assert "1 96 0.310 12.0 s" in page.section("rounds")
    name = "subset-sum correlation" if metric else "rank correlation"  # in earlier versions
    assert f"({name} 0.31 on 2 held-out samples, 96 training pairs)" in summary_text(folder)
    assert f"{name.capitalize()} within a target against the number of labels" in page.section("rounds")


def test_the_network_of_a_run_without_labels_is_named(tmp_path: Path):
    described = {"influence": {"name": "less", "model": "embedded"}, "features": {"language_model": "org/small"}}
    nothing = {"labelled_pairs": 0, "exact_all_pairs": None, "network": described, "warnings": []}
    folder = make_run(tmp_path, **nothing)
    folder.fidelity.unlink()
    write_json(folder.config, CONFIG | {"network": "pretrained"})
    named = "the network that comes with nncift, fitted to less of org/small, without exact values on this data"
    assert f"Fidelity was not measured: the influence was estimated by {named}." in summary_text(folder)
    assert named in Page(folder).section("verdict")


def test_schemas_and_remarks_of_the_data(tmp_path: Path):
    facts = {"source": "a.jsonl", "schema": "alpaca, messages", "fields": [], "rows": 60, "read": 70}
    facts |= {"duplicates": 1, "excluded": 2, "rejected": 0}
    more = {"undesired": 7, "schemas": {"alpaca": 50, "messages": 20}, "notes": ["2 ids were made unique <b>"]}
    folder = make_run(tmp_path, pool=60, target=0)
    dataclasses.replace(Summary.load(folder.summary), pool=facts | more).save(folder.summary)
    folder.samples("pool").rejected.touch()
    section = Page(folder).section("data")
    shown = (
        "read as alpaca 50",
        "read as messages 20",
        "marked as undesired, left out 7 pool/rejected.jsonl",
        "2 ids were made unique <b>",
    )
    assert all(text in section for text in shown)
    text = summary_text(folder)
    left_out = "1 exact duplicate dropped, 2 excluded (also in a test set), 7 left out (marked as not to be trained on)"
    assert f"(alpaca 50, messages 20): 60 samples, {left_out}.\n  2 ids were made unique <b>\n" in text


def test_verification(tmp_path: Path):
    folder = make_run(tmp_path)
    values = {"exact": 0.25, "estimated": 0.5, "exact_of_the_choice_by_estimates": 0.125}
    pairs = {"exact": [0.1, 0.2], "predicted": [0.2, 0.3]}
    Verification(20, 8, 160, values, values, {}, pairs).save(folder.verification)
    page = Page(folder)
    facts = ["20 samples", "(160 pairs)", "The subset, exact 0.2500 0.2500", "by estimates alone, exact 0.1250"]
    assert missing(page, {"verification": facts}) == []
    assert [name for name, _ in page.elements].count("svg") == 4
    assert "20 samples on 8 targets" in summary_text(folder)
    assert "0.25 exact (0.5 estimated before; 0.125 exact" in summary_text(folder)


@pytest.mark.parametrize(("value", "share"), [(None, None), (3.0, "75")])
def test_known_samples(tmp_path: Path, value: float | None, share: str | None):
    known = {"source": HOSTILE[1], "schema": "Alpaca", "fields": ["instruction", "output"], "rows": 1200}
    known |= {"read": 1201, "duplicates": 1, "excluded": 0, "rejected": 0}
    name, options = "facility-location-conditional-gain", {"nu": 1.0}
    changes = {"objective": name, "objective_options": options, "value": 1.0}
    folder = make_run(tmp_path, known=known | {"value": value}, **changes)
    page, text = Page(folder), summary_text(folder)
    assert f"1,200 samples from {HOSTILE[1]}" in page.section("known")
    assert "exact duplicates, removed 17 17 1 pool/duplicates.jsonl" in page.section("data")
    assert "(Alpaca): 1,200 samples, 1 exact duplicate dropped." in text
    assert "Objective: facility location conditional gain over 1,200 known samples" in text
    assert ("coverage of the targets" in page.section("known")) == (share is not None)
    if share is not None:
        assert "They provide 75.0 % of the coverage of the targets, the subset the other 25.0" in page.section("known")
        assert "they provide 75% of the targets' coverage" in text


def test_same_bytes_whatever_the_matplotlib_settings(run: RunFolder):
    import matplotlib

    first = run.report.read_bytes()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        write_report(run)
        assert matplotlib.rcParams["font.size"] == 30
    assert run.report.read_bytes() == first
    assert b"<metadata" not in first


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """A function that opens a page in headless Chromium and returns (DOM, lines of the console)."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        pytest.skip("no chromium on this machine")

    def browse(page: Path, *flags: str) -> tuple[str, list[str]]:
        quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
        command = [binary, "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
        command += [f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--enable-logging=stderr"]
        command += ["--virtual-time-budget=5000", *flags, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return browse


def test_browser_console_is_empty(run: RunFolder, browse, tmp_path: Path):
    dom, console = browse(run.report, "--dump-dom")
    assert not console
    assert dom.count("<svg") == 3
    assert "70 of 700 samples selected" in dom
    assert "<script" not in dom
    control = tmp_path / "control.html"
    control.write_text("<script>console.error('heard')</script>", encoding="utf-8")
    assert "heard" in "".join(browse(control, "--dump-dom")[1])


def test_browser_renders_the_page(run: RunFolder, browse, tmp_path: Path):
    from PIL import Image

    picture = tmp_path / "page.png"
    browse(run.report, f"--screenshot={picture}", "--window-size=1280,900")
    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 100
    assert (0xE9, 0xF6, 0xEE) in {colour for _, colour in colours}  # the green of a good verdict


def test_page_fits_the_window(run: RunFolder, browse, tmp_path: Path):
    report = html.escape(run.report.read_text(encoding="utf-8"))
    wide = html.escape("<!doctype html><div style='width:2000px'>x</div>")
    widths = {390: report, 1280: report, 800: wide}
    frames = "".join(
        f'<iframe width="{width}" height="800" srcdoc="{page}"></iframe>' for width, page in widths.items()
    )
    script = """addEventListener("load", () => { document.title = [...document.querySelectorAll("iframe")].map(
        frame => frame.contentDocument.documentElement.scrollWidth).join(" ") })"""
    page = tmp_path / "frames.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><script>{script}</script>{frames}", encoding="utf-8")
    dom, _ = browse(page, "--dump-dom")
    narrow, usual, overflowing = map(int, re.search(r"<title>(\d+) (\d+) (\d+)</title>", dom).groups())
    assert (narrow <= 390, usual <= 1280, overflowing >= 2000) == (True, True, True)  # the last: overflow is detected
