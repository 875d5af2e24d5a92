"""How far to trust a run, in its report: verdict, fidelity, active learning and verification."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nncift.report.terminal import summary_text
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import Fidelity, LabelHistory, Summary, Verification
from nncift.run.storage.files import write_json
from report_pages import CONFIG, METRICS, NEW, Page, make_run, missing


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


def test_without_exact_values(tmp_path: Path):
    nothing = {"labelled_pairs": 0, "exact_all_pairs": None, "language_model": None, "tokens_selected": None}
    folder = make_run(tmp_path, **nothing, warnings=[])
    folder.fidelity.unlink()
    write_json(folder.config, CONFIG | {"influence": None, "labels": None, "network": "runs/<b>math"})
    page = Page(folder)
    facts = {
        "verdict": ["not measured in this run", "The influence was estimated by the network of runs/<b>math without"],
        "cost": ["No exact influence was computed"],
        "selection": ["Tokens not counted"],
        "configuration": ["Language model none used"],
    }
    assert missing(page, facts) == []
    assert "The run gave no warnings." in page.text
    assert "(extrapolated" not in page.text


def test_undefined_values_are_dashes_and_not_drawn(tmp_path: Path):
    folder = make_run(tmp_path)
    fidelity = Fidelity.load(folder.fidelity)
    network = fidelity.quadrants["Q2"]["methods"]["network"]
    network["r2"] = fidelity.scatter["predicted"][0] = None
    fidelity.save(folder.fidelity)
    section = Page(folder).section("fidelity")
    assert f"{network['spearman_within_target']:.3f} \u2013 {network['r2_over_target_mean']:.3f}" in section
    assert "599 held-out pairs" in section


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
    headline = "not better than the baselines on 42 new pool samples, so the labels bought nothing"
    assert f"{headline} What needs no labels predicts as well" in shown
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


def test_verification(tmp_path: Path):
    folder = make_run(tmp_path)
    values = {"exact": 0.25, "estimated": 0.5, "exact_of_the_choice_by_estimates": 0.125}
    pairs = {"exact": [0.1, 0.2], "predicted": [0.2, 0.3]}
    Verification(20, 8, 160, values, values, {}, pairs).save(folder.verification)
    page = Page(folder)
    facts = ["20 samples", "(160 pairs)", "The subset, exact 0.2500 0.2500", "by estimates alone, exact 0.1250"]
    assert missing(page, {"verification": facts}) == []
    assert [name for name, _ in page.elements].count("svg") == 4
    figures = page.text.partition("Verified value")[2].split()
    assert figures[0] == "0.2500"
    assert "estimated before: 0.5000, by estimates alone: 0.1250." in " ".join(figures)
    assert "measured exactly afterwards" in page.section("verdict")
    assert "20 samples on 8 targets" in summary_text(folder)
    assert "0.25 exact (0.5 estimated before; 0.125 exact" in summary_text(folder)
