"""What the explorer's table of a large run takes: seconds of each part, and peak memory; then the server's answers.

    python benchmarks/explorer.py 100000 /tmp/explorer-run

The run is a real one, of random texts of 120 words, with vectors of 384 numbers around 200 centres and 1,000 targets.
Its folder is kept. CPU seconds are of all threads; those by the clock need a quiet machine.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from starlette.testclient import TestClient

import nncift
from nncift.explorer import table
from nncift.explorer.page import page_props
from nncift.explorer.site import make_app
from nncift.influence.base import InfluenceFunction, Traits
from nncift.pipeline.earlier_runs.finished import FinishedRun

WIDTH, CENTRES, TARGETS, WORDS = 384, 200, 1000, 120
QUESTIONS = {
    "all points": "SELECT row, __map_x, __map_y, chosen FROM dataset",
    "counts": "SELECT chosen, task, count(*) FROM dataset WHERE covered_by_influence < 0.3 GROUP BY ALL",
    "histogram": "SELECT floor(50 * gain) AS bin, count(*) FROM dataset WHERE chosen = 'chosen' GROUP BY bin",
    "table": "SELECT * FROM dataset WHERE left_out_twin_cosine > 0.5 ORDER BY gain DESC LIMIT 100",
    "one row": "SELECT * FROM dataset WHERE row = 4321",
    "texts": "SELECT row FROM dataset WHERE prompt LIKE '%abc%' LIMIT 100",
}


class Synthetic(InfluenceFunction):
    """Inner products of random unit vectors around centres, by the number in the id of the sample."""

    name, traits = "synthetic", Traits(factored=True)

    def vectors(self, rows: Dataset) -> np.ndarray:
        """Unit vectors, (n, WIDTH)."""
        numbers = [int(name.rpartition("-")[2]) for name in rows["id"]]
        centres = np.random.default_rng(0).standard_normal((CENTRES, WIDTH))
        found = np.stack([centres[k % CENTRES] + np.random.default_rng(k).standard_normal(WIDTH) for k in numbers])
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Influence, (n_pool, n_target)."""
        return self.vectors(pool_rows) @ self.vectors(target_rows).T


def make_run(rows: int, folder: Path) -> Path:
    """The folder of a finished run, one in twenty rows chosen."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {"pool": (rows, 1), "target": (TARGETS, 2)}
    for name, (count, seed) in sources.items():
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in random_rows(count, seed))
    pool, target = (str(folder / f"{name}.jsonl") for name in sources)
    nncift.select(
        pool, target=target, influence="explorer:Synthetic", budget=rows // 20, output=folder / "run", progress=True
    )
    return folder / "run"


def random_rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of random words, with two columns beside the texts."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(5000)]
    for k in range(count):
        text = [words[word] for word in rng.integers(0, len(words), WORDS)]
        prompt, response = " ".join(text[: WORDS // 2]), " ".join(text[WORDS // 2 :])
        yield {"id": f"row-{k}", "prompt": prompt, "response": response, "task": f"task {k % 12}", "score": k % 100}


def now() -> tuple[float, float]:
    """Seconds of the CPU and by the clock."""
    return time.process_time(), time.perf_counter()


def report(name: str, since: tuple[float, float]) -> None:
    """Print the seconds since then, and the peak memory of the process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu, clock = (after - before for after, before in zip(now(), since, strict=True))
    print(f"{name:20} {cpu:7.1f} s CPU {clock:7.1f} s {peak:7.2f} GiB peak", flush=True)


def timed(name: str) -> None:
    """Report each call of a part of the table."""
    part = getattr(table, name)

    def call(*arguments: Any, **options: Any) -> Any:
        since = now()
        found = part(*arguments, **options)
        report(name.strip("_"), since)
        return found

    setattr(table, name, call)


def main(rows: int, folder: Path) -> None:
    """Make the run unless it is there, then its table."""
    run = FinishedRun.open(folder / "run" if (folder / "run" / "subset.jsonl").is_file() else make_run(rows, folder))
    for part in ("_columns", "sample_space", "divided", "_positions", "nearest", "_reasons", "_twins", "_write"):
        timed(part)
    since = now()
    path = table.write_table(run, progress=False)
    report("table", since)
    since = now()
    app = make_app(path, page_props(table.read_facts(path)["charts"]), host="127.0.0.1")
    report("server", since)
    client = TestClient(app, base_url="http://127.0.0.1")
    for name, sql in QUESTIONS.items():
        since = now()
        client.post("/data/query", json={"type": "arrow", "sql": sql}).raise_for_status()
        report(name, since)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
