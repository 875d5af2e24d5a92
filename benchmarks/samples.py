"""The samples that benchmarks run on: P3 where the shared data is, else the demo's embedded pool."""

from __future__ import annotations

import os
from pathlib import Path

from datasets import Dataset

from nncift.data.demo import embedded_data
from nncift.data.pool import load_pool
from nncift.run.storage.files import cache_folder

DATA = Path(os.environ.get("NNCIFT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def shuffled_samples() -> Dataset:
    """Prompts and responses in a seeded order; prints their source."""
    path = DATA / "p3_pool.jsonl.gz"
    if not path.exists():
        path, _ = embedded_data(cache_folder() / "demo")
    print(f"samples: {path}")
    return load_pool(path).shuffle(seed=0)
