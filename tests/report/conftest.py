"""The report of one synthetic run, which several files read."""

from __future__ import annotations

import pytest

from nncift.report.html import write_report
from nncift.run.folder.folder import RunFolder
from report_pages import Page, make_run


@pytest.fixture(scope="package")
def run(tmp_path_factory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("run"), pool=700, target=40, chosen=70)
    write_report(folder)
    return folder


@pytest.fixture(scope="package")
def page(run: RunFolder) -> Page:
    return Page(run)
