"""The report of a synthetic run: its sections, the figures of the files, and hostile data escaped."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from nncift.errors import RunError
from nncift.report.html import write_report
from nncift.report.template import visible
from nncift.report.terminal import summary_text
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import Fidelity, Summary
from nncift.run.storage.files import read_table, write_array, write_json
from report_pages import FAMILIES, HOSTILE, Page, make_run, make_samples, missing, save_samples


def test_all_sections(page: Page):
    names = {attributes.get("id") for _, attributes in page.elements}
    assert names >= {"verdict", "warnings", "configuration", "selection", "fidelity", "cost"}
    assert names >= {"gains", "map", "groups", "top", "bottom", "data"}
    assert not names & {"known", "rounds", "verification"}
    assert [name for name, _ in page.elements].count("svg") == 3
    assert {c for c in page.source if not c.isprintable()} <= {"\n", "\u00a0"}


def test_no_active_content_and_no_outside_links(page: Page):
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "img", "object", "embed", "link", "base", "form", "foreignobject"}
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


def test_facts(run: RunFolder, page: Page):
    influence, order = np.load(run.influence), read_table(run.selection)["pool_index"].to_numpy()
    facts = {
        "configuration": ["gsm8k_test.jsonl", "Budget 10%", "Influence delift", "org/model", "org/encoder, 32 wide"],
        "selection": [
            *("Samples 70 of 700", "Tokens 98,765", "eta 0.5714"),
            f"{influence[order].mean():.5f} in the subset, {influence.mean():.6f} in the pool",
        ],
        "fidelity": ["900 exactly labelled pairs", "42 pool samples and 9 target samples"],
        "top": ["All of them are in subset.jsonl , best first."],
        "cost": [
            "5 min 38 s and 1,234,567 language-model tokens",
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


def test_no_savings_where_all_pairs_cost_less_than_the_run(tmp_path: Path):
    folder = make_run(tmp_path, exact_all_pairs={"seconds": 2.0, "forward_tokens": 0})
    assert "estimation saved nothing" in Page(folder).section("cost")


def test_scores_are_counted_in_samples(tmp_path: Path):
    page = Page(make_run(tmp_path, scored=True, labelled_pairs=30, all_pairs=60))
    assert "30 of 60 samples were labelled exactly" in page.section("cost")
    assert "All samples exactly (extrapolated)" in page.section("cost")


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
    certificate = {"value": 3.0, "bound": 3.1, "among": 300, "reason": "", "share": 3 / 3.1, "percent": "96.7\u00a0%"}
    page = Page(make_run(tmp_path / "new", certificate=certificate))
    section = page.section("selection")
    assert "Upper bound 3.100 Optimality at least 96.7 % " in section  # the sentence is no cell of the table
    assert "Optimality: at least 96.7 % of the optimal value for these estimates (upper bound 3.1)" in section
    assert "not the accuracy of the estimates" in section
    assert "at least 96.7\u00a0% of the best value that any subset within the budget could have" in page.text
    assert "Optimality" not in Page(make_run(tmp_path / "old")).section("selection")


def test_composition_table(run: RunFolder, page: Page):
    chosen = read_table(run.selection)["pool_index"].to_pylist()
    originals = [json.loads(text) for text in Dataset.from_file(str(run.samples("pool").samples))["original"]]
    section = page.section("groups")
    assert "By family " in section
    assert "By source" not in section  # where every row has its own
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
    assert page.section("verdict").startswith(f"? {headline} More labelled samples are needed")
    assert "Target none: the pool itself" in page.section("configuration")
    assert [name for name, _ in page.elements].count("svg") == 2  # no scatter plot
    assert "Q2" not in page.section("fidelity")
    assert "exact duplicates, removed 17 \u2013" in page.section("data")
    assert "60 selected. Two" in page.section("map")
    assert "Target" not in page.section("data")


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
    assert ("They provide" in page.section("known")) == (share is not None)
    if share is not None:
        assert "They provide 75.0 % of the value, the subset the other 25.0" in page.section("known")
        assert "of the value they provide 75.0 %, the subset the rest" in text


def test_same_bytes_whatever_the_matplotlib_settings(run: RunFolder):
    import matplotlib

    first = run.report.read_bytes()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        write_report(run)
        assert matplotlib.rcParams["font.size"] == 30
    assert run.report.read_bytes() == first
    assert b"<metadata" not in first
