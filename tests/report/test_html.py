"""The report of a synthetic run folder: every section, the numbers of the files, and nothing that data can do to it."""

from __future__ import annotations

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
from hypothesis import given
from hypothesis import strategies as st

from nncift.errors import RunError
from nncift.report import plots
from nncift.report.html import visible, write_report
from nncift.run.files import atomic_write, read_json, read_table, write_array, write_json, write_table

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
METRICS = ("mse", "r2", "r2_over_target_mean", "spearman", "spearman_within_target", "spearman_row_mean")


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
        rows.append(
            {
                "id": f"{bad}sample-{i}",
                "prompt": prompt if i % 31 else "",
                "response": response,
                "messages": None,
                "source_row": i,
                "original": json.dumps(original, ensure_ascii=False),
            }
        )
    features = centres[family] + rng.normal(size=(count, 32)) * 0.4
    return rows, (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def save_samples(path: Path, rows: list[dict]) -> None:
    types = dict.fromkeys(("id", "prompt", "response", "messages", "original"), pa.string()) | {
        "source_row": pa.int64()
    }
    names = ("id", "prompt", "response", "messages", "source_row", "original")
    table = pa.Table.from_pylist(rows, schema=pa.schema([(name, types[name]) for name in names]))
    with atomic_write(path) as temporary, pa.ipc.new_stream(str(temporary), table.schema) as stream:
        stream.write_table(table, max_chunksize=100)


def scores(rng: np.random.Generator, height: float) -> dict[str, float | None]:
    return {"mse": float(rng.uniform(0.002, 0.01))} | {
        name: float(height + rng.normal() * 0.02) for name in METRICS[1:]
    }


def make_fidelity(rng: np.random.Generator, good: bool) -> dict:
    heights = {"network": 0.45 if good else 0.05, "cosine": 0.1, "target mean": 0.2, "constant": -0.1}
    quadrants = {
        name: {"pairs": pairs, "methods": {method: scores(rng, height) for method, height in heights.items()}}
        for name, pairs in (("Q1", 900), ("Q2", 300), ("Q3", 200), ("Q4", 100))
    }
    for quadrant in quadrants.values():
        quadrant["methods"]["constant"] |= dict.fromkeys(METRICS[3:])
    exact = rng.standard_t(4, 600) * 0.05
    predicted = (0.5 if good else 0.02) * exact + rng.normal(size=600) * 0.015
    verdict = f"The network {'beats' if good else 'does not beat'} the baselines on new pool samples: R2 0.46"
    return {
        "influence": "delift",
        "pairs": {"train": 900, "held_out": 600},
        "held_out": {"pool": 42, "target": 9},
        "quadrants": quadrants,
        "scatter": {
            "exact": exact.tolist(),
            "predicted": predicted.tolist(),
            "quadrant": np.repeat(["Q2", "Q3", "Q4"], [300, 200, 100]).tolist(),
        },
        "beats_baselines": good,
        "verdict": f"{verdict} (best baseline: target mean 0.21). {HOSTILE[0]}",
    }


def make_run(folder: Path, *, pool: int = 700, target: int = 40, chosen: int = 70, good: bool = True) -> Path:
    """A finished `nncift select` with DELIFT, everything in its files as the pipeline writes it."""
    rng = np.random.default_rng(5)
    rows, features = make_samples(pool, seed=2)
    save_samples(folder / "pool" / "samples.arrow", rows)
    write_array(folder / "features" / "pool.npy", features)
    for name in ("duplicates", "excluded", "rejected"):
        with atomic_write(folder / "pool" / f"{name}.jsonl") as path:
            path.write_text('{"row": 3}\n', encoding="utf-8")
    if target:
        target_rows, target_features = make_samples(target, seed=3)
        save_samples(folder / "target" / "samples.arrow", target_rows)
        write_array(folder / "features" / "target.npy", target_features)
    influence = (rng.normal(size=pool) * 0.02 + 0.01).astype(np.float32)
    write_array(folder / "influence.npy", influence)
    hostile = 7 * np.arange(len(HOSTILE))  # one row of each, so that all are shown
    order = np.argsort(-influence + rng.normal(size=pool) * 0.01)
    order = np.concatenate([hostile[hostile < pool], order[~np.isin(order, hostile)]])[:chosen]
    gains = np.sort(rng.exponential(size=chosen) ** 3)[::-1]
    columns = {
        "rank": np.arange(1, chosen + 1),
        "pool_index": order,
        "id": [rows[i]["id"] for i in order],
        "gain": gains,
        "influence": influence[order].astype(np.float64),
    }
    write_table(folder / "selection.parquet", pa.table(columns))
    source = {"source": f"pool {HOSTILE[1]}.jsonl", "rows": pool, "read": pool + 31, "duplicates": 17, "excluded": 11}
    write_json(folder / "fidelity.json", make_fidelity(rng, good))
    write_json(
        folder / "config.json",
        {
            "pool": source["source"],
            "target": "gsm8k_test.jsonl" if target else None,
            "budget": "10%",
            "model": "org/model",
            "encoder": "org/encoder",
            "influence": "delift",
            "labels": "1500",
            "network": None,
            "seed": 0,
            "exclude": ["test.jsonl", HOSTILE[2]],
        },
    )
    stage = {"seconds": 0.0, "forward_tokens": 0, "backward_tokens": 0, "peak_memory": 412 * 2**20, "texts": 0}
    stages = {
        "pool": stage | {"seconds": 3.21},
        "features": stage | {"seconds": 14.5, "texts": 740},
        "labels": stage | {"seconds": 314.0, "forward_tokens": 1_234_567, "peak_memory": 3 * 2**30},
        "network": stage | {"seconds": 6.0},
        "selection": stage | {"seconds": 0.4},
    }
    write_json(folder / "costs.json", {"stages": stages})
    write_json(
        folder / "summary.json",
        {
            "pool": source | {"rejected": 3},
            "target": {**source, "source": "gsm8k_test.jsonl", "rows": target, "rejected": 0} if target else None,
            "labelled_pairs": 1500,
            "all_pairs": pool * (target or pool),
            "exact_all_pairs": {"seconds": 5861.0, "forward_tokens": 23_045_250},
            "selected": chosen,
            "tokens_selected": 98_765,
            "objective": "facility location mutual information",
            "objective_options": {"eta": 0.5714},
            "value": float(gains.sum()),
            "encoder": {"name": "org/encoder", "truncated": 19, "width": 32},
            "language_model": {"name": "org/model", "cut": 13},
            "warnings": ["19 texts are longer than the encoder reads", *HOSTILE],
        },
    )
    return folder


class Page(HTMLParser):
    """What a browser would make of the page: its elements, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
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
def run(tmp_path_factory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("run"))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(run / "report.html")


def test_every_section_is_there(page: Page):
    names = {attributes.get("id") for _, attributes in page.elements}
    assert names >= {"verdict", "warnings", "asked", "chosen", "fidelity", "cost"}
    assert names >= {"gains", "map", "groups", "top", "bottom", "data"}
    assert [name for name, _ in page.elements].count("svg") == 3


def test_nothing_in_the_page_can_act(page: Page):
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
def test_hostile_text_is_shown_as_text(page: Page, text: str):
    assert visible(text) in page.section("warnings")
    assert page.text.count(visible(text)) > 1  # in samples, too
    assert text not in page.source or html.escape(visible(text)) == text


def test_no_invisible_character_is_left(page: Page):
    assert {c for c in page.source if not c.isprintable()} <= {"\n", "\u00a0"}


@given(st.text())
def test_visible_leaves_no_character_that_does_not_show(text: str):
    shown = visible(text)
    assert not {unicodedata.category(c) for c in shown if c not in "\n\t\u200c\u200d"} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    shown.encode("utf-8")  # no lone surrogate is left
    plain = "".join(c for c in text if c.isprintable())
    assert visible(plain) == plain


def test_lone_surrogates_do_not_stop_the_report(tmp_path: Path):
    folder = make_run(tmp_path, pool=40, target=3, chosen=4)
    summary = read_json(folder / "summary.json") | {"warnings": ["cut \ud83d here"]}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")  # JSON can spell what UTF-8 cannot
    assert "cut \\ud83d here" in write_report(folder).read_text(encoding="utf-8")


def test_asked_and_chosen(run: Path, page: Page):
    summary = read_json(run / "summary.json")
    asked, chosen = page.section("asked"), page.section("chosen")
    for fact in ("gsm8k_test.jsonl", "Budget 10%", "Influence delift", "org/model", "org/encoder, 32 wide"):
        assert fact in asked
    assert "Samples 70 of 700" in chosen
    assert f"Tokens {summary['tokens_selected']:,}" in chosen
    assert "eta 0.5714" in chosen
    influence, order = np.load(run / "influence.npy"), read_table(run / "selection.parquet")["pool_index"].to_numpy()
    assert f"{influence[order].mean():.5f} chosen, {influence.mean():.6f} whole pool" in chosen


def test_fidelity_table_holds_the_stored_figures(run: Path, page: Page):
    stored, section = read_json(run / "fidelity.json"), page.section("fidelity")
    for name, quadrant in stored["quadrants"].items():
        block = section[section.index(f" {name} ") :]
        assert f"{quadrant['pairs']} pairs" in block
        for method, label in (
            ("network", "InfluenceNetwork"),
            ("constant", "constant"),
            ("cosine", "embedding cosine"),
        ):
            values = quadrant["methods"][method]
            cells = " ".join(
                "\u2013" if values[m] is None else f"{values[m]:.{4 if m == 'mse' else 3}f}".replace("-", "\u2212")
                for m in METRICS
            )
            assert f"{label} {cells}" in block
    assert "900 exactly labelled pairs" in section
    assert "42 pool samples and 9 target samples" in section


@pytest.mark.parametrize("good", [True, False])
def test_the_verdict_comes_first_and_plainly(tmp_path: Path, good: bool):
    folder = make_run(tmp_path, pool=60, target=5, chosen=6, good=good)
    verdict = read_json(folder / "fidelity.json")["verdict"]
    summary = read_json(folder / "summary.json")
    write_json(folder / "summary.json", summary | {"warnings": [verdict, "another"]})
    page = Page(write_report(folder))
    look = next(attributes["class"] for _, attributes in page.elements if attributes.get("id") == "verdict")
    assert look == ("verdict good" if good else "verdict bad")
    assert page.source.index('id="verdict"') < page.source.index('id="asked"')
    assert verdict.split(": ")[0] in page.section("verdict")
    assert "R2 0.46 (best baseline: target mean 0.21)" in page.section("verdict")
    assert page.section("warnings").endswith("1 warning another")  # the verdict is not said twice


def test_cost_table(run: Path, page: Page):
    section, summary = page.section("cost"), read_json(run / "summary.json")
    for name, time in (("pool", "3.2 s"), ("labels", "5 min 14 s"), ("This run", "5 min 38 s")):
        assert f"{name} {time}" in section
    assert "1,234,567" in section
    assert "3.00 GiB" in section
    assert "backward" not in section  # a column without a number is not drawn
    assert f"{summary['labelled_pairs']:,} of {summary['all_pairs']:,} pairs" in section
    assert "5.4 %" in section
    assert "1 h 37 min and 23,045,250 language-model tokens (extrapolated from those labelled), 17.3 times" in section
    assert "All pairs exactly (extrapolated) ≈ 1 h 37 min ≈ 23,045,250" in section


def test_an_estimate_that_saved_nothing_is_called_so(tmp_path: Path):
    folder = make_run(tmp_path, pool=60, target=5, chosen=6)
    summary = read_json(folder / "summary.json")
    write_json(folder / "summary.json", summary | {"exact_all_pairs": {"seconds": 2.0, "forward_tokens": 0}})
    assert "the estimate saved nothing" in Page(write_report(folder)).section("cost")


def test_gain_curve_says_where_it_flattens():
    gains = np.array([50.0, 30, 9, 1] + [1.0] * 10)
    found = plots.gain_curve(gains)
    assert found is not None
    reference = next(r for r in range(1, 15) if gains[:r].sum() >= 0.9 * gains.sum())
    assert (found["rank"], found["value"], found["flattens"]) == (reference, 100.0, True)
    assert found["tail_share"] == pytest.approx(0.01)
    straight = plots.gain_curve(np.ones(1000))
    assert straight is not None
    assert (straight["rank"], straight["flattens"]) == (900, False)
    assert plots.gain_curve(np.zeros(3)) is None
    assert plots.gain_curve(np.zeros(0)) is None


def test_map_axes_are_the_principal_components():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(300, 6)) * [5, 3, 1, 1, 1, 1] @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    centre, axes, explained = plots._principal_axes(sample)
    values, vectors = np.linalg.eigh(np.cov(sample.T))
    np.testing.assert_allclose(centre, sample.mean(axis=0))
    np.testing.assert_allclose(np.abs(axes @ vectors[:, ::-1][:, :2]), np.eye(2), atol=1e-9)
    np.testing.assert_allclose(explained, values[::-1][:2] / values.sum())


@pytest.mark.parametrize(("count", "width"), [(1, 8), (5, 1), (4, 3)])
def test_map_of_hardly_anything(count: int, width: int):
    features = np.ones((count, width), dtype=np.float32)
    found = plots.embedding_map(features, np.array([0]), None)
    assert found["explained"] == [0.0, 0.0]
    assert "svg" in found["plot"]


def test_large_clouds_are_subsampled_and_rasterised():
    features = np.random.default_rng(0).normal(size=(6000, 4)).astype(np.float32)
    large = plots.embedding_map(features, np.arange(500), features[:20])
    assert large["drawn"] == {"left": 5000, "chosen": 500, "target": 20}
    assert large["all"] == {"left": 5500, "chosen": 500, "target": 20}
    assert large["plot"].count("data:image/png;base64,") == 1
    assert len(large["plot"]) < 500_000
    small = plots.embedding_map(features[:1000], np.arange(100), None)
    assert "data:image" not in small["plot"]
    assert small["plot"].count("<use ") > 1000


def test_groups_table(run: Path, page: Page):
    chosen = read_table(run / "selection.parquet")["pool_index"].to_pylist()
    with pa.OSFile(str(run / "pool" / "samples.arrow")) as file:
        originals = [json.loads(text) for text in pa.ipc.open_stream(file).read_all()["original"].to_pylist()]
    section = page.section("groups")
    assert "By family of the original rows" in section  # not by `source`, where every row has its own
    for family in FAMILIES:
        pool = sum(row["family"] == family for row in originals)
        subset = sum(originals[i]["family"] == family for i in chosen)
        assert f"{family} {subset} {subset / 70:.1%} {pool / 700:.1%}".replace("%", " %") in section
        assert f"{subset / 70 / (pool / 700):.2f}\u00d7" in section


def test_samples_at_either_end(run: Path, page: Page):
    selection, influence = read_table(run / "selection.parquet"), np.load(run / "influence.npy")
    top, bottom = page.section("top"), page.section("bottom")
    places = [top.index(f"{rank} {visible(name)} ") for rank, name in enumerate(selection["id"].to_pylist()[:20], 1)]
    assert places == sorted(places)
    assert f" 21 {visible(selection['id'][20].as_py())} " not in top
    rows = sorted(range(700), key=lambda i: influence[i])[:20]
    places = [bottom.index(f"sample-{i} ") for i in rows]
    assert places == sorted(places)
    assert top.count("mean influence") == bottom.count("mean influence", bottom.index("all the same")) == 20
    values = f"gain {selection['gain'][0].as_py():.1f} mean influence {influence[0]:.6f}".replace("-", "\u2212")
    assert values in top  # row 0 is chosen first
    assert "prompt (empty) response" in top


def test_long_texts_are_cut_with_more_on_demand(tmp_path: Path):
    folder = make_run(tmp_path, pool=30, target=3, chosen=3)
    rows, _ = make_samples(30, seed=2)
    for row in rows:
        row |= {"prompt": "word " * 10_000 + "END", "response": "line\n" * 50 + "LAST"}
    save_samples(folder / "pool" / "samples.arrow", rows)
    text = write_report(folder).read_text(encoding="utf-8")
    heads = re.findall(r'<div class="head" dir="auto">(.*?)</div>', text, flags=re.DOTALL)
    assert len(heads) == 2 * (3 + 20)
    assert all(len(head) <= 402 and head.count("\n") < 12 for head in heads)
    assert text.count("all 50,003 characters") == 3 + 20
    assert "the whole text is in pool/samples.arrow" in text
    assert "END" not in text  # beyond what is kept on demand
    assert text.count("LAST") == 3 + 20


def test_data_table_names_the_lists(page: Page):
    section = page.section("data")
    for row in (
        "read 731 731",
        "exact duplicates, kept once 17 17 pool/duplicates.jsonl",
        "excluded, found in a test set 11 11 pool/excluded.jsonl",
        "rejected, not usable 3 0 pool/rejected.jsonl",
        "kept 700 40",
        "truncated 19",
        "cut to fit the language model 13",
    ):
        assert row in section


def test_a_run_with_a_learned_network(tmp_path: Path):
    folder = make_run(tmp_path, pool=60, target=5, chosen=6)
    (folder / "fidelity.json").unlink()
    config = read_json(folder / "config.json") | {"influence": None, "labels": None, "network": "runs/<b>math"}
    nothing = {"labelled_pairs": 0, "exact_all_pairs": None, "language_model": None, "warnings": []}
    summary = read_json(folder / "summary.json") | nothing | {"tokens_selected": None}
    write_json(folder / "config.json", config)
    write_json(folder / "summary.json", summary)
    page = Page(write_report(folder))
    assert "not measured in this run" in page.section("verdict")
    assert "the network of runs/<b>math" in page.section("verdict")
    assert "No exact influence was computed" in page.section("cost")
    assert "Tokens not counted" in page.section("chosen")
    assert "Language model none used" in page.section("asked")
    assert "The run gave no warnings." in page.text
    assert "(extrapolated" not in page.text


def test_a_run_without_target_lists_or_held_out_pairs(tmp_path: Path):
    folder = make_run(tmp_path, pool=60, target=0, chosen=60)
    for name in ("duplicates", "excluded", "rejected"):
        (folder / "pool" / f"{name}.jsonl").unlink()
    fidelity = read_json(folder / "fidelity.json")
    training = fidelity["quadrants"]["Q1"]
    training["methods"].pop("cosine")  # features of other widths have none
    empty = {"exact": [], "predicted": [], "quadrant": []}
    verdict = "Fidelity is not known: too few samples were labelled to hold any out."
    change = {"quadrants": {"Q1": training}, "scatter": empty, "beats_baselines": False, "verdict": verdict}
    write_json(folder / "fidelity.json", fidelity | change)
    page = Page(write_report(folder))
    assert page.section("verdict") == "! Fidelity is not known Too few samples were labelled to hold any out."
    assert "Target none: the pool itself" in page.section("asked")
    assert [name for name, _ in page.elements].count("svg") == 2  # no pairs to scatter
    assert "Q2" not in page.section("fidelity")
    assert "exact duplicates, kept once 17 \u2013" in page.section("data")
    assert "60 chosen. Two" in page.section("map")  # none left, no targets
    assert "Target" not in page.section("data")


def test_undefined_values_are_dashes_and_not_drawn(tmp_path: Path):
    folder = make_run(tmp_path, pool=60, target=5, chosen=6)
    fidelity = read_json(folder / "fidelity.json")
    network = fidelity["quadrants"]["Q2"]["methods"]["network"]
    network["r2"] = fidelity["scatter"]["predicted"][0] = None
    write_json(folder / "fidelity.json", fidelity)
    section = Page(write_report(folder)).section("fidelity")
    assert f"InfluenceNetwork {network['mse']:.4f} \u2013 {network['r2_over_target_mean']:.3f}" in section
    assert "599 held-out pairs" in section


@pytest.mark.parametrize("name", ["config.json", "summary.json", "selection.parquet", "features/pool.npy"])
def test_an_unfinished_run_is_refused(tmp_path: Path, name: str):
    folder = make_run(tmp_path, pool=30, target=3, chosen=3)
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"not the folder of a finished run: it lacks {re.escape(name)}"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match=r"it lacks config\.json, costs\.json"):
        write_report(tmp_path / "nowhere")
    folder = make_run(tmp_path / "run", pool=30, target=3, chosen=3)
    write_array(folder / "influence.npy", np.zeros(29, dtype=np.float32))
    with pytest.raises(RunError, match="do not belong together"):
        write_report(folder)


def test_same_folder_same_bytes_whatever_matplotlib_is_set_to(run: Path):
    import matplotlib

    first = (run / "report.html").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        write_report(run)
        assert matplotlib.rcParams["font.size"] == 30
    assert (run / "report.html").read_bytes() == first
    assert b"<metadata" not in first


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """A function that opens a page in headless Chromium and gives (DOM, what stood on the console)."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        pytest.skip("no chromium on this machine")

    def browse(page: Path, *flags: str) -> tuple[str, list[str]]:
        quiet = ["disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
        quiet += ["no-sandbox", "disable-component-update", "disable-sync", "enable-logging=stderr"]
        command = [binary, "--headless", *(f"--{flag}" for flag in quiet), "--virtual-time-budget=5000"]
        command += [f"--user-data-dir={tmp_path_factory.mktemp('profile')}", *flags, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return browse


def test_a_browser_shows_the_page_without_complaint(run: Path, browse, tmp_path: Path):
    dom, console = browse(run / "report.html", "--dump-dom")
    assert not console
    assert dom.count("<svg") == 3
    assert "70 of 700 samples chosen" in dom
    assert "<script" not in dom
    control = tmp_path / "control.html"
    control.write_text("<script>console.error('heard')</script>", encoding="utf-8")
    assert "heard" in "".join(browse(control, "--dump-dom")[1])


def test_a_browser_paints_the_page(run: Path, browse, tmp_path: Path):
    from PIL import Image

    picture = tmp_path / "page.png"
    browse(run / "report.html", f"--screenshot={picture}", "--window-size=1280,900")
    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 100
    assert (0xE9, 0xF6, 0xEE) in {colour for _, colour in colours}  # the green of a good verdict


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_the_window(run: Path, browse, tmp_path: Path, width: int):
    report = html.escape((run / "report.html").read_text(encoding="utf-8"))
    wide = html.escape("<!doctype html><div style='width:2000px'>x</div>")
    frames = "".join(f'<iframe width="{width}" height="800" srcdoc="{page}"></iframe>' for page in (report, wide))
    script = """addEventListener("load", () => { document.title = [...document.querySelectorAll("iframe")].map(
        frame => frame.contentDocument.documentElement.scrollWidth).join(" ") })"""
    page = tmp_path / "frames.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><script>{script}</script>{frames}", encoding="utf-8")
    dom, _ = browse(page, "--dump-dom")
    report_width, wide_width = map(int, re.search(r"<title>(\d+) (\d+)</title>", dom).groups())
    assert wide_width >= 2000  # so the measure sees what overflows
    assert report_width <= width
