"""Per-sample LoRA gradients beside bergson, dattri-llm and kronfluence, on P3, in one run.

    python benchmarks/peers.py --peers-python /path/to/peers-venv/bin/python

All get the same token ids, the same labels, the same model in float32, the same adapter's weights and the same number
of threads, each in a process of its own, one after the other, on the CPU or, bergson alone (`--peers bergson --device
cuda`), on a GPU. Loading and a first small batch are not timed.
The peers try a few batch sizes on an eighth of the samples and take the fastest; nncift keeps its default. What each
makes of the gradients is its own and stands beside its figures, with the root mean square norm of what came out:
projections keep norms on average, so equal norms mean that the same gradients were taken. nncift runs before and after
the peers, so that a machine that drifts shows; ratios are to the mean of the two. Processor seconds separate a slow
contestant from a busy machine. `benchmarks/requirements-peers.txt` describes how to make the peers' environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nncift.models.language_model import LanguageModel
from nncift.models.locate import embedded_language_model
from nncift.models.text.examples import encode_examples
from nncift.training.lora import Lora, adapted, adapter_weights
from pair_scoring import processor
from samples import shuffled_samples

HERE = Path(__file__).resolve().parent
MAKE = """python3.11 -m venv PEERS
    PEERS/bin/pip install torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu
    PEERS/bin/pip install -r benchmarks/requirements-peers.txt
    PEERS/bin/pip uninstall -y torchvision torchaudio"""


@dataclass(frozen=True)
class Contestant:
    """A runner and its method; `beside` names the nncift row it is compared with."""

    label: str
    script: str
    method: str
    beside: str


PLAIN = Contestant("nncift", "nncift_gradients.py", "plain", "nncift")
ADAM = Contestant("nncift, Adam", "nncift_gradients.py", "adam", "nncift, Adam")
PEERS = {
    "bergson": Contestant("bergson", "bergson_gradients.py", "build", "nncift"),
    "dattri-llm": Contestant("dattri-llm, LoGra", "dattri_gradients.py", "logra", "nncift"),
    "dattri-less": Contestant("dattri-llm, LESS", "dattri_gradients.py", "less", "nncift, Adam"),
    "kronfluence": Contestant("kronfluence", "kronfluence_gradients.py", "self", "nncift"),
}
ON_GPU = ("bergson",)


def write_job(folder: Path, options: argparse.Namespace) -> None:
    """The samples in token ids, the adapter, and the settings, for all runners to read."""
    source = embedded_language_model() if options.model == "embedded" else Path(options.model).resolve()
    rows = shuffled_samples().select(range(options.samples))
    rows = rows.remove_columns([c for c in rows.column_names if c not in ("prompt", "response")])
    rows = rows.add_column("id", [str(k) for k in range(len(rows))])
    model = LanguageModel.load(str(source), device="cpu", max_length=options.max_length)
    with (folder / "samples.jsonl").open("w") as file:
        for example in sorted(encode_examples(model, rows), key=lambda example: -len(example.ids)):
            labels = [-100] * example.start + example.ids[example.start :]
            file.write(json.dumps({"input_ids": example.ids, "labels": labels}) + "\n")
    with adapted(model, Lora(rank=options.rank, alpha=4 * options.rank, dropout=0.0)) as adapter:
        for name, weight in adapter_weights(model).items():
            if ".lora_B." in name:  # a fresh one is zero
                torch.nn.init.normal_(weight, std=0.01, generator=torch.Generator().manual_seed(1))
        adapter.save_pretrained(folder / "adapter")
    settings = {name: getattr(options, name) for name in ("device", "threads", "dimension")} | {"model": str(source)}
    (folder / "job.json").write_text(json.dumps(settings))


def run(contestant: Contestant, python: str, folder: Path, threads: int, device: str) -> dict | None:
    """What a runner printed, or None when it failed; its last words go to the terminal then."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # each writes beside nothing of another's
        for name in ("job.json", "samples.jsonl", "adapter"):
            (Path(scratch) / name).symlink_to(folder / name)
        settings = {
            "HF_DATASETS_CACHE": f"{scratch}/datasets",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            **({} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}),
        }
        done = subprocess.run(
            [python, str(HERE / "peers" / contestant.script), scratch, "--method", contestant.method],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        print(f"{contestant.label} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    found = json.loads(lines[-1])
    print(f"{contestant.label}: {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    return found


def has_peers(python: str | None, names: Sequence[str]) -> bool:
    """Whether the peers' python is there and finds those of some names."""
    if not python:
        return False
    packages = sorted({"dattri-llm" if name.startswith("dattri") else name for name in names})
    check = f"from importlib.metadata import version; [version(name) for name in {packages}]"
    try:
        return subprocess.run([python, "-c", check], capture_output=True).returncode == 0
    except OSError:
        return False


def table(results: list[tuple[Contestant, dict | None]]) -> None:
    """Print the figures."""
    for contestant, found in results:
        if found is None:
            print(f"{contestant.label:18} failed, see above")
            continue
        own = [other["seconds"] for c, other in results if other and c.label == contestant.beside]
        seconds = found["seconds"]
        ratio = f"{seconds * len(own) / sum(own):.2f} x {contestant.beside}" if own else ""
        print(
            f"{contestant.label:18}{seconds:8.1f} s ({found['processor']:.1f} of processor)"
            f" {found['samples'] / seconds:8.3f} samples/s {found['tokens'] / seconds:7.0f} tokens/s"
            f" {found['memory'] / 2**30:5.1f} GiB  norm {found['norm']:7.1f}  {ratio:19}  {found['what']}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--dimension", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=None)
    parser.add_argument("--model", default="embedded", help="a folder, or `embedded`")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers-python", default=os.environ.get("NNCIFT_PEERS_PYTHON"))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    options = parser.parse_args()
    on_cpu = [name for name in options.peers if name not in ON_GPU]
    if options.device == "cuda" and on_cpu:
        parser.error(f"{' and '.join(on_cpu)} run on the CPU here: leave them out of --peers")
    if not has_peers(options.peers_python, options.peers):
        print(
            f"the peers are not found with --peers-python {options.peers_python}; make their environment:\n    {MAKE}\n"
            "then name PEERS/bin/python with --peers-python or NNCIFT_PEERS_PYTHON",
            file=sys.stderr,
        )
        sys.exit(2)

    peers = [PEERS[name] for name in options.peers]
    own = [PLAIN, ADAM] if any(peer.beside == ADAM.label for peer in peers) else [PLAIN]
    turns = [*((c, sys.executable) for c in own), *((c, options.peers_python) for c in peers)]
    turns += [(c, sys.executable) for c in own]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_job(folder, options)
        results = [(c, run(c, python, folder, options.threads, options.device)) for c, python in turns]

    where = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(f"{processor()}, {os.cpu_count()} cores, {options.threads} threads, {where}, float32, {options.model}")
    versions = {c.script: found["versions"] for c, found in results if found}
    for who, all_of_them in versions.items():
        print(f"{who:28}" + ", ".join(f"{package} {number}" for package, number in all_of_them.items()))
    if found := results[0][1]:
        print(f"{found['samples']} samples, {found['tokens']:,} tokens, LoRA rank {options.rank} on q, k, v, o")
    table(results)
    sys.exit(any(found is None for _, found in results))


if __name__ == "__main__":
    main()
