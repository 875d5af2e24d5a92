"""The option `append`: refusals, the command line, the dry run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import nncift
from builders import write_rows
from nncift.cli import main
from nncift.errors import ConfigError, DataError
from nncift.pipeline.configuration.configure import make_config, sources_of
from nncift.pipeline.context import Run
from nncift.pipeline.earlier_runs.growing import labels_held, share_computed
from nncift.pipeline.inputs.read import read


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"append": "new"}, "`append` adds to the pool of an earlier run: name it with `from_run`"),
        ({"from_run": "run", "keep_selection": True}, "there is no `append`"),
        ({"from_run": "run", "append": "new", "pool": "third"}, "adds to the pool of .*, and `pool` is another"),
        ({"from_run": "run", "append": "new", "exclude": "target"}, "`exclude` cannot be changed now"),
        ({"from_run": "run", "append": "new", "influence": "less"}, "`influence` cannot be changed now"),
        (
            {"from_run": "run", "append": "new", "keep_selection": True, "quota": "task=equal"},
            "`keep_selection` adds to a selection, so `quota`",
        ),
        (
            {"from_run": "capped", "append": "new"},
            "`cap` source was on a column of the data in .*: give another `cap`, or none",
        ),
        ({"from_run": "run", "append": "pool"}, "no row of the appended data remains: 0 of 40 .* and 40 in the pool"),
        (
            {"from_run": "run", "append": "new", "keep_selection": True, "budget": 50},
            "`budget` 50 is more than the 47 samples that are not selected yet",
        ),
    ],
)
def test_what_cannot_be_is_refused(sides, tmp_path: Path, options, message):
    nncift.select(sides["pool"], influence="bm25", budget=5, output=tmp_path / "run")
    given = {name: sides.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
    if options.get("from_run") == "capped":
        rows = [json.loads(line) | {"source": "web"} for line in Path(sides["pool"]).read_text().splitlines()]
        pool = write_rows(tmp_path / "pool.jsonl", rows)
        nncift.select(pool, influence="bm25", budget=5, cap={"source": 5}, output=tmp_path / "capped")
    if "from_run" in given:
        given["from_run"] = tmp_path / given["from_run"]
    else:
        given["pool"] = sides["pool"]
    with pytest.raises((ConfigError, DataError), match=message):
        nncift.select(output=tmp_path / "refused", **given)
    assert not (tmp_path / "refused").exists()


def test_on_the_command_line(sides, tmp_path: Path, capsys):
    run = tmp_path / "run"
    nncift.select(sides["pool"], influence="bm25", budget=5, output=run)

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["select", *arguments, "--quiet"])
        out, err = capsys.readouterr()
        assert end.value.code == (2 if err else 0), err
        return out + err

    grow = ["--from", str(run), "--append", sides["new"], "--append", sides["third"], "--keep-selection"]
    planned = call(*grow, "--budget", "3", "--dry-run")
    assert "Pool: 60 samples; targets: 60; to choose: 3" in planned
    assert f"Of the samples of {run} is deducted what holds there." in planned
    made = call(*grow, "--budget", "3")
    assert "pool: 40 samples taken, 20 appended" in made
    assert "Selected: 8 of 60 samples" in made
    assert f"from {sides['new']}" in made
    (folder,) = tmp_path.glob("run-append-*")  # beside the run, named after what differs
    assert "Selected: 8 of 60 samples" in call(*grow, "--budget", "3")  # again: only opened
    assert "`--append`" not in call("--append", sides["new"])
    assert "--append adds to the pool of an earlier run: name it with --from" in call(sides["pool"], "--append", "new")
    assert "--pool is empty" in call() or "POOL" in call()
    assert "no such file" in call("--from", str(run), "--append", "./nowhere.jsonl")
    assert f"{folder}" in made


def test_a_dry_run_counts_the_new_samples(sides, tmp_path: Path, small_encoder):
    given = {"influence": "embedding-similarity", "encoder": small_encoder, "device": "cpu", "budget": 6}
    nncift.select(sides["pool"], output=tmp_path / "first", **given)
    config = make_config(from_run=tmp_path / "first", append=sides["new"])
    with Run.open(config, sources_of(config, {}), progress=False) as run:
        read(run)
        assert share_computed(run) == pytest.approx(12 / 52)
        assert not labels_held(run)  # it has none
