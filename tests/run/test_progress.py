"""Progress bars: moved by batches, and quiet where nobody watches."""

from __future__ import annotations

import ast
import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

import nncift
from nncift.models.batching import Batcher
from nncift.models.encoder import embed_texts
from nncift.run.progress import advance, already, drawn, interactive, moving
from nncift.run.shards import Shards


class Terminal(io.StringIO):
    def isatty(self):
        return True


def moves(monkeypatch) -> list[float]:
    """How far a bar moves at each update."""
    found: list[float] = []
    monkeypatch.setattr(tqdm, "update", lambda self, n=1: found.append(n) if n else None)
    return found


def test_a_bar_moves_by_batches_within_a_shard(monkeypatch):
    batcher, seen = Batcher("model", 10, "cpu"), moves(monkeypatch)

    def work(rows: range) -> dict[str, np.ndarray]:
        lengths = [5] * len(rows)
        return {"values": np.array(batcher.in_batches(lambda batch: batch, lengths, lengths, batch_size=2))}

    with tqdm(total=7, disable=True) as bar:
        Shards(7, 4, None, "pool").compute(work, bar=bar)
    assert seen == [2, 2, 2, 1]


def test_batches_of_another_unit_never_overshoot(monkeypatch):
    seen = moves(monkeypatch)
    with tqdm(total=5, disable=True) as bar:
        with moving(bar, 10, steps_per_row=4):
            for _ in range(4):
                advance(1)
        with moving(bar, 3):
            advance(1)
    assert seen == [4, 4, 2, 1, 2]
    advance(1)  # without a bar


def test_an_encoder_reports_its_batches(minilm, monkeypatch):
    seen = moves(monkeypatch)
    with tqdm(total=5, disable=True) as bar, moving(bar, 5):
        embed_texts([f"text {i}" for i in range(5)], minilm, batch_size=2)
    assert seen == [2, 2, 1]


def test_a_log_file_gets_a_line_every_half_a_minute(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    assert not interactive()
    with tqdm(total=100, desc="around", **drawn(True)), tqdm(total=100, desc="within", **drawn(True)) as bar:
        for _ in range(100):  # 70 seconds
            clock[0] += 0.7
            bar.update()
            bar.refresh()
    with tqdm(total=1, desc="short", **drawn(True)) as bar:
        bar.update()
    lines = sys.stderr.getvalue().splitlines()
    assert [line.partition("%")[0].split() for line in lines] == [
        ["within:", "43"],
        ["within:", "86"],
        ["around:", "0"],
    ]
    assert not {"\r", "\x1b"} & set(sys.stderr.getvalue())


def test_a_terminal_is_drawn_in(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in tqdm(range(3), desc="steps", **drawn(True)):
        pass
    assert "steps: 100%" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not interactive()
    assert not list(tqdm(range(0), **drawn(False)))
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("log", ["none", "full"])
def test_a_log_that_cannot_be_written_ends_nothing(log, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with open("/dev/full", "w", buffering=1) if log == "full" else io.StringIO() as stream:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", None if log == "none" else stream)  # None: as some services have it
            for _ in range(2):
                with tqdm(total=2, **drawn(True)) as bar:
                    clock[0] += 40
                    bar.update()
                    bar.refresh()
        with contextlib.suppress(OSError):
            stream.close()
    assert capsys.readouterr().out == ""


def test_what_was_done_before_does_not_count_in_the_rate():
    with tqdm(total=100, file=io.StringIO()) as bar:
        already(bar, 60)
        bar.update(4)
        facts = bar.format_dict
        assert (facts["n"], facts["initial"], facts["total"]) == (64, 60, 100)
        shown = tqdm.format_meter(64, 100, 2.0, initial=60, unit=" rows")
        assert "2.00 rows/s" in shown  # 4 in 2 seconds
    with tqdm(total=100, disable=True) as bar:
        already(bar, 60)
        assert bar.n == 60


def test_every_bar_has_a_total_and_a_unit():
    """Without a total there is no time left; without a unit nobody can tell what the rate counts."""
    calls = []
    for file in Path(nncift.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tqdm":
                names = {keyword.arg for keyword in node.keywords}
                calls.append(
                    (f"{file.name}:{node.lineno}", node.args or "total" in names, names & {"unit", "bar_format"})
                )
    hidden = [call for call in calls if call[0].startswith("gradient_sketch.py") and not call[1]]  # shows nothing
    assert len(calls) > 20
    assert [call for call in calls if not (call[1] and call[2])] == hidden
    assert len(hidden) == 1
