"""nncift doctor: machine, cache, disk, hub and optional packages; and completion in the shell."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from builders import write_jsonl
from nncift import doctor
from nncift.cli import main
from nncift.run.options.amounts import size_text

HUB = "from nncift.doctor import hub_line; print(hub_line())"


def hub_line(endpoint: str) -> str:
    """In a process of its own, since the hub's library reads its settings when it is imported."""
    settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", "TRANSFORMERS_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", HUB], env=os.environ | settings, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(503 if self.path.startswith("/broken") else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def called(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert stop.value.code == 0


def test_doctor_says_what_a_run_on_a_pool_would_need(capsys, monkeypatch, tmp_path, tiny_model):
    pool = tmp_path / "pool.jsonl"
    write_jsonl(pool, [{"prompt": f"Say {number}.", "response": str(number)} for number in range(6)])
    monkeypatch.chdir(tmp_path)
    default = tmp_path / "runs/pool"
    default.mkdir(parents=True)
    (default / "config.json").write_text("{}")
    called("doctor", str(pool), "--model", tiny_model)
    machine, run = capsys.readouterr().out.split("\n\n", 1)
    assert "Disk: " in machine
    assert "Pool: 6 samples" in run
    assert "LLM tokens" in run
    assert "memory" in run
    assert {path.name for path in tmp_path.iterdir()} == {pool.name, "runs"}


def test_a_model_without_a_pool_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--model", "no/such"])
    assert stop.value.code == 2
    assert "--model is of a run on a pool" in capsys.readouterr().err


def test_doctor_names_what_a_bug_report_needs(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NNCIFT_CACHE", str(tmp_path / "evil\x1b[31m"))
    monkeypatch.setenv("NNCIFT_CACHE_SIZE", "3GiB")
    features = tmp_path / "evil\x1b[31m" / "features" / "one"
    features.mkdir(parents=True)
    (features / "values.npy").write_bytes(bytes(2048))
    for command in ("doctor", "env"):
        called(command)
        out = capsys.readouterr().out
        for part in (
            "nncift 0.1.0",
            "torch 2",
            "CPU: ",
            "CUDA",
            "MPS: ",
            "Runs use: ",
            "2 KiB of features, at most 3 GiB",
        ):
            assert part in out
        assert "Hub: not asked, since HF_HUB_OFFLINE is set" in out
        assert f"{size_text(2048)} in all" in out
        assert "Disk: " in out
        assert "nncift doctor POOL" in out
        assert "\x1b" not in out


def test_a_cache_size_that_is_no_amount_is_named(capsys, monkeypatch):
    monkeypatch.setenv("NNCIFT_CACHE_SIZE", "much")
    called("doctor")
    assert "Problem: NNCIFT_CACHE_SIZE" in capsys.readouterr().out.replace("`", "")


def test_the_hub_is_reached_or_not(server):
    address = f"http://127.0.0.1:{server.server_address[1]}"
    assert f"{address} can be reached" in hub_line(address)
    assert "answers with an error (503)" in hub_line(f"{address}/broken")
    assert "cannot be reached" in hub_line("http://127.0.0.1:1")


def test_extras_are_read_from_the_package_and_checked():
    needed, extras = doctor.by_extra(
        [
            "numpy>=1.0",
            "no-such-package>=2",
            'colorama; sys_platform == "no-such-system"',
            'pytest>=1; extra == "proof"',
            'numpy>=9999; extra == "quick"',
            'nncift[proof]; extra == "demo"',
            'another-missing-one; extra == "demo"',
            'ruff; extra == "dev"',
        ]
    )
    assert [each.name for each in needed] == ["numpy", "no-such-package"]
    assert [*extras] == ["demo", "proof", "quick"]
    assert [[doctor.lack_of(each) for each in parts] for parts in (needed, extras["proof"])] == [
        ["", "no-such-package is not installed"],
        [""],
    ]
    assert [doctor.lack_of(each) for each in extras["demo"]] == ["another-missing-one is not installed", ""]
    assert "is installed, and >=9999 is needed" in doctor.lack_of(extras["quick"][0])


def completed(script: Path, *words: str) -> list[str]:
    call = f'source "{script}"; COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _nncift; '
    done = subprocess.run(
        ["bash", "-c", call + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_shell_completes_commands_and_options(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    called("--install-completion", "--shell", "bash")
    script = tmp_path / ".local/share/bash-completion/completions/nncift"
    assert str(script) in capsys.readouterr().out
    assert str(script) in (tmp_path / ".bashrc").read_text()
    assert completed(script, "nncift", "se") == ["select"]
    assert "diff" in completed(script, "nncift", "d")
    assert completed(script, "nncift", "select", "--bud") == ["--budget"]
    assert "--output" in completed(script, "nncift", "diff", "--o")


def test_a_home_that_cannot_be_written_is_one_line(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(SystemExit) as stop:
        main(["--install-completion", "--shell", "fish"])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith("nncift: cannot write ")
    assert len(err.splitlines()) == 1
