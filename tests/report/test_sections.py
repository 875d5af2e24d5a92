"""The whole page of a report: the order of its questions, its numbers, its size."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from nncift.run.folder.records import percent
from report_pages import Page, make_run


def test_the_questions_come_in_order_and_the_machinery_is_folded(page: Page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    order = ["chosen", "groups", "lengths", "top", "trust", "verdict", "worth-it", "costs", "next", "machinery"]
    assert [name for name in ids if name in order] == order
    links = [attributes["href"][1:] for tag, attributes in page.elements if tag == "a"]
    assert {"chosen", "trust", "worth-it", "costs", "next"} <= {*links} <= {*ids}
    for name in ("configuration", "selection", "gains", "fidelity", "bottom", "data"):
        assert page.source.partition(f'id="{name}"')[2].partition(">")[2].lstrip().startswith("<details>")
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4", "h5")]
    assert levels[0] == 1
    assert all(now <= before + 1 for before, now in itertools.pairwise(levels))


@pytest.mark.parametrize(
    ("part", "text"),
    [(0.0, "0.0"), (1.0, "100.0"), (0.0123, "1.2"), (0.00123, "0.12"), (0.000052, "0.0052"), (-0.25, "\u221225.0")],
)
def test_every_percent_has_one_form(part: float, text: str):
    assert percent(part) == f"{text}\u00a0%"


def test_the_page_of_ten_thousand_rows_is_small(tmp_path: Path):
    folder = make_run(tmp_path, pool=10_000, target=200, chosen=1000)
    assert len(Page(folder).source) < 3_000_000
