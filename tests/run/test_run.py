"""Errors, storage, registry, costs, config and the public names."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nncift
from nncift.config import Config, parse_budget, parse_labels
from nncift.errors import ConfigError, DataError, DependencyError, ModelError, NNCIFTError, RunError, printable
from nncift.models.locate import find_model
from nncift.run.costs import Costs
from nncift.run.files import atomic_write, fingerprint, read_array, read_table, write_array, write_json
from nncift.run.folder import open_run
from nncift.run.registry import resolve


@pytest.mark.parametrize("kind", [NNCIFTError, ConfigError, ModelError, RunError, DependencyError])
def test_errors_survive_pickling(kind):
    error = pickle.loads(pickle.dumps(kind("what", "do this")))
    assert type(error) is kind
    assert (error.problem, error.fix, str(error)) == ("what", "do this", "what: do this")


def test_data_error_names_file_row_and_field_and_survives_pickling():
    error = pickle.loads(pickle.dumps(DataError("is empty", "fill it", file="a.jsonl", row=3, field="response")))
    assert str(error) == "a.jsonl, row 3, field 'response': is empty: fill it"


def test_messages_hold_no_control_characters():
    error = DataError("odd \x1b[31m text\nnext", file="evil\x07.jsonl")
    assert all(c.isprintable() for c in str(error))
    assert printable("a\u202eb") == "a\\u202eb"


def test_atomic_write_leaves_nothing_when_the_writer_fails(tmp_path: Path):
    path = tmp_path / "a" / "file.json"
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half") and 1 // 0
    assert list(path.parent.iterdir()) == []


def test_a_full_disk_is_one_clear_error():
    # /dev/full is a real device on which every write fails with ENOSPC.
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(RunError, match="no space left on the disk"), atomic_write(Path("/tmp/nncift-full")):
        Path("/dev/full").write_text("x" * 10)


def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot write"):
        write_json(tmp_path / "file" / "below.json", {})
    with pytest.raises(RunError, match="cannot make the run folder"), open_run(tmp_path / "file" / "run", {}):
        pass


def test_arrays_are_mapped_and_never_unpickled(tmp_path: Path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_array(tmp_path / "a.npy", array)
    assert isinstance(read_array(tmp_path / "a.npy"), np.memmap)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), array)
    np.save(tmp_path / "objects.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    with pytest.raises(RunError, match=r"objects\.npy"):
        read_array(tmp_path / "objects.npy")


def test_fingerprint_depends_on_every_part_and_their_borders():
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    assert fingerprint(b"x") != fingerprint(b"y")


def test_a_run_folder_belongs_to_one_config(tmp_path: Path):
    with open_run(tmp_path / "run", {"budget": "0.1", "seed": 0}):
        pass
    with open_run(tmp_path / "run", {"budget": "0.1", "seed": 0}):
        pass
    with (
        pytest.raises(ConfigError, match=r"seed: 0 there, 1 now"),
        open_run(tmp_path / "run", {"budget": "0.1", "seed": 1}),
    ):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="not a run of nncift"), open_run(tmp_path / "other", {}):
        pass


def test_a_run_that_is_refused_before_any_work_leaves_its_folder_to_another_config(tmp_path: Path):
    run = tmp_path / "run"

    def refused(config: dict, folder: str) -> None:
        with open_run(run, config):
            (run / folder).mkdir()
            (run / folder / "rows.json").write_text("half")
            raise DataError("row 2 is broken", "mend it")

    with pytest.raises(DataError):
        refused({"skip": False}, "pool")
    with pytest.raises(DataError):
        refused({"skip": True}, "features")
    with pytest.raises(ConfigError, match="skip: True there"), open_run(run, {"skip": False}):
        pass


def test_damaged_files_of_a_run_are_named(tmp_path: Path):
    (tmp_path / "costs.json").write_text("{}")
    with pytest.raises(RunError, match=r"costs\.json is no table of costs"):
        Costs(tmp_path / "costs.json")
    (tmp_path / "labels.parquet").write_bytes(b"")
    with pytest.raises(RunError, match=r"labels\.parquet is damaged"):
        read_table(tmp_path / "labels.parquet")


def _hold(folder: Path, held, release) -> None:
    with open_run(folder, {}):
        held.set()
        release.wait(30)


def test_a_second_process_is_refused_and_a_dead_one_is_not_missed(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "run", held, release))
    process.start()
    assert held.wait(30)
    with pytest.raises(RunError, match="another process is working in"), open_run(tmp_path / "run", {}):
        pass
    process.kill()
    process.join()
    with open_run(tmp_path / "run", {}):
        pass


def test_costs_add_up_over_resumed_runs(tmp_path: Path):
    for _ in range(2):
        costs = Costs(tmp_path / "costs.json")
        with costs.stage("labels") as cost:
            cost.forward_tokens += 10
    stored = json.loads((tmp_path / "costs.json").read_text())["stages"]["labels"]
    assert stored["forward_tokens"] == 20
    assert stored["seconds"] > 0
    assert stored["peak_memory"] > 1_000_000


def test_registry_finds_names_paths_and_the_closest():
    built_in = {"ordered": "collections:OrderedDict", "counter": "collections:Counter"}
    assert resolve("counter", built_in, "nncift.influence").__name__ == "Counter"
    assert resolve("fractions:Fraction", built_in, "nncift.influence").__name__ == "Fraction"
    with pytest.raises(ConfigError, match=r"did you mean 'counter'\? Known: counter, ordered"):
        resolve("conter", built_in, "nncift.influence")
    with pytest.raises(ConfigError, match="cannot import"):
        resolve("no_such_module:Thing", built_in, "nncift.influence")


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("0.1", "fraction", 0.1),
        ("10%", "fraction", 0.1),
        (0.25, "fraction", 0.25),
        ("1.0", "fraction", 1.0),
        ("2000", "count", 2000),
        (1, "count", 1),
        ("20_000", "count", 20000),
        ("500ktok", "tokens", 500_000),
        ("2Mtok", "tokens", 2_000_000),
        ("1.5Mtokens", "tokens", 1_500_000),
    ],
)
def test_budgets(text, kind, value):
    assert parse_budget(text) == (kind, value)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "120%", "ten", "", "nan", "inf", "90s", "1e400", True])
def test_bad_budgets(text):
    with pytest.raises(ConfigError, match="--budget"):
        parse_budget(text)


def test_labels_may_be_a_time_and_not_tokens():
    assert parse_labels("90s") == ("seconds", 90)
    assert parse_labels("15m") == ("seconds", 900)
    assert parse_labels("0.01") == ("fraction", 0.01)
    with pytest.raises(ConfigError, match="--labels"):
        parse_labels("2Mtok")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "runs/a", "influence": "delift"}, "--network"),
        ({"network": "runs/a", "labels": "10", "recipe": "paper"}, "cannot start from a network"),
        ({"features": "f.npy", "encoder": "e"}, "--encoder was given"),
        ({"features": "lm", "encoder": "e"}, "--encoder was given"),
        ({"features": "lm,lm"}, "names one twice"),
        ({"features": "sentence,"}, "or none"),
        ({"features": "one,lm,two"}, "several of your own"),
        ({"features": "sentence,lm", "target": "t.jsonl", "target_features": "t.npy"}, "of your own"),
        ({"features": "lm,f.npy", "target": "t.jsonl"}, "--target-features"),
        ({"features": "f.npy", "target": "t.jsonl"}, "--target-features"),
        ({"prompt_field": "q"}, "--response-field"),
        ({"eta": 1.0}, "--eta"),
        ({"batch_size": 0}, "--batch-size"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Config("pool.jsonl", **options)


def test_the_run_folder_defaults_to_the_pools_name():
    assert Config("data/alpaca.jsonl.gz").folder == Path("runs/alpaca")
    assert Config("a.jsonl", output="out").folder == Path("out")
    assert "output" not in Config("a.jsonl").identity()


def test_unknown_models_are_one_clear_error(tmp_path: Path):
    with pytest.raises(ModelError, match="not in the local cache"):
        find_model("nobody/no-such-model", "encoder")
    with pytest.raises(ModelError, match="no folder"):
        find_model(str(tmp_path / "missing"), "language model")
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        find_model("not a//model", "language model")


def test_public_names_are_sorted_and_exist():
    assert nncift.__all__ == sorted(nncift.__all__)
    for name in nncift.__all__:
        assert getattr(nncift, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = nncift.no_such_name


def test_importing_the_command_line_loads_no_heavy_library():
    script = (
        "import sys, nncift.cli; "
        "print([m for m in ('torch','transformers','datasets','numba','matplotlib','numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
