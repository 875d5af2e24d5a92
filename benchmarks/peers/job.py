"""What the runners share: the samples and the adapter to read, and the JSON line to print.

A job is a folder: `job.json` (model, device, threads, dimension), `samples.jsonl` (token ids, and labels that are -100
outside the response; the longest sample first, so that batches cut in this order hold little padding) and `adapter/` as
peft writes it. Needs torch, transformers and peft alone, so that it runs in the
peers' environment too.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Job:
    """A folder's contents and what the command line adds."""

    folder: Path
    model: str
    device: str
    dimension: int
    rows: list[dict[str, list[int]]]
    batch_size: int | None
    method: str

    @property
    def adapter(self) -> Path:
        """The folder of the LoRA adapter."""
        return self.folder / "adapter"

    @property
    def tokens(self) -> int:
        """Tokens of all samples, padding not counted."""
        return sum(len(row["input_ids"]) for row in self.rows)


def read_job(methods: Sequence[str]) -> Job:
    """The job that the command line names; sets the threads and keeps the libraries quiet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", choices=methods, default=methods[0])
    parser.add_argument("--batch-size", type=int, default=None)
    options = parser.parse_args()
    settings = json.loads((options.folder / "job.json").read_text())
    rows = [json.loads(line) for line in (options.folder / "samples.jsonl").read_text().splitlines()]
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    del settings["threads"]
    return Job(options.folder, rows=rows, batch_size=options.batch_size, method=options.method, **settings)


def adapted_model(job: Job) -> Any:
    """The model in float32 with the job's adapter, in evaluation mode, the adapter's weights trainable."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    return PeftModel.from_pretrained(base, job.adapter, is_trainable=True).eval().to(job.device)


def padded(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch of samples, padded on the right: there the causal mask hides the padding, and no other is needed."""
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        name: torch.tensor([row[name] + [filler] * (longest - len(row[name])) for row in rows])
        for name, filler in (("input_ids", 0), ("labels", -100))
    }


def summed_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum of the samples' mean response losses, so that each sample's gradient is that of its own mean."""
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
    wanted = batch["labels"][:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
    return (losses.view(wanted.shape).sum(1) / (wanted != -100).sum(1)).sum()


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Wall and processor seconds, and what the work gave; a GPU's work is waited for."""
    since, used = time.perf_counter(), time.process_time()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - since, "processor": time.process_time() - used}, found


def best_batch_size(job: Job, candidates: Sequence[int], work: Callable[[list[int], int], Any]) -> int:
    """`--batch-size`, else the candidate that takes an eighth of the samples in the shortest time; warms up.

    The eighth lies together, a quarter down from the longest: neighbours are padded as little as in the timed run.

    Args:
        job: the job.
        candidates: what to try.
        work: called with numbers of samples and a batch size.
    """
    work([len(job.rows) - 1], candidates[0])
    if job.batch_size:
        return job.batch_size
    start, count = len(job.rows) // 4, max(len(job.rows) // 8, 1)
    some = list(range(start, start + count))
    return min(candidates, key=lambda size: timed(lambda: work(some, size))[0]["seconds"])


def report(job: Job, what: str, seconds: dict[str, float], squares: torch.Tensor, packages: Sequence[str]) -> None:
    """Print the JSON line.

    Args:
        job: the job.
        what: what was computed, in a few words.
        seconds: how long it took, as `timed` gives it.
        squares: squared norm of each sample's gradient or projection, (n,); projections keep it on average, so it
            shows whether two runners took the gradients of the same losses.
        packages: whose versions to name.
    """
    if len(squares) != len(job.rows):
        raise RuntimeError(f"{len(squares)} of {len(job.rows)} samples came back")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = {
        "what": what,
        **seconds,
        "samples": len(job.rows),
        "tokens": job.tokens,
        "norm": float(squares.double().mean().sqrt()),
        "memory": peak,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in (*packages, "torch", "transformers")},
    }
    print(json.dumps(line), flush=True)
